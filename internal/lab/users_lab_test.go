//go:build lab

package lab_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/lab"
)

// lookEvery is how soon a worker sees that a user has changed their mind.
const lookEvery = time.Second

// moment is where a job is held: a step that has not begun its work yet, or has done it all and does not return.
type moment struct{ way, fault string }

// beforeTheCommit are moments at which a job can still be called off, in a step of each kind.
func beforeTheCommit() []moment {
	if !thorough() {
		return []moment{
			{"early", "clone-flatten/snapshot/hang-after"}, {"early", "clone-flatten/clone/hang-after"},
			{"late", "clone-flatten/flatten/hang-after"}, {"copy", "copy/copy-objects/hang-after"},
			{"export", "export-upload/upload/hang"},
		}
	}
	var all []moment
	for way, steps := range map[string][]string{
		"early":  {"clone-flatten/snapshot", "clone-flatten/inspect", "clone-flatten/protect", "clone-flatten/clone", "clone-flatten/seal", "clone-flatten/register"},
		"late":   {"clone-flatten/clone", "clone-flatten/flatten", "clone-flatten/register"},
		"copy":   {"copy/snapshot", "copy/inspect", "copy/copy-objects", "copy/seal", "copy/register"},
		"export": {"export-upload/snapshot", "export-upload/inspect", "export-upload/upload"},
	} {
		for _, step := range steps {
			all = append(all, moment{way, step + "/hang"})
			if !strings.HasSuffix(step, "/register") && !strings.HasSuffix(step, "/upload") {
				all = append(all, moment{way, step + "/hang-after"})
			}
		}
	}

	return all
}

// holding runs f for each moment, with a job that is held there. Its worker looks often.
func holding(t *testing.T, name string, moments []moment, f func(l *lane, p *lab.Worker, image string)) {
	t.Helper()
	w := within(t, 40*time.Minute)
	binary := w.faulty()
	d := w.atDesk("volume_manager")
	t.Run("moments", func(t *testing.T) {
		byWay := map[string][]moment{}
		for _, m := range moments {
			byWay[m.way] = append(byWay[m.way], m)
		}
		for way, list := range byWay {
			t.Run(way, func(t *testing.T) {
				t.Parallel()
				for _, m := range list {
					t.Run(slashless(m.fault), func(t *testing.T) {
						v := wayOf(way)
						v.set = with(v.set, map[string]string{"CINDERLIFT_LOOK": lookEvery.String()})
						l := w.of(t, 4*time.Minute).lane(d, name+"-"+slashless(m.fault), v, 3)
						p := l.start(binary, map[string]string{"CINDERLIFT_FAULT": m.fault, "CINDERLIFT_SCAN_EVERY": "10m"})
						f(l, p, l.firing(p, cell{count: 1}))
					})
				}
			})
		}
	})
}

// TestUserDeletesImage: the job stops, everything made for it is removed, and the volume is free.
func TestUserDeletesImage(t *testing.T) {
	holding(t, "delete", beforeTheCommit(), func(l *lane, p *lab.Worker, image string) {
		begin := time.Now()
		l.must(l.DeleteImage(l.ctx, image))
		end := l.closedBy(image, p, l.heir)
		l.t.Logf("from the deletion to the end of the job: %s", time.Since(begin).Round(time.Millisecond))
		if end["result"] != "cancelled" {
			l.t.Errorf("the job ended as %v, want cancelled", end["result"])
		}
		l.off(image)
		l.told(image, true) // nobody hears of an error
	})
}

// off checks that nothing is left of a job that was called off, and that the volume can be used.
func (l *lane) off(image string) {
	l.t.Helper()
	l.must(l.WaitVolume(l.ctx, l.volume, "available"))
	l.clean(l.volume)
	i, err := l.Image(l.ctx, image)
	l.must(err)
	l.gone(image, i)
	l.nothingLeft()
	if got := l.sum(rbdVolume(l.volume)); got != l.want {
		l.t.Errorf("the volume holds %s, want %s", got, l.want)
	}
}

// TestUserDeletesEarlyImage deletes an image that is active already, while its data are still being detached.
func TestUserDeletesEarlyImage(t *testing.T) {
	moments := []moment{{"early", "clone-flatten/flatten/hang"}}
	if thorough() {
		moments = append(moments, moment{"early", "clone-flatten/flatten/hang-after"})
	}
	holding(t, "early", moments, func(l *lane, p *lab.Worker, image string) {
		l.must(l.RemoveImage(l.ctx, image))
		l.must(p.Stop()) // after the commit point nobody looks: the successor meets what is there
		l.closedBy(image, p, l.heir)
		l.off(image)
		l.told(image, true)
	})
}

