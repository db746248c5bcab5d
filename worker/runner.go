package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Config are the runner's numbers. The zero value means the defaults.
type Config struct {
	Slots     int           // jobs at a time; default 64. Adoption has as many again in reserve.
	Data      int           // of these, how many move data inside the cluster at a time; default 4
	Exports   int           // and how many move data through this process at a time; default 4
	Lease     LeaseTimes    // must agree with the journal's
	Scan      time.Duration // between two looks for jobs to adopt, ±25 %; default 10 s, at most 3/4 of Lease.Every
	Look      time.Duration // between two looks at a running job's volume and image; default 15 s
	Stall     time.Duration // how long a step may move nothing before it is begun anew over another connection; default 30 min
	SoftStop  time.Duration // how long running jobs may go on after Run's context ended; default 2 s
	Aside     time.Duration // how long a job that killed Backoff.Claims workers is put aside before it is ended; default 1 h, negative: 0
	Backoff   Backoff       // of steps, facts and settling
	Retention time.Duration // how long closed records are kept; default 7 days
	Journal   time.Duration // how long a delivery is held while the journal is away before it is requeued; default 1 min
}

func (c Config) withDefaults() Config {
	fill := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Slots == 0 {
		c.Slots = 64
	}
	if c.Data == 0 {
		c.Data = 4
	}
	if c.Exports == 0 {
		c.Exports = 4
	}
	fill(&c.Scan, 10*time.Second)
	fill(&c.Look, 15*time.Second)
	fill(&c.Stall, 30*time.Minute) // longer than glance.Options.Patience, for which an upload may wait
	fill(&c.SoftStop, 2*time.Second)
	fill(&c.Aside, time.Hour)
	fill(&c.Retention, 7*24*time.Hour)
	fill(&c.Journal, time.Minute)
	c.Lease = c.Lease.WithDefaults()
	c.Scan = min(c.Scan, c.Lease.Every*3/4) // see suspect
	c.Aside = max(c.Aside, 0)
	c.Backoff = c.Backoff.WithDefaults()

	return c
}

// Runner is one worker. All fields but Config and Context must be set. Run it once.
type Runner struct {
	Source     Source
	Journal    Journal
	Facts      Facts
	Strategies func(Claim) []Strategy // in order of preference; the claim's connection does their work in Ceph
	Settler    Settler
	Recorder   Recorder
	Logger     *slog.Logger
	Config     Config

	// Context, if set, adds values to the context under which a job is worked on, such as the request id that its
	// outgoing requests are to bear.
	Context func(context.Context, Job) context.Context

	// Gate, if set, is what others close as well, such as probes of the broker and of Ceph. The runner takes no delivery
	// while it is closed.
	Gate *Gate

	// Hurry, if set, ends the soft stop when it is closed: the second SIGTERM.
	Hurry <-chan struct{}

	conf    Config
	press   *pressure
	jobs    sync.WaitGroup
	slots   chan struct{} // a token for every job taken from Source or adopted
	lanes   atomic.Pointer[lanes]
	reserve chan struct{} // as many again, for adoption alone: new work must not keep a dead worker's waiting
	hinted  chan struct{} // a scan is asked for

	mu     sync.Mutex
	mine   map[string]bool      // keys that this process works on
	closed map[string]time.Time // keys known to be closed, and until when to keep them: a scan need not read those
	seen   map[string]sighting  // of open jobs, by key
}

