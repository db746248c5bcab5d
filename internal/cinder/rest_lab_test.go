//go:build lab

package cinder_test

import (
	"bufio"
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/cinder"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// restLab is the Cinder of the lab that CINDERLIFT_LAB_ENV names.
type restLab struct {
	env   map[string]string
	demo  *keystone.Session
	admin *keystone.Session
	rest  *cinder.REST
}

func newRESTLab(t *testing.T) *restLab {
	t.Helper()
	f, err := os.Open(os.Getenv("CINDERLIFT_LAB_ENV"))
	if err != nil {
		t.Fatalf("no lab: CINDERLIFT_LAB_ENV must name the lab.env of a running lab: %v", err)
	}
	defer f.Close()
	l := &restLab{env: map[string]string{}}
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), "="); ok {
			l.env[k] = strings.Trim(v, `'"`)
		}
	}
	l.demo, l.admin = l.login(t, "DEMO"), l.login(t, "ADMIN")
	if l.rest, err = cinder.NewREST(l.login(t, "SERVICE"), cinder.RESTOptions{Remember: time.Nanosecond}); err != nil {
		t.Fatal(err)
	}

	return l
}

func (l *restLab) login(t *testing.T, who string) *keystone.Session {
	t.Helper()
	s, err := keystone.Open(t.Context(), keystone.Options{
		AuthURL: l.env["OS_AUTH_URL"], Region: l.env["OS_REGION_NAME"], Username: l.env["LAB_"+who+"_USER"],
		Password: keystone.Secret(l.env["LAB_"+who+"_PASSWORD"]), ProjectName: l.env["LAB_"+who+"_PROJECT"],
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)

	return s
}

func (l *restLab) ask(t *testing.T, s *keystone.Session, method, path string, body, v any) {
	t.Helper()
	a, err := s.Do(context.Background(), keystone.Request{
		Service: keystone.Volume, What: method + " " + path, Method: method, Path: path, JSON: body,
		Header: http.Header{"Openstack-Api-Version": {"volume 3.54"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Err(); err != nil {
		t.Fatal(err)
	}
	if v == nil {
		return
	}
	if err := a.Decode(v); err != nil {
		t.Fatal(err)
	}
}

// volume makes one of 1 GiB and waits until it is there. A scheduler that was started a moment ago knows no back end yet
// and puts the volume into error; then another one is made.
func (l *restLab) volume(t *testing.T) string {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for time.Now().Before(deadline) {
		var v struct {
			Volume struct{ ID, Status string }
		}
		l.ask(t, l.demo, http.MethodPost, "/volumes", map[string]any{"volume": map[string]any{"size": 1, "name": "cinderlift-test"}}, &v)
		id := v.Volume.ID
		t.Cleanup(func() {
			l.status(t, id, "available")
			l.ask(t, l.demo, http.MethodDelete, "/volumes/"+id, nil, nil)
		})
		for v.Volume.Status != "available" && v.Volume.Status != "error" && time.Now().Before(deadline) {
			<-time.After(200 * time.Millisecond)
			l.ask(t, l.demo, http.MethodGet, "/volumes/"+id, nil, &v)
		}
		if v.Volume.Status == "available" {
			return id
		}
	}
	t.Fatal("no volume becomes available")

	return ""
}

// status brings a volume into a state, as the API does for an upload.
func (l *restLab) status(t *testing.T, id, status string) {
	t.Helper()
	l.ask(t, l.admin, http.MethodPost, "/volumes/"+id+"/action", map[string]any{"os-reset_status": map[string]string{"status": status}}, nil)
}

func TestLabRESTVolumeAndBackend(t *testing.T) {
	l := newRESTLab(t)
	id := l.volume(t)
	got, err := l.rest.Volume(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	want := worker.Volume{
		ID: id, Name: "volume-" + id, Status: "available", ProjectID: l.demo.Project(), Host: got.Host, SizeGiB: 1,
	}
	if got != want || !strings.HasPrefix(got.Host, l.env["LAB_CINDER_HOST"]+"#") {
		t.Errorf("%+v, want %+v on %s", got, want, l.env["LAB_CINDER_HOST"])
	}
	b, err := l.rest.Backend(t.Context(), got.Host)
	if err != nil || b != (strategies.Backend{FSID: l.env["LAB_FSID"], Pool: l.env["LAB_POOL_VOLUMES"]}) {
		t.Errorf("backend %+v, %v", b, err)
	}
}

func TestLabRESTStoreOfTheType(t *testing.T) {
	l := newRESTLab(t)
	id := l.volume(t)
	var v struct {
		Type struct{ ID string } `json:"volume_type"`
	}
	l.ask(t, l.admin, http.MethodPost, "/types", map[string]any{"volume_type": map[string]any{
		"name": "cinderlift-test-" + id, "os-volume-type-access:is_public": false,
		"extra_specs": map[string]string{"volume_backend_name": "rbd", "image_service:store_id": "rbd"},
	}}, &v)
	t.Cleanup(func() { l.ask(t, l.admin, http.MethodDelete, "/types/"+v.Type.ID, nil, nil) })
	l.ask(t, l.admin, http.MethodPost, "/types/"+v.Type.ID+"/action",
		map[string]any{"addProjectAccess": map[string]string{"project": l.demo.Project()}}, nil)
	retype := func(to string) {
		l.ask(t, l.demo, http.MethodPost, "/volumes/"+id+"/action",
			map[string]any{"os-retype": map[string]string{"new_type": to, "migration_policy": "never"}}, nil)
	}
	retype(v.Type.ID)
	t.Cleanup(func() { retype("__DEFAULT__"); l.await(t, id, "") })
	l.await(t, id, "rbd")
}

// await waits until the volume is available and wants its images in store.
func (l *restLab) await(t *testing.T, id, store string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		got, err := l.rest.Volume(context.Background(), id)
		if err != nil {
			t.Fatal(err)
		}
		if got.StoreID == store && got.Status == "available" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("%+v, want store %q", got, store)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func TestLabRESTResetStatus(t *testing.T) {
	l := newRESTLab(t)
	id := l.volume(t)
	for from, to := range map[string]string{"uploading": "available", "error": "error", "available": "available"} {
		l.status(t, id, from)
		for range 2 {
			if err := l.rest.ResetStatus(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := l.rest.Volume(t.Context(), id); err != nil || got.Status != to {
			t.Errorf("from %s to %s, %v; want %s", from, got.Status, err, to)
		}
	}
}

// An attached volume goes back to in-use, and one that was detached during the upload to available.
func TestLabRESTResetStatusOfAnAttachedVolume(t *testing.T) {
	l := newRESTLab(t)
	id := l.volume(t)
	var v struct{ Attachment struct{ ID string } }
	l.ask(t, l.demo, http.MethodPost, "/attachments", map[string]any{"attachment": map[string]any{
		"volume_uuid": id, "instance_uuid": "00000000-0000-4000-8000-000000000001",
		"connector": map[string]any{"host": "nowhere", "initiator": "none", "multipath": false},
	}}, &v)
	l.ask(t, l.demo, http.MethodPost, "/attachments/"+v.Attachment.ID+"/action", map[string]any{"os-complete": map[string]any{}}, nil)
	check := func(attached bool, want string) {
		t.Helper()
		l.status(t, id, "uploading")
		got, err := l.rest.Volume(t.Context(), id)
		if err != nil || got.Attached != attached || got.Status != worker.VolumeUploading {
			t.Errorf("%+v, %v; want attached %t", got, err, attached)
		}
		if err := l.rest.ResetStatus(t.Context(), id); err != nil {
			t.Error(err)
		}
		if got, err := l.rest.Volume(t.Context(), id); err != nil || got.Status != want {
			t.Errorf("%+v, %v; want %s", got, err, want)
		}
	}
	check(true, "in-use")
	// Nova deletes attachments with a service token; Cinder wants one since OSSA-2023-003.
	a, err := l.login(t, "SERVICE").Do(t.Context(), keystone.Request{
		Service: keystone.Volume, What: "detach", Method: http.MethodDelete, Path: "/attachments/" + v.Attachment.ID,
		Header: http.Header{"Openstack-Api-Version": {"volume 3.54"}}, ServiceToken: true,
	})
	if err != nil || a.Err() != nil {
		t.Fatal(err, a.Err())
	}
	check(false, "available")
	// One that is only reserved is not shown with the volume, and counts all the same. Setting the status changes the record.
	l.ask(t, l.demo, http.MethodPost, "/attachments", map[string]any{"attachment": map[string]any{
		"volume_uuid": id, "instance_uuid": "00000000-0000-4000-8000-000000000002",
	}}, &v)
	_, before, err := l.rest.Touched(t.Context(), id)
	if err != nil || before == "" {
		t.Errorf("touched at %q, %v", before, err)
	}
	<-time.After(1100 * time.Millisecond) // the database counts seconds
	check(false, "in-use")
	if status, after, err := l.rest.Touched(t.Context(), id); err != nil || after == before || status != "in-use" {
		t.Errorf("%s at %q, before %q, %v", status, after, before, err)
	}
	a, err = l.login(t, "SERVICE").Do(t.Context(), keystone.Request{
		Service: keystone.Volume, What: "detach", Method: http.MethodDelete, Path: "/attachments/" + v.Attachment.ID,
		Header: http.Header{"Openstack-Api-Version": {"volume 3.54"}}, ServiceToken: true,
	})
	if err != nil || a.Err() != nil {
		t.Fatal(err, a.Err())
	}
}

// A 404 counts only with a request id on it, so Cinder has to put one there.
func TestLabRESTVolumeThatIsNotThere(t *testing.T) {
	l := newRESTLab(t)
	const id = "00000000-0000-4000-8000-000000000000"
	if _, err := l.rest.Volume(t.Context(), id); worker.ReasonOf(err) != worker.ReasonVolumeMissing {
		t.Error(err)
	}
	if err := l.rest.ResetStatus(t.Context(), id); err != nil {
		t.Error(err)
	}
}
