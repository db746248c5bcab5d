//go:build lab

package glance_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/glance"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// real is the Glance of the lab that CINDERLIFT_LAB_ENV names.
type real struct {
	env         map[string]string
	demo, admin *keystone.Session
	owner       string
	ids         []string
}

func newReal(t *testing.T) *real {
	t.Helper()
	path := os.Getenv("CINDERLIFT_LAB_ENV")
	f, err := os.Open(path)
	if err != nil {
		t.Fatalf("no lab: CINDERLIFT_LAB_ENV must name the lab.env of a running lab: %v", err)
	}
	defer f.Close()
	r := &real{env: map[string]string{}}
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), "="); ok {
			r.env[k] = strings.Trim(v, `'"`)
		}
	}
	r.demo, r.admin = r.login(t, "DEMO"), r.login(t, "ADMIN")
	r.owner = r.demo.Project()
	r.findStores(t)

	return r
}

func (r *real) login(t *testing.T, who string) *keystone.Session {
	t.Helper()
	s, err := keystone.Open(t.Context(), keystone.Options{
		AuthURL: r.env["OS_AUTH_URL"], Region: r.env["OS_REGION_NAME"], Username: r.env["LAB_"+who+"_USER"],
		Password: keystone.Secret(r.env["LAB_"+who+"_PASSWORD"]), ProjectName: r.env["LAB_"+who+"_PROJECT"],
	})
	must(t, "log in as "+who, err)
	t.Cleanup(s.Close)

	return s
}

// findStores asks as the admin, not by the client that is tested.
func (r *real) findStores(t *testing.T) {
	t.Helper()
	var v struct {
		Stores []struct {
			ID      string `json:"id"`
			Default any    `json:"default"`
		} `json:"stores"`
	}
	r.ask(t, r.admin, keystone.Request{Method: http.MethodGet, Path: "/v2/info/stores"}, &v)
	for _, s := range v.Stores {
		r.ids = append(r.ids, s.ID)
	}
}

func (r *real) ask(t *testing.T, s *keystone.Session, req keystone.Request, v any) {
	t.Helper()
	req.Service, req.What = keystone.Image, req.Method+" "+req.Path
	a, err := s.Do(context.Background(), req)
	must(t, req.What, err)
	if v == nil {
		must(t, req.What, a.Err())

		return
	}
	must(t, req.What, a.Decode(v))
}

func (r *real) session(t *testing.T) *keystone.Session { return r.login(t, "SERVICE") }

func (r *real) project() string { return r.owner }

func (r *real) stores() []string { return r.ids }

func (r *real) image(t *testing.T) string {
	t.Helper()
	var v struct {
		ID string `json:"id"`
	}
	r.ask(t, r.demo, keystone.Request{Method: http.MethodPost, Path: "/v2/images", JSON: map[string]string{
		"name": "cinderlift-test", "disk_format": "raw", "container_format": "bare",
	}}, &v)
	t.Cleanup(func() { r.clean(t, v.ID) })

	return v.ID
}

func (r *real) remove(t *testing.T, id string) {
	t.Helper()
	r.ask(t, r.demo, keystone.Request{Method: http.MethodDelete, Path: "/v2/images/" + id}, nil)
}

// removeHashed removes an active image. Since 29.0.0 Glance hashes the data of a new location in the background, and refuses
// to delete the image meanwhile: 409 (do_secure_hash; glance/async_/flows/location_import.py).
func (r *real) removeHashed(t *testing.T, id string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		a, err := r.demo.Do(context.Background(), keystone.Request{
			Service: keystone.Image, What: "remove", Method: http.MethodDelete, Path: "/v2/images/" + id,
		})
		must(t, "remove", err)
		if a.Code != http.StatusConflict || time.Now().After(deadline) {
			must(t, "remove", a.Err())

			return
		}
	}
}

