package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

const (
	maxReplans  = 3 // of one plan in one process; more is a strategy that can't make up its mind
	commitTries = 3 // of a step after the commit point that says that trying again does not help
)

func contains(list []string, s string) bool { return slices.Contains(list, s) }

// decide makes the image, or finds out why it can't be made and removes what was begun.
func (j *run) decide(ctx context.Context) (Outcome, error) {
	switch {
	case j.rec.Verdict != nil && !j.rec.Committed:
		return j.carryOut(ctx) // a worker before has given up
	case j.rec.Committed && contains(j.rec.Left, asking):
		return j.leftover(Plan{Strategy: j.rec.Strategy}, passedOver(asking)), nil
	}
	if err := j.begin(ctx, asking); err != nil {
		return Outcome{}, err
	}
	if j.rec.Committed {
		// Only forward, with what was kept: what Cinder and Glance say by now can't change that.
		return j.make(ctx, Task{Job: j.rec.Job})
	}
	task, err := j.facts(ctx)
	if err != nil {
		return j.abandon(ctx, err)
	}

	return j.make(ctx, task)
}

// facts asks Cinder and Glance and judges whether the job may begin, or go on.
func (j *run) facts(ctx context.Context) (Task, error) {
	var task Task
	err := j.patiently(ctx, j.conf.Backoff.Patience, "plan", "facts", func(ctx context.Context) (err error) {
		task, err = j.Facts.Task(ctx, j.rec.Job)

		return err
	})
	if ctx.Err() == nil {
		j.returned(asking)
	}
	if err != nil {
		return task, err
	}

	return task, j.mayBegin(task)
}

// mayBegin looks at the states. A step that was begun may have made the image active, so only a fresh job insists on
// `queued`; that step itself finds out whose data it is.
func (j *run) mayBegin(t Task) error {
	op := fmt.Sprintf("make image %s from volume %s", t.Image.ID, t.Volume.ID)
	if t.Volume.Status != VolumeUploading {
		return &Error{Op: op, Reason: ReasonVolumeState,
			Err: fmt.Errorf("the volume is %q and not %q", t.Volume.Status, VolumeUploading)}
	}
	if len(j.rec.Begun) == 0 && t.Image.Status != ImageQueued {
		return &Error{Op: op, Reason: ReasonImageState,
			Err: fmt.Errorf("the image is %q and not %q", t.Image.Status, ImageQueued)}
	}

	return nil
}

// make goes through the strategies until one has made the image.
func (j *run) make(ctx context.Context, task Task) (Outcome, error) {
	for {
		plan, err := j.choose(ctx, task)
		if ctx.Err() == nil {
			j.returned(asking)
		}
		if err != nil {
			return j.abandon(ctx, err)
		}
		err = j.attentively(ctx, func(ctx context.Context) error { return j.perform(ctx, plan, task) })
		switch {
		case err == nil:
			return Outcome{Result: Done, Reason: ReasonNone, Strategy: plan.Strategy}, nil
		case ctx.Err() != nil:
			return Outcome{}, interrupted(ctx, err)
		case AdviceOf(err) == StandBy:
			return Outcome{}, err
		case j.rec.Committed:
			return j.leftover(plan, err), nil
		case AdviceOf(err) != OtherWay:
			return j.abandon(ctx, err)
		}
		if err := j.giveUpOn(ctx, plan, err); err != nil {
			return uncertain(plan.Strategy, err)
		}
	}
}

// uncertain ends a job of which nobody could find out whether its commit step had its effect: err says so with GiveUp,
// and nothing was removed. Any other err leaves the job open.
func uncertain(strategy string, err error) (Outcome, error) {
	if AdviceOf(err) != GiveUp {
		return Outcome{}, err
	}

	return Outcome{Result: Failed, Reason: ReasonOf(err), Strategy: strategy, Message: err.Error()}, nil
}

func passedOver(activity string) error {
	return &Error{Op: activity, Reason: ReasonAttempts, Err: errors.New("it was passed over because it kills its workers")}
}

// leftover is the outcome of a job whose image is complete and active while something could not be cleaned away. The
// volume must not wait for that. An image that is active but not with what was to be made is no success: somebody else
// filled it, or its bytes are wrong.
func (j *run) leftover(p Plan, err error) Outcome {
	reason := ReasonOf(err)
	if reason == ReasonMismatch || reason == ReasonImageState && !j.rec.HasStep(p.Commit) {
		return Outcome{Result: Failed, Reason: reason, Strategy: p.Strategy,
			Message: "the image is active, but not with the data of the volume; nothing was removed: " + err.Error()}
	}
	j.log.Error("image is active but something is left to clean up by hand", "strategy", p.Strategy,
		"reason", reason, "error", err)

	return Outcome{Result: Done, Reason: reason, Strategy: p.Strategy,
		Message: "the image is active, but something was left behind: " + err.Error()}
}

