//go:build lab

package reap_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/glance"
	"github.com/cinderlift/cinderlift/internal/ceph"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/lab"
	"github.com/cinderlift/cinderlift/internal/reap"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// planting does by Ceph's own Python bindings what only a killed client does. It takes commands as lines of JSON and answers
// each with one line.
const planting = `
import json, os, struct, sys, rados, rbd

cluster = rados.Rados(conffile=os.environ["CEPH_CONF"])
cluster.connect()
held = []


def create(io, name, size):
    rbd.RBD().create(io, name, size, order=16)
    with rbd.Image(io, name) as image:
        image.write(b"a volume of " + name.encode(), 0)
        image.write(os.urandom(65536), 65536 * 3)


def snap(io, name, snapshot):
    with rbd.Image(io, name) as image:
        image.create_snap(snapshot)


def remnant(io, name, snapshot):
    """The first step of a removal: ceph 16.2.15 librbd/operation/SnapshotRemoveRequest.cc trash_snap."""
    with rbd.Image(io, name) as image:
        image.unprotect_snap(snapshot)
        id, snap = image.id(), [s["id"] for s in image.list_snaps() if s["name"] == snapshot][0]
    io.execute("rbd_header." + id, "rbd", "snapshot_trash_add", struct.pack("<Q", snap))


def clone(io, name, snapshot, pool, to):
    with cluster.open_ioctx(pool) as other:
        rbd.RBD().clone(io, name, snapshot, other, to, features=rbd.RBD_FEATURE_LAYERING)


def trash(io, name):
    rbd.RBD().trash_move(io, name)


def half_remove(io, name):
    """The first step of a removal: into the trash, with the source "removing"."""
    with rbd.Image(io, name) as image:
        key = "id_" + image.id()
    rbd.RBD().trash_move(io, name)
    with rados.ReadOpCtx() as op:
        values, _ = io.get_omap_vals_by_keys(op, (key,))
        io.operate_read_op(op, "rbd_trash")
        spec = bytearray(dict(values)[key])
    spec[6] = 3
    with rados.WriteOpCtx() as op:
        io.set_omap(op, (key,), (bytes(spec),))
        io.operate_write_op(op, "rbd_trash")


def hold(io, name):
    held.append(rbd.Image(cluster.open_ioctx("images"), name))


def let_go(io, name):
    while held:
        held.pop().close()


def index_key(io, namespace, key):
    io.set_namespace(namespace)
    with rados.WriteOpCtx() as op:
        io.set_omap(op, (key,), (b"",))
        io.operate_write_op(op, "index")


def lock(io, namespace, volume):
    io.set_namespace(namespace)
    io.write_full("vol." + volume, b"")


def wipe(io, namespace):
    io.set_namespace(namespace)
    for object in io.list_objects():
        io.remove_object(object.key)


def drop(io, name):
    """With everything on it, wherever it is."""
    for t in rbd.RBD().trash_list(io):
        if t["name"] == name:
            rbd.RBD().trash_restore(io, t["id"], name)
    try:
        with rbd.Image(io, name) as image:
            for s in list(image.list_snaps()):
                if s["namespace"] != rbd.RBD_SNAP_NAMESPACE_TYPE_USER:
                    image.remove_snap_by_id(s["id"])
                    continue
                if image.is_protected_snap(s["name"]):
                    image.unprotect_snap(s["name"])
                image.remove_snap(s["name"])
    except rbd.ImageNotFound:
        pass
    try:
        rbd.RBD().remove(io, name)
    except rbd.ImageNotFound:
        pass


def look(io, name):
    listed = [n for n in rbd.RBD().list(io) if n == name]
    trashed = [t["id"] for t in rbd.RBD().trash_list(io) if t["name"] == name]
    snaps = []
    for where in [{"name": n} for n in listed] + [{"image_id": i} for i in trashed]:
        try:
            with rbd.Image(io, read_only=True, **where) as image:
                snaps += [s["name"] for s in image.list_snaps()]
        except rbd.ImageNotFound:
            snaps.append("?")
    return "%d %d %s" % (len(listed), len(trashed), sorted(snaps))


for line in sys.stdin:
    what, pool, *args = json.loads(line)
    try:
        with cluster.open_ioctx(pool) as io:
            answer = {"answer": globals()[what](io, *args) or ""}
    except Exception as e:
        answer = {"error": repr(e)}
    print(json.dumps(answer), flush=True)
let_go(None, None)
cluster.shutdown()
`

