//go:build lab

package ceph

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
)

// lab reads the file that CINDERLIFT_LAB_ENV names. A test that needs the lab fails without it.
func lab(t testing.TB) map[string]string {
	t.Helper()
	name := os.Getenv("CINDERLIFT_LAB_ENV")
	file, err := os.Open(name)
	if err != nil {
		t.Fatalf("CINDERLIFT_LAB_ENV has to name the lab's lab.env (deployments/lab/lab up bookworm ceph): %v", err)
	}
	defer file.Close()
	env := map[string]string{}
	for lines := bufio.NewScanner(file); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), "=")
		env[key] = strings.Trim(value, "'\"")
	}

	return env
}

func labOptions(t testing.TB) Options {
	env := lab(t)

	return Options{
		ConfFile: env["CEPH_CONF"], User: env["LAB_CEPH_USER"], JournalPool: env["LAB_POOL_IMAGES"],
		Namespace: "cinderlift-test", Owner: "test", Timeout: 10 * time.Second,
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

func labCluster(t testing.TB, o Options) *Cluster {
	t.Helper()
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})

	return c
}

// controlOf is the connection that the cluster uses now.
func controlOf(t testing.TB, c *Cluster) *control {
	t.Helper()
	k, err := c.enter()
	if err != nil {
		t.Fatal(err)
	}
	k.users.leave()

	return k
}

// wipe removes everything in the cluster's own namespace when the test has ended.
func wipe(t testing.TB, c *Cluster) {
	t.Helper()
	t.Cleanup(func() {
		io := controlOf(t, c).io
		err := io.ListObjects(func(name string) {
			if err := io.Delete(name); err != nil && !is(err, enoent) {
				t.Errorf("remove %s: %v", name, err)
			}
		})
		if err != nil {
			t.Errorf("list the namespace: %v", err)
		}
	})
}

// newID is a random UUID.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80

	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func labImages(t testing.TB) *Images {
	t.Helper()

	return imagesOf(t, labOptions(t))
}

// imagesOf is a connection with options of its own.
func imagesOf(t testing.TB, o Options) *Images {
	t.Helper()
	im, err := labCluster(t, o).Images(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := im.Close(ctx); err != nil {
			t.Error(err)
		}
	})

	return im
}

// site says in which pools the data of volumes and images lies, "" for that of the image itself, and whose key reaches them.
type site struct{ user, volumes, images string }

// options are those of a worker there. Glance's store is told of a data pool in the same way, in ceph.conf.
func (s site) options(t testing.TB) Options {
	o := labOptions(t)
	if s.user != "" {
		o.User = s.user
	}
	if s.images != "" {
		o.DataConf = map[string]string{"rbd_default_data_pool": s.images}
	}

	return o
}

// backdoor puts volumes, and the images that they are clones of, where volumes are.
func (s site) backdoor(t testing.TB) *backdoor {
	o := s.options(t)
	o.DataConf = nil

	return &backdoor{im: imagesOf(t, o), dataPool: s.volumes}
}

func (s site) rig(t testing.TB) (strategiestest.Rig, *Images) {
	r, im := labRig(t), imagesOf(t, s.options(t))
	r.Source, r.Destination, r.Backdoor = im, im, s.backdoor(t)

	return r, im
}

// backdoor looks at the cluster over another connection than the code under test.
type backdoor struct {
	im *Images

	// What the volumes are made with besides.
	features    uint64
	stripeUnit  uint64
	stripeCount uint64
	dataPool    string
}

var _ strategiestest.Backdoor = (*backdoor)(nil)

func (b *backdoor) must(t testing.TB, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("backdoor: %s: %v", what, err)
	}
}

const usualFeatures = plainFeatures | mapFeatures

func (b *backdoor) options(t testing.TB, bp strategiestest.Blueprint) *rbd.ImageOptions {
	opts := rbd.NewRbdImageOptions()
	set := map[rbd.ImageOption]uint64{
		rbd.ImageOptionFormat: 2, rbd.ImageOptionFeatures: cmp.Or(b.features, usualFeatures),
	}
	if bp.ObjectSize != 0 {
		order := uint64(0)
		for 1<<order < bp.ObjectSize {
			order++
		}
		set[rbd.ImageOptionOrder] = order
	}
	if b.stripeUnit != 0 {
		set[rbd.ImageOptionStripeUnit], set[rbd.ImageOptionStripeCount] = b.stripeUnit, b.stripeCount
	}
	for option, value := range set {
		b.must(t, "set option", opts.SetUint64(option, value))
	}
	if b.dataPool != "" {
		b.must(t, "set data pool", opts.SetString(rbd.ImageOptionDataPool, b.dataPool))
	}

	return opts
}

func (b *backdoor) Put(t testing.TB, at strategies.Ref, bp strategiestest.Blueprint) {
	t.Helper()
	opts := b.options(t, bp)
	defer opts.Destroy()
	err := b.im.pool(at.Pool, func(io *rados.IOContext) error {
		if bp.Snapshot == "" {
			return rbd.CreateImage(io, at.Image, uint64(bp.Size), opts)
		}

		return b.im.pool(bp.Parent.Pool, func(up *rados.IOContext) error {
			return rbd.CloneImage(up, bp.Parent.Image, bp.Snapshot, io, at.Image, opts)
		})
	})
	b.must(t, "put "+at.String(), err)
	if len(bp.Meta) == 0 {
		return
	}
	b.must(t, "put metadata", b.im.image(at, func(image *rbd.Image) error {
		for key, value := range bp.Meta {
			if err := image.SetMetadata(key, value); err != nil {
				return err
			}
		}

		return nil
	}))
}

