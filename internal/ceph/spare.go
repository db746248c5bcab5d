package ceph

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/strategies"
)

// A snapshot gets its id from the monitors, which commit at most once in paxos_propose_interval (1 s): the second of two
// snapshots made one after the other waits for nearly all of it (ceph 16.2.15 mon/PaxosService.cc should_propose). So the id
// for the image's snapshot is asked for together with the volume's, and is there when the image is.

// Prepare implements strategies.Destination.
func (im *Images) Prepare(m strategies.Make) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.spares[m.Dst] != nil || im.line.users.enter() != nil {
		return
	}
	spare := make(chan uint64, 1)
	im.spares[m.Dst] = spare
	go func() {
		defer im.leave()
		defer close(spare)
		if im.connected() != nil {
			return
		}
		_ = im.pool(m.Dst.Pool, func(io *rados.IOContext) error { // without an id librbd asks for one
			id, err := newSnapID(io)
			if err == nil {
				spare <- id
			}

			return err
		})
	}()
}

// spare waits for the id that was prepared; it is handed out once. An id that is never used costs nothing.
func (im *Images) spare(ctx context.Context, at strategies.Ref) (id uint64, ok bool) {
	im.mu.Lock()
	spare := im.spares[at]
	delete(im.spares, at)
	im.mu.Unlock()
	if spare == nil {
		return 0, false
	}
	select {
	case id, ok = <-spare:
	case <-ctx.Done():
	}

	return id, ok
}

// quickSnapshot writes a snapshot with a prepared id into the header of an image as librbd does after it was given one
// (librbd/operation/SnapshotCreateRequest.cc send_create_snap; cls_rbd.cc snapshot_add, which also notes the parent). What
// librbd does besides is for images that somebody has open, and for object maps; ours has neither. False: it has to be made
// the usual way.
func (im *Images) quickSnapshot(ctx context.Context, io *rados.IOContext, at strategies.Ref, v view, snap string) (bool, error) {
	id, ok := im.spare(ctx, at)
	if !ok || v.features != plainFeatures || v.dataPool != io.GetPoolID() || v.watched {
		return false, nil
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.Exec("rbd", "snapshot_add", snapshotAdd(snap, id))
	err := op.Operate(io, headerPrefix+v.id, rados.OperationNoFlag)
	if is(err, eexist, estale) { // it is there; or a snapshot with a later id was
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("add the snapshot with the id %d: %w", id, err)
	}

	return true, nil
}

// snapshotAdd encodes the arguments of cls_rbd's snapshot_add: name, id, and the namespace of users' snapshots (ceph 16.2.15
// cls/rbd/cls_rbd_client.cc snapshot_add, cls_rbd_types.h UserSnapshotNamespace).
func snapshotAdd(name string, id uint64) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(len(name)))
	b = append(b, name...)
	b = binary.LittleEndian.AppendUint64(b, id)
	b = append(b, 1, 1) // version of the namespace's encoding, and the oldest that can read it
	b = binary.LittleEndian.AppendUint32(b, 4)

	return binary.LittleEndian.AppendUint32(b, 0) // SNAPSHOT_NAMESPACE_TYPE_USER
}
