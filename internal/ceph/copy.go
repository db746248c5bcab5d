package ceph

import (
	"cmp"
	"context"
	"fmt"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// CopyObjects implements strategies.Destination.
func (im *Images) CopyObjects(ctx context.Context, m strategies.Make, p worker.Progress) error {
	op := fmt.Sprintf("copy %s@%s to %s", m.Src, m.Snapshot, m.Dst)

	return im.onCurrent(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		if err := v.mine(op, m); err != nil {
			return err
		}
		if v.finished() && !v.parent {
			return nil
		}
		c := &copying{im: im, io: io, m: m, progress: quiet(ctx, p)}
		if err := c.look(ctx, op); err != nil {
			return err
		}
		if err := c.prepare(ctx, v); err != nil {
			return err
		}

		return c.run(ctx)
	})
}

// copying is one call of CopyObjects.
type copying struct {
	im       *Images
	io       *rados.IOContext
	m        strategies.Make
	progress worker.Progress
	src      place
	size     uint64 // of the volume at the snapshot
	order    int64  // object size of the image to be made
	all      []uint64
	dst      target
}

// look finds the volume at its snapshot and which objects the image will have.
func (c *copying) look(ctx context.Context, op string) error {
	return missing(op, c.im.reading(c.m.Src, rbd.NoSnapshot, func(image *rbd.Image) error {
		id, err := image.GetId()
		if err != nil {
			return err
		}
		snap, err := image.GetSnapID(c.m.Snapshot)
		if err == nil {
			err = image.SetSnapByID(snap)
		}
		if err != nil {
			return missingSnapshot(op, err)
		}
		info, err := image.Stat()
		if err != nil {
			return err
		}
		c.src = place{pool: c.m.Src.Pool, id: id, snap: snap}
		c.size, c.order = info.Size, cmp.Or(c.m.ObjectSize, int64(info.Obj_size))
		c.all, err = numbers(ctx, image, uint64(c.order), rbd.IncludeParent)

		return err
	}))
}

// prepare leaves a marked image without parent and without object map, empty or with what an earlier try has copied of
// the same snapshot. The mark is there before the first object, so no object can be taken for one of another snapshot.
func (c *copying) prepare(ctx context.Context, v view) error {
	made := identity(c.src.id, c.src.snap)
	usable := v.standing == ours && !v.discarded && !v.parent && v.source == made
	if !usable {
		if err := c.im.remove(ctx, c.io, c.m, v); err != nil {
			return err
		}
		if err := c.create(); err != nil {
			return err
		}
	}

	return c.im.image(c.m.Dst, func(image *rbd.Image) (err error) {
		if err := setMade(image, c.m.Job, made); err != nil {
			return err
		}
		if err := dropMaps(image); err != nil {
			return err
		}
		c.dst, err = targetOf(image)

		return err
	})
}

func (c *copying) create() error {
	opts, err := imageOptions(c.order)
	if err != nil {
		return err
	}
	defer opts.Destroy()
	if err := rbd.CreateImage(c.io, c.m.Dst.Image, c.size, opts); err != nil {
		return fmt.Errorf("create: %w", err)
	}

	return nil
}

// run fills the image, proves that it is full, and says so in a mark.
func (c *copying) run(ctx context.Context) error {
	work, err := c.im.filling(c.m.Dst, c.dst, c.src, c.progress)
	if err != nil {
		return err
	}
	defer work.close()
	if err := c.im.fill(ctx, c.m.Dst, work, c.all); err != nil {
		return err
	}
	if err := c.im.buildMaps(ctx, c.io, c.m.Dst, work.there, rbd.NoSnapshot); err != nil {
		return err
	}

	return c.im.image(c.m.Dst, func(image *rbd.Image) error { return setMark(image, markCopied, c.m.Job) })
}
