package workertest

import (
	"testing"
	"testing/synctest"
)

// TestModel runs in a bubble: leases run out in no time.
func TestModel(t *testing.T) {
	store := NewStore(fakeRig(nil).TTL)
	synctest.Test(t, func(t *testing.T) { RunModel(t, fakeRig(func() *Store { return store })) })
}
