package reap_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cinderlift/cinderlift/internal/reap"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
	"github.com/cinderlift/cinderlift/worker/workertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	ttl     = 30 * time.Second
	project = "p"
)

// id makes an image id.
func id(n int) string { return fmt.Sprintf("6f1b1d3e-0000-4000-8000-%012d", n) }

// volume names the volume of a job.
func volume(n int) string { return fmt.Sprintf("aaaaaaaa-0000-4000-8000-%012d", n) }

func src(n int) strategies.Ref { return strategies.Ref{Pool: "volumes", Image: "volume-" + volume(n)} }
func dst(n int) strategies.Ref { return strategies.Ref{Pool: "images", Image: id(n)} }

func parts(n int) strategies.Make {
	return strategies.Make{Src: src(n), Snapshot: strategies.SourceSnapshot(id(n)), Dst: dst(n), Job: id(n)}
}

// world is Ceph, Glance, Cinder and the journal.
type world struct {
	t       *testing.T
	store   *workertest.Store
	journal *workertest.Journal // for planting
	cluster *strategiestest.Cluster
	finder  *strategiestest.Finder
	glance  *images
	uploads []reap.Upload
	cinder  error
	status  string          // of all volumes
	abroad  bool            // the volumes are another cloud's
	bare    []string        // keys without a record
	locks   map[string]bool // objects of locks: held?

	mu   sync.Mutex
	turn time.Time // until when somebody has it
}

func newWorld(t *testing.T) *world {
	c := strategiestest.New(t)
	s := workertest.NewStore(ttl)

	return &world{
		t: t, store: s, journal: s.Journal("test"), cluster: c, glance: &images{images: map[string]worker.Image{}},
		finder: &strategiestest.Finder{Cluster: c, Made: map[string]time.Time{}, Users: map[string][]string{}},
		locks:  map[string]bool{}, status: "available",
	}
}

// images is Glance as a reaper sees it.
type images struct {
	mu     sync.Mutex
	images map[string]worker.Image
	err    error
	asked  int
	begin  func(op string) (before, after error)
}

func (g *images) do(op string, fn func() error) error {
	var before, after error
	if g.begin != nil {
		before, after = g.begin(op)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if before = errors.Join(before, g.err); before != nil {
		return before
	}
	if err := fn(); err != nil {
		return err
	}

	return after
}

func (g *images) Image(_ context.Context, id string) (im worker.Image, err error) {
	err = g.do("glance.image", func() error {
		g.asked++
		found, ok := g.images[id]
		if !ok {
			return &worker.Error{Op: "show image", Reason: worker.ReasonImageMissing}
		}
		im = found

		return nil
	})

	return im, err
}

func (g *images) Discard(_ context.Context, id string) error {
	return g.do("glance.discard", func() error {
		if s := g.images[id].Status; s != worker.ImageActive && s != worker.ImageDeactivated {
			delete(g.images, id)
		}

		return nil
	})
}

// Uploads implements reap.Volumes.
func (w *world) Uploads(context.Context) ([]reap.Upload, error) {
	return slices.Clone(w.uploads), w.cinder
}

// Volume implements reap.Volumes: Cinder knows the volumes that are in Ceph, but for those of another cloud.
func (w *world) Volume(_ context.Context, id string) (worker.Volume, error) {
	at := strategies.Ref{Pool: "volumes", Image: "volume-" + id}
	switch {
	case w.cinder != nil:
		return worker.Volume{}, w.cinder
	case !w.cluster.View(w.t, at).Exists || w.abroad:
		return worker.Volume{}, &worker.Error{Op: "show volume", Reason: worker.ReasonVolumeMissing}
	default:
		return worker.Volume{ID: id, Name: at.Image, Status: w.status}, nil
	}
}

// Turn implements reap.Locks.
func (w *world) Turn(_ context.Context, every time.Duration) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if time.Now().Before(w.turn) {
		return false, nil
	}
	w.turn = time.Now().Add(every)

	return true, nil
}

// Locks implements reap.Locks.
func (w *world) Locks(_ context.Context, ids []string) ([]string, error) {
	var list []string
	for id, held := range w.locks {
		if !held && (ids == nil || slices.Contains(ids, id)) {
			list = append(list, id)
		}
	}

	return list, nil
}

// RemoveLock implements reap.Locks.
func (w *world) RemoveLock(_ context.Context, id string) error {
	delete(w.locks, id)

	return nil
}

// keyed is a journal whose index has more keys than records.
type keyed struct {
	worker.Journal
	w *world
}

func (k keyed) Keys(ctx context.Context) ([]string, error) {
	keys, err := k.Journal.Keys(ctx)

	return append(keys, k.w.bare...), err
}

func (k keyed) Remove(ctx context.Context, key string) error {
	err := k.Journal.Remove(ctx, key)
	if err == nil {
		k.w.bare = slices.DeleteFunc(k.w.bare, func(b string) bool { return b == key })
	}

	return err
}

