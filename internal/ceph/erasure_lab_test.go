//go:build lab

package ceph

import (
	"bytes"
	"cmp"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
)

// erasure makes an erasure-coded pool that lasts as long as the test. It stays usable while one OSD is away.
func erasure(t *testing.T) string {
	t.Helper()
	o := labOptions(t)
	o.User = "admin"
	c, pool := labCluster(t, o), "cinderlift-ec-"+newID()
	mon(t, c, map[string]any{
		"prefix": "osd erasure-code-profile set", "name": pool, "profile": []string{"k=2", "m=1", "crush-failure-domain=osd"},
	})
	t.Cleanup(func() { mon(t, c, map[string]any{"prefix": "osd erasure-code-profile rm", "name": pool}) })
	mon(t, c, map[string]any{
		"prefix": "osd pool create", "pool": pool, "pg_num": 8, "pool_type": "erasure", "erasure_code_profile": pool,
	})
	t.Cleanup(func() {
		mon(t, c, map[string]any{
			"prefix": "osd pool delete", "pool": pool, "pool2": pool, "yes_i_really_really_mean_it": true,
		})
		mon(t, c, map[string]any{"prefix": "osd crush rule rm", "name": pool})
	})
	for name, value := range map[string]string{"allow_ec_overwrites": "true", "min_size": "2"} {
		mon(t, c, map[string]any{"prefix": "osd pool set", "pool": pool, "var": name, "val": value})
	}
	mon(t, c, map[string]any{"prefix": "osd pool application enable", "pool": pool, "app": "rbd"})

	return pool
}

// TestErasureCoded makes images of volumes whose data lies in an erasure-coded pool, and images whose data does. The OSDs
// copy among themselves there as well; what can't be copied object by object is put there by this process.
func TestErasureCoded(t *testing.T) {
	t.Parallel()
	pool := erasure(t)
	volume, image := site{user: "admin", volumes: pool}, site{user: "admin", images: pool}
	both := site{user: "admin", volumes: pool, images: pool}
	for name, c := range map[string]struct {
		at     site
		way    string
		factor int64 // of object sizes
		engine string
	}{
		"volume/flatten":              {volume, "flatten", 1, EngineOSD + " " + ObstacleNone},
		"volume/copy":                 {volume, "copy", 1, EngineOSD + " " + ObstacleNone},
		"image/copy":                  {image, "copy", 1, EngineOSD + " " + ObstacleNone},
		"both/flatten":                {both, "flatten", 1, EngineOSD + " " + ObstacleNone},
		"both/flatten/larger objects": {both, "flatten", 2, EngineWorker + " " + ObstacleLayout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ragged(t, c.at, c.way, c.factor, c.engine)
		})
	}
	t.Run("readers", func(t *testing.T) {
		t.Parallel()
		r, im := both.rig(t)
		undisturbed(t, both, r, im, made(t, r, objectsRead))
	})
	for way, at := range map[string]site{"flatten": image, "copy": volume} {
		t.Run("killed/"+way, func(t *testing.T) {
			t.Parallel()
			newVictimAt(t, at, 8*time.Second, 512).killed(t, way, 1)
		})
	}
}

// ragged makes an image of such a volume, compares it, and looks at which engine made it and where its data is.
func ragged(t *testing.T, at site, way string, factor int64, engine string) {
	r, im := at.rig(t)
	r.ObjectSize = 256 << 10
	var mu sync.Mutex
	told := map[string]bool{}
	im.c.opts.Engine = func(engine, why string) {
		mu.Lock()
		defer mu.Unlock()
		told[engine+" "+why] = true
	}
	m := raggedVolume(t, r)
	m.ObjectSize = factor * r.ObjectSize
	want := r.Backdoor.Read(t, m.Src, "")
	must(t, im.Snapshot(t.Context(), m.Src, m.Snapshot))
	must(t, im.Protect(t.Context(), m.Src, m.Snapshot))
	r.Backdoor.Write(t, m.Src, 0, bytes.Repeat([]byte{0xee}, int(2*r.ObjectSize))) // after the snapshot
	for _, s := range (order{Make: m, Copy: way == "copy"}).steps() {
		must(t, s.do(t.Context(), im, nil))
	}
	if !told[engine] || len(told) != 1 {
		t.Errorf("the engine was %q, want %q", slices.Collect(maps.Keys(told)), engine)
	}
	if got, wanted := dataPoolOf(t, im, m.Dst), cmp.Or(at.images, m.Dst.Pool); got != wanted {
		t.Errorf("the image's data is in %s, want %s", got, wanted)
	}
	child := strategies.Ref{Pool: m.Dst.Pool, Image: "child-" + m.Dst.Image}
	clone(t, im, m.Dst, child)
	for at, snaps := range map[strategies.Ref][]string{m.Dst: {"", strategies.GlanceSnapshot}, child: {""}} {
		for _, snap := range snaps {
			if !bytes.Equal(r.Backdoor.Read(t, at, snap), want) {
				t.Errorf("%s@%s has other bytes than the volume had", at, snap)
			}
		}
	}
	r.Backdoor.Drop(t, child)
	mapsAgree(t, m.Dst)
}

// raggedVolume has objects with holes, odd ends and discarded parts. The stripes of the pool have 8 KiB.
func raggedVolume(t *testing.T, r strategiestest.Rig) strategies.Make {
	t.Helper()
	m, size := sized(t, r, 6), r.ObjectSize
	r.Backdoor.Resize(t, m.Src, 9*size+512)
	for n, piece := range [][2]int64{{0, 512}, {8<<10 + 1, 3}, {size - 512, 512}} { // all that there is in objects 6 to 8
		r.Backdoor.Write(t, m.Src, (6+int64(n))*size+piece[0], bytes.Repeat([]byte{0x5a}, int(piece[1])))
	}
	must(t, r.Backdoor.(*backdoor).im.image(m.Src, func(image *rbd.Image) error {
		for _, part := range [][2]int64{{0, 4096}, {size + 100<<10, 100 << 10}, {3*size - 4096, 8192}, {4 * size, size}} {
			if _, err := image.Discard(uint64(part[0]), uint64(part[1])); err != nil {
				return err
			}
		}

		return nil
	}))

	return m
}

func dataPoolOf(t *testing.T, im *Images, at strategies.Ref) (name string) {
	t.Helper()
	must(t, im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) error {
		id, err := image.GetDataPoolID()
		must(t, err)
		name, err = im.conn().GetPoolByID(id)

		return err
	}))

	return name
}
