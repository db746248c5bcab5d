package worker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

func fault(r worker.Reason, a worker.Advice) error {
	return &worker.Error{Op: "test", Reason: r, Advice: a, Err: errors.New("scripted")}
}

// edit lets a test change the steps of the toy by their name; p tells which worker runs it.
func (w *world) edit(change func(p *proc, j worker.Job, s worker.Step) worker.Step) {
	w.strategies = func(p *proc) []worker.Strategy { return []worker.Strategy{p.edited("toy", change)} }
}

func (p *proc) edited(name string, change func(p *proc, j worker.Job, s worker.Step) worker.Step) script {
	s := p.toy()
	s.name = name
	plan := s.plan
	s.plan = func(ctx context.Context, t worker.Task) (worker.Plan, error) {
		pl, err := plan(ctx, t)
		pl.Strategy = name
		for i := range pl.Steps {
			pl.Steps[i] = change(p, t.Job, pl.Steps[i])
		}

		return pl, err
	}

	return s
}

// failing makes the step answer err, after its effect.
func failing(step string, err error) func(p *proc, j worker.Job, s worker.Step) worker.Step {
	return func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
		if s.Name == step {
			return after(s, func(context.Context) error { return err })
		}

		return s
	}
}

// TestStepFails: what an error of each step leads to.
func TestStepFails(t *testing.T) {
	ceph := worker.ReasonCephRefused
	all := []string{"image-1/active", "image-1/data", "image-1/snapshot"}
	for _, c := range []struct {
		name, step string
		err        error
		result     worker.Result
		reason     worker.Reason
		left       []string
	}{
		{"give up", "data", fault(ceph, worker.GiveUp), worker.Failed, ceph, nil},
		{"other way without another", "data", fault(ceph, worker.OtherWay), worker.Failed, worker.ReasonCephRefused, nil},
		{"retry beyond patience", "data", fault(ceph, worker.Retry), worker.Failed, ceph, nil},
		{"unclassified", "snapshot", errors.New("raw"), worker.Failed, worker.ReasonInternal, nil},
		{"image deleted", "data", fault(worker.ReasonImageMissing, worker.GiveUp), worker.Cancelled, worker.ReasonImageMissing, nil},
		{"after the commit point", "tidy", fault(ceph, worker.GiveUp), worker.Done, ceph, made},
		{"after the commit point, other way", "tidy", fault(ceph, worker.OtherWay), worker.Done, ceph, made},
		{"after the commit point beyond patience", "tidy", fault(ceph, worker.Retry), worker.Done, ceph, made},
		// It had its effect: its undo says so, and the job goes forward.
		{"commit step", "publish", fault(worker.ReasonGlanceRefused, worker.GiveUp), worker.Done, worker.ReasonGlanceRefused, all},
		{"wrong bytes", "publish", fault(worker.ReasonMismatch, worker.GiveUp), worker.Failed, worker.ReasonMismatch, all},
		{"somebody else's data", "publish", fault(worker.ReasonImageState, worker.GiveUp), worker.Failed, worker.ReasonImageState, all},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.edit(failing(c.step, c.err))
				w.start("a", nil)
				w.send(job(1))
				w.want("image-1", c.result, c.reason, c.left...)
			})
		})
	}
}

