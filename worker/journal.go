package worker

import (
	"context"
	"encoding/json"
	"slices"
	"time"
)

// Result is how a job ended.
type Result string

// The results.
const (
	Done      Result = "done"      // the image is active and complete
	Failed    Result = "failed"    // it could not be made; the volume is free again
	Declined  Result = "declined"  // no strategy can serve it; handed back to Cinder
	Cancelled Result = "cancelled" // the image was deleted meanwhile
)

// Results lists them all, for metrics that have to be present at zero.
func Results() []Result { return []Result{Done, Failed, Declined, Cancelled} }

// Outcome is a result with its explanation.
type Outcome struct {
	Result   Result `json:"result"`
	Reason   Reason `json:"reason"`
	Message  string `json:"message,omitempty"` // for users and operators: what happened and what to do
	Strategy string `json:"strategy,omitempty"`
}

// RecordVersion is the highest that this release writes into Record.Version, and all that it understands. It goes up when an
// older release must not touch such a record any more; a field that an older one may ignore and lose does not need that.
// Before 1 no version was written. 2 is for images of other formats than raw, and for those in a container: a release that makes
// raw ones only would fill one with raw data after an adoption.
const RecordVersion = 2

// version is the lowest that a record of the job needs.
func (j Job) version() int {
	if j.DiskFormat == "raw" && j.ContainerFormat == "bare" {
		return 1
	}

	return RecordVersion
}

// Record is what the journal keeps of a job. What it says was done, was done; what it does not say may have been done
// all the same.
type Record struct {
	Version   int             `json:"version,omitempty"` // a greater one than RecordVersion is left alone
	Job       Job             `json:"job"`
	Strategy  string          `json:"strategy,omitempty"` // chosen; "" before
	Steps     []string        `json:"steps,omitempty"`    // that ended well, in order
	Begun     []string        `json:"begun,omitempty"`    // that may have left something; undone newest first
	Kept      json.RawMessage `json:"kept,omitempty"`     // Plan.Keep of the chosen strategy
	Committed bool            `json:"committed,omitempty"`
	Tried     []string        `json:"tried,omitempty"` // strategies given up

	LastError  string `json:"last_error,omitempty"`  // for which the last of Tried was given up
	LastReason Reason `json:"last_reason,omitempty"` // of LastError

	Doing  *Activity  `json:"doing,omitempty"`  // found by the next claim: its owner did not come back from it
	Deaths []Activity `json:"deaths,omitempty"` // that nobody came back from; forgotten once somebody does
	Aside  *Aside     `json:"aside,omitempty"`  // not nil: no worker takes the job for a while

	Verdict *Outcome  `json:"verdict,omitempty"` // not nil: given up; what was begun is undone, and then this is the outcome
	Left    []string  `json:"left,omitempty"`    // activities that were passed over; what they were to remove is still there
	Outcome *Outcome  `json:"outcome,omitempty"` // not nil: decided, tell everyone
	Settled []string  `json:"settled,omitempty"` // settling steps that ended well
	PutOff  int       `json:"put_off,omitempty"` // times that settling was put off
	Again   time.Time `json:"again,omitzero"`    // not before this time
	Closed  bool      `json:"closed,omitempty"`  // everyone was told; kept for duplicates and for operators

	Owner    string    `json:"owner,omitempty"` // worker that last held the lease
	Epoch    uint64    `json:"epoch"`           // goes up by one with each claim
	Accepted time.Time `json:"accepted"`
	Updated  time.Time `json:"updated"`

	// Stamp changes with everything that is written about the job, also when its lease is renewed: an owner that lives
	// changes it. Set by Load, never stored.
	Stamp uint64 `json:"-"`

	// Unreleased says that the last claim has not been released, as far as can be seen: it is held, or its owner died. Set
	// by Load, never stored.
	Unreleased bool `json:"-"`
}

