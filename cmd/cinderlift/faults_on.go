//go:build faults

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// faultVariable holds failpoints, separated by commas: <strategy>/<step>/<mode>[=milliseconds][@image id]. The steps are
// those of the plans as the strategies make them, so that a new one can't be forgotten. An undo is the step
// undo-<step>; a settling step belongs to the strategy `settle`, asking for the facts is plan/facts. Each failpoint
// fires once in a process, those that name the same step one after the other, and says so in the log before it acts.
const faultVariable = "CINDERLIFT_FAULT"

// The modes. What comes after = is the time in die-in, stop-in and term-in; without it they act at the first progress, a
// moment after Do has begun, or at its end, whichever comes first.
const (
	dieBefore      = "die-before"      // kill -9 of this process instead of the call
	dieIn          = "die-in"          // during the call
	dieAfter       = "die-after"       // after the call, before anybody hears of it
	notApplied     = "not-applied"     // Retry without a call
	appliedFailed  = "applied-failed"  // Retry after the call
	appliedRefused = "applied-refused" // GiveUp after the call
	refused        = "refused"         // GiveUp without a call
	otherWay       = "other-way"       // OtherWay without a call
	hang           = "hang"            // no call, until ctx ends
	hangAfter      = "hang-after"      // after the call, until ctx ends
	stopBefore     = "stop"            // SIGSTOP of this process; the call follows when somebody wakes it
	stopIn         = "stop-in"         // during the call
	termIn         = "term-in"         // SIGTERM to this process during the call
)

func faultModes() []string {
	return []string{dieBefore, dieIn, dieAfter, notApplied, appliedFailed, appliedRefused, refused, otherWay, hang, hangAfter, stopBefore, stopIn, termIn}
}

// moment is long enough for a call to have begun and short enough that few have ended.
const moment = 3 * time.Millisecond

// listed begins the lines that name everything of a plan that can be made to fail; tests make their cells from them.
const listed = "failpoints"

var errInjected = errors.New("injected by " + faultVariable)

// faults reads the failpoints and takes their variable out of the environment, where loadConfig knows of none such. What
// it answers wraps what a worker is made of.
func faults() (func(*worker.Runner) *worker.Runner, error) {
	var armed failpoints
	text := os.Getenv(faultVariable)
	if err := os.Unsetenv(faultVariable); err != nil {
		return nil, err
	}
	for one := range strings.SplitSeq(text, ",") {
		if one == "" {
			continue
		}
		f, err := parseFault(one)
		if err != nil {
			return nil, errConfig{err}
		}
		armed = append(armed, f)
	}

	return armed.wrap, nil
}

func parseFault(text string) (*failpoint, error) {
	where, image, _ := strings.Cut(text, "@")
	parts := strings.Split(where, "/")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%s: %q is not <strategy>/<step>/<mode>[@image id]", faultVariable, text)
	}
	mode, ms, timed := strings.Cut(parts[2], "=")
	f := &failpoint{strategy: parts[0], step: parts[1], mode: mode, image: image, after: moment, early: !timed}
	if !slices.Contains(faultModes(), mode) {
		return nil, fmt.Errorf("%s: mode %q is none of %s", faultVariable, mode, strings.Join(faultModes(), ", "))
	}
	if timed {
		n, err := strconv.Atoi(ms)
		if err != nil {
			return nil, fmt.Errorf("%s: %q is no number of milliseconds", faultVariable, ms)
		}
		f.after = time.Duration(n) * time.Millisecond
	}

	return f, nil
}

// failpoint is one of them.
type failpoint struct {
	strategy, step, mode, image string
	after                       time.Duration // die-in, stop-in, term-in: counted from the beginning of the call
	early                       bool          // or at the first progress

	fired atomic.Bool
}

type failpoints []*failpoint

// call does a step's work, or lets it go wrong.
type call func(context.Context, worker.Progress) error

// wrap puts the failpoints around what r is made of.
func (fs failpoints) wrap(r *worker.Runner) *worker.Runner {
	if len(fs) == 0 {
		return r
	}
	build := r.Strategies
	r.Strategies = func(c worker.Claim) []worker.Strategy {
		list := slices.Clone(build(c))
		for i, s := range list {
			list[i] = faultyStrategy{s, fs, r.Logger}
		}

		return list
	}
	r.Settler = faultySettler{r.Settler, fs, r.Logger}
	r.Facts = faultyFacts{r.Facts, fs, r.Logger}

	return r
}

