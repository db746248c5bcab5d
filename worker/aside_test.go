package worker_test

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// kill lets n workers in a row die in an operation, each adopting after the other. It answers when the last is dead.
func (w *world) killIn(op string, m mode, n int) {
	w.t.Helper()
	for range n {
		p := w.start("crashing", on(op, m))
		for range 120 {
			<-time.After(time.Second)
			if p.isDead() {
				break
			}
		}
		if !p.isDead() {
			w.t.Errorf("a worker did not die in %s: %+v", op, w.record("image-1"))
		}
		p.kill()
	}
}

// TestPutAside: a job that kills its workers is kept from them, with its evidence, until its time is over. Then it is
// undone and fails.
func TestPutAside(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = time.Hour
		w.send(job(1))
		w.killIn("do data", dieAfter, w.conf.Backoff.Claims)
		p := w.start("good", nil)
		<-time.After(2 * time.Minute)
		r := w.record("image-1")
		if r.Aside == nil || r.Aside.Activity != "data" || r.Died("data") != w.conf.Backoff.Claims || r.Outcome != nil {
			t.Fatalf("the job was not put aside: %+v", r)
		}
		if n := p.number(&p.aside); n != 1 {
			t.Errorf("it was put aside %d times", n)
		}
		if d := r.Deaths[0]; d.Owner != "crashing" || d.Since.IsZero() {
			t.Errorf("the evidence is %+v", d)
		}
		if !w.has("image-1/snapshot") || w.store.Held() || p.number(&p.running) != 0 {
			t.Error("somebody works on a job that was put aside")
		}
		<-time.After(55 * time.Minute)
		w.want("image-1", worker.Failed, worker.ReasonAttempts)
		if since := time.Since(r.Aside.Since); since < time.Hour || since > time.Hour+5*time.Minute {
			t.Errorf("it was ended after %s", since)
		}
	})
}

// TestReplay: an operator has mended what killed the workers.
func TestReplay(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = time.Hour
		w.send(job(1))
		w.killIn("do data", dieAfter, w.conf.Backoff.Claims)
		w.start("good", nil)
		<-time.After(2 * time.Minute)
		w.change("image-1", func(r *worker.Record) bool { return r.Replay() })
		start := time.Now()
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the replay began after %s", took)
		}
	})
}

// TestEndAside: an operator does not want to wait.
func TestEndAside(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = time.Hour
		w.send(job(1))
		w.killIn("do data", dieAfter, w.conf.Backoff.Claims)
		w.start("good", nil)
		<-time.After(2 * time.Minute)
		start := time.Now()
		w.change("image-1", func(r *worker.Record) bool { return r.End(time.Now()) })
		w.want("image-1", worker.Failed, worker.ReasonAttempts)
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("it was ended after %s", took)
		}
	})
}

// change does what `cinderlift jobs` does for an operator.
func (w *world) change(key string, f func(*worker.Record) bool) {
	w.t.Helper()
	ctx := context.Background()
	c, err := w.store.Journal("operator").Claim(ctx, key)
	if err != nil {
		w.t.Fatalf("claim: %v", err)
	}
	r := c.Record()
	if !f(&r) {
		w.t.Errorf("there was nothing to change in %+v", r)
	}
	if err := c.Save(ctx, r); err != nil {
		w.t.Fatalf("save: %v", err)
	}
	if err := c.Release(ctx); err != nil {
		w.t.Fatalf("release: %v", err)
	}
}

// TestNothingToReplay: what is closed, or only works, is nothing to replay or to end.
func TestNothingToReplay(t *testing.T) {
	for _, r := range []worker.Record{{}, {Closed: true, Aside: &worker.Aside{}}} {
		if r.Replay() || r.End(time.Now()) {
			t.Errorf("%+v was changed", r)
		}
	}
}

