package ceph

import (
	"context"
	"testing"

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
