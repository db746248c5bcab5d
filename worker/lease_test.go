package worker_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// lease is a claim of which only Renew and Taken are used.
type lease struct {
	worker.Claim
	taken time.Time
	renew func(ctx context.Context) error
}

func (l lease) Taken() time.Time { return l.taken }

func (l lease) Renew(ctx context.Context) error { return l.renew(ctx) }

// held runs Hold with a lease of 30 s and answers how long f's context lived, up to five minutes.
func held(t *testing.T, renew func(ctx context.Context) error) (lived time.Duration, cause, err error) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		err = worker.Hold(t.Context(), lease{taken: start, renew: renew}, worker.LeaseTimes{TTL: ttl}, func(ctx context.Context) error {
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Minute):
			}
			lived, cause = time.Since(start), context.Cause(ctx)

			return nil
		})
	})

	return lived, cause, err
}

func TestHoldLosesTheLease(t *testing.T) {
	away := errors.New("away")
	for _, c := range []struct {
		name  string
		renew func(n int, ctx context.Context) error
		lived time.Duration // 0: to the end
	}{
		{"renewals are good", func(int, context.Context) error { return nil }, 0},
		{"a renewal hangs", func(_ int, ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, 25 * time.Second},
		{"every renewal fails", func(int, context.Context) error { return away }, 25 * time.Second},
		{"the lease is gone", func(int, context.Context) error { return worker.ErrLeaseLost }, 10 * time.Second},
		{"some fail in between", func(n int, _ context.Context) error {
			if n%3 != 0 {
				return away
			}

			return nil
		}, 0},
		// Trusted from the start of the last good one, 20 s, not from its end.
		{"the second is slow and the third hangs", func(n int, ctx context.Context) error {
			switch n {
			case 1:
				return nil
			case 2:
				<-time.After(14 * time.Second)

				return nil
			default:
				<-ctx.Done()

				return ctx.Err()
			}
		}, 45 * time.Second},
		// An answer that comes when we do not trust the lease any more.
		{"a success comes too late", func(int, context.Context) error { <-time.After(20 * time.Second); return nil },
			25 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := 0
			lived, cause, err := held(t, func(ctx context.Context) error {
				n++

				return c.renew(n, ctx)
			})
			if c.lived == 0 {
				if err != nil || cause != nil || lived != 5*time.Minute {
					t.Errorf("lived %s, cause %v, error %v", lived, cause, err)
				}

				return
			}
			if lived != c.lived || lived >= ttl+30*time.Second {
				t.Errorf("lived %s, want %s", lived, c.lived)
			}
			if !errors.Is(cause, worker.ErrLeaseLost) || !errors.Is(err, worker.ErrLeaseLost) {
				t.Errorf("cause %v, error %v", cause, err)
			}
			if worker.AdviceOf(err) != worker.StandBy || worker.ReasonOf(err) != worker.ReasonLeaseLost {
				t.Errorf("advice %v, reason %v", worker.AdviceOf(err), worker.ReasonOf(err))
			}
		})
	}
}

func TestHoldRenewsEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, at := time.Now(), []time.Duration{}
		l := lease{taken: start, renew: func(context.Context) error { at = append(at, time.Since(start)); return nil }}
		err := worker.Hold(t.Context(), l, worker.LeaseTimes{TTL: ttl}, func(context.Context) error {
			<-time.After(35 * time.Second)

			return nil
		})
		if err != nil || len(at) != 3 || at[0] != 10*time.Second || at[2] != 30*time.Second {
			t.Errorf("renewed at %v, error %v", at, err)
		}
	})
}

// TestHoldTrustsFromBeforeTheClaim: a claim that took long is worth less.
func TestHoldTrustsFromBeforeTheClaim(t *testing.T) {
	for _, took := range []time.Duration{20 * time.Second, 40 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			l := lease{taken: start.Add(-took), renew: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
			err := worker.Hold(t.Context(), l, worker.LeaseTimes{TTL: ttl}, func(ctx context.Context) error {
				<-ctx.Done()

				return nil
			})
			if got, want := time.Since(start), max(0, 25*time.Second-took); got != want || !errors.Is(err, worker.ErrLeaseLost) {
				t.Errorf("lived %s, want %s; error %v", got, want, err)
			}
		})
	}
}

func TestHoldPassesErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := lease{taken: time.Now(), renew: func(context.Context) error { return nil }}
		boom := errors.New("boom")
		err := worker.Hold(t.Context(), l, worker.LeaseTimes{}, func(context.Context) error { return boom })
		if !errors.Is(err, boom) || err.Error() != boom.Error() {
			t.Errorf("error is %v, want f's own", err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		err = worker.Hold(ctx, l, worker.LeaseTimes{}, func(ctx context.Context) error {
			cancel(worker.ErrStopping)
			<-ctx.Done()

			return context.Cause(ctx)
		})
		if !errors.Is(err, worker.ErrStopping) || errors.Is(err, worker.ErrLeaseLost) {
			t.Errorf("error is %v, want that the worker is being stopped", err)
		}
		err = worker.Hold(t.Context(), lease{taken: time.Now(), renew: func(context.Context) error { return worker.ErrLeaseLost }},
			worker.LeaseTimes{}, func(ctx context.Context) error {
				<-ctx.Done()

				return boom
			})
		if !errors.Is(err, boom) || !errors.Is(err, worker.ErrLeaseLost) {
			t.Errorf("error is %v, want both", err)
		}
	})
}
