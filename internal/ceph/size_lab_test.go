//go:build lab

package ceph

import (
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
)

// TestExtendedVolume: Cinder extends a volume between the moment that its size was asked for and the snapshot. Whatever is
// made has the size that the volume had at the snapshot, and so has what is read; the size that was asked for before is
// only good for choosing.
func TestExtendedVolume(t *testing.T) {
	for _, way := range []string{"clone", "copy"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			r, im := labRig(t), labImages(t)
			m := sized(t, r, 4)
			before, err := im.Stat(t.Context(), m.Src)
			must(t, err)
			r.Backdoor.Resize(t, m.Src, 6*r.ObjectSize)
			must(t, im.Snapshot(t.Context(), m.Src, m.Snapshot))
			must(t, im.Protect(t.Context(), m.Src, m.Snapshot))
			r.Backdoor.Resize(t, m.Src, 9*r.ObjectSize) // and once more afterwards
			if way == "clone" {
				must(t, im.Clone(t.Context(), m))
			} else {
				must(t, im.CopyObjects(t.Context(), m, nil))
			}
			must(t, im.Seal(t.Context(), m))
			complete, err := im.Complete(t.Context(), m, false)
			must(t, err)
			content, err := im.Open(t.Context(), m.Src, m.Snapshot)
			must(t, err)
			defer content.Close()
			t.Logf("asked for before the snapshot: %d; complete: %v; of the image: %d; of what is read: %d",
				before.Size, complete, r.Backdoor.View(t, m.Dst).Size, content.Size())
			want := 6 * r.ObjectSize
			if info, err := im.Stat(t.Context(), m.Dst); err != nil || info.Size != want { // what to tell Glance
				t.Errorf("the image has %d bytes (%v), want %d", info.Size, err, want)
			}
			if got := r.Backdoor.View(t, m.Dst).Size; !complete || got != want || content.Size() != want || before.Size == want {
				t.Errorf("want %d bytes", want)
			}
			must(t, im.Flatten(t.Context(), m, nil))
			for _, snap := range []string{"", strategies.GlanceSnapshot} {
				if string(r.Backdoor.Read(t, m.Dst, snap)) != string(r.Backdoor.Read(t, m.Src, m.Snapshot)) {
					t.Errorf("image@%s has other bytes than the volume at the snapshot", snap)
				}
			}
		})
	}
}
