package worker_test

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// bubble runs f with a world in fake time.
func bubble(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(newWorld(t)) })
}

// on faults every operation of this name.
func on(op string, m mode) func(string) mode { return onFirst(op, 1<<30, m) }

// onFirst faults the first n operations of this name.
func onFirst(op string, n int, m mode) func(string) mode {
	return func(got string) mode {
		if got != op || n == 0 {
			return well
		}
		n--

		return m
	}
}

func (w *world) intakes() []worker.Intake {
	w.mu.Lock()
	defer w.mu.Unlock()

	return slices.Clone(w.intake)
}

var made = []string{"image-1/active", "image-1/data"}

func TestAccept(t *testing.T) {
	for _, c := range []struct {
		name  string
		fault func(string) mode
		want  []worker.Intake
	}{
		{"well", nil, []worker.Intake{worker.Accepted}},
		{"ack lost", onFirst("ack", 1, failAfter), []worker.Intake{worker.Accepted}},
		{"ack fails", onFirst("ack", 1, failBefore), []worker.Intake{worker.Accepted, worker.Duplicate}},
		{"create fails once", onFirst("create", 1, failBefore), []worker.Intake{worker.Accepted}},
		{"create applied and reported failed", onFirst("create", 1, failAfter), []worker.Intake{worker.Duplicate}},
		{"claim fails at first", onFirst("claim", 2, failBefore), []worker.Intake{worker.Accepted}},
		{"claim applied and reported failed", onFirst("claim", 2, failAfter), []worker.Intake{worker.Accepted}},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				p := w.start("a", c.fault)
				w.send(job(1))
				w.want("image-1", worker.Done, worker.ReasonNone, made...)
				p.stop()
				if got := w.intakes(); !slices.Equal(got, c.want) {
					t.Errorf("intakes are %v, want %v", got, c.want)
				}
				if len(w.queue) != 0 || len(p.unacked) != 0 {
					t.Error("the message is still with the broker")
				}
			})
		})
	}
}

// TestRecordVersion: a release that makes raw images only must not touch a job of another format, and may touch all others.
func TestRecordVersion(t *testing.T) {
	for format, want := range map[string]int{"raw": 1, "qcow2": 2} {
		bubble(t, func(w *world) {
			w.start("a", nil)
			j := job(1)
			j.DiskFormat = format
			w.send(j)
			w.closed("image-1")
			if got := w.record("image-1").Version; got != want {
				t.Errorf("a record of a job for %s has version %d, want %d", format, got, want)
			}
		})
	}
}

func TestAcceptDuplicates(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.start("a", nil)
		w.send(job(1), job(1))
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		w.send(job(1)) // once more after the end
		synctest.Wait()
		if n := p.number(&p.started); n != 1 {
			t.Errorf("the job ran %d times", n)
		}
		if len(w.queue) != 0 || len(w.dlq) != 0 || len(w.told) != 3 {
			t.Errorf("queue %d, dead letters %v, told %q", len(w.queue), w.dlq, w.told)
		}
	})
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}

	return string(b)
}

func TestAcceptConflict(t *testing.T) {
	bubble(t, func(w *world) {
		w.start("a", nil)
		w.send(job(1))
		w.closed("image-1")
		before := asJSON(w.record("image-1"))
		other := job(1)
		other.Digest, other.VolumeID = "another", "victim"
		w.send(other)
		synctest.Wait()
		if len(w.dlq) != 1 || worker.ReasonOf(w.dlq[0]) != worker.ReasonConflict {
			t.Errorf("dead letters are %v", w.dlq)
		}
		if got := asJSON(w.record("image-1")); got != before {
			t.Errorf("the first job became %s", got)
		}
	})
}

func TestAcceptRejectsAndGoesOn(t *testing.T) {
	bad := &worker.Error{Op: "decode", Reason: worker.ReasonBadRequest}
	for _, m := range []*message{{err: bad}, {panics: true}} {
		bubble(t, func(w *world) {
			w.conf.Slots = 1
			w.start("a", nil)
			for range 5 {
				w.queue <- &message{err: m.err, panics: m.panics}
			}
			w.send(job(1))
			w.want("image-1", worker.Done, worker.ReasonNone, made...)
			if len(w.dlq) != 5 {
				t.Errorf("dead letters are %v", w.dlq)
			}
			for _, err := range w.dlq {
				if strings.Contains(err.Error(), "goroutine") {
					t.Errorf("a stack goes to the dead-letter queue: %v", err)
				}
			}
		})
	}
}

