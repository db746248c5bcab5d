//go:build lab

package lab_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// TestHooks makes an image through real Cinder with each of the three hooks.
func TestHooks(t *testing.T) {
	for _, hook := range []string{"volume_manager", "volume_api_class", "volume_driver"} {
		t.Run(hook, func(t *testing.T) {
			w := open(t)
			w.hook(hook)
			p := w.worker(nil)
			volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
			want := w.sum(rbdVolume(volume))
			image := w.upload(volume, lab.Raw(t.Name()))
			w.made(volume, image, want)
			if n := settled(t, w, p); n != 1 {
				t.Errorf("the worker settled %v jobs, want 1", n)
			}
			boot := w.volume(lab.VolumeSpec{GiB: 1, ImageRef: image}, 0)
			if got := w.sum(rbdVolume(boot)); got != want {
				t.Errorf("a volume made from the image holds %s, want %s", got, want)
			}
		})
	}
}

// settled counts the jobs that the worker finished with result done.
func settled(t *testing.T, w *world, p *lab.Worker) (n float64) {
	t.Helper()
	m, err := p.Metrics(w.ctx)
	w.must(err)
	for series, v := range m {
		if strings.HasPrefix(series, "cinderlift_jobs_total{") && strings.Contains(series, `result="done"`) {
			n += v
		}
	}

	return n
}

// TestStrategies makes an image in each way, and says which way it was.
func TestStrategies(t *testing.T) {
	for _, tt := range []struct {
		name, strategy string
		more           map[string]string
		caps           string
		throughWorker  bool
	}{
		{"early", "clone-flatten", map[string]string{"CINDERLIFT_REGISTER": "early"}, "early", false},
		{"late", "clone-flatten", map[string]string{"CINDERLIFT_REGISTER": "late"}, "documented", false},
		{"auto finds out that it has to be late", "clone-flatten", nil, "documented", false},
		{"copy", "copy", map[string]string{"CINDERLIFT_STRATEGIES": "copy"}, "documented", false},
		{"export-upload", "export-upload", map[string]string{"CINDERLIFT_STRATEGIES": "export-upload"}, "documented", true},
		{"export-upload when Glance's store is in another cluster", "export-upload",
			map[string]string{"CINDERLIFT_IMAGE_FSID": "11111111-2222-3333-4444-555555555555"}, "early", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := open(t)
			w.hook("volume_manager")
			w.must(w.Control(w.ctx, "caps", tt.caps))
			t.Cleanup(func() { _ = w.Control(t.Context(), "caps", "early") })
			p := w.worker(tt.more)
			volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
			want := w.sum(rbdVolume(volume))
			image := w.upload(volume, lab.Raw(t.Name()))
			w.must(w.WaitImage(w.ctx, image, "active"))
			if tt.throughWorker {
				w.must(w.WaitVolume(w.ctx, volume, "available"))
				if got := w.sum(rbdImage(image)); got != want {
					t.Errorf("image holds %s, the volume %s", got, want)
				}
				w.clean(volume)
			} else {
				w.made(volume, image, want)
			}
			m, err := p.Metrics(w.ctx)
			w.must(err)
			if n := m[fmt.Sprintf(`cinderlift_jobs_total{reason="none",result="done",strategy=%q}`, tt.strategy)]; n != 1 {
				t.Errorf("%v jobs were done by %s, want 1", n, tt.strategy)
			}
			through := m[fmt.Sprintf(`cinderlift_bytes_total{strategy=%q,via="worker"}`, tt.strategy)]
			if tt.throughWorker != (through > 0) {
				t.Errorf("%v bytes went through the worker", through)
			}
		})
	}
}

