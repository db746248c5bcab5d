package ceph

// #cgo CXXFLAGS: -std=c++17
// #cgo LDFLAGS: -lrbd -lrados
// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"errors"
	"runtime/cgo"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// copyObject is cl_copy_start and the wait for its end, which blocks no thread. It can't be cancelled: a copy that was sent
// may still take effect when nobody waits for it any more, perhaps after its image was removed.
func copyObject(to *rados.IOContext, dst string, from *rados.IOContext, src string) error {
	cDst, cSrc := C.CString(dst), C.CString(src)
	defer C.free(unsafe.Pointer(cDst))
	defer C.free(unsafe.Pointer(cSrc))
	ended := make(chan C.int, 1)
	handle := cgo.NewHandle(ended)
	defer handle.Delete()
	r := C.cl_copy_start(C.rados_ioctx_t(to.Pointer()), cDst, C.rados_ioctx_t(from.Pointer()), cSrc, C.uintptr_t(handle))
	if r == 0 {
		r = <-ended
	}

	return errnoError(r)
}

// clCopied is called by a thread of librados, which must not be kept: there is room in the channel.
//
//export clCopied
func clCopied(handle C.uintptr_t, result C.int) {
	cgo.Handle(handle).Value().(chan C.int) <- result //nolint:forcetypeassert // copyObject put it there
}

// statAll asks for objects of an image, a few at a time and in one call: as many questions as objects, each with a thread of
// its own that waits, cost more than the answers. The error is about the object with the number which.
func statAll(data *rados.IOContext, prefix string, numbers []uint64) (which uint64, err error) {
	if len(numbers) == 0 {
		return 0, nil
	}
	cPrefix := C.CString(prefix)
	defer C.free(unsafe.Pointer(cPrefix))
	var index C.size_t
	err = errnoError(C.cl_stat_all(C.rados_ioctx_t(data.Pointer()), cPrefix, (*C.uint64_t)(&numbers[0]), C.size_t(len(numbers)), &index))

	return numbers[index], err
}

// newSnapID has the monitors allot an id for a snapshot of an image with its data in this pool. It waits for them.
func newSnapID(data *rados.IOContext) (uint64, error) {
	var id C.rados_snap_t
	err := errnoError(C.rados_ioctx_selfmanaged_snap_create(C.rados_ioctx_t(data.Pointer()), &id))

	return uint64(id), err
}

// closeImage closes an image when librbd has really come back from opening it. Every image has to be closed with it.
//
// The thread of librados that ends the opening of an image wakes the caller first and locks a mutex of the image afterwards
// (librbd/ImageState.cc complete_action_unlock, seen on 16.2.15). Close the image before it gets there, as happens on a
// busy machine in about one takeover of three hundred, and that mutex is freed memory: the thread throws, crashes, or waits for
// ever, and with it every answer that is due to this process, also those of the monitors and the timeouts. Such threads
// take their turns in one line; who stands in line and is called knows that all before have ended. What librbd opens
// and closes by itself, such as the parent of a clone that it makes, stays open to it.
func closeImage(io *rados.IOContext, image *rbd.Image) error {
	returned := errnoError(C.cl_return(C.rados_ioctx_t(io.Pointer())))

	return errors.Join(image.Close(), returned)
}

// unwatch is rados_unwatch2 and no more. Watcher.Delete closes the watcher's channels as well, while a callback may be about
// to send on one, which ends the process (go-ceph 0.41.0 rados/watcher.go:193 and 354). Left open they cost some bytes.
func unwatch(io *rados.IOContext, w *rados.Watcher) error {
	return errnoError(C.rados_unwatch2(C.rados_ioctx_t(io.Pointer()), C.uint64_t(w.ID())))
}

func errnoError(r C.int) error {
	if r == 0 {
		return nil
	}

	return syscall.Errno(abs(int(r)))
}
