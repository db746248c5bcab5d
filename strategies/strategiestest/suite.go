package strategiestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Rig is a cluster to be tested.
type Rig struct {
	Source      strategies.Source
	Destination strategies.Destination
	Backdoor    Backdoor

	Volumes, Images string        // pools
	ObjectSize      int64         // of the volumes, in bytes; a multiple of 2048
	ID              func() string // an id that was not used before, in the form of a UUID
	Kinds           []Kind        // of volumes; nil for Kinds()
	Parallel        bool          // run the cases in parallel: a real cluster spends most of the time waiting
}

// Run runs the conformance suite.
func Run(t *testing.T, r Rig) { run(t, r, append(kindCases(r), suiteCases()...)) }

// RunKinds runs that part of the suite that depends on how volumes are made.
func RunKinds(t *testing.T, r Rig) { run(t, r, kindCases(r)) }

func run(t *testing.T, r Rig, cases []suiteCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if r.Parallel {
				t.Parallel()
			}
			c.fn(t, r)
		})
	}
}

// kindCases are the ways to make an image of each kind of volume.
func kindCases(r Rig) []suiteCase {
	kinds := r.Kinds
	if kinds == nil {
		kinds = Kinds()
	}
	var list []suiteCase
	for _, k := range kinds {
		list = append(list,
			suiteCase{"clone and flatten/" + k.Name, func(t *testing.T, r Rig) { cloneAndFlatten(t, r, k.Build(t, r), 0) }},
			suiteCase{"copy/" + k.Name, func(t *testing.T, r Rig) { copyObjects(t, r, k.Build(t, r), 0) }},
			suiteCase{"open/" + k.Name, func(t *testing.T, r Rig) { open(t, r, k.Build(t, r)) }})
	}
	for _, size := range []int64{2 * r.ObjectSize, r.ObjectSize / 2} {
		at := func(t *testing.T, r Rig) strategies.Ref { return r.volume(t, 9*r.ObjectSize+512, 0, 1, 4, 8) }
		list = append(list,
			suiteCase{fmt.Sprintf("clone and flatten/objects of %d", size), func(t *testing.T, r Rig) { cloneAndFlatten(t, r, at(t, r), size) }},
			suiteCase{fmt.Sprintf("copy/objects of %d", size), func(t *testing.T, r Rig) { copyObjects(t, r, at(t, r), size) }})
	}

	return list
}

type suiteCase struct {
	name string
	fn   func(*testing.T, Rig)
}

func suiteCases() []suiteCase {
	return []suiteCase{
		{"a volume that is not there", missingVolume},
		{"a snapshot that is not there", missingSnapshot},
		{"inspect", inspect},
		{"inspect a clone of an image", inspectClone},
		{"release waits for clones", releaseWaits},
		{"metadata of the volume stays behind", metadataStaysBehind},
		{"marks of another image prove nothing", inheritedMarks},
		{"a foreign image is not touched", foreignImage},
		{"an image of another job is not touched", otherJob},
		{"an empty remainder is replaced", emptyRemainder},
		{"an empty remainder is discarded", discardRemainder},
		{"only finished images are sealed", sealUnfinished},
		{"a copy goes on after an interruption", interruptedCopy},
		{"a flatten goes on after an interruption", interruptedFlatten},
		{"discard of a half-made image", discardHalfMade},
		{"clone after copy", cloneAfterCopy},
		{"another snapshot/part of a copy", anotherSnapshot(partOfCopy)},
		{"another snapshot/copy", anotherSnapshot(wholeCopy)},
		{"another snapshot/sealed copy", anotherSnapshot(sealedCopy)},
		{"another snapshot/flattened clone", anotherSnapshot(flattenedClone)},
		{"no snapshot any more", noSnapshot},
		{"a finished context", finishedContext},
	}
}

// prepared is a snapshotted volume and the image to be made of it.
func prepared(t testing.TB, r Rig, src strategies.Ref) strategies.Make {
	t.Helper()
	id := r.ID()
	m := strategies.Make{
		Src: src, Snapshot: strategies.SourceSnapshot(id), Dst: strategies.Ref{Pool: r.Images, Image: id}, Job: id,
	}
	t.Cleanup(func() { r.Backdoor.Drop(t, m.Dst) })
	snapshotTwice(t, r, m)

	return m
}