// TestAcceptWhileTheJournalIsAway: the message is held, then requeued, and no other is taken until the journal is back.
func TestAcceptWhileTheJournalIsAway(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.start("a", nil)
		synctest.Wait()
		p.away("*")
		w.send(job(1), job(2), job(3))
		<-time.After(50 * time.Second)
		if len(w.intakes()) != 0 || len(w.queue) != 2 {
			t.Errorf("intakes %v with %d in the queue: the first has to be held", w.intakes(), len(w.queue))
		}
		<-time.After(20 * time.Second)
		if got := w.intakes(); !slices.Equal(got, []worker.Intake{worker.Requeued}) || len(w.queue) != 3 {
			t.Errorf("intakes %v with %d in the queue: the first has to be requeued", got, len(w.queue))
		}
		<-time.After(time.Hour)
		if len(w.intakes()) != 1 || p.number(&p.waiting) != 0 {
			t.Errorf("intakes %v: messages are taken while the journal is away", w.intakes())
		}
		p.away()
		for n := range 3 {
			w.closed(job(n + 1).Key())
		}
	})
}

// TestAcceptUnreadableRecord: a duplicate whose record can't be read must not go round and round.
func TestAcceptUnreadableRecord(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.start("a", nil)
		w.send(job(1))
		w.closed("image-1")
		p.away("load")
		before := len(w.intakes())
		w.send(job(1))
		<-time.After(10 * time.Second)
		if n := len(w.intakes()) - before; n == 0 || n > 200 {
			t.Errorf("requeued %d times in 10 s", n)
		}
	})
}

// TestStopWhileTheJournalIsAway: a worker whose Ceph is gone can be stopped.
func TestStopWhileTheJournalIsAway(t *testing.T) {
	for _, wait := range []time.Duration{5 * time.Second, 2 * time.Minute} { // while it holds the message, and later
		bubble(t, func(w *world) {
			p := w.start("a", nil)
			p.away("*")
			w.send(job(1))
			<-time.After(wait)
			start := time.Now()
			p.stop()
			if took := time.Since(start); took > 20*time.Second {
				t.Errorf("stopping took %s", took)
			}
			if len(w.queue) != 1 {
				t.Error("the message is not with the broker any more")
			}
		})
	}
}

func TestSlots(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Slots = 3
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(ctx context.Context) error { <-time.After(time.Minute); return nil })}
		}
		p := w.start("a", nil)
		for n := range 10 {
			w.send(job(n))
		}
		synctest.Wait()
		if p.number(&p.running) != 3 || p.number(&p.waiting) != 0 || len(w.queue) != 7 {
			t.Errorf("%d running, %d waiting, %d in the queue", p.number(&p.running), p.number(&p.waiting), len(w.queue))
		}
		for n := range 10 {
			w.closed(job(n).Key())
		}
		synctest.Wait()
		if w.most != 3 || p.number(&p.running) != 0 || p.number(&p.waiting) != 1 {
			t.Errorf("%d at most, now %d running, %d waiting", w.most, p.number(&p.running), p.number(&p.waiting))
		}
	})
}

// doing is the toy whose step `data` does something more.
func (p *proc) doing(f func(ctx context.Context) error) script {
	s := p.toy()
	plan := s.plan
	s.plan = func(ctx context.Context, t worker.Task) (worker.Plan, error) {
		pl, err := plan(ctx, t)
		pl.Steps[1] = after(pl.Steps[1], func(ctx context.Context) error {
			if p.isDead() {
				return errDead
			}

			return f(ctx)
		})

		return pl, err
	}

	return s
}

func TestNoTokenInTheJournal(t *testing.T) {
	raw, err := json.Marshal(worker.Record{Job: job(1)})
	if err != nil || strings.Contains(string(raw), "canary") {
		t.Errorf("record is %s, error %v", raw, err)
	}
}

// TestPrivate: the settler has the token in the process that took the request, and nothing in another.
func TestPrivate(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		bubble(t, func(w *world) {
			var got any
			w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
				got = j.Private

				return nil
			}
			if adopted {
				p := w.start("a", onFirst("claim", 1, dieBefore))
				synctest.Wait()
				w.send(job(1))
				synctest.Wait()
				p.kill()
			}
			w.start("b", nil)
			if !adopted {
				w.send(job(1))
			}
			w.closed("image-1")
			if (got == nil) != adopted {
				t.Errorf("adopted %v, private is %v", adopted, got)
			}
		})
	}
}
