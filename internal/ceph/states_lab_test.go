//go:build lab

package ceph

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

// TestOtherVolumes runs the suite over volumes that are made in other ways than Cinder's usual one.
func TestOtherVolumes(t *testing.T) {
	env := lab(t)
	for name, with := range map[string]backdoor{
		"without object map": {features: plainFeatures},
		"only layering":      {features: rbd.FeatureLayering},
		"journaling":         {features: usualFeatures | rbd.FeatureJournaling},
		"striped":            {features: usualFeatures | rbd.FeatureStripingV2, stripeUnit: 16 << 10, stripeCount: 4},
		"data pool":          {dataPool: env["LAB_POOL_IMAGES2"]},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := labRig(t)
			with.im = r.Backdoor.(*backdoor).im
			// With and without parent, hidden parts, an odd end: what depends on how the bytes lie in objects.
			r.Backdoor, r.Kinds = &with, strategiestest.Kinds()[3:6]
			strategiestest.RunKinds(t, r)
		})
	}
}

// made is a volume with a protected snapshot, and what is to be made of it.
func made(t *testing.T, r strategiestest.Rig, objects int64) strategies.Make {
	t.Helper()
	m := sized(t, r, objects)
	must(t, r.Source.Snapshot(t.Context(), m.Src, m.Snapshot))
	must(t, r.Source.Protect(t.Context(), m.Src, m.Snapshot))

	return m
}

// sized is a volume of some objects without a snapshot.
func sized(t *testing.T, r strategiestest.Rig, objects int64) strategies.Make {
	t.Helper()
	id := newID()
	m := strategies.Make{
		Src:      strategies.Ref{Pool: r.Volumes, Image: "volume-" + newID()},
		Snapshot: strategies.SourceSnapshot(id), Dst: strategies.Ref{Pool: r.Images, Image: id}, Job: id,
	}
	t.Cleanup(func() {
		r.Backdoor.Drop(t, m.Dst)
		r.Backdoor.Drop(t, m.Src)
	})
	r.Backdoor.Put(t, m.Src, strategiestest.Blueprint{Size: objects * r.ObjectSize, ObjectSize: r.ObjectSize})
	for n := range objects {
		r.Backdoor.Write(t, m.Src, n*r.ObjectSize, bytes.Repeat([]byte{byte(n + 1)}, int(r.ObjectSize)))
	}

	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestMapsBeforeDetach: an image whose snapshot has a stale object map must not be detached. librbd's flatten itself does
// not notice, and image@snap reads as zeros afterwards.
func TestMapsBeforeDetach(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 6)
	must(t, im.Clone(t.Context(), m))
	must(t, im.Seal(t.Context(), m))
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
		f := &flattening{im: im, io: io, m: m, progress: quiet(t.Context(), nil)}
		there, err := f.fill(t.Context())
		must(t, err)
		if len(there) != 6 {
			t.Fatalf("objects %v are there, want all 6", there)
		}

		return im.buildMaps(t.Context(), io, m.Dst, there, rbd.NoSnapshot, strategies.GlanceSnapshot)
	}))
	// An object that is lost between fill and detach has to stop the detach.
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
		var prefix string
		must(t, im.reading(m.Dst, rbd.NoSnapshot, func(image *rbd.Image) error {
			info, err := image.Stat()
			prefix = info.Block_name_prefix

			return err
		}))
		must(t, io.Delete(object(prefix, 3)))
		must(t, im.image(m.Dst, dropMaps))
		err := im.buildMaps(t.Context(), io, m.Dst, []uint64{0, 1, 2, 3, 4, 5}, rbd.NoSnapshot, strategies.GlanceSnapshot)
		if worker.ReasonOf(err) != worker.ReasonMismatch {
			t.Errorf("maps that lack an object: %v, want a mismatch", err)
		}

		return nil
	}))
	must(t, im.Flatten(t.Context(), m, nil)) // brings it again
	want := r.Backdoor.Read(t, m.Src, m.Snapshot)
	for _, snap := range []string{"", strategies.GlanceSnapshot} {
		if !bytes.Equal(r.Backdoor.Read(t, m.Dst, snap), want) {
			t.Errorf("image@%s has other bytes", snap)
		}
	}
}

