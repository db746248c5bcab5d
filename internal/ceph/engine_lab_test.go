//go:build lab

package ceph

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

// mapsAgree has Ceph's own tool compare the object maps of an image and its snapshot with the objects.
func mapsAgree(t *testing.T, at strategies.Ref) {
	t.Helper()
	env := lab(t)
	for _, of := range []string{at.String(), at.String() + "@" + strategies.GlanceSnapshot} {
		args := []string{"exec", env["LAB_GENERATION"], "rbd", "object-map", "check", "--no-progress", of}
		if out, err := exec.CommandContext(t.Context(), env["LAB_COMMAND"], args...).CombinedOutput(); err != nil {
			t.Errorf("object-map check %s: %v: %s", of, err, out)
		}
		args = append(args[:3], "info", "--format=json", of) // the check only looks; what it found is in the flags
		out, err := exec.CommandContext(t.Context(), env["LAB_COMMAND"], args...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "invalid") {
			t.Errorf("info %s: %v: %s", of, err, out)
		}
	}
}

// TestPreparedSeal: a snapshot whose id was asked for beforehand is one like any other: it holds the bytes, can be cloned and
// flattened, is removed with the image, and needs no second round of the monitors.
func TestPreparedSeal(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := sized(t, r, 6)
	im.Prepare(m)
	im.Prepare(m) // asks once
	must(t, r.Source.Snapshot(t.Context(), m.Src, m.Snapshot))
	must(t, r.Source.Protect(t.Context(), m.Src, m.Snapshot))
	must(t, im.Clone(t.Context(), m))
	im.mu.Lock()
	prepared := im.spares[m.Dst]
	im.mu.Unlock()
	id := <-prepared
	again := make(chan uint64, 1)
	again <- id
	im.mu.Lock()
	im.spares[m.Dst] = again
	im.mu.Unlock()
	for range 2 {
		must(t, im.Seal(t.Context(), m))
	}
	var got uint64
	must(t, im.reading(m.Dst, rbd.NoSnapshot, func(image *rbd.Image) (err error) {
		got, err = image.GetSnapID(strategies.GlanceSnapshot)

		return err
	}))
	if got != id || id == 0 {
		t.Errorf("the snapshot has the id %d, prepared was %d", got, id)
	}
	want := r.Backdoor.Read(t, m.Src, m.Snapshot)
	for n := range int64(6) { // a later write is none of the image's business
		r.Backdoor.Write(t, m.Src, n*r.ObjectSize, bytes.Repeat([]byte{0xee}, int(r.ObjectSize)))
	}
	child := strategies.Ref{Pool: m.Dst.Pool, Image: "child-" + m.Dst.Image}
	clone(t, im, m.Dst, child)
	same := func(when string) {
		for at, snap := range map[strategies.Ref]string{m.Dst: strategies.GlanceSnapshot, child: ""} {
			if !bytes.Equal(r.Backdoor.Read(t, at, snap), want) {
				t.Errorf("%s: %s@%s has other bytes", when, at, snap)
			}
		}
	}
	same("before the flatten")
	must(t, im.Flatten(t.Context(), m, nil))
	same("after the flatten")
	mapsAgree(t, m.Dst)
	// The head that is written to must leave the snapshot as it is: it was taken into the head's snapshot context.
	r.Backdoor.Write(t, m.Dst, 0, bytes.Repeat([]byte{0xdd}, int(r.ObjectSize)))
	same("after a write to the head")
	r.Backdoor.Drop(t, child)
	must(t, im.Discard(t.Context(), m))
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
}

// clone makes a child of an image's sealed snapshot.
func clone(t *testing.T, im *Images, parent, child strategies.Ref) {
	t.Helper()
	opts, err := imageOptions(4 << 20)
	must(t, err)
	defer opts.Destroy()
	must(t, im.pool(parent.Pool, func(io *rados.IOContext) error {
		return rbd.CloneImage(io, parent.Image, strategies.GlanceSnapshot, io, child.Image, opts)
	}))
}

// TestSealFallsBack: without a usable id the snapshot is made the usual way.
func TestSealFallsBack(t *testing.T) {
	for name, id := range map[string]uint64{"none came": 0, "an old one": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, im := labRig(t), labImages(t)
			m := made(t, r, 2)
			must(t, im.Clone(t.Context(), m))
			if id != 0 { // a snapshot with a later id was there
				must(t, im.image(m.Dst, func(image *rbd.Image) error {
					s, err := image.CreateSnapshot("before")
					if err == nil {
						err = s.Remove()
					}

					return err
				}))
			}
			spare := make(chan uint64, 1)
			if id != 0 {
				spare <- id
			}
			close(spare)
			im.spares[m.Dst] = spare
			must(t, im.Seal(t.Context(), m))
			done, err := im.Complete(t.Context(), m, false)
			if err != nil || !done {
				t.Errorf("sealed: %v, %v", done, err)
			}
		})
	}
}

// objectsRead is how many objects the volumes have that are read while they are flattened.
const objectsRead = 24

