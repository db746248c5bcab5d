package glance_test

import (
	"bytes"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/glance"
	"github.com/cinderlift/cinderlift/glance/glancetest"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/keystone/keystonetest"
	"github.com/cinderlift/cinderlift/worker"
)

func TestUploadFaults(t *testing.T) {
	data := noise(1, 3<<20)
	for _, fault := range keystonetest.Faults() {
		for times := 1; times <= 2; times++ {
			t.Run(fault.Name, func(t *testing.T) {
				f := newFake(t, glancetest.Config{Minor: 17})
				id := f.image(t)
				f.Inject("PUT image", slices.Repeat([]keystonetest.Fault{fault}, times)...)
				g := glance.New(f.session(t), glance.Options{Poll: time.Millisecond, Silence: 100 * time.Millisecond})
				until(t, times, retry, func() error {
					return g.Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), nil)
				})
				img, _ := f.glance.Image(id)
				if !bytes.Equal(img.Data, data) || !slices.Equal(f.glance.Notes(), []string{fmt.Sprintf("upload %d bytes", len(data))}) {
					t.Fatalf("%d bytes after %v", len(img.Data), f.glance.Notes())
				}
			})
		}
	}
}

func TestUploadAfterA401CarriesAllBytes(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	data := noise(1, 2<<20)
	var looked atomic.Bool
	f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.glance.ServeHTTP(w, r)
		if !looked.Swap(true) { // the token becomes invalid between the first look and the PUT
			f.Revoke()
		}
	}))
	var most worker.Amount
	err := client(t, f).Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), func(a worker.Amount) {
		if a.Done > a.Total {
			t.Errorf("progress %+v", a)
		}
		most = a
	})
	must(t, "upload", err)
	img, _ := f.glance.Image(id)
	if !bytes.Equal(img.Data, data) || f.Logins() != 2 {
		t.Fatalf("%d bytes, %d logins", len(img.Data), f.Logins())
	}
	if most.Done != int64(len(data)) || most.Worker < most.Done {
		t.Errorf("progress %+v", most)
	}
}

type flip struct{ io.ReadCloser }

func (c flip) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		p[0] ^= 1
	}

	return n, err
}

func TestUploadThatArrivesChanged(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			r.Body = flip{r.Body}
		}
		f.glance.ServeHTTP(w, r)
	}))
	data := noise(1, 1<<20)
	err := client(t, f).Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), nil)
	expect(t, "upload", err, worker.ReasonMismatch, worker.GiveUp)
	if img, _ := f.glance.Image(id); img.Status != worker.ImageDeactivated {
		t.Errorf("a wrong image is %s", img.Status)
	}
}

// TestUploadWithAnotherMD5: both of Glance's digests have to be those of what was sent.
func TestUploadWithAnotherMD5(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.glance.ServeHTTP(w, r)
		if img, there := f.glance.Image(id); r.Method == http.MethodPut && there {
			img.Checksum = strings.Repeat("0", 32)
			f.glance.Put(img)
		}
	}))
	err := client(t, f).Upload(t.Context(), id, "", bytes.NewReader([]byte("some data")), 9, nil)
	expect(t, "upload", err, worker.ReasonMismatch, worker.GiveUp)
	if img, _ := f.glance.Image(id); img.Status != worker.ImageDeactivated || !strings.Contains(err.Error(), "md5") {
		t.Errorf("the image is %s: %v", img.Status, err)
	}
}

// wrong is a cloud in which uploads arrive changed.
func wrong(t *testing.T, c glancetest.Config) (*fake, string, func(*glance.Client) error) {
	t.Helper()
	f := newFake(t, c)
	id := f.image(t)
	f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			r.Body = flip{r.Body}
		}
		f.glance.ServeHTTP(w, r)
	}))

	return f, id, func(g *glance.Client) error {
		return g.Upload(t.Context(), id, "", bytes.NewReader([]byte("some data")), 9, nil)
	}
}

