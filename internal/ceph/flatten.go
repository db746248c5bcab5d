package ceph

import (
	"context"
	"errors"
	"fmt"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Flatten implements strategies.Destination. The objects are copied inside the cluster first; librbd's flatten, which
// moves everything through this process, then finds nothing left to copy and only detaches.
//
// After an early registration the image may be deleted at any time by its user. RBD refuses to remove an image that
// somebody has open for writing, and Glance would answer 409; so it is open for writing only for instants.
func (im *Images) Flatten(ctx context.Context, m strategies.Make, p worker.Progress) error {
	op := "flatten " + m.Dst.String()

	return im.onCurrent(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		f := &flattening{im: im, io: io, m: m, snap: v.snap, progress: quiet(ctx, p)}
		switch {
		case v.standing == absent || v.standing == nameless:
			return f.judge(ctx, errGone)
		case !v.finished() || !v.marked:
			return refuse(op, worker.ReasonMismatch, worker.GiveUp,
				"it is not an image that was sealed for job %s (outdated: %v)", m.Job, v.outdated)
		case !v.sealed:
			if err := f.reseal(ctx); err != nil {
				return err
			}
		}
		if !v.parent {
			return nil
		}

		return f.judge(ctx, im.whileThere(ctx, m.Dst, f.run))
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
	snap     uint64 // id of Glance's snapshot
	progress worker.Progress
}

// run does it in the order that keeps every reader right at every instant, also after a kill anywhere:
//
//  1. No object map. One that an earlier call left may say of an object that it is there before it is.
//  2. Copy objects. A reader finds an object in the clone, or reads it through the parent: the same bytes.
//  3. When all are there, which is asked of the OSDs: object maps that say so, for the head and for the snapshot. Both
//     before the detach: once the parent is gone, readers get zeros for what the map does not have.
//  4. Detach. With nothing left to copy, librbd's flatten does only that.
//
// A striped clone was made by an earlier release. librbd copies all of it, without a map, and it stays without one.
func (f *flattening) run(ctx context.Context) error {
	there, err := f.fill(ctx)
	if errors.Is(err, errNotPlain) {
		f.im.c.opts.Engine(EngineLibrbd, ObstacleLayout)

		return f.detach(ctx)
	}
	if err != nil {
		return err
	}
	if err := f.im.buildMaps(ctx, f.io, f.m.Dst, there, rbd.NoSnapshot, strategies.GlanceSnapshot); err != nil {
		return err
	}

	return f.detach(ctx)
}

// fill brings all objects, into an image without a map. It is opened for writing only when there is one.
func (f *flattening) fill(ctx context.Context) (there []uint64, err error) {
	top, all, dst, err := f.survey(ctx)
	if err == nil && dst.maps {
		err = f.im.image(f.m.Dst, dropMaps)
	}
	if err != nil {
		return nil, err
	}
	work, err := f.im.filling(f.m.Dst, dst, top, f.progress)
	if err != nil {
		return nil, err
	}
	defer work.close()
	if err := f.remember(ctx, dst, work); err != nil {
		return nil, err
	}
	err = f.im.fill(ctx, f.m.Dst, work, all)

	return work.there, err
}

func (f *flattening) remember(ctx context.Context, dst target, work *filling) error {
	pool, err := work.to.GetPoolName()
	if err != nil {
		return fmt.Errorf("ask for the name of the data pool: %w", err)
	}

	return f.im.remember(ctx, filled{
		Pool: f.m.Dst.Pool, ID: dst.id, Data: pool, Prefix: dst.prefix, Objects: (dst.size + dst.objectSize - 1) / dst.objectSize,
		Snap: f.snap,
	})
}

// target is the image that is filled.
type target struct {
	geometry
	id     string
	size   uint64
	prefix string
	pool   int64 // that holds its objects
	maps   bool  // it has an object map
}

func targetOf(image *rbd.Image) (t target, err error) {
	if t.geometry, err = geometryOf(image); err != nil {
		return t, err
	}
	if t.id, err = image.GetId(); err != nil {
		return t, err
	}
	info, err := image.Stat()
	if err != nil {
		return t, err
	}
	t.size, t.prefix = info.Size, info.Block_name_prefix
	features, err := image.GetFeatures()
	if err != nil {
		return t, err
	}
	t.maps = features&mapFeatures != 0
	t.pool, err = image.GetDataPoolID()

	return t, err
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

// filling prepares a fill of the image with what is at src. Close it. An image that we made is plain, see imageOptions;
// only then are its bytes in objects as the fill puts them there.
func (im *Images) filling(at strategies.Ref, dst target, src place, p worker.Progress) (*filling, error) {
	if why := dst.apart(dst.geometry); why != nil {
		return nil, refuse("fill "+at.String(), worker.ReasonInternal, worker.OtherWay, "%s: %w", why.text, errNotPlain)
	}
	to, err := im.poolOf(dst.pool, "")
	if err != nil {
		return nil, err
	}
	from, err := im.chain(src, dst.geometry)
	if err != nil {
		to.Destroy()

		return nil, err
	}

	return &filling{
		copy: im.copy, admit: im.admit, to: to, prefix: dst.prefix, objectSize: dst.objectSize, size: dst.size, from: from, src: src, progress: p,
	}, nil
}

func (f *filling) close() {
	f.from.close()
	f.to.Destroy()
}

// errNotPlain: the bytes of an image do not follow each other from object to object.
var errNotPlain = errors.New("its objects can't be filled one by one")

// detach runs librbd's flatten.
func (f *flattening) detach(ctx context.Context) error {
	err := f.im.image(f.m.Dst, func(image *rbd.Image) error {
		return image.FlattenWithProgress(func(uint64, uint64, any) int {
			if ctx.Err() != nil {
				return -int(ecanceled)
			}

			return 0
		}, nil)
	})
	switch {
	case err == nil, is(err, einval): // EINVAL: it has no parent any more
		return f.check()
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		return fmt.Errorf("detach from the parent: %w", err)
	}
}

// check believes only the image's own headers.
func (f *flattening) check() error {
	v, err := f.im.look(f.io, f.m)
	if err != nil {
		return err
	}
	if v.standing != ours {
		return errGone
	}
	if v.parent {
		return refuse("flatten "+f.m.Dst.String(), worker.ReasonMismatch, worker.Retry, "it still has its parent")
	}

	return nil
}