// Run takes and adopts jobs until ctx ends. Then it takes no more, lets running jobs go on for Config.SoftStop, ends
// them at their next safe point, gives their leases back so that others go on at once, and returns nil.
func (r *Runner) Run(ctx context.Context) error {
	r.conf = r.Config.withDefaults()
	r.slots = make(chan struct{}, r.conf.Slots)
	r.reserve = make(chan struct{}, r.conf.Slots)
	r.lanes.Store(newLanes(r.conf))
	r.hinted = make(chan struct{}, 1)
	r.mine, r.closed, r.seen = map[string]bool{}, map[string]time.Time{}, map[string]sighting{}
	if r.Gate == nil {
		r.Gate = &Gate{}
	}
	r.press = &pressure{gate: r.Gate}

	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	var loops sync.WaitGroup
	loops.Go(func() { r.take(ctx, work) })
	loops.Go(func() { r.adopt(ctx, work) })
	loops.Go(func() { _ = r.Journal.Watch(ctx, r.hint) }) // ends with ctx, without a word
	ended := make(chan struct{})
	var bound sync.WaitGroup
	bound.Go(func() { r.bound(ctx, ended, stop) })
	loops.Wait() // all end with ctx; no job is started after this
	r.jobs.Wait()
	close(ended)
	bound.Wait()

	return nil
}

// bound stops the jobs when the soft stop is over. It counts from the end of ctx, not from the end of the loops: what
// they do under work must end as well.
func (r *Runner) bound(ctx context.Context, ended <-chan struct{}, stop context.CancelCauseFunc) {
	<-ctx.Done()
	soft := time.NewTimer(r.conf.SoftStop)
	defer soft.Stop()
	select {
	case <-ended:
	case <-soft.C:
	case <-r.Hurry:
	}
	stop(ErrStopping)
}

// take turns deliveries into jobs until ctx ends. The slot comes first, so waiting work stays in the broker's queue.
func (r *Runner) take(ctx, work context.Context) {
	for r.Gate.Wait(ctx) == nil {
		select {
		case <-ctx.Done():
			return
		case r.slots <- struct{}{}:
		}
		d, err := r.receive(ctx)
		if err != nil {
			<-r.slots

			continue
		}
		// A delivery in hand is accepted even when ctx ends now: it takes milliseconds and saves a redelivery.
		job, ok := r.accept(ctx, work, d)
		if !ok {
			<-r.slots

			continue
		}
		r.start(work, job, false, r.slots)
	}
}

// receive waits for a delivery for as long as the gate is open. An error needs no other answer than to come again.
func (r *Runner) receive(ctx context.Context) (Delivery, error) {
	open, cancel := r.Gate.While(ctx)
	defer cancel()
	d, err := r.Source.Receive(open)
	if err != nil && open.Err() == nil {
		r.Logger.Error("receive a request", "error", err)
		_ = sleep(ctx, r.conf.Backoff.First)
	}

	return d, err
}

// accept journals the request and then acknowledges it; false when there is nothing to do here. A crash before Create
// leaves the message with the broker, one after it leaves the job to whoever scans first.
func (r *Runner) accept(ctx, work context.Context, d Delivery) (Job, bool) {
	job, err := decode(d)
	if err != nil {
		r.reject(work, d, err)

		return Job{}, false
	}
	now := time.Now().UTC()
	err = r.create(ctx, work, Record{Version: job.version(), Job: job, Accepted: now, Updated: now})
	switch {
	case errors.Is(err, ErrExists):
		r.duplicate(ctx, work, d, job)

		return Job{}, false
	case err != nil:
		r.requeue(d, job, err)
		r.awaitJournal(ctx)

		return Job{}, false
	}
	// A lost ack is harmless: the redelivery meets the record.
	if err := d.Ack(); err != nil {
		r.log(job).Warn("acknowledge the request; it will come again and be recognised", "error", err)
	}
	r.Recorder.Delivery(Accepted, d.Redelivered())
	r.log(job).Info("job accepted", "redelivered", d.Redelivered())

	return job, true
}

// decode guards against messages that make the decoder panic: they would go from worker to worker and end each.
func decode(d Delivery) (job Job, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = internal("decode the request", fmt.Errorf("panic: %v", p))
		}
	}()

	return d.Job()
}

