package reap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// round is one look through everything.
type round struct {
	*Reaper
	eyes       Cluster
	records    map[string]worker.Record
	unreadable map[string]error
	bare       []string // keys without a record
	uploads    []Upload
	uploadsErr error
	traces     map[string][]strategies.Trace // by image id
	findings   []Finding
}

// Round looks once through everything and removes what is ours and belongs to no open job. The findings are complete up
// to an error; one is answered only when the journal could not be read, without which nothing may be touched, or ctx
// ended. Everything else that fails is a finding.
func (r *Reaper) Round(ctx context.Context) ([]Finding, error) {
	r.withDefaults()
	eyes, shut, err := r.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer shut()
	n := &round{
		Reaper: r, eyes: eyes, records: map[string]worker.Record{}, unreadable: map[string]error{}, traces: map[string][]strategies.Trace{},
	}
	// The journal comes before the pools: what a job makes after that is younger than Age.
	if err := n.readJournal(ctx); err != nil {
		return nil, err
	}
	if n.uploads, n.uploadsErr = r.Volumes.Uploads(ctx); n.uploadsErr != nil {
		n.report(Finding{Kind: Unseen, Where: "Cinder's volumes", Action: Failed, Why: n.uploadsErr.Error()})
	}
	n.lookThroughPools(ctx)
	n.lookAtPlaces(ctx)
	n.reapAll(ctx)
	n.reapJournal(ctx)
	n.reportUploads()
	if ctx.Err() != nil {
		return n.findings, context.Cause(ctx)
	}

	return n.findings, nil
}

func (n *round) report(f Finding) {
	if f.Action != "" {
		n.findings = append(n.findings, f)
	}
}

// wanted reports whether this round is about the image.
func (n *round) wanted(imageID string) bool {
	return len(n.Only) == 0 || slices.Contains(n.Only, imageID)
}

// readJournal reads every record. One that can't be read keeps everything of its job from being touched.
func (n *round) readJournal(ctx context.Context) error {
	keys, err := n.Journal.Keys(ctx)
	if err != nil {
		return fmt.Errorf("read the journal: %w", err)
	}
	for i, key := range keys {
		rec, err := n.Journal.Load(ctx, key)
		switch {
		case errors.Is(err, worker.ErrNotFound):
			n.bare = append(n.bare, key)
		case err != nil && worker.AdviceOf(err) != worker.GiveUp:
			return fmt.Errorf("read the journal: %w", err)
		case err != nil:
			n.unreadable[key] = err
			n.report(Finding{Kind: Record, ImageID: key, Where: "job " + key, Action: Look, Why: err.Error()})
		default:
			n.records[key] = rec
		}
		n.Progress("reading the journal", i+1, len(keys))
	}

	return nil
}

// lookThroughPools collects the traces.
func (n *round) lookThroughPools(ctx context.Context) {
	pools, err := n.Pools(ctx)
	if err != nil {
		n.report(Finding{Kind: Unseen, Where: "some pools", Action: Failed, Why: err.Error()})
	}
	for _, rec := range n.records {
		if p, err := strategies.Kept(rec.Kept); err == nil && p.FSID == n.FSID {
			pools = append(pools, p.Source.Pool, p.Dest.Pool)
		}
	}
	slices.Sort(pools)
	for _, pool := range slices.Compact(pools) {
		if pool == "" {
			continue
		}
		found, err := n.eyes.Traces(ctx, pool, n.suspect, func(done, total int) { n.Progress("looking through pool "+pool, done, total) })
		if err != nil {
			n.report(Finding{Kind: Unseen, Where: "pool " + pool, Action: Failed, Why: err.Error()})
		}
		for _, t := range found {
			n.add(t)
		}
	}
}

func (n *round) add(t strategies.Trace) {
	if n.wanted(t.ImageID) {
		n.traces[t.ImageID] = append(n.traces[t.ImageID], t)
	}
}

// suspect knows the jobs that ended without an image.
func (n *round) suspect(imageID string) bool {
	rec, ok := n.records[imageID]

	return ok && rec.Closed && (rec.Outcome == nil || rec.Outcome.Result != worker.Done)
}

