package cinder_test

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/cinder"
	"github.com/cinderlift/cinderlift/internal/cinder/cindertest"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/keystone/keystonetest"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

const (
	restVolume = "aaaaaaaa-0000-4000-8000-000000000001"
	restNameID = "aaaaaaaa-0000-4000-8000-000000000002"
	restFSID   = "9d257340-7291-4b71-89ed-027b8fd153b8"
)

func restServer(t *testing.T) (*cinder.REST, *cindertest.Server, *keystonetest.Cloud) {
	t.Helper()
	c := keystonetest.New(t)
	s := &cindertest.Server{Minor: 71, Pools: map[string]string{}}
	c.Serve(keystone.Volume, s)
	r, err := cinder.NewREST(c.Session(t), cinder.RESTOptions{Remember: time.Nanosecond, WriteTimeout: 250 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}

	return r, s, c
}

func TestRESTVolume(t *testing.T) {
	full := cindertest.Volume{
		ID: restVolume, NameID: restNameID, Status: "uploading", Host: "h@rbd#RBD", Cluster: "c@rbd#RBD", Project: "p",
		TypeID: "t1", Size: 7, Attachments: 1, Encrypted: true,
	}
	want := worker.Volume{
		ID: restVolume, Name: "volume-" + restNameID, Status: "uploading", ProjectID: "p", Host: "h@rbd#RBD",
		Cluster: "c@rbd#RBD", SizeGiB: 7, Attached: true, Encrypted: true, StoreID: "fast",
	}
	oldest := want
	oldest.Cluster = ""
	plain := cindertest.Volume{ID: restVolume, Status: "available", Host: "h@rbd#RBD", Project: "p", TypeID: "gone"}
	for _, tc := range []struct {
		name  string
		minor int
		v     cindertest.Volume
		want  worker.Volume
	}{
		{"all fields", 71, full, want},
		{"without type id", 61, full, want},
		{"without cluster", 0, full, oldest},
		{"plain", 71, plain, worker.Volume{ID: restVolume, Name: "volume-" + restVolume, Status: "available", ProjectID: "p", Host: "h@rbd#RBD"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, s, _ := restServer(t)
			s.Minor = tc.minor
			s.PutType(cindertest.Type{ID: "t0", Name: "other", Specs: map[string]string{"image_service:store_id": "slow"}})
			s.PutType(cindertest.Type{ID: "t1", Name: "mine", Specs: map[string]string{"image_service:store_id": "fast"}})
			s.Put(tc.v)
			for range 2 { // the second finds a negotiated version
				got, err := r.Volume(t.Context(), restVolume)
				if err != nil || got != tc.want {
					t.Fatalf("%+v, %v; want %+v", got, err, tc.want)
				}
			}
		})
	}
}

func TestRESTVolumeThatCantBeShown(t *testing.T) {
	r, s, c := restServer(t)
	check := func(name, id string, reason worker.Reason, advice worker.Advice) {
		t.Helper()
		if _, err := r.Volume(t.Context(), id); worker.ReasonOf(err) != reason || worker.AdviceOf(err) != advice {
			t.Errorf("%s: %v, advice %v", name, err, worker.AdviceOf(err))
		}
	}
	check("missing", restVolume, worker.ReasonVolumeMissing, worker.GiveUp)
	for _, id := range []string{"", "..", "x/../../types", strings.ToUpper(restVolume), "{" + restVolume + "}"} {
		check("id "+id, id, worker.ReasonBadRequest, worker.GiveUp)
	}
	for _, f := range keystonetest.Faults() {
		s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Host: "h", Project: "p"})
		c.Inject("GET volume", f, f) // net/http tries a GET once more when a kept connection turns out to be dead
		check(f.Name, restVolume, worker.ReasonCinderUnavailable, worker.Retry)
		c.Forgive()
	}
	s.Put(cindertest.Volume{ID: restVolume, NameID: "../x", Status: "uploading", Host: "h", Project: "p"})
	check("bad name_id", restVolume, worker.ReasonCinderRefused, worker.GiveUp)
	s.Hidden = true
	s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Host: "h", Project: "p"})
	check("not admin", restVolume, worker.ReasonCinderRefused, worker.GiveUp)
}

// A proxy that has lost its backend may answer 404; the volume is not gone because of that.
func TestREST404ThatIsNotCinders(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Volume, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Del("X-Openstack-Request-Id")
		w.WriteHeader(404)
	}))
	r, err := cinder.NewREST(c.Session(t), cinder.RESTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Volume(t.Context(), restVolume); worker.ReasonOf(err) != worker.ReasonCinderUnavailable {
		t.Errorf("volume: %v", err)
	}
	if err := r.ResetStatus(t.Context(), restVolume); worker.ReasonOf(err) != worker.ReasonCinderUnavailable {
		t.Errorf("reset: %v", err)
	}
}

