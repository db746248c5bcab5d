package ceph

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// What happens when the user deletes an image while it is flattened. Its removal takes away the objects that are there,
// one after the other; a fill that runs meanwhile puts objects behind it, which then belong to no image and which nobody
// ever finds, and so does librbd when it makes an object map. So the fill looks now and then whether the image has its name, and what it has put there is removed once the
// image is gone. Which image that was is in the journal before the first object: a worker that dies just then leaves it
// to the next.

// filled says where the objects of an image are that a flatten has begun to fill.
type filled struct {
	Pool    string `json:"pool"` // of the image
	ID      string `json:"id"`   // internal, never used again
	Data    string `json:"data"` // pool of the objects
	Prefix  string `json:"prefix"`
	Objects uint64 `json:"objects"`
	Snap    uint64 `json:"snap"` // id of Glance's snapshot
}

// maps are the names of its object maps.
func (f filled) maps() []string { return []string{mapObject(f.ID, noSnap), f.snapMap()} }

func (f filled) snapMap() string { return mapObject(f.ID, f.Snap) }

const (
	goneEvery = 2 * time.Second // between two looks whether the image is still there
	goneTries = 30              // seconds that its removal is waited for

	nameObject = "rbd_id." // object that says which image has a name (include/rbd_types.h RBD_ID_PREFIX)
)

var errGone = refuse("look for the image", worker.ReasonCephRefused, worker.Retry, "it was removed meanwhile")

// remember notes in the journal that the image is being filled. The image before, if there was another, is swept.
func (im *Images) remember(ctx context.Context, now filled) error {
	if before := im.filled.Load(); before != nil {
		if *before == now {
			return nil
		}
		if err := im.sweep(ctx); err != nil {
			return err
		}
	}
	if im.note != nil {
		raw, err := json.Marshal(now)
		if err == nil {
			err = im.note(raw)
		}
		if err != nil {
			return fmt.Errorf("note in the journal that the image is filled: %w", err)
		}
	}
	im.filled.Store(&now)

	return nil
}

// recall takes over what an earlier claim has noted.
func (im *Images) recall(raw string) {
	var before filled
	if json.Unmarshal([]byte(raw), &before) == nil {
		im.filled.Store(&before)
	}
}

// sweep removes all objects of the image that was being filled if that image is gone.
func (im *Images) sweep(ctx context.Context) error {
	at := im.filled.Load()
	if at == nil {
		return nil
	}
	known, err := im.known(at.Pool, at.ID)
	if err != nil || known {
		return err
	}
	if err := im.drop(at.Pool, append(at.maps(), headerPrefix+at.ID)...); err != nil {
		return err
	}
	numbers := make([]uint64, at.Objects)
	for n := range numbers {
		numbers[n] = uint64(n)
	}
	err = im.pool(at.Data, func(io *rados.IOContext) error {
		return each(ctx, removals, numbers, func(n uint64) error {
			if err := io.Delete(object(at.Prefix, n)); err != nil && !is(err, enoent) {
				return fmt.Errorf("remove object %d of an image that is gone: %w", n, err)
			}

			return nil
		})
	})
	if err == nil {
		im.filled.Store(nil)
	}

	return err
}

// removals is how many objects of an image that is gone are removed at a time.
const removals = 16

