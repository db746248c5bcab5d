package ceph

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// An object map says which objects an image has, so that readers need not ask for holes. librbd can rebuild one, by asking
// the OSDs for every object that there could be, twice, for the head and for the snapshot: half a million questions for a
// thin image of 1 TiB, through this process. After a fill it is known which objects are there; only these are asked for, as
// the proof that the fill was complete, and the maps are written as a whole.

// What a map says of an object that is there (include/rbd/object_map_types.h); zero means that it is not.
const (
	objectExists = 1
	objectClean  = 3 // it is there, and has not changed since the snapshot before
)

const (
	// invalidMaps is RBD_FLAG_OBJECT_MAP_INVALID and RBD_FLAG_FAST_DIFF_INVALID (include/rbd/features.h). librbd sets both
	// when it switches the maps on for an image that may have objects; while they are set nobody believes the maps.
	invalidMaps = 1<<0 | 1<<1

	noSnap = ^uint64(0) - 1 // CEPH_NOSNAP (include/rados.h): the head

	mapPrefix = "rbd_object_map." // include/rbd_types.h RBD_OBJECT_MAP_PREFIX

	proofs = 256 // objects that are asked for in one call
)

// mapObject is the name of the object map of an image's head, or of a snapshot (librbd/ObjectMap.cc object_map_name).
func mapObject(id string, snap uint64) string {
	if snap == noSnap {
		return mapPrefix + id
	}

	return fmt.Sprintf("%s%s.%016x", mapPrefix, id, snap)
}

// mapped is an image with its maps switched on.
type mapped struct {
	target
	data  *rados.IOContext
	snaps []uint64 // whose maps are to be written: noSnap, and of the snapshot where there is one
}

// buildMaps gives a filled image an object map for each of the versions, and then asks librbd by these maps whether all
// objects are there. A crash before the end leaves flags that say not to believe them; who comes next drops them.
func (im *Images) buildMaps(ctx context.Context, io *rados.IOContext, at strategies.Ref, there []uint64, snaps ...string) error {
	m, err := im.mapped(at, snaps)
	if err != nil {
		return err
	}
	defer m.data.Destroy()
	if err := m.prove(ctx, at, there); err != nil {
		return err
	}
	for _, snap := range m.snaps {
		if err := m.save(io, snap, there); err != nil {
			return err
		}
	}
	for _, snap := range m.snaps {
		if err := m.believe(io, snap); err != nil {
			return err
		}
	}
	for _, snap := range snaps {
		if err := im.compare(ctx, at, snap, there); err != nil {
			return err
		}
	}

	return nil
}

// mapped switches the maps on. librbd makes them then, empty, and says so in the flags.
func (im *Images) mapped(at strategies.Ref, snaps []string) (m mapped, err error) {
	err = im.image(at, func(image *rbd.Image) error {
		if err := image.UpdateFeatures(mapFeatures, true); err != nil {
			return fmt.Errorf("switch the object map on: %w", err)
		}
		if m.target, err = targetOf(image); err != nil {
			return err
		}
		for _, snap := range snaps {
			id := noSnap
			if snap != rbd.NoSnapshot {
				if id, err = image.GetSnapID(snap); err != nil {
					return fmt.Errorf("look for the snapshot %s: %w", snap, err)
				}
			}
			m.snaps = append(m.snaps, id)
		}

		return nil
	})
	if err == nil {
		m.data, err = im.poolOf(m.pool, "")
	}

	return m, err
}

// prove asks for every object that the maps will say is there. Once the parent is gone, nobody finds the data of one that
// was taken for copied and is not.
func (m mapped) prove(ctx context.Context, at strategies.Ref, there []uint64) error {
	for some := range slices.Chunk(there, proofs) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		n, err := statAll(m.data, m.prefix, some)
		if is(err, enoent) {
			return refuse("look for the objects of "+at.String(), worker.ReasonMismatch, worker.Retry,
				"object %d of %d that were copied is not there", n, len(there))
		}
		if err != nil {
			return fmt.Errorf("look for object %d: %w", n, err)
		}
	}

	return nil
}

// save writes the map of the head or of a snapshot as librbd does after a rebuild (librbd/ObjectMap.cc aio_save). The map of
// an image that was removed meanwhile is not made again.
func (m mapped) save(io *rados.IOContext, snap uint64, there []uint64) error {
	state := byte(objectExists)
	if snap == noSnap && len(m.snaps) > 1 {
		state = objectClean
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.Exec("rbd", "object_map_save", objectMap((m.size+m.objectSize-1)/m.objectSize, there, state))
	if err := op.Operate(io, mapObject(m.id, snap), rados.OperationNoFlag); err != nil {
		return fmt.Errorf("write the object map %s: %w", mapObject(m.id, snap), err)
	}

	return nil
}

// believe takes the flags away that say not to believe a map (librbd/operation/RebuildObjectMapRequest.cc
// send_update_header).
func (m mapped) believe(io *rados.IOContext, snap uint64) error {
	op := rados.CreateWriteOp()
	defer op.Release()
	op.AssertExists()
	op.Exec("rbd", "set_flags", flags(snap, 0, invalidMaps))
	if err := op.Operate(io, headerPrefix+m.id, rados.OperationNoFlag); err != nil {
		return fmt.Errorf("say that the object map %s is right: %w", mapObject(m.id, snap), err)
	}

	return nil
}

// objectMap encodes a map of so many objects, of which some are there, as the argument of cls_rbd's object_map_save: a
// BitVector of two bits an object, the first one in the highest bits, without checksums; the OSD adds these (common/bit_vector.hpp
// encode, compute_index; cls/rbd/cls_rbd.cc object_map_save).
func objectMap(objects uint64, there []uint64, state byte) []byte {
	const header = 4 + 6 + 8
	b := make([]byte, header, header+objects/4+5)
	binary.LittleEndian.PutUint32(b, 6+8)   // bytes of the header that follow
	b[4], b[5] = 1, 1                       // version of the encoding, and the oldest that can read it
	binary.LittleEndian.PutUint32(b[6:], 8) // bytes of its content
	binary.LittleEndian.PutUint64(b[10:], objects)
	b = append(b, make([]byte, (objects+3)/4)...)
	for _, n := range there {
		b[header+n/4] |= state << (6 - 2*(n%4))
	}

	return append(b, 0, 0, 0, 0) // no checksums
}

// flags encodes the arguments of cls_rbd's set_flags (cls/rbd/cls_rbd_client.cc).
func flags(snap, value, mask uint64) []byte {
	b := binary.LittleEndian.AppendUint64(nil, value)
	b = binary.LittleEndian.AppendUint64(b, mask)

	return binary.LittleEndian.AppendUint64(b, snap)
}

// compare asks librbd, by the maps, whether all objects are there: so they are read as they were meant.
func (im *Images) compare(ctx context.Context, at strategies.Ref, snap string, want []uint64) error {
	return im.reading(at, snap, func(image *rbd.Image) error {
		info, err := image.Stat()
		if err != nil {
			return err
		}
		have, err := numbers(ctx, image, info.Obj_size, rbd.ExcludeParent)
		if err != nil {
			return err
		}
		if missing := lacks(have, want); len(missing) > 0 {
			return refuse("compare "+at.String()+"@"+snap, worker.ReasonMismatch, worker.Retry,
				"%d of %d objects are not there, the first is %d", len(missing), len(want), missing[0])
		}

		return nil
	})
}
