package worker_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// orphan leaves job n in the journal as a worker does that died right after it accepted it.
func (w *world) orphan(n int) {
	w.t.Helper()
	now := time.Now().UTC()
	if err := w.store.Journal("dead").Create(context.Background(), worker.Record{Job: job(n), Accepted: now, Updated: now}); err != nil {
		w.t.Errorf("create orphan: %v", err)
	}
}

// TestAdoptHasAReserve: new work can't starve old, and old can't take more than as many slots again.
func TestAdoptHasAReserve(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Slots = 2
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(context.Context) error { <-time.After(10 * time.Minute); return nil })}
		}
		p := w.start("a", nil)
		synctest.Wait()
		w.send(job(0), job(1), job(2))
		synctest.Wait()
		for n := 10; n < 15; n++ {
			w.orphan(n)
		}
		<-time.After(time.Minute)
		if got := p.number(&p.running); got != 4 || len(w.queue) != 1 {
			t.Errorf("%d running and %d in the queue, want 4 and 1", got, len(w.queue))
		}
		for _, n := range []int{0, 1, 2, 10, 11, 12, 13, 14} {
			w.closed(job(n).Key())
		}
		if w.most > 4 {
			t.Errorf("%d at a time", w.most)
		}
	})
}

// TestAdoptAmongMany: an orphan among many jobs that live workers hold is found soon.
func TestAdoptAmongMany(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Slots = 100
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(context.Context) error {
				if p.name == "a" {
					<-time.After(time.Hour)
				}

				return nil
			})}
		}
		a := w.start("a", nil)
		synctest.Wait()
		for n := range 80 {
			w.send(job(n))
		}
		synctest.Wait()
		a.away("keys") // it must not take the orphan itself
		w.conf.Slots = 1
		w.start("b", nil)
		synctest.Wait()
		w.orphan(100)
		start := time.Now()
		w.closed(job(100).Key())
		if took := time.Since(start); took > 15*time.Second {
			t.Errorf("adoption took %s", took)
		}
	})
}

// TestAdoptAfterKill: after a kill the job goes on when the lease has ended, neither earlier nor much later.
func TestAdoptAfterKill(t *testing.T) {
	bubble(t, func(w *world) {
		hang := func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) }
		w.strategies = func(p *proc) []worker.Strategy {
			if p.name == "a" {
				return []worker.Strategy{p.doing(hang)}
			}

			return []worker.Strategy{p.toy()}
		}
		a := w.start("a", nil)
		w.send(job(1))
		<-time.After(5 * time.Minute)
		b := w.start("b", nil)
		<-time.After(5 * time.Minute)
		if n := b.number(&b.started); n != 0 {
			t.Fatal("a job was taken from a worker that lives")
		}
		start := time.Now()
		a.die()
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		if took := time.Since(start); took < ttl-10*time.Second || took > ttl+2*time.Second {
			t.Errorf("the job went on after %s", took)
		}
		if w.store.Fences() != 1 {
			t.Errorf("%d fences", w.store.Fences())
		}
		a.kill()
	})
}

// TestStopLetsJobsEnd: within SoftStop a job ends where it began, and nothing new is taken.
func TestStopLetsJobsEnd(t *testing.T) {
	bubble(t, func(w *world) {
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(context.Context) error { <-time.After(2500 * time.Millisecond); return nil })}
		}
		p := w.start("a", nil)
		w.send(job(1))
		<-time.After(time.Second)
		p.cancel()
		synctest.Wait()
		w.send(job(2))
		<-p.done
		if !w.record("image-1").Closed || len(w.queue) != 1 || p.number(&p.started) != 1 {
			t.Errorf("record %+v, %d in the queue", w.record("image-1"), len(w.queue))
		}
	})
}

