package strategiestest

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
)

// Traces finds what jobs left in a cluster; see internal/ceph for the contract.
type Traces interface {
	Traces(
		ctx context.Context, pool string, suspect func(imageID string) bool, seen func(done, total int),
	) ([]strategies.Trace, error)
	Look(ctx context.Context, t strategies.Trace) (strategies.Trace, bool, error)
}

// RunTraces runs the conformance suite of finding traces.
func RunTraces(t *testing.T, r Rig, f Traces) {
	with := func(fn func(*testing.T, Rig, Traces)) func(*testing.T, Rig) {
		return func(t *testing.T, r Rig) { fn(t, r, f) }
	}
	run(t, r, []suiteCase{
		{"a snapshot", with(traceOfSnapshot)},
		{"names that only look like ours", with(lookAlikes)},
		{"a marked image", with(traceOfImage)},
		{"marks of another image", with(tracesOfInheritedMarks)},
		{"a clone of a marked image", with(tracesOfClones)},
		{"a remainder shows by its parent", with(traceOfRemainder)},
	})
}

// found lists what belongs to a job, or bears any of the names; the pools hold what other tests made, too.
func found(t *testing.T, f Traces, pool string, names ...string) []strategies.Trace {
	t.Helper()
	last, all := 0, 0
	list, err := f.Traces(t.Context(), pool, func(string) bool { return false }, func(done, total int) { last, all = done, total })
	must(t, "look for traces", err)
	if last != all {
		t.Errorf("looked at %d of %d images", last, all)
	}

	return slices.DeleteFunc(list, func(tr strategies.Trace) bool {
		return !slices.Contains(names, tr.ImageID) && !slices.Contains(names, tr.At.Image)
	})
}

func one(t *testing.T, list []strategies.Trace, want strategies.TraceKind) strategies.Trace {
	t.Helper()
	if len(list) != 1 || list[0].Kind != want {
		t.Fatalf("traces are %+v, want one %s", list, want)
	}
	if made := list[0].Made; made.IsZero() || made.After(time.Now().Add(time.Minute)) {
		t.Errorf("made at %v", made)
	}

	return list[0]
}

func wantThere(t *testing.T, f Traces, tr strategies.Trace, want bool) strategies.Trace {
	t.Helper()
	now, there, err := f.Look(t.Context(), tr)
	must(t, "look", err)
	if there != want {
		t.Errorf("%s is there: %v, want %v", tr, there, want)
	}

	return now
}

func traceOfSnapshot(t *testing.T, r Rig, f Traces) {
	m := prepared(t, r, r.volume(t, r.ObjectSize, 0))
	tr := one(t, found(t, f, r.Volumes, m.Src.Image), strategies.TraceSnapshot)
	if tr.ImageID != m.Job || tr.At != m.Src || tr.Trashed || len(tr.Children) != 0 {
		t.Errorf("trace is %+v, want that of %+v", tr, m)
	}
	wantThere(t, f, tr, true)
	must(t, "release", r.Source.Release(t.Context(), m.Src, m.Snapshot))
	if left := found(t, f, r.Volumes, m.Src.Image); len(left) != 0 {
		t.Errorf("still found: %+v", left)
	}
	wantThere(t, f, tr, false)
}

func lookAlikes(t *testing.T, r Rig, f Traces) {
	at := r.volume(t, r.ObjectSize, 0)
	for _, name := range []string{"cinderlift.", "cinderlift.backup", "my-cinderlift." + r.ID(), strategies.SourceSnapshot(r.ID()) + ".1"} {
		r.Backdoor.Freeze(t, at, name)
	}
	id := r.ID()
	named := strategies.Ref{Pool: r.Images, Image: id} // somebody's image, without our mark
	t.Cleanup(func() { r.Backdoor.Drop(t, named) })
	r.Backdoor.Put(t, named, Blueprint{Size: r.ObjectSize, Meta: map[string]string{"cinderlift.job": id}})
	r.Backdoor.Write(t, named, 0, noise(512, 1))
	if list := append(found(t, f, r.Volumes, at.Image), found(t, f, r.Images, id)...); len(list) != 0 {
		t.Errorf("found what is not ours: %+v", list)
	}
	wantThere(t, f, strategies.Trace{Kind: strategies.TraceImage, ImageID: id, At: named}, false)
}