func snapshotTwice(t testing.TB, r Rig, m strategies.Make) {
	t.Helper()
	for range 2 {
		must(t, "snapshot", r.Source.Snapshot(t.Context(), m.Src, m.Snapshot))
		must(t, "protect", r.Source.Protect(t.Context(), m.Src, m.Snapshot))
	}
}

func must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func wantReason(t testing.TB, what string, err error, want worker.Reason) {
	t.Helper()
	if worker.ReasonOf(err) != want {
		t.Errorf("%s: reason %s (%v), want %s", what, worker.ReasonOf(err), err, want)
	}
}

func wantComplete(t testing.TB, r Rig, m strategies.Make, flat, want bool) {
	t.Helper()
	got, err := r.Destination.Complete(t.Context(), m, flat)
	must(t, "complete", err)
	if got != want {
		t.Errorf("complete(flat=%v) is %v, want %v", flat, got, want)
	}
}

// wantBytes looks at the image, at its snapshot, and at a clone made of it, as its users will.
func wantBytes(t testing.TB, r Rig, m strategies.Make, want []byte) {
	t.Helper()
	child := r.name(t, r.Volumes)
	r.Backdoor.Put(t, child, Blueprint{Parent: m.Dst, Snapshot: strategies.GlanceSnapshot})
	views := map[string][]byte{
		"image":    r.Backdoor.Read(t, m.Dst, ""),
		"snapshot": r.Backdoor.Read(t, m.Dst, strategies.GlanceSnapshot),
		"child":    r.Backdoor.Read(t, child, ""),
	}
	r.Backdoor.Drop(t, child)
	for name, got := range views {
		if !bytes.Equal(got, want) {
			t.Errorf("%s has other bytes than the volume had (%d, want %d; first difference at %d)",
				name, len(got), len(want), differ(got, want))
		}
	}
}

func differ(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}

	return min(len(a), len(b))
}

// meter checks that progress is told truthfully.
type meter struct {
	t    testing.TB
	last worker.Amount
}

func (m *meter) tell(a worker.Amount) {
	if a.Done < m.last.Done || a.Cluster < m.last.Cluster || a.Worker < m.last.Worker {
		m.t.Errorf("progress went back from %+v to %+v", m.last, a)
	}
	if a.Total > 0 && a.Done > a.Total {
		m.t.Errorf("progress is beyond its total: %+v", a)
	}
	m.last = a
}

func cloneAndFlatten(t *testing.T, r Rig, src strategies.Ref, objectSize int64) {
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	m.ObjectSize = objectSize
	r.Backdoor.Write(t, src, 0, noise(r.ObjectSize/2, 1234)) // after the snapshot: not in the image
	wantComplete(t, r, m, false, false)
	for range 2 {
		must(t, "clone", r.Destination.Clone(t.Context(), m))
	}
	wantComplete(t, r, m, false, false)
	for range 2 {
		must(t, "seal", r.Destination.Seal(t.Context(), m))
	}
	wantComplete(t, r, m, false, true)
	wantComplete(t, r, m, true, false)
	if v := r.Backdoor.View(t, m.Dst); v.ObjectMap {
		t.Error("an unflattened clone keeps an object map")
	}
	wantBytes(t, r, m, want)
	p := &meter{t: t}
	for range 2 {
		must(t, "flatten", r.Destination.Flatten(t.Context(), m, p.tell))
		p.last = worker.Amount{}
	}
	wantComplete(t, r, m, true, true)
	must(t, "clone again", r.Destination.Clone(t.Context(), m))
	finish(t, r, m, want)
}

func copyObjects(t *testing.T, r Rig, src strategies.Ref, objectSize int64) {
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	m.ObjectSize = objectSize
	r.Backdoor.Write(t, src, 0, noise(r.ObjectSize/2, 1234))
	for range 2 {
		must(t, "copy", r.Destination.CopyObjects(t.Context(), m, (&meter{t: t}).tell))
	}
	wantComplete(t, r, m, true, false)
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	wantComplete(t, r, m, true, true)
	must(t, "copy again", r.Destination.CopyObjects(t.Context(), m, nil))
	if v := r.Backdoor.View(t, m.Dst); objectSize != 0 && v.ObjectSize != objectSize {
		t.Errorf("the image has objects of %d bytes, want %d", v.ObjectSize, objectSize)
	}
	finish(t, r, m, want)
}