// cloud is the lab with a journal of this test's own.
type cloud struct {
	*lab.Cloud
	t         *testing.T
	ctx       context.Context
	namespace string
	cluster   *ceph.Cluster
	images    *ceph.Images
	glance    *glance.Client
	gardener  *json.Decoder // what planting answers
	orders    io.Writer     // what it is told
	ids       []string      // what the program is told to be about
}

func openCloud(t *testing.T) *cloud {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Minute)
	t.Cleanup(cancel)
	l, err := lab.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	c := &cloud{t: t, ctx: ctx, namespace: "cinderlift-reap-" + uuid()}
	if c.Cloud, err = l.As(ctx, "demo"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.cluster, err = ceph.Open(ctx, ceph.Options{ConfFile: l.Env["CEPH_CONF"], User: l.Env["LAB_CEPH_USER"],
		JournalPool: "images", Namespace: c.namespace, Owner: "test"})
	c.must(err)
	c.images, err = c.cluster.Images(ctx)
	c.must(err)
	s, err := keystone.Open(ctx, keystone.Options{AuthURL: l.Env["OS_AUTH_URL"], Username: l.Env["LAB_SERVICE_USER"],
		Password: keystone.Secret(l.Env["LAB_SERVICE_PASSWORD"]), ProjectName: l.Env["LAB_SERVICE_PROJECT"], Region: l.Env["OS_REGION_NAME"]})
	c.must(err)
	c.glance = glance.New(s, glance.Options{})
	c.garden()
	t.Cleanup(func() {
		if err := errors.Join(c.images.Close(context.Background()), c.cluster.Close()); err != nil {
			t.Error(err)
		}
		s.Close()
		c.plant("wipe", "images", c.namespace)
	})

	return c
}

func (c *cloud) must(err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:])

	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// garden starts planting.
func (c *cloud) garden() {
	c.t.Helper()
	cmd := exec.Command(c.Env["LAB_COMMAND"], "exec", c.Generation(), "python3", "-c", planting)
	in, err := cmd.StdinPipe()
	c.must(err)
	out, err := cmd.StdoutPipe()
	c.must(err)
	c.must(cmd.Start())
	c.orders, c.gardener = in, json.NewDecoder(out)
	c.t.Cleanup(func() {
		in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			c.t.Errorf("planting ended: %v", err)
		}
	})
}

// plant does one thing in a pool.
func (c *cloud) plant(what, pool string, args ...any) string {
	c.t.Helper()
	c.must(json.NewEncoder(c.orders).Encode(append([]any{what, pool}, args...)))
	var a struct{ Answer, Error string }
	if err := c.gardener.Decode(&a); err != nil || a.Error != "" {
		c.t.Errorf("%s in %s %v: %v %s", what, pool, args, err, a.Error)
	}

	return a.Answer
}

// job is a volume and the image that is made of it. Nothing of it is there yet but the volume.
func (c *cloud) job() strategies.Make {
	c.t.Helper()
	id := uuid()
	m := strategies.Make{Src: strategies.Ref{Pool: "volumes", Image: "volume-" + uuid()}, Snapshot: strategies.SourceSnapshot(id),
		Dst: strategies.Ref{Pool: "images", Image: id}, Job: id}
	c.ids = append(c.ids, id)
	c.t.Cleanup(func() { c.drop(m.Src) })
	c.plant("create", m.Src.Pool, m.Src.Image, 8<<20)

	return m
}