// TestStopHandsOver: what takes longer is handed over at once, and counts for nothing, however often it happens.
func TestStopHandsOver(t *testing.T) {
	bubble(t, func(w *world) {
		hang := true
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(ctx context.Context) error {
				if hang {
					<-ctx.Done()

					return &worker.Error{Op: "hang", Reason: worker.ReasonCephUnavailable, Err: ctx.Err()}
				}

				return nil
			})}
		}
		w.send(job(1))
		for range 6 { // more than Claims
			p := w.start("a", nil)
			<-time.After(time.Minute)
			start := time.Now()
			p.stop()
			if took := time.Since(start); took != 2*time.Second {
				t.Errorf("stopping took %s, want SoftStop", took)
			}
			if w.store.Held() {
				t.Fatal("the lease was not given back")
			}
			if r := w.record("image-1"); r.Doing != nil || len(r.Deaths) != 0 || r.Outcome != nil || !slices.Equal(r.Begun, []string{"snapshot", "data"}) {
				t.Fatalf("record is %+v", r)
			}
		}
		hang = false
		w.start("b", nil)
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestClaimsLimit: a step that ends every worker that tries it ends the job instead, and what it left is undone.
func TestClaimsLimit(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = -1
		w.send(job(1))
		n := 0
		for ; n < 10; n++ {
			p := w.start("crashing", on("do data", dieAfter))
			<-time.After(time.Minute)
			if !p.isDead() {
				break
			}
			p.kill()
		}
		if n != w.conf.Backoff.Claims {
			t.Errorf("%d workers died, want %d", n, w.conf.Backoff.Claims)
		}
		w.want("image-1", worker.Failed, worker.ReasonAttempts)
	})
}

// TestClaimsLimitAfterTheCommit: then there is nothing to undo.
func TestClaimsLimitAfterTheCommit(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Aside = -1
		w.send(job(1))
		for range w.conf.Backoff.Claims {
			p := w.start("crashing", on("do tidy", dieBefore))
			<-time.After(time.Minute)
			p.kill()
		}
		w.start("good", nil)
		w.want("image-1", worker.Done, worker.ReasonAttempts, "image-1/active", "image-1/data", "image-1/snapshot")
	})
}

// TestLeaseLost: a worker that can't renew stops before another goes on, and does no more.
func TestLeaseLost(t *testing.T) {
	bubble(t, func(w *world) {
		lost := make(chan time.Time, 1)
		w.strategies = func(p *proc) []worker.Strategy {
			if p.name == "b" {
				return []worker.Strategy{p.toy()}
			}

			return []worker.Strategy{p.doing(func(ctx context.Context) error {
				<-ctx.Done()
				lost <- time.Now()
				if !errors.Is(context.Cause(ctx), worker.ErrLeaseLost) {
					t.Errorf("the cause is %v", context.Cause(ctx))
				}

				return ctx.Err()
			})}
		}
		a := w.start("a", nil)
		w.send(job(1))
		<-time.After(15 * time.Second)
		a.away("*")
		b := w.start("b", nil)
		for b.number(&b.started) == 0 {
			<-time.After(time.Second)
		}
		select {
		case at := <-lost:
			if time.Since(at) < 4*time.Second {
				t.Errorf("the old owner stopped at %s, the new one began at %s", at, time.Now())
			}
		default:
			t.Error("the old owner has not stopped")
		}
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		a.away()
		<-time.After(time.Minute)
		if n := a.number(&a.started); n != 1 {
			t.Errorf("the old owner began %d times", n)
		}
	})
}

// TestSameVolume: two jobs of one volume never run at the same time.
func TestSameVolume(t *testing.T) {
	bubble(t, func(w *world) {
		at := 0
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(context.Context) error {
				if at++; at > 1 {
					t.Error("two at a time")
				}
				<-time.After(20 * time.Second)
				at--

				return nil
			})}
		}
		w.start("a", nil)
		w.start("b", nil)
		other := job(2)
		other.VolumeID = job(1).VolumeID
		w.send(job(1), other)
		w.closed("image-1")
		w.closed("image-2")
	})
}

func TestRetention(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Retention = time.Hour
		w.start("a", nil)
		w.start("b", nil)
		w.send(job(1))
		w.closed("image-1")
		<-time.After(time.Hour - time.Minute)
		w.record("image-1")
		<-time.After(2 * time.Minute)
		if _, err := w.store.Journal("test").Load(t.Context(), "image-1"); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("after the retention the record is there: %v", err)
		}
	})
}

// TestRetentionFails: a record that can't be removed is tried again.
func TestRetentionFails(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Retention = time.Hour
		w.start("a", onFirst("remove", 3, failBefore))
		w.send(job(1))
		w.closed("image-1")
		<-time.After(time.Hour + 5*time.Minute)
		if _, err := w.store.Journal("test").Load(t.Context(), "image-1"); !errors.Is(err, worker.ErrNotFound) {
			t.Errorf("after the retention the record is there: %v", err)
		}
	})
}