// finish lets go of the source, checks the image without it, and takes the image away.
func finish(t *testing.T, r Rig, m strategies.Make, want []byte) {
	t.Helper()
	for range 2 {
		must(t, "release", r.Source.Release(t.Context(), m.Src, m.Snapshot))
	}
	if v := r.Backdoor.View(t, m.Src); len(v.Snapshots) != 0 {
		t.Errorf("the volume still has snapshots: %v", v.Snapshots)
	}
	v := r.Backdoor.View(t, m.Dst)
	if v.Parent != "" || !v.Snapshots[strategies.GlanceSnapshot] || v.Size != int64(len(want)) {
		t.Errorf("the image is %+v, want no parent, a protected snapshot %s and %d bytes", v, strategies.GlanceSnapshot, len(want))
	}
	wantBytes(t, r, m, want)
	for range 2 {
		must(t, "discard", r.Destination.Discard(t.Context(), m))
	}
	if r.Backdoor.View(t, m.Dst).Exists {
		t.Error("the image is still there after discard")
	}
}

func open(t *testing.T, r Rig, src strategies.Ref) {
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	info, err := r.Source.Stat(t.Context(), src)
	must(t, "stat", err)
	if info.Size != int64(len(want)) || info.ObjectSize != r.Backdoor.View(t, src).ObjectSize {
		t.Errorf("stat is %+v, want size %d", info, len(want))
	}
	r.Backdoor.Write(t, src, 0, noise(r.ObjectSize/2, 1234))
	content, err := r.Source.Open(t.Context(), src, m.Snapshot)
	must(t, "open", err)
	if content.Size() != int64(len(want)) {
		t.Errorf("size is %d, want %d", content.Size(), len(want))
	}
	for _, from := range []int64{0, int64(len(want)) / 3, int64(len(want))} {
		_, err := content.Seek(from, io.SeekStart)
		must(t, "seek", err)
		got, err := io.ReadAll(content)
		must(t, "read", err)
		if !bytes.Equal(got, want[from:]) {
			t.Errorf("from %d on it reads %d other bytes, want %d", from, len(got), int64(len(want))-from)
		}
	}
	allocated(t, content, want)
	must(t, "close", content.Close())
	must(t, "release", r.Source.Release(t.Context(), src, m.Snapshot))
}

// header is a qcow2 header that names a backing file.
const header = "QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x02\x00"

// wantHeader looks for it at the snapshot, and behind the first sectors.
func wantHeader(t *testing.T, r Rig, m strategies.Make) {
	t.Helper()
	f, err := r.Source.Inspect(t.Context(), m.Src, m.Snapshot)
	must(t, "inspect", err)
	if !slices.Equal(f.Formats, []imageformat.Format{imageformat.QCOW2, imageformat.ISO}) || len(f.Problems) != 1 ||
		f.Problems[0].Check != "backing_file" {
		t.Errorf("found %+v, want qcow2 with a backing file, and iso", f)
	}
}

func inspect(t *testing.T, r Rig) {
	src := r.volume(t, 12*r.ObjectSize)
	r.Backdoor.Write(t, src, 0, []byte(header))
	r.Backdoor.Write(t, src, 32<<10+1, []byte("CD001"))
	m := prepared(t, r, src)
	r.Backdoor.Write(t, src, 0, make([]byte, 512)) // after the snapshot: not what the image is made of
	wantHeader(t, r, m)
	must(t, "release", r.Source.Release(t.Context(), src, m.Snapshot))
	m = prepared(t, r, src)
	f, err := r.Source.Inspect(t.Context(), src, m.Snapshot)
	must(t, "inspect", err)
	if !slices.Equal(f.Formats, []imageformat.Format{imageformat.ISO}) || len(f.Problems) != 0 {
		t.Errorf("found %+v, want iso", f)
	}
}

// inspectClone: the bytes are those of a parent, all of them or a part.
func inspectClone(t *testing.T, r Rig) {
	up, src := r.name(t, r.Images), r.name(t, r.Volumes)
	r.Backdoor.Put(t, up, Blueprint{Size: 12 * r.ObjectSize, ObjectSize: r.ObjectSize})
	r.Backdoor.Write(t, up, 0, []byte(header))
	r.Backdoor.Write(t, up, 32<<10+1, []byte("CD001"))
	r.Backdoor.Freeze(t, up, strategies.GlanceSnapshot)
	r.Backdoor.Put(t, src, Blueprint{Parent: up, Snapshot: strategies.GlanceSnapshot})
	wantHeader(t, r, prepared(t, r, src))
	r.Backdoor.Write(t, src, 512, noise(512, 3))
	wantHeader(t, r, prepared(t, r, src))
}

