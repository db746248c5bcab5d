package ceph

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

const (
	// plainFeatures are the features of an image until it has no parent any more. deep-flatten: without it the snapshot
	// keeps the parent for ever. No object-map: librbd before 18.2.5 and 19.2.1 marks an object as there before it has
	// landed, and a flatten that was killed and is run again skips it: zeros where data was, return code 0.
	plainFeatures = rbd.FeatureLayering | rbd.FeatureExclusiveLock | rbd.FeatureDeepFlatten

	mapFeatures = rbd.FeatureObjectMap | rbd.FeatureFastDiff
)

// onDst runs fn on what is found under the name of Dst.
func (im *Images) onDst(
	ctx context.Context, op string, m strategies.Make, fn func(context.Context, *rados.IOContext, view) error,
) error {
	return im.do(ctx, op, m.Dst, func(ctx context.Context) error {
		return im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
			v, err := im.look(io, m)
			if err != nil {
				return err
			}

			return fn(ctx, io, v)
		})
	})
}

// onCurrent is onDst for those who have to know whether Dst is outdated. While the snapshot is not there nothing tells, and
// nothing can be mixed into the image either.
func (im *Images) onCurrent(
	ctx context.Context, op string, m strategies.Make, fn func(context.Context, *rados.IOContext, view) error,
) error {
	return im.onDst(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		if v.standing == ours {
			now, err := im.origin(m)
			if err != nil {
				return err
			}
			v.outdated = now != "" && now != v.source
		}

		return fn(ctx, io, v)
	})
}

// Clone implements strategies.Destination.
func (im *Images) Clone(ctx context.Context, m strategies.Make) error {
	op := fmt.Sprintf("clone %s@%s to %s", m.Src, m.Snapshot, m.Dst)

	return im.onCurrent(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		if err := v.mine(op, m); err != nil {
			return err
		}
		if !v.finished() || !v.sealed && !v.parent {
			return im.clone(ctx, op, io, m, v)
		}

		return im.image(m.Dst, clean) // it may have been killed just before that
	})
}

// clone replaces what is left of an earlier try. The mark comes right after the clone and says that it is complete: a
// clone that was killed half-way has the right size, no parent and no mark.
func (im *Images) clone(ctx context.Context, op string, io *rados.IOContext, m strategies.Make, v view) error {
	objectSize, err := im.objectSize(op, m.Src)
	if err != nil {
		return err
	}
	if err := im.remove(ctx, io, m, v); err != nil {
		return err
	}
	opts, err := imageOptions(max(objectSize, m.ObjectSize))
	if err != nil {
		return err
	}
	defer opts.Destroy()
	err = im.pool(m.Src.Pool, func(src *rados.IOContext) error {
		return rbd.CloneImage(src, m.Src.Image, m.Snapshot, io, m.Dst.Image, opts)
	})
	if is(err, enoent) {
		return missingSnapshot(op, err)
	}
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}

	return im.image(m.Dst, func(image *rbd.Image) error {
		if err := markClone(image, m.Job); err != nil {
			return err
		}

		return clean(image)
	})
}

// markClone takes the snapshot's identity from the clone itself.
func markClone(image *rbd.Image, job string) error {
	parent, err := image.GetParent()
	if err != nil {
		return fmt.Errorf("ask for the parent: %w", err)
	}

	return setMade(image, job, identity(parent.Image.ImageID, parent.Snap.ID))
}

func (im *Images) objectSize(op string, src strategies.Ref) (int64, error) {
	var size uint64
	err := im.reading(src, rbd.NoSnapshot, func(image *rbd.Image) error {
		info, err := image.Stat()
		if err == nil {
			size = info.Obj_size
		}

		return err
	})

	return int64(size), missing(op, err)
}

// imageOptions are those of every image that we make. What is not said here would come from rbd_default_*, or from the
// source.
func imageOptions(objectSize int64) (*rbd.ImageOptions, error) {
	opts := rbd.NewRbdImageOptions()
	for option, value := range map[rbd.ImageOption]uint64{
		rbd.ImageOptionFormat:   2,
		rbd.ImageOptionFeatures: plainFeatures,
		rbd.ImageOptionOrder:    uint64(bits.Len64(uint64(objectSize)) - 1),
		// Plain, also when the source is striped.
		rbd.ImageOptionStripeUnit:  uint64(objectSize),
		rbd.ImageOptionStripeCount: 1,
	} {
		if err := opts.SetUint64(option, value); err != nil {
			opts.Destroy()

			return nil, fmt.Errorf("set image option %v: %w", option, err)
		}
	}

	return opts, nil
}

