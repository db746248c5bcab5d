//go:build lab

package ceph

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// journalOf opens a journal of the test's own.
func journalOf(t *testing.T) *Cluster {
	t.Helper()
	o := labOptions(t)
	o.Namespace = "cinderlift-test-" + newID()
	c := labCluster(t, o)
	wipe(t, c)

	return c
}

func fresh() worker.Record {
	return worker.Record{Job: worker.Job{ImageID: newID(), VolumeID: newID()}}
}

// closed makes a record that could be removed.
func closed(t *testing.T, c *Cluster) worker.Record {
	t.Helper()
	rec := fresh()
	rec.Closed = true
	must(t, c.Create(t.Context(), rec))

	return rec
}

func wantListed(t *testing.T, c *Cluster, rec worker.Record, want bool) {
	t.Helper()
	keys, err := c.Keys(t.Context())
	must(t, err)
	if got := slices.Contains(keys, rec.Job.Key()); got != want {
		t.Errorf("the index has the key: %v, want %v", got, want)
	}
}

// TestCreateInsideRemove: a new record comes between the two parts of a removal.
func TestCreateInsideRemove(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	rec := closed(t, c)
	own, err := controlOf(t, c).versioned()
	must(t, err)
	defer own.Destroy()
	must(t, removeClosed(own, rec.Job.Key()))
	rec.Closed = false
	must(t, c.Create(t.Context(), rec))
	must(t, unlist(own, rec.Job.Key()))
	wantListed(t, c, rec, true)
	if err := removeClosed(own, rec.Job.Key()); worker.ReasonOf(err) != worker.ReasonConflict {
		t.Errorf("removing the open record: %v, want a conflict", err)
	}
}

// TestRemoveInsideCreate: a removal comes between the first and the second part of a new record.
func TestRemoveInsideCreate(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	rec := closed(t, c)
	must(t, controlOf(t, c).index(rec.Job.Key()))
	must(t, c.Remove(t.Context(), rec.Job.Key()))
	wantListed(t, c, rec, false)
	rec.Closed = false
	raw, err := json.Marshal(rec)
	must(t, err)
	must(t, controlOf(t, c).write(rec.Job.Key(), rec, raw))
	must(t, controlOf(t, c).index(rec.Job.Key()))
	wantListed(t, c, rec, true)
}

// TestRefusedClaimIsCheap: a scan claims every open job of every worker that lives.
func TestRefusedClaimIsCheap(t *testing.T) {
	t.Parallel()
	c := journalOf(t)
	one, two := fresh(), fresh()
	two.Job.VolumeID = one.Job.VolumeID
	must(t, c.Create(t.Context(), one))
	must(t, c.Create(t.Context(), two))
	claim, err := c.Claim(t.Context(), one.Job.Key())
	must(t, err)
	defer func() { must(t, claim.Release(t.Context())) }()
	o := c.opts
	o.DataConf = map[string]string{"no_such_option": "1"} // a connection for the job can't be made
	poor := labCluster(t, o)
	own, err := controlOf(t, c).versioned()
	must(t, err)
	defer own.Destroy()
	versions := func() (list []uint64) {
		for _, object := range []string{
			jobPrefix + one.Job.Key(), jobPrefix + two.Job.Key(), volumePrefix + one.Job.VolumeID,
		} {
			_, err := own.Stat(object)
			must(t, err)
			version, err := own.GetLastVersion()
			must(t, err)
			list = append(list, version)
		}

		return list
	}
	before := versions()
	for _, rec := range []worker.Record{one, two} {
		if _, err := poor.Claim(t.Context(), rec.Job.Key()); !errors.Is(err, worker.ErrHeld) {
			t.Errorf("claim: %v, want ErrHeld", err)
		}
	}
	if after := versions(); !slices.Equal(after, before) {
		t.Errorf("refused claims wrote: versions %v, before %v", after, before)
	}
}

// TestClaimAfterExpiry: a lock that nobody renews is not in the way.
func TestClaimAfterExpiry(t *testing.T) {
	t.Parallel()
	o := labOptions(t)
	o.Namespace, o.LeaseTTL = "cinderlift-test-"+newID(), time.Second
	c := labCluster(t, o)
	wipe(t, c)
	rec := fresh()
	must(t, c.Create(t.Context(), rec))
	first := adopt(t, c, rec.Job.Key())
	second := adopt(t, c, rec.Job.Key())
	if second.Record().Epoch != 2 {
		t.Errorf("epoch %d, want 2", second.Record().Epoch)
	}
	must(t, first.Release(t.Context()))
	must(t, second.Release(t.Context()))
}