// TestKinds makes images of every kind of volume and compares them by checksum.
func TestKinds(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.worker(nil)
	for _, kind := range []struct {
		name string
		make func(*world) string
	}{
		{"plain", func(w *world) string { return w.volume(lab.VolumeSpec{GiB: 1}, 10) }},
		{"empty", func(w *world) string { return w.volume(lab.VolumeSpec{GiB: 1}, 0) }},
		{"thin", func(w *world) string { return w.volume(lab.VolumeSpec{GiB: 3}, 3) }},
		{"clone of an image", cloneOfImage},
		{"migrated", migrated},
		{"odd size", oddSize},
		{"with QoS and journaling", journaled},
		{"with data in the last block only", lastBlock},
	} {
		t.Run(kind.name, func(t *testing.T) {
			t.Parallel() // mostly waiting
			w := open(t)
			volume := kind.make(w)
			at := w.rbd(volume)
			want := w.sum(at)
			image := w.upload(volume, lab.Raw(t.Name()))
			w.must(w.WaitImage(w.ctx, image, "active"))
			w.must(w.WaitVolume(w.ctx, volume, "available"))
			if got := w.sum(rbdImage(image)); got != want {
				t.Errorf("image holds %s, the volume %s", got, want)
			}
			i, err := w.Info(w.ctx, "images/"+image)
			w.must(err)
			const journaling = 1 << 6
			if i.Features&journaling != 0 || i.Parent != "" {
				t.Errorf("image has features %b and parent %q", i.Features, i.Parent)
			}
			for key := range i.Metadata {
				if strings.HasPrefix(key, "conf_") {
					t.Errorf("metadata %s came over from the volume", key)
				}
			}
			if src, err := w.Info(w.ctx, at); err != nil || src.AllSnapshots != 0 {
				t.Errorf("snapshots left on the volume: %v, %v", src, err)
			}
		})
	}
}

// rbd finds the RBD image of a volume, which may bear another id after a migration.
func (w *world) rbd(volume string) string {
	w.t.Helper()
	if id := w.nameID(volume); id != "" {
		return rbdVolume(id)
	}

	return rbdVolume(volume)
}

func (w *world) nameID(volume string) string {
	w.t.Helper()

	return w.sql("select coalesce(_name_id, '') from volumes where id='" + volume + "'")
}

// sql asks Cinder's database, for what no API does.
func (w *world) sql(query string) string {
	w.t.Helper()
	out, err := w.Exec(w.ctx, "mariadb", "--no-defaults", "-N", "--socket="+w.Env["LAB_DATABASE_SOCKET"], "cinder", "-e", query)
	w.must(err)

	return out
}

func cloneOfImage(w *world) string {
	base := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	image := w.upload(base, lab.Raw(w.t.Name()+" base"))
	w.must(w.WaitImage(w.ctx, image, "active"))
	w.must(w.WaitVolume(w.ctx, base, "available"))
	// While Glance hashes the active image it bears the property os_glance_import_task. A volume made then inherits it,
	// and Cinder 26 can't make an image of such a volume any more, with or without us (400 "Unable to set 'properties'").
	w.must(lab.Wait(w.ctx, "Glance to leave the image alone", func() (bool, error) {
		i, err := w.Image(w.ctx, image)

		return i.Task == "", err
	}))
	clone := w.volume(lab.VolumeSpec{GiB: 2, ImageRef: image}, 0)
	w.must(w.Write(w.ctx, rbdVolume(clone), 5<<20, "written after the clone"))
	w.must(w.Write(w.ctx, rbdVolume(clone), 1<<30+5<<20, "written behind the parent's end"))

	return clone
}

// migrated is what Cinder leaves after a migration: the volume's RBD image is named after name_id.
func migrated(w *world) string {
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	other := "0" + volume[1:]
	if other == volume {
		other = "1" + volume[1:]
	}
	_, err := w.Exec(w.ctx, "rbd", "mv", rbdVolume(volume), rbdVolume(other))
	w.must(err)
	w.sql("update volumes set _name_id='" + other + "' where id='" + volume + "'")

	return volume
}

// oddSize is neither a multiple of the object size nor of a MiB.
func oddSize(w *world) string {
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	_, err := w.Exec(w.ctx, "rbd", "resize", "--no-progress", "--size", fmt.Sprint(1<<30+12345*512)+"B", rbdVolume(volume))
	w.must(err)
	w.must(w.Write(w.ctx, rbdVolume(volume), 1<<30+12345*512-20, "the very last bytes!"))

	return volume
}