func traceOfImage(t *testing.T, r Rig, f Traces) {
	m := prepared(t, r, r.volume(t, 2*r.ObjectSize, 0, 1))
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil))
	tr := one(t, found(t, f, r.Images, m.Job), strategies.TraceImage)
	if tr.ImageID != m.Job || tr.At != m.Dst || !tr.Marked || len(tr.Children)+len(tr.Users) != 0 {
		t.Errorf("trace is %+v, want that of %+v", tr, m)
	}
	wantThere(t, f, tr, true)
	must(t, "discard", r.Destination.Discard(t.Context(), m))
	wantThere(t, f, tr, false)
	if left := found(t, f, r.Images, m.Job); len(left) != 0 {
		t.Errorf("still found: %+v", left)
	}
}

// tracesOfInheritedMarks: librbd copies an image's metadata to volumes that are made of it.
func tracesOfInheritedMarks(t *testing.T, r Rig, f Traces) {
	m := prepared(t, r, r.volume(t, 2*r.ObjectSize, 0, 1))
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	child := r.name(t, r.Volumes)
	r.Backdoor.Put(t, child, Blueprint{Parent: m.Dst, Snapshot: strategies.GlanceSnapshot})
	if list := found(t, f, r.Volumes, child.Image); len(list) != 0 {
		t.Errorf("found a volume made of our image: %+v", list)
	}
	// Even under the job's own name, in another pool.
	same := strategies.Ref{Pool: r.Volumes, Image: m.Job}
	t.Cleanup(func() { r.Backdoor.Drop(t, same) })
	r.Backdoor.Put(t, same, Blueprint{Parent: m.Dst, Snapshot: strategies.GlanceSnapshot})
	r.Backdoor.Write(t, same, 0, noise(512, 1))
	wantThere(t, f, strategies.Trace{Kind: strategies.TraceImage, ImageID: m.Job, At: same}, false)
	for _, tr := range found(t, f, r.Volumes, m.Job) {
		if tr.At == same {
			t.Errorf("found a clone of our image: %+v", tr)
		}
	}
}

func tracesOfClones(t *testing.T, r Rig, f Traces) {
	m := prepared(t, r, r.volume(t, 2*r.ObjectSize, 0, 1))
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	child := r.name(t, r.Volumes)
	r.Backdoor.Put(t, child, Blueprint{Parent: m.Dst, Snapshot: strategies.GlanceSnapshot})
	tr := one(t, found(t, f, r.Images, m.Job), strategies.TraceImage)
	if !slices.Equal(tr.Children, []strategies.Ref{child}) {
		t.Errorf("children are %v, want %v", tr.Children, child)
	}
}

// traceOfRemainder: a worker was killed between making a clone and marking it.
func traceOfRemainder(t *testing.T, r Rig, f Traces) {
	m := prepared(t, r, r.volume(t, 2*r.ObjectSize, 0, 1))
	r.Backdoor.Put(t, m.Dst, Blueprint{Parent: m.Src, Snapshot: m.Snapshot})
	tr := one(t, found(t, f, r.Volumes, m.Src.Image), strategies.TraceSnapshot)
	if !slices.Equal(tr.Children, []strategies.Ref{m.Dst}) {
		t.Errorf("children are %v, want %v", tr.Children, m.Dst)
	}
	now := wantThere(t, f, strategies.Trace{Kind: strategies.TraceImage, ImageID: m.Job, At: m.Dst}, true)
	if now.Marked || now.Made.IsZero() {
		t.Errorf("trace is %+v, want an image without a mark", now)
	}
}