// lookAtPlaces adds images without a mark, which no look through a pool tells from others': where a job that failed was to
// make its image, and clones of a snapshot of ours that bear its job's name. Both are what a worker leaves that is killed
// between making an image and marking it.
func (n *round) lookAtPlaces(ctx context.Context) {
	places := map[strategies.Ref]bool{}
	for id, rec := range n.records {
		if p, err := strategies.Kept(rec.Kept); err == nil && p.FSID == n.FSID && p.Dest.Image == id && n.suspect(id) {
			places[p.Dest] = true
		}
	}
	for id, list := range n.traces {
		for _, t := range list {
			for _, c := range t.Children {
				if c.Image == id {
					places[c] = true
				}
			}
		}
	}
	for at := range places {
		if !n.wanted(at.Image) || slices.ContainsFunc(n.traces[at.Image], func(t strategies.Trace) bool { return t.At == at }) {
			continue
		}
		t, there, err := n.eyes.Look(ctx, strategies.Trace{Kind: strategies.TraceImage, ImageID: at.Image, At: at})
		if err != nil {
			n.report(Finding{Kind: Unseen, ImageID: at.Image, Where: at.String(), Action: Failed, Why: err.Error()})
		}
		if there {
			n.add(t)
		}
	}
}

// reapAll goes through the jobs that have left something, one after the other.
func (n *round) reapAll(ctx context.Context) {
	ids := slices.Collect(maps.Keys(n.traces))
	for id := range n.records {
		if len(n.traces[id]) == 0 && n.wanted(id) {
			ids = append(ids, id) // it may have left an image in Glance
		}
	}
	slices.Sort(ids)
	for i, id := range ids {
		if ctx.Err() != nil {
			return
		}
		n.reap(ctx, id, n.traces[id])
		n.Progress("looking at jobs", i+1, len(ids))
	}
}

// reapJournal removes what the journal itself has left. An index key without a record is harmless to remove at any time:
// whoever makes the record writes its key once more after that.
func (n *round) reapJournal(ctx context.Context) {
	for _, key := range n.bare {
		if n.wanted(key) {
			n.report(n.tidy(Finding{Kind: IndexKey, ImageID: key, Where: "index key " + key},
				func() error { return n.Journal.Remove(ctx, key) }))
		}
	}
	var ids []string
	if !n.Thorough || len(n.Only) > 0 {
		ids = []string{}
		for id, rec := range n.records {
			if rec.Closed && n.wanted(id) {
				ids = append(ids, rec.Job.VolumeID)
			}
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	locks, err := n.Locks.Locks(ctx, ids)
	if err != nil {
		n.report(Finding{Kind: Unseen, Where: "locks of volumes", Action: Failed, Why: err.Error()})
	}
	for _, id := range locks {
		n.report(n.tidy(Finding{Kind: VolumeLock, Where: "lock of volume " + id},
			func() error { return n.Locks.RemoveLock(ctx, id) }))
	}
}

func (n *round) tidy(f Finding, remove func() error) Finding {
	f.Action = Remove
	if n.DryRun {
		return f
	}
	f.Action = Removed
	if err := remove(); err != nil {
		f.Action, f.Why = Failed, err.Error()
	}

	return f
}

// reportUploads tells of volumes that wait for nobody. Cinder itself may be copying one, so nothing is changed.
func (n *round) reportUploads() {
	open := map[string]bool{}
	for _, rec := range n.records {
		open[rec.Job.VolumeID] = open[rec.Job.VolumeID] || !rec.Closed
	}
	if len(n.Only) > 0 || len(n.unreadable) > 0 {
		return
	}
	slices.SortFunc(n.uploads, func(a, b Upload) int { return cmp.Compare(a.VolumeID, b.VolumeID) })
	for _, u := range n.uploads {
		if open[u.VolumeID] || time.Since(u.Since) < n.Age {
			continue
		}
		n.report(Finding{Kind: Uploading, Where: "volume " + u.VolumeID, Action: Look, Made: u.Since,
			Why: "it is `uploading` and no job of ours is open for it; unless cinder-volume is copying it, free it with " +
				"`openstack volume set --state available` (in-use if it is attached)"})
	}
}
