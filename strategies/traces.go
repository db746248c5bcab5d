package strategies

import (
	"strings"
	"time"
)

// TraceKind says what kind of thing a job has left in Ceph; also a metric label.
type TraceKind string

// The kinds.
const (
	TraceSnapshot TraceKind = "snapshot"           // on a volume
	TraceRemnant  TraceKind = "snapshot-remnant"   // of a snapshot whose removal was cut short, or that has clones of format 2
	TraceImage    TraceKind = "image"              // an image that is being made, or was
	TraceRemains  TraceKind = "half-removed-image" // of an image whose removal was cut short: listed, but nobody can open it
)

// Trace is something in a pool that a job makes. Whether the job is still at it, the trace does not say.
type Trace struct {
	Kind    TraceKind
	ImageID string // of the job, by the name of the snapshot, or by the name and the mark of the image
	At      Ref    // the image that has the snapshot, or the image itself
	ID      string // RBD's internal id of At: an image in the trash may have the same name as another; "" when there is none
	Trashed bool   // At is in the trash, where Cinder moves volumes that still have snapshots

	Made     time.Time // by Ceph's clock; zero when Ceph does not know
	Marked   bool      // an image: it bears the job's mark; without, it is an empty remainder that any client may have left
	Users    []string  // an image: clients that have it open
	Children []Ref     // clones that depend on it
}

// String names the trace as the rbd command would.
func (t Trace) String() string {
	if t.Kind == TraceSnapshot || t.Kind == TraceRemnant {
		return t.At.String() + "@" + SourceSnapshot(t.ImageID)
	}

	return t.At.String()
}

// OfSnapshot recognises what SourceSnapshot made, and answers the image id.
func OfSnapshot(name string) (imageID string, ok bool) {
	id, ok := strings.CutPrefix(name, SourceSnapshot(""))

	return id, ok && IsImageID(id)
}

// IsImageID reports whether s has the one form in which Glance writes ids.
func IsImageID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, r := range s {
		switch i {
		case 8, 13, 18, 23:
			if r != '-' {
				return false
			}
		default:
			if (r < '0' || r > '9') && (r < 'a' || r > 'f') {
				return false
			}
		}
	}

	return true
}
