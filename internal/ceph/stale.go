package ceph

import (
	"fmt"
	"slices"
	"strings"

	"github.com/ceph/go-ceph/rbd"
)

// A worker that is killed in the middle of a change leaves the image's exclusive lock behind. librbd takes it away once the
// dead client's watch is gone. But Ceph 16 now and then keeps the watch of a blocklisted client for minutes (lab_test.go
// retryStale); librbd then asks the dead client for the lock, again and again and without an end
// (librbd/managed_lock/GetLockerRequest, BreakRequest). We know better: who was fenced is dead.

// fencedMost bounds how many earlier owners a job remembers: as many as may die one after the other without any of them
// coming as far as the image.
const fencedMost = 16

// history adds an address to what the journal remembers of earlier owners, one in a line, the last one last.
func history(before, addr string) string {
	list := strings.Fields(before)
	if addr != "" && !slices.Contains(list, addr) {
		list = append(list, addr)
	}

	return strings.Join(list[max(0, len(list)-fencedMost):], "\n")
}

// fencedBefore lists the single addresses in a history.
func fencedBefore(history string) (list []string) {
	for _, addrs := range strings.Fields(history) {
		single, err := fenceable(addrs)
		if err != nil {
			continue // fence refuses it as well
		}
		for _, addr := range single {
			list = append(list, bare(addr))
		}
	}

	return list
}

// bare is an address without the version of the protocol, which librbd leaves out.
func bare(addr string) string {
	for _, version := range []string{"v1:", "v2:", "any:"} {
		addr = strings.TrimPrefix(addr, version)
	}

	return addr
}

// breakStale takes an image's exclusive lock away from an owner that was fenced. The lock of anybody else stays theirs.
func (im *Images) breakStale(image *rbd.Image) error {
	if len(im.fenced) == 0 {
		return nil
	}
	owners, err := image.LockGetOwners()
	if is(err, einval) {
		return nil // the image has no exclusive lock
	}
	if err != nil {
		return fmt.Errorf("ask who has the image locked: %w", err)
	}
	for _, o := range owners {
		if o.Mode != rbd.LockModeExclusive || !slices.Contains(im.fenced, bare(o.Owner)) {
			continue
		}
		if err := image.LockBreak(o.Mode, o.Owner); err != nil && !is(err, enoent, ebusy) { // it is gone, or somebody else's by now
			return fmt.Errorf("take the lock away from %s, which was fenced: %w", o.Owner, err)
		}
	}

	return nil
}
