package worker

import (
	"context"
	"time"
)

// Source hands out requests.
type Source interface {
	// Receive waits for a request or for the end of ctx, whose error it then returns. It takes a message from the
	// broker only while somebody waits, so waiting work stays in the queue, and it reconnects by itself for ever.
	Receive(ctx context.Context) (Delivery, error)
}

// Delivery is a request that was taken from the broker and must be settled exactly once, by Ack, Requeue or Reject. When
// the connection that brought it is gone, all three fail harmlessly: the broker delivers the message again.
type Delivery interface {
	// Job decodes the request. The error is an *Error with ReasonBadRequest or ReasonConflict; Reject the delivery then.
	Job() (Job, error)

	// Redelivered reports whether the broker has handed this message out before.
	Redelivered() bool

	// Ack tells the broker that the journal has the job.
	Ack() error

	// Requeue gives the message back unchanged.
	Requeue() error

	// Reject puts the message into the dead-letter queue with why in a header, tells a caller that waits, and then
	// acknowledges. When that can't be confirmed the message is not acknowledged.
	Reject(ctx context.Context, why error) error
}

// Facts finds out what a plan needs to know.
type Facts interface {
	// Task asks Cinder and Glance. Errors are *Error; ReasonVolumeMissing and ReasonImageMissing mean what they say,
	// and are never answered for a service that is only away.
	Task(ctx context.Context, j Job) (Task, error)
}

// Settler tells everyone how a job ended. Settling has to be possible in a process that never saw the request.
type Settler interface {
	// Settle lists the steps that bring it about, in order. Step names are stable; Undo is not used. An error of a
	// step is tried again for as long as it takes; a step that can never succeed any more has to return nil after
	// saying so in its log.
	Settle(j Job, o Outcome) []Step

	// Attend keeps a waiting caller patient (call-monitor heartbeats) until ctx ends. It blocks.
	Attend(ctx context.Context, j Job)
}

// Intake says what became of a delivery; the metric label.
type Intake string

// The intakes.
const (
	Accepted     Intake = "accepted"
	Duplicate    Intake = "duplicate"
	DeadLettered Intake = "dead-lettered"
	Requeued     Intake = "requeued"
)

// Intakes lists them all.
func Intakes() []Intake { return []Intake{Accepted, Duplicate, DeadLettered, Requeued} }

// Recorder is told what happens, for metrics. Its methods are cheap, concurrent and never fail.
type Recorder interface {
	Delivery(i Intake, redelivered bool)
	JobStarted(adopted bool)
	StepEnded(strategy, step string, took time.Duration, err error)
	StepRetried(strategy, step string, r Reason)
	Moved(strategy string, cluster, worker int64) // bytes since the last call
	JobReleased()                                 // this worker no longer works on the job, whatever became of it
	JobPutAside()                                 // it killed several workers, see Aside
	JobSettled(o Outcome, took time.Duration)     // took counts from the request's acceptance
}