// TestClusterMovesTheBytes: of a plain volume nothing may come through this process.
func TestClusterMovesTheBytes(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 6)
	must(t, im.Clone(t.Context(), m))
	must(t, im.Seal(t.Context(), m))
	var got worker.Amount
	must(t, im.Flatten(t.Context(), m, func(a worker.Amount) { got = a }))
	all := 6 * r.ObjectSize
	if want := (worker.Amount{Done: all, Total: all, Cluster: all}); got != want {
		t.Errorf("moved %+v, want %+v", got, want)
	}
	m2 := made(t, r, 6)
	m2.ObjectSize = 2 * r.ObjectSize
	must(t, im.CopyObjects(t.Context(), m2, func(a worker.Amount) { got = a }))
	if want := (worker.Amount{Done: all, Total: all, Worker: all}); got != want {
		t.Errorf("through this process %+v, want %+v", got, want)
	}
}

// TestHalfUnprotected: a killed unprotect leaves a snapshot that is called protected but can't be cloned.
func TestHalfUnprotected(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 2)
	setProtection(t, im, m, 1) // RBD_PROTECTION_STATUS_UNPROTECTING (cls/rbd/cls_rbd_types.h)
	if err := im.Clone(t.Context(), m); err == nil {
		t.Fatal("a clone of a half-unprotected snapshot succeeded, so this test shows nothing")
	}
	must(t, im.Protect(t.Context(), m.Src, m.Snapshot))
	must(t, im.Clone(t.Context(), m))
	must(t, im.Discard(t.Context(), m))
	setProtection(t, im, m, 1)
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
	if v := r.Backdoor.View(t, m.Src); len(v.Snapshots) != 0 {
		t.Errorf("snapshots left: %v", v.Snapshots)
	}
}

func setProtection(t *testing.T, im *Images, m strategies.Make, status byte) {
	t.Helper()
	var id string
	var snap uint64
	must(t, im.reading(m.Src, rbd.NoSnapshot, func(image *rbd.Image) (err error) {
		if id, err = image.GetId(); err == nil {
			snap, err = image.GetSnapID(m.Snapshot)
		}

		return err
	}))
	must(t, im.pool(m.Src.Pool, func(io *rados.IOContext) error {
		op := rados.CreateWriteOp()
		defer op.Release()
		op.Exec("rbd", "set_protection_status", append(binary.LittleEndian.AppendUint64(nil, snap), status))

		return op.Operate(io, "rbd_header."+id, rados.OperationNoFlag)
	}))
}

// TestNamelessHeader: a kill in clone or remove leaves a name that is listed and can't be opened.
func TestNamelessHeader(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 2)
	for name, fn := range map[string]func(context.Context, strategies.Make) error{
		"clone":   im.Clone,
		"discard": im.Discard,
		"copy":    func(ctx context.Context, m strategies.Make) error { return im.CopyObjects(ctx, m, nil) },
	} {
		r.Backdoor.Put(t, m.Dst, strategiestest.Blueprint{Size: 2 * r.ObjectSize, ObjectSize: r.ObjectSize})
		must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
			var id string
			must(t, im.reading(m.Dst, rbd.NoSnapshot, func(image *rbd.Image) (err error) { id, err = image.GetId(); return err }))

			return io.Delete("rbd_header." + id)
		}))
		if !r.Backdoor.(*backdoor).listed(t, m.Dst) {
			t.Fatal("the name is not listed, so this test shows nothing")
		}
		if err := fn(t.Context(), m); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		must(t, im.Discard(t.Context(), m))
		if r.Backdoor.(*backdoor).listed(t, m.Dst) {
			t.Errorf("%s: the name is still listed", name)
		}
	}
}