// Activity is something that a worker does with a job. It is in the journal before it may leave anything behind.
type Activity struct {
	Name  string    `json:"name"` // a step, "facts", "undo-<step>" or "settle-<step>"
	Owner string    `json:"owner"`
	Since time.Time `json:"since"`
}

// Aside keeps a job from the workers because it killed several of them: taking it again would only kill more. An operator
// can find out why and let it be tried again, or end it; at Until it is ended by itself.
type Aside struct {
	Activity string    `json:"activity"` // in which they died
	Since    time.Time `json:"since"`
	Until    time.Time `json:"until"`
}

// Waits reports whether no worker may take the job up now.
func (r *Record) Waits(now time.Time) bool {
	return r.Version > RecordVersion || now.Before(r.Again) || r.Aside != nil && now.Before(r.Aside.Until)
}

// Died counts the workers that did not come back from an activity.
func (r *Record) Died(activity string) int {
	n := 0
	for _, d := range r.Deaths {
		if d.Name == activity {
			n++
		}
	}

	return n
}

// HasStep reports whether the journal knows the step as done.
func (r *Record) HasStep(name string) bool { return slices.Contains(r.Steps, name) }

// Journal keeps the records of all jobs. Its methods may be called concurrently; none retries. All errors that are not
// named here are *Error.
type Journal interface {
	// Create writes a record that is not there yet, durably, in one atomic operation. ErrExists when there is one
	// under this key already, whoever wrote it. When the answer is lost, a second Create tells: ErrExists.
	Create(ctx context.Context, r Record) error

	// Load reads a record without a lease. ErrNotFound when there is none. Of a newer one it answers what it can read.
	Load(ctx context.Context, key string) (Record, error)

	// Keys lists the keys of all records, open and closed, in no order. A record created meanwhile may be missing.
	Keys(ctx context.Context) ([]string, error)

	// Claim takes the lease on a job and on its volume for ttl, makes sure that the owner before can do no more harm
	// (fences it), raises the epoch and answers the record as it is then. ErrHeld while somebody else has either
	// lease, which costs a few reads and no write: every worker asks for every open job with each scan. ErrNewer for a
	// record of a later version. It leaves no lease behind when it returns an error. Each claim has a connection of
	// its own to the cluster, and may wait for one before it takes a lease.
	Claim(ctx context.Context, key string) (Claim, error)

	// Remove deletes a record that is closed, in one atomic operation. An open one stays, with ReasonConflict: two
	// workers may find the same old record, and when the second comes a new request may have its key. Removing what is
	// not there is no error.
	Remove(ctx context.Context, key string) error

	// Watch calls hint soon after any worker has released a claim whose record, as last saved, is open, until ctx ends,
	// whose error it then returns. It is a hint: one may be lost, come twice or for nothing. It gets over failures by
	// itself. hint must not block.
	Watch(ctx context.Context, hint func()) error
}

// Claim is a record under lease. It is used by one goroutine, except Renew, which may run beside the others.
type Claim interface {
	// Record is the record as it was when the claim was made.
	Record() Record

	// Taken is just before the lease was asked for: it ends its full time after that at the earliest.
	Taken() time.Time

	// Park says that the job is going to wait for something else than the cluster. The claim gives its connection up as soon
	// as it has nothing under way, and makes another for whatever is done with it next; the lease stays. It does not block,
	// and it is idempotent.
	Park()

	// Save replaces the record durably. ErrLeaseLost when another owner has written since. An error that is not
	// ErrLeaseLost leaves it open whether the record was written; saving the same again is right.
	Save(ctx context.Context, r Record) error

	// Renew extends both leases by their full time. ErrLeaseLost once they have expired, even when nobody took them. It
	// returns soon after ctx is done, also while the cluster does not answer and while another method is at work: Hold
	// waits for it before it gives the job up.
	Renew(ctx context.Context) error

	// Release gives both leases back and closes the claim's connection; nothing may be used after it. Idempotent. An
	// error means that the leases end by themselves when their time is up.
	Release(ctx context.Context) error
}
