//go:build lab

package ceph

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

// glanceDelete does what Glance's RBD store does (glance_store _drivers/rbd.py:445 _delete_image), over a connection of
// its own: open for writing, unprotect, remove the snapshot, close, remove the image. EBUSY is Glance's 409.
func glanceDelete(t testing.TB, im *Images, at strategies.Ref) error {
	t.Helper()

	return im.pool(at.Pool, func(io *rados.IOContext) error {
		err := with(io, func(image *rbd.Image) error {
			s := image.GetSnapshot(strategies.GlanceSnapshot)
			if err := s.Unprotect(); err != nil && !is(err, einval) {
				return fmt.Errorf("unprotect: %w", err)
			}
			if err := s.Remove(); err != nil && !is(err, enoent) {
				return fmt.Errorf("remove the snapshot: %w", err)
			}

			return nil
		})(rbd.OpenImage(io, at.Image, rbd.NoSnapshot))
		if err != nil {
			return err
		}

		return rbd.RemoveImage(io, at.Image)
	})
}

// sealed is a clone that Glance has registered before it is flattened.
func sealed(t *testing.T, r strategiestest.Rig, im *Images, objects int64) strategies.Make {
	t.Helper()
	m := made(t, r, objects)
	must(t, im.Clone(t.Context(), m))
	must(t, im.Seal(t.Context(), m))

	return m
}

// TestDeleteInFlatten: a user deletes the image in the middle of a long flatten. That works as on an idle image, the
// flatten ends, and neither objects nor anything on the volume are left.
func TestDeleteInFlatten(t *testing.T) {
	for name, copying := range map[string]func(*rados.IOContext, string, *rados.IOContext, string) error{
		"copied by the cluster": copyObject,
		"through the worker":    refusing(0, einval),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, im, glance := labRig(t), labImages(t), labImages(t)
			im.copy = copying
			m := sealed(t, r, im, 256)
			id := idOf(t, glance, m.Dst)
			begun, ended := make(chan struct{}), make(chan error, 1)
			var once sync.Once
			go func() {
				ended <- im.Flatten(t.Context(), m, func(worker.Amount) {
					once.Do(func() { close(begun) })
					<-time.After(50 * time.Millisecond) // all wait for it
				})
			}()
			<-begun
			must(t, glanceDelete(t, glance, m.Dst))
			err := <-ended
			if worker.ReasonOf(err) != worker.ReasonMismatch || worker.AdviceOf(err) != worker.GiveUp {
				t.Errorf("flatten: %v, want a mismatch that is not tried again", err)
			}
			must(t, im.Discard(t.Context(), m)) // as the strategy does
			nothingLeft(t, glance, m, id)
			must(t, im.Release(t.Context(), m.Src, m.Snapshot))
		})
	}
}

func idOf(t *testing.T, im *Images, at strategies.Ref) (id string) {
	t.Helper()
	must(t, im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) (err error) { id, err = image.GetId(); return err }))

	return id
}

func nothingLeft(t *testing.T, im *Images, m strategies.Make, id string) {
	t.Helper()
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
		return io.ListObjects(func(name string) {
			if strings.Contains(name, id) || strings.Contains(name, m.Dst.Image) {
				t.Errorf("object %s is left", name)
			}
		})
	}))
}

// TestDeleteInEveryInstant deletes at points all over a flatten. Only while the image is open for writing, which is for
// instants, may that be refused; then the image has to be whole in the end, and a second delete succeeds.
func TestDeleteInEveryInstant(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	refused, total := 0, 24
	if thorough() {
		total = 200
	}
	t.Cleanup(func() { t.Logf("%d of %d deletes at any time of a flatten were refused", refused, total) })
	for n := range total {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			r, im, glance := labRig(t), labImages(t), labImages(t)
			m := sealed(t, r, im, 8)
			want, id := r.Backdoor.Read(t, m.Src, m.Snapshot), idOf(t, glance, m.Dst)
			ended := make(chan error, 1)
			go func() { ended <- im.Flatten(t.Context(), m, nil) }()
			<-time.After(time.Duration(n) * 600 * time.Millisecond / time.Duration(total))
			deleted := glanceDelete(t, glance, m.Dst)
			err := <-ended
			t.Logf("delete: %v; flatten: %v; noted: %+v", deleted, err, im.filled.Load())
			switch {
			case deleted == nil:
				must(t, im.Discard(t.Context(), m))
			case is(deleted, ebusy, syscall.ENOTEMPTY): // and the user tries again later
				mu.Lock()
				refused++
				mu.Unlock()
				for ; worker.AdviceOf(err) == worker.Retry; err = im.Flatten(t.Context(), m, nil) {
					must(t, pause(t.Context(), 100*time.Millisecond))
				}
				must(t, im.Flatten(t.Context(), m, nil))
				if got := r.Backdoor.View(t, m.Dst); got.Parent != "" || !got.Snapshots[strategies.GlanceSnapshot] {
					t.Errorf("after a refused delete the image is %+v", got)
				}
				if string(r.Backdoor.Read(t, m.Dst, strategies.GlanceSnapshot)) != string(want) {
					t.Error("after a refused delete the image has other bytes")
				}
				must(t, glanceDelete(t, glance, m.Dst))
			default:
				t.Errorf("delete: %v", deleted)
			}
			nothingLeft(t, glance, m, id)
			must(t, im.Release(t.Context(), m.Src, m.Snapshot))
		})
	}
}