// TestVolumeForceDeleted: an operator deletes the volume under the job. Nothing of the job stays behind.
func TestVolumeForceDeleted(t *testing.T) {
	holding(t, "force", beforeTheCommit()[:min(3, len(beforeTheCommit()))], func(l *lane, p *lab.Worker, image string) {
		admin := l.admin()
		l.must(admin.Act(l.ctx, l.volume, map[string]any{"os-force_delete": map[string]any{}}))
		l.closedBy(image, p, l.heir)
		i, err := l.Image(l.ctx, image)
		l.must(err)
		l.gone(image, i)
		l.nothingLeft()
		// Cinder could not remove a volume with our snapshot on it; now it can, if it has not moved it to the trash.
		l.vanished(admin)
	})
}

func (w *world) admin() *lab.Cloud {
	w.t.Helper()
	admin, err := w.As(w.ctx, "admin")
	w.must(err)
	w.t.Cleanup(admin.Close)

	return admin
}

// vanished waits until the volume is gone, with its data, from the pool and its trash, where our snapshot was the reason
// for it to stay.
func (l *lane) vanished(admin *lab.Cloud) {
	l.t.Helper()
	l.must(lab.Wait(l.ctx, "the volume to be gone", func() (bool, error) {
		v, err := l.listed()
		if err != nil || v == "" {
			return err == nil, err
		}
		if strings.HasPrefix(v, "error") { // deleted again, as an operator does
			err = admin.Act(l.ctx, l.volume, map[string]any{"os-force_delete": map[string]any{}})
		}

		return false, err
	}))
	if out, err := l.Exec(l.ctx, "rbd", "ls", "volumes"); err != nil || strings.Contains(out, l.volume) {
		l.t.Errorf("data of the deleted volume are left: %v: %s", err, out)
	}
}

// listed is the volume's status; "" when it is gone.
func (l *lane) listed() (string, error) {
	all, err := l.Volumes(l.ctx)
	for _, v := range all {
		if v.ID == l.volume {
			return v.Status, err
		}
	}

	return "", err
}

// TestVolumeReset: an operator takes the volume back, and extends it. The job ends, and leaves the volume as it is now.
func TestVolumeReset(t *testing.T) {
	holding(t, "reset", beforeTheCommit()[:min(4, len(beforeTheCommit()))], func(l *lane, p *lab.Worker, image string) {
		// As long as it is `uploading` Cinder itself refuses.
		if err := l.Act(l.ctx, l.volume, map[string]any{"os-extend": map[string]any{"new_size": 2}}); err == nil {
			l.t.Error("Cinder extended a volume that is uploading")
		}
		l.must(l.admin().Act(l.ctx, l.volume, map[string]any{"os-reset_status": map[string]any{"status": "available"}}))
		end := l.closedBy(image, p, l.heir)
		if end["result"] != "failed" || end["reason"] != "volume-state" {
			l.t.Errorf("the job ended as %v for %v, want failed for volume-state", end["result"], end["reason"])
		}
		l.off(image)
	})
}

// TestImageFilledByOthers: somebody uploads other bytes into the image while the job runs. They keep them.
func TestImageFilledByOthers(t *testing.T) {
	moments := []moment{{"early", "clone-flatten/snapshot/hang-after"}, {"export", "export-upload/snapshot/hang-after"}}
	holding(t, "filled", moments, func(l *lane, p *lab.Worker, image string) {
		const theirs = "somebody else's bytes"
		_, err := l.glance(http.MethodPut, image, theirs)
		l.must(err)
		end := l.closedBy(image, p, l.heir)
		if end["result"] != "failed" || end["reason"] != "image-state" {
			l.t.Errorf("the job ended as %v for %v, want failed for image-state", end["result"], end["reason"])
		}
		l.must(l.WaitVolume(l.ctx, l.volume, "available"))
		l.clean(l.volume)
		i, err := l.Image(l.ctx, image)
		if err != nil || i.Status != "active" || i.Size != int64(len(theirs)) {
			l.t.Fatalf("their image is %v, %v", i, err)
		}
		if got, err := l.glance(http.MethodGet, image, ""); err != nil || string(got.Body) != theirs {
			l.t.Errorf("their image holds %v, %v", got, err)
		}
		l.nothingLeft()
	})
}

// glance sends a request for an image's data as its owner.
func (l *lane) glance(method, image, data string) (*keystone.Answer, error) {
	s, err := keystone.Open(l.ctx, keystone.Options{AuthURL: l.Env["OS_AUTH_URL"], Username: l.Env["LAB_DEMO_USER"],
		Password: keystone.Secret(l.Env["LAB_DEMO_PASSWORD"]), ProjectName: l.Env["LAB_DEMO_PROJECT"], Region: l.Env["OS_REGION_NAME"]})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	r := keystone.Request{Service: keystone.Image, Op: "lab", What: method + " data of image " + image, Method: method,
		Path: "/v2/images/" + image + "/file"}
	if method == http.MethodPut {
		r.Header = http.Header{"Content-Type": {"application/octet-stream"}}
		r.Body, r.Size = strings.NewReader(data), int64(len(data))
	}
	a, err := s.Do(l.ctx, r)
	if err != nil {
		return a, err
	}

	return a, a.Err()
}
