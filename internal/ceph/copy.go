package ceph

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"sync"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// readers is how many objects go through this process at a time.
const readers = 4

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
	amount   worker.Amount
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
	there, left, err := c.fill(ctx)
	if err != nil {
		return err
	}
	if err := c.carry(ctx, left); err != nil {
		return err
	}
	if err := c.im.buildMaps(ctx, c.io, c.m.Dst, there, rbd.NoSnapshot); err != nil {
		return err
	}

	return c.im.image(c.m.Dst, func(image *rbd.Image) error { return setMark(image, markCopied, c.m.Job) })
}

// fill copies inside the cluster.
func (c *copying) fill(ctx context.Context) (there, left []uint64, err error) {
	from, err := c.im.chain(c.src, c.dst.geometry)
	if err != nil {
		return nil, nil, err
	}
	defer from.close()
	work, err := c.im.filling(c.m.Dst, c.dst, from, c.progress)
	if err != nil {
		return nil, nil, err
	}
	defer work.to.Destroy()
	err = c.im.fill(ctx, c.m.Dst, work, c.all)
	c.amount = work.done

	return work.there, work.left, err
}

// carry brings through this process what the cluster can't copy by itself: one whole object of the image at a time, in
// one write. So an object that is there is complete, and a later try passes over it.
func (c *copying) carry(ctx context.Context, left []uint64) error {
	if len(left) == 0 {
		return nil
	}

	return c.im.place(c.src, func(src *rbd.Image) error {
		return c.im.image(c.m.Dst, func(dst *rbd.Image) error {
			have, err := numbers(ctx, dst, uint64(c.order), rbd.ExcludeParent)
			if err != nil {
				return err
			}

			return c.carryAll(ctx, src, dst, lacks(have, left), len(left))
		})
	})
}

func (c *copying) carryAll(ctx context.Context, src, dst *rbd.Image, left []uint64, of int) error {
	c.amount.Done += int64(of-len(left)) * c.order // brought by an earlier try
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan uint64)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range min(readers, len(left)) {
		wg.Go(func() {
			buffer := make([]byte, c.order)
			for n := range next {
				moved, err := c.carryOne(src, dst, n, buffer)
				if err != nil {
					cancel(err)
				}
				mu.Lock()
				c.amount.Done, c.amount.Worker = min(c.amount.Total, c.amount.Done+c.order), c.amount.Worker+moved
				c.progress(c.amount)
				mu.Unlock()
			}
		})
	}
	err := feed(ctx, next, left)
	close(next)
	wg.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}

	return err
}

// carryOne leaves a hole where there are only zeros.
func (c *copying) carryOne(src, dst *rbd.Image, n uint64, buffer []byte) (int64, error) {
	from := int64(n) * c.order
	p := buffer[:min(c.order, int64(c.size)-from)]
	got, err := src.ReadAt(p, from)
	if err != nil || got != len(p) {
		return 0, fmt.Errorf("read object %d of the volume, %d of %d bytes: %w", n, got, len(p), cmp.Or(err, error(erange)))
	}
	if len(bytes.TrimLeft(p, "\x00")) == 0 {
		return int64(got), nil
	}
	if _, err := dst.WriteAt(p, from); err != nil {
		return 0, fmt.Errorf("write object %d of the image: %w", n, err)
	}

	return int64(got), nil
}
