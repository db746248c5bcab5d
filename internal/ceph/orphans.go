package ceph

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
)

// Opening an image costs about ten operations, and pools have ten thousand of them. So what is looked through first is
// what RBD keeps in omap, one operation for each image, and only what has one of our names there is opened (ceph 16.2.15,
// the same in 18.2):
//
//	rbd_directory    id_<id>: the name; name_<name>: the id (cls/rbd/cls_rbd.cc:150, 2780 dir_add_image_helper)
//	rbd_trash        id_<id>: source and name (cls/rbd/cls_rbd_types.h TrashImageSpec)
//	rbd_header.<id>  snapshot_<id>: the name is in it as it is, also for one in the snapshot trash; metadata_<key>
const (
	directoryObject = "rbd_directory"
	trashObject     = "rbd_trash"
	headerPrefix    = "rbd_header." // include/rbd_types.h RBD_HEADER_PREFIX
	idPrefix        = "id_"
	namePrefix      = "name_"
	snapPrefix      = "snapshot_"
	metaPrefix      = "metadata_"

	omapPage = 1000 // osd_max_omap_entries_per_request is 1024

	trashRemoving = 3 // rbd/librbd.h:307 RBD_TRASH_IMAGE_SOURCE_REMOVING: no list of the trash shows it, but its name is still taken
)

// headersPerSecond bounds what looking through a pool costs the OSDs.
const headersPerSecond = 2000

// maxBroken is how many images of a pool may be unreadable before looking through it ends.
const maxBroken = 10

// item is an image as a pool knows it.
type item struct {
	id, name string
	trashed  bool // by a user
	removing bool // half removed
}

// header is what of an image's header tells whether it has anything of ours.
type header struct {
	missing bool
	snaps   bool   // some snapshot bears our prefix
	mark    string // as it is: may be another image's
}

// Traces looks through a pool for what jobs make: snapshots of ours on any image, those in the trash included, and images
// that are named after their job and bear its mark. Of images without a mark it answers those that are named by an id
// that suspect knows and that nobody can open. It changes nothing, opens next to nothing, and takes some time: seen is
// told how far it is. suspect and seen may be called from another goroutine, seen also once after Traces has returned.
// With an error the traces that were found are answered as well.
func (im *Images) Traces(
	ctx context.Context, pool string, suspect func(imageID string) bool, seen func(done, total int),
) ([]strategies.Trace, error) {
	found := make(chan []strategies.Trace, 1) // not shared memory: the call may linger
	err := im.do(ctx, "look through pool "+pool, strategies.Ref{Pool: pool}, func(ctx context.Context) error {
		return im.pool(pool, func(io *rados.IOContext) error {
			list, err := im.traces(ctx, io, pool, suspect, seen)
			found <- list

			return err
		})
	})
	select {
	case list := <-found:
		return list, err
	default:
		return nil, err
	}
}

func (im *Images) traces(
	ctx context.Context, io *rados.IOContext, pool string, suspect func(string) bool, seen func(done, total int),
) ([]strategies.Trace, error) {
	all, err := items(io)
	if err != nil {
		return nil, err
	}
	var list []strategies.Trace
	var broken []error
	start := time.Now()
	for i, e := range all {
		if err := pace(ctx, start, i); err != nil {
			return list, err
		}
		some, err := im.tracesOf(io, pool, e, suspect)
		if err != nil {
			broken = append(broken, fmt.Errorf("look at %s/%s, id %s: %w", pool, e.name, e.id, err))
		}
		if len(broken) == maxBroken {
			break
		}
		list = append(list, some...)
		seen(i+1, len(all))
	}

	return list, errors.Join(broken...)
}

