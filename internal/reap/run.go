package reap

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// Result is how a round ended; a metric label.
type Result string

// The results.
const (
	Clean      Result = "clean"      // nothing of ours was left, or all of it was removed
	Incomplete Result = "incomplete" // something was left, or could not be looked at
	Broken     Result = "broken"     // it ended early
)

// Results lists them all.
func Results() []Result { return []Result{Clean, Incomplete, Broken} }

// Recorder is told what the rounds of a worker do, for metrics.
type Recorder interface {
	OrphanFound(kind string)
	OrphanRemoved(kind string)
	Reaped(result string)
}

// Run does a round whenever it is this worker's turn, which comes to the pool of workers once in every, until ctx ends.
func (r *Reaper) Run(ctx context.Context, every time.Duration, m Recorder) {
	r.withDefaults()
	// A turn is asked for often enough to come soon after it is free, and not by all workers at once.
	ask := min(every/6, 5*time.Minute)
	for wait := ask / 5; sleep(ctx, wait/2+rand.N(wait+1)); wait = ask {
		mine, err := r.Locks.Turn(ctx, every)
		if err != nil && ctx.Err() == nil {
			r.Logger.Warn("ask for the turn to look for orphans", "error", err)
		}
		if mine && err == nil {
			r.turn(ctx, m)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// turn is one round, told to metrics and log.
func (r *Reaper) turn(ctx context.Context, m Recorder) {
	start := time.Now()
	found, err := r.Round(ctx)
	count := map[Action]int{}
	for _, f := range found {
		count[f.Action]++
		r.tell(ctx, f, m)
	}
	result := Verdict(found)
	if err != nil {
		result = Broken
		r.Logger.Warn("looking for orphans ended early; another round comes", "reason", worker.ReasonOf(err), "error", err)
	}
	m.Reaped(string(result))
	r.Logger.Info("looked for orphans", "result", result, "removed", count[Removed], "failed", count[Failed],
		"waiting", count[Wait], "to_look_at", count[Look], "seconds", time.Since(start).Seconds())
}

// tell counts and logs one finding. What is merely too young is none yet.
func (r *Reaper) tell(ctx context.Context, f Finding, m Recorder) {
	level := slog.LevelWarn
	switch f.Action {
	case Wait:
		level = slog.LevelDebug
	case Removed:
		level = slog.LevelInfo
		m.OrphanFound(string(f.Kind))
		m.OrphanRemoved(string(f.Kind))
	default:
		m.OrphanFound(string(f.Kind))
	}
	r.Logger.Log(ctx, level, "orphan", "action", f.Action, "kind", f.Kind, "image", f.ImageID, "where", f.Where, "why", f.Why)
}

// Verdict sums findings up: Clean when nothing is left that anybody has to do something about.
func Verdict(found []Finding) Result {
	for _, f := range found {
		if f.Action != Removed && f.Action != Wait {
			return Incomplete
		}
	}

	return Clean
}