func TestRESTResetStatus(t *testing.T) {
	for _, tc := range []struct {
		status      string
		attachments int
		reserved    int // attachments that the volume does not show
		want        string
		writes      int
	}{
		{"uploading", 0, 0, "available", 1}, {"uploading", 1, 0, "in-use", 1}, {"uploading", 2, 0, "in-use", 1},
		{"uploading", 0, 1, "in-use", 1}, {"uploading", 1, 1, "in-use", 1},
		{"available", 0, 0, "available", 0}, {"in-use", 1, 0, "in-use", 0}, {"deleting", 0, 0, "deleting", 0}, {"error", 0, 0, "error", 0},
		{"", 0, 0, "", 0},
	} {
		r, s, _ := restServer(t)
		if tc.status != "" {
			s.Put(cindertest.Volume{ID: restVolume, Status: tc.status, Attachments: tc.attachments, Reserved: tc.reserved})
			s.Put(cindertest.Volume{ID: restNameID, Status: "in-use", Attachments: 1}) // another one's don't count
		}
		if err := r.ResetStatus(t.Context(), restVolume); err != nil {
			t.Errorf("%s: %v", tc.status, err)
		}
		if s.Status(restVolume) != tc.want || len(s.Resets()) != tc.writes {
			t.Errorf("%s: now %s after %v", tc.status, s.Status(restVolume), s.Resets())
		}
	}
}

// What can't be found out is not guessed: the list of attachments is asked again, and a Cinder without one shows all.
func TestRESTResetStatusWithoutTheList(t *testing.T) {
	for _, code := range []int{http.StatusServiceUnavailable, http.StatusBadGateway} {
		r, s, c := restServer(t)
		s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Reserved: 1})
		var looks atomic.Int32
		c.Serve(keystone.Volume, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if strings.HasSuffix(req.URL.Path, "/attachments") && looks.Add(1) == 1 {
				w.WriteHeader(code)

				return
			}
			s.ServeHTTP(w, req)
		}))
		if err := r.ResetStatus(t.Context(), restVolume); worker.AdviceOf(err) != worker.Retry || len(s.Resets()) != 0 {
			t.Errorf("%d: %v, set %v", code, err, s.Resets())
		}
		err := r.ResetStatus(t.Context(), restVolume)
		for n := 0; worker.AdviceOf(err) == worker.Retry && n < 10; n++ { // a busy machine may need some tries
			err = r.ResetStatus(t.Context(), restVolume)
		}
		if err != nil || s.Status(restVolume) != "in-use" {
			t.Errorf("%d: %v, now %s", code, err, s.Status(restVolume))
		}

	}
	r, s, _ := restServer(t)
	s.Minor = 0
	s.Put(cindertest.Volume{ID: restVolume, Status: "uploading"})
	if err := r.ResetStatus(t.Context(), restVolume); err != nil || s.Status(restVolume) != "available" {
		t.Errorf("old Cinder: %v, now %s", err, s.Status(restVolume))
	}
}

func TestRESTTouched(t *testing.T) {
	r, s, _ := restServer(t)
	s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Updated: "2026-11-22T16:40:47.000000"})
	status, at, err := r.Touched(t.Context(), restVolume)
	if status != "uploading" || at != "2026-11-22T16:40:47.000000" || err != nil {
		t.Errorf("%q, %q, %v", status, at, err)
	}
	s.Remove(restVolume)
	if status, at, err = r.Touched(t.Context(), restVolume); status != "" || at != "" || err != nil {
		t.Errorf("gone: %q, %q, %v", status, at, err)
	}
}

// Every fault of the write, once and twice in a row, then recovery: the volume ends free and is written from uploading only.
func TestRESTResetStatusFaults(t *testing.T) {
	for _, f := range keystonetest.Faults() {
		for times := 1; times <= 2; times++ {
			t.Run(f.Name, func(t *testing.T) {
				r, s, c := restServer(t)
				s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Attachments: 1})
				for range times {
					c.Inject("POST volume", f)
				}
				for i := 1; ; i++ {
					err := r.ResetStatus(t.Context(), restVolume)
					if err == nil {
						break
					}
					if worker.AdviceOf(err) != worker.Retry || i > times+10 { // a busy machine may need some more
						t.Fatalf("try %d: %v", i, err)
					}
				}
				if s.Status(restVolume) != "in-use" || len(s.Resets()) != 1 {
					t.Fatalf("now %s after %v", s.Status(restVolume), s.Resets())
				}
			})
		}
	}
}