// reaper is one as a worker has it; fail as workertest.Fault, for all that it does.
func (w *world) reaper(fail func(op string) (before, after error)) *reap.Reaper {
	j := w.store.Journal("reaper")
	j.Fail = fail
	w.cluster.Fail, w.glance.begin = fail, fail

	return &reap.Reaper{
		Journal: keyed{j, w}, Locks: w, Images: w.glance, Volumes: w, FSID: w.cluster.ID,
		Open: func(context.Context) (reap.Cluster, func(), error) { return w.finder, func() {}, nil },
		Hands: func(worker.Claim) (strategies.Source, strategies.Destination) {
			return w.cluster, w.cluster
		},
		Pools:    func(context.Context) ([]string, error) { return []string{"volumes", "images"}, nil },
		VolumeID: func(image string) string { return strings.TrimPrefix(image, "volume-") },
		Lease:    worker.LeaseTimes{TTL: ttl},
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// how far a job came.
type stage int

const (
	snapshotted stage = iota
	cloned
	unmarked // killed between clone and mark
	copied
	sealed
)

// leave makes a volume and what a job leaves that came so far.
func (w *world) leave(n int, s stage) {
	w.t.Helper()
	m, ctx := parts(n), w.t.Context()
	if !w.cluster.View(w.t, m.Src).Exists {
		w.cluster.Put(w.t, m.Src, strategiestest.Blueprint{Size: 8192})
		w.cluster.Write(w.t, m.Src, 0, []byte("a volume"))
	}
	w.must(w.cluster.Snapshot(ctx, m.Src, m.Snapshot))
	w.must(w.cluster.Protect(ctx, m.Src, m.Snapshot))
	switch s {
	case cloned:
		w.must(w.cluster.Clone(ctx, m))
	case unmarked:
		w.cluster.Put(w.t, m.Dst, strategiestest.Blueprint{Parent: m.Src, Snapshot: m.Snapshot})
	case copied:
		w.must(w.cluster.CopyObjects(ctx, m, nil))
	case sealed:
		w.must(w.cluster.CopyObjects(ctx, m, nil))
		w.must(w.cluster.Seal(ctx, m))
	}
}

// clone makes a volume of somebody else's from the job's sealed image, or from its snapshot.
func (w *world) clone(name string, of strategies.Ref, snap string) {
	w.cluster.Put(w.t, strategies.Ref{Pool: "volumes", Image: name}, strategiestest.Blueprint{Parent: of, Snapshot: snap})
}

// ended is the record of a job that failed long ago.
func ended(n int, r worker.Result) worker.Record {
	kept, err := json.Marshal(map[string]any{"source": src(n), "dest": dst(n), "fsid": strategiestest.New(nil).ID})
	if err != nil {
		panic(err)
	}

	return worker.Record{
		Version: worker.RecordVersion, Closed: true, Kept: kept, Accepted: strategiestest.LongAgo(), Updated: strategiestest.LongAgo(),
		Job:     worker.Job{ImageID: id(n), VolumeID: volume(n), ProjectID: project, Digest: "d"},
		Outcome: &worker.Outcome{Result: r, Reason: worker.ReasonAttempts, Message: "it failed"},
	}
}

// record plants one.
func (w *world) record(r worker.Record, change ...func(*worker.Record)) {
	w.t.Helper()
	for _, c := range change {
		c(&r)
	}
	w.must(w.journal.Create(w.t.Context(), r))
}

func open(r *worker.Record) { r.Closed, r.Outcome = false, nil }

// image plants one in Glance.
func (w *world) image(n int, status string, at ...strategies.Ref) {
	im := worker.Image{ID: id(n), Status: status, Owner: project}
	for _, a := range at {
		im.Locations = append(im.Locations, strategies.Location(w.cluster.ID, a))
	}
	w.glance.images[id(n)] = im
}

// state is everything that a reaper could change.
func (w *world) state() []string {
	var list []string
	for _, n := range []int{1, 2, 3, 4, 5} {
		for _, at := range []strategies.Ref{src(n), dst(n), {Pool: "volumes", Image: "volume-foreign"}} {
			v := w.cluster.View(w.t, at)
			if v.Exists {
				list = append(list, fmt.Sprintf("%s %v %v %q", at, slices.Sorted(maps.Keys(v.Snapshots)), v.Meta, w.cluster.Read(w.t, at, "")))
			}
		}
	}
	w.glance.mu.Lock()
	defer w.glance.mu.Unlock()
	for id, im := range w.glance.images {
		list = append(list, "glance "+id+" "+im.Status)
	}
	slices.Sort(list)

	return slices.Compact(list)
}

// summary is what a test compares: "action kind".
func summary(list []reap.Finding) []string {
	var s []string
	for _, f := range list {
		s = append(s, fmt.Sprintf("%s %s", f.Action, f.Kind))
	}
	slices.Sort(s)

	return s
}

func say(list []reap.Finding) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "\n  %s %s %s: %s", f.Action, f.Kind, f.Where, f.Why)
	}

	return b.String()
}
