package glance_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/glance"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/worker"
)

// kind is what is behind a location.
type kind int

const (
	whole      kind = iota // as Glance's own RBD store would have made it
	missing                // nothing
	unreadable             // a clone whose parent Glance may not read
)

// cloud is a Glance to hold the client against, with the means of its user and of Ceph's owner.
type cloud interface {
	session(t *testing.T) *keystone.Session
	image(t *testing.T) string                                          // a queued one that its user made
	data(t *testing.T, id string, k kind) (location string, size int64) // in Ceph, under the image's id
	remove(t *testing.T, id string)                                     // by the image's user
	project() string
	stores() []string // ids; none without multistore
}

func client(t *testing.T, c cloud) *glance.Client {
	t.Helper()

	return glance.New(c.session(t), glance.Options{Poll: 5 * time.Millisecond})
}

// expect compares an error with reason and advice.
func expect(t *testing.T, what string, err error, r worker.Reason, a worker.Advice) {
	t.Helper()
	if worker.ReasonOf(err) != r || worker.AdviceOf(err) != a {
		t.Errorf("%s: %v (reason %s, advice %d), want reason %s, advice %d", what, err, worker.ReasonOf(err), worker.AdviceOf(err), r, a)
	}
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func show(t *testing.T, g *glance.Client, id string) worker.Image {
	t.Helper()
	img, err := g.Image(context.Background(), id)
	must(t, "show", err)

	return img
}

// noise is n bytes that differ by seed.
func noise(seed, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8 + seed)
	}

	return b
}

// conform is the suite that the fake and the real Glance have to pass.
func conform(t *testing.T, c cloud) {
	for name, f := range map[string]func(*testing.T, cloud){
		"look": conformLook, "register": conformRegister, "register what is not there": conformMissing,
		"register what Glance can't read": conformUnreadable, "upload": conformUpload, "upload cut short": conformCut,
		"user deletes during upload": conformDeleted, "discard": conformDiscard, "stores": conformStores,
	} {
		t.Run(name, func(t *testing.T) { f(t, c) })
	}
}

func conformLook(t *testing.T, c cloud) {
	g := client(t, c)
	must(t, "ping", g.Ping(t.Context()))
	id := c.image(t)
	img := show(t, g, id)
	if img.ID != id || img.Status != worker.ImageQueued || img.Owner != c.project() || img.DiskFormat != "raw" ||
		img.ContainerFormat != "bare" || img.Size != 0 || len(img.Stores)+len(img.Locations) != 0 {
		t.Errorf("queued: %+v", img)
	}
	c.remove(t, id)
	_, err := g.Image(t.Context(), id)
	expect(t, "gone", err, worker.ReasonImageMissing, worker.GiveUp)
	location, size := c.data(t, id, missing)
	expect(t, "register", g.Register(t.Context(), id, location, size), worker.ReasonImageMissing, worker.GiveUp)
	expect(t, "upload", g.Upload(t.Context(), id, "", bytes.NewReader(nil), 0, nil), worker.ReasonImageMissing, worker.GiveUp)
}

func conformRegister(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	location, size := c.data(t, id, whole)
	must(t, "register", g.Register(t.Context(), id, location, size))
	img := show(t, g, id)
	if img.Status != worker.ImageActive || img.Size != size || !slices.Equal(img.Locations, []string{location}) {
		t.Errorf("after: %+v, want %s of %d bytes", img, location, size)
	}
	if len(c.stores()) > 0 && !slices.Equal(img.Stores, c.stores()[:1]) {
		t.Errorf("in stores %v, want %v", img.Stores, c.stores()[:1])
	}
	must(t, "again", g.Register(t.Context(), id, location, size))
	elsewhere, _ := c.data(t, c.image(t), missing)
	expect(t, "other data", g.Register(t.Context(), id, elsewhere, size), worker.ReasonImageState, worker.GiveUp)
	must(t, "discard", g.Discard(t.Context(), id))
	if show(t, g, id).Status != worker.ImageActive {
		t.Error("an active image was discarded")
	}
}

func conformMissing(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	location, size := c.data(t, id, missing)
	expect(t, "missing", g.Register(t.Context(), id, location, size), worker.ReasonGlanceUnreadable, worker.OtherWay)
	if s := show(t, g, id).Status; s != worker.ImageQueued {
		t.Fatalf("now %s", s)
	}
	location, size = c.data(t, id, whole)
	must(t, "there now", g.Register(t.Context(), id, location, size))
}

