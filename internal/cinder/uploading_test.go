package cinder_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/cinder"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/keystone/keystonetest"
	"github.com/cinderlift/cinderlift/worker"
)

// TestUploads: every page is read, a migrated volume bears its other name, and what does not upload is left out.
func TestUploads(t *testing.T) {
	c := keystonetest.New(t)
	const one, two = restVolume, "aaaaaaaa-0000-4000-8000-000000000009"
	c.Serve(keystone.Volume, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if q.Get("all_tenants") != "1" || q.Get("status") != "uploading" {
			t.Errorf("asked with %q", r.URL.RawQuery)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Openstack-Request-Id", "req-1")
		switch q.Get("marker") {
		case "":
			fmt.Fprintf(w, `{"volumes": [{"id": %q, "status": "uploading", "updated_at": "2026-11-22T16:45:08.000000",
				"os-vol-mig-status-attr:name_id": %q}]}`, one, restNameID)
		case one:
			fmt.Fprintf(w, `{"volumes": [{"id": %q, "status": "available"}, {"id": %q, "status": "uploading", "updated_at": null}]}`, one, two)
		default:
			fmt.Fprint(w, `{"volumes": []}`)
		}
	}))
	r, err := cinder.NewREST(c.Session(t), cinder.RESTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.Uploads(t.Context())
	want := []cinder.Upload{
		{VolumeID: one, Image: "volume-" + restNameID, Since: time.Date(2026, 11, 22, 16, 45, 8, 0, time.UTC)},
		{VolumeID: two, Image: "volume-" + two},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("uploads are %+v, %v, want %+v", got, err, want)
	}
}

func TestUploadsWhileCinderIsAway(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Volume, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }))
	r, err := cinder.NewREST(c.Session(t), cinder.RESTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Uploads(t.Context()); got != nil || worker.ReasonOf(err) != worker.ReasonCinderUnavailable {
		t.Errorf("uploads are %v, %v", got, err)
	}
}
