package worker

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is how long to wait between two tries: a random time between the half and the whole of First·2ⁿ, at most Max,
// so that a pool of workers does not come back in step. The zero value means the defaults.
type Backoff struct {
	First    time.Duration // default 1 s
	Max      time.Duration // default 1 min
	Patience time.Duration // how long one worker tries the same step again before it counts as failed; default 24 h
	Claims   int           // how many workers may begin the same step and not come back before it counts as failed; default 5
}

// WithDefaults fills in what is zero.
func (b Backoff) WithDefaults() Backoff {
	if b.First == 0 {
		b.First = time.Second
	}
	if b.Max == 0 {
		b.Max = time.Minute
	}
	if b.Patience == 0 {
		b.Patience = 24 * time.Hour
	}
	if b.Claims == 0 {
		b.Claims = 5
	}

	return b
}

// delay is the wait after the n-th failure, n counted from 1. Half of it is certain: a wait of next to nothing would
// burn attempts.
func (b Backoff) delay(n int) time.Duration {
	d := min(b.First, b.Max)
	for ; n > 1 && d < b.Max; n-- {
		d = min(2*d, b.Max) // step by step: a shift would overflow
	}

	return d/2 + rand.N(d/2+1)
}

// wait sleeps after the n-th failure; its error is the cause of ctx's end.
func (b Backoff) wait(ctx context.Context, n int) error { return sleep(ctx, b.delay(n)) }
