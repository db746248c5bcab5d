//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
	"github.com/cinderlift/cinderlift/strategies"
)

// world is the lab with a user's view of its cloud.
type world struct {
	*lab.Cloud
	t   *testing.T
	ctx context.Context
}

// open fails, never skips, when there is no lab.
func open(t *testing.T) *world {
	t.Helper()

	return within(t, 4*time.Minute)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// hooked is the hook in force as far as this process has set it: each change restarts a service of Cinder.
var hooked string

// hook plugs cinderlift into Cinder; it stays so for the tests that follow.
func (w *world) hook(args ...string) {
	w.t.Helper()
	if want := strings.Join(args, " "); hooked != want {
		w.must(w.Control(w.ctx, "hook", args...))
		hooked = want
	}
}

// worker starts one that ends with the test.
func (w *world) worker(more map[string]string) *lab.Worker {
	w.t.Helper()
	p, err := w.StartWorker(w.ctx, more, "", nil)
	w.must(err)
	w.t.Cleanup(func() {
		_ = p.Stop() // it may have been killed
		if w.t.Failed() {
			w.t.Logf("worker %d said:\n%s", p.Pid, text(p.Logs()))
		}
	})

	return p
}

func text(lines []lab.LogLine) string {
	var b strings.Builder
	for _, l := range lines {
		fmt.Fprintln(&b, l)
	}

	return b.String()
}

// volume makes one and fills it; it is deleted at the end, which also proves that nothing of ours hangs on it.
func (w *world) volume(spec lab.VolumeSpec, percent int) string {
	w.t.Helper()
	spec.Name = w.t.Name()
	id, err := w.CreateVolume(w.ctx, spec)
	w.must(err)
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := w.DeleteVolume(ctx, id); err != nil {
			w.t.Errorf("delete the volume afterwards: %v", err)
		}
	})
	if percent > 0 {
		_, err := w.Fill(w.ctx, rbdVolume(id), 40, percent)
		w.must(err)
	}

	return id
}

func rbdVolume(id string) string { return "volumes/volume-" + id }
func rbdImage(id string) string  { return "images/" + id + "@" + strategies.GlanceSnapshot }

// upload asks for an image; it is deleted at the end, before the volume, which proves that Glance can.
func (w *world) upload(volume string, spec lab.UploadSpec) string {
	w.t.Helper()
	id, err := w.Upload(w.ctx, volume, spec)
	w.must(err)
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := w.RemoveImage(ctx, id)
		if err != nil && w.forgotten(ctx, id) {
			w.t.Logf("the dead have it open: %v", err)
			err = w.RemoveImage(ctx, id)
		}
		if err != nil {
			w.t.Errorf("delete the image afterwards: %v", err)
		}
	})

	return id
}

// forget makes the OSDs forget who has an image open when these are all fenced, by keeping them busy with other objects: Ceph
// 16 sometimes keeps the watch of a killed client for minutes (docs/operator.md).
const forget = `set -e
watchers=$(rbd status --format json "images/$1" | jq -r '.watchers[].address')
[ -n "$watchers" ]
fenced=$(ceph osd blocklist ls 2> /dev/null)
for w in $watchers; do grep -qF "$w " <<< "$fenced"; done
rados -p images bench 3 write -b 4096 -t 16 > /dev/null`

// forgotten reports whether only fenced clients had the image open, and makes them be forgotten.
func (w *world) forgotten(ctx context.Context, image string) bool {
	_, err := w.Exec(ctx, "bash", "-c", forget, "bash", image)

	return err == nil
}

// sum is the checksum of an RBD image, read from outside.
func (w *world) sum(at string) string {
	w.t.Helper()
	s, err := w.Digest(w.ctx, at)
	w.must(err)

	return s
}

// made waits until the image is active and the volume free, and checks everything that an image must be.
func (w *world) made(volume, image, want string) {
	w.t.Helper()
	w.must(w.WaitImage(w.ctx, image, "active"))
	w.must(lab.Wait(w.ctx, "the volume to be free", func() (bool, error) {
		v, err := w.Volume(w.ctx, volume)

		return v.Status == "available" || v.Status == "in-use", err
	}))
	if got := w.sum(rbdImage(image)); got != want {
		w.t.Errorf("image holds %s, the volume %s", got, want)
	}
	i, err := w.Info(w.ctx, "images/"+image)
	w.must(err)
	if i.Parent != "" {
		w.t.Errorf("image still hangs on %s", i.Parent)
	}
	if !i.Snapshots[strategies.GlanceSnapshot] {
		w.t.Errorf("no protected snapshot %s: %v", strategies.GlanceSnapshot, i.Snapshots)
	}
	for key := range i.Metadata {
		if strings.HasPrefix(key, "conf_") {
			w.t.Errorf("metadata %s came over from the volume", key)
		}
	}
	w.clean(volume)
	g, err := w.Image(w.ctx, image)
	w.must(err)
	if fmt.Sprint(g.Size) != strings.Fields(want)[0] {
		w.t.Errorf("Glance says %d bytes, want %s", g.Size, want)
	}
}

// clean checks that nothing of ours is left on the volume.
func (w *world) clean(volume string) {
	w.t.Helper()
	i, err := w.Info(w.ctx, rbdVolume(volume))
	w.must(err)
	if i.AllSnapshots != 0 {
		w.t.Errorf("%d snapshots are left on the volume: %v", i.AllSnapshots, i.Snapshots)
	}
}

func TestMain(m *testing.M) {
	l, err := lab.FromEnvironment()
	if err == nil {
		// Early registration is what most clouds will be set up for; tests that want it otherwise say so.
		err = l.Control(context.Background(), "caps", "early")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := l.Control(context.Background(), "hook", "none"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
