//go:build lab

package ceph

import (
	"flag"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
	"github.com/cinderlift/cinderlift/worker/workertest"
)

// TestJournalModel runs the model that the fake is held against on Ceph, with few steps and a short lease: what is only
// nearly over there has to be waited for here.
func TestJournalModel(t *testing.T) {
	for name, value := range map[string]string{"rapid.checks": "5", "rapid.steps": "25", "rapid.nofailfile": "true", "rapid.shrinktime": "1s"} {
		f := flag.Lookup(name)
		before := f.Value.String()
		if f.DefValue != before {
			continue // set on the command line
		}
		if err := f.Value.Set(value); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Value.Set(before) }) // its own text
	}
	o := labOptions(t)
	o.Namespace, o.LeaseTTL = "cinderlift-test-"+newID(), 3*time.Second
	wipe(t, labCluster(t, o))
	workertest.RunModel(t, workertest.Rig{
		Journal: func(t testing.TB, owner string) worker.Journal {
			o := o
			o.Owner, o.Logger = owner, labOptions(t).Logger

			return labCluster(t, o)
		},
		ID: newID, TTL: o.LeaseTTL, Slack: time.Second,
	})
}
