#ifndef CINDERLIFT_CEPH_SHIM_H
#define CINDERLIFT_CEPH_SHIM_H

#include <stddef.h>
#include <stdint.h>

#include <rados/librados.h>

#ifdef __cplusplus
extern "C" {
#endif

// cl_copy_start begins to make the object dst a copy of src as the I/O context from sees it (its read snapshot counts), inside
// the cluster: the OSD of dst reads from the OSD of src. One atomic operation: afterwards dst is complete or not there.
// 0: it has begun, and clCopied is called once, perhaps before this returns and from a thread of librados, with handle and
// the result: 0, or a negative errno, -EEXIST when dst is there already, -ENOENT when src is not. Not 0: it has not begun.
int cl_copy_start(rados_ioctx_t to, const char *dst, rados_ioctx_t from, const char *src, uintptr_t handle);

// cl_stat_all asks for objects of an image, a few at a time, until one can't be looked at. Their names are the prefix and a
// number. 0: all are there; or a negative errno, and in *which the index of the number it is about.
int cl_stat_all(rados_ioctx_t io, const char *prefix, const uint64_t *numbers, size_t count, size_t *which);

// cl_return waits until librados has come back from every callback that was due when it was called. 0, or a negative errno.
int cl_return(rados_ioctx_t io);

#ifdef __cplusplus
}
#endif

#endif