// lookEvery is how often: often enough to see what lasts only for a moment, and not so often that all others wait for it.
const lookEvery = 50 * time.Millisecond

// TestReadersDuringFlatten: see undisturbed; by each engine, and with layers below the volume.
func TestReadersDuringFlatten(t *testing.T) {
	for name, c := range map[string]struct {
		parent bool
		change func(*Images, *strategies.Make, int64)
		engine string
	}{
		"osd":            {engine: EngineOSD},
		"clone of image": {parent: true, engine: EngineOSD},
		"larger objects": {
			parent: true, engine: EngineWorker,
			change: func(_ *Images, m *strategies.Make, size int64) { m.ObjectSize = 2 * size },
		},
		"refused": {
			engine: EngineWorker,
			change: func(im *Images, _ *strategies.Make, _ int64) { im.copy = refusing(objectsRead/2, enotsup) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, im := labRig(t), labImages(t)
			var told atomic.Value
			im.c.opts.Engine = func(engine, _ string) { told.Store(engine) }
			m := sized(t, r, objectsRead)
			if c.parent {
				m.Src = ofImage(t, r, m.Src)
			}
			if c.change != nil {
				c.change(im, &m, r.ObjectSize)
			}
			must(t, im.Snapshot(t.Context(), m.Src, m.Snapshot))
			must(t, im.Protect(t.Context(), m.Src, m.Snapshot))
			undisturbed(t, site{}, r, im, m)
			if told.Load() != c.engine {
				t.Errorf("the engine was %v, want %s", told.Load(), c.engine)
			}
		})
	}
}

// ofImage makes a clone of an image, and writes into every third object and discards others.
func ofImage(t *testing.T, r strategiestest.Rig, image strategies.Ref) strategies.Ref {
	t.Helper()
	at := strategies.Ref{Pool: r.Volumes, Image: "volume-" + newID()}
	t.Cleanup(func() { r.Backdoor.Drop(t, at) })
	r.Backdoor.Freeze(t, image, strategies.GlanceSnapshot)
	r.Backdoor.Put(t, at, strategiestest.Blueprint{Parent: image, Snapshot: strategies.GlanceSnapshot, ObjectSize: r.ObjectSize})
	for n := int64(0); n < objectsRead; n += 3 {
		r.Backdoor.Write(t, at, n*r.ObjectSize+512, bytes.Repeat([]byte{byte(0x40 + n)}, 2048))
	}
	must(t, r.Backdoor.(*backdoor).im.image(at, func(image *rbd.Image) error {
		_, err := image.Discard(uint64(7*r.ObjectSize), uint64(2*r.ObjectSize))

		return err
	}))

	return at
}

// undisturbed: whoever reads the image, its snapshot, or a child of that sees the volume as it was, all the time, while
// objects arrive, maps are built and the parent goes, and while the volume is written to and discarded. Everybody has a
// connection of their own.
func undisturbed(t *testing.T, where site, r strategiestest.Rig, im *Images, m strategies.Make) {
	t.Helper()
	must(t, im.Clone(t.Context(), m))
	must(t, im.Seal(t.Context(), m))
	want := r.Backdoor.Read(t, m.Src, m.Snapshot)
	child := strategies.Ref{Pool: m.Dst.Pool, Image: "child-" + m.Dst.Image}
	clone(t, im, m.Dst, child)
	t.Cleanup(func() { r.Backdoor.Drop(t, child) })
	im.c.Limit(Limits{Rate: int64(len(want)) / 2}) // two seconds
	ctx, stop := context.WithCancel(t.Context())
	var beside sync.WaitGroup
	var reads atomic.Int64
	views := map[strategies.Ref][]string{m.Dst: {"", strategies.GlanceSnapshot}, child: {""}}
	for at, snaps := range views {
		for _, snap := range snaps {
			reader := where.backdoor(t)
			beside.Go(func() {
				for pause(ctx, lookEvery) == nil {
					if !bytes.Equal(reader.Read(t, at, snap), want) {
						t.Errorf("%s@%s had other bytes for a moment", at, snap)
					}
					reads.Add(1)
				}
			})
			holder := where.backdoor(t)
			beside.Go(func() { holder.holdOpen(ctx, t, at, snap, want, &reads) })
		}
	}
	writer := where.backdoor(t)
	beside.Go(func() { scribble(ctx, t, writer, m.Src, r.ObjectSize) })
	err := im.Flatten(t.Context(), m, nil)
	stop()
	beside.Wait()
	must(t, err)
	if reads.Load() < 9 {
		t.Errorf("only %d reads while it was flattened", reads.Load())
	}
	for at, snaps := range views {
		for _, snap := range snaps {
			if !bytes.Equal(r.Backdoor.Read(t, at, snap), want) {
				t.Errorf("%s@%s has other bytes afterwards", at, snap)
			}
		}
	}
	mapsAgree(t, m.Dst)
}