// Each fault of the lock, once and twice in a row: not applied, and applied but reported failed. In the end nobody can use
// the image, it was locked once, and the reason is still that it is wrong.
func TestWrongImageIsLockedThroughFaults(t *testing.T) {
	for _, fault := range keystonetest.Faults() {
		for times := 1; times <= 2; times++ {
			t.Run(fault.Name, func(t *testing.T) {
				f, id, upload := wrong(t, glancetest.Config{})
				f.Inject("POST image", slices.Repeat([]keystonetest.Fault{fault}, times)...)
				g := glance.New(f.session(t), glance.Options{Poll: time.Millisecond})
				err := upload(g)
				for n := 0; retry(err); n++ {
					if n > times+spare {
						t.Fatalf("try %d: %v", n, err)
					}
					err = upload(g)
				}
				expect(t, "upload", err, worker.ReasonMismatch, worker.GiveUp)
				if img, _ := f.glance.Image(id); img.Status != worker.ImageDeactivated || !slices.Equal(f.glance.Notes(), []string{"upload 9 bytes", "deactivate"}) {
					t.Fatalf("the image is %s after %v", img.Status, f.glance.Notes())
				}
				expect(t, "again", upload(g), worker.ReasonMismatch, worker.GiveUp)
			})
		}
	}
}

// What others may have given the image is theirs: it is not the volume's copy, and it is left as it is.
func TestOthersDataIsNotLocked(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.glance.Put(glancetest.Image{ID: id, Status: "active", Size: 9, HashAlgo: "sha1", HashValue: "00"})
	err := client(t, f).Upload(t.Context(), id, "", bytes.NewReader([]byte("some data")), 9, nil)
	expect(t, "upload", err, worker.ReasonMismatch, worker.GiveUp)
	if img, _ := f.glance.Image(id); img.Status != worker.ImageActive || len(f.glance.Notes()) != 0 {
		t.Errorf("the image is %s after %v", img.Status, f.glance.Notes())
	}
}

// Where the policy is closed the operator is told what to do.
func TestWrongImageThatCannotBeLocked(t *testing.T) {
	f, id, upload := wrong(t, glancetest.Config{NoDeactivate: true})
	err := upload(client(t, f))
	expect(t, "upload", err, worker.ReasonMismatch, worker.GiveUp)
	if img, _ := f.glance.Image(id); img.Status != worker.ImageActive || !strings.Contains(err.Error(), "could not be deactivated") {
		t.Errorf("the image is %s: %v", img.Status, err)
	}
}

// An operator may lock an image at any time; it is complete all the same.
func TestUploadFindsTheImageDeactivated(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.glance.Put(glancetest.Image{ID: id, Status: "deactivated", Size: 9, Checksum: "1e50210a0202497fb79bc38b6ade6c34"})
	must(t, "upload", client(t, f).Upload(t.Context(), id, "", bytes.NewReader([]byte("some data")), 9, nil))
	if n := f.glance.Notes(); len(n) != 0 {
		t.Errorf("writes %v", n)
	}
}

// An adopted job finds its image active and has to find out whether that is its own data.
func TestUploadFindsTheImageActive(t *testing.T) {
	data := []byte("some data")
	const (
		md5    = "1e50210a0202497fb79bc38b6ade6c34"
		sha1   = "baf34551fecb48acc3da868eb85e1b6dac9de356"
		sha256 = "1307990e6ba5ca145eb35e99182a9bec46531bc54ddf656a602c780fa0240dee"
	)
	for name, tc := range map[string]struct {
		img    glancetest.Image
		store  string
		reason worker.Reason
	}{
		"md5 only":           {glancetest.Image{Checksum: md5}, "", worker.ReasonNone},
		"sha1":               {glancetest.Image{HashAlgo: "sha1", HashValue: sha1}, "", worker.ReasonNone},
		"sha256":             {glancetest.Image{HashAlgo: "sha256", HashValue: sha256, Checksum: "wrong, not looked at"}, "", worker.ReasonNone},
		"sha256 wrong":       {glancetest.Image{HashAlgo: "sha256", HashValue: sha1}, "", worker.ReasonMismatch},
		"unknown, md5":       {glancetest.Image{HashAlgo: "blake2", HashValue: "0", Checksum: md5}, "", worker.ReasonNone},
		"unknown, md5 wrong": {glancetest.Image{HashAlgo: "blake2", HashValue: "0", Checksum: sha1}, "", worker.ReasonMismatch},
		"none":               {glancetest.Image{}, "", worker.ReasonImageState},
		"right store":        {glancetest.Image{Checksum: md5, Store: "rbd"}, "rbd", worker.ReasonNone},
		"wrong store":        {glancetest.Image{Checksum: md5, Store: "rbd"}, "rbd2", worker.ReasonMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, glancetest.Config{Stores: twoStores()})
			tc.img.ID, tc.img.Status, tc.img.Size = f.image(t), "active", int64(len(data))
			f.glance.Put(tc.img)
			err := client(t, f).Upload(t.Context(), tc.img.ID, tc.store, bytes.NewReader(data), int64(len(data)), nil)
			expect(t, "upload", err, tc.reason, worker.GiveUp)
		})
	}
}