// TestDeadly: whatever activity kills its workers, the job ends, in bounded time and with as much done as can be.
func TestDeadly(t *testing.T) {
	refuse := failing("data", fault(worker.ReasonCephRefused, worker.GiveUp))
	for _, c := range []struct {
		name   string
		edit   func(*proc, worker.Job, worker.Step) worker.Step
		op     string
		result worker.Result
		reason worker.Reason
		left   []string // in the journal
		things []string
	}{
		{"first step", nil, "do snapshot", worker.Failed, worker.ReasonAttempts, nil, nil},
		{"commit step", nil, "do publish", worker.Done, worker.ReasonNone, nil, made}, // its undo says that it had its effect
		{"step after it", nil, "do tidy", worker.Done, worker.ReasonAttempts, []string{"tidy"}, made},
		{"undo", refuse, "undo data", worker.Failed, worker.ReasonCephRefused, []string{"undo-data"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.conf.Aside = -1
				if c.edit != nil {
					w.edit(c.edit)
				}
				w.send(job(1))
				w.killIn(c.op, dieAfter, w.conf.Backoff.Claims)
				w.start("good", nil)
				r := w.closed("image-1")
				if r.Outcome.Result != c.result || r.Outcome.Reason != c.reason || !slices.Equal(r.Left, c.left) {
					t.Errorf("outcome %+v, left %q; want %s/%s, %q", *r.Outcome, r.Left, c.result, c.reason, c.left)
				}
				if got := w.left(); !slices.Equal(got, c.things) {
					t.Errorf("left are %q, want %q\n\t%s", got, c.things, w.history())
				}
			})
		})
	}
}

// TestDeadlyTelling: telling is only put off, however many it kills: the volume must not stay in `uploading`.
func TestDeadlyTelling(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = time.Hour
		w.send(job(1))
		for n := range 3 {
			w.killIn("tell reply", dieBefore, w.conf.Backoff.Claims)
			p := w.start("late", nil) // finds out that it is too much
			for tries := 0; w.record("image-1").PutOff <= n && tries < 1000; tries++ {
				<-time.After(100 * time.Millisecond)
			}
			p.kill()
			if r := w.record("image-1"); r.Closed {
				t.Fatal("it was told already")
			}
			<-time.After(2 * time.Minute)
		}
		if r := w.record("image-1"); r.PutOff != 3 || r.Aside != nil {
			t.Errorf("record is %+v", r)
		}
		w.start("good", nil)
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestWaitingIsNotKilling: jobs that wait for a service are not to blame for what happens to their workers meanwhile.
func TestWaitingIsNotKilling(t *testing.T) {
	var away atomic.Bool
	for name, set := range map[string]func(w *world){
		"facts": func(w *world) {
			w.task = func(_ context.Context, _ *proc, j worker.Job) (worker.Task, error) {
				if away.Load() {
					return worker.Task{}, fault(worker.ReasonGlanceUnavailable, worker.Retry)
				}

				return w.plainTask(j)
			}
		},
		"step": func(w *world) {
			w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
				if do := s.Do; s.Name == "data" {
					s.Do = func(ctx context.Context, pr worker.Progress) error {
						if away.Load() {
							return fault(worker.ReasonCephUnavailable, worker.Retry)
						}

						return do(ctx, pr)
					}
				}

				return s
			})
		},
		"telling": func(w *world) {
			w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
				volume := p.tell("volume", j, o)
				tell := volume.Do
				volume.Do = func(ctx context.Context, pr worker.Progress) error {
					if away.Load() {
						return fault(worker.ReasonCinderUnavailable, worker.Retry)
					}

					return tell(ctx, pr)
				}

				return []worker.Step{volume, p.tell("reply", j, o), p.tell("notify", j, o)}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.conf.Aside = time.Hour
				w.conf.Backoff = worker.Backoff{First: time.Second, Max: time.Minute, Patience: 24 * time.Hour, Claims: 3}
				away.Store(true)
				set(w)
				w.send(job(1))
				for range 10 {
					p := w.start("unlucky", nil)
					<-time.After(50 * time.Second)
					p.kill()
				}
				if r := w.record("image-1"); len(r.Deaths) > 0 || r.Aside != nil {
					t.Errorf("the job is blamed: %+v", r)
				}
				away.Store(false)
				w.start("good", nil)
				w.want("image-1", worker.Done, worker.ReasonNone, made...)
			})
		})
	}
}