// TestPanics: wherever others' code panics, the job ends, and the worker lives and does the next one.
func TestPanics(t *testing.T) {
	boom := func() { panic("secret: boom") }
	for _, c := range []struct {
		name   string
		set    func(w *world)
		result worker.Result
	}{
		{"step", func(w *world) {
			w.edit(func(_ *proc, j worker.Job, s worker.Step) worker.Step {
				if s.Name == "data" && j.ImageID == "image-1" {
					return after(s, func(context.Context) error { boom(); return nil })
				}

				return s
			})
		}, worker.Failed},
		{"undo", func(w *world) {
			w.edit(func(_ *proc, j worker.Job, s worker.Step) worker.Step {
				if s.Name == "data" && j.ImageID == "image-1" {
					s.Undo = func(context.Context) error { boom(); return nil }
					s = after(s, func(context.Context) error { return fault(worker.ReasonCephRefused, worker.GiveUp) })
				}

				return s
			})
		}, worker.Failed},
		{"plan", func(w *world) {
			w.strategies = func(p *proc) []worker.Strategy {
				toy := p.toy()

				return []worker.Strategy{fixed("toy", func(t worker.Task) worker.Plan {
					if t.Job.ImageID == "image-1" {
						boom()
					}
					pl, _ := toy.plan(context.Background(), t)

					return pl
				})}
			}
		}, worker.Failed},
		{"facts", func(w *world) {
			w.task = func(_ context.Context, p *proc, j worker.Job) (worker.Task, error) {
				if j.ImageID == "image-1" {
					boom()
				}

				return w.plainTask(j)
			}
		}, worker.Failed},
		{"attend", func(w *world) {
			w.attend = func(_ context.Context, _ *proc, j worker.Job) {
				if j.ImageID == "image-1" {
					boom()
				}
			}
		}, worker.Done},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				c.set(w)
				w.start("a", nil)
				w.send(job(1))
				if o := w.outcome("image-1"); o.Result != c.result || strings.Contains(o.Message, "goroutine") {
					t.Errorf("outcome is %+v, want %s without a stack", o, c.result)
				}
				w.send(job(2))
				if o := w.outcome("image-2"); o.Result != worker.Done {
					t.Errorf("the next job's outcome is %+v", o)
				}
			})
		})
	}
}

// TestPanicWhileSettling: even a list of settling steps that can't be made ends no worker, and leaks no slot.
func TestPanicWhileSettling(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Slots = 1
		broken := true
		w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
			if broken && j.ImageID == "image-1" {
				panic("boom")
			}

			return []worker.Step{p.tell("volume", j, o), p.tell("reply", j, o), p.tell("notify", j, o)}
		}
		w.start("a", nil)
		w.send(job(1), job(2))
		w.closed("image-2")
		broken = false
		w.closed("image-1")
	})
}

// TestRetries: waits grow, are bounded, and end with patience.
func TestRetries(t *testing.T) {
	bubble(t, func(w *world) {
		var at []time.Time
		w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
			if s.Name == "data" {
				return after(s, func(context.Context) error {
					at = append(at, time.Now())

					return transient("data")
				})
			}

			return s
		})
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Failed, worker.ReasonCephUnavailable)
		for i := 1; i < len(at); i++ {
			whole := min(time.Second, 100*time.Millisecond<<min(i-1, 10))
			if d := at[i].Sub(at[i-1]); d < whole/2 || d > whole {
				t.Errorf("the wait before try %d is %s, want %s to %s", i+1, d, whole/2, whole)
			}
		}
		if d := at[len(at)-1].Sub(at[0]); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("patience was over after %s", d)
		}
	})
}

// TestUndo: newest first, everything that was begun, and nothing else.
func TestUndo(t *testing.T) {
	bubble(t, func(w *world) {
		w.edit(failing("data", fault(worker.ReasonCephRefused, worker.GiveUp)))
		p := w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Failed, worker.ReasonCephRefused)
		var undone []string
		for _, op := range p.ops {
			if strings.HasPrefix(op, "undo") {
				undone = append(undone, op)
			}
		}
		if !slices.Equal(undone, []string{"undo data", "undo snapshot"}) {
			t.Errorf("undone: %q", undone)
		}
	})
}

