package ceph

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"

	"github.com/cinderlift/cinderlift/worker"
)

// coded is how go-ceph's errors look: a negative errno behind a method.
type coded int

func (c coded) Error() string  { return fmt.Sprintf("rbd: ret=%d", int(c)) }
func (c coded) ErrorCode() int { return int(c) }

func TestClassify(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason worker.Reason
		advice worker.Advice
	}{
		{coded(-108), worker.ReasonLeaseLost, worker.StandBy},
		{coded(-122), worker.ReasonPoolFull, worker.Retry},
		{coded(-28), worker.ReasonPoolFull, worker.Retry},
		{coded(-110), worker.ReasonCephUnavailable, worker.Retry},
		{coded(-107), worker.ReasonCephUnavailable, worker.Retry},
		{coded(-5), worker.ReasonCephUnavailable, worker.Retry},
		{coded(-16), worker.ReasonCephRefused, worker.Retry},
		{coded(-30), worker.ReasonCephRefused, worker.Retry},
		{coded(-17), worker.ReasonCephRefused, worker.Retry},
		{coded(-1), worker.ReasonCephRefused, worker.OtherWay},
		{coded(-13), worker.ReasonCephRefused, worker.OtherWay},
		{coded(-22), worker.ReasonCephRefused, worker.OtherWay},
		{coded(-95), worker.ReasonCephRefused, worker.OtherWay},
		{coded(-2), worker.ReasonCephRefused, worker.OtherWay},
		{coded(-77), worker.ReasonCephUnavailable, worker.Retry},
		{syscall.EDQUOT, worker.ReasonPoolFull, worker.Retry},
		{fmt.Errorf("copy object 3: %w", syscall.ESHUTDOWN), worker.ReasonLeaseLost, worker.StandBy},
		{context.Canceled, worker.ReasonStopping, worker.Retry},
		{context.DeadlineExceeded, worker.ReasonStopping, worker.Retry},
		{worker.ErrStopping, worker.ReasonStopping, worker.Retry},
		{worker.ErrLeaseLost, worker.ReasonLeaseLost, worker.StandBy},
		{io.ErrShortWrite, worker.ReasonInternal, worker.GiveUp},
		{refuse("x", worker.ReasonConflict, worker.GiveUp, "foreign"), worker.ReasonConflict, worker.GiveUp},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			got := classify("clone volumes/a@s to images/b", c.err)
			if worker.ReasonOf(got) != c.reason || worker.AdviceOf(got) != c.advice {
				t.Errorf("reason %s, advice %v; want %s, %v", worker.ReasonOf(got), worker.AdviceOf(got), c.reason, c.advice)
			}
			if !errors.Is(got, c.err) {
				t.Errorf("%v does not wrap its cause", got)
			}
		})
	}
	if classify("x", nil) != nil {
		t.Error("no error became one")
	}
}

func TestClassifySaysWhatToDo(t *testing.T) {
	got := classify("clone volumes/a@s to images/b", coded(-122)).Error()
	for _, word := range []string{"volumes/a@s", "images/b", "quota", "make room"} {
		if !strings.Contains(got, word) {
			t.Errorf("%q does not say %q", got, word)
		}
	}
}

func TestNamed(t *testing.T) {
	for _, known := range []error{worker.ErrExists, worker.ErrNotFound, worker.ErrHeld} {
		if err := named("claim", fmt.Errorf("vol.1: %w", known)); !errors.Is(err, known) {
			t.Errorf("%v is not %v", err, known)
		}
	}
	if worker.ReasonOf(named("claim", coded(-110))) != worker.ReasonCephUnavailable {
		t.Error("an errno was not classified")
	}
}
