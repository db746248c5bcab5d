package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// Tools of the case beside that are none of the others.
const (
	alone   = "alone" // the client, and nothing beside it
	careful = copying + ", 1 object at a time"
	greedy  = copying + ", 256 objects at a time"
)

// felt is what a client felt beside a tool, in ms: medians and percentiles of the latencies of its writes and its reads.
// Zero in other cases. Of fewer than 1000 operations the percentile
// 99.9 is the longest.
type felt struct {
	Writes   int     `json:"writes,omitempty"`
	P50      float64 `json:"p50_ms,omitempty"`
	P99      float64 `json:"p99_ms,omitempty"`
	P999     float64 `json:"p999_ms,omitempty"`
	Reads    int     `json:"reads,omitempty"`
	ReadP50  float64 `json:"read_p50_ms,omitempty"`
	ReadP99  float64 `json:"read_p99_ms,omitempty"`
	ReadP999 float64 `json:"read_p999_ms,omitempty"`
}

// besideTools are in an order in which Cinder is restarted twice a round.
func (b *bench) besideTools() []tool {
	all := tools()
	find := func(name string) tool { return all[slices.IndexFunc(all, func(t tool) bool { return t.name == name })] }
	limited := func(name, objects string) tool {
		t := find(copying)
		t.name, t.set = name, map[string]string{
			"CINDERLIFT_STRATEGIES": "copy", "CINDERLIFT_COPY_OBJECTS": objects, "CINDERLIFT_COPY_JOB_OBJECTS": objects,
		}

		return t
	}
	nothing := find(copying)
	nothing.name, nothing.set, nothing.run = alone, nil, b.wait

	return []tool{nothing, find(copying), limited(careful, "1"), limited(greedy, "256"), find(rbdCopy), find(rbdClone), find(stock)}
}

// wait is a tool that does nothing.
func (b *bench) wait(ctx context.Context, _ *bench, _ *lab.Worker, _, _ string) (took, error) {
	seconds := time.Duration(b.opt.Beside) * time.Second

	return took{active: seconds, released: seconds}, pause(ctx, seconds)
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// beside runs the tools in turns on one volume, each beside a client at work.
func (b *bench) beside(ctx context.Context) (err error) {
	if b.opt.Beside == 0 {
		return nil
	}
	gib := cmp.Or(b.report.reference(), 4)
	volume, err := b.volume(ctx, gib, 40)
	if err != nil {
		return err
	}
	defer b.drop(ctx, volume)
	if err := b.scratch(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.rbdAs(context.WithoutCancel(ctx), "rm", "--no-progress", scratch)) }()
	for range b.opt.Runs {
		for _, t := range b.besideTools() {
			last, err := b.feel(ctx, t, volume)
			if err != nil {
				return fmt.Errorf("beside %s: %w", t.name, err)
			}
			b.report.add(besides, t.name, gib, last)
			b.say("%-9s %4d GiB  %-36s a client's writes: %5.1f ms, 99 %% %6.1f ms; reads: %5.1f ms, 99 %% %6.1f ms; released %6.2f s", besides,
				gib, t.name, last.P50, last.P99, last.ReadP50, last.ReadP99, last.released.Seconds())
		}
	}

	return nil
}

// feel runs a tool again and again until a client has worked beside it for long enough. What the client felt while a tool was
// prepared or cleaned up after does not count. The times of the last run are answered.
func (b *bench) feel(ctx context.Context, t tool, volume string) (took, error) {
	if err := b.plug(ctx, t); err != nil { // Cinder restarts: before the client works
		return took{}, err
	}
	c, err := b.client(ctx)
	if err != nil {
		return took{}, err
	}
	last, windows, err := b.again(ctx, t, volume)
	var ended error
	last.felt, ended = c.end(windows)

	return last, errors.Join(err, ended)
}

// window is when a tool was at work.
type window struct{ from, to time.Time }

func (b *bench) again(ctx context.Context, t tool, volume string) (last took, windows []window, err error) {
	for beside := time.Duration(0); beside < time.Duration(b.opt.Beside)*time.Second; beside += last.released {
		if last, err = b.once(ctx, t, volume, ""); err != nil {
			return last, windows, err
		}
		windows = append(windows, window{last.begin, last.begin.Add(last.released)})
	}

	return last, windows, nil
}

// operation is one of the client's.
type operation struct {
	at    time.Time // when it ended
	took  float64   // ms
	write bool
}

// summary is of the operations that ended inside the windows.
func summary(all []operation, windows []window) felt {
	var writes, reads []float64
	for _, o := range all {
		switch {
		case !slices.ContainsFunc(windows, func(w window) bool { return !o.at.Before(w.from) && !o.at.After(w.to) }):
		case o.write:
			writes = append(writes, o.took)
		default:
			reads = append(reads, o.took)
		}
	}
	slices.Sort(writes)
	slices.Sort(reads)

	return felt{
		Writes: len(writes), P50: quantile(writes, 500), P99: quantile(writes, 990), P999: quantile(writes, 999),
		Reads: len(reads), ReadP50: quantile(reads, 500), ReadP99: quantile(reads, 990), ReadP999: quantile(reads, 999),
	}
}

// quantile is the smallest value that so many in a thousand do not exceed; 0 of nothing.
func quantile(sorted []float64, permille int) float64 {
	if len(sorted) == 0 {
		return 0
	}

	return sorted[(permille*len(sorted)+999)/1000-1]
}