// TestUndoFails: what can't be undone is left, the rest is undone, and the volume does not wait for a day.
func TestUndoFails(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Backoff.Patience = 24 * time.Hour
		w.edit(func(p *proc, j worker.Job, s worker.Step) worker.Step {
			if s.Name == "data" {
				s.Undo = func(context.Context) error { return fault(worker.ReasonCephRefused, worker.GiveUp) }

				return after(s, func(context.Context) error { return fault(worker.ReasonPoolFull, worker.GiveUp) })
			}
			if s.Name == "snapshot" { // waits for its clone
				s.Undo = func(context.Context) error { return transient("snapshot has a clone") }
			}

			return s
		})
		start := time.Now()
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Failed, worker.ReasonPoolFull, "image-1/data", "image-1/snapshot")
		if took := time.Since(start); took > time.Minute {
			t.Errorf("the volume waited for %s", took)
		}
	})
}

// TestUndoOfTheCommitFails: as long as nobody can tell whether the image is active, nothing of it is removed, and no
// other strategy makes it a second time.
func TestUndoOfTheCommitFails(t *testing.T) {
	for _, advice := range []worker.Advice{worker.GiveUp, worker.Retry} {
		for _, why := range []worker.Advice{worker.GiveUp, worker.OtherWay} {
			t.Run(fmt.Sprint(advice, why), func(t *testing.T) {
				bubble(t, func(w *world) {
					change := func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
						if s.Name == "publish" {
							s.Undo = func(context.Context) error { return fault(worker.ReasonGlanceUnavailable, advice) }

							return after(s, func(context.Context) error { return fault(worker.ReasonGlanceRefused, why) })
						}

						return s
					}
					w.strategies = func(p *proc) []worker.Strategy {
						return []worker.Strategy{p.edited("toy", change), p.edited("second", failing("", nil))}
					}
					w.start("a", nil)
					w.send(job(1))
					w.want("image-1", worker.Failed, worker.ReasonGlanceUnavailable, "image-1/active", "image-1/data",
						"image-1/snapshot")
				})
			})
		}
	}
}

// TestKilledWhileUndoing: whatever of an undo was done, the next worker does not take an undone step for done. Here it
// even succeeds, because what failed does not fail any more.
func TestKilledWhileUndoing(t *testing.T) {
	for _, op := range []string{"undo data", "undo snapshot", "save"} {
		for n := 1; n <= 12; n++ {
			for _, m := range []mode{dieBefore, dieAfter} {
				t.Run(fmt.Sprint(op, n, m), func(t *testing.T) {
					bubble(t, func(w *world) {
						w.edit(func(p *proc, j worker.Job, s worker.Step) worker.Step {
							if s.Name == "publish" && p.name == "a" {
								s.Do = func(context.Context, worker.Progress) error { return fault(worker.ReasonPoolFull, worker.GiveUp) }
							}

							return s
						})
						left := n
						p := w.start("a", func(got string) mode {
							if got == op {
								left--
							}
							if got == op && left == 0 {
								return m
							}

							return well
						})
						w.send(job(1))
						<-time.After(time.Minute)
						died := p.isDead()
						p.kill()
						w.start("b", nil)
						if o := w.outcome("image-1"); o.Result == worker.Done && slices.Equal(w.left(), made) ||
							o.Result == worker.Failed && len(w.left()) == 0 {
							return
						}
						t.Errorf("died %v, record %+v, left %q\n\t%s", died, w.record("image-1"), w.left(), w.history())
					})
				})
			}
		}
	}
}

func TestOtherWay(t *testing.T) {
	bubble(t, func(w *world) {
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{
				fixedNo("never"), p.edited("first", failing("data", fault(worker.ReasonCephRefused, worker.OtherWay))),
				p.edited("second", failing("", nil)),
			}
		}
		w.start("a", nil)
		w.send(job(1))
		if o := w.want("image-1", worker.Done, worker.ReasonNone, made...); o.Strategy != "second" {
			t.Errorf("strategy is %q", o.Strategy)
		}
		if r := w.record("image-1"); !slices.Equal(r.Tried, []string{"first"}) {
			t.Errorf("tried are %q", r.Tried)
		}
	})
}

