package ceph

import (
	"bytes"
	"cmp"
	"context"
	"fmt"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// readers is how many objects go through this process at a time.
const readers = 4

// carry brings through this process what the cluster can't copy by itself. It reads with librbd, which puts the bytes of
// an object together from whatever layers there are, and writes whole objects into the pool, as the cluster's own copy
// does. So the image is not open meanwhile, which may be hours, and its user can delete it; with librbd's flatten the
// delete would fail because of us, after Glance has removed the snapshot.
func (im *Images) carry(ctx context.Context, f *filling) error {
	return im.place(f.src, func(src *rbd.Image) error {
		return each(ctx, readers, sorted(f.left), func(n uint64) error {
			if err := f.admit.pace(ctx, f.bytes(n)); err != nil {
				return err
			}

			return f.carryOne(src, n)
		})
	})
}

// carryOne leaves a hole where there are only zeros.
func (f *filling) carryOne(src *rbd.Image, n uint64) error {
	name := object(f.prefix, n)
	_, err := f.to.Stat(name)
	if err == nil {
		f.settle(n, present, 0, 0) // brought by an earlier try

		return nil
	}
	if !is(err, enoent) {
		return fmt.Errorf("look for object %d: %w", n, err)
	}
	p := make([]byte, f.bytes(n))
	got, err := src.ReadAt(p, int64(n*f.objectSize))
	if err != nil || got != len(p) {
		return fmt.Errorf("read object %d of the volume, %d of %d bytes: %w", n, got, len(p), cmp.Or(err, error(erange)))
	}
	data := bytes.TrimRight(p, "\x00")
	if len(data) == 0 {
		f.settle(n, nowhere, 0, int64(got))

		return nil
	}
	err = f.put(name, data)
	if err != nil && !is(err, eexist) {
		return fmt.Errorf("write object %d of the image: %w", n, err)
	}
	f.settle(n, present, 0, int64(got))

	return nil
}

// put makes an object in one operation: an object that is there is complete, also after a kill.
func (f *filling) put(name string, data []byte) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateExclusive)
	op.WriteFull(data)

	return op.Operate(f.to, name, rados.OperationNoFlag)
}
