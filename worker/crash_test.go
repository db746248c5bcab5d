package worker_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
	"pgregory.net/rapid"
)

// at faults the n-th operation, counted from 0, and as many after it as times says.
func at(n, times int, m mode) func(string) mode {
	count := 0

	return func(string) mode {
		count++
		if count > n && count <= n+times {
			return m
		}

		return well
	}
}

// ending is how a job ends when nobody disturbs it.
type ending struct {
	name   string
	set    func(w *world)
	result worker.Result
	reason worker.Reason
	left   []string
}

func endings() []ending {
	refuse := func(advice worker.Advice) func(w *world) {
		return func(w *world) {
			w.strategies = func(p *proc) []worker.Strategy {
				toy := p.toy()
				if advice == worker.OtherWay {
					second := p.toy()
					second.name = "second"
					first := toy

					return []worker.Strategy{p.refusing(first, advice), renamed(second)}
				}

				return []worker.Strategy{p.refusing(toy, advice)}
			}
		}
	}

	return []ending{
		{"done", func(*world) {}, worker.Done, worker.ReasonNone, []string{"image-1/active", "image-1/data"}},
		{"failed", refuse(worker.GiveUp), worker.Failed, worker.ReasonCephRefused, nil},
		{"second strategy", refuse(worker.OtherWay), worker.Done, worker.ReasonNone,
			[]string{"image-1/active", "image-1/data"}},
		{"declined", func(w *world) {
			w.strategies = func(*proc) []worker.Strategy { return nil }
		}, worker.Declined, worker.ReasonNotApplicable, nil},
	}
}

// renamed gives the plan the name of its strategy.
func renamed(s script) script {
	plan := s.plan
	s.plan = func(ctx context.Context, t worker.Task) (worker.Plan, error) {
		p, err := plan(ctx, t)
		p.Strategy = s.name

		return p, err
	}

	return s
}

// refusing lets the step `data` make its data and then fail for good.
func (p *proc) refusing(s script, advice worker.Advice) script {
	plan := s.plan
	s.plan = func(ctx context.Context, t worker.Task) (worker.Plan, error) {
		pl, err := plan(ctx, t)
		pl.Steps[1] = after(pl.Steps[1], func(context.Context) error {
			return &worker.Error{Op: "make data", Reason: worker.ReasonCephRefused, Advice: advice}
		})

		return pl, err
	}

	return s
}

// undisturbed counts the operations of a job on its way to e.
func undisturbed(t *testing.T, e ending) []string {
	var ops []string
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		e.set(w)
		p := w.start("a", nil)
		synctest.Wait()
		w.send(job(1))
		w.want("image-1", e.result, e.reason, e.left...)
		p.stop()
		ops = p.ops
	})

	return ops
}

// TestCrashMatrix disturbs every operation of every ending in every way, once and twice in a row, and lets a second
// worker go on. The plan is walked by itself: a new operation is a new row.
func TestCrashMatrix(t *testing.T) {
	for _, e := range endings() {
		ops := undisturbed(t, e)
		for n, op := range ops {
			for _, m := range modes() {
				for times := 1; times <= 2; times++ {
					if times == 2 && (m == dieBefore || m == dieAfter) {
						continue
					}
					name := fmt.Sprintf("%s/%d %s/%s×%d", e.name, n, op, m, times)
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { disturbed(t, e, at(n, times, m)) })
					})
				}
			}
		}
	}
}

// disturbed runs a job on a faulty worker and then on one that works.
func disturbed(t tb, e ending, faults ...func(string) mode) {
	w := newWorld(t)
	w.conf.Backoff.Claims = 10 // more than die here: the limit has its own test
	e.set(w)
	for i, f := range faults {
		p := w.start(fmt.Sprint("faulty-", i), f)
		if i == 0 {
			synctest.Wait()
			w.send(job(1))
		}
		<-time.After(2 * time.Minute)
		if p.isDead() {
			p.kill()
		}
	}
	w.start("good", nil)
	w.want("image-1", e.result, e.reason, e.left...)
	if len(w.queue) != 0 || len(w.dlq) != 0 {
		t.Errorf("%d messages left in the queue, dead letters %v", len(w.queue), w.dlq)
	}
	for _, p := range w.procs {
		p.stop()
		if len(p.unacked) != 0 {
			t.Error("a delivery was never settled")
		}
	}
}

// trial is one run that rapid judges: a failure of it must not fail the test before it is shrunk.
type trial struct {
	failed   []string
	cleanups []func()
}

type stopTrial struct{}

func (*trial) Helper()                        {}
func (r *trial) Cleanup(f func())             { r.cleanups = append(r.cleanups, f) }
func (r *trial) Error(args ...any)            { r.failed = append(r.failed, fmt.Sprintln(args...)) }
func (r *trial) Errorf(f string, args ...any) { r.failed = append(r.failed, fmt.Sprintf(f, args...)) }

func (r *trial) Fatalf(f string, args ...any) {
	r.Errorf(f, args...)
	panic(stopTrial{})
}

// run runs f in a bubble and answers what went wrong.
func (r *trial) run(t *testing.T, f func()) []string {
	synctest.Test(t, func(*testing.T) {
		defer func() {
			if p := recover(); p != nil && p != (stopTrial{}) {
				panic(p)
			}
			for _, f := range slices.Backward(r.cleanups) {
				f()
			}
		}()
		f()
	})

	return r.failed
}

// TestSchedules lets several workers in a row be disturbed at random; whatever happens, the job ends once and as it
// has to.
func TestSchedules(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := rapid.SampledFrom(endings()).Draw(rt, "ending")
		schedules := make([]func(string) mode, rapid.IntRange(1, 4).Draw(rt, "workers"))
		for i := range schedules {
			schedules[i] = schedule(rt, fmt.Sprint("worker ", i))
		}
		tr := &trial{}
		if failed := tr.run(t, func() { disturbed(tr, e, schedules...) }); len(failed) > 0 {
			rt.Fatal(strings.Join(failed, "\n"))
		}
	})
}

func schedule(rt *rapid.T, who string) func(string) mode {
	some := []mode{well, well, well, well, well, dieBefore, dieAfter, failBefore, failAfter}
	plan := rapid.SliceOfN(rapid.SampledFrom(some), 0, 20).Draw(rt, who)
	n := 0

	return func(string) mode {
		n++
		if n > len(plan) {
			return well
		}

		return plan[n-1]
	}
}
