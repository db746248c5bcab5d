package reap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// reap deals with what one job has left.
func (n *round) reap(ctx context.Context, id string, traces []strategies.Trace) {
	if n.fine(id, traces) {
		return
	}
	f, err := n.facts(ctx, id, traces)
	if err != nil {
		n.report(Finding{Kind: Unseen, ImageID: id, Where: "job " + id, Action: Failed, Why: err.Error()})

		return
	}
	found := n.judgeAll(f, id, traces)
	if !n.DryRun && slices.ContainsFunc(found, func(x Finding) bool { return x.Action == Remove }) {
		found = n.underLease(ctx, f, id, traces, found)
	}
	for _, x := range found {
		n.report(x)
	}
	if len(found) == 1 && found[0].Action == "" && f.used() && onlyImages(traces) {
		n.good[id] = f.now.Add(goodFor)
	}
}

// goodFor is how long an image that was found active with our data is not asked for again. Glance removes the data with the
// image, so there is an orphan later only if that was cut short.
const goodFor = 24 * time.Hour

// fine spares Glance the question for images that were found as they should be before, and for jobs that left nothing
// and can't have left an image in Glance.
func (n *round) fine(id string, traces []strategies.Trace) bool {
	if len(traces) > 0 {
		return time.Now().Before(n.good[id]) && onlyImages(traces)
	}
	rec := n.records[id]

	return !rec.Closed || rec.Outcome == nil || !lost(*rec.Outcome) || time.Since(rec.Updated) < n.Age
}

func onlyImages(traces []strategies.Trace) bool {
	return !slices.ContainsFunc(traces, func(t strategies.Trace) bool { return t.Kind != strategies.TraceImage })
}

// facts asks the journal once more, and Glance.
func (n *round) facts(ctx context.Context, id string, traces []strategies.Trace) (*facts, error) {
	f := &facts{age: n.Age, fsid: n.FSID, unreadable: n.unreadable[id]}
	rec, err := n.Journal.Load(ctx, id)
	switch {
	case f.unreadable != nil || errors.Is(err, worker.ErrNotFound):
	case err != nil:
		return nil, err
	default:
		f.record = &rec
	}
	n.ask(ctx, f, id, traces)

	return f, ctx.Err()
}

// ask fills in what the record does not tell.
func (n *round) ask(ctx context.Context, f *facts, id string, traces []strategies.Trace) {
	f.image, f.imageErr = n.Images.Image(ctx, id)
	f.now = time.Now()
	f.youngest = youngest(traces, f.record)
	if len(traces) == 0 && f.record != nil {
		f.youngest = f.record.Updated
	}
	if f.job() == nil {
		n.askVolumes(ctx, f, id, traces)
	}
}

// askVolumes finds out whether the volumes are of this cloud, and in use.
func (n *round) askVolumes(ctx context.Context, f *facts, id string, traces []strategies.Trace) {
	// A reaper that made a record had found out that the job is ours; what told it may be removed by now.
	f.ours, f.uploading, f.volumeErr = f.record != nil || slices.Contains(n.Only, id), "", n.uploadsErr
	for _, u := range n.uploads { // also of a migrated one, whose image does not bear the volume's id
		if slices.ContainsFunc(traces, func(t strategies.Trace) bool { return t.At.Image == u.Image }) {
			f.uploading = u.VolumeID
		}
	}
	for _, t := range traces {
		volumeID := n.VolumeID(t.At.Image)
		if rank(t) == 0 || volumeID == "" {
			continue
		}
		v, err := n.Volumes.Volume(ctx, volumeID)
		switch {
		case worker.ReasonOf(err) == worker.ReasonVolumeMissing:
		case err != nil:
			f.volumeErr = err
		case v.Status == worker.VolumeUploading:
			f.uploading = volumeID
		default:
			f.ours = true
		}
	}
}

// judgeAll decides about everything, in the order in which it is removed: the image in Glance, so that it can't become
// active any more; then the data, which the snapshots may not outlive; then the snapshots.
func (n *round) judgeAll(f *facts, id string, traces []strategies.Trace) []Finding {
	slices.SortStableFunc(traces, func(a, b strategies.Trace) int { return rank(a) - rank(b) })
	var found []Finding
	if _, _, held := f.hold(); !held && f.discardable() {
		found = append(found, n.unfinished(f, id))
	}
	var going []strategies.Ref
	for _, t := range traces {
		a, why := f.judge(t, going)
		if a == Remove {
			going = append(going, t.At)
		}
		found = append(found, finding(t, a, why))
	}

	return found
}

func rank(t strategies.Trace) int {
	if t.Kind == strategies.TraceImage || t.Kind == strategies.TraceRemains {
		return 0
	}

	return 1
}

func (n *round) unfinished(f *facts, id string) Finding {
	return Finding{Kind: Unfinished, ImageID: id, Where: "image " + id, Made: f.record.Accepted, Action: Remove,
		Why: fmt.Sprintf("it is %s, and its job failed: %s", f.image.Status, f.record.Outcome.Message)}
}

