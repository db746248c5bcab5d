package main

import (
	"slices"
	"testing"
	"time"
)

// TestPlanRepeats: a seed is worth printing only if it makes the same plan again, however long the run is to be.
func TestPlanRepeats(t *testing.T) {
	p := pace{Workers: 10 * time.Second, Services: 40 * time.Second, Lease: 10 * time.Second}
	workers, services := plan(7, p, time.Hour)
	again, alike := plan(7, p, 2*time.Hour)
	if !slices.Equal(workers, again[:len(workers)]) || !slices.Equal(services, alike[:len(services)]) {
		t.Error("the same seed makes another plan")
	}
	if other, _ := plan(8, p, time.Hour); slices.Equal(workers, other) {
		t.Error("another seed makes the same plan")
	}
	seen := map[kind]int{}
	for _, e := range slices.Concat(again, alike) {
		seen[e.Kind]++
		if e.Kind == freeze && e.For <= p.Lease {
			t.Errorf("a worker sleeps for %s only, its lease lasts %s", e.For, p.Lease)
		}
	}
	for _, k := range []kind{kill, term, freeze, cutBus, closeBus, restartRabbit, killOSD, failGlance, failCinder, killGlance,
		killVolume, resetVolume} {
		if seen[k] == 0 {
			t.Errorf("nothing of the kind %q in two hours", k)
		}
	}
}