// Seal implements strategies.Destination. The mark comes last: whoever sees it sees a protected snapshot.
func (im *Images) Seal(ctx context.Context, m strategies.Make) error {
	op := "seal " + m.Dst.String()

	return im.onCurrent(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		if !v.finished() {
			return refuse(op, worker.ReasonMismatch, worker.GiveUp,
				"it is not an image that was finished for job %s (outdated: %v)", m.Job, v.outdated)
		}
		if v.sealed {
			return nil
		}

		made, err := im.quickSnapshot(ctx, io, m.Dst, v, strategies.GlanceSnapshot)
		if err == nil && !made {
			err = im.snapshot(op, m.Dst, strategies.GlanceSnapshot)
		}
		if err != nil {
			return fmt.Errorf("make the snapshot: %w", err)
		}

		return im.image(m.Dst, func(image *rbd.Image) error {
			if err := protect(image, strategies.GlanceSnapshot); err != nil {
				return fmt.Errorf("protect the snapshot: %w", err)
			}

			return setMark(image, markSealed, m.Job)
		})
	})
}

// Complete implements strategies.Destination.
func (im *Images) Complete(ctx context.Context, m strategies.Make, flat bool) (bool, error) {
	answer := make(chan bool, 1)
	err := im.onCurrent(ctx, "look at "+m.Dst.String(), m, func(_ context.Context, _ *rados.IOContext, v view) error {
		answer <- v.finished() && v.sealed && !(flat && v.parent)

		return nil
	})
	if err != nil {
		return false, err
	}

	return <-answer, nil
}

// Discard implements strategies.Destination.
func (im *Images) Discard(ctx context.Context, m strategies.Make) error {
	op := "discard " + m.Dst.String()

	return im.onDst(ctx, op, m, func(ctx context.Context, io *rados.IOContext, v view) error {
		if err := v.mine(op, m); err != nil {
			return err
		}

		if err := im.remove(ctx, io, m, v); err != nil {
			return err
		}

		return im.sweep(ctx) // of an image that Glance has removed
	})
}

// remove takes away what is ours under the name of Dst until the pool does not list the name any more.
func (im *Images) remove(ctx context.Context, io *rados.IOContext, m strategies.Make, v view) error {
	switch v.standing {
	case absent:
		return nil
	case ours:
		if err := im.image(m.Dst, func(image *rbd.Image) error { return strip(image, m) }); err != nil {
			return fmt.Errorf("take the snapshot of %s away: %w", m.Dst, err)
		}
	}

	return removeImage(ctx, io, m.Dst.Image)
}

// strip makes an image removable. First of all no mark counts any more: a removal that is killed leaves an image that
// looks whole but lacks objects. Then the object map goes: librbd removes only those objects that the map has, and the
// map of a half-made image does not have them all (reliability E5: all data objects leaked).
func strip(image *rbd.Image, m strategies.Make) error {
	if err := setMark(image, markDiscarded, m.Job); err != nil {
		return err
	}
	if err := dropMaps(image); err != nil {
		return err
	}

	return release("discard "+m.Dst.String(), image, strategies.GlanceSnapshot)
}

func dropMaps(image *rbd.Image) error {
	features, err := image.GetFeatures()
	if err != nil || features&mapFeatures == 0 {
		return err
	}
	if err := image.UpdateFeatures(features&mapFeatures, false); err != nil {
		return fmt.Errorf("switch the object map off: %w", err)
	}

	return nil
}

const (
	removeTries = 40 // more than the 30 that OSDs wait for the watch of a dead client
	removePause = time.Second
)

// removeImage repeats until the name is not listed: a removal that was killed leaves an image that can't be opened but is
// still listed, and making the name anew would then succeed and leave two of them.
func removeImage(ctx context.Context, io *rados.IOContext, name string) error {
	var err error
	for range removeTries {
		err = rbd.RemoveImage(io, name)
		if err != nil && !is(err, enoent, ebusy) {
			return fmt.Errorf("remove %s: %w", name, err)
		}
		there, listing := listed(io, name)
		if listing != nil {
			return fmt.Errorf("list the pool: %w", listing)
		}
		if !there {
			return nil
		}
		if err := pause(ctx, removePause); err != nil {
			return err
		}
	}

	return fmt.Errorf("remove %s, which is still listed (open at: %v): %w", name, users(io, name), cmp.Or(err, error(ebusy)))
}

// users lists the addresses of the clients that have the image open, for the operator; none when that can't be found out.
func users(io *rados.IOContext, name string) []string {
	var addrs []string
	_ = with(io, func(image *rbd.Image) error {
		watchers, err := image.ListWatchers()
		for _, w := range watchers {
			addrs = append(addrs, w.Addr)
		}

		return err
	})(rbd.OpenImageReadOnly(io, name, rbd.NoSnapshot))

	return addrs
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