func (c *cloud) drop(at strategies.Ref) { c.plant("drop", at.Pool, at.Image) }

func (c *cloud) snapshot(m strategies.Make) strategies.Make {
	c.t.Helper()
	c.must(c.images.Snapshot(c.ctx, m.Src, m.Snapshot))
	c.must(c.images.Protect(c.ctx, m.Src, m.Snapshot))

	return m
}

func (c *cloud) copied(m strategies.Make) strategies.Make {
	c.t.Helper()
	c.snapshot(m)
	c.t.Cleanup(func() { c.drop(m.Dst) })
	c.must(c.images.CopyObjects(c.ctx, m, func(worker.Amount) {}))

	return m
}

func (c *cloud) sealed(m strategies.Make) strategies.Make {
	c.t.Helper()
	c.copied(m)
	c.must(c.images.Seal(c.ctx, m))

	return m
}

// record journals how the job ended: closed, or with "" that it is open.
func (c *cloud) record(m strategies.Make, r worker.Result) {
	c.t.Helper()
	fsid, err := c.cluster.FSID(c.ctx)
	c.must(err)
	kept, err := json.Marshal(map[string]any{"source": m.Src, "dest": m.Dst, "fsid": fsid})
	c.must(err)
	then := time.Now().Add(-time.Hour).UTC()
	rec := worker.Record{Version: worker.RecordVersion, Kept: kept, Accepted: then, Updated: then, Closed: r != "",
		Job: worker.Job{ImageID: m.Job, VolumeID: strings.TrimPrefix(m.Src.Image, "volume-"), ProjectID: c.Project(), Digest: "d"}}
	if r != "" {
		rec.Outcome = &worker.Outcome{Result: r, Reason: worker.ReasonCephRefused, Message: "a test"}
	}
	c.must(c.cluster.Create(c.ctx, rec))
}

// look is what there is under a name: in the pool's list, in the trash, and on it.
func (c *cloud) look(at strategies.Ref) string { return c.plant("look", at.Pool, at.Image) }

// settings are those of a worker with this test's journal and a queue of its own.
func (c *cloud) settings() map[string]string {
	return map[string]string{"CINDERLIFT_JOURNAL_NAMESPACE": c.namespace, "CINDERLIFT_TOPIC": c.namespace,
		"CINDERLIFT_LEASE_TTL": "5s"}
}

// reap runs the program and answers its findings and its exit code.
func (c *cloud) reap(args ...string) ([]reap.Finding, int) {
	c.t.Helper()
	cmd := exec.CommandContext(c.ctx, c.Binary(), append([]string{"reap", "-o", "json"}, args...)...)
	cmd.Env = c.Environment(c.settings())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	var found []reap.Finding
	if err := json.Unmarshal(out.Bytes(), &found); err != nil {
		c.t.Fatalf("reap %q: %v: %s%s", args, err, out.String(), errs.String())
	}
	c.t.Logf("reap %q: exit code %d %s%s", args[:min(len(args), 3)], cmd.ProcessState.ExitCode(), errs.String(), say(found))

	return found, cmd.ProcessState.ExitCode()
}

// want compares what was found of each job: "action kind", by image id.
func (c *cloud) want(found []reap.Finding, want map[string][]string) {
	c.t.Helper()
	got := map[string][]string{}
	for _, f := range found {
		key := f.ImageID
		if key == "" {
			key = f.Where
		}
		got[key] = append(got[key], string(f.Action)+" "+string(f.Kind))
	}
	for key, w := range want {
		slices.Sort(got[key])
		if !slices.Equal(got[key], w) {
			c.t.Errorf("of %s was found %q, want %q", key, got[key], w)
		}
		delete(got, key)
	}
	for key, g := range got {
		c.t.Errorf("of %s was found %q, want nothing", key, g)
	}
}