func (b *backdoor) Write(t testing.TB, at strategies.Ref, offset int64, data []byte) {
	t.Helper()
	b.must(t, "write", b.im.image(at, func(image *rbd.Image) error {
		_, err := image.WriteAt(data, offset)

		return err
	}))
}

func (b *backdoor) Resize(t testing.TB, at strategies.Ref, size int64) {
	t.Helper()
	b.must(t, "resize", b.im.image(at, func(image *rbd.Image) error { return image.Resize(uint64(size)) }))
}

func (b *backdoor) Freeze(t testing.TB, at strategies.Ref, snap string) {
	t.Helper()
	b.must(t, "freeze", b.im.image(at, func(image *rbd.Image) error {
		if err := snapshot(image, snap); err != nil {
			return err
		}

		return protect(image, snap)
	}))
}

func (b *backdoor) Read(t testing.TB, at strategies.Ref, snap string) []byte {
	t.Helper()
	var data []byte
	b.must(t, "read "+at.String()+"@"+snap, b.im.reading(at, snap, func(image *rbd.Image) error {
		size, err := image.GetSize()
		if err != nil || size == 0 {
			return err
		}
		data = make([]byte, size)
		_, err = image.ReadAt(data, 0)

		return err
	}))

	return data
}

func (b *backdoor) View(t testing.TB, at strategies.Ref) strategiestest.View {
	t.Helper()
	v := strategiestest.View{Snapshots: map[string]bool{}}
	b.must(t, "view "+at.String(), b.im.pool(at.Pool, func(io *rados.IOContext) (err error) {
		v.Exists, err = listed(io, at.Image)

		return err
	}))
	if !v.Exists {
		return v
	}
	b.must(t, "view "+at.String(), b.im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) error { return b.view(image, &v) }))

	return v
}

func (b *backdoor) view(image *rbd.Image, v *strategiestest.View) error {
	info, err := image.Stat()
	if err != nil {
		return err
	}
	v.Size, v.ObjectSize = int64(info.Size), int64(info.Obj_size)
	if v.Meta, err = image.ListMetadata(); err != nil {
		return err
	}
	features, err := image.GetFeatures()
	if err != nil {
		return err
	}
	v.ObjectMap = features&rbd.FeatureObjectMap != 0
	snaps, err := image.GetSnapshotNames()
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if v.Snapshots[s.Name], err = protected(image, s.Name); err != nil {
			return err
		}
	}
	if parent, err := image.GetParent(); err == nil {
		v.Parent = fmt.Sprintf("%s/%s@%s", parent.Image.PoolName, parent.Image.ImageName, parent.Snap.SnapName)
	}

	return nil
}

func (b *backdoor) Drop(t testing.TB, at strategies.Ref) {
	t.Helper()
	err := b.im.pool(at.Pool, func(io *rados.IOContext) error {
		there, err := listed(io, at.Image)
		if err != nil || !there {
			return err
		}
		err = b.im.image(at, b.strip)
		if err != nil && !is(err, enoent) {
			return err
		}

		return retryStale(t, io, at, func() error { return removeImage(context.Background(), io, at.Image) })
	})
	if err != nil {
		t.Errorf("backdoor at %s: drop %s: %v", b.im.address(), at, err)
	}
}

// retryStale repeats fn after it made the OSDs forget watches of fenced clients. An OSD of Ceph 16.2.15 sometimes (3 in
// about 150 kills) keeps the watch of a client that was killed and blocklisted in the object's metadata, while it has
// none in memory (`ceph tell osd.N dump_watchers` is empty), so nothing ever times it out; the image can't be removed
// until the object leaves the OSD's cache, 64 objects for each PG. On a busy cluster that takes seconds, in a lab somebody
// has to be busy.
func retryStale(t testing.TB, io *rados.IOContext, at strategies.Ref, fn func() error) error {
	t.Helper()
	err := fn()
	if !is(err, ebusy) || len(users(io, at.Image)) == 0 {
		return err
	}
	t.Logf("%s has a watcher that stays: %v", at, err)
	prefix := "evict." + newID()
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for n := range 500 {
				name := fmt.Sprintf("%s.%d.%d", prefix, w, n)
				if err := cmp.Or(io.WriteFull(name, []byte("x")), io.Delete(name)); err != nil {
					t.Errorf("evict: %v", err)
				}
			}
		})
	}
	wg.Wait()

	return fn()
}

// mon runs a command of the monitors.
func mon(t testing.TB, c *Cluster, command map[string]any) []byte {
	t.Helper()
	raw, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	answer, status, err := controlOf(t, c).conn.MonCommand(raw)
	if err != nil {
		t.Fatalf("%s: %v %s", raw, err, status)
	}

	return answer
}

func (b *backdoor) strip(image *rbd.Image) error {
	if err := dropMaps(image); err != nil {
		return err
	}
	snaps, err := image.GetSnapshotNames()
	if err != nil {
		return err
	}
	for _, s := range snaps {
		if err := release("drop", image, s.Name); err != nil {
			return err
		}
	}

	return nil
}