func fixedNo(name string) script {
	return script{name, func(context.Context, worker.Task) (worker.Plan, error) {
		return worker.Plan{}, worker.NotApplicable(name, "because of "+name)
	}}
}

func TestDeclined(t *testing.T) {
	bubble(t, func(w *world) {
		w.strategies = func(*proc) []worker.Strategy { return []worker.Strategy{fixedNo("one"), fixedNo("two")} }
		w.start("a", nil)
		w.send(job(1))
		o := w.want("image-1", worker.Declined, worker.ReasonNotApplicable)
		if !strings.Contains(o.Message, "because of one") || !strings.Contains(o.Message, "because of two") {
			t.Errorf("message is %q", o.Message)
		}
	})
}

// TestStrategyTakenAway: the operator drops a strategy while a job of it is open. Something is left then: it must not be
// handed back as if nothing had happened.
func TestStrategyTakenAway(t *testing.T) {
	bubble(t, func(w *world) {
		w.strategies = func(p *proc) []worker.Strategy {
			if p.name == "a" {
				return []worker.Strategy{p.toy()}
			}

			return []worker.Strategy{p.edited("new", failing("", nil))}
		}
		a := w.start("a", onFirst("do data", 1, dieAfter))
		w.send(job(1))
		<-time.After(time.Minute)
		a.kill()
		w.start("b", nil)
		w.want("image-1", worker.Failed, worker.ReasonNotApplicable, "image-1/data", "image-1/snapshot")
	})
}

func TestBadPlans(t *testing.T) {
	do := func(context.Context, worker.Progress) error { return nil }
	for _, c := range []struct {
		name string
		plan worker.Plan
	}{
		{"empty", worker.Plan{}},
		{"no commit point", worker.Plan{Strategy: "s", Steps: []worker.Step{{Name: "a", Do: do}}}},
		{"unknown commit point", worker.Plan{Strategy: "s", Commit: "b", Steps: []worker.Step{{Name: "a", Do: do}}}},
		{"unnamed step", worker.Plan{Strategy: "s", Commit: "a", Steps: []worker.Step{{Name: "a", Do: do}, {Do: do}}}},
		{"empty step", worker.Plan{Strategy: "s", Commit: "a", Steps: []worker.Step{{Name: "a"}}}},
		{"step twice", worker.Plan{Strategy: "s", Commit: "a", Steps: []worker.Step{{Name: "a", Do: do}, {Name: "a", Do: do}}}},
		{"another strategy's", worker.Plan{Strategy: "t", Commit: "a", Steps: []worker.Step{{Name: "a", Do: do}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.strategies = func(*proc) []worker.Strategy {
					return []worker.Strategy{fixed("s", func(worker.Task) worker.Plan { return c.plan })}
				}
				w.start("a", nil)
				w.send(job(1))
				w.want("image-1", worker.Failed, worker.ReasonInternal)
			})
		})
	}
}

// TestReplan: the same strategy is asked again, what is to be redone is redone, the rest is not.
func TestReplan(t *testing.T) {
	bubble(t, func(w *world) {
		times := map[string]int{}
		w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
			return after(s, func(context.Context) error {
				times[s.Name]++
				if s.Name == "publish" && times[s.Name] < 3 {
					return &worker.Replan{Redo: []string{"data"}, Err: errors.New("not complete")}
				}

				return nil
			})
		})
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		if times["snapshot"] != 1 || times["data"] != 3 || times["publish"] != 3 {
			t.Errorf("steps ran %v times", times)
		}
	})
}

func TestReplanLimit(t *testing.T) {
	bubble(t, func(w *world) {
		n := 0
		w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
			if s.Name == "data" {
				return after(s, func(context.Context) error {
					n++

					return &worker.Replan{Err: transient("data")}
				})
			}

			return s
		})
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Failed, worker.ReasonInternal)
		if n != 4 {
			t.Errorf("tried %d times", n)
		}
	})
}

