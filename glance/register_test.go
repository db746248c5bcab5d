package glance_test

import (
	"context"
	"net/http"
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

// spare are tries that a busy machine may need beyond those that were made to fail: the fakes' time limits are short.
const spare = 10

// until calls f until it succeeds. Every failure must be one after which the runner calls again, and show no secret.
func until(t *testing.T, most int, ok func(error) bool, f func() error) {
	t.Helper()
	for i := 1; ; i++ {
		err := f()
		if err == nil {
			return
		}
		if strings.Contains(err.Error(), keystonetest.Canary) {
			t.Fatalf("a secret is shown: %v", err)
		}
		if i > most+spare || !ok(err) {
			t.Fatalf("try %d: %v (reason %s, advice %d)", i, err, worker.ReasonOf(err), worker.AdviceOf(err))
		}
	}
}

func retry(err error) bool { return worker.AdviceOf(err) == worker.Retry }

// Each fault of the write, once and twice in a row, then recovery: not applied, and applied but reported failed.
func TestRegisterFaults(t *testing.T) {
	for name, config := range map[string]glancetest.Config{
		"PATCH image": {Minor: 15, MultipleLocations: true, Stores: twoStores()},
		"POST image":  {Minor: 17, Stores: twoStores(), TaskLooks: 1},
	} {
		for _, fault := range keystonetest.Faults() {
			for times := 1; times <= 2; times++ {
				t.Run(name+" "+fault.Name, func(t *testing.T) {
					f := newFake(t, config)
					id := f.image(t)
					location, size := f.data(t, id, whole)
					f.Inject(name, slices.Repeat([]keystonetest.Fault{fault}, times)...)
					g := client(t, f)
					// A 500 to the PATCH is also what Glance says when it can't read the image.
					ok := func(err error) bool {
						return retry(err) || worker.ReasonOf(err) == worker.ReasonGlanceUnreadable && fault.Code == 500 && name == "PATCH image"
					}
					until(t, times, ok, func() error { return g.Register(t.Context(), id, location, size) })
					if n := f.glance.Notes(); !slices.Equal(n, []string{"activate " + location}) {
						t.Fatalf("writes %v", n)
					}
				})
			}
		}
	}
}

// Reading back may fail as well.
func TestRegisterReadFaults(t *testing.T) {
	for _, fault := range keystonetest.Faults() {
		for skip := range 3 {
			t.Run(fault.Name, func(t *testing.T) {
				f := newFake(t, glancetest.Config{Minor: 17, TaskLooks: 1})
				id := f.image(t)
				location, size := f.data(t, id, whole)
				var gets atomic.Int64
				f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if gets.Add(1) == int64(skip) {
						f.Inject("GET image", fault, fault)
					}
					f.glance.ServeHTTP(w, r)
				}))
				g := client(t, f)
				until(t, 2, retry, func() error { return g.Register(t.Context(), id, location, size) })
				if n := f.glance.Notes(); !slices.Equal(n, []string{"activate " + location}) {
					t.Fatalf("writes %v", n)
				}
			})
		}
	}
}

func TestRegisterRefusedTellsWhatIsMissing(t *testing.T) {
	for name, tc := range map[string]struct {
		config glancetest.Config
		words  []string
	}{
		"old":    {glancetest.Config{Minor: 15}, []string{"show_multiple_locations"}},
		"strict": {glancetest.Config{Minor: 17, NoService: true, StrictService: true}, []string{"roles admin and service", "show_multiple_locations"}},
		"both":   {glancetest.Config{Minor: 17, NoService: true}, []string{"roles admin and service", "show_multiple_locations"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, tc.config)
			id := f.image(t)
			location, size := f.data(t, id, whole)
			err := client(t, f).Register(t.Context(), id, location, size)
			expect(t, "refused", err, worker.ReasonGlanceRefused, worker.OtherWay)
			for _, w := range tc.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not speak of %q", err, w)
				}
			}
		})
	}
}