// TestReapOnRealServices plants each kind of orphan beside what looks like it and has to stay, and runs the program.
func TestReapOnRealServices(t *testing.T) {
	c := openCloud(t)
	want := map[string][]string{}
	orphan := func(m strategies.Make, kinds ...string) { want[m.Job] = kinds }

	unknown := c.snapshot(c.job())
	orphan(unknown, "snapshot")
	remnant := c.snapshot(c.job())
	c.plant("remnant", "volumes", remnant.Src.Image, remnant.Snapshot)
	c.record(remnant, worker.Failed)
	orphan(remnant, "snapshot-remnant")
	trashed := c.snapshot(c.job())
	c.plant("trash", "volumes", trashed.Src.Image)
	orphan(trashed, "snapshot")
	half := c.snapshot(c.job())
	c.t.Cleanup(func() { c.drop(half.Dst) })
	c.plant("clone", "volumes", half.Src.Image, half.Snapshot, "images", half.Job)
	orphan(half, "image", "snapshot")
	unfinished := c.copied(c.job())
	c.record(unfinished, worker.Failed)
	orphan(unfinished, "image", "snapshot")
	raced := c.sealed(c.job()) // the image was deleted while it was registered
	c.record(raced, worker.Done)
	orphan(raced, "image", "snapshot")
	removed := c.copied(c.job())
	c.must(c.images.Release(c.ctx, removed.Src, removed.Snapshot))
	c.plant("half_remove", "images", removed.Job)
	orphan(removed, "half-removed-image")
	waiting := c.queued()
	orphan(waiting, "glance-image")
	key := uuid()
	c.ids = append(c.ids, key)
	c.plant("index_key", "images", c.namespace, key)
	want[key] = []string{"index-key"}
	idle := c.job() // a claim of another job's would take the lock along
	c.record(idle, worker.Failed)
	lock := strings.TrimPrefix(idle.Src.Image, "volume-")
	c.plant("lock", "images", c.namespace, lock)
	want["lock of volume "+lock] = []string{"volume-lock"}

	stay := c.lookAlikes()
	before := c.sums(stay.refs)

	found, code := c.reap(append([]string{"--dry-run"}, c.ids...)...) // all is younger than an hour, but what has no age
	c.want(found, waits(want, stay.found, waiting.Job, key, "lock of volume "+lock))
	if code != 3 {
		t.Errorf("exit code of the young is %d, want 3", code)
	}
	young := append([]string{"--age", "1s"}, c.ids...)
	seen := c.state(want)
	found, code = c.reap(append([]string{"--dry-run"}, young...)...)
	c.want(found, merged(want, "remove", stay.found))
	if now := c.state(want); code != 3 || now != seen {
		t.Errorf("dry run: exit code %d, want 3; and it left\n%s\nof\n%s", code, now, seen)
	}
	found, code = c.reap(young...)
	c.want(found, merged(want, "removed", stay.found))
	if code != 3 { // there is something to look at
		t.Errorf("exit code %d, want 3", code)
	}
	found, _ = c.reap(young...)
	c.want(found, stay.found)

	for _, m := range []strategies.Make{unknown, remnant, half, unfinished, raced, removed} {
		if s := c.look(m.Src); s != "1 0 []" {
			t.Errorf("on the volume: %s", s)
		}
		if s := c.look(m.Dst); s != "0 0 []" {
			t.Errorf("of the image: %s", s)
		}
	}
	if s := c.look(trashed.Src); s != "0 1 []" {
		t.Errorf("on the volume in the trash: %s", s)
	}
	if i, err := c.Image(c.ctx, waiting.Job); err != nil || i.Status != "" {
		t.Errorf("the image that waited is %q, %v", i.Status, err)
	}
	if keys, err := c.cluster.Keys(c.ctx); err != nil || slices.Contains(keys, key) {
		t.Errorf("the key is still there: %v, %v", keys, err)
	}
	for at, sum := range c.sums(stay.refs) {
		if sum != before[at] {
			t.Errorf("%s was %s and is %s", at, before[at], sum)
		}
	}
	for _, id := range stay.active {
		if i, err := c.Image(c.ctx, id); err != nil || i.Status != worker.ImageActive {
			t.Errorf("image %s is %q, %v", id, i.Status, err)
		}
	}
}