// scribble writes to a volume and discards parts of it until ctx is done.
func scribble(ctx context.Context, t *testing.T, back *backdoor, at strategies.Ref, size int64) {
	err := back.im.image(at, func(image *rbd.Image) error {
		for n := int64(0); pause(ctx, lookEvery/5) == nil; n = (n + 1) % objectsRead {
			if _, err := image.WriteAt(bytes.Repeat([]byte{byte(0x80 + n)}, 4096), n*size); err != nil {
				return err
			}
			if _, err := image.Discard(uint64(n*7%objectsRead*size), uint64(size)); err != nil {
				return err
			}
		}

		return nil
	})
	if err != nil {
		t.Errorf("write to %s and discard: %v", at, err)
	}
}

// TestCopyOfBusyVolume: a copy has the volume as it was at the snapshot, also of a volume that is written to and discarded
// while it is made.
func TestCopyOfBusyVolume(t *testing.T) {
	for name, factor := range map[string]int64{"osd": 1, "larger objects": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, im := labRig(t), labImages(t)
			m := sized(t, r, objectsRead)
			m.Src, m.ObjectSize = ofImage(t, r, m.Src), factor*r.ObjectSize
			must(t, im.Snapshot(t.Context(), m.Src, m.Snapshot))
			must(t, im.Protect(t.Context(), m.Src, m.Snapshot))
			want := r.Backdoor.Read(t, m.Src, m.Snapshot)
			im.c.Limit(Limits{Rate: int64(len(want))}) // a second
			ctx, stop := context.WithCancel(t.Context())
			var beside sync.WaitGroup
			beside.Go(func() { scribble(ctx, t, r.Backdoor.(*backdoor), m.Src, r.ObjectSize) })
			err := im.CopyObjects(t.Context(), m, nil)
			stop()
			beside.Wait()
			must(t, err)
			must(t, im.Seal(t.Context(), m))
			child := strategies.Ref{Pool: m.Dst.Pool, Image: "child-" + m.Dst.Image}
			clone(t, im, m.Dst, child)
			for at, snap := range map[strategies.Ref]string{m.Dst: strategies.GlanceSnapshot, child: ""} {
				if !bytes.Equal(r.Backdoor.Read(t, at, snap), want) {
					t.Errorf("%s@%s has other bytes than the volume had", at, snap)
				}
			}
			mapsAgree(t, m.Dst)
			r.Backdoor.Drop(t, child)
		})
	}
}

// holdOpen reads over one handle that it opened before, as a guest does whose disk is a clone of the image: it still believes in
// the parent when that is gone.
func (b *backdoor) holdOpen(ctx context.Context, t *testing.T, at strategies.Ref, snap string, want []byte, reads *atomic.Int64) {
	t.Helper()
	err := b.im.reading(at, snap, func(image *rbd.Image) error {
		got := make([]byte, len(want))
		for again := true; again; { // once more after the end
			again = pause(ctx, lookEvery) == nil
			if _, err := image.ReadAt(got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s@%s, held open, had other bytes for a moment", at, snap)
			}
			reads.Add(1)
		}

		return nil
	})
	if err != nil {
		t.Errorf("hold %s@%s open: %v", at, snap, err)
	}
}

// TestLimitSlowsDown: a copy keeps to its rate, and goes on at full speed when the limit is lifted under way.
func TestLimitSlowsDown(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 40)
	all := 40 * r.ObjectSize
	im.c.Limit(Limits{JobRate: all / 20})
	var half sync.Once
	begin := time.Now()
	must(t, im.CopyObjects(t.Context(), m, func(a worker.Amount) {
		if a.Done >= all/10 {
			half.Do(func() { im.c.Limit(Limits{}) })
		}
	}))
	if took := time.Since(begin); took < 1500*time.Millisecond || took > 15*time.Second {
		t.Errorf("took %s: a tenth under a limit of 20 s for all, the rest without", took)
	}
	must(t, im.Seal(t.Context(), m))
}

// TestEngineIsTold: metrics know which engine made an image, and why not the best one.
func TestEngineIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		change      func(*Images, *strategies.Make, int64)
		engine, why string
	}{
		"osd":     {func(*Images, *strategies.Make, int64) {}, EngineOSD, ObstacleNone},
		"refused": {func(im *Images, _ *strategies.Make, _ int64) { im.copy = refusing(2, enotsup) }, EngineWorker, ObstacleRefused},
		"layout":  {func(_ *Images, m *strategies.Make, size int64) { m.ObjectSize = 2 * size }, EngineWorker, ObstacleLayout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, im := labRig(t), labImages(t)
			var told []string
			im.c.opts.Engine = func(engine, why string) { told = append(told, engine+" "+why) }
			m := made(t, r, 6)
			c.change(im, &m, r.ObjectSize)
			must(t, im.CopyObjects(t.Context(), m, nil))
			if len(told) != 1 || told[0] != c.engine+" "+c.why {
				t.Errorf("told %q, want %s %s", told, c.engine, c.why)
			}
		})
	}
}