func TestTheWayThatWorkedIsTriedFirst(t *testing.T) {
	f := newFake(t, glancetest.Config{Minor: 17, NoService: true, MultipleLocations: true})
	g := glance.New(f.session(t), glance.Options{Poll: time.Millisecond, Remember: time.Hour})
	for i, want := range []int{1, 0} {
		before := len(f.Seen())
		id := f.image(t)
		location, size := f.data(t, id, whole)
		must(t, "register", g.Register(t.Context(), id, location, size))
		posts := 0
		for _, s := range f.Seen()[before:] {
			if strings.HasPrefix(s, "POST") {
				posts++
			}
		}
		if posts != want {
			t.Errorf("image %d: %d POSTs, want %d", i, posts, want)
		}
	}
}

// Where nobody shows us the location, size and store have to do.
func TestRegisterWithHiddenLocations(t *testing.T) {
	f := newFake(t, glancetest.Config{Minor: 17, HideLocations: true, Stores: twoStores()})
	g := client(t, f)
	id := f.image(t)
	location, size := f.data(t, id, whole)
	for range 2 {
		must(t, "register", g.Register(t.Context(), id, location, size))
	}
	expect(t, "size", g.Register(t.Context(), id, location, size+1), worker.ReasonImageState, worker.GiveUp)
	img, _ := f.glance.Image(id)
	img.Store = "rbd2"
	f.glance.Put(img)
	expect(t, "store", g.Register(t.Context(), id, location, size), worker.ReasonImageState, worker.GiveUp)
}

func TestRegisterByState(t *testing.T) {
	for name, tc := range map[string]struct {
		status, task string
		ours         bool
		reason       worker.Reason
		advice       worker.Advice
	}{
		"active, ours":          {"active", "", true, worker.ReasonNone, worker.GiveUp},
		"active, hashing":       {"active", "task", true, worker.ReasonNone, worker.GiveUp},
		"active, other":         {"active", "", false, worker.ReasonImageState, worker.GiveUp},
		"deactivated, ours":     {"deactivated", "", true, worker.ReasonNone, worker.GiveUp},
		"deactivated, other":    {"deactivated", "", false, worker.ReasonImageState, worker.GiveUp},
		"saving for ever":       {"saving", "", false, worker.ReasonImageState, worker.Retry},
		"importing for ever":    {"importing", "task", false, worker.ReasonImageState, worker.Retry},
		"a dead task's lock":    {"queued", "task", false, worker.ReasonImageState, worker.Retry},
		"staged by its user":    {"uploading", "", false, worker.ReasonImageState, worker.GiveUp},
		"killed":                {"killed", "", false, worker.ReasonImageState, worker.GiveUp},
		"deleted, still listed": {"deleted", "", false, worker.ReasonImageMissing, worker.GiveUp},
		"pending delete":        {"pending_delete", "", false, worker.ReasonImageMissing, worker.GiveUp},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, glancetest.Config{Minor: 17})
			id := f.image(t)
			location, size := f.data(t, id, whole)
			img := glancetest.Image{ID: id, Status: tc.status, Task: tc.task, Size: size + 1}
			if tc.status == "active" || tc.status == "deactivated" {
				img.Location = "rbd://elsewhere/images/x/snap"
			}
			if tc.ours {
				img.Location, img.Size = location, size
			}
			f.glance.Put(img)
			g := glance.New(f.session(t), glance.Options{Poll: time.Millisecond, Patience: 20 * time.Millisecond})
			expect(t, "register", g.Register(t.Context(), id, location, size), tc.reason, tc.advice)
			if n := f.glance.Notes(); len(n) != 0 {
				t.Errorf("writes %v", n)
			}
		})
	}
}