func TestRESTResetStatusRaces(t *testing.T) {
	t.Run("detached between look and write", func(t *testing.T) {
		r, s, _ := restServer(t)
		s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Attachments: 1})
		s.Before = func(r *http.Request, v *cindertest.Volume) {
			if r.Method == http.MethodPost {
				v.Attachments = 0
			}
		}
		if err := r.ResetStatus(t.Context(), restVolume); err != nil || s.Status(restVolume) != "available" {
			t.Fatalf("%v, now %s", err, s.Status(restVolume))
		}
	})
	t.Run("a second upload begins after the write", func(t *testing.T) {
		r, s, _ := restServer(t)
		s.Put(cindertest.Volume{ID: restVolume, Status: "uploading"})
		s.Before = func(r *http.Request, v *cindertest.Volume) {
			if r.Method == http.MethodGet && v.Status == "available" {
				v.Status = "uploading"
			}
		}
		if err := r.ResetStatus(t.Context(), restVolume); err != nil || len(s.Resets()) != 1 {
			t.Fatalf("%v after %v", err, s.Resets())
		}
	})
	t.Run("not allowed", func(t *testing.T) {
		r, s, _ := restServer(t)
		s.Hidden = true
		s.Put(cindertest.Volume{ID: restVolume, Status: "uploading"})
		err := r.ResetStatus(t.Context(), restVolume)
		if worker.ReasonOf(err) != worker.ReasonCinderRefused || worker.AdviceOf(err) != worker.GiveUp {
			t.Fatal(err)
		}
	})
}

func TestRESTBackend(t *testing.T) {
	r, s, _ := restServer(t)
	here := strategies.Backend{FSID: restFSID, Pool: "volumes"}
	s.Pools = map[string]string{
		"h1@rbd#RBD":     "ceph:/etc/ceph/ceph.conf:" + restFSID + ":cinder:volumes",
		"h2@odd#RBD":     "ceph:/etc/a:b/c.conf:" + restFSID + ":cinder:volumes",
		"c1@aa#AA":       "ceph:/etc/ceph/ceph.conf:" + restFSID + ":cinder:volumes",
		"h1@double#RBD":  "ceph:x:" + restFSID + ":cinder:one",
		"h2@double#RBD":  "ceph:x:" + restFSID + ":cinder:two",
		"h1@lvm#LVM":     "LVMVolumeDriver:h1:cinder-volumes:thin:0",
		"h1@nothing#RBD": "",
		"h1@short#RBD":   restFSID + ":cinder:volumes",
	}
	for host, want := range map[string]strategies.Backend{
		"h1@rbd#RBD": here, "h2@odd#RBD": here, "h7@rbd#RBD": here, "h7@aa#AA": here,
		"h1@double#RBD": {FSID: restFSID, Pool: "one"}, "h3@double#RBD": {}, // ambiguous
		"h1@lvm#LVM": {}, "h1@nothing#RBD": {}, "h1@short#RBD": {}, "h1@unknown#RBD": {}, "": {}, "h1": {},
	} {
		if got, err := r.Backend(t.Context(), host); err != nil || got != want {
			t.Errorf("%q: %+v, %v; want %+v", host, got, err, want)
		}
	}
	s.Hidden = true
	if got, err := r.Backend(t.Context(), "h1@rbd#RBD"); err != nil || got != (strategies.Backend{}) {
		t.Errorf("forbidden: %+v, %v", got, err)
	}
}

func TestRESTRemembersBackendsAndTypes(t *testing.T) {
	c := keystonetest.New(t)
	s := &cindertest.Server{Minor: 71, Pools: map[string]string{"h@rbd#RBD": "ceph:x:" + restFSID + ":cinder:volumes"}}
	c.Serve(keystone.Volume, s)
	s.PutType(cindertest.Type{ID: "t", Name: "t"})
	s.Put(cindertest.Volume{ID: restVolume, Status: "uploading", Host: "h@rbd#RBD", Project: "p", TypeID: "t"})
	r, err := cinder.NewREST(c.Session(t), cinder.RESTOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := r.Backend(t.Context(), "h@rbd#RBD"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Volume(t.Context(), restVolume); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.Seen()); n != 1+1+3 { // the pools, the types, and each time the volume
		t.Fatalf("%d requests: %v", n, c.Seen())
	}
}

func TestNewRESTRefusesTemplatesThatNameNoVolume(t *testing.T) {
	for template, ok := range map[string]bool{
		"": true, "volume-%s": true, "%s": true, "volume": false, "%s-%s": false, "volume-%d": false, "v%%-%s": false,
	} {
		if _, err := cinder.NewREST(nil, cinder.RESTOptions{NameTemplate: template}); (err == nil) != ok {
			t.Errorf("%q: %v", template, err)
		}
	}
}
