package worker_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// TestSettleKeepsTrying: a volume does not stay in `uploading` because Cinder was away, or said no, for hours.
func TestSettleKeepsTrying(t *testing.T) {
	for _, err := range []error{transient("volume"), fault(worker.ReasonCinderRefused, worker.GiveUp)} {
		bubble(t, func(w *world) {
			w.conf.Backoff.Max = time.Minute
			start := time.Now()
			w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
				volume := p.tell("volume", j, o)
				tell := volume.Do
				volume.Do = func(ctx context.Context, pr worker.Progress) error {
					if time.Since(start) < 35*time.Hour+10*time.Minute {
						return err
					}

					return tell(ctx, pr)
				}

				return []worker.Step{volume, p.tell("reply", j, o), p.tell("notify", j, o)}
			}
			w.start("a", nil)
			w.send(job(1))
			<-time.After(35 * time.Hour)
			if r := w.record("image-1"); len(r.Settled) != 0 || r.Closed {
				t.Errorf("settled too early: %+v", r)
			}
			w.want("image-1", worker.Done, worker.ReasonNone, made...)
		})
	}
}

// TestSettleGoesOn: each step that the journal knows as done is left out by the next worker, and the outcome is not
// decided anew, even when the world has changed.
func TestSettleGoesOn(t *testing.T) {
	for i, op := range []string{"tell volume", "tell reply", "tell notify"} {
		for _, m := range []mode{dieBefore, dieAfter} {
			bubble(t, func(w *world) {
				a := w.start("a", onFirst(op, 1, m))
				w.send(job(1))
				<-time.After(time.Minute)
				a.kill()
				missing(worker.ReasonImageMissing)(w)
				w.strategies = func(*proc) []worker.Strategy { return nil }
				b := w.start("b", nil)
				w.want("image-1", worker.Done, worker.ReasonNone, made...)
				var told []string
				for _, op := range b.ops {
					if len(op) > 4 && op[:4] == "tell" {
						told = append(told, op)
					}
				}
				if want := []string{"tell volume", "tell reply", "tell notify"}[i:]; !slices.Equal(told, want) {
					t.Errorf("killed at %s %s: the next told %q, want %q", op, m, told, want)
				}
			})
		}
	}
}

// TestSettleStandsBy: a settling step that may not touch anything leaves the job to the next scan.
func TestSettleStandsBy(t *testing.T) {
	bubble(t, func(w *world) {
		n := 0
		w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
			if n++; n == 1 {
				return []worker.Step{{Name: "volume", Do: func(context.Context, worker.Progress) error {
					return fault(worker.ReasonLeaseLost, worker.StandBy)
				}}}
			}

			return []worker.Step{p.tell("volume", j, o), p.tell("reply", j, o), p.tell("notify", j, o)}
		}
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestStopWhileSettling: a worker that is stopped while Cinder is away hands over.
func TestStopWhileSettling(t *testing.T) {
	bubble(t, func(w *world) {
		a := w.start("a", on("tell volume", failBefore))
		w.send(job(1))
		<-time.After(time.Minute)
		a.stop()
		if w.store.Held() || w.record("image-1").Closed {
			t.Error("the job was not handed over")
		}
		w.start("b", nil)
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestAttend: a waiting caller is kept patient from the start, and not a moment into the settling.
func TestAttend(t *testing.T) {
	bubble(t, func(w *world) {
		attending, times := false, 0
		w.attend = func(ctx context.Context, _ *proc, _ worker.Job) {
			attending = true
			times++
			<-ctx.Done()
			<-time.After(time.Second) // a heartbeat that is just being sent
			attending = false
		}
		w.settling = func(p *proc, j worker.Job, o worker.Outcome) []worker.Step {
			if attending {
				t.Error("a heartbeat may come after the reply")
			}

			return []worker.Step{p.tell("volume", j, o), p.tell("reply", j, o), p.tell("notify", j, o)}
		}
		w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
			return after(s, func(context.Context) error { <-time.After(time.Second); return nil })
		})
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
		if times != 1 {
			t.Errorf("attended %d times", times)
		}
	})
}
