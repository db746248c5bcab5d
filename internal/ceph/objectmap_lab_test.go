//go:build lab

package ceph

import (
	"bytes"
	"os/exec"
	"testing"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
)

// TestMapsAreAsLibrbdMakesThem: the maps that we write are, byte by byte, those that Ceph's own tool makes by asking for every
// object, of a volume with more objects than one block of a map has.
func TestMapsAreAsLibrbdMakesThem(t *testing.T) {
	for _, way := range []string{"clone", "copy"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			r, im := labRig(t), labImages(t)
			m := sized(t, r, 0)
			r.Backdoor.Drop(t, m.Src)
			r.Backdoor.Put(t, m.Src, strategiestest.Blueprint{Size: 17000 * r.ObjectSize, ObjectSize: r.ObjectSize})
			for _, n := range []int64{0, 1, 6, 4095, 16383, 16384, 16999} {
				r.Backdoor.Write(t, m.Src, n*r.ObjectSize, bytes.Repeat([]byte{byte(n + 1)}, 100))
			}
			must(t, im.Snapshot(t.Context(), m.Src, m.Snapshot))
			must(t, im.Protect(t.Context(), m.Src, m.Snapshot))
			snaps := []string{rbd.NoSnapshot}
			if way == "clone" {
				snaps = append(snaps, strategies.GlanceSnapshot)
				must(t, im.Clone(t.Context(), m))
				must(t, im.Seal(t.Context(), m))
				must(t, im.Flatten(t.Context(), m, nil))
			} else {
				must(t, im.CopyObjects(t.Context(), m, nil))
			}
			for _, snap := range snaps {
				ours := mapBytes(t, im, m.Dst, snap)
				rebuild(t, m.Dst, snap)
				if theirs := mapBytes(t, im, m.Dst, snap); !bytes.Equal(ours, theirs) {
					t.Errorf("the map of @%s differs, %d bytes and %d bytes", snap, len(ours), len(theirs))
				}
			}
		})
	}
}

// mapBytes is what is stored as the object map.
func mapBytes(t *testing.T, im *Images, at strategies.Ref, snap string) (content []byte) {
	t.Helper()
	name := ""
	must(t, im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) error {
		id, err := image.GetId()
		must(t, err)
		number := noSnap
		if snap != rbd.NoSnapshot {
			number, err = image.GetSnapID(snap)
		}
		name = mapObject(id, number)

		return err
	}))
	must(t, im.pool(at.Pool, func(io *rados.IOContext) error {
		content = make([]byte, 64<<10)
		n, err := io.Read(name, content, 0)
		content = content[:n]

		return err
	}))

	return content
}

func rebuild(t *testing.T, at strategies.Ref, snap string) {
	t.Helper()
	env, of := lab(t), at.String()
	if snap != rbd.NoSnapshot {
		of += "@" + snap
	}
	out, err := exec.CommandContext(t.Context(), env["LAB_COMMAND"], "exec", env["LAB_GENERATION"], "rbd", "--id", env["LAB_CEPH_USER"],
		"object-map", "rebuild", "--no-progress", of).CombinedOutput()
	if err != nil {
		t.Fatalf("rebuild %s: %v: %s", of, err, out)
	}
}
