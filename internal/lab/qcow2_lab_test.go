//go:build lab

package lab_test

import (
	"testing"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/lab"
)

// compareFormat lets qemu-img of the lab check an image in Ceph, raw or qcow2 and perhaps in gzip, and compare it with a volume.
const compareFormat = `set -e
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
rbd export --no-progress "$1" image
[ "$4" = bare ] || { mv image image.gz; gunzip image.gz; }
rbd export --no-progress "$2" volume
[ "$3" = raw ] || qemu-img check -q -f "$3" image
qemu-img compare -q -f raw -F "$3" volume image`

// TestFormats makes every format in every way that there is: it is what it says, and Cinder makes a volume of it that holds
// what the first one did, if Cinder can.
func TestFormats(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	want := w.sum(rbdVolume(volume))
	for _, c := range []struct{ kind, disk, container string }{
		{"sparse", "qcow2", "bare"}, {"zlib", "qcow2", "bare"}, {"zstd", "qcow2", "bare"},
		{"plain", "raw", "compressed"}, {"zlib", "qcow2", "compressed"},
	} {
		t.Run(c.kind+" "+c.disk+" "+c.container, func(t *testing.T) {
			one := open(t)
			p := one.worker(map[string]string{"CINDERLIFT_QCOW2": c.kind, "CINDERLIFT_EXPORT_RATE": "200MiB"})
			image := one.upload(volume, lab.UploadSpec{Name: t.Name(), DiskFormat: c.disk, ContainerFormat: c.container})
			one.must(one.WaitImage(one.ctx, image, "active"))
			one.must(one.WaitVolume(one.ctx, volume, "available"))
			if _, err := one.Exec(one.ctx, "sh", "-c", compareFormat, "sh", rbdImage(image), rbdVolume(volume), c.disk, c.container); err != nil {
				t.Error(err)
			}
			// Cinder clones what is raw in its own cluster and does not look at the container (cinder 21.3 volume/drivers/rbd.py
			// _is_cloneable), so a volume of such an image holds the gzip file, whoever made the image.
			if c.disk != "raw" {
				if got := one.sum(rbdVolume(one.volume(lab.VolumeSpec{GiB: 1, ImageRef: image}, 0))); got != want {
					t.Errorf("a volume of it has %s, want %s", got, want)
				}
			}
			m, err := p.Metrics(one.ctx)
			one.must(err)
			if n := m[`cinderlift_jobs_total{reason="none",result="done",strategy="export-upload"}`]; n != 1 {
				t.Errorf("%v jobs were done by export-upload, want 1", n)
			}
			one.clean(volume)
		})
	}
}

// TestQcow2 makes qcow2 images in one pass: Glance finds the format and the virtual size, and qemu the volume's bytes.
func TestQcow2(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(nil)
	for _, kind := range []struct {
		name string
		make func(*world) string
	}{
		{"plain", func(w *world) string { return w.volume(lab.VolumeSpec{GiB: 1}, 10) }},
		{"empty", func(w *world) string { return w.volume(lab.VolumeSpec{GiB: 1}, 0) }},
		{"clone of an image", cloneOfImage},
		{"with data in the last block only", lastBlock},
	} {
		t.Run(kind.name, func(t *testing.T) {
			one := open(t)
			volume := kind.make(one)
			spec := lab.Raw(t.Name())
			spec.DiskFormat = "qcow2"
			image := one.upload(volume, spec)
			one.must(one.WaitImage(one.ctx, image, "active"))
			one.must(one.WaitVolume(one.ctx, volume, "available"))
			if _, err := one.Exec(one.ctx, "sh", "-c", compareFormat, "sh", rbdImage(image), rbdVolume(volume), "qcow2", "bare"); err != nil {
				t.Error(err)
			}
			var meta struct {
				Format  string `json:"disk_format"`
				Size    int64
				Virtual int64 `json:"virtual_size"`
			}
			one.must(one.Do(one.ctx, keystone.Image, "GET", "/v2/images/"+image, nil, &meta))
			i, err := one.Info(one.ctx, rbdVolume(volume))
			one.must(err)
			if meta.Format != "qcow2" || meta.Virtual != i.Size || meta.Size >= i.Size {
				t.Errorf("Glance has %+v, the volume %d bytes", meta, i.Size)
			}
			one.clean(volume)
		})
	}
	m, err := p.Metrics(w.ctx)
	w.must(err)
	if n := m[`cinderlift_jobs_total{reason="none",result="done",strategy="export-upload"}`]; n != 4 {
		t.Errorf("%v jobs were done by export-upload, want 4", n)
	}
}