// underLease removes what was found while it holds the job's lease. Whatever goes wrong, what was not removed is found
// again in the next round.
func (n *round) underLease(
	ctx context.Context, f *facts, id string, traces []strategies.Trace, found []Finding,
) []Finding {
	claim, err := n.claim(ctx, f, id, traces)
	if err != nil {
		return put(found, err)
	}
	defer n.release(ctx, claim, id)
	var done []Finding
	err = worker.Hold(ctx, claim, n.Lease, func(ctx context.Context) (err error) {
		done, err = n.removeAll(ctx, claim, id, traces)

		return err
	})
	if err == nil {
		return done
	}
	rest := slices.DeleteFunc(found, func(x Finding) bool {
		return slices.ContainsFunc(done, func(d Finding) bool { return d.Kind == x.Kind && d.Where == x.Where })
	})

	return append(done, put(rest, err)...)
}

// put says of what was to be removed why it was not.
func put(found []Finding, err error) []Finding {
	action := Failed
	for _, busy := range []error{worker.ErrHeld, worker.ErrNewer, worker.ErrExists, worker.ErrNotFound} {
		if errors.Is(err, busy) {
			action = Wait
		}
	}
	for i := range found {
		if found[i].Action == Remove {
			found[i].Action, found[i].Why = action, err.Error()
		}
	}

	return found
}

// claim takes the job's lease. A job without a record gets one that is closed from the start, so that no worker adopts
// it. A reaper that dies right after leaves just that; the runner removes it when its time is up.
func (n *round) claim(ctx context.Context, f *facts, id string, traces []strategies.Trace) (worker.Claim, error) {
	if f.record == nil {
		if err := n.Journal.Create(ctx, n.stand(id, traces)); err != nil {
			return nil, err
		}
	}

	return n.Journal.Claim(ctx, id)
}

// stand is the record that stands for a job of which there is none.
func (n *round) stand(id string, traces []strategies.Trace) worker.Record {
	now := time.Now().UTC()
	job := worker.Job{ImageID: id, Digest: digest}
	for _, t := range traces {
		if rank(t) == 1 && job.VolumeID == "" {
			job.VolumeID = n.VolumeID(t.At.Image)
		}
	}

	return worker.Record{
		Version: worker.RecordVersion, Job: job, Accepted: now, Updated: now, Closed: true,
		Outcome: &worker.Outcome{Result: worker.Cancelled, Reason: worker.ReasonNone,
			Message: "no request: cinderlift reap found what a job had left that the journal did not know"},
	}
}

func (n *round) release(ctx context.Context, claim worker.Claim, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 7*time.Second)
	defer cancel()
	if err := claim.Release(ctx); err != nil {
		n.Logger.Warn("give the lease back; it ends by itself", "image", id, "error", err)
	}
}

// removeAll removes one thing after the other, each after another look and another judgement: since the first one the
// lease may have been somebody else's.
func (n *round) removeAll(
	ctx context.Context, claim worker.Claim, id string, traces []strategies.Trace,
) ([]Finding, error) {
	rec := claim.Record()
	f := &facts{age: n.Age, fsid: n.FSID, record: &rec}
	n.ask(ctx, f, id, traces)
	var done []Finding
	if _, _, held := f.hold(); !held && f.discardable() {
		done = append(done, n.tidy(n.unfinished(f, id), func() error { return n.Images.Discard(ctx, id) }))
		n.ask(ctx, f, id, traces)
	}
	src, dst := n.Hands(claim)
	for _, t := range traces {
		x, err := n.removeOne(ctx, f, t, src, dst)
		if err != nil {
			return done, err
		}
		done = append(done, x)
	}

	return done, nil
}

func (n *round) removeOne(
	ctx context.Context, f *facts, t strategies.Trace, src strategies.Source, dst strategies.Destination,
) (Finding, error) {
	now, there, err := n.eyes.Look(ctx, t)
	if ctx.Err() != nil {
		return Finding{}, context.Cause(ctx)
	}
	if err != nil {
		return finding(t, Failed, err.Error()), nil
	}
	if !there {
		return finding(t, "", ""), nil // somebody was faster
	}
	if now.Made.After(f.youngest) {
		f.youngest = now.Made // made anew since the first look
	}
	action, why := f.judge(now, nil)
	if action != Remove {
		return finding(now, action, why), nil
	}
	err = remove(ctx, now, src, dst)
	if ctx.Err() != nil {
		return Finding{}, context.Cause(ctx)
	}

	return n.outcome(ctx, now, err), nil
}

func remove(ctx context.Context, t strategies.Trace, src strategies.Source, dst strategies.Destination) error {
	if rank(t) == 1 {
		return src.Release(ctx, t.At, strategies.SourceSnapshot(t.ImageID))
	}

	return dst.Discard(ctx, strategies.Make{Dst: t.At, Job: t.ImageID, Snapshot: strategies.SourceSnapshot(t.ImageID)})
}

// outcome looks what became of the trace: a removal may have failed after it was done, or have removed nothing.
func (n *round) outcome(ctx context.Context, t strategies.Trace, err error) Finding {
	_, there, looked := n.eyes.Look(ctx, t)
	switch {
	case looked == nil && !there:
		return finding(t, Removed, "")
	case err != nil:
		return finding(t, Failed, err.Error())
	case looked != nil:
		return finding(t, Failed, looked.Error())
	default:
		return finding(t, Failed, "it is still there")
	}
}
