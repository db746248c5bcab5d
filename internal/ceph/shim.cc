// What go-ceph does not have: copy_from exists only in librados's C++ interface, and go-ceph has no asynchronous calls to wait
// for.
#include "shim.h"

#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <future>
#include <memory>
#include <new>
#include <string>

#include <rados/librados.hpp>

extern "C" void clCopied(uintptr_t handle, int result);  // in shim.go

namespace {

void copied(rados_completion_t completion, void *handle)
{
  clCopied(reinterpret_cast<uintptr_t>(handle), rados_aio_get_return_value(completion));
}

int copy_start(rados_ioctx_t to, const char *dst, rados_ioctx_t from, const char *src, uintptr_t handle)
{
  librados::IoCtx dst_io, src_io;
  librados::IoCtx::from_rados_ioctx_t(to, dst_io);
  librados::IoCtx::from_rados_ioctx_t(from, src_io);
  librados::ObjectWriteOperation op;
  op.create(true);  // exclusive, and before the copy: what is there is not copied again
  op.copy_from(src, src_io, 0, 0);
  auto completion = librados::Rados::aio_create_completion(reinterpret_cast<void *>(handle), copied);
  int r = dst_io.aio_operate(dst, completion, &op);
  completion->release();  // what is under way holds it as well
  return r;
}

constexpr size_t stats = 16;  // under way at a time

struct stat_under_way {
  librados::AioCompletion *completion;
  uint64_t size;
  time_t mtime;
};

int stat_start(librados::IoCtx &io, const char *prefix, uint64_t number, stat_under_way *s)
{
  char name[24];
  snprintf(name, sizeof(name), ".%016" PRIx64, number);
  s->completion = librados::Rados::aio_create_completion();
  int r = io.aio_stat(std::string(prefix) + name, s->completion, &s->size, &s->mtime);
  if (r < 0) {
    s->completion->release();
  }
  return r;
}

int stat_end(stat_under_way *s)
{
  s->completion->wait_for_complete();
  int r = s->completion->get_return_value();
  s->completion->release();
  return r;
}

// Whatever has been sent is waited for: the answers are written into memory of this call.
int stat_all(rados_ioctx_t ctx, const char *prefix, const uint64_t *numbers, size_t count, size_t *which)
{
  librados::IoCtx io;
  librados::IoCtx::from_rados_ioctx_t(ctx, io);
  std::array<stat_under_way, stats> all;
  int failed = 0;
  size_t sent = 0, seen = 0;
  auto note = [&](int r, size_t index) {
    if (r < 0 && failed == 0) {
      failed = r;
      *which = index;
    }
  };
  while (seen < sent || (failed == 0 && sent < count)) {
    if (failed == 0 && sent < count && sent - seen < stats) {
      int r = stat_start(io, prefix, numbers[sent], &all[sent % stats]);
      note(r, sent);
      sent += r < 0 ? 0 : 1;
      continue;
    }
    note(stat_end(&all[seen % stats]), seen);
    seen++;
  }
  return failed;
}

using turn = std::shared_ptr<std::promise<void>>;

void called(rados_completion_t, void *arg)
{
  std::unique_ptr<turn> mine(static_cast<turn *>(arg));  // the one who waits has another, and may be gone before we are
  (*mine)->set_value();
}

// A flush of nothing has its callback called in line with all others, without a message to an OSD (librados/RadosClient.h
// finish_strand).
int return_of_callbacks(rados_ioctx_t io)
{
  turn ours = std::make_shared<std::promise<void>>();
  auto theirs = std::make_unique<turn>(ours);
  rados_completion_t completion;
  int r = rados_aio_create_completion2(theirs.get(), called, &completion);
  if (r < 0) {
    return r;
  }
  r = rados_aio_flush_async(io, completion);
  rados_aio_release(completion);
  if (r < 0) {
    return r;
  }
  theirs.release();
  ours->get_future().wait();
  return 0;
}

}  // namespace

extern "C" int cl_copy_start(rados_ioctx_t to, const char *dst, rados_ioctx_t from, const char *src, uintptr_t handle)
{
  try {
    return copy_start(to, dst, from, src, handle);
  } catch (const std::bad_alloc &) {
    return -ENOMEM;
  } catch (...) {
    return -EIO;  // an exception must not cross into Go
  }
}

extern "C" int cl_stat_all(rados_ioctx_t io, const char *prefix, const uint64_t *numbers, size_t count, size_t *which)
{
  try {
    return stat_all(io, prefix, numbers, count, which);
  } catch (...) {
    return -ENOMEM;
  }
}

extern "C" int cl_return(rados_ioctx_t io)
{
  try {
    return return_of_callbacks(io);
  } catch (...) {
    return -ENOMEM;
  }
}
