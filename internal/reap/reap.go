package reap

import (
	"context"
	"log/slog"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Kind says what was found; also a metric label.
type Kind string

// The kinds. Those of traces are the strategies' own.
const (
	Snapshot   = Kind(strategies.TraceSnapshot)
	Remnant    = Kind(strategies.TraceRemnant)
	Image      = Kind(strategies.TraceImage)
	Remains    = Kind(strategies.TraceRemains)
	Unfinished = Kind("glance-image")  // an image in Glance that will never have data
	IndexKey   = Kind("index-key")     // a key of the journal without a record
	VolumeLock = Kind("volume-lock")   // the object of a lock that nobody holds
	Record     = Kind("record")        // of the journal, which can't be read
	Uploading  = Kind("uploading")     // a volume in that state for which no job is open
	Unseen     = Kind("not-looked-at") // a pool or a service that did not answer
)

// Kinds lists them all.
func Kinds() []Kind {
	return []Kind{Snapshot, Remnant, Image, Remains, Unfinished, IndexKey, VolumeLock, Record, Uploading, Unseen}
}

// Action is what a round does, or did.
type Action string

// The actions.
const (
	Remove  Action = "remove"  // a dry run would
	Removed Action = "removed" // done
	Failed  Action = "failed"  // tried; the next round tries again
	Wait    Action = "wait"    // not now: too young, or somebody is at it, or somebody did not answer
	Look    Action = "look"    // nothing that may be removed; a person should look at it
)

// Finding is one thing that was found.
type Finding struct {
	Kind    Kind      `json:"kind"`
	ImageID string    `json:"image_id,omitempty"` // of the job
	Where   string    `json:"where"`              // pool/image@snapshot, or what the kind is about
	Made    time.Time `json:"made,omitzero"`      // by Ceph's clock
	Action  Action    `json:"action"`
	Why     string    `json:"why,omitempty"`
}

// Cluster finds traces; see internal/ceph for the contract. Methods change nothing, may be called concurrently, do not
// retry and return *worker.Error.
type Cluster interface {
	// Traces looks through a pool. Of images without a mark it answers those that nobody can open and whose name
	// suspect knows. What was found is answered with an error as well. suspect and seen may be called from another
	// goroutine.
	Traces(
		ctx context.Context, pool string, suspect func(imageID string) bool, seen func(done, total int),
	) ([]strategies.Trace, error)

	// Look looks again at a trace, or (Kind TraceImage) at where a job makes its image: false when there is nothing of
	// the job.
	Look(ctx context.Context, t strategies.Trace) (strategies.Trace, bool, error)
}

// Locks is what a reaper needs of the journal beside worker.Journal. Methods do not retry and return *worker.Error.
type Locks interface {
	// Turn reports whether it is this caller's turn, which is given once in every for the whole pool of workers.
	Turn(ctx context.Context, every time.Duration) (bool, error)

	// Locks lists the volumes whose lock object is there although nobody holds it: of these, or with nil of all, which
	// is expensive.
	Locks(ctx context.Context, volumeIDs []string) ([]string, error)

	// RemoveLock removes such an object, unless somebody took the lock. Idempotent.
	RemoveLock(ctx context.Context, volumeID string) error
}

// Images is what a reaper needs of Glance. Methods do not retry and return *worker.Error.
type Images interface {
	// Image looks at the image. ReasonImageMissing only when Glance itself says that there is none.
	Image(ctx context.Context, id string) (worker.Image, error)

	// Discard deletes the image unless it is active. Idempotent.
	Discard(ctx context.Context, id string) error
}

// Upload is a volume in the state `uploading`.
type Upload struct {
	VolumeID string
	Image    string    // its RBD image
	Since    time.Time // when Cinder last changed it
}

// Volumes is what a reaper needs of Cinder. Methods do not retry and return *worker.Error.
type Volumes interface {
	// Volume looks at a volume. ReasonVolumeMissing only when Cinder itself says that there is none.
	Volume(ctx context.Context, id string) (worker.Volume, error)

	// Uploads lists the volumes of all projects that are `uploading`.
	Uploads(ctx context.Context) ([]Upload, error)
}

// Reaper looks for orphans. All fields but the last group must be set. Rounds of one Reaper run one after the other.
type Reaper struct {
	Journal worker.Journal
	Locks   Locks
	Images  Images
	Volumes Volumes

	// Open connects for one round. The connection is closed after it.
	Open func(context.Context) (Cluster, func(), error)

	// Hands answers what works in Ceph over the claim's connection, which a successor fences.
	Hands func(worker.Claim) (strategies.Source, strategies.Destination)

	// Pools lists the pools to look through, beside those that the journal's records name. With an error it answers
	// those that it knows.
	Pools func(context.Context) ([]string, error)

	FSID string // of the cluster

	// VolumeID finds the volume's id in the name of its RBD image; "" when it holds none.
	VolumeID func(image string) string

	Age      time.Duration // younger traces are left alone; default 1 h
	DryRun   bool          // only look
	Only     []string      // image ids; empty: all. Who names one vouches that no other cloud uses it.
	Thorough bool          // list the journal's whole namespace, which costs the OSDs a walk over its pool
	Lease    worker.LeaseTimes
	Progress func(what string, done, total int) // may be nil; called from any goroutine
	Logger   *slog.Logger                       // nil: discards

	good map[string]time.Time // images that were found active with our data, and until when that is taken for granted
}

func (r *Reaper) withDefaults() {
	if r.Age == 0 {
		r.Age = time.Hour
	}
	if r.Progress == nil {
		r.Progress = func(string, int, int) {}
	}
	if r.Logger == nil {
		r.Logger = slog.New(slog.DiscardHandler)
	}
	if r.good == nil {
		r.good = map[string]time.Time{}
	}
}
