package ceph

import (
	"fmt"
	"strings"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Marks in the metadata of an image. Each has the value "<job> <internal id of the image>"; one that carries another id
// was inherited from a parent and means nothing. The first also says of which snapshot the image is made: " <internal id
// of the volume>@<id of the snapshot>", which no other snapshot will ever have.
const (
	markPrefix    = "cinderlift."
	markJob       = markPrefix + "job"       // made for this job; on a clone: the clone is complete
	markCopied    = markPrefix + "copied"    // all objects are there
	markSealed    = markPrefix + "sealed"    // Glance's snapshot is there and protected
	markDiscarded = markPrefix + "discarded" // being removed: no other mark counts any more
)

// confPrefix begins metadata that librbd takes as configuration of the image, such as the volume's QoS limits.
const confPrefix = "conf_"

// standing is whose an image is.
type standing int

const (
	absent    standing = iota
	nameless           // listed, but without a header: half removed or half made
	remainder          // without our mark and without anything in it: a killed try of ours
	foreign            // somebody else's
	occupied           // would be a remainder, but somebody has it open
	ours
)

// view is an image of the destination as it was found.
type view struct {
	standing  standing
	id        string // internal id of the image; this and what follows only of one that is ours
	features  uint64
	dataPool  int64
	watched   bool // somebody has it open for writing
	copied    bool
	marked    bool   // as sealed
	sealed    bool   // marked so, and the snapshot is there and protected
	snap      uint64 // id of that snapshot
	discarded bool
	outdated  bool   // made of another snapshot than the one that has the name now; only onCurrent finds that out
	parent    bool   // the head or the snapshot still has one
	source    string // of which snapshot it is made
	job       string // of another mark, for the operator
}

// finished reports whether the image holds all its data, itself or through its parent, and may be kept.
func (v view) finished() bool {
	return v.standing == ours && !v.discarded && !v.outdated && (v.copied || v.sealed || v.parent)
}

// origin is the snapshot that m.Snapshot names now, "" when it is not there.
func (im *Images) origin(m strategies.Make) (string, error) {
	var found string
	err := im.reading(m.Src, rbd.NoSnapshot, func(image *rbd.Image) error {
		id, err := image.GetId()
		if err != nil {
			return err
		}
		snap, err := image.GetSnapID(m.Snapshot)
		found = identity(id, snap)

		return err
	})
	if is(err, enoent) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("look at %s@%s: %w", m.Src, m.Snapshot, err)
	}

	return found, nil
}

func identity(image string, snap uint64) string { return fmt.Sprintf("%s@%d", image, snap) }

// look finds out what there is under the name of Dst.
func (im *Images) look(io *rados.IOContext, m strategies.Make) (view, error) {
	var v view
	err := with(io, func(image *rbd.Image) (err error) {
		v, err = im.examine(image, m)

		return err
	})(rbd.OpenImageReadOnly(io, m.Dst.Image, rbd.NoSnapshot))
	if is(err, enoent) {
		there, err := listed(io, m.Dst.Image)
		if there {
			return view{standing: nameless}, err
		}

		return view{standing: absent}, err
	}
	if err != nil {
		return view{}, fmt.Errorf("look at %s: %w", m.Dst, err)
	}

	return v, nil
}

func (im *Images) examine(image *rbd.Image, m strategies.Make) (view, error) {
	id, err := image.GetId()
	if err != nil {
		return view{}, err
	}
	meta, err := image.ListMetadata()
	if err != nil {
		return view{}, err
	}
	job, marked := readMark(meta, markJob, id)
	if !marked || job != m.Job {
		s, err := im.judge(image, marked)

		return view{standing: s, job: job}, err
	}
	v, err := shape(image, id)
	if err != nil {
		return view{}, err
	}
	if fields := strings.Fields(meta[markJob]); len(fields) > 2 {
		v.source = fields[2]
	}
	_, v.copied = readMark(meta, markCopied, id)
	_, v.discarded = readMark(meta, markDiscarded, id)
	if _, v.marked = readMark(meta, markSealed, id); v.marked {
		if v.sealed, err = protected(image, strategies.GlanceSnapshot); err != nil {
			return view{}, err
		}
		if v.snap, err = image.GetSnapID(strategies.GlanceSnapshot); err != nil && !is(err, enoent) {
			return view{}, err
		}
	}
	v.parent, err = hasParent(image, v.sealed)

	return v, err
}