// Glance shows such an image as queued; whoever took that at its word could remove the data under the task's feet.
func TestAnAcceptedLocationIsNotQueued(t *testing.T) {
	f := newFake(t, glancetest.Config{Minor: 17})
	id := f.image(t)
	f.glance.Put(glancetest.Image{ID: id, Status: "queued", Task: "task"})
	if s := show(t, client(t, f), id).Status; s != worker.ImageImporting {
		t.Fatalf("status %s", s)
	}
}

func TestRegisterUserDeletesAfterTheAnswer(t *testing.T) {
	for method, config := range map[string]glancetest.Config{"PATCH": {MultipleLocations: true}, "POST": {Minor: 17, TaskLooks: 3}} {
		f := newFake(t, config)
		id := f.image(t)
		location, size := f.data(t, id, whole)
		f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			f.glance.ServeHTTP(w, r)
			if r.Method == method {
				f.glance.Remove(id)
			}
		}))
		expect(t, method, client(t, f).Register(t.Context(), id, location, size), worker.ReasonImageMissing, worker.GiveUp)
	}
}

func TestRegisterEndsWithItsContext(t *testing.T) {
	f := newFake(t, glancetest.Config{Minor: 17})
	id := f.image(t)
	location, size := f.data(t, id, whole)
	f.glance.Put(glancetest.Image{ID: id, Status: "importing"})
	for cause, want := range map[error]worker.Reason{
		worker.ErrLeaseLost: worker.ReasonLeaseLost, worker.ErrStopping: worker.ReasonStopping,
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		var looks atomic.Int64
		f.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if looks.Add(1) == 3 {
				cancel(cause)
			}
			f.glance.ServeHTTP(w, r)
		}))
		expect(t, "register", client(t, f).Register(ctx, id, location, size), want, worker.StandBy)
	}
}

// The other codes that a write may be answered with while the image stays queued.
func TestRegisterCodes(t *testing.T) {
	for name, config := range map[string]glancetest.Config{
		"PATCH image": {Minor: 15, MultipleLocations: true}, "POST image": {Minor: 17},
	} {
		for code, want := range map[int]struct {
			reason worker.Reason
			advice worker.Advice
		}{
			409: {worker.ReasonImageState, worker.Retry}, 413: {worker.ReasonGlanceFull, worker.GiveUp},
			429: {worker.ReasonGlanceUnavailable, worker.Retry}, 503: {worker.ReasonGlanceUnavailable, worker.Retry},
			403: {worker.ReasonGlanceRefused, worker.OtherWay}, 405: {worker.ReasonGlanceRefused, worker.OtherWay},
			404: {worker.ReasonGlanceRefused, worker.OtherWay}, 302: {worker.ReasonGlanceRefused, worker.Retry},
		} {
			f := newFake(t, config)
			id := f.image(t)
			location, size := f.data(t, id, whole)
			f.Inject(name, keystonetest.Fault{Code: code})
			err := client(t, f).Register(t.Context(), id, location, size)
			expect(t, name+" "+http.StatusText(code), err, want.reason, want.advice)
		}
	}
}

func TestRegisterWhatIsNoRBD(t *testing.T) {
	f := newFake(t, glancetest.Config{Minor: 17})
	id := f.image(t)
	for _, location := range []string{"", "http://example.org/x", "file:///etc/passwd", "cinder://1"} {
		expect(t, location, client(t, f).Register(t.Context(), id, location, 1), worker.ReasonInternal, worker.GiveUp)
	}
}

func TestDiscardFaults(t *testing.T) {
	for _, fault := range keystonetest.Faults() {
		for times := 1; times <= 2; times++ {
			t.Run(fault.Name, func(t *testing.T) {
				f := newFake(t, glancetest.Config{})
				id := f.image(t)
				f.Inject("DELETE image", slices.Repeat([]keystonetest.Fault{fault}, times)...)
				g := client(t, f)
				until(t, times, retry, func() error { return g.Discard(t.Context(), id) })
				if _, there := f.glance.Image(id); there || len(f.glance.Notes()) != 1 {
					t.Fatalf("there %t, writes %v", there, f.glance.Notes())
				}
			})
		}
	}
}

