//go:build lab

package ceph

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// eventually calls fn until it succeeds.
func eventually(t testing.TB, what string, within time.Duration, fn func() error) time.Duration {
	t.Helper()
	began := time.Now()
	for {
		err := fn()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > within {
			t.Fatalf("%s: %v", what, err)
		}
		must(t, pause(t.Context(), 20*time.Millisecond))
	}
}

// fenceControl puts the control connection on the blocklist, over another.
func fenceControl(t *testing.T, c *Cluster) *control {
	t.Helper()
	k := controlOf(t, c)
	by := labCluster(t, c.opts)
	must(t, by.fence(controlOf(t, by), k.addr))
	must(t, controlOf(t, by).conn.WaitForLatestOSDMap())
	must(t, by.Ping(t.Context())) // from now on the OSD that has the index knows

	return k
}

// TestControlIsMadeAnew: nothing but the leases is lost with the control connection, and the worker goes on by itself.
func TestControlIsMadeAnew(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	one, two := fresh(), fresh()
	must(t, c.Create(t.Context(), one))
	claim, err := c.Claim(t.Context(), one.Job.Key())
	must(t, err)
	old := fenceControl(t, c)
	took := eventually(t, "ping", 15*time.Second, func() error {
		err := c.Ping(t.Context())
		if err != nil && (worker.ReasonOf(err) != worker.ReasonCephUnavailable || worker.AdviceOf(err) != worker.Retry) {
			t.Errorf("ping over a fenced connection: %v, want ceph-unavailable and Retry", err)
		}

		return err
	})
	t.Logf("the journal answers again after %v", took)
	if controlOf(t, c) == old {
		t.Fatal("the connection is still the same, so this test shows nothing")
	}
	must(t, c.Create(t.Context(), two))
	if _, err := c.Load(t.Context(), two.Job.Key()); err != nil {
		t.Errorf("load: %v", err)
	}

	// The lease belongs to the connection that is gone; the job's own connection does not.
	if err := claim.Renew(t.Context()); !errors.Is(err, worker.ErrLeaseLost) || worker.AdviceOf(err) != worker.StandBy {
		t.Errorf("renew: %v, want ErrLeaseLost", err)
	}
	if _, err := c.Claim(t.Context(), one.Job.Key()); !errors.Is(err, worker.ErrHeld) {
		t.Errorf("claim before the lease has expired or was given back: %v, want ErrHeld", err)
	}
	if _, err := claim.(*Claim).Images().FSID(t.Context()); err != nil {
		t.Errorf("the job's own connection: %v", err)
	}
	must(t, claim.Release(t.Context()))
	next, err := c.Claim(t.Context(), one.Job.Key()) // at once
	must(t, err)
	must(t, next.Renew(t.Context()))
	must(t, next.Release(t.Context()))
}

// TestHoldEndsWithControl: a job whose lease can't be renewed any more stops before the lease has expired.
func TestHoldEndsWithControl(t *testing.T) {
	t.Parallel()
	o := labOptions(t)
	o.Namespace, o.LeaseTTL = "cinderlift-test-"+newID(), 6*time.Second
	c := labCluster(t, o)
	wipe(t, c)
	rec := fresh()
	must(t, c.Create(t.Context(), rec))
	began := time.Now()
	claim, err := c.Claim(t.Context(), rec.Job.Key())
	must(t, err)
	fenceControl(t, c)
	err = worker.Hold(t.Context(), claim, worker.LeaseTimes{TTL: o.LeaseTTL}, func(ctx context.Context) error {
		<-ctx.Done()

		return context.Cause(ctx)
	})
	if !errors.Is(err, worker.ErrLeaseLost) || time.Since(began) > o.LeaseTTL {
		t.Errorf("hold ended after %v with %v, want ErrLeaseLost within %v", time.Since(began), err, o.LeaseTTL)
	}
	eventually(t, "release", 15*time.Second, func() error { return claim.Release(t.Context()) }) // may meet the connection that is gone
	next, err := c.Claim(t.Context(), rec.Job.Key())
	must(t, err)
	must(t, next.Release(t.Context()))
}

// TestFencedAgainAndAgain: a whole host may be on the blocklist. Then every new connection is as well, and making them
// must not become a storm.
func TestFencedAgainAndAgain(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	for range 3 {
		fenceControl(t, c)
		for range 3 {
			_, _ = c.Keys(t.Context())
		}
		eventually(t, "keys", 15*time.Second, func() error { _, err := c.Keys(t.Context()); return err })
	}
}

// watched counts the hints that a journal gives.
func watched(t *testing.T, c *Cluster) *atomic.Int64 {
	t.Helper()
	hints := &atomic.Int64{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Watch(ctx, func() { hints.Add(1) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("watch ended with %v", err)
		}
	})
	eventually(t, "the first hint", 15*time.Second, func() error { return more(hints, 0) })

	return hints
}

func more(hints *atomic.Int64, than int64) error {
	if hints.Load() > than {
		return nil
	}

	return errors.New("no hint came")
}

// TestHandOver measures from Release to the other's hint, also where there was never a job before.
func TestHandOver(t *testing.T) {
	t.Parallel()
	a := journalOf(t)
	b := labCluster(t, a.opts)
	hints := watched(t, b)
	rec := fresh()
	must(t, a.Create(t.Context(), rec))
	var worst time.Duration
	for range 10 {
		claim, err := a.Claim(t.Context(), rec.Job.Key())
		must(t, err)
		before, began := hints.Load(), time.Now()
		must(t, claim.Release(t.Context()))
		eventually(t, "a hint", 5*time.Second, func() error { return more(hints, before) })
		worst = max(worst, time.Since(began))
	}
	t.Logf("from the call of Release to the other's hint: %v at most in 10", worst)
	if worst > 2*time.Second {
		t.Errorf("it took %v", worst)
	}
	claim, err := a.Claim(t.Context(), rec.Job.Key())
	must(t, err)
	closing := claim.Record()
	closing.Closed = true
	must(t, claim.Save(t.Context(), closing))
	before := hints.Load()
	must(t, claim.Release(t.Context()))
	must(t, b.Ping(t.Context()))
	if got := hints.Load(); got != before {
		t.Errorf("%d hints for a closed job", got-before)
	}
}