// create tries for a while, under work, but not again once ctx has ended. Between two tries the message stays with us,
// because each requeue counts towards the broker's delivery limit.
func (r *Runner) create(ctx, work context.Context, rec Record) error {
	work, cancel := context.WithTimeout(work, r.conf.Journal)
	defer cancel()
	for n := 1; ; n++ {
		err := r.Journal.Create(work, rec)
		if err == nil || n == 1 && errors.Is(err, ErrExists) {
			return err
		}
		// Second and later tries: the first may have been applied although it failed. Ours or another's, who knows;
		// the duplicate path compares digests, and the scan picks up what is ours.
		if errors.Is(err, ErrExists) {
			return ErrExists
		}
		r.log(rec.Job).Warn("write the job into the journal", "error", err, "try", n)
		if r.conf.Backoff.wait(ctx, n) != nil || work.Err() != nil {
			return err
		}
	}
}

// awaitJournal returns when the journal answers again: taking more messages before would only requeue them.
func (r *Runner) awaitJournal(ctx context.Context) {
	for n := 1; ; n++ {
		if _, err := r.Journal.Keys(ctx); err == nil || r.conf.Backoff.wait(ctx, n) != nil {
			return
		}
	}
}

func (r *Runner) duplicate(ctx, work context.Context, d Delivery, job Job) {
	rec, err := r.Journal.Load(work, job.Key())
	switch {
	case err != nil:
		// The wait is what keeps one unreadable record from a round through the broker every few milliseconds.
		r.requeue(d, job, err)
		_ = r.conf.Backoff.wait(ctx, 1)
		r.awaitJournal(ctx)
	case rec.Job.Digest != job.Digest:
		// Not a repetition but another request with the same image id: never touch the first one's job.
		r.reject(work, d, &Error{Op: "accept request for image " + job.ImageID, Reason: ReasonConflict,
			Err: errors.New("the journal has a different request for the same image")})
	default:
		r.Recorder.Delivery(Duplicate, d.Redelivered())
		r.log(job).Info("request known already", "closed", rec.Closed)
		if err := d.Ack(); err != nil {
			r.log(job).Warn("acknowledge the request; it will come again and be recognised", "error", err)
		}
	}
}

func (r *Runner) requeue(d Delivery, job Job, why error) {
	r.Recorder.Delivery(Requeued, d.Redelivered())
	r.log(job).Error("journal is away: request goes back to the queue, taking stops", "error", why)
	if err := d.Requeue(); err != nil {
		r.log(job).Warn("requeue the request; the broker does it when the connection ends", "error", err)
	}
}

func (r *Runner) reject(ctx context.Context, d Delivery, why error) {
	r.Recorder.Delivery(DeadLettered, d.Redelivered())
	r.Logger.Error("request rejected to the dead-letter queue", "reason", ReasonOf(why), "error", why)
	if err := d.Reject(ctx, why); err != nil {
		r.Logger.Warn("dead-letter the request; the broker delivers it again", "error", err)
	}
}

// start works on the job in a goroutine of its own and gives the slot back at its end.
func (r *Runner) start(ctx context.Context, job Job, adopting bool, slot chan struct{}) {
	key := job.Key()
	r.mu.Lock()
	busy := r.mine[key]
	r.mine[key] = true
	r.mu.Unlock()
	if busy {
		<-slot

		return
	}
	r.jobs.Go(func() {
		defer func() {
			r.mu.Lock()
			delete(r.mine, key)
			r.mu.Unlock()
			<-slot
			// What strategies and settlers do is guarded where it happens; this is for the rest. The job stays open.
			if p := recover(); p != nil {
				r.log(job).Error("panic", "panic", p, "stack", string(debug.Stack()))
			}
		}()
		r.work(ctx, job, adopting)
	})
}

// log names the job in every line.
func (r *Runner) log(j Job) *slog.Logger {
	return r.Logger.With("image", j.ImageID, "volume", j.VolumeID, "request_id", j.RequestID,
		"global_request_id", j.GlobalRequestID)
}