func journaled(w *world) string {
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	at := rbdVolume(volume)
	for _, args := range [][]string{
		{"rbd", "feature", "enable", at, "journaling"},
		{"rbd", "config", "image", "set", at, "rbd_qos_iops_limit", "5000"},
	} {
		_, err := w.Exec(w.ctx, args...)
		w.must(err)
	}

	return volume
}

func lastBlock(w *world) string {
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 0)
	w.must(w.Write(w.ctx, rbdVolume(volume), 1<<30-5, "tail!"))

	return volume
}

// TestAttached makes an image of a volume in use: it stays in use, and the image is the volume as it was at one instant.
func TestAttached(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.worker(nil)
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 40)
	admin, err := w.As(w.ctx, "admin")
	w.must(err)
	defer admin.Close()
	w.must(w.Act(w.ctx, volume, map[string]any{"os-reserve": map[string]any{}}))
	w.must(w.Act(w.ctx, volume, map[string]any{"os-attach": map[string]any{
		"instance_uuid": "8f5a3a4e-0000-4000-8000-000000000001", "mountpoint": "/dev/vdb", "mode": "rw"}}))
	w.must(w.WaitVolume(w.ctx, volume, "in-use"))
	want := w.sum(rbdVolume(volume))
	spec := lab.Raw(t.Name())
	spec.Force = true
	image := w.upload(volume, spec)
	w.must(w.WaitImage(w.ctx, image, "active"))
	w.must(w.WaitVolume(w.ctx, volume, "in-use"))
	w.made(volume, image, want)
	v, err := w.Volume(w.ctx, volume)
	w.must(err)
	if len(v.Attachments) != 1 {
		t.Errorf("the volume has %d attachments, want 1", len(v.Attachments))
	}
	w.must(w.Act(w.ctx, volume, map[string]any{"os-begin_detaching": map[string]any{}}))
	w.must(w.Act(w.ctx, volume, map[string]any{"os-detach": map[string]any{}}))
	w.must(w.WaitVolume(w.ctx, volume, "available"))
}

// TestDeclined asks for what no strategy makes: Cinder does it the stock way, and nobody notices.
func TestDeclined(t *testing.T) {
	for _, hook := range []string{"volume_manager", "volume_api_class", "volume_driver"} {
		t.Run(hook, func(t *testing.T) {
			w := open(t)
			w.hook(hook)
			p := w.worker(nil)
			volume := w.volume(lab.VolumeSpec{GiB: 1}, 2)
			spec := lab.Raw(t.Name())
			spec.DiskFormat = "vmdk"
			image := w.upload(volume, spec)
			w.must(w.WaitImage(w.ctx, image, "active"))
			w.must(w.WaitVolume(w.ctx, volume, "available"))
			m, err := p.Metrics(w.ctx)
			w.must(err)
			if m[`cinderlift_jobs_total{reason="not-applicable",result="declined",strategy="none"}`] != 1 {
				t.Error("the worker did not decline it")
			}
		})
	}
}

// TestNobodyThere proves that switching cinderlift on before any worker ever ran is safe.
func TestNobodyThere(t *testing.T) {
	for _, hook := range []string{"volume_manager", "volume_api_class", "volume_driver"} {
		t.Run(hook, func(t *testing.T) {
			w := open(t)
			w.hook(hook, "topic=nobody-listens-here")
			volume := w.volume(lab.VolumeSpec{GiB: 1}, 2)
			want := w.sum(rbdVolume(volume))
			image := w.upload(volume, lab.Raw(t.Name()))
			w.must(w.WaitImage(w.ctx, image, "active"))
			w.must(w.WaitVolume(w.ctx, volume, "available"))
			if got := w.sum(rbdImage(image)); got != want {
				t.Errorf("image holds %s, the volume %s", got, want)
			}
		})
	}
}

// TestManyAtOnce has two workers share the queue.
func TestManyAtOnce(t *testing.T) {
	const jobs = 6
	w := open(t)
	w.hook("volume_manager")
	one, two := w.worker(nil), w.worker(nil)
	var volumes, images, want []string
	for range jobs {
		v := w.volume(lab.VolumeSpec{GiB: 1}, 10)
		volumes, want = append(volumes, v), append(want, w.sum(rbdVolume(v)))
	}
	for _, v := range volumes {
		images = append(images, w.upload(v, lab.Raw(t.Name())))
	}
	for i := range jobs {
		w.made(volumes[i], images[i], want[i])
	}
	if n := settled(t, w, one) + settled(t, w, two); n != jobs {
		t.Errorf("%v jobs were settled, want %d", n, jobs)
	}
}