// queued is a job that failed and whose image is still queued.
func (c *cloud) queued() strategies.Make {
	c.t.Helper()
	m := c.job()
	id, err := c.CreateImage(c.ctx, "reap")
	c.must(err)
	c.t.Cleanup(func() {
		if i, err := c.Image(context.WithoutCancel(c.ctx), id); err != nil || i.Status != "" {
			_ = c.DeleteImage(context.WithoutCancel(c.ctx), id)
		}
	})
	m.Job, m.Dst.Image, m.Snapshot = id, id, strategies.SourceSnapshot(id)
	c.ids = append(c.ids, id)
	c.record(m, worker.Failed)

	return m
}

// survivors is what has to stay.
type survivors struct {
	found  map[string][]string // what is said of it all the same
	refs   []string            // images and snapshots to compare
	active []string            // images in Glance
}

func (c *cloud) lookAlikes() survivors {
	c.t.Helper()
	s := survivors{found: map[string][]string{}}
	keep := func(at ...string) { s.refs = append(s.refs, at...) }

	open := c.copied(c.job())
	c.record(open, "")
	keep(open.Src.String()+"@"+open.Snapshot, open.Dst.String())

	named := c.job()
	for _, snap := range []string{"cinderlift.daily", named.Snapshot + ".bak"} {
		c.plant("snap", "volumes", named.Src.Image, snap)
		keep(named.Src.String() + "@" + snap)
	}

	theirs := c.job() // an image with an id for a name, and data, without our mark
	c.t.Cleanup(func() { c.drop(theirs.Dst) })
	c.plant("create", "images", theirs.Job, 8<<20)
	c.record(theirs, worker.Failed)
	keep(theirs.Dst.String())

	active := c.active()
	s.active = append(s.active, active.Job)
	keep(active.Dst.String(), active.Dst.String()+"@snap")
	child := strategies.Ref{Pool: "volumes", Image: "volume-" + uuid()} // it bears the marks of the image
	c.t.Cleanup(func() { c.drop(child) })
	c.plant("clone", "images", active.Job, "snap", child.Pool, child.Image)
	keep(child.String())

	cloned := c.sealed(c.job()) // nobody knows the image, but somebody made a clone of it
	c.must(c.images.Release(c.ctx, cloned.Src, cloned.Snapshot))
	clone := strategies.Ref{Pool: "volumes", Image: "volume-" + uuid()}
	c.t.Cleanup(func() { c.drop(clone) })
	c.plant("clone", "images", cloned.Job, "snap", clone.Pool, clone.Image)
	c.record(cloned, worker.Failed)
	keep(cloned.Dst.String()+"@snap", clone.String())
	s.found[cloned.Job] = []string{"look image"}

	parent := c.snapshot(c.job()) // somebody made a clone of the snapshot
	of := strategies.Ref{Pool: "volumes", Image: "volume-" + uuid()}
	c.t.Cleanup(func() { c.drop(of) })
	c.plant("clone", "volumes", parent.Src.Image, parent.Snapshot, of.Pool, of.Image)
	c.record(parent, worker.Failed)
	keep(parent.Src.String()+"@"+parent.Snapshot, of.String())
	s.found[parent.Job] = []string{"look snapshot"}

	watched := c.copied(c.job())
	c.must(c.images.Release(c.ctx, watched.Src, watched.Snapshot))
	c.record(watched, worker.Failed)
	c.hold(watched.Dst)
	keep(watched.Dst.String())
	s.found[watched.Job] = []string{"look image"}

	return s
}