// shape is what an image of ours is like.
func shape(image *rbd.Image, id string) (v view, err error) {
	v = view{standing: ours, id: id}
	if v.features, err = image.GetFeatures(); err != nil {
		return v, err
	}
	if v.dataPool, err = image.GetDataPoolID(); err != nil {
		return v, err
	}
	watchers, err := image.ListWatchers() // we have opened it read-only and do not watch
	v.watched = len(watchers) > 0

	return v, err
}

// judge tells foreign images from what a killed clone or create of ours leaves: no data, no snapshot, nobody who has it
// open. Glance makes an empty image as well before it writes into it, but then Glance has it open.
func (im *Images) judge(image *rbd.Image, marked bool) (standing, error) {
	if marked {
		return foreign, nil
	}
	snaps, err := image.GetSnapshotNames()
	if err != nil || len(snaps) > 0 {
		return foreign, err
	}
	size, err := image.GetSize()
	if err != nil {
		return foreign, err
	}
	data := false
	err = exists(im.ctx, image, 0, int64(size), rbd.ExcludeParent, func(int64, int64) { data = true })
	if err != nil || data {
		return foreign, err
	}
	watchers, err := image.ListWatchers() // we have opened it read-only and do not watch
	if err != nil || len(watchers) > 0 {
		return occupied, err
	}

	return remainder, nil
}

// protected reports whether the snapshot is there and protected.
func protected(image *rbd.Image, snap string) (bool, error) {
	yes, err := image.GetSnapshot(snap).IsProtected()
	if is(err, enoent) {
		return false, nil
	}

	return yes, err
}

// hasParent looks at the head's own header, and at the snapshot's when there is one: nothing else tells that an image is
// flat. The children list of the parent loses its entry before the flatten has ended.
func hasParent(image *rbd.Image, sealed bool) (bool, error) {
	for _, snap := range []string{rbd.NoSnapshot, strategies.GlanceSnapshot} {
		if snap != rbd.NoSnapshot && !sealed {
			continue
		}
		if err := image.SetSnapshot(snap); err != nil {
			return false, err
		}
		_, err := image.GetParent()
		if err == nil {
			return true, nil
		}
		if !is(err, enoent) {
			return false, err
		}
	}

	return false, nil
}

func readMark(meta map[string]string, key, id string) (job string, valid bool) {
	fields := strings.Fields(meta[key])
	if len(fields) < 2 {
		return "", false
	}

	return fields[0], fields[1] == id
}

func setMark(image *rbd.Image, key, job string) error { return writeMark(image, key, job, "") }

// setMade says for which job and of which snapshot the image is made.
func setMade(image *rbd.Image, job, source string) error {
	return writeMark(image, markJob, job, " "+source)
}

func writeMark(image *rbd.Image, key, job, rest string) error {
	id, err := image.GetId()
	if err == nil {
		err = image.SetMetadata(key, job+" "+id+rest)
	}
	if err != nil {
		return fmt.Errorf("mark the image with %s: %w", key, err)
	}

	return nil
}

// clean removes what librbd has copied from the volume: its configuration, and marks of another image.
func clean(image *rbd.Image) error {
	id, err := image.GetId()
	if err != nil {
		return err
	}
	meta, err := image.ListMetadata()
	if err != nil {
		return fmt.Errorf("list the metadata: %w", err)
	}
	for key := range meta {
		_, valid := readMark(meta, key, id)
		if !strings.HasPrefix(key, confPrefix) && (valid || !strings.HasPrefix(key, markPrefix)) {
			continue
		}
		if err := image.RemoveMetadata(key); err != nil && !is(err, enoent) {
			return fmt.Errorf("remove the metadata %s: %w", key, err)
		}
	}

	return nil
}

// mine answers an error unless Dst may be worked on.
func (v view) mine(op string, m strategies.Make) error {
	switch v.standing {
	case foreign:
		return refuse(op, worker.ReasonConflict, worker.GiveUp,
			"%s holds data or snapshots and was not made for job %s (mark: %q); look whose it is and remove it", m.Dst, m.Job, v.job)
	case occupied:
		return refuse(op, worker.ReasonConflict, worker.Retry, "%s is empty but somebody has it open: %w", m.Dst, error(ebusy))
	default:
		return nil
	}
}