func TestUploadByState(t *testing.T) {
	data := []byte("some data")
	for status, reason := range map[string]worker.Reason{
		"saving": worker.ReasonGlanceUnavailable, "importing": worker.ReasonImageState, "uploading": worker.ReasonImageState,
		"killed": worker.ReasonImageState, "deactivated": worker.ReasonMismatch, "deleted": worker.ReasonImageMissing,
	} {
		f := newFake(t, glancetest.Config{})
		id := f.image(t)
		f.glance.Put(glancetest.Image{ID: id, Status: status})
		g := glance.New(f.session(t), glance.Options{Poll: time.Millisecond, Patience: 10 * time.Millisecond})
		expect(t, status, g.Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), nil), reason, worker.GiveUp)
	}
}

// The upload of a killed worker goes on in Glance until its connection is found dead.
func TestUploadWaitsForTheOneBefore(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.glance.Put(glancetest.Image{ID: id, Status: "saving"})
	var looks atomic.Int64
	f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if looks.Add(1) == 4 {
			f.glance.Put(glancetest.Image{ID: id, Status: "queued"})
		}
		f.glance.ServeHTTP(w, r)
	}))
	data := []byte("some data")
	must(t, "upload", client(t, f).Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), nil))
	if img, _ := f.glance.Image(id); !bytes.Equal(img.Data, data) {
		t.Fatalf("%q", img.Data)
	}
}

// What Glance answers while the image stays queued.
func TestUploadCodes(t *testing.T) {
	for code, want := range map[int]struct {
		reason worker.Reason
		advice worker.Advice
	}{
		400: {worker.ReasonGlanceRefused, worker.GiveUp}, 403: {worker.ReasonGlanceRefused, worker.GiveUp},
		404: {worker.ReasonGlanceRefused, worker.GiveUp}, 410: {worker.ReasonGlanceRefused, worker.GiveUp},
		413: {worker.ReasonGlanceFull, worker.GiveUp}, 415: {worker.ReasonGlanceRefused, worker.GiveUp},
		409: {worker.ReasonImageState, worker.Retry}, 500: {worker.ReasonGlanceUnavailable, worker.Retry},
		503: {worker.ReasonGlanceUnavailable, worker.Retry}, 200: {worker.ReasonGlanceUnavailable, worker.Retry},
	} {
		f := newFake(t, glancetest.Config{})
		id := f.image(t)
		f.Inject("PUT image", keystonetest.Fault{Code: code})
		err := client(t, f).Upload(t.Context(), id, "", bytes.NewReader([]byte("x")), 1, nil)
		expect(t, http.StatusText(code), err, want.reason, want.advice)
	}
}

func TestUploadUserDeletesAfterTheLastByte(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.glance.Uploading = f.glance.Remove
	err := client(t, f).Upload(t.Context(), id, "", bytes.NewReader([]byte("x")), 1, nil)
	expect(t, "upload", err, worker.ReasonImageMissing, worker.GiveUp)
}

// zeros is a large source that needs no memory.
type zeros struct{ at, size int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.at >= z.size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.size-z.at)
	clear(p[:n])
	z.at += n

	return int(n), nil
}

func (z *zeros) Seek(offset int64, whence int) (int64, error) {
	z.at = map[int]int64{io.SeekStart: 0, io.SeekCurrent: z.at, io.SeekEnd: z.size}[whence] + offset

	return z.at, nil
}

func TestUploadTakesBoundedMemory(t *testing.T) {
	const size = 64 << 20
	c := keystonetest.New(t)
	status, sum := "queued", sha512.New()
	const id = "00000000-0000-4000-8000-000000000001"
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			_, _ = io.Copy(sum, r.Body)
			status = "active"
			w.WriteHeader(http.StatusNoContent)

			return
		}
		m := map[string]any{"id": id, "status": status}
		if status == "active" {
			m["size"], m["os_hash_algo"], m["os_hash_value"] = size, "sha512", hex.EncodeToString(sum.Sum(nil))
		}
		_ = json.NewEncoder(w).Encode(m)
	}))
	g := glance.New(c.Session(t), glance.Options{})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	must(t, "upload", g.Upload(t.Context(), id, "", &zeros{size: size}, size, nil))
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Fatalf("%d bytes allocated for an upload of %d", n, size)
	}
}
