//go:build lab

package ceph

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
)

// benchmark times ours and librbd's way to the same image, in turns, and reports how many times as long librbd takes.
// The volume has objects of 4 MiB, every one of them full.
func benchmark(b *testing.B, ours, theirs func(context.Context, *Images, strategies.Make) error, clone bool) {
	const objects, objectSize = 128, 4 << 20
	env, im := lab(b), labImages(b)
	back := &backdoor{im: im}
	src := strategies.Ref{Pool: env["LAB_POOL_VOLUMES"], Image: "volume-" + newID()}
	b.Cleanup(func() { back.Drop(b, src) })
	back.Put(b, src, strategiestest.Blueprint{Size: objects * objectSize, ObjectSize: objectSize})
	for n := range int64(objects) {
		back.Write(b, src, n*objectSize, bytes.Repeat([]byte{byte(n + 1)}, objectSize))
	}
	run := func(fn func(context.Context, *Images, strategies.Make) error) time.Duration {
		id := newID()
		m := strategies.Make{
			Src: src, Snapshot: strategies.SourceSnapshot(id), Job: id,
			Dst: strategies.Ref{Pool: env["LAB_POOL_IMAGES"], Image: id},
		}
		b.Cleanup(func() { back.Drop(b, m.Dst) })
		must(b, im.Snapshot(b.Context(), src, m.Snapshot))
		must(b, im.Protect(b.Context(), src, m.Snapshot))
		if clone {
			must(b, im.Clone(b.Context(), m))
			must(b, im.Seal(b.Context(), m))
		}
		began := time.Now()
		must(b, fn(b.Context(), im, m))
		took := time.Since(began)
		back.Drop(b, m.Dst)
		must(b, im.Release(b.Context(), src, m.Snapshot))

		return took
	}
	var mine, other time.Duration
	for b.Loop() {
		mine += run(ours)
		other += run(theirs)
	}
	b.ReportMetric(mine.Seconds()/float64(b.N), "ours-s")
	b.ReportMetric(other.Seconds()/float64(b.N), "librbd-s")
	b.ReportMetric(other.Seconds()/mine.Seconds(), "times-librbd")
	b.ReportMetric(objects*objectSize/1e6/(mine.Seconds()/float64(b.N)), "MB/s")
}

// BenchmarkFlatten compares with librbd's flatten of the same clone.
func BenchmarkFlatten(b *testing.B) {
	benchmark(b, func(ctx context.Context, im *Images, m strategies.Make) error {
		return im.Flatten(ctx, m, nil)
	}, func(_ context.Context, im *Images, m strategies.Make) error {
		return im.image(m.Dst, func(image *rbd.Image) error { return image.Flatten() })
	}, true)
}

// BenchmarkCopyObjects compares with `rbd cp`.
func BenchmarkCopyObjects(b *testing.B) {
	benchmark(b, func(ctx context.Context, im *Images, m strategies.Make) error {
		return im.CopyObjects(ctx, m, nil)
	}, func(_ context.Context, im *Images, m strategies.Make) error {
		return im.reading(m.Src, m.Snapshot, func(image *rbd.Image) error {
			return im.pool(m.Dst.Pool, func(io *rados.IOContext) error { return image.Copy(io, m.Dst.Image) })
		})
	}, false)
}
