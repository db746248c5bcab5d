package ceph

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestThrottleBoundsPlaces: never more under way than the smaller of the two limits, in one job and in all together, and a
// limit that changes holds for those that come after.
func TestThrottleBoundsPlaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(Limits{Objects: 5, JobObjects: 3})
		jobs := []*admission{l.job(), l.job(), l.job()}
		var mu sync.Mutex
		most, now := 0, 0
		own := make([]int, len(jobs))
		for n := range 60 {
			job := n % len(jobs)
			go func() {
				if err := jobs[job].enter(t.Context(), 1); err != nil {
					t.Error(err)
				}
				mu.Lock()
				now++
				own[job]++
				most = max(most, now)
				if own[job] > 3 {
					t.Errorf("%d of one job", own[job])
				}
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				now--
				own[job]--
				mu.Unlock()
				jobs[job].leave()
			}()
		}
		expect := func(what string, got *int, want int) {
			mu.Lock()
			defer mu.Unlock()
			if *got != want {
				t.Errorf("%s: %d, want %d", what, *got, want)
			}
		}
		time.Sleep(5500 * time.Millisecond)
		expect("at a time", &most, 5)
		l.set(Limits{Objects: 9, JobObjects: 3})
		time.Sleep(2 * time.Second)
		expect("at a time after the limit was raised", &most, 9)
		time.Sleep(time.Minute)
		expect("left", &now, 0)
	})
}

// TestThrottlePaces: so many bytes take so long, whatever the size of the parts.
func TestThrottlePaces(t *testing.T) {
	for _, c := range []struct {
		name   string
		limits Limits
		parts  int
		bytes  int64
		most   time.Duration
		least  time.Duration
	}{
		{"unlimited", Limits{}, 100, 4 << 20, 0, 0},
		{"worker", Limits{Rate: 8 << 20}, 20, 4 << 20, 10 * time.Second, 9 * time.Second},
		{"job", Limits{JobRate: 8 << 20}, 20, 4 << 20, 10 * time.Second, 9 * time.Second},
		{"the smaller counts", Limits{Rate: 8 << 20, JobRate: 4 << 20}, 20, 4 << 20, 21 * time.Second, 19 * time.Second},
		{"objects above the rate", Limits{Rate: 1 << 20}, 4, 32 << 20, 128 * time.Second, 127 * time.Second},
		{"a byte a second", Limits{Rate: 1}, 5, 1, 5 * time.Second, 4 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := newLimits(c.limits).job()
				begin := time.Now()
				for range c.parts {
					if err := a.enter(t.Context(), c.bytes); err != nil {
						t.Fatal(err)
					}
					a.leave()
				}
				if took := time.Since(begin); took > c.most || took < c.least {
					t.Errorf("took %s, want %s to %s", took, c.least, c.most)
				}
			})
		})
	}
}

// TestThrottleChangesWhilePaced: who waits under a low limit goes on soon after it was raised.
func TestThrottleChangesWhilePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(Limits{Rate: 1 << 20})
		a := l.job()
		begin := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- a.pace(t.Context(), 1<<30) }()
		time.Sleep(10 * time.Second)
		l.set(Limits{})
		if err := <-ended; err != nil || time.Since(begin) > 11*time.Second {
			t.Errorf("ended after %s with %v", time.Since(begin), err)
		}
	})
}

// TestExportsHaveARate: what is read of snapshots has a rate of its own.
func TestExportsHaveARate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(Limits{Rate: 1, ExportRate: 8 << 20})
		begin := time.Now()
		for range 20 {
			if err := l.exports.pace(t.Context(), chunkSize); err != nil {
				t.Error(err)
			}
		}
		if took := time.Since(begin); took < 9*time.Second || took > 10*time.Second {
			t.Errorf("80 MiB at 8 MiB/s took %s", took)
		}
	})
}

// TestThrottleEndsWithContext: nobody waits for a place or for a rate once there is no need, and no place is lost.
func TestThrottleEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("over")
		l := newLimits(Limits{Objects: 1, JobObjects: 2})
		a := l.job()
		if err := a.enter(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		ended := make(chan error, 2)
		go func() { ended <- a.enter(ctx, 1) }()
		slow := newLimits(Limits{Rate: 1}).job()
		go func() { ended <- slow.enter(ctx, 1000) }()
		synctest.Wait()
		cancel(why)
		for range 2 {
			if err := <-ended; !errors.Is(err, why) {
				t.Errorf("%v, want %v", err, why)
			}
		}
		a.leave()
		if err := a.enter(t.Context(), 1); err != nil || a.own.used != 1 || l.all.used != 1 {
			t.Errorf("%v; %d and %d places taken", err, a.own.used, l.all.used)
		}
		a.leave()
	})
}