// TestDeleteUnderKilledFlatten: the worker dies, the user deletes the image, and what the worker had in flight comes behind
// the removal. The next one finds it by what is in the journal.
func TestDeleteUnderKilledFlatten(t *testing.T) {
	t.Parallel()
	v := newVictim(t, 2*time.Second, 512)
	h := startHelper(t, v.order)
	if h.until(t, "progress flatten") == "" {
		t.Fatal("the helper was too fast")
	}
	h.signal(t, syscall.SIGKILL)
	for range h.lines {
	}
	id := idOf(t, v.back.im, v.Make.Dst)
	var late filled
	must(t, v.back.im.reading(v.Make.Dst, rbd.NoSnapshot, func(image *rbd.Image) error {
		info, err := image.Stat()
		late.Prefix = info.Block_name_prefix

		return err
	}))
	claim := adopt(t, v.c, v.key()) // from now on it is fenced
	must(t, claim.Release(t.Context()))
	v.unstick(t, glanceDelete(t, v.back.im, v.Make.Dst))
	if listed := v.back.listed(t, v.Make.Dst); listed {
		must(t, glanceDelete(t, v.back.im, v.Make.Dst))
	}
	must(t, v.back.im.pool(v.Make.Dst.Pool, func(io *rados.IOContext) error {
		return io.WriteFull(object(late.Prefix, 7), []byte("came late"))
	}))
	claim = adopt(t, v.c, v.key())
	err := claim.Images().Flatten(t.Context(), v.Make, nil)
	if worker.ReasonOf(err) != worker.ReasonMismatch {
		t.Errorf("flatten of what is gone: %v, want a mismatch", err)
	}
	nothingLeft(t, v.back.im, v.Make, id)
	must(t, claim.Images().Release(t.Context(), v.Make.Src, v.Make.Snapshot))
	must(t, claim.Release(t.Context()))
}

// TestSweepSparesTheLiving: nothing is swept of an image that is there, under its name or in the trash.
func TestSweepSparesTheLiving(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := sealed(t, r, im, 6)
	ctx, cancel := context.WithCancel(t.Context())
	im.copy = func(to *rados.IOContext, dst string, from *rados.IOContext, src string) error {
		defer cancel()

		return copyObject(to, dst, from, src)
	}
	if err := im.Flatten(ctx, m, nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("flatten: %v, want it cancelled", err)
	}
	if im.filled.Load() == nil {
		t.Fatal("nothing was noted, so this test shows nothing")
	}
	must(t, im.sweep(t.Context()))
	var id string
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
		id = idOf(t, im, m.Dst)

		return rbd.GetImage(io, m.Dst.Image).Trash(0)
	}))
	must(t, im.Discard(t.Context(), m))
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error { return rbd.TrashRestore(io, id, m.Dst.Image) }))
	im.copy = copyObject
	must(t, im.Flatten(t.Context(), m, nil))
	if string(r.Backdoor.Read(t, m.Dst, strategies.GlanceSnapshot)) != string(r.Backdoor.Read(t, m.Src, m.Snapshot)) {
		t.Error("the image has other bytes than the volume")
	}
}

// TestStripedClone: the release before made clones as striped as their volume. They have to be finished all the same.
func TestStripedClone(t *testing.T) {
	t.Parallel()
	r, im := labRig(t), labImages(t)
	m := made(t, r, 8)
	opts, err := imageOptions(r.ObjectSize)
	must(t, err)
	defer opts.Destroy()
	must(t, opts.SetUint64(rbd.ImageOptionStripeUnit, uint64(r.ObjectSize)/4))
	must(t, opts.SetUint64(rbd.ImageOptionStripeCount, 4))
	must(t, im.pool(m.Dst.Pool, func(io *rados.IOContext) error {
		return im.pool(m.Src.Pool, func(src *rados.IOContext) error {
			return rbd.CloneImage(src, m.Src.Image, m.Snapshot, io, m.Dst.Image, opts)
		})
	}))
	must(t, im.image(m.Dst, func(image *rbd.Image) error {
		g, err := geometryOf(image)
		must(t, err)
		if !g.striped() {
			t.Fatal("the clone is not striped, so this test shows nothing")
		}

		return markClone(image, m.Job)
	}))
	must(t, im.Seal(t.Context(), m))
	must(t, im.Flatten(t.Context(), m, nil))
	for _, snap := range []string{"", strategies.GlanceSnapshot} {
		if string(r.Backdoor.Read(t, m.Dst, snap)) != string(r.Backdoor.Read(t, m.Src, m.Snapshot)) {
			t.Errorf("image@%s has other bytes than the volume", snap)
		}
	}
	must(t, im.Release(t.Context(), m.Src, m.Snapshot))
}