func conformUnreadable(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	location, size := c.data(t, id, unreadable)
	for range 2 {
		expect(t, "unreadable", g.Register(t.Context(), id, location, size), worker.ReasonGlanceUnreadable, worker.OtherWay)
	}
	must(t, "discard", g.Discard(t.Context(), id))
}

func conformUpload(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	data := noise(1, 1<<20)
	store := ""
	if len(c.stores()) > 0 {
		store = c.stores()[len(c.stores())-1]
		err := g.Upload(t.Context(), id, "no-such-store", bytes.NewReader(data), int64(len(data)), nil)
		expect(t, "unknown store", err, worker.ReasonGlanceRefused, worker.GiveUp)
	}
	var last worker.Amount
	must(t, "upload", g.Upload(t.Context(), id, store, bytes.NewReader(data), int64(len(data)), func(a worker.Amount) { last = a }))
	if want := (worker.Amount{Done: 1 << 20, Total: 1 << 20, Worker: 1 << 20}); last != want {
		t.Errorf("progress %+v, want %+v", last, want)
	}
	img := show(t, g, id)
	if img.Status != worker.ImageActive || img.Size != int64(len(data)) || (store != "" && !slices.Equal(img.Stores, []string{store})) {
		t.Errorf("after: %+v", img)
	}
	put := func(b []byte) error { return g.Upload(t.Context(), id, store, bytes.NewReader(b), int64(len(b)), nil) }
	must(t, "again", put(data))
	expect(t, "other bytes", put(noise(2, 1<<20)), worker.ReasonMismatch, worker.GiveUp)
	if s := show(t, g, id).Status; s != worker.ImageActive { // what it has was right when it was given
		t.Errorf("an image that was complete is %s", s)
	}
	must(t, "the right bytes once more", put(data))
	expect(t, "other size", put(data[1:]), worker.ReasonMismatch, worker.GiveUp)
	location, _ := c.data(t, c.image(t), missing)
	expect(t, "register", g.Register(t.Context(), id, location, int64(len(data))), worker.ReasonImageState, worker.GiveUp)
}

var errSource = errors.New("the source broke")

// broken is a source that fails after some bytes.
type broken struct {
	*bytes.Reader
	after int64
	then  func() error
}

func (b *broken) Read(p []byte) (int, error) {
	at, _ := b.Seek(0, io.SeekCurrent)
	if at >= b.after {
		if err := b.then(); err != nil {
			return 0, err
		}
	}

	return b.Reader.Read(p[:min(len(p), 64<<10)])
}

func conformCut(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	data := noise(3, 1<<20)
	b := &broken{bytes.NewReader(data), 700 << 10, func() error { return errSource }}
	if err := g.Upload(t.Context(), id, "", b, int64(len(data)), nil); !errors.Is(err, errSource) {
		t.Errorf("error %v, want the source's", err)
	}
	must(t, "then", g.Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), nil))
	if img := show(t, g, id); img.Status != worker.ImageActive || img.Size != int64(len(data)) {
		t.Errorf("after: %+v", img)
	}
	err := g.Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data))+1, nil)
	expect(t, "source shorter than said", err, worker.ReasonMismatch, worker.GiveUp)
}

func conformDeleted(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	data := noise(4, 1<<20)
	gone := false
	b := &broken{bytes.NewReader(data), 500 << 10, func() error {
		if !gone {
			gone = true
			c.remove(t, id)
		}

		return nil
	}}
	expect(t, "upload", g.Upload(t.Context(), id, "", b, int64(len(data)), nil), worker.ReasonImageMissing, worker.GiveUp)
}

func conformDiscard(t *testing.T, c cloud) {
	g := client(t, c)
	id := c.image(t)
	for range 2 {
		must(t, "discard", g.Discard(t.Context(), id))
		_, err := g.Image(t.Context(), id)
		expect(t, "discarded", err, worker.ReasonImageMissing, worker.GiveUp)
	}
	for _, id := range []string{"", "x", "../stores", id + "/file"} {
		expect(t, fmt.Sprintf("id %q", id), g.Discard(t.Context(), id), worker.ReasonBadRequest, worker.GiveUp)
	}
}

func conformStores(t *testing.T, c cloud) {
	g := client(t, c)
	l, err := g.Stores(t.Context())
	must(t, "stores", err)
	var ids []string
	defaults := 0
	for _, s := range l {
		ids = append(ids, s.ID)
		if s.Default {
			defaults++
		}
		if s.Type == "rbd" && (s.Pool == "" || s.ChunkSize != 8<<20) {
			t.Errorf("store %+v", s)
		}
	}
	if !slices.Equal(ids, c.stores()) || (len(ids) > 0 && defaults != 1) {
		t.Errorf("stores %+v, want %v", l, c.stores())
	}
}