var errTold = errors.New("told enough")

// allocated checks that what is not told to exist is zeros, and that all else is told in order.
func allocated(t *testing.T, c strategies.Content, want []byte) {
	t.Helper()
	end, rest := int64(0), bytes.Clone(want)
	must(t, "allocated", c.Allocated(func(from, to int64) error {
		if from < end || to <= from || to > int64(len(want)) {
			t.Errorf("a part from %d to %d after one to %d, of %d bytes", from, to, end, len(want))

			return errTold
		}
		end = to
		clear(rest[from:to])

		return nil
	}))
	if len(bytes.Trim(rest, "\x00")) > 0 {
		t.Error("there is more than what is told")
	}
	if end == 0 {
		return
	}
	calls := 0
	err := c.Allocated(func(int64, int64) error { calls++; return errTold })
	if !errors.Is(err, errTold) || calls != 1 {
		t.Errorf("after an error it answers %v, having told %d parts", err, calls)
	}
}

func missingVolume(t *testing.T, r Rig) {
	at := strategies.Ref{Pool: r.Volumes, Image: "volume-" + r.ID()}
	_, err := r.Source.Stat(t.Context(), at)
	wantReason(t, "stat", err, worker.ReasonVolumeMissing)
	wantReason(t, "snapshot", r.Source.Snapshot(t.Context(), at, "s"), worker.ReasonVolumeMissing)
	wantReason(t, "protect", r.Source.Protect(t.Context(), at, "s"), worker.ReasonVolumeMissing)
	_, err = r.Source.Inspect(t.Context(), at, "s")
	wantReason(t, "inspect", err, worker.ReasonVolumeMissing)
	_, err = r.Source.Open(t.Context(), at, "s")
	wantReason(t, "open", err, worker.ReasonVolumeMissing)
	must(t, "release", r.Source.Release(t.Context(), at, "s"))
	id := r.ID()
	m := strategies.Make{Src: at, Snapshot: strategies.SourceSnapshot(id), Dst: strategies.Ref{Pool: r.Images, Image: id}, Job: id}
	wantReason(t, "clone", r.Destination.Clone(t.Context(), m), worker.ReasonVolumeMissing)
	wantReason(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil), worker.ReasonVolumeMissing)
	wantComplete(t, r, m, false, false)
	must(t, "discard", r.Destination.Discard(t.Context(), m))
}

func missingSnapshot(t *testing.T, r Rig) {
	at := r.volume(t, 2*r.ObjectSize, 0)
	wantReason(t, "protect", r.Source.Protect(t.Context(), at, "s"), worker.ReasonMismatch)
	_, err := r.Source.Inspect(t.Context(), at, "s")
	wantReason(t, "inspect", err, worker.ReasonMismatch)
	_, err = r.Source.Open(t.Context(), at, "s")
	wantReason(t, "open", err, worker.ReasonMismatch)
	must(t, "release", r.Source.Release(t.Context(), at, "s"))
}

func releaseWaits(t *testing.T, r Rig) {
	m := prepared(t, r, r.volume(t, 3*r.ObjectSize, 1))
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	err := r.Source.Release(t.Context(), m.Src, m.Snapshot)
	if worker.AdviceOf(err) != worker.Retry {
		t.Errorf("release below a clone: advice %v (%v), want Retry", worker.AdviceOf(err), err)
	}
	must(t, "seal", r.Destination.Seal(t.Context(), m)) // the clone still has its parent
	must(t, "discard", r.Destination.Discard(t.Context(), m))
	must(t, "release", r.Source.Release(t.Context(), m.Src, m.Snapshot))
}

