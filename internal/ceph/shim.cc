// The two operations that go-ceph does not have: copy_from exists only in librados's C++ interface, and rebuilding an
// object map is not bound.
#include "shim.h"

#include <cerrno>
#include <cstdint>
#include <new>

#include <rados/librados.hpp>
#include <rbd/librbd.h>

namespace {

int copy_object(rados_ioctx_t to, const char *dst, rados_ioctx_t from, const char *src)
{
  librados::IoCtx dst_io, src_io;
  librados::IoCtx::from_rados_ioctx_t(to, dst_io);
  librados::IoCtx::from_rados_ioctx_t(from, src_io);
  librados::ObjectWriteOperation op;
  op.create(true);  // exclusive, and before the copy: what is there is not copied again
  op.copy_from(src, src_io, 0, 0);
  return dst_io.operate(dst, &op);
}

int no_progress(uint64_t, uint64_t, void *) { return 0; }

}  // namespace

extern "C" int cl_copy_object(rados_ioctx_t to, const char *dst, rados_ioctx_t from, const char *src)
{
  try {
    return copy_object(to, dst, from, src);
  } catch (const std::bad_alloc &) {
    return -ENOMEM;
  } catch (...) {
    return -EIO;  // an exception must not cross into Go
  }
}

extern "C" int cl_rebuild_object_map(rados_ioctx_t io, const char *name, const char *snap)
{
  rbd_image_t image;
  int r = rbd_open(io, name, &image, snap);
  if (r < 0) {
    return r;
  }
  r = rbd_rebuild_object_map(image, no_progress, nullptr);
  int closed = rbd_close(image);
  return r < 0 ? r : closed;
}