func (b *backdoor) listed(t testing.TB, at strategies.Ref) (there bool) {
	t.Helper()
	b.must(t, "list", b.im.pool(at.Pool, func(io *rados.IOContext) (err error) {
		there, err = listed(io, at.Image)

		return err
	}))

	return there
}

// TestReleaseInTheTrash: Cinder moves a deleted volume that has a snapshot to the trash.
func TestReleaseInTheTrash(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 2)
	var id string
	must(t, im.image(m.Src, func(image *rbd.Image) (err error) { id, err = image.GetId(); return err }))
	must(t, im.pool(m.Src.Pool, func(io *rados.IOContext) error { return rbd.GetImage(io, m.Src.Image).Trash(0) }))
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
	must(t, im.pool(m.Src.Pool, func(io *rados.IOContext) error {
		must(t, with(io, func(image *rbd.Image) error {
			snaps, err := image.GetSnapshotNames()
			if len(snaps) != 0 {
				t.Errorf("snapshots left in the trash: %v", snaps)
			}

			return err
		})(rbd.OpenImageByIdReadOnly(io, id, rbd.NoSnapshot)))

		return rbd.TrashRemove(io, id, true)
	}))
}

// TestReleaseOfRemnant: a snapshot with a clone of format 2 goes to the trash namespace when it is removed, where a killed
// removal leaves it as well. By name it is gone.
func TestReleaseOfRemnant(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 2)
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
		opts, err := imageOptions(r.ObjectSize)
		must(t, err)
		defer opts.Destroy()
		must(t, opts.SetUint64(rbd.ImageOptionCloneFormat, 2))

		return im.pool(m.Src.Pool, func(src *rados.IOContext) error {
			return rbd.CloneImage(src, m.Src.Image, m.Snapshot, io, m.Dst.Image, opts)
		})
	}))
	for range 2 { // the second time the name is gone already
		if err := im.Release(t.Context(), m.Src, m.Snapshot); worker.AdviceOf(err) != worker.Retry {
			t.Errorf("release below a clone of format 2: %v, want Retry", err)
		}
	}
	r.Backdoor.Drop(t, m.Dst)
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
	if v := r.Backdoor.View(t, m.Src); len(v.Snapshots) != 0 {
		t.Errorf("snapshots left: %v", v.Snapshots)
	}
}

// TestOccupiedRemainder: Glance makes an empty image and has it open before it writes into it.
func TestOccupiedRemainder(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 2)
	r.Backdoor.Put(t, m.Dst, strategiestest.Blueprint{Size: 2 * r.ObjectSize, ObjectSize: r.ObjectSize})
	back := r.Backdoor.(*backdoor)
	must(t, back.im.image(m.Dst, func(*rbd.Image) error {
		err := im.Clone(t.Context(), m)
		if worker.ReasonOf(err) != worker.ReasonConflict || worker.AdviceOf(err) != worker.Retry {
			t.Errorf("clone over an empty image that is open: %v, want a conflict to be tried again", err)
		}

		return nil
	}))
	must(t, im.Clone(t.Context(), m))
}

// admin is the lab's administrator, with a pool of its own.
func admin(t *testing.T, command ...map[string]any) (*Images, string) {
	t.Helper()
	o := labOptions(t)
	o.User = "admin"
	pool := "cinderlift-" + newID()
	o.DataConf = map[string]string{}
	c := labCluster(t, o)
	mon(t, c, map[string]any{"prefix": "osd pool create", "pool": pool, "pg_num": 8})
	t.Cleanup(func() {
		mon(t, c, map[string]any{
			"prefix": "osd pool delete", "pool": pool, "pool2": pool, "yes_i_really_really_mean_it": true,
		})
	})
	mon(t, c, map[string]any{"prefix": "osd pool application enable", "pool": pool, "app": "rbd"})
	for _, cmd := range command {
		cmd["pool"] = pool
		mon(t, c, cmd)
	}
	im, err := c.Images(t.Context())
	must(t, err)
	t.Cleanup(func() { must(t, im.Close(context.Background())) })

	return im, pool
}

