package ceph

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// TestRenewEndsWithItsContext: not even a Release that takes its time may keep it.
func TestRenewEndsWithItsContext(t *testing.T) {
	cl := &Claim{c: &Cluster{}, k: &control{}}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	renewed := make(chan error)
	go func() { renewed <- cl.Renew(ctx) }()
	cancel()
	if err := <-renewed; worker.ReasonOf(err) != worker.ReasonStopping {
		t.Errorf("renew: %v, want reason %s", err, worker.ReasonStopping)
	}
}

// TestAssertion pins down what cls_lock decodes; a lock by another name or type would be no condition at all.
func TestAssertion(t *testing.T) {
	cl := &Claim{cookie: "w/1"}
	want := "\x01\x01\x15\x00\x00\x00" + "\x05\x00\x00\x00lease" + "\x01" + "\x03\x00\x00\x00w/1" + "\x00\x00\x00\x00"
	if got := string(cl.assertion()); got != want {
		t.Errorf("assertion is %q, want %q", got, want)
	}
}

// TestFencedControl: what a fenced control connection answers is to be tried again, but for the lease it is the end.
func TestFencedControl(t *testing.T) {
	c := &Cluster{opts: Options{}.withDefaults(), dialed: time.Now()}
	if err := c.Ping(t.Context()); worker.ReasonOf(err) != worker.ReasonCephUnavailable || worker.AdviceOf(err) != worker.Retry {
		t.Errorf("ping: %v, want ceph-unavailable and Retry", err)
	}
	cl := &Claim{c: c, k: &control{}}
	cl.k.users.shut(errFenced)
	if err := cl.Renew(t.Context()); !errors.Is(err, worker.ErrLeaseLost) {
		t.Errorf("renew: %v, want ErrLeaseLost", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Ping(t.Context()); worker.ReasonOf(err) != worker.ReasonStopping {
		t.Errorf("ping after close: %v, want reason %s", err, worker.ReasonStopping)
	}
}
