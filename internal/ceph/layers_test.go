package ceph

import (
	"slices"
	"strings"
	"testing"
)

const mib = 1 << 20

func plain(objectSize uint64) geometry {
	return geometry{objectSize: objectSize, stripeUnit: objectSize, stripeCount: 1}
}

func TestApart(t *testing.T) {
	for _, c := range []struct {
		name     string
		src, dst geometry
		want     string // a word of the reason; "": object by object
	}{
		{"alike", plain(4 * mib), plain(4 * mib), ""},
		{"larger objects in the image", plain(4 * mib), plain(8 * mib), "object sizes"},
		{"smaller objects in the image", plain(8 * mib), plain(4 * mib), "object sizes"},
		{"striped volume", geometry{4 * mib, mib, 4, false, false}, plain(4 * mib), "striped"},
		{"striped image", plain(4 * mib), geometry{4 * mib, mib, 2, false, false}, "striped"},
		{"one stripe of narrow units", plain(4 * mib), geometry{4 * mib, mib, 1, false, false}, ""},
		{"format 1", geometry{4 * mib, 4 * mib, 1, true, false}, plain(4 * mib), "format 1"},
		{"under migration", geometry{4 * mib, 4 * mib, 1, false, true}, plain(4 * mib), "migrated"},
	} {
		got := c.src.apart(c.dst)
		if (got == nil) != (c.want == "") || got != nil && !strings.Contains(got.text, c.want) {
			t.Errorf("%s: %+v, want %q", c.name, got, c.want)
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		name          string
		size, visible uint64
		n             uint64
		want          cover
	}{
		{"all visible", 10 * mib, 10 * mib, 0, whole},
		{"last object is short", 9*mib + 512, 9*mib + 512, 9, whole},
		{"below the edge", 10 * mib, 3*mib + 1, 2, whole},
		{"on the edge", 10 * mib, 3*mib + 1, 3, partly},
		{"behind the edge", 10 * mib, 3*mib + 1, 4, none},
		{"edge between objects", 10 * mib, 3 * mib, 3, none},
		{"just before it", 10 * mib, 3 * mib, 2, whole},
		{"nothing visible", 10 * mib, 0, 0, none},
	} {
		if got := (layer{size: c.size, visible: c.visible}).covers(c.n, mib); got != c.want {
			t.Errorf("%s: object %d is %v, want %v", c.name, c.n, got, c.want)
		}
	}
}

func TestLacks(t *testing.T) {
	for _, c := range []struct{ have, want, lacks []uint64 }{
		{nil, nil, nil},
		{[]uint64{1, 2}, []uint64{1, 2}, nil},
		{[]uint64{1, 2, 9}, []uint64{0, 2, 3}, []uint64{0, 3}},
		{nil, []uint64{4}, []uint64{4}},
	} {
		if got := lacks(c.have, c.want); !slices.Equal(got, c.lacks) {
			t.Errorf("lacks(%v, %v) = %v, want %v", c.have, c.want, got, c.lacks)
		}
	}
}

func TestObjectName(t *testing.T) {
	// Seen with `rados ls` on 16.2.15.
	if got := object("rbd_data.5e3a6b8b4567", 27); got != "rbd_data.5e3a6b8b4567.000000000000001b" {
		t.Errorf("object 27 is %s", got)
	}
}

func TestFillingBytes(t *testing.T) {
	f := &filling{objectSize: mib, size: 2*mib + 512}
	for n, want := range []int64{mib, mib, 512, 0} {
		if got := f.bytes(uint64(n)); got != want {
			t.Errorf("object %d is %d bytes of the image, want %d", n, got, want)
		}
	}
}

func TestMarks(t *testing.T) {
	meta := map[string]string{markJob: "job1 id1 volume@7", markSealed: "job1 id0", markCopied: "job1", "conf_x": "1"}
	for key, want := range map[string]bool{markJob: true, markSealed: false, markCopied: false, markDiscarded: false} {
		if _, got := readMark(meta, key, "id1"); got != want {
			t.Errorf("mark %s is valid: %v, want %v", key, got, want)
		}
	}
}

func TestFinished(t *testing.T) {
	for _, c := range []struct {
		name string
		v    view
		want bool
	}{
		{"clone", view{standing: ours, parent: true}, true},
		{"copied", view{standing: ours, copied: true}, true},
		{"flattened", view{standing: ours, sealed: true}, true},
		{"half a copy", view{standing: ours}, false},
		{"half removed", view{standing: ours, copied: true, sealed: true, discarded: true}, false},
		{"of another snapshot", view{standing: ours, copied: true, sealed: true, outdated: true}, false},
		{"somebody's", view{standing: foreign, parent: true}, false},
		{"killed clone", view{standing: remainder, parent: true}, false},
		{"nothing", view{}, false},
	} {
		if got := c.v.finished(); got != c.want {
			t.Errorf("%s: finished is %v, want %v", c.name, got, c.want)
		}
	}
}
