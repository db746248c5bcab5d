package strategies

import (
	"context"
	"io"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/worker"
)

// Ref names an RBD image.
type Ref struct{ Pool, Image string }

// String is pool/image, as the rbd command writes it.
func (r Ref) String() string { return r.Pool + "/" + r.Image }

// SourceInfo is what a strategy needs to know of the volume's RBD image.
type SourceInfo struct {
	Size       int64 // bytes
	ObjectSize int64 // bytes
}

// Source reads the volume side of one Ceph cluster. Every method is idempotent, may be called concurrently for
// different images, does not retry, returns *Error, and returns soon after ctx is done.
type Source interface {
	// FSID is the cluster's id.
	FSID(ctx context.Context) (string, error)

	// Stat looks at the image. ReasonVolumeMissing when it is not there.
	Stat(ctx context.Context, src Ref) (SourceInfo, error)

	// Snapshot makes the snapshot unless it is there.
	Snapshot(ctx context.Context, src Ref, snap string) error

	// Protect protects the snapshot, also when an earlier unprotect was killed half-way.
	Protect(ctx context.Context, src Ref, snap string) error

	// Release unprotects and removes the snapshot, its remnant in the snapshot trash included. That the snapshot, or
	// the whole image, is not there is no error. It fails with Retry while a clone still depends on it.
	Release(ctx context.Context, src Ref, snap string) error

	// Inspect looks at the first bytes of the image as it was at the snapshot, and at few others, for formats that Glance
	// knows. It moves little, see imageformat.
	Inspect(ctx context.Context, src Ref, snap string) (imageformat.Finding, error)

	// Open reads the image as it was at the snapshot. Seekable any number of times; holes read as zeros. The caller
	// closes it. Reads end with an error once ctx is done.
	Open(ctx context.Context, src Ref, snap string) (Content, error)
}

// Content is an image's data. Size is in bytes.
type Content interface {
	io.ReadSeekCloser
	Size() int64

	// Allocated calls found for every part [from, to) in which something may exist, in ascending order, within the size;
	// everything else is zeros. It reads no data. An error of found ends it and is handed through.
	Allocated(found func(from, to int64) error) error
}

// Make describes the image to be made.
type Make struct {
	Src      Ref
	Snapshot string // on Src
	Dst      Ref
	Job      string // the mark: the image id, written into Dst's metadata

	// ObjectSize of Dst in bytes, a power of two; 0: like the source. A clone's can't be below its parent's (EINVAL),
	// so the larger of the two is taken.
	ObjectSize int64
}

// Destination makes the image side. Completeness is never inferred from size, parent or snapshot of Dst (half-made ones
// look complete), only from marks that the methods write into its metadata after the fact. A Dst without our mark that
// holds data or snapshots is foreign: ReasonConflict, and nothing is touched. Every method is idempotent also after
// its process was killed anywhere, does not retry, returns *Error, and returns soon after ctx is done.
//
// The mark also says of which snapshot Dst is made, by ids and not by name: after an undo that could not remove Dst, the
// next try makes another snapshot with the same name, and an image must not be made of two points in time. A Dst of
// another snapshot is outdated. While Src@Snapshot can't be found, nothing is.
type Destination interface {
	// Prepare says that Clone and Seal of m will follow soon, so that what takes long and does not depend on Src may begin.
	// It returns at once, changes nothing that anybody can see, and need not be called.
	Prepare(m Make)

	// Clone makes Dst a marked clone of Src@Snapshot with the features layering, exclusive-lock and deep-flatten and
	// nothing else, and without the source's conf_* metadata. What is half-made or outdated is replaced, even when it
	// is sealed: the caller knows that Glance does not use it.
	Clone(ctx context.Context, m Make) error

	// CopyObjects makes Dst a marked image without parent that holds the data of Src@Snapshot, holes kept. It goes on
	// where an earlier try ended. What is outdated is replaced, as by Clone.
	CopyObjects(ctx context.Context, m Make, p worker.Progress) error

	// Seal snapshots Dst as Glance's RBD store expects and protects the snapshot. Only a Dst that Clone or CopyObjects
	// finished is sealed; anything else, and what is outdated, is ReasonMismatch.
	Seal(ctx context.Context, m Make) error

	// Flatten detaches a sealed clone and its snapshot from the source: the same bytes at every instant, before,
	// during and after, and when killed. ReasonMismatch for what is not sealed or outdated, and nothing is touched.
	Flatten(ctx context.Context, m Make, p worker.Progress) error

	// Complete reports whether Dst is sealed, ours, not outdated, and (if flat) has no parent. It is asked before
	// registering.
	Complete(ctx context.Context, m Make, flat bool) (bool, error)

	// Discard removes Dst with its snapshot if it bears our mark, or is an empty remainder of our own try. That it is
	// not there is no error.
	Discard(ctx context.Context, m Make) error
}

// Store is one of Glance's stores.
type Store struct {
	ID        string
	Type      string // rbd, file, swift, …
	Default   bool
	FSID      string // of an RBD store; "" where Glance does not tell (before 2025.1)
	Pool      string
	ChunkSize int64 // bytes; the object size that this store uses
}

// Backend is where Cinder keeps a volume.
type Backend struct {
	FSID string
	Pool string
}

// Images is what strategies need of Glance. Methods may be called concurrently and return *Error.
type Images interface {
	// Image looks at the image. ReasonImageMissing when it is gone.
	Image(ctx context.Context, imageID string) (worker.Image, error)

	// Stores lists the stores with their properties; none when the cloud does not offer that.
	Stores(ctx context.Context) ([]Store, error)

	// Inspects reports whether Glance inspects the format of what is uploaded, as releases from 30.0.0 on do. Where that
	// can't be told it says yes.
	Inspects(ctx context.Context) (bool, error)

	// Register makes location the data of the queued image and returns when Glance shows the image active with it.
	// Idempotent: an image that is active with this location is success. It reads back whatever the answer was.
	// ReasonGlanceUnreadable when Glance could not open the RBD image behind it; ReasonImageMissing when the image is
	// gone (deleted by its user, perhaps in this very moment); ReasonImageState when it has other data.
	Register(ctx context.Context, imageID, location string, size int64) error

	// Upload sends body, of size bytes, as the image's data into the store ("" for the default), and verifies
	// afterwards that Glance has these bytes. Idempotent: an image that is active with them is success. body is read
	// from its start, perhaps more than once. progress may be nil.
	Upload(ctx context.Context, imageID, store string, body io.ReadSeeker, size int64, p worker.Progress) error
}

// Backends is what strategies need of Cinder.
type Backends interface {
	// Backend asks where the volumes of this host (host@backend#pool) are. The zero Backend when the cloud does not
	// tell. Idempotent, concurrent; *Error.
	Backend(ctx context.Context, host string) (Backend, error)
}
