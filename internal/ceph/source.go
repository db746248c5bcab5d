package ceph

import (
	"context"
	"fmt"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// FSID implements strategies.Source.
func (im *Images) FSID(ctx context.Context) (string, error) {
	id, err := await(ctx, im.fsid, nil)

	return id, classify("ask for the fsid", err)
}

func (im *Images) fsid() (string, error) {
	if err := im.line.users.enter(); err != nil {
		return "", err
	}
	defer im.leave()
	if err := im.connected(); err != nil {
		return "", err
	}

	return im.conn().GetFSID()
}

// Stat implements strategies.Source.
func (im *Images) Stat(ctx context.Context, src strategies.Ref) (strategies.SourceInfo, error) {
	op := "stat " + src.String()
	found := make(chan strategies.SourceInfo, 1) // not shared memory: the call may linger
	err := im.do(ctx, op, src, func(context.Context) error {
		return missing(op, im.reading(src, rbd.NoSnapshot, func(image *rbd.Image) error {
			info, err := image.Stat()
			if err != nil {
				return err
			}
			found <- strategies.SourceInfo{Size: int64(info.Size), ObjectSize: int64(info.Obj_size)}

			return nil
		}))
	})
	if err != nil {
		return strategies.SourceInfo{}, err
	}

	return <-found, nil
}

// Inspect implements strategies.Source.
func (im *Images) Inspect(ctx context.Context, src strategies.Ref, snap string) (imageformat.Finding, error) {
	op := fmt.Sprintf("inspect %s@%s", src, snap)
	found := make(chan imageformat.Finding, 1) // not shared memory: the call may linger
	err := im.do(ctx, op, src, func(context.Context) error {
		return missing(op, im.reading(src, rbd.NoSnapshot, func(image *rbd.Image) error {
			if err := image.SetSnapshot(snap); err != nil {
				return missingSnapshot(op, err)
			}
			info, err := image.Stat()
			if err != nil {
				return err
			}
			f, err := imageformat.Inspect(image, int64(info.Size))
			found <- f

			return err
		}))
	})
	if err != nil {
		return imageformat.Finding{}, err
	}

	return <-found, nil
}

// missing makes ENOENT of opening a volume what it means.
func missing(op string, err error) error {
	if is(err, enoent) && worker.ReasonOf(err) == worker.ReasonInternal {
		return refuse(op, worker.ReasonVolumeMissing, worker.GiveUp, "Ceph does not have the volume: %w", err)
	}

	return err
}

// missingSnapshot makes ENOENT of an operation on a snapshot of an open image what it means.
func missingSnapshot(op string, err error) error {
	if is(err, enoent) {
		return refuse(op, worker.ReasonMismatch, worker.GiveUp, "the volume does not have the snapshot: %w", err)
	}

	return err
}

// Snapshot implements strategies.Source.
func (im *Images) Snapshot(ctx context.Context, src strategies.Ref, snap string) error {
	op := fmt.Sprintf("snapshot %s@%s", src, snap)

	return im.do(ctx, op, src, func(context.Context) error {
		return missing(op, im.snapshot(op, src, snap))
	})
}

// snapshot makes a snapshot, or makes sure that the one that is there is whole. librbd writes it into the header first
// and makes its object map afterwards: one of a client that was killed in between has its name and can be protected, but
// whoever opens it gets ENOENT. It is made anew: nobody can have used it.
func (im *Images) snapshot(op string, at strategies.Ref, snap string) error {
	made := false
	err := im.image(at, func(image *rbd.Image) error {
		_, err := image.CreateSnapshot(snap)
		made = err == nil
		if is(err, eexist) {
			return nil
		}

		return err
	})
	if err != nil || made {
		return err
	}
	err = im.reading(at, snap, func(*rbd.Image) error { return nil })
	if !is(err, enoent) {
		return err
	}

	return im.image(at, func(image *rbd.Image) error {
		if err := release(op, image, snap); err != nil {
			return fmt.Errorf("remove a half-made snapshot: %w", err)
		}

		return snapshot(image, snap)
	})
}

func snapshot(image *rbd.Image, snap string) error {
	_, err := image.CreateSnapshot(snap)
	if is(err, eexist) {
		return nil
	}

	return err
}

// Protect implements strategies.Source.
func (im *Images) Protect(ctx context.Context, src strategies.Ref, snap string) error {
	op := fmt.Sprintf("protect %s@%s", src, snap)

	return im.do(ctx, op, src, func(context.Context) error {
		return missing(op, im.image(src, func(image *rbd.Image) error {
			return missingSnapshot(op, protect(image, snap))
		}))
	})
}

// protect does not ask first whether the snapshot is protected: librbd answers yes also for one that a killed unprotect
// has left half-way, of which no clone can be made (librbd.cc snap_is_protected). Protecting that one again is allowed,
// and only for one that is fully protected the answer is EBUSY.
func protect(image *rbd.Image, snap string) error {
	s := image.GetSnapshot(snap)
	err := s.Protect()
	if !is(err, ebusy) {
		return err
	}
	protected, asked := s.IsProtected()
	if asked != nil {
		return asked
	}
	if !protected {
		return err
	}

	return nil
}

// Release implements strategies.Source. Cinder moves a deleted volume that still has snapshots into the trash, so the
// snapshot is looked for there as well.
func (im *Images) Release(ctx context.Context, src strategies.Ref, snap string) error {
	op := fmt.Sprintf("release %s@%s", src, snap)

	return im.do(ctx, op, src, func(ctx context.Context) error {
		return im.pool(src.Pool, func(io *rados.IOContext) error {
			err := with(io, func(image *rbd.Image) error {
				return release(op, image, snap)
			})(rbd.OpenImage(io, src.Image, rbd.NoSnapshot))
			if err != nil && !is(err, enoent) || ctx.Err() != nil {
				return err
			}

			return releaseInTrash(op, io, src.Image, snap)
		})
	})
}

func releaseInTrash(op string, io *rados.IOContext, name, snap string) error {
	trash, err := rbd.GetTrashList(io)
	if err != nil {
		return fmt.Errorf("list the trash: %w", err)
	}
	for _, t := range trash {
		if t.Name != name {
			continue
		}
		err := with(io, func(image *rbd.Image) error {
			return release(op, image, snap)
		})(rbd.OpenImageById(io, t.Id, rbd.NoSnapshot))
		if err != nil && !is(err, enoent) {
			return fmt.Errorf("in the trash, id %s: %w", t.Id, err)
		}
	}

	return nil
}

// release takes a snapshot of ours away, in whatever state a killed call has left it.
func release(op string, image *rbd.Image, snap string) error {
	s := image.GetSnapshot(snap)
	err := s.Unprotect()
	if is(err, ebusy) {
		return refuse(op, worker.ReasonCephRefused, worker.Retry, "a clone still depends on it: %w", err)
	}
	if err != nil && !is(err, enoent, einval) { // EINVAL: it is not protected
		return fmt.Errorf("unprotect: %w", err)
	}
	if err := s.Remove(); err != nil && !is(err, enoent) {
		return fmt.Errorf("remove the snapshot: %w", err)
	}

	return releaseRemnant(op, image, snap)
}

// releaseRemnant removes what a killed removal leaves: the snapshot in the trash namespace under another name, where
// removing it by name answers ENOENT as if it were gone. A snapshot with a clone of format 2 is there as well.
func releaseRemnant(op string, image *rbd.Image, snap string) error {
	snaps, err := image.GetSnapshotNames()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	for _, s := range snaps {
		kind, err := image.GetSnapNamespaceType(s.Id)
		if err != nil || kind != rbd.SnapNamespaceTypeTrash {
			continue
		}
		was, err := image.GetSnapTrashNamespace(s.Id)
		if err != nil || was != snap {
			continue
		}
		err = image.RemoveSnapByID(s.Id)
		if is(err, ebusy) {
			return refuse(op, worker.ReasonCephRefused, worker.Retry, "a clone still depends on it: %w", err)
		}
		if err != nil && !is(err, enoent) {
			return fmt.Errorf("remove its remnant %d: %w", s.Id, err)
		}
	}

	return nil
}