// drop removes objects of a pool that nobody uses any more.
func (im *Images) drop(pool string, names ...string) error {
	return im.pool(pool, func(io *rados.IOContext) error {
		for _, name := range names {
			if err := io.Delete(name); err != nil && !is(err, enoent) {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}

		return nil
	})
}

// known reports whether the pool's directory or its trash has the image. That its header is there would say nothing:
// whoever opens an image for writing while it is removed may make a header again, of which nobody knows. An image that is
// moved to the trash or back is in both for an instant, and one that is being removed is in the trash.
func (im *Images) known(pool, id string) (found bool, err error) {
	err = im.pool(pool, func(io *rados.IOContext) error {
		for _, list := range []string{directoryObject, trashObject, directoryObject} { // again: it may have come back
			values, err := omapValues(io, list, idPrefix+id)
			if err != nil && !is(err, enoent) {
				return fmt.Errorf("look whether image %s is in %s: %w", id, list, err)
			}
			found = found || len(values) > 0
		}

		return nil
	})

	return found, err
}

// omapValues reads keys of an object.
func omapValues(io *rados.IOContext, name string, keys ...string) (map[string]string, error) {
	op := rados.CreateReadOp()
	defer op.Release()
	op.AssertExists()
	step := op.GetOmapValuesByKeys(keys)
	if err := op.Operate(io, name, rados.OperationNoFlag); err != nil {
		return nil, err
	}

	return collect(step)
}

// named reports whether there is an image of this name.
func (im *Images) named(at strategies.Ref) (bool, error) {
	err := im.pool(at.Pool, func(io *rados.IOContext) error {
		_, err := io.Stat(nameObject + at.Image)

		return err
	})
	if is(err, enoent) {
		return false, nil
	}

	return err == nil, err
}

// whileThere runs fn, whose context ends with errGone soon after the image lost its name.
func (im *Images) whileThere(ctx context.Context, at strategies.Ref, fn func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	ended := make(chan struct{})
	looked := make(chan struct{})
	go func() {
		defer close(looked)
		ticker := time.NewTicker(goneEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				if there, err := im.named(at); err == nil && !there {
					cancel(errGone)
				}
			}
		}
	}()
	err := fn(ctx)
	close(ended)
	<-looked
	cancel(nil)

	return err
}

// judge finds out after a failure whether the image is gone, and then removes what the fill has left of it.
func (f *flattening) judge(ctx context.Context, failure error) error {
	if ctx.Err() != nil || !errors.Is(failure, errGone) && !is(failure, enoent) {
		return failure
	}
	op := "flatten " + f.m.Dst.String()
	for range goneTries {
		v, err := f.im.look(f.io, f.m)
		if err != nil {
			return err
		}
		if v.standing == ours && !v.sealed {
			return refuse(op, worker.ReasonCephRefused, worker.Retry, "somebody is removing it, or tried to: %w", failure)
		}
		if v.standing == ours {
			return failure
		}
		if v.standing == absent {
			if err := f.im.sweep(ctx); err != nil {
				return err
			}
			if f.im.filled.Load() == nil {
				return refuse(op, worker.ReasonMismatch, worker.GiveUp, "it is gone, deleted by its user perhaps: %w", failure)
			}
		}
		if err := pause(ctx, time.Second); err != nil {
			return err
		}
	}

	return refuse(op, worker.ReasonCephRefused, worker.Retry, "it is in the trash, or half removed: %w", failure)
}

// reseal makes the snapshot again that a refused delete has removed: Glance removes it first, and when the image can't be
// removed then because it was open in just that instant, the image stays active. A delete that is still under way has
// time to end before.
func (f *flattening) reseal(ctx context.Context) error {
	if err := pause(ctx, goneEvery); err != nil {
		return err
	}
	v, err := f.im.look(f.io, f.m)
	if err != nil || v.sealed {
		return err
	}
	if v.standing != ours {
		return f.judge(ctx, errGone)
	}
	if at := f.im.filled.Load(); at != nil && at.Pool == f.m.Dst.Pool { // its map may have been made behind its removal
		if err := f.im.drop(at.Pool, at.snapMap()); err != nil {
			return err
		}
	}
	op := "seal " + f.m.Dst.String() + " again"
	if err := f.im.snapshot(op, f.m.Dst, strategies.GlanceSnapshot); err != nil {
		return fmt.Errorf("make the snapshot again: %w", err)
	}

	return f.im.image(f.m.Dst, func(image *rbd.Image) error {
		if err := protect(image, strategies.GlanceSnapshot); err != nil {
			return err
		}
		f.snap, err = image.GetSnapID(strategies.GlanceSnapshot)

		return err
	})
}