// TestPoolFull: a pool at its quota is an error and not a hang, for each operation that writes.
func TestPoolFull(t *testing.T) {
	t.Parallel()
	im, pool := admin(t, map[string]any{"prefix": "osd pool set-quota", "field": "max_bytes", "val": "2097152"})
	r := labRig(t)
	r.Backdoor.(*backdoor).im = im
	r.Source, r.Destination = im, im
	m := made(t, r, 64)
	m.Dst.Pool = pool
	must(t, im.c.Full(t.Context(), r.Volumes, pool))
	deadline := time.Now().Add(90 * time.Second) // quotas are enforced late, from statistics
	for {
		began := time.Now()
		err := im.CopyObjects(t.Context(), m, nil)
		if took := time.Since(began); took > 20*time.Second {
			t.Fatalf("it took %v", took)
		}
		if worker.ReasonOf(err) == worker.ReasonPoolFull {
			if err := im.c.Full(t.Context(), r.Volumes, pool); worker.ReasonOf(err) != worker.ReasonPoolFull {
				t.Errorf("asked whether the pool is full: %v", err)
			}
			if worker.AdviceOf(err) != worker.Retry || !strings.Contains(err.Error(), "quota") {
				t.Errorf("a full pool: %v, want Retry and a word on the quota", err)
			}

			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the quota was never enforced, last error: %v", err)
		}
		if err == nil {
			must(t, im.Discard(t.Context(), m))
		}
	}
	mon(t, im.c, map[string]any{"prefix": "osd pool set-quota", "pool": pool, "field": "max_bytes", "val": "0"})
	err := im.CopyObjects(t.Context(), m, nil)
	for ; worker.AdviceOf(err) == worker.Retry && time.Now().Before(deadline.Add(time.Minute)); err = im.CopyObjects(t.Context(), m, nil) {
		must(t, pause(t.Context(), time.Second))
	}
	must(t, err)
	must(t, im.Discard(t.Context(), m))
	eventually(t, "the pool has room again", time.Minute, func() error { return im.c.Full(t.Context(), r.Volumes, pool) })
}

// TestHalfMadeSnapshot: librbd adds a snapshot to the header first and makes its object map afterwards. A worker that is
// killed in between leaves a snapshot that has its name and can be protected, but not opened.
func TestHalfMadeSnapshot(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 3)
	want := r.Backdoor.Read(t, m.Src, "")
	halve(t, im, m.Src, m.Snapshot)
	if err := im.Clone(t.Context(), m); err == nil {
		t.Fatal("a clone of a half-made snapshot succeeded, so this test shows nothing")
	}
	must(t, im.Snapshot(t.Context(), m.Src, m.Snapshot))
	must(t, im.CopyObjects(t.Context(), m, nil))
	must(t, im.image(m.Dst, func(image *rbd.Image) error { return snapshot(image, strategies.GlanceSnapshot) }))
	halve(t, im, m.Dst, strategies.GlanceSnapshot)
	must(t, im.Seal(t.Context(), m))
	if !bytes.Equal(r.Backdoor.Read(t, m.Dst, strategies.GlanceSnapshot), want) {
		t.Error("the image has other bytes than the volume")
	}
	halve(t, im, m.Dst, strategies.GlanceSnapshot)
	must(t, im.Discard(t.Context(), m))
	halve(t, im, m.Src, m.Snapshot)
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
	if v := r.Backdoor.View(t, m.Src); len(v.Snapshots) != 0 {
		t.Errorf("snapshots left: %v", v.Snapshots)
	}
}

// halve removes what librbd makes last of a snapshot.
func halve(t *testing.T, im *Images, at strategies.Ref, snap string) {
	t.Helper()
	var name string
	must(t, im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) error {
		id, err := image.GetId()
		must(t, err)
		number, err := image.GetSnapID(snap)
		name = fmt.Sprintf("rbd_object_map.%s.%016x", id, number)

		return err
	}))
	must(t, im.pool(at.Pool, func(io *rados.IOContext) error { return io.Delete(name) }))
}
