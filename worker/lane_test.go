package worker_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// heavy makes the toy's data a step that moves data for so long inside the cluster, and counts how many do at a time.
func (w *world) heavy(long time.Duration) (most func() int) {
	return w.heavyIn(long, func(worker.Job) worker.Lane { return worker.LaneCopy })
}

func (w *world) heavyIn(long time.Duration, lane func(worker.Job) worker.Lane) (most func() int) {
	var mu sync.Mutex
	now, top := 0, 0
	add := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		now += n
		top = max(top, now)
	}
	w.strategies = func(p *proc) []worker.Strategy {
		return []worker.Strategy{fixed("toy", func(t worker.Task) worker.Plan {
			data := p.step(t.Job, "data")
			done := data.Do
			data.Lane = lane(t.Job)
			data.Do = func(ctx context.Context, pr worker.Progress) error {
				add(1)
				defer add(-1)
				pr(worker.Amount{Cluster: 1})
				select {
				case <-time.After(long):
					return done(ctx, pr)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}

			return worker.Plan{Strategy: "toy", Commit: "publish", Keep: []byte(`{}`),
				Steps: []worker.Step{p.step(t.Job, "snapshot"), data, p.publish(t.Job), p.tidy(t.Job)}}
		})}
	}

	return func() int {
		mu.Lock()
		defer mu.Unlock()

		return top
	}
}

// TestDataLane: a burst is not held up by long copies. What is metadata is done for all at once, data is moved by a few at a
// time, and all jobs end.
func TestDataLane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const jobs = 20
		w := newWorld(t)
		w.conf.Data = 2
		most := w.heavy(time.Hour)
		p := w.start("a", nil)
		for n := range jobs {
			w.send(job(n))
		}
		<-time.After(5 * time.Second)
		for n := range jobs {
			if !w.has(fmt.Sprintf("image-%d/snapshot", n)) {
				t.Errorf("job %d waits for others' data before it has begun", n)
			}
		}
		if now, waiting := p.runner.Moving(); now != 2 || waiting != jobs-2 {
			t.Errorf("%d jobs move data and %d wait, want 2 and %d", now, waiting, jobs-2)
		}
		if n := w.store.Parks(); n != jobs-2 {
			t.Errorf("%d claims were parked, want one for each job that waits", n)
		}
		<-time.After(11 * time.Hour)
		for n := range jobs {
			if o := w.outcome(job(n).Key()); o.Result != worker.Done {
				t.Errorf("job %d: %+v", n, o)
			}
		}
		if most() != 2 {
			t.Errorf("%d jobs moved data at a time, want 2", most())
		}
		if now, waiting := p.runner.Moving(); now != 0 || waiting != 0 {
			t.Errorf("at the end %d jobs move data and %d wait", now, waiting)
		}
		if n := w.store.Parks(); n != jobs-2+jobs {
			t.Errorf("%d times a claim was parked, want also once for each job when it is settled", n)
		}
		p.stop()
	})
}

// TestLanesAreApart: who copies inside the cluster does not wait for those that export, nor they for it.
func TestLanesAreApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.conf.Data, w.conf.Exports = 1, 2
		most := w.heavyIn(time.Hour, func(j worker.Job) worker.Lane {
			if j.ImageID < job(4).ImageID {
				return worker.LaneCopy
			}

			return worker.LaneExport
		})
		p := w.start("a", nil)
		for n := range 8 {
			w.send(job(n))
		}
		<-time.After(5 * time.Second)
		if now, waiting := p.runner.Moving(); now != 3 || waiting != 5 {
			t.Errorf("%d jobs move data and %d wait, want 3 and 5", now, waiting)
		}
		<-time.After(150 * time.Minute) // exports have ended, two of the copies have
		if now, waiting := p.runner.Moving(); now != 1 || waiting != 1 {
			t.Errorf("%d jobs move data and %d wait, want one copy each", now, waiting)
		}
		<-time.After(150 * time.Minute)
		for n := range 8 {
			if o := w.outcome(job(n).Key()); o.Result != worker.Done {
				t.Errorf("job %d: %+v", n, o)
			}
		}
		if most() != 3 {
			t.Errorf("%d jobs moved data at a time, want 3", most())
		}
		p.stop()
	})
}

// TestWaitingForDataIsInnocent: workers that die while a job only waits for its turn are not held against it.
func TestWaitingForDataIsInnocent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.conf.Data = 1
		w.heavy(10 * time.Minute)
		w.send(job(1), job(2))
		for n := range 3 * w.conf.Backoff.Claims {
			p := w.start(fmt.Sprint("victim ", n), nil)
			<-time.After(2 * time.Minute)
			if now, waiting := p.runner.Moving(); now != 1 || waiting != 1 {
				t.Fatalf("worker %d: %d jobs move data and %d wait, want one each\n\t%s", n, now, waiting, w.history())
			}
			p.kill()
		}
		p := w.start("last", nil)
		for n := range 2 {
			if o := w.outcome(job(n + 1).Key()); o.Result != worker.Done {
				t.Errorf("job %d: %+v", n+1, o)
			}
		}
		if n := p.number(&p.aside); n != 0 {
			t.Errorf("%d jobs were put aside", n)
		}
		p.stop()
	})
}

// TestStopWhileWaitingForData: a job that waits is handed over at once when its worker is stopped.
func TestStopWhileWaitingForData(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.conf.Data = 1
		w.heavy(time.Hour)
		w.send(job(1), job(2))
		p := w.start("a", nil)
		<-time.After(time.Minute)
		begin := time.Now()
		p.stop()
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("stopping took %s", took)
		}
		q := w.start("b", nil)
		<-time.After(5 * time.Second)
		if now, waiting := q.runner.Moving(); now != 1 || waiting != 1 {
			t.Errorf("the next worker moves %d and waits with %d, want one each", now, waiting)
		}
		<-time.After(2 * time.Hour)
		for n := range 2 {
			if o := w.outcome(job(n + 1).Key()); o.Result != worker.Done {
				t.Errorf("job %d: %+v", n+1, o)
			}
		}
		q.stop()
	})
}

// TestStalled: a step that hangs for too long is begun anew, over the next claim's connection, and the job ends well.
func TestStalled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.conf.Stall = 30 * time.Minute
		tries := 0
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(ctx context.Context) error {
				if tries++; tries == 1 {
					<-ctx.Done() // Ceph does not answer, and nobody says so

					return context.Cause(ctx)
				}

				return nil
			})}
		}
		p := w.start("a", nil)
		w.send(job(1))
		begin := time.Now()
		<-time.After(31 * time.Minute)
		w.want(job(1).Key(), worker.Done, worker.ReasonNone, "image-1/active", "image-1/data")
		if tries != 2 || time.Since(begin) > 33*time.Minute {
			t.Errorf("%d tries, %s", tries, time.Since(begin))
		}
		if n := p.number(&p.aside); n != 0 {
			t.Errorf("%d jobs were put aside", n)
		}
		p.stop()
	})
}
