//go:build lab

package glance_test

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/glance"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/worker"
)

// lossy stands before the real Glance and loses writes: before Glance sees them, or Glance's answers to them.
type lossy struct {
	to     http.Handler
	writes atomic.Int64 // that are still to be lost
	after  bool
	code   int // answer this instead of cutting the connection
}

// ServeHTTP is http.Handler's.
func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet || l.writes.Add(-1) < 0 {
		l.to.ServeHTTP(w, r)

		return
	}
	answer := httptest.NewRecorder()
	if l.after {
		l.to.ServeHTTP(answer, r)
	} else {
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, 1000))
	}
	if l.code == 0 {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), answer.Header())
	w.WriteHeader(l.code)
}

func TestLabFaultsOfEveryWrite(t *testing.T) {
	r := newReal(t)
	target, err := url.Parse(r.env["LAB_GLANCE_URL"])
	must(t, "read LAB_GLANCE_URL", err)
	data := noise(9, 1<<20)
	for name, l := range map[string]*lossy{
		"cut before": {}, "cut after": {after: true}, "502 before": {code: 502}, "504 after": {code: 504, after: true},
	} {
		t.Run(name, func(t *testing.T) {
			l.to = &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(target) }}
			front := httptest.NewServer(l)
			t.Cleanup(front.Close)
			g := glance.New(r.loginThrough(t, front.URL), glance.Options{Poll: 20 * time.Millisecond})
			twice := func(what string, f func() error) {
				t.Helper()
				l.writes.Store(2)
				until(t, 2, retry, f)
			}

			id := r.image(t)
			location, size := r.data(t, id, whole)
			twice("register", func() error { return g.Register(t.Context(), id, location, size) })
			if img := show(t, g, id); img.Status != worker.ImageActive || img.Size != size {
				t.Errorf("registered: %+v", img)
			}
			id = r.image(t)
			twice("upload", func() error { return g.Upload(t.Context(), id, "", bytes.NewReader(data), int64(len(data)), nil) })
			if img := show(t, g, id); img.Status != worker.ImageActive || img.Size != int64(len(data)) {
				t.Errorf("uploaded: %+v", img)
			}
			// The image has data by now, which is not this. It was right when it was given, so it is left as it is.
			err := g.Upload(t.Context(), id, "", bytes.NewReader(noise(10, 1<<20)), int64(len(data)), nil)
			expect(t, "other bytes", err, worker.ReasonMismatch, worker.GiveUp)
			if img := show(t, g, id); img.Status != worker.ImageActive {
				t.Errorf("with other data: %+v", img)
			}
			id = r.image(t)
			twice("discard", func() error { return g.Discard(t.Context(), id) })
			_, err = g.Image(t.Context(), id)
			expect(t, "discarded", err, worker.ReasonImageMissing, worker.GiveUp)
		})
	}
}

// loginThrough is the service's session, with Glance behind another URL.
func (r *real) loginThrough(t *testing.T, glanceURL string) *keystone.Session {
	t.Helper()
	s, err := keystone.Open(t.Context(), keystone.Options{
		AuthURL: r.env["OS_AUTH_URL"], Region: r.env["OS_REGION_NAME"], Username: r.env["LAB_SERVICE_USER"],
		Password: keystone.Secret(r.env["LAB_SERVICE_PASSWORD"]), ProjectName: r.env["LAB_SERVICE_PROJECT"],
		Endpoints: map[keystone.Service]string{keystone.Image: glanceURL},
	})
	must(t, "log in", err)
	t.Cleanup(s.Close)

	return s
}
