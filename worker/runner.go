package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"
)

// Config are the runner's numbers. The zero value means the defaults.
type Config struct {
	Slots     int           // jobs at a time; default 4. Adoption has one more in reserve.
	Lease     LeaseTimes    // must agree with the journal's
	Scan      time.Duration // between two looks for jobs to adopt, ±25 %; default 10 s
	SoftStop  time.Duration // how long running jobs may go on after Run's context ended; default 20 s
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
		c.Slots = 4
	}
	fill(&c.Scan, 10*time.Second)
	fill(&c.SoftStop, 20*time.Second)
	fill(&c.Retention, 7*24*time.Hour)
	fill(&c.Journal, time.Minute)
	c.Lease = c.Lease.WithDefaults()
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

	conf    Config
	jobs    sync.WaitGroup
	slots   chan struct{} // a token for every job taken from Source or adopted
	reserve chan struct{} // one more, for adoption alone: new work must not starve old

	mu     sync.Mutex
	mine   map[string]bool      // keys that this process works on
	closed map[string]time.Time // keys known to be closed, and until when to keep them: a scan need not read those
}

// Run takes and adopts jobs until ctx ends. Then it takes no more, lets running jobs go on for Config.SoftStop, ends
// them at their next safe point, gives their leases back so that others go on at once, and returns nil.
func (r *Runner) Run(ctx context.Context) error {
	r.conf = r.Config.withDefaults()
	r.slots = make(chan struct{}, r.conf.Slots)
	r.reserve = make(chan struct{}, 1)
	r.mine, r.closed = map[string]bool{}, map[string]time.Time{}

	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	defer stop(nil)
	var loops sync.WaitGroup
	loops.Go(func() { r.take(ctx, work) })
	loops.Go(func() { r.adopt(ctx, work) })
	// The bound counts from the end of ctx, not from the end of the loops: what they do under work must end as well.
	var bound *time.Timer
	loops.Go(func() {
		<-ctx.Done()
		bound = time.AfterFunc(r.conf.SoftStop, func() { stop(ErrStopping) })
	})
	loops.Wait() // all end with ctx; no job is started after this
	defer bound.Stop()
	r.jobs.Wait()

	return nil
}

// take turns deliveries into jobs until ctx ends. The slot comes first, so waiting work stays in the broker's queue.
func (r *Runner) take(ctx, work context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r.slots <- struct{}{}:
		}
		d, err := r.Source.Receive(ctx)
		if err != nil {
			<-r.slots
			if ctx.Err() != nil {
				return
			}
			r.Logger.Error("receive a request", "error", err)
			_ = sleep(ctx, r.conf.Backoff.First)

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

// accept journals the request and then acknowledges it; false when there is nothing to do here. A crash before Create
// leaves the message with the broker, one after it leaves the job to whoever scans first.
func (r *Runner) accept(ctx, work context.Context, d Delivery) (Job, bool) {
	job, err := decode(d)
	if err != nil {
		r.reject(work, d, err)

		return Job{}, false
	}
	now := time.Now().UTC()
	err = r.create(ctx, work, Record{Job: job, Accepted: now, Updated: now})
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

// adopt looks through the journal now and then, at once the first time, until ctx ends.
func (r *Runner) adopt(ctx, work context.Context) {
	for wait := time.Duration(0); sleep(ctx, wait) == nil; wait = r.conf.Scan*3/4 + rand.N(r.conf.Scan/2+1) {
		keys, err := r.Journal.Keys(ctx)
		if err != nil {
			r.Logger.Warn("look through the journal", "error", err)

			continue
		}
		r.forget()
		rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] }) // workers scan apart
		wait := slotWait
		for _, key := range keys {
			if ctx.Err() != nil {
				return
			}
			if !r.adoptOne(ctx, work, key, wait) {
				wait = 0 // full: one wait a scan is enough
			}
		}
	}
}

// slotWait is how long adoption waits for a slot. Most open jobs belong to workers that live, and finding that out takes
// a slot for some milliseconds: without a wait the scan would pass the others by meanwhile.
const slotWait = time.Second

// adoptOne starts the job if it is open and not ours already. Whether its lease is free shows in Claim. It reports false
// when no slot became free within wait.
func (r *Runner) adoptOne(ctx, work context.Context, key string, wait time.Duration) bool {
	if r.knows(key) {
		return true
	}
	rec, err := r.Journal.Load(ctx, key)
	if err != nil {
		return true // gone, or the journal is away: the next scan tells
	}
	if rec.Closed {
		r.retire(ctx, rec)

		return true
	}
	slot, ok := r.freeSlot(ctx, wait)
	if ok {
		r.start(work, rec.Job, true, slot)
	}

	return ok
}

// retire remembers a closed record and removes it when its time is up.
func (r *Runner) retire(ctx context.Context, rec Record) {
	key, keep := rec.Job.Key(), rec.Updated.Add(r.conf.Retention)
	if !time.Now().After(keep) {
		r.mu.Lock()
		r.closed[key] = keep
		r.mu.Unlock()

		return
	}
	if err := r.Journal.Remove(ctx, key); err != nil {
		r.Logger.Warn("remove an old record from the journal", "image", key, "error", err)
	}
}

// forget drops the closed records whose time is up, also those that another worker removed.
func (r *Runner) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.closed, func(_ string, until time.Time) bool { return now.After(until) })
}

// knows reports whether a scan can pass the key by.
func (r *Runner) knows(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	return r.mine[key] || time.Now().Before(r.closed[key])
}

func (r *Runner) freeSlot(ctx context.Context, wait time.Duration) (chan struct{}, bool) {
	for _, slot := range []chan struct{}{r.slots, r.reserve} {
		select {
		case slot <- struct{}{}:
			return slot, true
		default:
		}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		return r.slots, true
	case r.reserve <- struct{}{}:
		return r.reserve, true
	case <-ctx.Done():
		return nil, false
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
