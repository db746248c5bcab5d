package worker_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// TestUnwanted: the user changes their mind while a step takes hours. It stops soon, and what was made is removed.
func TestUnwanted(t *testing.T) {
	state := func(volume, image string) func(w *world) {
		return func(w *world) { w.volume, w.image = volume, image }
	}
	for _, c := range []struct {
		name   string
		change func(w *world)
		result worker.Result
		reason worker.Reason
	}{
		{"image deleted", missing(worker.ReasonImageMissing), worker.Cancelled, worker.ReasonImageMissing},
		{"volume deleted", missing(worker.ReasonVolumeMissing), worker.Failed, worker.ReasonVolumeMissing},
		{"volume reset, as Cinder's facts tell it", missing(worker.ReasonVolumeState), worker.Failed, worker.ReasonVolumeState},
		{"image in no good state, as Cinder's facts tell it", missing(worker.ReasonImageState), worker.Failed, worker.ReasonImageState},
		{"volume reset", state("available", worker.ImageQueued), worker.Failed, worker.ReasonVolumeState},
		{"volume in error", state("error", worker.ImageQueued), worker.Failed, worker.ReasonVolumeState},
		{"image made active by somebody else", state(worker.VolumeUploading, worker.ImageActive), worker.Failed,
			worker.ReasonImageState},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(w *world) {
				w.strategies = func(p *proc) []worker.Strategy {
					return []worker.Strategy{p.doing(func(ctx context.Context) error { <-ctx.Done(); return context.Cause(ctx) })}
				}
				w.start("a", nil)
				w.send(job(1))
				<-time.After(time.Hour)
				if w.record("image-1").Outcome != nil {
					t.Fatal("it ended before anybody changed their mind")
				}
				start := time.Now()
				w.mu.Lock()
				c.change(w)
				w.mu.Unlock()
				w.want("image-1", c.result, c.reason)
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("it went on for %s", took)
				}
			})
		})
	}
}

// TestUnsure: a look that gets no clear answer ends nothing.
func TestUnsure(t *testing.T) {
	bubble(t, func(w *world) {
		var begun atomic.Bool
		w.task = func(_ context.Context, _ *proc, j worker.Job) (worker.Task, error) {
			if begun.Load() {
				return worker.Task{}, fault(worker.ReasonGlanceUnavailable, worker.Retry)
			}

			return w.plainTask(j)
		}
		w.strategies = func(p *proc) []worker.Strategy {
			return []worker.Strategy{p.doing(func(context.Context) error {
				begun.Store(true)
				<-time.After(20 * time.Minute)

				return nil
			})}
		}
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}

// TestDeletedInTheCommit: the image is deleted in the very moment in which it became active. Whichever is seen first,
// the job ends once, and consistently.
func TestDeletedInTheCommit(t *testing.T) {
	for _, committed := range []bool{true, false} {
		bubble(t, func(w *world) {
			w.edit(func(p *proc, j worker.Job, s worker.Step) worker.Step {
				if s.Name != "publish" {
					return s
				}
				do := s.Do
				s.Do = func(ctx context.Context, pr worker.Progress) error {
					w.mu.Lock()
					missing(worker.ReasonImageMissing)(w)
					w.mu.Unlock()
					if !committed {
						<-ctx.Done()

						return ctx.Err()
					}
					<-time.After(15 * time.Second) // the look-out has seen it by now

					return do(context.WithoutCancel(ctx), pr)
				}

				return s
			})
			w.start("a", nil)
			w.send(job(1))
			if committed { // its undo finds it active, and the job goes forward
				w.want("image-1", worker.Done, worker.ReasonNone, made...)
			} else {
				w.want("image-1", worker.Cancelled, worker.ReasonImageMissing)
			}
		})
	}
}

// TestNoLookAfterTheCommit: from then on the job only goes forward, whatever becomes of image and volume.
func TestNoLookAfterTheCommit(t *testing.T) {
	bubble(t, func(w *world) {
		w.edit(func(_ *proc, _ worker.Job, s worker.Step) worker.Step {
			if s.Name != "tidy" {
				return s
			}

			return after(s, func(context.Context) error {
				w.mu.Lock()
				missing(worker.ReasonVolumeMissing)(w)
				w.mu.Unlock()
				<-time.After(20 * time.Minute)

				return nil
			})
		})
		w.start("a", nil)
		w.send(job(1))
		w.want("image-1", worker.Done, worker.ReasonNone, made...)
	})
}
