package ceph

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// Limits bound what copying and reading take of the cluster, so that it does not slow down those who use their volumes meanwhile.
// The zero value means the defaults.
type Limits struct {
	Objects    int   // copied at a time by the whole worker; 0: 8
	JobObjects int   // copied at a time by one job; 0: 2
	Rate       int64 // bytes per second of the whole worker; 0: as fast as Ceph is
	JobRate    int64 // bytes per second of one job; 0: as fast as Ceph is
	ExportRate int64 // bytes per second that are read of snapshots by the whole worker; 0: as fast as Ceph is
}

// withDefaults: the OSDs are what is busy, so more at a time is hardly faster and only makes others wait. On three OSDs with two
// cores a job of 1 GiB took 4.1 s with 2 objects, 4.5 s with 8 and 4.0 s with 256; the p99 of a client's writes beside it was
// 0.9, 5.5 and 20 times what it was alone.
func (l Limits) withDefaults() Limits {
	l.Objects, l.JobObjects = cmp.Or(l.Objects, 8), cmp.Or(l.JobObjects, 2)

	return l
}

// throttle admits copies of one job, or of all.
type throttle struct {
	objects func() int   // how many may be under way now
	perSec  func() int64 // bytes; 0: any

	mu    sync.Mutex
	used  int
	freed chan struct{} // closed when one has ended

	rate *rate.Limiter
}

func newThrottle(objects func() int, perSec func() int64) *throttle {
	return &throttle{objects: objects, perSec: perSec, freed: make(chan struct{}), rate: rate.NewLimiter(rate.Inf, 0)}
}

// pace waits until so many bytes may be moved. The limit may change meanwhile.
func (t *throttle) pace(ctx context.Context, bytes int64) error {
	for bytes > 0 {
		perSec := t.perSec()
		if perSec <= 0 {
			return nil
		}
		part := max(min(bytes, perSec/4), 1) // a quarter of a second: what is waited for under a limit that has changed
		t.mu.Lock()
		if t.rate.Limit() != rate.Limit(perSec) {
			t.rate.SetLimit(rate.Limit(perSec))
			t.rate.SetBurst(int(max(perSec/4, 1)))
		}
		t.mu.Unlock()
		if err := t.rate.WaitN(ctx, int(part)); err != nil && ctx.Err() == nil {
			continue // the burst has become smaller than the part
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		bytes -= part
	}

	return nil
}

// enter waits for a place. The caller leaves it. A limit that has grown is seen when the next one leaves: while somebody
// waits, somebody is at work.
func (t *throttle) enter(ctx context.Context) error {
	for {
		t.mu.Lock()
		if t.used < t.objects() {
			t.used++
			t.mu.Unlock()

			return nil
		}
		freed := t.freed
		t.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (t *throttle) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.used--
	close(t.freed)
	t.freed = make(chan struct{})
}

// limits are a worker's, which change while it runs.
type limits struct {
	now     atomic.Pointer[Limits]
	all     *throttle
	exports *throttle // only its pace
}

func newLimits(l Limits) *limits {
	s := &limits{}
	s.set(l)
	s.all = newThrottle(func() int { return s.now.Load().Objects }, func() int64 { return s.now.Load().Rate })
	s.exports = newThrottle(nil, func() int64 { return s.now.Load().ExportRate })

	return s
}

func (s *limits) set(l Limits) {
	l = l.withDefaults()
	s.now.Store(&l)
}

// Limit changes the limits, also of copies under way.
func (c *Cluster) Limit(l Limits) { c.limits.set(l) }

// job makes the throttle of one job.
func (s *limits) job() *admission {
	return &admission{all: s.all, own: newThrottle(
		func() int { return s.now.Load().JobObjects }, func() int64 { return s.now.Load().JobRate })}
}

// admission lets a job's copies begin. The rates come first: who waits for them takes no place.
type admission struct{ own, all *throttle }

func (a *admission) enter(ctx context.Context, bytes int64) error {
	if err := a.pace(ctx, bytes); err != nil {
		return err
	}
	if err := a.own.enter(ctx); err != nil {
		return err
	}
	if err := a.all.enter(ctx); err != nil {
		a.own.leave()

		return err
	}

	return nil
}

func (a *admission) pace(ctx context.Context, bytes int64) error {
	if err := a.own.pace(ctx, bytes); err != nil {
		return err
	}

	return a.all.pace(ctx, bytes)
}

func (a *admission) leave() {
	a.all.leave()
	a.own.leave()
}

// String is for logs.
func (l Limits) String() string {
	return fmt.Sprintf("%d objects, %d a job; %d bytes/s, %d a job; %d bytes/s of exports (0: unlimited)", l.Objects, l.JobObjects,
		l.Rate, l.JobRate, l.ExportRate)
}
