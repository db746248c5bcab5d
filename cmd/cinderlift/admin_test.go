package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

type answer struct {
	Ready bool
	Away  map[string]string
}

func ask(t *testing.T, h http.Handler) (int, answer) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/readyz", nil))
	var r answer
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
		t.Fatalf("%v in %s", err, w.Body)
	}

	return w.Code, r
}

func TestReadinessNamesWhatIsAway(t *testing.T) {
	g := &worker.Gate{}
	h := readiness(g)
	if code, r := ask(t, h); code != http.StatusOK || !r.Ready {
		t.Errorf("nothing is away, and it answers %d %v", code, r)
	}
	g.Set("ceph", errors.New("no answer"))
	g.Set("bus", errors.New("connection refused"))
	g.Set("bus", nil)
	code, r := ask(t, h)
	if code != http.StatusServiceUnavailable || r.Ready || len(r.Away) != 1 || r.Away["ceph"] != "no answer" {
		t.Errorf("Ceph is away, and it answers %d %v", code, r)
	}
}

// TestProbe: what answers is there, what fails is away with its reason, and so is what hangs; the end of ctx ends it.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const every = 5 * time.Second
		g := &worker.Gate{}
		h := readiness(g)
		ctx, stop := context.WithCancel(t.Context())
		mood := make(chan error, 1)
		go probe(ctx, g, every, "ceph", func(ctx context.Context) error {
			select {
			case err := <-mood:
				return err
			case <-ctx.Done(): // hangs, but knows its context
				return ctx.Err()
			}
		})
		for _, tt := range []struct {
			answer error
			want   string
		}{{nil, ""}, {errors.New("refused"), "refused"}, {nil, ""}} {
			mood <- tt.answer
			synctest.Wait()
			if _, r := ask(t, h); r.Away["ceph"] != tt.want {
				t.Errorf("after answer %v it says %q", tt.answer, r.Away["ceph"])
			}
			<-time.After(every)
		}
		<-time.After(every)
		synctest.Wait()
		if _, r := ask(t, h); r.Away["ceph"] != "no answer in 5s" {
			t.Errorf("Ceph hangs, and it says %q", r.Away["ceph"])
		}
		stop()
		synctest.Wait()
	})
}

func TestAdminAddresses(t *testing.T) {
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("series")) })
	s := adminServer(metrics, readiness(&worker.Gate{}))
	for path, want := range map[string]int{"/metrics": 200, "/livez": 200, "/readyz": 200, "/": 404, "/debug/pprof/": 404} {
		w := httptest.NewRecorder()
		s.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != want {
			t.Errorf("%s answers %d, want %d", path, w.Code, want)
		}
	}
	w := httptest.NewRecorder()
	s.Handler.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST answers %d", w.Code)
	}
}

// TestAddressInUse: a worker that can't be watched must not begin.
func TestAddressInUse(t *testing.T) {
	taken := httptest.NewServer(http.NotFoundHandler())
	defer taken.Close()
	_, err := serveAdmin(t.Context(), taken.Listener.Addr().String(), adminServer(http.NotFoundHandler(), http.NotFoundHandler()),
		slog.New(slog.DiscardHandler))
	if err == nil {
		t.Error("listens on an address in use")
	}
}
