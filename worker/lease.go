package worker

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// LeaseTimes are the times of a lease. The zero value means the defaults.
type LeaseTimes struct {
	TTL    time.Duration // after which others may take it; default 30 s
	Every  time.Duration // between two renewals; default TTL/3
	Margin time.Duration // how long before TTL we stop trusting it: clocks of OSDs differ; default TTL/6
}

// WithDefaults fills in what is zero.
func (t LeaseTimes) WithDefaults() LeaseTimes {
	if t.TTL == 0 {
		t.TTL = 30 * time.Second
	}
	if t.Every == 0 {
		t.Every = t.TTL / 3
	}
	if t.Margin == 0 {
		t.Margin = t.TTL / 6
	}

	return t
}

// trust is how long after the start of a good renewal the lease is relied on.
func (t LeaseTimes) trust() time.Duration { return t.TTL - t.Margin }

// Hold runs f while it renews c's lease. The context of f is cancelled with cause ErrLeaseLost before the lease can have
// expired, even when a renewal hangs: the lease is trusted from the *start* of the last good renewal (at first from
// c.Taken) and no longer than TTL-Margin. Hold returns after f has returned; its error is f's, or one that wraps
// ErrLeaseLost and says StandBy when the lease went while f ran.
func Hold(ctx context.Context, c Claim, t LeaseTimes, f func(context.Context) error) error {
	t = t.WithDefaults()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	expiry := time.AfterFunc(time.Until(c.Taken().Add(t.trust())), func() { cancel(ErrLeaseLost) })
	defer expiry.Stop()

	renewals := make(chan struct{})
	go func() {
		defer close(renewals)
		keepRenewing(ctx, c, t, expiry, cancel)
	}()
	err := f(ctx)
	lost := errors.Is(context.Cause(ctx), ErrLeaseLost)
	cancel(nil)
	<-renewals
	if lost {
		return leaseLost(err)
	}

	return err
}

// keepRenewing renews until ctx ends or the lease is lost. An error that is not ErrLeaseLost is tried again soon:
// expiry decides when it has been too long.
func keepRenewing(ctx context.Context, c Claim, t LeaseTimes, expiry *time.Timer, lose context.CancelCauseFunc) {
	wait := t.Every
	for sleep(ctx, wait) == nil {
		start := time.Now()
		err := c.Renew(ctx)
		if errors.Is(err, ErrLeaseLost) {
			lose(ErrLeaseLost)

			return
		}
		wait = t.Every / 5
		// Reset only while the timer has not fired: a renewal that succeeds after we stopped trusting the lease must
		// not revive a context that is cancelled already.
		if err == nil && expiry.Stop() {
			expiry.Reset(time.Until(start.Add(t.trust())))
			wait = t.Every
		}
	}
}

func leaseLost(err error) error {
	cause := ErrLeaseLost
	if err != nil && !errors.Is(err, ErrLeaseLost) {
		cause = fmt.Errorf("%w while: %w", ErrLeaseLost, err)
	}

	return &Error{Op: "hold the lease", Reason: ReasonLeaseLost, Advice: StandBy, Err: cause}
}

// sleep waits for d, or for the end of ctx, whose cause it then returns.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