// active is an image that we made and that Glance uses.
func (c *cloud) active() strategies.Make {
	c.t.Helper()
	m := c.job()
	id, err := c.CreateImage(c.ctx, "reap")
	c.must(err)
	m.Job, m.Dst.Image, m.Snapshot = id, id, strategies.SourceSnapshot(id)
	c.ids = append(c.ids, id)
	c.sealed(m)
	c.t.Cleanup(func() {
		if err := c.RemoveImage(context.WithoutCancel(c.ctx), id); err != nil {
			c.t.Errorf("delete the image afterwards: %v", err)
		}
	})
	c.must(c.images.Release(c.ctx, m.Src, m.Snapshot))
	fsid, err := c.cluster.FSID(c.ctx)
	c.must(err)
	c.must(c.glance.Register(c.ctx, id, strategies.Location(fsid, m.Dst), 8<<20))
	c.record(m, worker.Done)

	return m
}

// hold has an image open until the test ends.
func (c *cloud) hold(at strategies.Ref) {
	c.t.Helper()
	c.plant("hold", at.Pool, at.Image)
	c.t.Cleanup(func() { c.plant("let_go", at.Pool, at.Image) })
}

func (c *cloud) sums(refs []string) map[string]string {
	c.t.Helper()
	sums := map[string]string{}
	for _, at := range refs {
		sum, err := c.Digest(c.ctx, at)
		c.must(err)
		sums[at] = sum
	}

	return sums
}

// state is what there is of the orphans.
func (c *cloud) state(want map[string][]string) string {
	c.t.Helper()
	var b strings.Builder
	for id := range want {
		if strategies.IsImageID(id) {
			fmt.Fprintln(&b, c.look(strategies.Ref{Pool: "images", Image: id}))
		}
	}
	keys, err := c.cluster.Keys(c.ctx)
	c.must(err)
	locks, err := c.cluster.Locks(c.ctx, nil)
	c.must(err)
	lines := strings.Split(b.String(), "\n")
	slices.Sort(lines)

	return fmt.Sprint(lines, keys, locks)
}

// merged says what is to be done with the orphans, and what is said of the rest.
func merged(want map[string][]string, action string, rest map[string][]string) map[string][]string {
	all := map[string][]string{}
	for id, found := range rest {
		all[id] = found
	}
	for id, kinds := range want {
		for _, k := range kinds {
			all[id] = append(all[id], action+" "+k)
		}
	}

	return all
}

// waits is what is said of them all while they are young, but for those of which nobody knows when they were made.
func waits(want, rest map[string][]string, ageless ...string) map[string][]string {
	all := merged(want, "wait", nil)
	for id, found := range rest {
		for _, f := range found {
			all[id] = append(all[id], strings.Replace(f, "look", "wait", 1))
		}
	}
	for _, id := range ageless {
		for i := range all[id] {
			all[id][i] = strings.Replace(all[id][i], "wait", "remove", 1)
		}
	}

	return all
}

// TestReapKilled: the program is killed again and again while it removes, and in the end nothing is left, and nothing else
// is gone.
func TestReapKilled(t *testing.T) {
	c := openCloud(t)
	var left []strategies.Make
	for i := range 6 {
		m := c.sealed(c.job())
		if i%2 == 0 {
			c.record(m, worker.Failed)
		}
		left = append(left, m)
	}
	open := c.copied(c.job())
	c.record(open, "")
	keep := []string{open.Src.String() + "@" + open.Snapshot, open.Dst.String()}
	before := c.sums(keep)
	args := append([]string{"reap", "--age", "1s"}, c.ids...)
	for n := range 6 {
		cmd := exec.Command(c.Binary(), args...)
		cmd.Env = c.Environment(c.settings())
		c.must(cmd.Start())
		err := c.killOnce(cmd, left, time.Duration(n)*60*time.Millisecond)
		t.Logf("run %d: %v", n, err)
	}
	c.must(lab.Wait(c.ctx, "everything to be gone", func() (bool, error) { // leases of the dead have to expire
		found, code := c.reap(args[1:]...)
		if code == 3 {
			c.evict()
		}

		return len(found) == 0 && code == 0, nil
	}))
	for _, m := range left {
		if s, d := c.look(m.Src), c.look(m.Dst); s != "1 0 []" || d != "0 0 []" {
			t.Errorf("of %s is left: on the volume %s, in the images %s", m.Job, s, d)
		}
	}
	for at, sum := range c.sums(keep) {
		if sum != before[at] {
			t.Errorf("%s was %s and is %s", at, before[at], sum)
		}
	}
	if locks, err := c.cluster.Locks(c.ctx, nil); err != nil || len(locks) != 0 {
		t.Errorf("locks that nobody holds: %v, %v", locks, err)
	}
	keys, err := c.cluster.Keys(c.ctx)
	c.must(err)
	for _, key := range keys {
		if rec, err := c.cluster.Load(c.ctx, key); err != nil || !rec.Closed && key != open.Job {
			t.Errorf("record of %s: %+v, %v", key, rec, err)
		}
	}
}

