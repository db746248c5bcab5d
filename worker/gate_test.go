package worker_test

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []string
		g := &worker.Gate{Changed: func(name string, closed bool) {
			if closed {
				name = "-" + name
			}
			told = append(told, name)
		}}
		if err := g.Wait(t.Context()); err != nil || len(g.Closed()) != 0 {
			t.Errorf("a new gate is closed: %v, %v", err, g.Closed())
		}
		g.Set("ceph", errors.New("away"))
		g.Set("ceph", errors.New("still away"))
		g.Set("bus", errors.New("blocked"))
		if c := g.Closed(); len(c) != 2 || c["ceph"] != "still away" || c["bus"] != "blocked" {
			t.Errorf("closed for %v", c)
		}
		open := make(chan error, 1)
		go func() { open <- g.Wait(t.Context()) }()
		g.Set("ceph", nil)
		synctest.Wait()
		select {
		case err := <-open:
			t.Errorf("it opened while the bus is blocked: %v", err)
		default:
		}
		g.Set("bus", nil)
		if err := <-open; err != nil {
			t.Errorf("wait: %v", err)
		}
		if want := []string{"-ceph", "-bus", "ceph", "bus"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// TestGateForAWhile: a closure with an end opens by itself; one that is set anew lasts anew; one without stays.
func TestGateForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &worker.Gate{}
		g.CloseFor("full", errors.New("full"), time.Minute)
		<-time.After(50 * time.Second)
		g.CloseFor("full", errors.New("full"), time.Minute)
		start := time.Now()
		if err := g.Wait(t.Context()); err != nil || time.Since(start) != time.Minute {
			t.Errorf("it opened after %s: %v", time.Since(start), err)
		}
		g.CloseFor("full", errors.New("full"), time.Second)
		g.Set("full", errors.New("for good"))
		<-time.After(time.Hour)
		if len(g.Closed()) != 1 {
			t.Error("an old timer opened it")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := g.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait: %v", err)
		}
	})
}

// TestClosedGate: no delivery is taken while it is closed, not even by who waits for one already.
func TestClosedGate(t *testing.T) {
	bubble(t, func(w *world) {
		p := w.start("a", nil)
		synctest.Wait()
		p.gate.Set("bus", errors.New("blocked"))
		synctest.Wait()
		w.send(job(1))
		<-time.After(time.Hour)
		if len(w.queue) != 1 || p.number(&p.waiting) != 0 {
			t.Errorf("%d in the queue, %d wait for more", len(w.queue), p.number(&p.waiting))
		}
		p.gate.Set("bus", nil)
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestPressure: while running jobs wait for Ceph, few more are taken, and never more than there are slots; once they get
// on, all are.
func TestPressure(t *testing.T) {
	bubble(t, func(w *world) {
		var full atomic.Bool
		full.Store(true)
		w.conf.Slots, w.conf.Backoff.Patience = 4, 24*time.Hour
		w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
			if s.Name != "data" {
				return s
			}
			do := s.Do
			s.Do = func(ctx context.Context, pr worker.Progress) error {
				if full.Load() {
					return fault(worker.ReasonPoolFull, worker.Retry)
				}

				return do(ctx, pr)
			}

			return s
		})
		p := w.start("a", nil)
		synctest.Wait()
		w.send(job(1))
		<-time.After(10 * time.Second)
		if why := p.gate.Closed(); why["pool-full"] == "" {
			t.Errorf("the gate is closed for %v", why)
		}
		w.send(job(2), job(3), job(4), job(5), job(6), job(7))
		<-time.After(20 * time.Second)
		if n := p.number(&p.started); n != 1 {
			t.Errorf("%d jobs were taken while the pool was full", n)
		}
		<-time.After(10 * time.Minute) // one a minute finds out whether it still is
		if n := p.number(&p.started); n != 4 || len(w.queue) != 3 {
			t.Errorf("%d jobs were taken, %d are in the queue", n, len(w.queue))
		}
		full.Store(false)
		for n := 1; n <= 7; n++ {
			w.closed(job(n).Key())
		}
		if len(p.gate.Closed()) != 0 {
			t.Errorf("the gate stays closed for %v", p.gate.Closed())
		}
	})
}

// TestOwnProblem: one job that can't get on for days does not keep its worker from others.
func TestOwnProblem(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.Backoff.Patience = 24 * time.Hour
		w.edit(func(_ *proc, j worker.Job, s worker.Step) worker.Step {
			if s.Name == "data" && j.ImageID == "image-1" {
				s.Do = func(context.Context, worker.Progress) error { return fault(worker.ReasonCephUnavailable, worker.Retry) }
			}

			return s
		})
		p := w.start("a", nil)
		w.send(job(1))
		<-time.After(2 * time.Minute)
		start := time.Now()
		for n := 2; n < 50; n++ {
			w.send(job(n))
		}
		for n := 2; n < 50; n++ {
			w.closed(job(n).Key())
		}
		if took := time.Since(start); took > time.Minute {
			t.Errorf("others waited for %s", took)
		}
		p.stop()
	})
}

// TestGlanceFull: one project at its quota is its own problem; two within minutes mean that the store is full.
func TestGlanceFull(t *testing.T) {
	bubble(t, func(w *world) {
		w.edit(failing("data", fault(worker.ReasonGlanceFull, worker.GiveUp)))
		p := w.start("a", nil)
		w.send(job(1), job(2))
		w.want("image-1", worker.Failed, worker.ReasonGlanceFull)
		w.closed("image-2")
		if why := p.gate.Closed(); len(why) != 0 {
			t.Errorf("one project's quota closed the gate: %v", why)
		}
		other := job(3)
		other.ProjectID = "another"
		w.send(other)
		w.closed("image-3")
		if why := p.gate.Closed(); why["glance-full"] == "" {
			t.Errorf("two projects were refused, and the gate is closed for %v", why)
		}
		<-time.After(2 * time.Minute)
		if why := p.gate.Closed(); len(why) != 0 {
			t.Errorf("it does not open again: %v", why)
		}
	})
}

// TestHurry: a second SIGTERM ends the soft stop.
func TestHurry(t *testing.T) {
	bubble(t, func(w *world) {
		w.conf.SoftStop = time.Hour
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })}
		}
		p := w.start("a", nil)
		w.send(job(1))
		<-time.After(time.Minute)
		p.cancel()
		<-time.After(time.Minute)
		start := time.Now()
		close(p.hurry)
		<-p.done
		if took := time.Since(start); took > time.Second || w.store.Held() {
			t.Errorf("it took %s; a lease is held: %v", took, w.store.Held())
		}
	})
}

// TestHandOver: what a stopping worker gives back goes on at once, long before the next scan.
func TestHandOver(t *testing.T) {
	bubble(t, func(w *world) {
		w.strategies = func(p *proc) []worker.Strategy {
			if p.name == "b" {
				return []worker.Strategy{p.toy()}
			}

			return []worker.Strategy{p.doing(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })}
		}
		a := w.start("a", nil)
		w.send(job(1))
		<-time.After(time.Minute)
		b := w.start("b", nil)
		<-time.After(time.Minute)
		a.stop()
		start := time.Now()
		for b.number(&b.started) == 0 && time.Since(start) < time.Minute {
			<-time.After(10 * time.Millisecond)
		}
		if took := time.Since(start); took > 500*time.Millisecond {
			t.Errorf("the job went on after %s", took)
		}
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}
