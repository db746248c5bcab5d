package ceph

import (
	"context"
	"fmt"
	"slices"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Flatten implements strategies.Destination. The objects are copied inside the cluster first; librbd's flatten, which
// moves everything through this process, then finds nothing left to copy and only detaches. What can't be copied object
// by object is left to it.
func (im *Images) Flatten(ctx context.Context, m strategies.Make, p worker.Progress) error {
	op := "flatten " + m.Dst.String()

	return im.onCurrent(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		if !v.finished() || !v.sealed {
			return refuse(op, worker.ReasonMismatch, worker.GiveUp,
				"it is not an image that was sealed for job %s (outdated: %v)", m.Job, v.outdated)
		}
		if !v.parent {
			return nil
		}
		f := &flattening{im: im, io: io, m: m, progress: quiet(ctx, p)}

		return f.run(ctx)
	})
}

// quiet makes a progress that is nobody's any more once ctx is done: what lingers must not tell it.
func quiet(ctx context.Context, p worker.Progress) worker.Progress {
	return func(a worker.Amount) {
		if p != nil && ctx.Err() == nil {
			p(a)
		}
	}
}

// flattening is one call of Flatten.
type flattening struct {
	im       *Images
	io       *rados.IOContext
	m        strategies.Make
	progress worker.Progress
	amount   worker.Amount // of the fill
	left     []uint64      // objects that librbd has to copy
	size     uint64        // of an object, in bytes
}

// run does it in the order that keeps every reader right at every instant, also after a kill anywhere:
//
//  1. No object map. One that an earlier call left may say of an object that it is there before it is.
//  2. Copy objects. A reader finds an object in the clone, or reads it through the parent: the same bytes.
//  3. When all are there: object maps, rebuilt from what is really there, for the head and for the snapshot. Both
//     before the detach: once the parent is gone, readers get zeros for what the map does not have.
//  4. Detach. With nothing left to copy, librbd's flatten does only that.
//
// When something is left, librbd copies it without a map, and the image stays without one.
func (f *flattening) run(ctx context.Context) error {
	if err := f.im.image(f.m.Dst, dropMaps); err != nil {
		return err
	}
	there, err := f.fill(ctx)
	if err != nil {
		return err
	}
	if len(f.left) == 0 {
		if err := f.im.buildMaps(ctx, f.io, f.m.Dst, there, rbd.NoSnapshot, strategies.GlanceSnapshot); err != nil {
			return err
		}
	}
	if err := f.detach(ctx); err != nil {
		return err
	}

	return f.check()
}

// fill copies what can be copied inside the cluster.
func (f *flattening) fill(ctx context.Context) (there []uint64, err error) {
	top, all, dst, err := f.survey(ctx)
	if err != nil {
		return nil, err
	}
	f.size = dst.objectSize
	from, err := f.im.chain(top, dst.geometry)
	if err != nil {
		return nil, err
	}
	defer from.close()
	work, err := f.im.filling(f.m.Dst, dst, from, f.progress)
	if err != nil {
		return nil, err
	}
	defer work.to.Destroy()
	err = f.im.fill(ctx, f.m.Dst, work, all)
	f.amount, f.left = work.done, work.left

	return work.there, err
}

// target is the image that is filled.
type target struct {
	geometry
	size   uint64
	prefix string
}

func targetOf(image *rbd.Image) (t target, err error) {
	if t.geometry, err = geometryOf(image); err != nil {
		return t, err
	}
	info, err := image.Stat()
	if err != nil {
		return t, err
	}
	t.size, t.prefix = info.Size, info.Block_name_prefix

	return t, nil
}

// survey finds the parent, and which objects the clone has or shows through it.
func (f *flattening) survey(ctx context.Context) (top place, all []uint64, dst target, err error) {
	err = f.im.reading(f.m.Dst, rbd.NoSnapshot, func(image *rbd.Image) error {
		parent, err := image.GetParent()
		if err != nil {
			return fmt.Errorf("ask for the parent: %w", err)
		}
		up := parent.Image
		top = place{up.PoolName, up.PoolNamespace, up.ImageID, parent.Snap.ID}
		dst, err = targetOf(image)

		return err
	})
	if err != nil {
		return top, nil, dst, err
	}
	// Of the parent and not of the clone: a fast-diff map of the volume knows without asking every OSD.
	err = f.im.place(top, func(image *rbd.Image) error {
		all, err = numbers(ctx, image, dst.objectSize, rbd.IncludeParent)

		return err
	})

	return top, all, dst, err
}

// filling prepares a fill of the image. The caller destroys filling.to.
func (im *Images) filling(at strategies.Ref, dst target, from *chain, p worker.Progress) (*filling, error) {
	var to *rados.IOContext
	err := im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) (err error) {
		to, err = im.dataPool(image, "")

		return err
	})
	if err != nil {
		return nil, err
	}

	return &filling{
		copy: im.copy, to: to, prefix: dst.prefix, objectSize: dst.objectSize, size: dst.size, from: from, progress: p,
	}, nil
}

// buildMaps gives a filled image an object map for each of the versions, and then asks the maps whether all objects are
// there: the independent proof that the fill was complete.
func (im *Images) buildMaps(ctx context.Context, io *rados.IOContext, at strategies.Ref, there []uint64, snaps ...string) error {
	err := im.image(at, func(image *rbd.Image) error { return image.UpdateFeatures(mapFeatures, true) })
	if err != nil {
		return fmt.Errorf("switch the object map on: %w", err)
	}
	for _, snap := range snaps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := rebuildObjectMap(io, at.Image, snap); err != nil {
			return err
		}
	}
	for _, snap := range snaps {
		if err := im.compare(ctx, at, snap, there); err != nil {
			return err
		}
	}

	return nil
}

func (im *Images) compare(ctx context.Context, at strategies.Ref, snap string, want []uint64) error {
	return im.reading(at, snap, func(image *rbd.Image) error {
		info, err := image.Stat()
		if err != nil {
			return err
		}
		have, err := numbers(ctx, image, info.Obj_size, rbd.ExcludeParent)
		if err != nil {
			return err
		}
		if missing := lacks(have, want); len(missing) > 0 {
			return refuse("compare "+at.String()+"@"+snap, worker.ReasonMismatch, worker.Retry,
				"%d of %d objects are not there, the first is %d", len(missing), len(want), missing[0])
		}

		return nil
	})
}

// detach runs librbd's flatten. What it copies is what is left, in the order of the numbers.
func (f *flattening) detach(ctx context.Context) error {
	err := f.im.image(f.m.Dst, func(image *rbd.Image) error {
		return image.FlattenWithProgress(func(done, _ uint64, _ any) int {
			if ctx.Err() != nil {
				return -int(ecanceled)
			}
			f.tell(done)

			return 0
		}, nil)
	})
	switch {
	case err == nil, is(err, einval): // EINVAL: it has no parent any more; check looks
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("detach from the parent: %w", err)
	}
}

// tell counts those of the objects left that librbd has passed.
func (f *flattening) tell(passed uint64) {
	n, _ := slices.BinarySearch(f.left, passed)
	if n == 0 {
		return
	}
	a := f.amount
	a.Done = min(a.Total, a.Done+int64(n)*int64(f.size))
	a.Worker += int64(n) * int64(f.size)
	f.progress(a)
}

// check believes only the image's own headers.
func (f *flattening) check() error {
	v, err := f.im.look(f.io, f.m)
	if err != nil {
		return err
	}
	if v.parent {
		return refuse("flatten "+f.m.Dst.String(), worker.ReasonMismatch, worker.Retry, "it still has its parent")
	}

	return nil
}
