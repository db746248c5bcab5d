package worker

import (
	"context"
	"sync/atomic"
	"time"
)

// lane bounds how many jobs move data at a time. What makes an image usable is metadata that waits for the monitors, and
// many jobs do that at once; data keeps disks and network busy, so few move it. A burst of requests never waits for a long
// copy, it only waits with its own copies.
type lane struct {
	places  chan struct{}
	waiting atomic.Int64
}

// enter waits for a place. The caller leaves it.
func (l *lane) enter(ctx context.Context) error {
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	select {
	case l.places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return interrupted(ctx, nil)
	}
}

// tryEnter takes a place if there is one.
func (l *lane) tryEnter() bool {
	select {
	case l.places <- struct{}{}:
		return true
	default:
		return false
	}
}

func (l *lane) leave() { <-l.places }

// Moving is how many jobs move data now, and how many wait until they may. It may be called at any time.
func (r *Runner) Moving() (now, waiting int) {
	if l := r.data.Load(); l != nil {
		return len(l.places), int(l.waiting.Load())
	}

	return 0, 0
}

// inLane runs f, in the data lane if the step moves data. A job that waits does nothing, and the journal says so: its
// worker's death must not count against it.
func (j *run) inLane(ctx context.Context, plan Plan, s Step, f func() error) error {
	if !s.Data {
		return f()
	}
	l := j.data.Load()
	if !l.tryEnter() {
		j.note(ctx, nil)
		j.log.Info("step waits for others to have moved their data", "strategy", plan.Strategy, "step", s.Name)
		begin := time.Now()
		if err := l.enter(ctx); err != nil {
			return err
		}
		j.log.Info("step may move its data", "strategy", plan.Strategy, "step", s.Name, "seconds", time.Since(begin).Seconds())
	}
	defer l.leave()

	return f()
}
