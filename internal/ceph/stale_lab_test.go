//go:build lab

package ceph

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// TestLockOfTheFenced: the exclusive lock of an owner that was fenced is taken away although its watch is there, and work
// goes on; that of anybody else is not.
func TestLockOfTheFenced(t *testing.T) {
	for name, fenced := range map[string]bool{"fenced": true, "alive": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, im, other := labRig(t), labImages(t), labImages(t)
			m := sealed(t, r, im, 4)
			if fenced {
				im.fenced = fencedBefore(history("", other.address()))
			}
			must(t, other.pool(m.Dst.Pool, func(io *rados.IOContext) error {
				image, err := rbd.OpenImage(io, m.Dst.Image, rbd.NoSnapshot)
				must(t, err)
				defer func() { _ = image.Close() }()              // its lock may be gone
				must(t, image.LockAcquire(rbd.LockModeExclusive)) // and it does not give it away when it is asked
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				must(t, im.Flatten(ctx, m, nil)) // librbd asks an owner that lives to do its part
				if mine, err := image.LockIsExclusiveOwner(); !fenced && (err != nil || !mine) {
					t.Errorf("the lock was taken away from an owner that lives: %v", err)
				}

				return nil
			}))
		})
	}
}

// TestFencedIsRemembered: a job knows all owners that were fenced for it, not only the last.
func TestFencedIsRemembered(t *testing.T) {
	t.Parallel()
	v := newVictim(t, 2*time.Second, 1)
	var addrs []string
	for range 3 {
		claim := adopt(t, v.c, v.key())
		if got := claim.Images().fenced; !slices.Equal(got, addrs) {
			t.Errorf("fenced are %q, want %q", got, addrs)
		}
		addrs = append(addrs, fencedBefore(claim.Images().address())...)
		t.Cleanup(func() { _ = claim.Release(context.Background()) }) // it is dead for the others: nobody renews its lease
	}
	claim := adopt(t, v.c, v.key())
	if got := claim.Images().fenced; !slices.Equal(got, addrs) {
		t.Errorf("fenced are %q, want %q", got, addrs)
	}
	must(t, claim.Release(t.Context()))
}
