package cinder

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// Names of the settling steps; the journal keeps them.
const (
	stepDiscard  = "discard-image"
	stepReply    = "reply"
	stepCastDone = "cast-done"
	stepHandBack = "hand-back"
	stepFree     = "free-volume"
	stepNotify   = "notify"
	stepSee      = "see-volume-freed"
)

// SettlerOptions of NewSettler. The zero value is useful.
type SettlerOptions struct {
	Exchange string // the cloud's control exchange; default "openstack"

	// Host names this worker in notifications (publisher cinderlift.<Host>); default "worker".
	Host string

	// Topic of notifications; default "notifications", which is what listeners of all services take.
	Topic string

	// Quiet turns notifications off.
	Quiet bool

	// Patience is how long a step goes on trying what is refused or finds no receiver before it takes the next best
	// way; default 10 min. Each process counts for itself, over all the times that it takes the job up. What is merely
	// away is tried without end.
	Patience time.Duration

	Logger *slog.Logger // default: discards
}

// Settler tells Cinder how a job ended. It implements worker.Settler.
type Settler struct {
	bus     Bus
	volumes Volumes
	images  Images
	opt     SettlerOptions
	memory  memory
}

var _ worker.Settler = (*Settler)(nil)

// NewSettler tells over bus, v and i.
func NewSettler(bus Bus, v Volumes, i Images, o SettlerOptions) *Settler {
	o.Exchange = exchangeOr(o.Exchange)
	if o.Host == "" {
		o.Host = "worker"
	}
	if o.Topic == "" {
		o.Topic = "notifications"
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Minute
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}

	return &Settler{bus: bus, volumes: v, images: i, opt: o}
}

// Settle lists the steps. They depend on the request and the outcome alone, so every process lists the same ones. The
// image goes first: until it is gone, nobody may be told that the volume is free.
func (s *Settler) Settle(j worker.Job, o worker.Outcome) []worker.Step {
	t := s.telling(j, o)
	var steps []worker.Step
	add := func(name string, do func(context.Context) error) {
		steps = append(steps, worker.Step{Name: name, Do: t.patient(name, do)})
	}
	if t.mayDiscard() {
		add(stepDiscard, t.discard)
	}
	switch {
	case t.origin.Call != nil:
		add(stepReply, t.reply)
	case t.origin.Done != nil:
		add(stepCastDone, t.castDone)
	case o.Result == worker.Declined:
		add(stepHandBack, t.handBack)
	case o.Reason != worker.ReasonNotOwner:
		add(stepFree, t.free)
	}
	if !s.opt.Quiet && o.Result != worker.Declined {
		add(stepNotify, t.notify)
	}
	if t.someoneFrees() {
		add(stepSee, t.see)
	}

	return steps
}

// heartbeatWithin bounds the first heartbeat. It is not cut short by the end of Attend, because giving up a message that
// is under way costs the connection.
const heartbeatWithin = 5 * time.Second

// Attend sends heartbeats to a caller that asked for them, until ctx ends or the caller has given up. The first one goes
// at once: the caller has been counting while its request waited in the queue, or for a worker to adopt the job.
func (s *Settler) Attend(ctx context.Context, j worker.Job) {
	defer func() { <-ctx.Done() }()
	o, err := originOf(j, s.opt.Exchange)
	if err != nil || o.Call == nil || o.Call.MonitorSeconds == 0 {
		return
	}
	caller, end := withDeadline(ctx, o.Call.Deadline)
	defer end()
	first, stop := context.WithTimeout(context.WithoutCancel(caller), heartbeatWithin)
	defer stop()
	if err := s.bus.Heartbeat(first, o.Call.request()); err != nil {
		s.opt.Logger.Warn("send the first heartbeat; others follow", "image", j.ImageID, "error", err)
	}
	defer s.bus.Heartbeats(caller, o.Call.request())()
	<-caller.Done()
}

func withDeadline(ctx context.Context, at time.Time) (context.Context, context.CancelFunc) {
	if at.IsZero() {
		return context.WithCancel(ctx)
	}

	return context.WithDeadline(ctx, at)
}

// telling is one job's end, being told.
type telling struct {
	*Settler
	job     worker.Job
	outcome worker.Outcome
	origin  origin
	log     *slog.Logger
}

func (s *Settler) telling(j worker.Job, o worker.Outcome) *telling {
	t := &telling{Settler: s, job: j, outcome: o}
	t.log = s.opt.Logger.With("image", j.ImageID, "volume", j.VolumeID, "request_id", j.RequestID)
	var err error
	if t.origin, err = originOf(j, s.opt.Exchange); err != nil {
		t.log.Error("the job's origin is not usable: nobody is told, the volume is freed over REST", "error", err)
	}

	return t
}

// patient gives a step a memory of when it first met an error that waiting may not cure: a refusal, or nobody there.
// Once that is Patience ago, the step's own way out is taken, see [telling.expired]. The error is Retry before that.
func (t *telling) patient(name string, do func(context.Context) error) func(context.Context, worker.Progress) error {
	return func(ctx context.Context, _ worker.Progress) error {
		err := do(ctx)
		if err == nil || passing(err) {
			return err
		}
		if time.Since(t.memory.met(t.job.Key()+" "+name)) < t.opt.Patience {
			return again(name, t.job, err)
		}

		return t.expired(ctx, name, err)
	}
}

// passing reports whether err is one that ends by itself, such as a service that is away.
func passing(err error) bool {
	return worker.AdviceOf(err) == worker.Retry && !errors.Is(err, oslo.ErrUnroutable) && !errors.Is(err, oslo.ErrRefused)
}

// expired takes the way out of a step that waited in vain.
func (t *telling) expired(ctx context.Context, name string, why error) error {
	switch name {
	case stepReply, stepCastDone, stepHandBack:
		t.log.Warn("the result finds no taker, settling over REST", "step", name, "error", why)
		if why = t.alone(ctx); why == nil || passing(why) {
			return why
		}
	case stepDiscard, stepNotify, stepSee:
		t.log.Error("settling step is left out", "step", name, "error", why)

		return nil
	}
	t.log.Error("volume is left in `uploading`: give our service user the role admin in Cinder, and free the volume with "+
		"`openstack volume set --state available` (in-use if it is attached)", "error", why)

	return nil
}

// again makes a refusal one that the runner tries again.
func again(step string, j worker.Job, err error) error {
	return &worker.Error{Op: step + " for image " + j.ImageID, Reason: worker.ReasonOf(err), Advice: worker.Retry, Err: err}
}