// lastAddress is a log that remembers the last address in it.
type lastAddress struct{ addr atomic.Pointer[string] }

func (l *lastAddress) Enabled(context.Context, slog.Level) bool { return true }
func (l *lastAddress) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *lastAddress) WithGroup(string) slog.Handler            { return l }

func (l *lastAddress) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "address" {
			addr := a.Value.String()
			l.addr.Store(&addr)
		}

		return true
	})

	return nil
}

// TestWatchComesBack: the connection of the watch is fenced as well, and the index object is removed under it.
func TestWatchComesBack(t *testing.T) {
	t.Parallel()
	a := journalOf(t)
	o, log := a.opts, &lastAddress{}
	o.Logger = slog.New(log)
	hints := watched(t, labCluster(t, o))
	rec := fresh()
	must(t, a.Create(t.Context(), rec))
	k := controlOf(t, a)
	for name, breaks := range map[string]func(){
		"fenced": func() {
			must(t, a.fence(k, *log.addr.Load()))
			must(t, k.conn.WaitForLatestOSDMap())
		},
		"removed": func() { must(t, k.io.Delete(indexObject)) },
	} {
		before := hints.Load()
		breaks()
		took := eventually(t, "a hint after it was "+name, 60*time.Second, func() error { return more(hints, before) })
		t.Logf("%s: watches again after %v", name, took)
		claim, err := a.Claim(t.Context(), rec.Job.Key())
		must(t, err)
		before = hints.Load()
		must(t, claim.Release(t.Context()))
		eventually(t, "a hint as before", 5*time.Second, func() error { return more(hints, before) })
	}
}

// TestNotifyIsBounded: a worker that was killed does not acknowledge.
func TestNotifyIsBounded(t *testing.T) {
	t.Parallel()
	a := journalOf(t)
	rec := fresh()
	must(t, a.Create(t.Context(), rec))
	io := controlOf(t, a).io
	w, err := io.Watch(indexObject) // and nobody listens
	must(t, err)
	claim, err := a.Claim(t.Context(), rec.Job.Key())
	must(t, err)
	began := time.Now()
	must(t, claim.Release(t.Context()))
	if took := time.Since(began); took > 2*notifyTimeout+time.Second {
		t.Errorf("release took %v", took)
	}
	<-w.Events() // the callback waits for somebody to listen
	must(t, unwatch(io, w))
}

// TestSleepInsideClaim: a process sleeps right after it took the lease, another takes over meanwhile. The first must not
// fence it when it wakes up.
func TestSleepInsideClaim(t *testing.T) {
	t.Parallel()
	o := labOptions(t)
	o.Namespace, o.LeaseTTL = "cinderlift-test-"+newID(), time.Second
	c := labCluster(t, o)
	wipe(t, c)
	rec := fresh()
	must(t, c.Create(t.Context(), rec))
	k := controlOf(t, c)
	sleeper := &Claim{c: c, k: k, key: rec.Job.Key(), cookie: "sleeper", closed: true}
	must(t, sleeper.lock(jobPrefix+rec.Job.Key()))
	e, err := loadIf(k.io, rec.Job.Key(), sleeper.assertion())
	must(t, err)
	next := adopt(t, c, rec.Job.Key())
	must(t, next.Renew(t.Context()))
	if _, err := loadIf(k.io, rec.Job.Key(), sleeper.assertion()); !errors.Is(err, worker.ErrHeld) {
		t.Errorf("reading the address to fence: %v, want ErrHeld", err)
	}
	if err := sleeper.take(t.Context(), rec.Job.VolumeID); !errors.Is(err, worker.ErrHeld) {
		t.Errorf("going on: %v, want ErrHeld", err)
	}
	sleeper.images = &Images{}
	sleeper.images.line.link.Store(&link{addr: "127.0.0.1:0/1"})
	if err := sleeper.enter(e.record, ""); !errors.Is(err, worker.ErrHeld) {
		t.Errorf("raising the epoch: %v, want ErrHeld", err)
	}
	sleeper.images, sleeper.record = nil, worker.Record{}
	sleeper.abandon()
	if _, err := next.Images().FSID(t.Context()); err != nil {
		t.Error(err)
	}
	must(t, next.Save(t.Context(), next.Record()))
	must(t, next.Renew(t.Context()))
	must(t, next.Release(t.Context()))
}

// TestRaiseNeedsTheLock: the epoch goes up only for whoever has the lock at that instant, free or not.
func TestRaiseNeedsTheLock(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	rec := fresh()
	must(t, c.Create(t.Context(), rec))
	k := controlOf(t, c)
	cl := &Claim{c: c, k: k, key: rec.Job.Key(), cookie: "nobody"}
	if err := k.own(rec.Job.Key(), 0, 1, cl.assertion(), nil); !errors.Is(err, errEpoch) {
		t.Errorf("raise without the lock: %v, want errEpoch", err)
	}
	must(t, cl.lock(jobPrefix+rec.Job.Key()))
	must(t, k.own(rec.Job.Key(), 0, 1, cl.assertion(), nil))
	if err := k.own(rec.Job.Key(), 0, 1, cl.assertion(), nil); !errors.Is(err, errEpoch) {
		t.Errorf("raise of an epoch that is past: %v, want errEpoch", err)
	}
}