// giveUpOn undoes a strategy that failed with the advice to try another. When the undo finds that it had committed
// after all, it stays the chosen one.
func (j *run) giveUpOn(ctx context.Context, p Plan, why error) error {
	j.log.Warn("strategy failed, trying the next", "strategy", p.Strategy, "reason", ReasonOf(why), "error", why)
	if committed, err := j.undo(ctx, p); committed || err != nil {
		return err
	}
	j.rec.Tried = append(j.rec.Tried, p.Strategy)
	j.rec.LastError, j.rec.LastReason = why.Error(), ReasonOf(why)
	j.rec.Strategy, j.rec.Kept, j.rec.Steps = "", nil, nil

	return j.save(ctx)
}

// choose asks the strategies in order, or only the one that the job has begun with.
func (j *run) choose(ctx context.Context, task Task) (Plan, error) {
	var no []string
	for _, s := range j.Strategies(j.claim) {
		begun := j.rec.Strategy == s.Name()
		if contains(j.rec.Tried, s.Name()) || j.rec.Strategy != "" && !begun {
			continue
		}
		plan, err := j.plan(ctx, s, task)
		if err == nil {
			return plan, nil
		}
		if AdviceOf(err) != OtherWay || begun {
			return Plan{}, err
		}
		no = append(no, err.Error())
	}
	reason := ReasonNotApplicable
	if j.rec.LastError != "" {
		no = append(no, j.rec.LastError)
		reason = j.rec.LastReason
	}

	return Plan{}, &Error{Op: "choose a strategy", Reason: reason, Err: errors.New(strings.Join(no, "; "))}
}

// plan asks one strategy and notes its choice; the note is saved before the first step.
func (j *run) plan(ctx context.Context, s Strategy, task Task) (Plan, error) {
	if j.rec.Strategy == s.Name() {
		task.Kept = j.rec.Kept
	}
	var plan Plan
	err := j.patiently(ctx, j.conf.Backoff.Patience, s.Name(), "plan", func(ctx context.Context) (err error) {
		plan, err = s.Plan(ctx, task)

		return err
	})
	if err != nil {
		return Plan{}, err
	}
	if err := plan.validate(s.Name()); err != nil {
		return Plan{}, err
	}
	j.rec.Strategy, j.rec.Kept = s.Name(), plan.Keep

	return plan, nil
}

// perform runs the steps that the journal does not know as done.
func (j *run) perform(ctx context.Context, plan Plan, task Task) error {
	j.log.Info("strategy chosen", "strategy", plan.Strategy, "steps", plan.Names(), "done", j.rec.Steps)
	for replans := 0; ; replans++ {
		err := j.steps(ctx, plan)
		var re *Replan
		if !errors.As(err, &re) {
			return err
		}
		if replans == maxReplans {
			return internal("plan "+plan.Strategy, err)
		}
		j.log.Info("planning again", "strategy", plan.Strategy, "redo", re.Redo, "why", re.Err)
		j.rec.Steps = slices.DeleteFunc(j.rec.Steps, func(s string) bool { return contains(re.Redo, s) })
		if plan, err = j.choose(ctx, task); err != nil {
			return err
		}
	}
}

func (j *run) steps(ctx context.Context, plan Plan) error {
	for _, s := range plan.Steps {
		if j.rec.HasStep(s.Name) {
			continue
		}
		if contains(j.rec.Left, s.Name) {
			return passedOver(s.Name) // what comes after it may wait for it in vain
		}
		if err := j.inLane(ctx, plan, s, func() error { return j.step(ctx, plan, s) }); err != nil {
			return err
		}
		j.rec.Steps = append(j.rec.Steps, s.Name)
		if s.Name != plan.Commit {
			continue // written together with the next step's beginning: one write a step, and a redone step is harmless
		}
		// Commit point: the image is active. A crash before this save leaves the step in Begun; whoever adopts the
		// job does it again and finds it done, or asks its Undo, which answers ErrCommitted.
		if j.calm(); ctx.Err() != nil {
			return interrupted(ctx, nil) // unwanted in this very moment; the commit step's Undo finds out what holds
		}
		j.rec.Committed = true
		if err := j.save(ctx); err != nil {
			return err
		}
	}

	return nil
}