func metadataStaysBehind(t *testing.T, r Rig) {
	at := r.name(t, r.Volumes)
	r.Backdoor.Put(t, at, Blueprint{
		Size: 2 * r.ObjectSize, ObjectSize: r.ObjectSize, Meta: map[string]string{"conf_rbd_qos_iops_limit": "7"},
	})
	for name, make := range map[string]func(context.Context, strategies.Make) error{
		"clone": r.Destination.Clone,
		"copy": func(ctx context.Context, m strategies.Make) error {
			return r.Destination.CopyObjects(ctx, m, nil)
		},
	} {
		m := prepared(t, r, at)
		must(t, name, make(t.Context(), m))
		for key := range r.Backdoor.View(t, m.Dst).Meta {
			if strings.HasPrefix(key, "conf_") {
				t.Errorf("%s: the image has the volume's %s", name, key)
			}
		}
		must(t, "discard", r.Destination.Discard(t.Context(), m))
		must(t, "release", r.Source.Release(t.Context(), at, m.Snapshot))
	}
	if r.Backdoor.View(t, at).Meta["conf_rbd_qos_iops_limit"] != "7" {
		t.Error("the volume has lost its own metadata")
	}
}

func inheritedMarks(t *testing.T, r Rig) {
	first := prepared(t, r, r.volume(t, 4*r.ObjectSize, 1, 2))
	must(t, "copy", r.Destination.CopyObjects(t.Context(), first, nil))
	must(t, "seal", r.Destination.Seal(t.Context(), first))
	at := r.name(t, r.Volumes)
	// librbd copies an image's metadata to its clones: this volume bears all the marks of the image.
	r.Backdoor.Put(t, at, Blueprint{Parent: first.Dst, Snapshot: strategies.GlanceSnapshot})
	m := prepared(t, r, at)
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	wantComplete(t, r, m, false, false)
	wantReason(t, "flatten unsealed", r.Destination.Flatten(t.Context(), m, nil), worker.ReasonMismatch)
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	must(t, "flatten", r.Destination.Flatten(t.Context(), m, nil))
	wantComplete(t, r, m, true, true)
	// A clone that was killed before it was marked looks like this: marks, but none of its own.
	other := prepared(t, r, at)
	r.Backdoor.Put(t, other.Dst, Blueprint{Parent: first.Dst, Snapshot: strategies.GlanceSnapshot})
	wantComplete(t, r, other, false, false)
	must(t, "clone over unmarked clone", r.Destination.Clone(t.Context(), other))
	must(t, "discard", r.Destination.Discard(t.Context(), other))
}

func foreignImage(t *testing.T, r Rig) {
	m := prepared(t, r, r.volume(t, 3*r.ObjectSize, 1))
	r.Backdoor.Put(t, m.Dst, Blueprint{Size: 3 * r.ObjectSize, ObjectSize: r.ObjectSize})
	r.Backdoor.Write(t, m.Dst, r.ObjectSize, noise(512, 8))
	refuses(t, r, m)
	r.Backdoor.Drop(t, m.Dst)
	// Without data, but with a snapshot: somebody finished it.
	r.Backdoor.Put(t, m.Dst, Blueprint{Size: 3 * r.ObjectSize, ObjectSize: r.ObjectSize})
	r.Backdoor.Freeze(t, m.Dst, strategies.GlanceSnapshot)
	refuses(t, r, m)
}

func otherJob(t *testing.T, r Rig) {
	src := r.volume(t, 3*r.ObjectSize, 1)
	m := prepared(t, r, src)
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	thief := prepared(t, r, src)
	// A clone of ours under the name of another job: the name alone must not make it that job's.
	r.Backdoor.Put(t, thief.Dst, Blueprint{Parent: src, Snapshot: m.Snapshot, Meta: r.Backdoor.View(t, m.Dst).Meta})
	r.Backdoor.Freeze(t, thief.Dst, strategies.GlanceSnapshot)
	refuses(t, r, thief)
}

// refuses checks that nothing is done to Dst.
func refuses(t *testing.T, r Rig, m strategies.Make) {
	t.Helper()
	before, bytesBefore := r.Backdoor.View(t, m.Dst), r.Backdoor.Read(t, m.Dst, "")
	wantReason(t, "clone", r.Destination.Clone(t.Context(), m), worker.ReasonConflict)
	wantReason(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil), worker.ReasonConflict)
	wantReason(t, "discard", r.Destination.Discard(t.Context(), m), worker.ReasonConflict)
	wantReason(t, "seal", r.Destination.Seal(t.Context(), m), worker.ReasonMismatch)
	wantReason(t, "flatten", r.Destination.Flatten(t.Context(), m, nil), worker.ReasonMismatch)
	wantComplete(t, r, m, false, false)
	after := r.Backdoor.View(t, m.Dst)
	if !after.Exists || len(after.Snapshots) != len(before.Snapshots) || len(after.Meta) != len(before.Meta) {
		t.Errorf("the foreign image was %+v and is %+v", before, after)
	}
	if !bytes.Equal(r.Backdoor.Read(t, m.Dst, ""), bytesBefore) {
		t.Error("the foreign image has other bytes now")
	}
}

