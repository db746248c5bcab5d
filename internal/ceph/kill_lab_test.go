//go:build lab

package ceph

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

// victim is a volume with a job on it that a helper is to do.
type victim struct {
	order
	c    *Cluster
	back *backdoor
	want []byte
}

// newVictim makes a volume that is a clone of an image itself, with objects of its own and of its parent.
func newVictim(t testing.TB, ttl time.Duration, objects int64) *victim {
	t.Helper()

	return newVictimAt(t, site{}, ttl, objects)
}

// newVictimAt is newVictim with data pools.
func newVictimAt(t testing.TB, at site, ttl time.Duration, objects int64) *victim {
	t.Helper()
	env, base := lab(t), at.options(t)
	id, size := newID(), int64(64<<10)
	v := &victim{order: order{
		ConfFile: base.ConfFile, User: base.User, Pool: base.JournalPool, Namespace: base.Namespace + "-" + newID(), TTL: ttl,
		DataConf: base.DataConf,
		Make: strategies.Make{
			Src:      strategies.Ref{Pool: env["LAB_POOL_VOLUMES"], Image: "volume-" + newID()},
			Snapshot: strategies.SourceSnapshot(id), Dst: strategies.Ref{Pool: env["LAB_POOL_IMAGES"], Image: id}, Job: id,
		},
	}}
	v.c = labCluster(t, v.options("test"))
	wipe(t, v.c)
	v.back = at.backdoor(t)
	image := strategies.Ref{Pool: env["LAB_POOL_IMAGES"], Image: newID()}
	t.Cleanup(func() {
		for _, at := range []strategies.Ref{v.Make.Dst, v.Make.Src, image} {
			v.back.Drop(t, at)
		}
	})
	v.back.Put(t, image, strategiestest.Blueprint{Size: objects * size, ObjectSize: size})
	v.back.Freeze(t, image, "snap")
	v.back.Put(t, v.Make.Src, strategiestest.Blueprint{Parent: image, Snapshot: "snap", ObjectSize: size})
	v.fill(t, objects, size)
	v.want = v.back.Read(t, v.Make.Src, "")
	rec := worker.Record{Job: worker.Job{ImageID: id, VolumeID: newID()}}
	if err := v.c.Create(t.Context(), rec); err != nil {
		t.Fatal(err)
	}

	return v
}

// fill writes every other object, with one open image: opening takes longer than writing.
func (v *victim) fill(t testing.TB, objects, size int64) {
	t.Helper()
	data := make([]byte, size)
	must(t, v.back.im.image(v.Make.Src, func(image *rbd.Image) error {
		for n := int64(0); n < objects; n += 2 {
			for i := 0; i < len(data); i += 8 {
				binary.LittleEndian.PutUint64(data[i:], rand.Uint64()|1)
			}
			if _, err := image.WriteAt(data, n*size); err != nil {
				return err
			}
		}

		return nil
	}))
}

// finish adopts the job and does what is left of it. Like a runner it takes the job up again when it loses the lease,
// which is short here and machines are busy.
func (v *victim) finish(t testing.TB) {
	t.Helper()
	for range 5 {
		err := v.once(t)
		if err == nil {
			return
		}
		if worker.ReasonOf(err) != worker.ReasonLeaseLost {
			t.Fatalf("the successor: %v", err)
		}
		t.Logf("once more: %v", err)
	}
	t.Fatal("the successor lost its lease again and again")
}

