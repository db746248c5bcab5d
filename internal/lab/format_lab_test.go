//go:build lab

package lab_test

import (
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// TestFormatRefused: a volume that Glance would refuse to an upload does not become an image, in any way. The volume is free
// afterwards, as it was, and nothing is left.
func TestFormatRefused(t *testing.T) {
	// A VMDK descriptor whose data is in another file, and text until the first sector is full (OSSA-2023-002).
	descriptor := "# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/passwd\" 0\n" + strings.Repeat("# text\n", 80)
	w := within(t, 12*time.Minute)
	d := w.atDesk("volume_manager")
	for _, name := range []string{"early", "copy", "export"} {
		t.Run(name, func(t *testing.T) {
			v := wayOf(name)
			v.set = with(v.set, map[string]string{"CINDERLIFT_FORMAT_CHECK": "glance"})
			l := w.of(t, 4*time.Minute).lane(d, "format-"+name, v, 3)
			l.must(l.Write(l.ctx, rbdVolume(l.volume), 0, descriptor))
			want := l.sum(rbdVolume(l.volume))
			p := l.start("", nil)
			image := l.ask(lab.Raw(t.Name()))
			end := l.closedBy(image, p, l.heir)
			if end["result"] != "failed" || end["reason"] != "format-refused" {
				t.Errorf("the job ended as %v for %v, want failed for format-refused", end["result"], end["reason"])
			}
			l.ended(image, false)
			if got := l.sum(rbdVolume(l.volume)); got != want {
				t.Errorf("the volume holds %s, want %s", got, want)
			}
		})
	}
}
