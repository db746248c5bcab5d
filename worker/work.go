package worker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
)

// run is one claimed job in this process. Its fields belong to one goroutine.
type run struct {
	*Runner
	claim Claim
	rec   Record
	log   *slog.Logger
	own   string // this worker's name in the journal
	calm  func() // ends the look-out for a user who changed their mind

	committing atomic.Bool // the commit step was begun, here or by a worker before; for the look-out
}

// work claims the job and brings it as far as it can. Whatever happens, the journal knows how far it came, and whoever
// scans next goes on from there.
func (r *Runner) work(ctx context.Context, job Job, adopting bool) {
	log := r.log(job)
	claim, err := r.Journal.Claim(ctx, job.Key())
	if errors.Is(err, ErrHeld) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNewer) {
		return // another worker is at it, or at another job of the same volume; or it is gone, or not for us
	}
	if err != nil {
		log.Warn("claim the job; the next scan tries again", "error", err)

		return
	}
	defer r.release(ctx, claim, log)
	rec := claim.Record()
	if rec.Closed || rec.Waits(time.Now()) {
		return
	}
	rec.Job.Private = job.Private
	r.Recorder.JobStarted(adopting)
	defer r.Recorder.JobReleased()
	if adopting {
		log.Info("job adopted", "epoch", rec.Epoch, "steps_done", rec.Steps, "begun", rec.Begun, "doing", rec.doing())
	}
	if r.Context != nil {
		ctx = r.Context(ctx, rec.Job)
	}
	j := &run{Runner: r, claim: claim, rec: rec, log: log, own: rec.Owner}
	defer r.press.well(job.Key())
	if err := Hold(ctx, claim, r.conf.Lease, j.toEnd); err != nil {
		j.survive(ctx)
		log.Warn("job left; it goes on from the journal", "reason", ReasonOf(err), "error", err)
	}
}

func (r *Runner) release(ctx context.Context, claim Claim, log *slog.Logger) {
	// Also, and above all, when ctx has ended: a lease given back lets others go on at once.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := claim.Release(ctx); err != nil {
		log.Warn("give the lease back; it ends by itself", "error", err)
	}
}

// toEnd decides the outcome unless the journal has one, and tells everyone. An error means that the job stays open.
func (j *run) toEnd(ctx context.Context) error {
	if err := j.bury(ctx); err != nil {
		return err
	}
	if j.rec.Outcome == nil {
		if err := j.attended(ctx, j.conclude); err != nil {
			return err
		}
	}
	j.claim.Park() // nothing in Ceph is left to do, and whom we tell may be away

	return j.settle(ctx)
}

// attended keeps a waiting caller patient while f runs, and not a moment longer: a heartbeat after the final reply is
// an error in the caller (oslo.messaging 8ea2d5b _drivers/amqpdriver.py:628-677).
func (j *run) attended(ctx context.Context, f func(context.Context) error) error {
	attending, stop := context.WithCancel(ctx)
	var w sync.WaitGroup
	w.Go(func() {
		_ = j.safely("attend", func() error { j.Settler.Attend(attending, j.rec.Job); return nil }) // logged there
	})
	defer w.Wait()
	defer stop()

	return f(ctx)
}

// conclude writes the outcome into the journal: the outbox. From then on it is a fact, whoever tells it.
func (j *run) conclude(ctx context.Context) error {
	o, err := j.decide(ctx)
	if err != nil {
		return err
	}
	if o.Reason == ReasonGlanceFull {
		j.press.refused(j.rec.Job.ProjectID, errors.New(o.Message))
	}
	j.rec.Outcome, j.rec.Verdict = &o, nil

	return j.save(ctx)
}

const (
	settleFor   = time.Minute      // that one step of settling may take before the job gives its slot to others
	putOffFirst = 15 * time.Second // until settling is taken up again for the first time; doubled each time
	putOffMost  = 10 * time.Minute
)