func TestDiscardByState(t *testing.T) {
	for status, gone := range map[string]bool{
		"queued": true, "saving": true, "importing": true, "killed": true,
		"active": false, "deactivated": false, "uploading": false, "something new": false,
	} {
		f := newFake(t, glancetest.Config{})
		id := f.image(t)
		f.glance.Put(glancetest.Image{ID: id, Status: status, Location: "x"})
		must(t, status, client(t, f).Discard(t.Context(), id))
		if _, there := f.glance.Image(id); there == gone {
			t.Errorf("%s: there %t", status, there)
		}
	}
}

// A protected image can't be deleted, and that is its user's wish.
func TestDiscardForbidden(t *testing.T) {
	f := newFake(t, glancetest.Config{})
	id := f.image(t)
	f.Inject("DELETE image", keystonetest.Fault{Code: 403})
	expect(t, "discard", client(t, f).Discard(t.Context(), id), worker.ReasonGlanceRefused, worker.GiveUp)
}

func TestStoresWhereTheyAreNotTold(t *testing.T) {
	for code, want := range map[int]worker.Reason{
		403: worker.ReasonNone, 404: worker.ReasonNone, 500: worker.ReasonGlanceUnavailable, 400: worker.ReasonGlanceRefused,
	} {
		f := newFake(t, glancetest.Config{Stores: twoStores(), StoresCode: code})
		l, err := client(t, f).Stores(t.Context())
		if worker.ReasonOf(err) != want || len(l) != 0 {
			t.Errorf("%d: %v, %v", code, l, err)
		}
	}
}

// TestInspects: what tells releases apart.
func TestInspects(t *testing.T) {
	unknown := []glancetest.Store{{ID: "a", Type: "rbd", Pool: "images", Default: true}}
	for name, c := range map[string]struct {
		config glancetest.Config
		want   bool
	}{
		"25":                        {glancetest.Config{Minor: 15, Stores: twoStores(), NoFSID: true}, false},
		"28 with a cache":           {glancetest.Config{Minor: 16, Stores: twoStores(), NoFSID: true}, false},
		"28, one store":             {glancetest.Config{Minor: 15}, false},
		"29":                        {glancetest.Config{Minor: 17, Stores: twoStores(), NoFSID: true}, false},
		"29, one store":             {glancetest.Config{Minor: 17}, true}, // can't be told from 30
		"29, stores are not for us": {glancetest.Config{Minor: 17, Stores: twoStores(), NoFSID: true, StoresCode: 403}, true},
		"30":                        {glancetest.Config{Minor: 17, Stores: twoStores()}, true},
		"30 that does not know":     {glancetest.Config{Minor: 17, Stores: unknown}, true},
		"33":                        {glancetest.Config{Minor: 18, Stores: twoStores()}, true},
	} {
		got, err := client(t, newFake(t, c.config)).Inspects(t.Context())
		if err != nil || got != c.want {
			t.Errorf("%s: %v, %v, want %v", name, got, err, c.want)
		}
	}
	_, err := client(t, newFake(t, glancetest.Config{Minor: 17, StoresCode: 500})).Inspects(t.Context())
	expect(t, "stores are away", err, worker.ReasonGlanceUnavailable, worker.Retry)
}

func TestA404ThatIsNotGlances(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Del("X-Openstack-Request-Id")
		w.WriteHeader(404)
	}))
	g := glance.New(c.Session(t), glance.Options{})
	const id = "00000000-0000-4000-8000-000000000000"
	_, err := g.Image(t.Context(), id)
	expect(t, "image", err, worker.ReasonGlanceUnavailable, worker.Retry)
	expect(t, "discard", g.Discard(t.Context(), id), worker.ReasonGlanceUnavailable, worker.Retry)
	_, err = g.Stores(t.Context())
	expect(t, "stores", err, worker.ReasonGlanceUnavailable, worker.Retry)
}
