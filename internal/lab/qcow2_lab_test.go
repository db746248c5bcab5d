//go:build lab

package lab_test

import (
	"testing"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/lab"
)

// compareQcow2 lets qemu-img of the lab check an image in Ceph and compare it with a volume.
const compareQcow2 = `set -e
cd "$(mktemp -d)"
trap 'rm -rf "$PWD"' EXIT
rbd export --no-progress "$1" image
rbd export --no-progress "$2" volume
qemu-img check -q -f qcow2 image
qemu-img compare -q -f raw -F qcow2 volume image`

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
			if _, err := one.Exec(one.ctx, "sh", "-c", compareQcow2, "sh", rbdImage(image), rbdVolume(volume)); err != nil {
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
