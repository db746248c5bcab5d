#ifndef CINDERLIFT_CEPH_SHIM_H
#define CINDERLIFT_CEPH_SHIM_H

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

// cl_return waits until librados has come back from every callback that was due when it was called. 0, or a negative errno.
int cl_return(rados_ioctx_t io);

#ifdef __cplusplus
}
#endif

#endif