func (v *victim) once(t testing.TB) error {
	t.Helper()
	claim := adopt(t, v.c, v.key())
	defer func() {
		if err := claim.Release(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("release: %v", err)
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()

	return worker.Hold(ctx, claim, worker.LeaseTimes{TTL: v.TTL}, func(ctx context.Context) error {
		return v.again(ctx, t, claim)
	})
}

// again tries each step for a while, as the runner does.
func (v *victim) again(ctx context.Context, t testing.TB, claim *Claim) error {
	rec := claim.Record()
	t.Logf("adopted with steps %v", rec.Steps)
	for _, s := range v.steps() {
		if rec.HasStep(s.name) {
			continue
		}
		err := s.do(ctx, claim.Images(), func(worker.Amount) {})
		for ; worker.AdviceOf(err) == worker.Retry && pause(ctx, 200*time.Millisecond) == nil; err = s.do(ctx, claim.Images(), nil) {
			t.Logf("%s again: %v", s.name, err)
			v.unstick(t, err)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}

	return nil
}

// unstick helps where only an operator can: see retryStale.
func (v *victim) unstick(t testing.TB, err error) {
	t.Helper()
	if !is(err, ebusy) {
		return
	}
	must(t, v.back.im.pool(v.Make.Dst.Pool, func(io *rados.IOContext) error {
		first := true

		return retryStale(t, io, v.Make.Dst, func() error {
			if first {
				first = false

				return err
			}

			return nil
		})
	}))
}

func (v *victim) check(t testing.TB) {
	t.Helper()
	if got := v.back.View(t, v.Make.Src).Snapshots; len(got) != 0 {
		t.Errorf("the volume still has snapshots: %v", got)
	}
	image := v.back.View(t, v.Make.Dst)
	if v.Discard {
		if image.Exists {
			t.Error("the image is still listed")
		}

		return
	}
	if image.Parent != "" || !image.Snapshots["snap"] {
		t.Errorf("the image is %+v", image)
	}
	for _, snap := range []string{"", "snap"} {
		if !bytes.Equal(v.back.Read(t, v.Make.Dst, snap), v.want) {
			t.Errorf("the image@%s has other bytes than the volume", snap)
		}
	}
}

// TestKilledAnywhere kills workers with SIGKILL at random moments of the whole job, several in a row, and lets a last one
// finish it.
func TestKilledAnywhere(t *testing.T) {
	for _, way := range []string{"clone", "copy", "clone and discard", "copy and discard"} {
		for round := range 3 {
			t.Run(fmt.Sprintf("%s/%d", way, round), func(t *testing.T) {
				t.Parallel()
				v := newVictim(t, 2*time.Second, 96)
				v.Copy, v.Discard = strings.HasPrefix(way, "copy"), strings.HasSuffix(way, "discard")
				for range 3 {
					h := startHelper(t, v.order)
					if h.until(t, "claimed") == "" {
						break // it came too early for the lease
					}
					<-time.After(time.Duration(rand.Int64N(int64(1500 * time.Millisecond))))
					h.signal(t, syscall.SIGKILL)
					for range h.lines {
					}
					adopted := adopt(t, v.c, v.key())
					if err := adopted.Release(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				v.finish(t)
				v.check(t)
			})
		}
	}
}

// TestKilledInFlatten kills workers in the middle of what moves data, three in a row, and lets a last one finish it.
// With CINDERLIFT_CHAOS=full it does so to a hundred flattens.
func TestKilledInFlatten(t *testing.T) {
	rounds := map[string]int{"flatten": 6, "copy": 2}
	if thorough() {
		rounds["flatten"] = 100
	}
	var exact, kills atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d of %d are bit-exact after %d kills", exact.Load(), rounds["flatten"]+rounds["copy"], kills.Load())
	})
	for way, n := range rounds {
		for round := range n {
			t.Run(fmt.Sprintf("%s/%d", way, round), func(t *testing.T) {
				t.Parallel()
				v := newVictim(t, 8*time.Second, 512) // 32 MiB; the lease outlasts a busy machine
				if round%2 == 1 {
					v.Make.ObjectSize = 128 << 10 // through the worker
				}
				kills.Add(v.killed(t, way, 3))
				if !t.Failed() {
					exact.Add(1)
				}
			})
		}
	}
}

// killed runs one of these and counts the kills that came in time, of so many. The volume changes between them, and a child
// of the image is read, as its users do after an early registration.
func (v *victim) killed(t *testing.T, way string, times int) (kills int64) {
	v.Copy = way == "copy"
	child := strategies.Ref{Pool: v.Make.Dst.Pool, Image: "child-" + v.Make.Dst.Image}
	for range times {
		h := startHelper(t, v.order)
		if h.until(t, "progress "+way) == "" {
			break
		}
		for range rand.IntN(100) { // anywhere in it; the progress tells of each object
			<-h.lines
		}
		h.signal(t, syscall.SIGKILL)
		kills++
		for range h.lines {
		}
		claim := adopt(t, v.c, v.key())
		if way == "flatten" {
			v.born(t, child)
			v.read(t, "half-flattened", child)
		}
		must(t, v.back.im.image(v.Make.Src, change))
		must(t, claim.Release(t.Context()))
	}
	v.finish(t)
	v.check(t)
	v.born(t, child)
	v.read(t, "finished", child)
	mapsAgree(t, v.Make.Dst)
	v.back.Drop(t, child)

	return kills
}

// born makes a child of the image's snapshot unless it is there.
func (v *victim) born(t *testing.T, child strategies.Ref) {
	t.Helper()
	if !v.back.listed(t, child) {
		clone(t, v.back.im, v.Make.Dst, child)
	}
}

// read reads the child, and through it the image's snapshot.
func (v *victim) read(t *testing.T, what string, child strategies.Ref) {
	t.Helper()
	if !bytes.Equal(v.back.Read(t, child, ""), v.want) {
		t.Errorf("a child of the %s image has other bytes than the volume had", what)
	}
}

// change writes to some objects of a volume and discards others.
func change(image *rbd.Image) error {
	const size = 64 << 10
	for range 8 {
		if _, err := image.WriteAt(bytes.Repeat([]byte{0xee}, 4096), rand.Int64N(512)*size); err != nil {
			return err
		}
		if _, err := image.Discard(uint64(rand.Int64N(512)*size), size); err != nil {
			return err
		}
	}

	return nil
}

// TestStoppedOwnerIsFenced stops a worker in mid-work, lets its lease expire and another finish the job, and wakes it up:
// it must find out and must not have changed anything.
func TestStoppedOwnerIsFenced(t *testing.T) {
	t.Parallel()
	v := newVictim(t, 8*time.Second, 512)
	h := startHelper(t, v.order)
	if h.until(t, "progress flatten") == "" {
		t.Fatal("the helper was too fast")
	}
	h.signal(t, syscall.SIGSTOP)
	v.finish(t)
	v.check(t)
	h.signal(t, syscall.SIGCONT)
	ended := h.until(t, "ended")
	if !strings.HasPrefix(ended, "ended "+string(worker.ReasonLeaseLost)) {
		t.Errorf("the worker that was stopped says %q, want reason %s", ended, worker.ReasonLeaseLost)
	}
	v.check(t)
}

// TestZombieCanNotWork: the address that the record had before must be fenced on the OSDs, not only forgotten.
func TestZombieCanNotWork(t *testing.T) {
	t.Parallel()
	v := newVictim(t, 2*time.Second, 4)
	first := adopt(t, v.c, v.key())
	if err := first.Images().Snapshot(t.Context(), v.Make.Src, v.Make.Snapshot); err != nil {
		t.Fatal(err)
	}
	second := adopt(t, v.c, v.key()) // first does not renew
	err := first.Images().Protect(t.Context(), v.Make.Src, v.Make.Snapshot)
	if worker.ReasonOf(err) != worker.ReasonLeaseLost || worker.AdviceOf(err) != worker.StandBy {
		t.Errorf("the zombie's work in RBD: %v, want lease lost", err)
	}
	rec := first.Record()
	rec.LastError = "zombie"
	if err := first.Save(t.Context(), rec); !errors.Is(err, worker.ErrLeaseLost) {
		t.Errorf("the zombie's save: %v, want ErrLeaseLost", err)
	}
	for _, claim := range []*Claim{first, second} {
		if err := claim.Release(t.Context()); err != nil {
			t.Error(err)
		}
	}
	v.Discard = true
	v.finish(t)
	v.check(t)
}

// TestReleaseCutsOffWhatHangs: work that can't be interrupted must not keep the leases, and must do no harm later.
func TestReleaseCutsOffWhatHangs(t *testing.T) {
	t.Parallel()
	v := newVictim(t, 30*time.Second, 4)
	claim := adopt(t, v.c, v.key())
	im := claim.Images()
	ctx, cancel := context.WithCancel(t.Context())
	hang, late := make(chan struct{}), make(chan error, 1)
	err := im.do(ctx, "hang", v.Make.Src, func(context.Context) error {
		cancel()
		<-hang // as a call into librbd while an OSD is away
		late <- im.image(v.Make.Src, func(image *rbd.Image) error { return snapshot(image, "late") })

		return nil
	})
	if worker.ReasonOf(err) != worker.ReasonStopping {
		t.Errorf("the call that hangs: %v", err)
	}
	if err := claim.Release(t.Context()); err != nil {
		t.Fatalf("release: %v", err)
	}
	next, err := v.c.Claim(t.Context(), v.key()) // at once, long before the lease would have expired
	if err != nil {
		t.Fatalf("claim after the release: %v", err)
	}
	close(hang)
	if err := <-late; !is(err, eshutdown) {
		t.Errorf("what the call did afterwards: %v, want ESHUTDOWN", err)
	}
	if snaps := v.back.View(t, v.Make.Src).Snapshots; len(snaps) != 0 {
		t.Errorf("it made snapshots: %v", snaps)
	}
	if err := next.Release(t.Context()); err != nil {
		t.Error(err)
	}
}
