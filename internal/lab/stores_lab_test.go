//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/lab"
)

// volumeType makes a type with extra specs, which only an admin can.
func (w *world) volumeType(specs map[string]string) (id, name string) {
	w.t.Helper()
	admin, err := w.As(w.ctx, "admin")
	w.must(err)
	w.t.Cleanup(admin.Close)
	var r struct {
		Type struct{ ID string } `json:"volume_type"`
	}
	name = w.t.Name()
	w.must(admin.Do(w.ctx, keystone.Volume, "POST", "/types",
		map[string]any{"volume_type": map[string]any{"name": name, "extra_specs": specs}}, &r))
	w.t.Cleanup(func() {
		if err := admin.Do(context.Background(), keystone.Volume, "DELETE", "/types/"+r.Type.ID, nil, nil); err != nil {
			w.t.Errorf("delete the volume type afterwards: %v", err)
		}
	})

	return r.Type.ID, name
}

// glance changes an option of Glance until the test has ended.
func (w *world) glance(option, back string) {
	w.t.Helper()
	w.must(w.Control(w.ctx, "glance", option))
	w.t.Cleanup(func() {
		if err := w.Control(context.Background(), "glance", back); err != nil {
			w.t.Error(err)
		}
	})
}

// TestStores has two RBD stores in Glance: the image lands in the default one, or in the one that the volume's type names,
// whichever way it is made.
func TestStores(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.glance("multistore=on", "multistore=off")
	_, second := w.volumeType(map[string]string{"image_service:store_id": "rbd2"})
	for _, tt := range []struct{ name, strategy, kind, store, pool string }{
		{"default store", "clone-flatten", "", "rbd", "images"},
		{"the type's store, cloned", "clone-flatten", second, "rbd2", "images2"},
		{"the type's store, copied", "copy", second, "rbd2", "images2"},
		{"the type's store, uploaded", "export-upload", second, "rbd2", "images2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := open(t)
			w.worker(map[string]string{"CINDERLIFT_STRATEGIES": tt.strategy})
			volume := w.volume(lab.VolumeSpec{GiB: 1, Type: tt.kind}, 10)
			want := w.sum(rbdVolume(volume))
			image := w.upload(volume, lab.Raw(t.Name()))
			w.must(w.WaitImage(w.ctx, image, "active"))
			w.must(w.WaitVolume(w.ctx, volume, "available"))
			if got := w.sum(tt.pool + "/" + image + "@snap"); got != want {
				t.Errorf("image holds %s, the volume %s", got, want)
			}
			if g, err := w.Image(w.ctx, image); err != nil || g.Stores != tt.store {
				t.Errorf("the image is in store %q, want %q; %v", g.Stores, tt.store, err)
			}
		})
	}
}

// inFiles compares a volume with the file of an image, and answers how many bytes of disk the file takes.
const inFiles = `set -e
rbd export --no-progress "$1" - | cmp - "$2"
du --block-size=1 "$2" | cut -f1`

// TestFileStore has Glance keep images in files, for a volume type or for all: the image is uploaded there, and holes of the
// volume stay holes of the file.
func TestFileStore(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.glance("multistore=on", "reset")
	_, files := w.volumeType(map[string]string{"image_service:store_id": "files"})
	for _, tt := range []struct{ name, kind, store, format string }{
		{"the type's store", files, "", "raw"},
		{"the operator's store", "", "files", "raw"},
		{"qcow2", files, "", "qcow2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := open(t)
			p := w.worker(map[string]string{"CINDERLIFT_IMAGE_STORE": tt.store})
			volume := w.volume(lab.VolumeSpec{GiB: 1, Type: tt.kind}, 10)
			spec := lab.Raw(t.Name())
			spec.DiskFormat = tt.format
			image := w.upload(volume, spec)
			w.must(w.WaitImage(w.ctx, image, "active"))
			w.must(w.WaitVolume(w.ctx, volume, "available"))
			if g, err := w.Image(w.ctx, image); err != nil || g.Stores != "files" {
				t.Errorf("the image is in store %q, want files; %v", g.Stores, err)
			}
			file := w.Env["LAB_DIR"] + "/glance/files/" + image
			if tt.format == "qcow2" {
				_, err := w.Exec(w.ctx, "sh", "-c", `rbd export --no-progress "$1" /tmp/volume; trap 'rm /tmp/volume' EXIT
					qemu-img compare -q -f raw -F qcow2 /tmp/volume "$2"`, "sh", rbdVolume(volume), file)
				w.must(err)
			} else {
				out, err := w.Exec(w.ctx, "sh", "-c", inFiles, "sh", rbdVolume(volume), file)
				w.must(err)
				if n, err := strconv.ParseInt(out, 10, 64); err != nil || n > 200<<20 {
					t.Errorf("a tenth of 1 GiB takes %s bytes in the file", out)
				}
			}
			m, err := p.Metrics(w.ctx)
			w.must(err)
			if m[`cinderlift_jobs_total{reason="none",result="done",strategy="export-upload"}`] != 1 {
				t.Error("export-upload did not do it")
			}
			w.clean(volume)
		})
	}
}

// TestTooLarge: what is larger than Glance takes is refused with Glance's own word, and the volume is free.
func TestTooLarge(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.glance("image_size_cap=1073741823", "reset")
	p := w.worker(map[string]string{"CINDERLIFT_STRATEGIES": "export-upload"})
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	image := w.upload(volume, lab.Raw(t.Name()))
	w.must(w.WaitVolume(w.ctx, volume, "available"))
	fits := said("job closed", image)
	w.await("the job to be closed", fits, p)
	lines := p.Logs()
	end := lines[slices.IndexFunc(lines, fits)]
	if end["reason"] != "glance-full" || end["result"] != "failed" || !strings.Contains(fmt.Sprint(end["message"]), "413") {
		t.Errorf("the job's end: %v", end)
	}
	w.clean(volume)
}

// TestEncrypted copies a LUKS volume block by block: the image holds the ciphertext, and Cinder has cloned the key.
func TestEncrypted(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.worker(nil)
	id, name := w.volumeType(map[string]string{})
	admin, err := w.As(w.ctx, "admin")
	w.must(err)
	defer admin.Close()
	w.must(admin.Do(w.ctx, keystone.Volume, "POST", "/types/"+id+"/encryption", map[string]any{"encryption": map[string]any{
		"provider": "luks", "cipher": "aes-xts-plain64", "key_size": 256, "control_location": "front-end"}}, nil))
	volume := w.volume(lab.VolumeSpec{GiB: 1, Type: name}, 0)
	w.must(w.Write(w.ctx, rbdVolume(volume), 64<<20, "ciphertext, for all that anybody knows"))
	want := w.sum(rbdVolume(volume))
	image := w.upload(volume, lab.Raw(t.Name()))
	w.made(volume, image, want)
	var meta map[string]any
	w.must(w.Do(w.ctx, keystone.Image, "GET", "/v2/images/"+image, nil, &meta))
	if meta["cinder_encryption_key_id"] == nil {
		t.Errorf("the image has no key: %v", meta)
	}
}
