package ceph

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

var errUnsupported = errors.New("this cluster can't copy objects by itself")

// filling copies objects into an image inside the cluster. It can be stopped anywhere and begun again: an object that is
// there is complete.
type filling struct {
	copy       func(to *rados.IOContext, dst string, from *rados.IOContext, src string) error
	to         *rados.IOContext // data pool of the image; its write snapshot context is empty
	prefix     string
	objectSize uint64
	size       uint64 // of the image, in bytes
	from       *chain
	src        place // what from begins with
	progress   worker.Progress
	admit      *admission

	mu    sync.Mutex
	done  worker.Amount
	there []uint64 // copied now or before
	left  []uint64 // that the cluster can't copy by itself
}

// fill brings the objects with these numbers: from OSD to OSD what can be, and the rest through this process.
func (im *Images) fill(ctx context.Context, at strategies.Ref, f *filling, numbers []uint64) error {
	for _, n := range numbers {
		f.done.Total += f.bytes(n)
	}
	err := f.copies(ctx, numbers)
	why, level := f.from.cut, slog.LevelInfo
	switch {
	case errors.Is(err, errUnsupported):
		f.left = lacks(sorted(f.there), numbers)
		why, level = &obstacle{ObstacleRefused, err.Error()}, slog.LevelWarn
	case err != nil:
		return err
	case why == nil:
		why = &obstacle{ObstaclePart, "a parent shows only a part of the object"}
	}
	if len(f.left) == 0 {
		im.c.opts.Engine(EngineOSD, ObstacleNone)
	} else {
		im.c.opts.Engine(EngineWorker, why.name)
		im.tell(ctx, level, at, why.text, len(f.left), len(numbers))
		if err := im.carry(ctx, f); err != nil {
			return err
		}
	}
	sorted(f.there)

	return nil
}

func sorted(list []uint64) []uint64 {
	slices.Sort(list)

	return list
}

// tell says once for each image why its data goes through this process: operators see the traffic.
func (im *Images) tell(ctx context.Context, level slog.Level, at strategies.Ref, why string, left, of int) {
	im.mu.Lock()
	told := im.told[at]
	im.told[at] = true
	im.mu.Unlock()
	if !told {
		im.c.opts.Logger.Log(ctx, level, "the cluster can't copy objects by itself, they go through this worker",
			"image", at.String(), "objects", left, "of", of, "reason", why)
	}
}

// copies brings every object, as many at a time and as fast as the limits allow, until one fails or ctx is done. Nothing
// runs any more when it returns: who cancels a copy may remove the image next.
func (f *filling) copies(ctx context.Context, numbers []uint64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, n := range numbers {
		if err := f.admit.enter(ctx, f.bytes(n)); err != nil {
			break // ctx is done
		}
		wg.Go(func() {
			defer f.admit.leave()
			if err := f.one(n); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	return nil
}

// object is the name of an object of an image of format 2 (librbd/Utils.cc data_object_name).
func object(prefix string, n uint64) string { return fmt.Sprintf("%s.%016x", prefix, n) }

// each calls fn for every number, a few at a time, until one fails or ctx is done. Nothing runs any more when it returns.
func each(ctx context.Context, atOnce int, numbers []uint64, fn func(uint64) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan uint64)
	var wg sync.WaitGroup
	for range min(atOnce, len(numbers)) {
		wg.Go(func() {
			for n := range next {
				if err := fn(n); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := feed(ctx, next, numbers)
	close(next)
	wg.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx) // of the last ones
	}

	return err
}

func feed(ctx context.Context, next chan<- uint64, numbers []uint64) error {
	for _, n := range numbers {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		select {
		case next <- n:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}

	return nil
}

// bytes is how much of the image object n is.
func (f *filling) bytes(n uint64) int64 {
	from := n * f.objectSize

	return int64(min(f.objectSize, f.size-min(from, f.size)))
}

// fate is what became of an object.
type fate int

const (
	nowhere fate = iota // it exists in no layer: a hole
	present             // it is in the image now
	behind              // the cluster can't copy it
)

// one brings one object from the topmost layer that has it.
func (f *filling) one(n uint64) error {
	for _, l := range f.from.layers {
		switch l.covers(n, f.objectSize) {
		case none:
			f.settle(n, nowhere, 0, 0)

			return nil
		case partly:
			f.settle(n, behind, 0, 0)

			return nil
		}
		err := f.copy(f.to, object(f.prefix, n), l.io, object(l.prefix, n))
		switch {
		case is(err, enoent):
			continue
		case is(err, eexist):
			f.settle(n, present, 0, 0)

			return nil
		case is(err, enotsup, einval):
			return fmt.Errorf("copy object %d: %w: %w", n, errUnsupported, err)
		case err != nil:
			return fmt.Errorf("copy object %d: %w", n, err)
		}

		f.settle(n, present, f.bytes(n), 0)

		return nil
	}
	if f.from.cut != nil {
		f.settle(n, behind, 0, 0)
	} else {
		f.settle(n, nowhere, 0, 0)
	}

	return nil
}

// settle tells progress under the lock, so that it never goes back.
func (f *filling) settle(n uint64, became fate, cluster, through int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch became {
	case present:
		f.there = append(f.there, n)
	case behind:
		f.left = append(f.left, n)

		return
	}
	f.done.Done += f.bytes(n)
	f.done.Cluster += cluster
	f.done.Worker += through
	f.progress(f.done)
}

// numbers lists the objects of objectSize in which something exists, in order.
func numbers(
	ctx context.Context, image *rbd.Image, objectSize uint64, parents rbd.DiffIncludeParent,
) ([]uint64, error) {
	size, err := image.GetSize()
	if err != nil {
		return nil, err
	}
	var list []uint64
	err = exists(ctx, image, 0, int64(size), parents, func(offset, length int64) {
		for n := uint64(offset) / objectSize; n*objectSize < uint64(offset+length); n++ {
			list = append(list, n)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the objects: %w", err)
	}
	slices.Sort(list)

	return slices.Compact(list), nil
}

// lacks lists what of want is not in have; both are sorted.
func lacks(have, want []uint64) []uint64 {
	var list []uint64
	for _, n := range want {
		if _, found := slices.BinarySearch(have, n); !found {
			list = append(list, n)
		}
	}

	return list
}