// clean deletes the image and what a test has left in Ceph.
func (r *real) clean(t *testing.T, id string) {
	t.Helper()
	_, err := r.demo.Do(context.Background(), keystone.Request{
		Service: keystone.Image, What: "clean", Method: http.MethodDelete, Path: "/v2/images/" + id,
	})
	must(t, "clean", err)
	at := r.env["LAB_POOL_IMAGES"] + "/" + id
	from := r.env["LAB_POOL_VOLUMES"] + "/glance-test-" + id
	for _, args := range [][]string{
		{"snap", "unprotect", at + "@snap"}, {"snap", "purge", at}, {"rm", at},
		{"snap", "unprotect", from + "@s"}, {"snap", "purge", from}, {"rm", from},
	} {
		_ = r.command(args...).Run() // mostly there is nothing
	}
}

func (r *real) command(args ...string) *exec.Cmd {
	args = append([]string{"exec", r.env["LAB_GENERATION"], "rbd", "--id", r.env["LAB_CEPH_USER"]}, args...)

	return exec.Command(r.env["LAB_COMMAND"], args...)
}

func (r *real) rbd(t *testing.T, args ...string) {
	t.Helper()
	if out, err := r.command(args...).CombinedOutput(); err != nil {
		t.Fatalf("rbd %v: %v: %s", args, err, out)
	}
}

const realSize = 8 << 20

func (r *real) data(t *testing.T, id string, k kind) (string, int64) {
	t.Helper()
	at := r.env["LAB_POOL_IMAGES"] + "/" + id
	location := fmt.Sprintf("rbd://%s/%s/snap", r.env["LAB_FSID"], at)
	switch k {
	case missing:
		return location, realSize
	case whole:
		r.rbd(t, "create", "--size", fmt.Sprint(realSize>>20), "--image-feature", "layering,exclusive-lock", at)
	case unreadable:
		from := r.env["LAB_POOL_VOLUMES"] + "/glance-test-" + id
		r.rbd(t, "create", "--size", fmt.Sprint(realSize>>20), "--image-feature", "layering,exclusive-lock", from)
		r.rbd(t, "snap", "create", from+"@s")
		r.rbd(t, "snap", "protect", from+"@s")
		r.rbd(t, "clone", "--image-feature", "layering,exclusive-lock,deep-flatten", from+"@s", at)
	}
	r.rbd(t, "snap", "create", at+"@snap")
	r.rbd(t, "snap", "protect", at+"@snap")

	return location, realSize
}

// TestLabConformance needs a lab in its documented state: client.glance may not read the volumes pool.
func TestLabConformance(t *testing.T) { conform(t, newReal(t)) }

// What the client relies on and no status code shows: the pool and, since 30.0.0, the cluster of a store.
func TestLabStoresTellWhereTheyAre(t *testing.T) {
	r := newReal(t)
	l, err := client(t, r).Stores(t.Context())
	must(t, "stores", err)
	i := slices.IndexFunc(l, func(s strategies.Store) bool { return s.Pool == r.env["LAB_POOL_IMAGES"] })
	if i < 0 || l[i].Type != "rbd" || (l[i].FSID != "" && l[i].FSID != r.env["LAB_FSID"]) {
		t.Fatalf("stores %+v", l)
	}
}

// Which release inspects uploads is told by what else came with it.
func TestLabInspects(t *testing.T) {
	r := newReal(t)
	got, err := client(t, r).Inspects(t.Context())
	must(t, "inspects", err)
	if want := r.env["LAB_GENERATION"] != "bookworm"; got != want {
		t.Errorf("Glance of %s inspects: %v", r.env["LAB_GENERATION"], got)
	}
}

// A 404 counts only with a request id on it, so Glance has to put one there.
func TestLabGlanceSignsIts404(t *testing.T) {
	r := newReal(t)
	s := r.session(t)
	for _, path := range []string{"/v2/images/00000000-0000-4000-8000-000000000000", "/v2/info/no-such-page"} {
		a, err := s.Do(t.Context(), keystone.Request{Service: keystone.Image, What: "look", Method: http.MethodGet, Path: path})
		must(t, path, err)
		if a.Code != http.StatusNotFound || !a.Genuine() {
			t.Errorf("%s: %d %v", path, a.Code, a.Header)
		}
	}
}

