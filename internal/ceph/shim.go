package ceph

// #cgo CXXFLAGS: -std=c++17
// #cgo LDFLAGS: -lrbd -lrados
// #include <stdlib.h>
// #include "shim.h"
import "C"

import (
	"fmt"
	"syscall"
	"unsafe"

	"github.com/ceph/go-ceph/rados"
)

// copyObject is cl_copy_object. It blocks a thread until the OSD has answered.
func copyObject(to *rados.IOContext, dst string, from *rados.IOContext, src string) error {
	cDst, cSrc := C.CString(dst), C.CString(src)
	defer C.free(unsafe.Pointer(cDst))
	defer C.free(unsafe.Pointer(cSrc))

	return errnoError(C.cl_copy_object(C.rados_ioctx_t(to.Pointer()), cDst, C.rados_ioctx_t(from.Pointer()), cSrc))
}

// rebuildObjectMap is cl_rebuild_object_map; snap "" means the head. It opens the image itself: there must be no other
// handle on it in this process that is at work.
func rebuildObjectMap(io *rados.IOContext, image, snap string) error {
	cImage := C.CString(image)
	defer C.free(unsafe.Pointer(cImage))
	var cSnap *C.char
	if snap != "" {
		cSnap = C.CString(snap)
		defer C.free(unsafe.Pointer(cSnap))
	}
	if err := errnoError(C.cl_rebuild_object_map(C.rados_ioctx_t(io.Pointer()), cImage, cSnap)); err != nil {
		return fmt.Errorf("rebuild the object map of %s@%s: %w", image, snap, err)
	}

	return nil
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