// around makes a call one that may go wrong.
func (fs failpoints) around(log *slog.Logger, strategy, step, image string, do call) call {
	return func(ctx context.Context, p worker.Progress) error {
		for _, f := range fs {
			here := f.strategy == strategy && f.step == step && (f.image == "" || f.image == image)
			if here && f.fired.CompareAndSwap(false, true) {
				log := log.With("strategy", strategy, "step", step, "mode", f.mode, "image", image)

				return f.fire(ctx, p, do, log)
			}
		}

		return do(ctx, p)
	}
}

type faultyStrategy struct {
	worker.Strategy
	faults failpoints
	log    *slog.Logger
}

func (s faultyStrategy) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) {
	p, err := s.Strategy.Plan(ctx, t)
	p.Steps = slices.Clone(p.Steps)
	names := p.Names()
	for i, step := range p.Steps {
		p.Steps[i].Do = s.faults.around(s.log, s.Name(), step.Name, t.Job.ImageID, step.Do)
		if step.Undo == nil {
			continue
		}
		name := "undo-" + step.Name
		names = append(names, name)
		undo := s.faults.around(s.log, s.Name(), name, t.Job.ImageID,
			func(ctx context.Context, _ worker.Progress) error { return step.Undo(ctx) })
		p.Steps[i].Undo = func(ctx context.Context) error { return undo(ctx, nil) }
	}
	s.log.Info(listed, "strategy", s.Name(), "steps", names)

	return p, err
}

type faultySettler struct {
	worker.Settler
	faults failpoints
	log    *slog.Logger
}

func (s faultySettler) Settle(j worker.Job, o worker.Outcome) []worker.Step {
	steps := slices.Clone(s.Settler.Settle(j, o))
	for i, step := range steps {
		steps[i].Do = s.faults.around(s.log, "settle", step.Name, j.ImageID, step.Do)
	}
	s.log.Info(listed, "strategy", "settle", "steps", worker.Plan{Steps: steps}.Names())

	return steps
}

type faultyFacts struct {
	worker.Facts
	faults failpoints
	log    *slog.Logger
}

func (s faultyFacts) Task(ctx context.Context, j worker.Job) (t worker.Task, err error) {
	err = s.faults.around(s.log, "plan", "facts", j.ImageID, func(ctx context.Context, _ worker.Progress) (err error) {
		t, err = s.Facts.Task(ctx, j)

		return err
	})(ctx, nil)

	return t, err
}

// fire lets one call go wrong.
func (f *failpoint) fire(ctx context.Context, p worker.Progress, do call, log *slog.Logger) error {
	const said = "fault fired"
	switch f.mode {
	case dieIn:
		return f.during(ctx, p, do, func() { log.Warn(said); die() })
	case stopIn:
		return f.during(ctx, p, do, func() { log.Warn(said); signalSelf(syscall.SIGSTOP) })
	case termIn:
		return f.during(ctx, p, do, func() { log.Warn(said); signalSelf(syscall.SIGTERM) })
	case dieAfter, appliedFailed, appliedRefused, hangAfter:
		err := do(ctx, p)
		log.Warn(said, "error", err)
		f.linger(ctx)

		return f.failed(err)
	}
	log.Warn(said)
	switch f.mode {
	case dieBefore:
		die()
	case stopBefore:
		signalSelf(syscall.SIGSTOP) // until somebody sends SIGCONT

		return do(ctx, p)
	case hang:
		<-ctx.Done()
	}

	return f.failed(nil)
}

// linger is what follows a call that was made.
func (f *failpoint) linger(ctx context.Context) {
	switch f.mode {
	case dieAfter:
		die()
	case hangAfter:
		<-ctx.Done()
	}
}

// failed is the error that the mode tells. An error that the call had itself is the better one.
func (f *failpoint) failed(err error) error {
	if err != nil {
		return err
	}
	advice := worker.Retry
	switch f.mode {
	case refused, appliedRefused:
		advice = worker.GiveUp
	case otherWay:
		advice = worker.OtherWay
	}

	return &worker.Error{Op: "step " + f.step, Reason: worker.ReasonCephUnavailable, Advice: advice, Err: errInjected}
}

// during calls do and acts once meanwhile.
func (f *failpoint) during(ctx context.Context, p worker.Progress, do call, act func()) error {
	var once sync.Once
	timer := time.AfterFunc(f.after, func() { once.Do(act) })
	defer timer.Stop()
	err := do(ctx, func(a worker.Amount) {
		if f.early {
			once.Do(act)
		}
		if p != nil {
			p(a)
		}
	})
	once.Do(act)

	return err
}

// die ends this process as a power cut does.
func die() {
	signalSelf(syscall.SIGKILL)
	select {}
}

func signalSelf(s syscall.Signal) { _ = syscall.Kill(syscall.Getpid(), s) } // it can't fail
