//go:build lab

package ceph

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

func TestTracesConform(t *testing.T) {
	strategiestest.RunTraces(t, labRig(t), labImages(t))
}

// volumeWithSnapshot makes a volume with a snapshot of a job that nobody knows.
func volumeWithSnapshot(t *testing.T, b *backdoor) strategies.Make {
	t.Helper()
	env, id := lab(t), newID()
	m := strategies.Make{
		Src: strategies.Ref{Pool: env["LAB_POOL_VOLUMES"], Image: "volume-" + newID()}, Snapshot: strategies.SourceSnapshot(id),
		Dst: strategies.Ref{Pool: env["LAB_POOL_IMAGES"], Image: id}, Job: id,
	}
	t.Cleanup(func() { b.Drop(t, m.Src) })
	b.Put(t, m.Src, strategiestest.Blueprint{Size: 8 << 20, ObjectSize: 64 << 10})
	b.Write(t, m.Src, 0, []byte("a volume"))
	b.Freeze(t, m.Src, m.Snapshot)

	return m
}

func tracesOf(t *testing.T, im *Images, pool, id string, suspect bool) []strategies.Trace {
	t.Helper()
	list, err := im.Traces(t.Context(), pool, func(s string) bool { return suspect && s == id }, func(int, int) {})
	must(t, err)
	var mine []strategies.Trace
	for _, tr := range list {
		if tr.ImageID == id {
			mine = append(mine, tr)
		}
	}

	return mine
}

// TestTracesInTrash: Cinder moves a volume that it can't delete into the trash, with our snapshot on it.
func TestTracesInTrash(t *testing.T) {
	t.Parallel()
	im := labImages(t)
	m := volumeWithSnapshot(t, &backdoor{im: labImages(t)})
	id := trash(t, im, m.Src)
	list := tracesOf(t, im, m.Src.Pool, m.Job, false)
	if len(list) != 1 || !list[0].Trashed || list[0].ID != id || list[0].Kind != strategies.TraceSnapshot {
		t.Fatalf("traces are %+v, want the snapshot in the trash", list)
	}
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
	if _, there, err := im.Look(t.Context(), list[0]); there || err != nil {
		t.Errorf("still there: %v, %v", there, err)
	}
}

// trash moves an image there, and takes it out of there at the end.
func trash(t *testing.T, im *Images, at strategies.Ref) string {
	t.Helper()
	var id string
	must(t, im.image(at, func(image *rbd.Image) (err error) {
		id, err = image.GetId()

		return err
	}))
	must(t, im.pool(at.Pool, func(io *rados.IOContext) error {
		if err := rbd.GetImage(io, at.Image).Trash(0); err != nil {
			return err
		}
		t.Cleanup(func() {
			must(t, im.pool(at.Pool, func(io *rados.IOContext) error { return rbd.TrashRestore(io, id, at.Image) }))
		})

		return nil
	}))

	return id
}

// TestTracesOfRemnant: a snapshot with a clone of format 2 goes into the snapshot trash when it is removed, and so does
// one whose removal is killed.
func TestTracesOfRemnant(t *testing.T) {
	t.Parallel()
	im, b := labImages(t), &backdoor{im: labImages(t)}
	m := volumeWithSnapshot(t, b)
	clone := strategies.Ref{Pool: m.Src.Pool, Image: "volume-" + newID()}
	opts := rbd.NewRbdImageOptions()
	defer opts.Destroy()
	must(t, opts.SetUint64(rbd.ImageOptionCloneFormat, 2))
	must(t, im.pool(m.Src.Pool, func(io *rados.IOContext) error {
		return rbd.CloneImage(io, m.Src.Image, m.Snapshot, io, clone.Image, opts)
	}))
	if err := im.Release(t.Context(), m.Src, m.Snapshot); worker.AdviceOf(err) != worker.Retry {
		t.Errorf("release under a clone: %v, want Retry", err)
	}
	list := tracesOf(t, im, m.Src.Pool, m.Job, false)
	if len(list) != 1 || list[0].Kind != strategies.TraceRemnant || len(list[0].Children) != 1 || list[0].Children[0] != clone {
		t.Errorf("traces are %+v, want a remnant with the clone %s", list, clone)
	}
	b.Drop(t, clone)
	if list = tracesOf(t, im, m.Src.Pool, m.Job, false); len(list) != 0 {
		t.Logf("still there without the clone: %+v", list) // Ceph may clean up by itself
		must(t, im.Release(t.Context(), m.Src, m.Snapshot))
	}
	if list = tracesOf(t, im, m.Src.Pool, m.Job, false); len(list) != 0 {
		t.Errorf("still there: %+v", list)
	}
}

// TestTracesOfHalfRemoved: a removal was killed. With its header the image still says whose it is; without, only a job
// that the journal knows makes it suspect.
func TestTracesOfHalfRemoved(t *testing.T) {
	t.Parallel()
	im, b := labImages(t), &backdoor{im: labImages(t)}
	m := volumeWithSnapshot(t, b)
	must(t, im.CopyObjects(t.Context(), m, nil))
	halfRemove(t, im, m.Dst)
	t.Cleanup(func() { b.Drop(t, m.Dst) })
	list := tracesOf(t, im, m.Dst.Pool, m.Job, false)
	if len(list) != 1 || list[0].Kind != strategies.TraceRemains || !list[0].Marked || list[0].Made.IsZero() {
		t.Fatalf("traces are %+v, want remains with the mark and a time", list)
	}
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error { return io.Delete(headerPrefix + list[0].ID) }))
	if none := tracesOf(t, im, m.Dst.Pool, m.Job, false); len(none) != 0 {
		t.Errorf("traces are %+v, although nothing says whose it is", none)
	}
	list = tracesOf(t, im, m.Dst.Pool, m.Job, true)
	if len(list) != 1 || list[0].Kind != strategies.TraceRemains || list[0].Marked {
		t.Fatalf("traces are %+v, want remains without a mark", list)
	}
	must(t, im.Discard(t.Context(), m))
	if _, there, err := im.Look(t.Context(), list[0]); there || err != nil {
		t.Errorf("still there: %v, %v", there, err)
	}
}

