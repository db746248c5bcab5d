//go:build lab

package lab_test

import (
	"context"
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

// TestStores has two RBD stores in Glance: the image lands in the default one, or in the one that the volume's type names,
// whichever way it is made.
func TestStores(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	w.must(w.Control(w.ctx, "glance", "multistore=on"))
	t.Cleanup(func() {
		if err := w.Control(context.Background(), "glance", "multistore=off"); err != nil {
			t.Error(err)
		}
	})
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