// TestMovingIsNotKilling: a step whose data moves inside the cluster may outlive any number of workers; one that does not
// move is found out.
func TestMovingIsNotKilling(t *testing.T) {
	for _, moves := range []bool{true, false} {
		bubble(t, func(w *world) {
			w.conf.Aside = time.Hour
			w.edit(func(p *proc, _ worker.Job, s worker.Step) worker.Step {
				if do := s.Do; s.Name == "data" && p.name == "unlucky" {
					s.Do = func(ctx context.Context, pr worker.Progress) error {
						if moves {
							pr(worker.Amount{Done: 1, Total: 100, Cluster: 1})
						}
						<-ctx.Done()

						return ctx.Err()
					}
					_ = do
				}

				return s
			})
			w.send(job(1))
			for range 2 * w.conf.Backoff.Claims {
				p := w.start("unlucky", nil)
				<-time.After(50 * time.Second)
				p.kill()
			}
			if r := w.record("image-1"); moves != (r.Aside == nil) {
				t.Errorf("it moves: %v; record %+v", moves, r)
			}
			if moves {
				w.start("good", nil)
				w.want("image-1", worker.Done, worker.ReasonNone, made...)
			}
		})
	}
}

// TestClosedButNotReleased: a worker that died just after it had closed the job has left its leases; somebody gives them
// back, once.
func TestClosedButNotReleased(t *testing.T) {
	bubble(t, func(w *world) {
		a := w.start("a", on("release", dieBefore))
		w.send(job(1))
		<-time.After(20 * time.Second)
		if !w.record("image-1").Closed || !a.isDead() {
			t.Fatal("nobody died after closing the job")
		}
		a.kill()
		w.start("b", nil)
		<-time.After(2 * time.Minute)
		if r := w.record("image-1"); r.Unreleased || r.Epoch != 2 {
			t.Errorf("record is %+v", r)
		}
		<-time.After(time.Hour)
		if r := w.record("image-1"); r.Epoch != 2 {
			t.Errorf("it was claimed again: %+v", r)
		}
	})
}

// TestDeadlyFacts: asking for facts kills.
func TestDeadlyFacts(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = -1
		w.task = func(_ context.Context, p *proc, j worker.Job) (worker.Task, error) {
			if p.name == "crashing" {
				p.die()

				return worker.Task{}, errDead
			}

			return w.plainTask(j)
		}
		w.send(job(1))
		w.killIn("", well, w.conf.Backoff.Claims)
		w.start("good", nil)
		w.want("image-1", worker.Failed, worker.ReasonAttempts)
	})
}