// pace waits until the n-th image may be looked at.
func pace(ctx context.Context, start time.Time, n int) error {
	due := start.Add(time.Duration(n) * time.Second / headersPerSecond)
	if wait := time.Until(due); wait > 10*time.Millisecond {
		return pause(ctx, wait)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	return nil
}

// items lists the images of a pool, those in the trash included.
func items(io *rados.IOContext) ([]item, error) {
	var list []item
	err := eachKey(io, directoryObject, func(id string, value []byte) {
		name, _ := text(value)
		list = append(list, item{id: id, name: name})
	})
	if err != nil {
		return nil, fmt.Errorf("list the images: %w", err)
	}
	err = eachKey(io, trashObject, func(id string, value []byte) {
		if source, name, ok := trashSpec(value); ok {
			list = append(list, item{id: id, name: name, trashed: source != trashRemoving, removing: source == trashRemoving})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list the trash: %w", err)
	}

	return list, nil
}

// eachKey goes through the ids of a directory.
func eachKey(io *rados.IOContext, object string, fn func(id string, value []byte)) error {
	all, err := io.GetAllOmapValues(object, "", idPrefix, omapPage)
	if is(err, enoent) {
		return nil
	}
	for key, value := range all {
		fn(key[len(idPrefix):], value)
	}

	return err
}

// text decodes a string as Ceph encodes it, and answers what follows.
func text(b []byte) (string, []byte) {
	if len(b) < 4 {
		return "", nil
	}
	n := int(binary.LittleEndian.Uint32(b))
	if n > len(b)-4 {
		return "", nil
	}

	return string(b[4 : 4+n]), b[4+n:]
}

// trashSpec decodes the beginning of an entry of the trash: two bytes of version, four of length, the source, the name.
func trashSpec(b []byte) (source int, name string, ok bool) {
	if len(b) < 7 {
		return 0, "", false
	}
	name, _ = text(b[7:])

	return int(b[6]), name, name != ""
}

// readHeader is one operation for nearly every image.
func readHeader(io *rados.IOContext, id string) (header, error) {
	var h header
	for after := ""; ; {
		op := rados.CreateReadOp()
		snaps := op.GetOmapValues(after, snapPrefix, omapPage)
		meta := op.GetOmapValuesByKeys([]string{metaPrefix + markJob})
		err := op.Operate(io, headerPrefix+id, rados.OperationNoFlag)
		if is(err, enoent) {
			op.Release()

			return header{missing: true}, nil
		}
		if err == nil {
			after, err = h.read(snaps, meta)
		}
		op.Release()
		if err != nil || after == "" {
			return h, err
		}
	}
}

// read takes what one operation has brought, and answers the key after which there is more.
func (h *header) read(snaps *rados.GetOmapStep, meta *rados.ReadOpOmapGetValsByKeysStep) (after string, err error) {
	last := ""
	for {
		kv, err := snaps.Next()
		if err != nil {
			return "", err
		}
		if kv == nil {
			break
		}
		last = kv.Key
		h.snaps = h.snaps || bytes.Contains(kv.Value, []byte(markPrefix))
	}
	values, err := collect(meta)
	if err != nil {
		return "", err
	}
	h.mark = values[metaPrefix+markJob]
	if !snaps.More() {
		return "", nil
	}

	return last, nil
}

// tracesOf looks at one image.
func (im *Images) tracesOf(
	io *rados.IOContext, pool string, e item, suspect func(string) bool,
) ([]strategies.Trace, error) {
	h, err := readHeader(io, e.id)
	if err != nil {
		return nil, err
	}
	var list []strategies.Trace
	if h.snaps && !e.removing { // whoever finishes a removal removes the snapshots with the image
		if list, err = snapshotsOf(io, pool, e); err != nil {
			return nil, err
		}
	}
	job, marked := readMark(map[string]string{markJob: h.mark}, markJob, e.id)
	ours := marked && job == e.name || (h.missing || e.removing) && suspect(e.name)
	if e.trashed || !ours || !strategies.IsImageID(e.name) {
		return list, nil
	}
	t, there, err := im.lookAtImage(io, strategies.Trace{
		Kind: strategies.TraceImage, ImageID: e.name, At: strategies.Ref{Pool: pool, Image: e.name}, ID: e.id,
	})
	if there {
		t.Marked = t.Marked || marked
		list = append(list, t)
	}

	return list, err
}

// snapshotsOf lists the snapshots of ours on an image, which is opened by its id: it may be in the trash.
func snapshotsOf(io *rados.IOContext, pool string, e item) ([]strategies.Trace, error) {
	var list []strategies.Trace
	err := with(io, func(image *rbd.Image) error {
		snaps, err := image.GetSnapshotNames()
		if err != nil {
			return fmt.Errorf("list the snapshots: %w", err)
		}
		for _, s := range snaps {
			t, ok, err := snapshotTrace(image, s)
			if err != nil {
				return fmt.Errorf("look at snapshot %d: %w", s.Id, err)
			}
			if ok {
				t.At, t.ID, t.Trashed = strategies.Ref{Pool: pool, Image: e.name}, e.id, e.trashed
				list = append(list, t)
			}
		}

		return nil
	})(rbd.OpenImageByIdReadOnly(io, e.id, rbd.NoSnapshot))
	if is(err, enoent) {
		return nil, nil // removed meanwhile
	}

	return list, err
}

// snapshotTrace is false for a snapshot that is not ours.
func snapshotTrace(image *rbd.Image, s rbd.SnapInfo) (strategies.Trace, bool, error) {
	t := strategies.Trace{Kind: strategies.TraceSnapshot}
	kind, err := image.GetSnapNamespaceType(s.Id)
	if err != nil {
		return t, false, err
	}
	name := s.Name
	switch kind {
	case rbd.SnapNamespaceTypeUser:
	case rbd.SnapNamespaceTypeTrash:
		t.Kind = strategies.TraceRemnant
		if name, err = image.GetSnapTrashNamespace(s.Id); err != nil {
			return t, false, err
		}
	default:
		return t, false, nil
	}
	id, ok := strategies.OfSnapshot(name)
	if !ok {
		return t, false, nil
	}
	t.ImageID = id
	made, err := image.GetSnapTimestamp(s.Id)
	if err != nil {
		return t, false, err
	}
	t.Made = timeOf(made)
	t.Children, err = children(image, s.Id)

	return t, err == nil, err
}

func timeOf(ts rbd.Timespec) time.Time { return time.Unix(ts.Sec, ts.Nsec).UTC() }

// children lists the clones of a snapshot. One that is half-made, or half-removed, can't be selected, and nobody can
// have made a clone of it.
func children(image *rbd.Image, snap uint64) ([]strategies.Ref, error) {
	err := image.SetSnapByID(snap)
	if is(err, enoent) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("select the snapshot: %w", err)
	}
	specs, err := image.ListChildrenAttributes()
	if err != nil {
		return nil, fmt.Errorf("list its clones: %w", err)
	}
	var list []strategies.Ref
	for _, s := range specs {
		list = append(list, strategies.Ref{Pool: s.PoolName, Image: s.ImageName})
	}

	return list, image.SetSnapshot(rbd.NoSnapshot)
}

// Look looks again at a trace, or at the image that a job is to make (Kind TraceImage): false when there is nothing of
// the job any more, or something that is not the job's.
func (im *Images) Look(ctx context.Context, t strategies.Trace) (strategies.Trace, bool, error) {
	type answer struct {
		trace strategies.Trace
		there bool
	}
	found := make(chan answer, 1)
	err := im.do(ctx, "look at "+t.String(), t.At, func(context.Context) error {
		return im.pool(t.At.Pool, func(io *rados.IOContext) error {
			now, there, err := im.again(io, t)
			found <- answer{now, there}

			return err
		})
	})
	if err != nil {
		return t, false, err
	}
	a := <-found

	return a.trace, a.there, nil
}

func (im *Images) again(io *rados.IOContext, t strategies.Trace) (strategies.Trace, bool, error) {
	if t.Kind == strategies.TraceImage || t.Kind == strategies.TraceRemains {
		return im.lookAtImage(io, t)
	}
	list, err := snapshotsOf(io, t.At.Pool, item{id: t.ID, name: t.At.Image, trashed: t.Trashed})
	for _, now := range list {
		if now.ImageID == t.ImageID {
			return now, true, err
		}
	}

	return t, false, err
}

// lookAtImage finds out what there is under the name of a job's image, in the way in which Discard does before it removes
// it.
func (im *Images) lookAtImage(io *rados.IOContext, t strategies.Trace) (strategies.Trace, bool, error) {
	v, err := im.look(io, strategies.Make{Dst: t.At, Job: t.ImageID})
	if err != nil {
		return t, false, err
	}
	t.Kind, t.Marked = strategies.TraceImage, v.standing == ours
	t.Made, t.Users, t.Children = time.Time{}, nil, nil
	switch v.standing {
	case absent, foreign:
		return t, false, nil
	case nameless:
		t.Kind = strategies.TraceRemains
		err := byID(io, t.ID, func(image *rbd.Image) error { return describe(image, &t) })

		return t, true, err
	}
	err = with(io, func(image *rbd.Image) error {
		return describe(image, &t)
	})(rbd.OpenImageReadOnly(io, t.At.Image, rbd.NoSnapshot))
	if is(err, enoent) {
		return t, false, nil // it goes right now
	}

	return t, true, err
}

// byID runs fn on an image that nobody finds by its name, unless its header is gone.
func byID(io *rados.IOContext, id string, fn func(*rbd.Image) error) error {
	if id == "" {
		return nil
	}
	err := with(io, fn)(rbd.OpenImageByIdReadOnly(io, id, rbd.NoSnapshot))
	if is(err, enoent) {
		return nil
	}

	return err
}

// describe adds what the image itself tells.
func describe(image *rbd.Image, t *strategies.Trace) error {
	made, err := image.GetCreateTimestamp()
	if err != nil {
		return fmt.Errorf("ask when it was made: %w", err)
	}
	if t.ID, err = image.GetId(); err != nil {
		return fmt.Errorf("ask for its id: %w", err)
	}
	t.Made = timeOf(made)
	watchers, err := image.ListWatchers() // we have opened it read-only and do not watch
	if err != nil {
		return fmt.Errorf("list its watchers: %w", err)
	}
	for _, w := range watchers {
		t.Users = append(t.Users, w.Addr)
	}
	snaps, err := image.GetSnapshotNames()
	if err != nil {
		return fmt.Errorf("list its snapshots: %w", err)
	}
	for _, s := range snaps {
		clones, err := children(image, s.Id)
		if err != nil {
			return err
		}
		t.Children = append(t.Children, clones...)
	}

	return nil
}