func emptyRemainder(t *testing.T, r Rig) {
	src := r.volume(t, 3*r.ObjectSize, 1)
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	// What a killed clone leaves: the right size, no parent, all zeros.
	r.Backdoor.Put(t, m.Dst, Blueprint{Size: 3 * r.ObjectSize, ObjectSize: r.ObjectSize})
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	wantBytes(t, r, m, want)
	must(t, "discard", r.Destination.Discard(t.Context(), m))
	r.Backdoor.Put(t, m.Dst, Blueprint{Size: r.ObjectSize, ObjectSize: r.ObjectSize})
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	wantBytes(t, r, m, want)
}

func discardRemainder(t *testing.T, r Rig) {
	m := prepared(t, r, r.volume(t, 3*r.ObjectSize, 1))
	r.Backdoor.Put(t, m.Dst, Blueprint{Size: 3 * r.ObjectSize, ObjectSize: r.ObjectSize})
	must(t, "discard", r.Destination.Discard(t.Context(), m))
	if r.Backdoor.View(t, m.Dst).Exists {
		t.Error("the remainder is still there")
	}
}

func sealUnfinished(t *testing.T, r Rig) {
	m := prepared(t, r, r.volume(t, 4*r.ObjectSize, 0, 1, 2, 3))
	wantReason(t, "seal nothing", r.Destination.Seal(t.Context(), m), worker.ReasonMismatch)
	interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.CopyObjects(ctx, m, p) })
	wantReason(t, "seal a part", r.Destination.Seal(t.Context(), m), worker.ReasonMismatch)
	wantComplete(t, r, m, false, false)
	if v := r.Backdoor.View(t, m.Dst); len(v.Snapshots) != 0 {
		t.Errorf("the unfinished image has snapshots: %v", v.Snapshots)
	}
}

// interrupt ends the context when the first progress is told.
func interrupt(t *testing.T, fn func(context.Context, worker.Progress) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := fn(ctx, func(worker.Amount) { cancel() }); err == nil {
		t.Error("an interrupted call succeeded")
	}
}

func interruptedCopy(t *testing.T, r Rig) {
	src := r.volume(t, 24*r.ObjectSize, many(24)...)
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	for range 2 {
		interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.CopyObjects(ctx, m, p) })
	}
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, (&meter{t: t}).tell))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	finish(t, r, m, want)
}

func interruptedFlatten(t *testing.T, r Rig) {
	src := r.volume(t, 24*r.ObjectSize, many(24)...)
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	for range 2 {
		interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.Flatten(ctx, m, p) })
		wantComplete(t, r, m, false, true)
		wantBytes(t, r, m, want)
	}
	must(t, "flatten", r.Destination.Flatten(t.Context(), m, (&meter{t: t}).tell))
	finish(t, r, m, want)
}

func many(n int64) []int64 {
	list := make([]int64, n)
	for i := range list {
		list[i] = int64(i)
	}

	return list
}

func discardHalfMade(t *testing.T, r Rig) {
	src := r.volume(t, 4*r.ObjectSize, 0, 1, 2, 3)
	m := prepared(t, r, src)
	interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.CopyObjects(ctx, m, p) })
	must(t, "discard a part of a copy", r.Destination.Discard(t.Context(), m))
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.Flatten(ctx, m, p) })
	must(t, "discard a half-flattened clone", r.Destination.Discard(t.Context(), m))
	if r.Backdoor.View(t, m.Dst).Exists {
		t.Error("the image is still there after discard")
	}
	must(t, "release", r.Source.Release(t.Context(), src, m.Snapshot))
}

func cloneAfterCopy(t *testing.T, r Rig) {
	src := r.volume(t, 4*r.ObjectSize, 0, 1, 2, 3)
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.CopyObjects(ctx, m, p) })
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	finish(t, r, m, want)
}

// Ways to leave an image of a snapshot that is then released.

func partOfCopy(t *testing.T, r Rig, m strategies.Make) {
	interrupt(t, func(ctx context.Context, p worker.Progress) error { return r.Destination.CopyObjects(ctx, m, p) })
}

