// Interposed between a worker of the tests and librados and librbd (LD_PRELOAD), so that the code under test is the code
// that ships. Each call that writes is told to FAULT_TRACE, one name a line. FAULT=name:n:before makes the n-th call of
// that name answer ETIMEDOUT without doing anything, FAULT=name:n:after makes it answer so after it was done.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { NOTHING, BEFORE, AFTER };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void trace(const char *name)
{
  const char *path = getenv("FAULT_TRACE");
  int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
  if (fd < 0) {
    return;
  }
  char line[128];
  int n = snprintf(line, sizeof line, "%s\n", name);
  if (write(fd, line, n) != n) {
    abort();
  }
  close(fd);
}

static int fault(const char *name)
{
  static int calls;
  const char *spec = getenv("FAULT");
  size_t length = strlen(name);
  pthread_mutex_lock(&mutex);
  trace(name);
  int mode = NOTHING;
  if (spec && strncmp(spec, name, length) == 0 && spec[length] == ':') {
    char *rest;
    if (++calls == strtol(spec + length + 1, &rest, 10)) {
      mode = strcmp(rest, ":before") == 0 ? BEFORE : AFTER;
      trace("FAULT");
    }
  }
  pthread_mutex_unlock(&mutex);
  return mode;
}

#define WRITES(name, parameters, arguments)                       \
  int name parameters                                             \
  {                                                               \
    int (*real) parameters = dlsym(RTLD_NEXT, #name);             \
    int mode = fault(#name);                                      \
    if (mode == BEFORE) {                                         \
      return -ETIMEDOUT;                                          \
    }                                                             \
    int r = real arguments;                                       \
    return mode == AFTER ? -ETIMEDOUT : r;                        \
  }

WRITES(rados_write_op_operate2, (void *op, void *io, const char *oid, void *mtime, int flags), (op, io, oid, mtime, flags))
WRITES(rados_lock_exclusive,
       (void *io, const char *oid, const char *name, const char *cookie, const char *desc, void *duration, uint8_t flags),
       (io, oid, name, cookie, desc, duration, flags))
WRITES(rados_break_lock, (void *io, const char *oid, const char *name, const char *client, const char *cookie),
       (io, oid, name, client, cookie))
WRITES(rados_remove, (void *io, const char *oid), (io, oid))
WRITES(rados_mon_command,
       (void *cluster, const char **cmd, size_t n, const char *in, size_t in_n, char **out, size_t *out_n, char **s, size_t *s_n),
       (cluster, cmd, n, in, in_n, out, out_n, s, s_n))
WRITES(rados_notify2, (void *io, const char *oid, const char *in, int n, uint64_t timeout, char **out, size_t *out_n),
       (io, oid, in, n, timeout, out, out_n))
WRITES(rbd_snap_create, (void *image, const char *snap), (image, snap))
WRITES(rbd_snap_remove, (void *image, const char *snap), (image, snap))
WRITES(rbd_snap_remove_by_id, (void *image, uint64_t snap), (image, snap))
WRITES(rbd_snap_protect, (void *image, const char *snap), (image, snap))
WRITES(rbd_snap_unprotect, (void *image, const char *snap), (image, snap))
WRITES(rbd_clone3, (void *p_io, const char *p, const char *snap, void *c_io, const char *c, void *options),
       (p_io, p, snap, c_io, c, options))
WRITES(rbd_create4, (void *io, const char *name, uint64_t size, void *options), (io, name, size, options))
WRITES(rbd_remove, (void *io, const char *name), (io, name))
WRITES(rbd_metadata_set, (void *image, const char *key, const char *value), (image, key, value))
WRITES(rbd_metadata_remove, (void *image, const char *key), (image, key))
WRITES(rbd_update_features, (void *image, uint64_t features, uint8_t enabled), (image, features, enabled))
WRITES(rbd_flatten_with_progress, (void *image, void *callback, void *data), (image, callback, data))