// TestReturningForgets: deaths count only in a row; a worker that came back has shown that it is not the job that kills.
func TestReturningForgets(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = -1
		w.send(job(1))
		for range 3 {
			w.killIn("do data", dieBefore, w.conf.Backoff.Claims-1)
			p := w.start("failing", on("do data", failBefore)) // it comes back, with an error, and is stopped
			<-time.After(50 * time.Second)
			p.stop()
			if r := w.record("image-1"); r.Died("data") != w.conf.Backoff.Claims-1 || r.Doing != nil {
				t.Fatalf("a worker that was stopped counts: %+v", r)
			}
			w.change("image-1", func(r *worker.Record) bool { r.Deaths = nil; return true })
		}
		w.start("good", nil)
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestLostLeaseIsNoDeath: a worker that could not renew for a while tells the journal that it lives, if nobody has taken
// the job meanwhile.
func TestLostLeaseIsNoDeath(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = -1
		var calm atomic.Bool
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(ctx context.Context) error {
				if calm.Load() {
					return nil
				}
				<-ctx.Done()

				return ctx.Err()
			})}
		}
		a := w.start("a", nil)
		w.send(job(1))
		for range 2 * w.conf.Backoff.Claims {
			<-time.After(time.Minute)
			a.away("renew")
			<-time.After(time.Minute)
			a.away()
		}
		calm.Store(true)
		<-time.After(2 * time.Minute)
		a.away("renew")
		<-time.After(30 * time.Second) // what still hangs lets go
		a.away()
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestVerdictIsKept: who adopts a job that was given up goes on undoing, even when what made it fail has gone.
func TestVerdictIsKept(t *testing.T) {
	for _, op := range []string{"undo data", "undo snapshot"} {
		for _, m := range []mode{dieBefore, dieAfter} {
			bubble(t, func(w *world) {
				w.edit(failing("data", fault(worker.ReasonPoolFull, worker.GiveUp)))
				a := w.start("a", onFirst(op, 1, m))
				w.send(job(1))
				<-time.After(time.Minute)
				if !a.isDead() {
					t.Fatal("nobody died")
				}
				a.kill()
				w.strategies = func(p *proc) []worker.Strategy { return []worker.Strategy{p.toy()} }
				b := w.start("b", nil)
				w.want("image-1", worker.Failed, worker.ReasonPoolFull)
				for _, op := range b.ops {
					if op == "do snapshot" || op == "do data" {
						t.Errorf("the successor began anew: %q", b.ops)
					}
				}
			})
		}
	}
}

// TestPutOffFreesTheSlot: jobs that can't be told do not keep others waiting.
func TestPutOffFreesTheSlot(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Slots = 1
		var away atomic.Bool
		away.Store(true)
		w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
			volume := p.tell("volume", j, o)
			if away.Load() && j.ImageID == "image-1" {
				volume.Do = func(context.Context, worker.Progress) error {
					return fault(worker.ReasonCinderRefused, worker.Retry)
				}
			}

			return []worker.Step{volume, p.tell("reply", j, o), p.tell("notify", j, o)}
		}
		w.start("a", nil)
		w.send(job(1), job(2), job(3))
		<-time.After(5 * time.Minute)
		for _, key := range []string{"image-2", "image-3"} {
			if !w.record(key).Closed {
				t.Errorf("job %s waits for another's Cinder", key)
			}
		}
		if r := w.record("image-1"); r.PutOff == 0 || r.Closed {
			t.Errorf("record is %+v", r)
		}
		away.Store(false)
		start := time.Now()
		w.outcome("image-1")
		if took := time.Since(start); took > 11*time.Minute {
			t.Errorf("it was told after %s", took)
		}
	})
}

// TestNewerIsLeftAlone: a record of a later release.
func TestNewerIsLeftAlone(t *testing.T) {
	bubble(t, func(w *world) {
		rec := worker.Record{Version: worker.RecordVersion + 1, Job: job(1), Accepted: time.Now().Add(-240 * time.Hour)}
		closed := rec
		closed.Job, closed.Closed = job(2), true
		for _, r := range []worker.Record{rec, closed} {
			if err := w.store.Journal("newer").Create(t.Context(), r); err != nil {
				t.Fatal(err)
			}
		}
		p := w.start("a", nil)
		w.send(job(1)) // and the message comes again
		<-time.After(10 * time.Minute)
		for _, key := range []string{"image-1", "image-2"} {
			if r := w.record(key); r.Epoch != 0 || r.Version != worker.RecordVersion+1 {
				t.Errorf("it was touched: %+v", r)
			}
		}
		if p.number(&p.started) != 0 || len(w.queue) != 0 || !slices.Contains(w.intakes(), worker.Duplicate) {
			t.Errorf("%d started, %d in the queue, intakes %q", p.number(&p.started), len(w.queue), w.intakes())
		}
	})
}