// TestKilledWorker kills the worker in the middle of its job, wherever that is; another finishes it.
func TestKilledWorker(t *testing.T) {
	for _, step := range []string{"snapshot", "clone", "seal", "register"} {
		t.Run("after "+step, func(t *testing.T) {
			w := open(t)
			w.hook("volume_manager")
			lease := map[string]string{"CINDERLIFT_LEASE_TTL": "5s", "CINDERLIFT_SCAN_EVERY": "1s"}
			victim := w.worker(lease)
			volume := w.volume(lab.VolumeSpec{GiB: 1}, 40)
			want := w.sum(rbdVolume(volume))
			image := w.upload(volume, lab.Raw(t.Name()))
			w.must(lab.Wait(w.ctx, "step "+step, func() (bool, error) { return did(victim, step), nil }))
			_ = victim.Kill()
			heir := w.worker(lease)
			w.made(volume, image, want)
			if n := settled(t, w, heir); n != 1 {
				t.Errorf("the second worker settled %v jobs, want 1", n)
			}
		})
	}
}

func did(p *lab.Worker, step string) bool {
	for _, l := range p.Logs() {
		if l["msg"] == "step done" && l["step"] == step {
			return true
		}
	}

	return false
}

// TestStoppedWorker stops a worker as a rolling upgrade does: the other one goes on at once, not after the lease's end.
func TestStoppedWorker(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	first := w.worker(map[string]string{"CINDERLIFT_SOFT_STOP": "0s", "CINDERLIFT_LEASE_TTL": "60s"})
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 90)
	want := w.sum(rbdVolume(volume))
	image := w.upload(volume, lab.Raw(t.Name()))
	w.must(lab.Wait(w.ctx, "the clone", func() (bool, error) { return did(first, "clone"), nil }))
	start := time.Now()
	w.must(first.Stop())
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("stopping took %s", took)
	}
	w.worker(map[string]string{"CINDERLIFT_LEASE_TTL": "60s"})
	w.made(volume, image, want)
	if took := time.Since(start); took > 45*time.Second {
		t.Errorf("the job went on after %s only; the lease was not given back", took)
	}
}

// TestDeletedMeanwhile has the user delete the image while it is made: nothing is left, and the volume is free.
func TestDeletedMeanwhile(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(nil)
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 40)
	image := w.upload(volume, lab.Raw(t.Name()))
	w.must(lab.Wait(w.ctx, "the snapshot", func() (bool, error) { return did(p, "snapshot"), nil }))
	w.must(w.DeleteImage(w.ctx, image))
	w.must(w.WaitVolume(w.ctx, volume, "available"))
	w.clean(volume)
	ls, err := w.Exec(w.ctx, "rbd", "ls", "images")
	w.must(err)
	if strings.Contains(ls, image) {
		t.Errorf("the deleted image's data are left: %s", ls)
	}
}

// TestMemory holds the worker to 100 MiB, idle and while it clones and flattens.
func TestMemory(t *testing.T) {
	const most = 100 << 20
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(nil)
	idle, err := p.RSS()
	w.must(err)
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 90)
	var peak int64
	var watching sync.WaitGroup
	image := w.upload(volume, lab.Raw(t.Name()))
	done := make(chan struct{})
	watching.Go(func() {
		for {
			if n, err := p.RSS(); err == nil {
				peak = max(peak, n)
			}
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	w.must(w.WaitImage(w.ctx, image, "active"))
	w.must(w.WaitVolume(w.ctx, volume, "available"))
	close(done)
	watching.Wait()
	t.Logf("resident: idle %d MiB, peak %d MiB", idle>>20, peak>>20)
	if idle > most || peak > most {
		t.Errorf("resident: idle %d MiB, peak %d MiB, want below %d MiB", idle>>20, peak>>20, most>>20)
	}
}