// halfRemove leaves what a removal leaves that is killed after its first write: the image in the trash, with the source
// "removing", which no list shows. librbd tells it from a user's trash by one byte.
func halfRemove(t *testing.T, im *Images, at strategies.Ref) {
	t.Helper()
	var id string
	must(t, im.image(at, func(image *rbd.Image) (err error) {
		id, err = image.GetId()

		return err
	}))
	must(t, im.pool(at.Pool, func(io *rados.IOContext) error {
		if err := rbd.GetImage(io, at.Image).Trash(0); err != nil {
			return err
		}
		all, err := io.GetAllOmapValues(trashObject, "", idPrefix+id, 10)
		if err != nil {
			return err
		}
		spec := all[idPrefix+id]
		if source, name, ok := trashSpec(spec); !ok || source != 0 || name != at.Image {
			t.Fatalf("the entry in the trash is %d %q %v: %x", source, name, ok, spec)
		}
		spec[6] = trashRemoving

		return io.SetOmap(trashObject, map[string][]byte{idPrefix + id: spec})
	}))
}

// TestTurn: of all workers one has the turn, and the next comes when it is over, also when nobody ended it.
func TestTurn(t *testing.T) {
	t.Parallel()
	o := labOptions(t)
	o.Namespace = "cinderlift-test-" + newID()
	a, b := labCluster(t, o), labCluster(t, o)
	wipe(t, a)
	turn := func(c *Cluster) bool {
		mine, err := c.Turn(t.Context(), 2*time.Second)
		must(t, err)

		return mine
	}
	if !turn(a) || turn(b) || turn(a) {
		t.Error("the first to ask has the turn, and nobody else")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !turn(b) {
		must(t, pause(ctx, 100*time.Millisecond))
	}
	if keys, err := a.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("keys are %v, %v", keys, err)
	}
}

// TestLocks: an object of a lock that nobody holds is found and removed, one that is held is not.
func TestLocks(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	rec := fresh()
	must(t, c.Create(t.Context(), rec))
	claim, err := c.Claim(t.Context(), rec.Job.Key())
	must(t, err)
	defer func() { must(t, claim.Release(t.Context())) }()
	stray := newID()
	must(t, onErr(t.Context(), c, func(k *control) error { return k.io.Create(volumePrefix+stray, rados.CreateIdempotent) }))
	for _, ask := range [][]string{nil, {stray, rec.Job.VolumeID, newID()}} {
		list, err := c.Locks(t.Context(), ask)
		must(t, err)
		if len(list) != 1 || list[0] != stray {
			t.Errorf("locks are %v, want %s", list, stray)
		}
	}
	must(t, c.RemoveLock(t.Context(), rec.Job.VolumeID))
	must(t, claim.Renew(t.Context()))
	for range 2 {
		must(t, c.RemoveLock(t.Context(), stray))
	}
	if list, err := c.Locks(t.Context(), nil); err != nil || len(list) != 0 {
		t.Errorf("locks are %v, %v", list, err)
	}
}

// TestTracesEnd: looking through a pool ends with its context.
func TestTracesEnd(t *testing.T) {
	t.Parallel()
	im := labImages(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := im.Traces(ctx, lab(t)["LAB_POOL_VOLUMES"], nil, nil)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if _, err := im.Traces(t.Context(), "no-such-pool", nil, nil); worker.ReasonOf(err) != worker.ReasonCephRefused {
		t.Errorf("error is %v", err)
	}
}

// BenchmarkTraces measures what looking through a pool costs for each volume: CINDERLIFT_BENCH_VOLUMES of them (default
// 50), each with a snapshot of Cinder's. The pace, headersPerSecond, is what it can't go below.
func BenchmarkTraces(b *testing.B) {
	im, pool := labImages(b), lab(b)["LAB_POOL_VOLUMES"]
	n := 50
	if s := os.Getenv("CINDERLIFT_BENCH_VOLUMES"); s != "" {
		if _, err := fmt.Sscan(s, &n); err != nil {
			b.Fatal(err)
		}
	}
	back, prefix := &backdoor{im: labImages(b)}, "volume-bench-"+strings.ToLower(filepath.Base(b.TempDir()))+newID()
	for i := range n {
		at := strategies.Ref{Pool: pool, Image: fmt.Sprintf("%s-%d", prefix, i)}
		b.Cleanup(func() { back.Drop(b, at) })
		back.Put(b, at, strategiestest.Blueprint{Size: 1 << 20})
		back.Freeze(b, at, "snapshot-"+newID())
	}
	var total int
	for b.Loop() {
		if _, err := im.Traces(b.Context(), pool, func(string) bool { return false }, func(_, all int) { total = all }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(total), "us/image")
	b.ReportMetric(float64(total), "images")
}
