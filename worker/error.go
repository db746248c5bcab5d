package worker

import (
	"context"
	"errors"
	"fmt"
)

// Reason says in one word why something failed. The set is closed: it is the value of the metric label `reason`, and
// operators write alerts on it.
type Reason string

// The reasons. Reasons() lists them in this order.
const (
	ReasonNone              Reason = "none"               // it did not fail
	ReasonBadRequest        Reason = "bad-request"        // the message is not a request that we understand
	ReasonConflict          Reason = "conflict"           // the request contradicts an earlier one, or something foreign bears our name
	ReasonVolumeMissing     Reason = "volume-missing"     // Cinder or Ceph does not have the volume
	ReasonVolumeState       Reason = "volume-state"       // the volume is not in the state `uploading`
	ReasonImageMissing      Reason = "image-missing"      // Glance does not have the image; mostly its user deleted it
	ReasonImageState        Reason = "image-state"        // the image is not `queued`
	ReasonNotOwner          Reason = "not-owner"          // volume, image and request belong to different projects
	ReasonNotApplicable     Reason = "not-applicable"     // no strategy can serve the job
	ReasonCephUnavailable   Reason = "ceph-unavailable"   // Ceph did not answer, or not in time
	ReasonCephRefused       Reason = "ceph-refused"       // Ceph answered no: caps, or a state that it does not allow
	ReasonPoolFull          Reason = "pool-full"          // no space or quota left in a pool
	ReasonGlanceUnavailable Reason = "glance-unavailable" // Glance or Keystone did not answer, or with 5xx
	ReasonGlanceRefused     Reason = "glance-refused"     // Glance answered no: policy, quota, configuration
	ReasonGlanceUnreadable  Reason = "glance-unreadable"  // Glance can't open the RBD image that we offered it
	ReasonGlanceFull        Reason = "glance-full"        // Glance takes no more data: a quota, or its store is full
	ReasonFormatRefused     Reason = "format-refused"     // the volume holds what Glance, or the operator, does not let become an image
	ReasonCinderUnavailable Reason = "cinder-unavailable" // Cinder did not answer, or with 5xx
	ReasonCinderRefused     Reason = "cinder-refused"     // Cinder answered no
	ReasonBusUnavailable    Reason = "bus-unavailable"    // the broker is away or did not confirm
	ReasonMismatch          Reason = "mismatch"           // what was made is not what was to be made: size, checksum, objects
	ReasonLeaseLost         Reason = "lease-lost"         // another worker may own the job by now
	ReasonStopping          Reason = "stopping"           // this worker is being stopped
	ReasonStalled           Reason = "stalled"            // a step hung, and goes on over another connection
	ReasonAttempts          Reason = "attempts"           // tried too often, or kills every worker that tries
	ReasonInternal          Reason = "internal"           // a bug of ours
)

// Reasons lists every reason, for metrics that have to be present at zero.
func Reasons() []Reason {
	return []Reason{
		ReasonNone, ReasonBadRequest, ReasonConflict, ReasonVolumeMissing, ReasonVolumeState, ReasonImageMissing,
		ReasonImageState, ReasonNotOwner, ReasonNotApplicable, ReasonCephUnavailable, ReasonCephRefused, ReasonPoolFull,
		ReasonGlanceUnavailable, ReasonGlanceRefused, ReasonGlanceUnreadable, ReasonGlanceFull, ReasonFormatRefused,
		ReasonCinderUnavailable, ReasonCinderRefused, ReasonBusUnavailable, ReasonMismatch, ReasonLeaseLost, ReasonStopping,
		ReasonStalled, ReasonAttempts, ReasonInternal,
	}
}

// Advice says what helps after an error. The zero value is GiveUp: an adapter has to know to promise more.
type Advice int

// The advices.
const (
	GiveUp   Advice = iota // trying again gives the same answer, and so does another strategy
	Retry                  // the same step may work later; the outcome of this try may be unknown
	OtherWay               // this strategy can't do it, another may
	StandBy                // the job is not ours any more, or must wait for another worker: touch nothing
)

// Error is the one error type of cinderlift.
type Error struct {
	Op     string // what was tried, with the ids that matter: "clone volumes/volume-1@s to images/2"
	Reason Reason
	Advice Advice
	Err    error // the cause; may be nil
}

// Error says what was tried and why it failed.
func (e *Error) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("%s: %s", e.Op, e.Reason)
	}

	return fmt.Sprintf("%s: %s", e.Op, e.Err)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// ReasonOf gives the reason of the outermost Error in err's chain: ReasonNone for nil, ReasonInternal for an error
// that no adapter has classified. A context that ended counts as the reason it was ended for.
func ReasonOf(err error) Reason {
	var e *Error
	switch {
	case err == nil:
		return ReasonNone
	case errors.As(err, &e):
		return e.Reason
	case errors.Is(err, ErrLeaseLost):
		return ReasonLeaseLost
	case errors.Is(err, ErrStopping), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return ReasonStopping
	default:
		return ReasonInternal
	}
}

// AdviceOf gives the advice of the outermost Error in err's chain; GiveUp for an error that no adapter has classified.
func AdviceOf(err error) Advice {
	var e *Error
	if errors.As(err, &e) {
		return e.Advice
	}

	return GiveUp
}

// NotApplicable is what Strategy.Plan answers when it can't serve a task; why is a sentence for the operator.
func NotApplicable(strategy, why string) error {
	return &Error{Op: strategy, Reason: ReasonNotApplicable, Advice: OtherWay, Err: errors.New(why)}
}

// Errors of Journal and Claim that the runner tells apart.
var (
	ErrExists    = errors.New("the journal has this job already")
	ErrNotFound  = errors.New("the journal does not have this job")
	ErrHeld      = errors.New("another worker holds the lease")
	ErrNewer     = errors.New("the record is of a later version of cinderlift")
	ErrLeaseLost = errors.New("the lease is lost")
	ErrStopping  = errors.New("the worker is being stopped")
)

// ErrCommitted is what the Undo of a commit step answers when it finds that the step had its effect after all, although
// its Do reported a failure or its worker died: the job goes forward again, and nothing is undone.
var ErrCommitted = errors.New("the commit step had its effect")