// TestKept: what a plan keeps comes back in every later one, and only there.
func TestKept(t *testing.T) {
	bubble(t, func(w *world) {
		var got []string
		w.strategies = func(p *proc) []worker.Strategy {
			toy := p.toy()

			return []worker.Strategy{fixed("toy", func(t worker.Task) worker.Plan {
				got = append(got, string(t.Kept))
				pl, _ := toy.plan(context.Background(), t)
				pl.Keep = []byte(`{"by":"` + p.name + `"}`)
				if t.Kept != nil {
					pl.Keep = t.Kept
				}

				return pl
			})}
		}
		a := w.start("a", onFirst("do data", 1, dieAfter))
		w.send(job(1))
		<-time.After(time.Minute)
		a.kill()
		w.start("b", nil)
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		if !slices.Equal(got, []string{"", `{"by":"a"}`}) {
			t.Errorf("kept were %q", got)
		}
	})
}

// TestFacts: what Cinder and Glance say before a job begins.
func TestFacts(t *testing.T) {
	for _, c := range []struct {
		name   string
		set    func(w *world)
		result worker.Result
		reason worker.Reason
	}{
		{"volume is free", func(w *world) { w.volume = "available" }, worker.Failed, worker.ReasonVolumeState},
		{"image has data", func(w *world) { w.image = worker.ImageActive }, worker.Failed, worker.ReasonImageState},
		{"image is being uploaded", func(w *world) { w.image = worker.ImageSaving }, worker.Failed, worker.ReasonImageState},
		{"volume is gone", missing(worker.ReasonVolumeMissing), worker.Failed, worker.ReasonVolumeMissing},
		{"image is gone", missing(worker.ReasonImageMissing), worker.Cancelled, worker.ReasonImageMissing},
		{"another project's", missing(worker.ReasonNotOwner), worker.Failed, worker.ReasonNotOwner},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				c.set(w)
				p := w.start("a", nil)
				w.send(job(1))
				w.want("image-1", c.result, c.reason)
				if slices.Contains(p.ops, "do snapshot") {
					t.Error("the job was begun")
				}
			})
		})
	}
}

func missing(r worker.Reason) func(w *world) {
	return func(w *world) {
		w.task = func(context.Context, *proc, worker.Job) (worker.Task, error) {
			return worker.Task{}, fault(r, worker.GiveUp)
		}
	}
}

// TestDeletedMeanwhile: between two workers the image is deleted. All is removed, and the result says so.
func TestDeletedMeanwhile(t *testing.T) {
	for _, op := range []string{"do snapshot", "do data", "do publish"} {
		bubble(t, func(w *world) {
			a := w.start("a", onFirst(op, 1, dieAfter))
			w.send(job(1))
			<-time.After(time.Minute)
			a.kill()
			w.set("image-1/active", false)
			missing(worker.ReasonImageMissing)(w)
			w.start("b", nil)
			w.want("image-1", worker.Cancelled, worker.ReasonImageMissing)
		})
	}
}

// TestVolumeResetMeanwhile: an operator resets the volume's status. An image that is active by then stays.
func TestVolumeResetMeanwhile(t *testing.T) {
	for op, result := range map[string]worker.Result{"do data": worker.Failed, "do publish": worker.Done} {
		bubble(t, func(w *world) {
			a := w.start("a", onFirst(op, 1, dieAfter))
			w.send(job(1))
			<-time.After(time.Minute)
			a.kill()
			w.mu.Lock()
			w.volume = "available"
			w.mu.Unlock()
			w.start("b", nil)
			if o := w.outcome("image-1"); o.Result != result {
				t.Errorf("after %s the outcome is %+v", op, o)
			}
			if result == worker.Done && !slices.Equal(w.left(), made) || result == worker.Failed && len(w.left()) != 0 {
				t.Errorf("after %s left are %q", op, w.left())
			}
		})
	}
}
