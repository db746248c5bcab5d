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

// lanes are a worker's.
type lanes map[Lane]*lane

func newLanes(c Config) *lanes {
	return &lanes{
		LaneCopy:   {places: make(chan struct{}, c.Data)},
		LaneExport: {places: make(chan struct{}, c.Exports)},
	}
}

// Moving is how many jobs move data now, and how many wait until they may. It may be called at any time.
func (r *Runner) Moving() (now, waiting int) {
	all := r.lanes.Load()
	if all == nil {
		return 0, 0
	}
	for _, l := range *all {
		now, waiting = now+len(l.places), waiting+int(l.waiting.Load())
	}

	return now, waiting
}

// inLane runs f in the step's lane. A job that waits does nothing, and the journal says so: its worker's death must not
// count against it.
func (j *run) inLane(ctx context.Context, plan Plan, s Step, f func() error) error {
	l := (*j.lanes.Load())[s.Lane]
	if l == nil {
		return f()
	}
	if !l.tryEnter() {
		j.note(ctx, nil)
		j.claim.Park()
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