func wholeCopy(t *testing.T, r Rig, m strategies.Make) {
	must(t, "copy", r.Destination.CopyObjects(t.Context(), m, nil))
}

func sealedCopy(t *testing.T, r Rig, m strategies.Make) {
	wholeCopy(t, r, m)
	must(t, "seal", r.Destination.Seal(t.Context(), m))
}

func flattenedClone(t *testing.T, r Rig, m strategies.Make) {
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	must(t, "flatten", r.Destination.Flatten(t.Context(), m, nil))
}

// anotherSnapshot is what an undo leaves that could not discard the image but released its source: the next try makes a
// snapshot with the same name at a later point in time.
func anotherSnapshot(leave func(*testing.T, Rig, strategies.Make)) func(*testing.T, Rig) {
	return func(t *testing.T, r Rig) {
		for name, again := range map[string]func(*testing.T, Rig, strategies.Make){
			"copy": wholeCopy,
			"clone": func(t *testing.T, r Rig, m strategies.Make) {
				must(t, "clone", r.Destination.Clone(t.Context(), m))
			},
		} {
			// Enough objects that an interrupted copy has some of them and not all.
			src := r.volume(t, 24*r.ObjectSize)
			r.Backdoor.Write(t, src, 0, noise(24*r.ObjectSize, 76))
			m := prepared(t, r, src)
			leave(t, r, m)
			must(t, "release", r.Source.Release(t.Context(), src, m.Snapshot))
			want := noise(24*r.ObjectSize, 77)
			r.Backdoor.Write(t, src, 0, want)
			snapshotTwice(t, r, m)
			wantComplete(t, r, m, false, false)
			wantReason(t, name+": seal what is outdated", r.Destination.Seal(t.Context(), m), worker.ReasonMismatch)
			wantReason(t, name+": flatten what is outdated", r.Destination.Flatten(t.Context(), m, nil), worker.ReasonMismatch)
			again(t, r, m)
			must(t, "seal", r.Destination.Seal(t.Context(), m))
			must(t, "flatten", r.Destination.Flatten(t.Context(), m, nil))
			wantComplete(t, r, m, true, true)
			finish(t, r, m, want)
		}
	}
}

// noSnapshot: while nothing tells that an image is outdated, what is finished stays as it is.
func noSnapshot(t *testing.T, r Rig) {
	src := r.volume(t, 4*r.ObjectSize, 0, 2)
	want := r.Backdoor.Read(t, src, "")
	m := prepared(t, r, src)
	wholeCopy(t, r, m)
	must(t, "release", r.Source.Release(t.Context(), src, m.Snapshot))
	sealedCopy(t, r, m)
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "flatten", r.Destination.Flatten(t.Context(), m, nil))
	wantComplete(t, r, m, true, true)
	finish(t, r, m, want)
}

func finishedContext(t *testing.T, r Rig) {
	m := prepared(t, r, r.volume(t, 2*r.ObjectSize, 0))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := map[string]func() error{
		"fsid":     func() error { _, err := r.Source.FSID(ctx); return err },
		"stat":     func() error { _, err := r.Source.Stat(ctx, m.Src); return err },
		"snapshot": func() error { return r.Source.Snapshot(ctx, m.Src, m.Snapshot) },
		"protect":  func() error { return r.Source.Protect(ctx, m.Src, m.Snapshot) },
		"inspect":  func() error { _, err := r.Source.Inspect(ctx, m.Src, m.Snapshot); return err },
		"open":     func() error { _, err := r.Source.Open(ctx, m.Src, m.Snapshot); return err },
		"clone":    func() error { return r.Destination.Clone(ctx, m) },
		"copy":     func() error { return r.Destination.CopyObjects(ctx, m, nil) },
		"seal":     func() error { return r.Destination.Seal(ctx, m) },
		"flatten":  func() error { return r.Destination.Flatten(ctx, m, nil) },
		"complete": func() error { _, err := r.Destination.Complete(ctx, m, true); return err },
		"discard":  func() error { return r.Destination.Discard(ctx, m) },
		"release":  func() error { return r.Source.Release(ctx, m.Src, m.Snapshot) },
	}
	for name, call := range calls {
		if err := call(); err == nil {
			t.Errorf("%s with a finished context succeeded", name)
		}
	}
	if v := r.Backdoor.View(t, m.Src); !v.Snapshots[m.Snapshot] {
		t.Error("the snapshot is gone")
	}
}
