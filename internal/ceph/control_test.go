package ceph

import (
	"fmt"
	"testing"
	"time"
)

// TestSilence: only an unbroken row of timeouts is silence, and any other answer of Ceph, also a bad one, ends it.
func TestSilence(t *testing.T) {
	lost := fmt.Errorf("list the jobs: %w", error(etimedout))
	var s silence
	at := time.Now()
	for n, c := range []struct {
		after time.Duration
		err   error
		want  time.Duration
	}{
		{0, nil, 0},
		{time.Second, lost, 0},
		{10 * time.Second, lost, 10 * time.Second},
		{10 * time.Second, lost, 20 * time.Second},
		{0, error(enoent), 0},
		{time.Hour, lost, 0},
		{time.Second, lost, time.Second},
		{0, nil, 0},
		{time.Second, error(eshutdown), 0},
	} {
		at = at.Add(c.after)
		if got := s.heard(c.err, at); got != c.want {
			t.Errorf("call %d, %v: silent for %s, want %s", n, c.err, got, c.want)
		}
	}
}
