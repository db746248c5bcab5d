package worker_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/cinderlift/cinderlift/worker"
)

func TestReasonsAndAdvices(t *testing.T) {
	seen := map[worker.Reason]bool{}
	for _, r := range worker.Reasons() {
		if seen[r] || r == "" {
			t.Errorf("reason %q is there twice, or empty", r)
		}
		seen[r] = true
		for _, a := range []worker.Advice{worker.GiveUp, worker.Retry, worker.OtherWay, worker.StandBy} {
			err := error(&worker.Error{Op: "op", Reason: r, Advice: a, Err: errors.New("cause")})
			inner := &worker.Error{Op: "inner", Reason: worker.ReasonInternal, Advice: worker.GiveUp}
			for _, err := range []error{err, fmt.Errorf("wrapped: %w", err), &worker.Replan{Err: err},
				&worker.Error{Op: "outer", Reason: r, Advice: a, Err: inner}} {
				if worker.ReasonOf(err) != r || worker.AdviceOf(err) != a {
					t.Errorf("%v: reason %q, advice %d; want %q, %d", err, worker.ReasonOf(err), worker.AdviceOf(err), r, a)
				}
			}
		}
	}
}

func TestReasonOfOthers(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason worker.Reason
		advice worker.Advice
	}{
		{nil, worker.ReasonNone, worker.GiveUp},
		{errors.New("raw"), worker.ReasonInternal, worker.GiveUp},
		{context.Canceled, worker.ReasonStopping, worker.GiveUp},
		{fmt.Errorf("read: %w", context.DeadlineExceeded), worker.ReasonStopping, worker.GiveUp},
		{worker.ErrStopping, worker.ReasonStopping, worker.GiveUp},
		{fmt.Errorf("wait: %w", worker.ErrLeaseLost), worker.ReasonLeaseLost, worker.GiveUp},
		{worker.NotApplicable("copy", "why"), worker.ReasonNotApplicable, worker.OtherWay},
	} {
		if worker.ReasonOf(c.err) != c.reason || worker.AdviceOf(c.err) != c.advice {
			t.Errorf("%v: reason %q, advice %d", c.err, worker.ReasonOf(c.err), worker.AdviceOf(c.err))
		}
	}
}

func TestErrorText(t *testing.T) {
	cause := errors.New("no space left")
	err := &worker.Error{Op: "clone volumes/volume-1@s", Reason: worker.ReasonPoolFull, Err: cause}
	if err.Error() != "clone volumes/volume-1@s: no space left" || !errors.Is(err, cause) {
		t.Errorf("error is %q", err)
	}
	if bare := (&worker.Error{Op: "clone", Reason: worker.ReasonPoolFull}).Error(); bare != "clone: pool-full" {
		t.Errorf("error is %q", bare)
	}
}