// step does one step: its beginning is in the journal before it may leave anything behind.
func (j *run) step(ctx context.Context, plan Plan, s Step) error {
	if !contains(j.rec.Begun, s.Name) {
		j.rec.Begun = append(j.rec.Begun, s.Name)
	}
	if s.Name == plan.Commit {
		j.committing.Store(true)
	}
	if err := j.begin(ctx, s.Name); err != nil {
		return err
	}
	tries := 0
	err := j.patiently(ctx, j.conf.Backoff.Patience, plan.Strategy, s.Name, func(ctx context.Context) error {
		err := j.call(ctx, plan.Strategy, s)
		if tries++; j.rec.Committed && tries < commitTries && err != nil && AdviceOf(err) != StandBy {
			return insist(err)
		}

		return err
	})
	if err == nil || ctx.Err() == nil {
		j.returned(s.Name)
	}
	if err == nil {
		j.press.well(j.rec.Job.Key())
	}

	return err
}

// insist makes an error one to try again after.
func insist(err error) error {
	var re *Replan
	if errors.As(err, &re) {
		return err
	}

	return &Error{Op: "after the commit point", Reason: ReasonOf(err), Advice: Retry, Err: err}
}

var errStalled = errors.New("nothing moved for too long")

// call runs a step once, measured, logged and safe from its panics.
func (j *run) call(ctx context.Context, strategy string, s Step) error {
	start := time.Now()
	m := j.meter(strategy, s.Name)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer m.still(j.conf.Stall, func() { cancel(errStalled) })()
	err := j.moving(ctx, s.Name, m.moved, func() error {
		return j.safely("step "+s.Name, func() error { return s.Do(ctx, m.report) })
	})
	if err != nil && errors.Is(context.Cause(ctx), errStalled) {
		// Not tried again over the same connection. Releasing the lease cuts off what hangs; whoever comes next has another.
		// The note of what is being done stays in the journal, so a job that stalls again and again is put aside.
		err = &Error{Op: "step " + s.Name, Reason: ReasonStalled, Advice: StandBy, Err: fmt.Errorf("%w: %w", errStalled, err)}
	}
	took := time.Since(start)
	j.Recorder.StepEnded(strategy, s.Name, took, err)
	if err == nil {
		j.log.Info("step done", "strategy", strategy, "step", s.Name, "seconds", took.Seconds())
	}

	return err
}

// safely turns a panic of f into an error: one job's bug must not end its worker, and with it everybody's job. The stack
// is for the log alone; the error may be told to users.
func (j *run) safely(op string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			j.log.Error("panic", "op", op, "panic", p, "stack", string(debug.Stack()))
			err = internal(op, fmt.Errorf("panic: %v", p))
		}
	}()

	return f()
}

// meter turns a step's running totals into increments for the metrics, and a line in the log now and then.
func (j *run) meter(strategy, step string) *meter {
	return &meter{strategy: strategy, step: step, recorder: j.Recorder, log: j.log, logged: time.Now(), went: time.Now(), moved: make(chan struct{})}
}

// patiently calls f until it succeeds, ctx ends, its error says that trying again does not help, or patience is over.
func (j *run) patiently(ctx context.Context, patience time.Duration, strategy, step string,
	f func(context.Context) error) error {
	start := time.Now()
	for n := 1; ; n++ {
		err := j.safely(step, func() error { return f(ctx) })
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return interrupted(ctx, err)
		}
		var re *Replan
		if errors.As(err, &re) || AdviceOf(err) != Retry || time.Since(start) >= patience {
			return err
		}
		j.retrying(strategy, step, n, err)
		if j.pause(ctx, n) != nil {
			return interrupted(ctx, err)
		}
	}
}

// abandon ends a job that can't be served: everything begun is undone, and the outcome says why.
func (j *run) abandon(ctx context.Context, why error) (Outcome, error) {
	if ctx.Err() != nil {
		return Outcome{}, interrupted(ctx, why)
	}
	if AdviceOf(why) == StandBy {
		return Outcome{}, why
	}
	if j.rec.Committed {
		return j.leftover(Plan{Strategy: j.rec.Strategy}, why), nil
	}
	j.giveUp(why)

	return j.carryOut(ctx)
}

// giveUp decides that the image is not made. It is in the journal before anything is undone, so that a successor goes on
// undoing and does not begin anew.
func (j *run) giveUp(why error) {
	j.rec.Verdict = &Outcome{Result: j.result(why), Reason: ReasonOf(why), Message: why.Error(), Strategy: j.rec.Strategy}
}

// carryOut undoes what was begun and answers the verdict, unless the image turns out to be active.
func (j *run) carryOut(ctx context.Context) (Outcome, error) {
	strategy := j.rec.Strategy
	committed, err := j.undoAll(ctx)
	if err != nil {
		return uncertain(strategy, err)
	}
	if committed {
		return j.make(ctx, Task{Job: j.rec.Job})
	}

	return *j.rec.Verdict, nil
}