// evict makes the OSDs forget objects that nobody uses. Ceph 16 sometimes keeps the watch of a client that was killed and
// fenced with the object, while no OSD has it in memory any more; until the object is read anew it looks open.
func (c *cloud) evict() {
	c.t.Helper()
	for _, osd := range []string{"osd.0", "osd.1", "osd.2"} {
		_, err := c.Exec(c.ctx, "ceph", "tell", osd, "cache", "drop")
		c.must(err)
	}
}

// killOnce waits until the program has done something, lets it go on for a moment, and kills it.
func (c *cloud) killOnce(cmd *exec.Cmd, left []strategies.Make, moment time.Duration) error {
	c.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for start := c.progress(left); ; {
		select {
		case err := <-ended:
			return err
		case <-time.After(10 * time.Millisecond):
		}
		if c.progress(left) != start {
			break
		}
	}
	<-time.After(moment)
	_ = cmd.Process.Kill() // it may have ended

	return <-ended
}

// progress changes with what is removed, and with the records that come before.
func (c *cloud) progress(left []strategies.Make) int {
	c.t.Helper()
	keys, err := c.cluster.Keys(c.ctx)
	c.must(err)
	n := 100 * len(keys)
	for _, m := range left {
		_, there, err := c.images.Look(c.ctx, strategies.Trace{Kind: strategies.TraceImage, ImageID: m.Job, At: m.Dst})
		if err == nil && there {
			n++
		}
	}

	return n
}

// TestWorkersReap: a worker looks by itself, once for all of them, and says so in its metrics.
func TestWorkersReap(t *testing.T) {
	c := openCloud(t)
	m := c.job()
	c.record(m, worker.Failed)
	lock := strings.TrimPrefix(m.Src.Image, "volume-")
	c.plant("lock", "images", c.namespace, lock)
	more := c.settings()
	// Others work in this lab: what is theirs is never as old as that.
	more["CINDERLIFT_REAP_EVERY"], more["CINDERLIFT_REAP_AGE"] = "5s", "10000h"
	w, err := c.StartWorker(c.ctx, more, "", nil)
	c.must(err)
	t.Cleanup(func() {
		if err := w.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		for _, queue := range []string{c.namespace, c.namespace + ".dead"} {
			if _, err := c.Rabbit(context.WithoutCancel(c.ctx), "delete_queue", queue); err != nil {
				t.Logf("delete queue %s: %v", queue, err)
			}
		}
	})
	removed := `cinderlift_orphans_removed_total{kind="volume-lock"} 1`
	c.must(lab.Wait(c.ctx, removed, func() (bool, error) {
		res, err := http.Get("http://" + w.Listen + "/metrics")
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)

		return strings.Contains(string(body), removed), err
	}))
	if locks, err := c.cluster.Locks(c.ctx, nil); err != nil || len(locks) != 0 {
		t.Errorf("locks are %v, %v", locks, err)
	}
}