// The lab's admin lacks the role service, so the location API is closed to it; what is left is PATCH where locations are
// shown, and a refusal that names both where they are not.
func TestLabWithoutTheServiceRole(t *testing.T) {
	r := newReal(t)
	g := glance.New(r.admin, glance.Options{Poll: 20 * time.Millisecond})
	id := r.image(t)
	location, size := r.data(t, id, whole)
	var img map[string]json.RawMessage
	r.ask(t, r.admin, keystone.Request{Method: http.MethodGet, Path: "/v2/images/" + id}, &img)
	err := g.Register(t.Context(), id, location, size)
	if img["locations"] != nil {
		must(t, "register by PATCH", err)

		return
	}
	expect(t, "register", err, worker.ReasonGlanceRefused, worker.OtherWay)
	for _, w := range []string{"show_multiple_locations", "roles admin and service"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not speak of %q", err, w)
		}
	}
}

// Two workers, or one and its successor, may register the same image at the same time. All see it active with that data. Of
// two PATCHes that Glance works on at once each looks for the location before the other has saved it, so the image may name
// it more than once; no patch may mend that, since Glance deletes the data of a location that is taken out. What counts is
// that the owner notices nothing: the image is deleted as any other, and its data with it.
func TestLabRegisterTwiceAtOnce(t *testing.T) {
	r := newReal(t)
	g := glance.New(r.session(t), glance.Options{Poll: 20 * time.Millisecond})
	id := r.image(t)
	location, size := r.data(t, id, whole)
	results := make(chan error, 3)
	for range cap(results) {
		go func() { results <- g.Register(t.Context(), id, location, size) }()
	}
	for range cap(results) {
		must(t, "register", <-results)
	}
	img := show(t, g, id)
	if len(img.Locations) == 0 || slices.ContainsFunc(img.Locations, func(l string) bool { return l != location }) {
		t.Fatalf("%+v", img)
	}
	t.Logf("the image names its location %d times", len(img.Locations))
	r.removeHashed(t, id)
	if out, err := r.command("info", r.env["LAB_POOL_IMAGES"]+"/"+id).CombinedOutput(); err == nil {
		t.Fatalf("the data outlived its image: %s", out)
	}
}

// The transition that Image and Register are built on: after the 202 Glance shows its lock until the task's end.
func TestLabTheLockIsShown(t *testing.T) {
	r := newReal(t)
	s := r.session(t)
	var v struct {
		Versions []struct{ ID string } `json:"versions"`
	}
	r.ask(t, s, keystone.Request{Method: http.MethodGet, Path: "/versions"}, &v)
	if !slices.ContainsFunc(v.Versions, func(e struct{ ID string }) bool { return e.ID == "v2.17" }) {
		t.Log("this Glance has no location API; there is no task to look at")

		return
	}
	id := r.image(t)
	location, _ := r.data(t, id, whole)
	a, err := s.Do(t.Context(), keystone.Request{
		Service: keystone.Image, What: "add location", Method: http.MethodPost, Path: "/v2/images/" + id + "/locations",
		JSON: map[string]string{"url": location}, ServiceToken: true,
	})
	must(t, "add location", err)
	must(t, "add location", a.Err())
	for deadline := time.Now().Add(time.Minute); ; {
		var img map[string]json.RawMessage
		r.ask(t, s, keystone.Request{Method: http.MethodGet, Path: "/v2/images/" + id}, &img)
		if string(img["status"]) != `"queued"` {
			break
		}
		if img["os_glance_import_task"] == nil {
			t.Fatalf("queued without a lock although a task is on its way: %s", img)
		}
		if time.Now().After(deadline) {
			t.Fatal("the task does not end")
		}
	}
}