// result sorts the reason. Declining is only for what nobody has tried, and of which nothing is left that could stand
// in the way: Cinder does it the stock way then.
func (j *run) result(why error) Result {
	switch reason := ReasonOf(why); {
	case reason == ReasonImageMissing:
		return Cancelled
	case reason == ReasonNotApplicable && len(j.rec.Tried) == 0 && len(j.rec.Begun) == 0:
		return Declined
	default:
		return Failed
	}
}

// undoAll undoes whatever the chosen strategy has begun. The plan is asked with the job and what was kept alone: the
// facts may be gone, which may be why we are here.
func (j *run) undoAll(ctx context.Context) (committed bool, err error) {
	const planning = undoing + "plan"
	if len(j.rec.Begun) == 0 || j.rec.Strategy == "" || contains(j.rec.Left, planning) {
		return false, nil
	}
	if err := j.begin(ctx, planning); err != nil {
		return false, err
	}
	plan, err := j.choose(ctx, Task{Job: j.rec.Job})
	switch {
	case ctx.Err() != nil:
		return false, interrupted(ctx, err)
	case AdviceOf(err) == StandBy:
		return false, err
	case err != nil:
		j.log.Error("nothing is undone: the strategy has no plan for it", "strategy", j.rec.Strategy, "error", err)
		j.returned(planning)
		j.rec.Left = append(j.rec.Left, planning)

		return false, nil
	}
	j.returned(planning)

	return j.undo(ctx, plan)
}

// undo undoes the begun steps, newest first, unless the commit step turns out to have had its effect: then it reports
// true and undoes nothing. When nobody can tell, it undoes nothing either, and its error says GiveUp: what would be
// removed may be an active image's data.
func (j *run) undo(ctx context.Context, plan Plan) (committed bool, err error) {
	if committed, err := j.hasCommitted(ctx, plan); committed || err != nil {
		return committed, err
	}
	// From here on no step counts as done, should the job go forward again.
	j.rec.Steps = nil
	patience := j.conf.Backoff.Patience
	for _, name := range slices.Backward(j.rec.Begun) {
		left, err := j.undoStep(ctx, patience, plan, name)
		if err != nil {
			return false, err
		}
		if left {
			patience = 0 // what is older may wait in vain for what is left, and the volume with it
		}
	}
	j.rec.Begun = nil

	return false, j.save(ctx)
}

// hasCommitted asks the commit step's Undo, if the step was begun.
func (j *run) hasCommitted(ctx context.Context, plan Plan) (bool, error) {
	undo, activity := plan.step(plan.Commit).Undo, undoing+plan.Commit
	if !contains(j.rec.Begun, plan.Commit) || undo == nil {
		return false, nil
	}
	err := passedOver(activity)
	if !contains(j.rec.Left, activity) {
		if err := j.begin(ctx, activity); err != nil {
			return false, err
		}
		err = j.patiently(ctx, j.conf.Backoff.Patience, plan.Strategy, activity, undo)
		if ctx.Err() == nil {
			j.returned(activity)
		}
	}
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, ErrCommitted):
		j.rec.Committed, j.rec.Verdict = true, nil

		return true, j.save(ctx)
	case AdviceOf(err) == StandBy:
		return false, err
	}
	j.log.Error("nobody can tell whether the image is active; nothing is removed", "strategy", plan.Strategy,
		"step", plan.Commit, "reason", ReasonOf(err), "error", err)

	return false, &Error{Op: "find out whether the image became active", Reason: ReasonOf(err), Err: err}
}

// undoStep undoes one step. What can't be undone is left, with a line for the operator: the volume must not wait for it.
func (j *run) undoStep(ctx context.Context, patience time.Duration, plan Plan, name string) (left bool, err error) {
	undo, activity := plan.step(name).Undo, undoing+name
	if undo == nil || name == plan.Commit || contains(j.rec.Left, activity) {
		return false, nil
	}
	if err := j.begin(ctx, activity); err != nil {
		return false, err
	}
	err = j.patiently(ctx, patience, plan.Strategy, activity, undo)
	if ctx.Err() == nil {
		j.returned(activity)
	}
	if err == nil || AdviceOf(err) == StandBy {
		return false, err
	}
	j.log.Error("a step could not be undone; what it left is removed by `cinderlift reap`", "strategy", plan.Strategy,
		"step", name, "reason", ReasonOf(err), "error", err)
	j.rec.Left = append(j.rec.Left, activity)

	return true, nil
}