// settle tells everyone and closes the record. What does not work now is put off and taken up again for as long as it
// takes, by whoever is free then: a volume must not stay in `uploading` because Cinder was away for a while, and those
// that wait for it must not take the slots of others.
func (j *run) settle(ctx context.Context) error {
	o := *j.rec.Outcome
	for _, s := range j.Settler.Settle(j.rec.Job, o) {
		activity := settling + s.Name
		if contains(j.rec.Settled, s.Name) {
			continue
		}
		if err := j.begin(ctx, activity); err != nil {
			return err
		}
		err := j.untilDone(ctx, settleFor, "settle", s.Name, func(ctx context.Context) error { return j.call(ctx, "settle", s) })
		switch {
		case ctx.Err() != nil || AdviceOf(err) == StandBy:
			return err
		case err != nil:
			return j.putOff(ctx, err)
		}
		// Written with the next step's beginning: to tell twice is harmless, and a crash just here is rare.
		j.returned(activity)
		j.rec.Settled = append(j.rec.Settled, s.Name)
	}

	return j.finish(ctx, o)
}

func (j *run) finish(ctx context.Context, o Outcome) error {
	j.rec.Closed = true
	if err := j.save(ctx); err != nil {
		return err
	}
	took := time.Since(j.rec.Accepted)
	j.Recorder.JobSettled(o, took)
	j.log.Info("job closed", "result", o.Result, "reason", o.Reason, "strategy", o.Strategy, "message", o.Message,
		"left", j.rec.Left, "seconds", took.Seconds())

	return nil
}

// putOff leaves the job to whoever is free in a while.
func (j *run) putOff(ctx context.Context, why error) error {
	wait := min(putOffFirst<<min(j.rec.PutOff, 10), putOffMost)
	j.rec.PutOff++
	j.rec.Doing, j.rec.Again = nil, time.Now().UTC().Add(wait)
	if err := j.save(ctx); err != nil {
		return err
	}

	return &Error{Op: "settle; put off for " + wait.String(), Reason: ReasonOf(why), Advice: StandBy, Err: why}
}

// untilDone calls f until it succeeds, ctx ends or patience is over (0: never); a StandBy ends it too.
func (j *run) untilDone(ctx context.Context, patience time.Duration, strategy, step string, f func(context.Context) error) error {
	start := time.Now()
	for n := 1; ; n++ {
		err := f(ctx)
		if err == nil || AdviceOf(err) == StandBy {
			return err
		}
		if ctx.Err() != nil {
			return interrupted(ctx, err)
		}
		if patience > 0 && time.Since(start) >= patience {
			return err
		}
		j.retrying(strategy, step, n, err)
		wait := j.pause
		if step == saving {
			wait = j.conf.Backoff.wait // a pause saves as well
		}
		if wait(ctx, n) != nil {
			return interrupted(ctx, err)
		}
	}
}

func (j *run) retrying(strategy, step string, n int, err error) {
	j.press.failed(j.rec.Job.Key(), n, err)
	j.Recorder.StepRetried(strategy, step, ReasonOf(err))
	j.log.Warn("step failed, trying again", "strategy", strategy, "step", step, "try", n, "reason", ReasonOf(err),
		"error", err)
}

// saving is the step of save in logs and metrics.
const saving = "save"

// save writes the record, again and again until it is there or the lease has gone: an answer that got lost leaves open
// whether it was written, and writing the same again is right.
func (j *run) save(ctx context.Context) error {
	j.rec.Version, j.rec.Updated = j.rec.Job.version(), time.Now().UTC()

	return j.untilDone(ctx, 0, "journal", saving, func(ctx context.Context) error {
		err := j.claim.Save(ctx, j.rec)
		if errors.Is(err, ErrLeaseLost) {
			return leaseLost(err)
		}

		return err
	})
}

// interrupted explains why ctx ended, not what the end of ctx broke.
func interrupted(ctx context.Context, err error) error {
	var why *Error
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, ErrLeaseLost):
		return leaseLost(err)
	case errors.As(cause, &why):
		return why // the user changed their mind
	default:
		return &Error{Op: "work on the job", Reason: ReasonStopping, Advice: StandBy, Err: cause}
	}
}
