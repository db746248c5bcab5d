//go:build lab

package lab_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
	"github.com/cinderlift/cinderlift/internal/oslo"
)

const topic = "cinder-image-upload"

// publisher is a bus that only sends, as anybody with an account on the broker can.
func (w *world) publisher() *oslo.Bus {
	w.t.Helper()
	t, err := oslo.ParseTransportURL(w.Env["LAB_TRANSPORT_URL"])
	w.must(err)
	b, err := oslo.New(oslo.Options{Transport: t, Topic: "hostile-" + fmt.Sprint(time.Now().UnixNano())})
	w.must(err)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = b.Run(ctx) }()
	w.t.Cleanup(func() { stop(); <-ended })
	w.must(lab.Wait(w.ctx, "the bus", func() (bool, error) { return b.State().Ready(), nil }))

	return b
}

// dead counts the messages in the dead-letter queue.
func (w *world) dead() int {
	w.t.Helper()
	n := 0
	out, err := w.Exec(w.ctx, "python3", "-c", `
import sys, kombu
c = kombu.Connection(sys.argv[1].replace("rabbit://", "amqp://"))
print(c.channel().queue_declare(sys.argv[2], passive=True).message_count)`, w.Env["LAB_TRANSPORT_URL"], topic+".dead")
	w.must(err)
	_, err = fmt.Sscan(out, &n)
	w.must(err)

	return n
}

func request(volume, image, disk string) json.RawMessage {
	b, err := json.Marshal(map[string]any{"method": "copy_volume_to_image", "version": "3.0", "_unique_id": image,
		"_context_project_id": "p", "_context_is_admin": true, "args": map[string]any{"volume_id": volume,
			"image_meta": map[string]any{"id": image, "disk_format": disk, "container_format": "bare"}}})
	if err != nil {
		panic(err) // strings
	}

	return b
}

// TestBadInput throws at a real worker whatever a broken or hostile publisher can; afterwards it still works, and
// whatever was no request lies in the dead-letter queue.
func TestBadInput(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(nil)
	b := w.publisher()
	before := w.dead()
	const id = "00000000-0000-4000-8000-000000000001"
	deep := strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000)
	bad := []string{
		`no json`, `[]`, `null`, `""`, `{}`, `{"method": 7}`, `{"method": "copy_volume_to_image"}`,
		`{"oslo.version": "3.0", "oslo.message": "{}"}`, `{"oslo.version": "2.0", "oslo.message": {}}`,
		`{"method": "copy_volume_to_image", "version": "3.0", "args": {"volume_id": "../../etc/passwd", "image_meta": {"id": "x"}}}`,
		`{"method": "copy_volume_to_image", "version": "9.9", "args": {}}`,
		`{"method": "delete_everything", "version": "3.0", "args": {}}`,
		`{"method": "copy_volume_to_image", "version": "3.0", "args": {"volume_id": "` + id + `", "image_meta": "text"}}`,
		deep, strings.Repeat("{}", 5<<20),
	}
	for _, body := range bad {
		w.must(b.Publish(w.ctx, "openstack", topic, oslo.Message{Body: []byte(body)}, true))
	}
	waiting, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	w.must(lab.Wait(waiting, fmt.Sprintf("%d dead letters", len(bad)), func() (bool, error) { return w.dead() == before+len(bad), nil }))

	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	want := w.sum(rbdVolume(volume))
	image := w.upload(volume, lab.Raw(t.Name()))
	w.made(volume, image, want)
	// One of these was 10 MiB, and was held more than once; Go gives memory back over minutes. What a leak would leave is more.
	if rss, err := p.RSS(); err != nil || rss > 150<<20 {
		t.Errorf("after all that the worker holds %d MiB, %v", rss>>20, err)
	}
}

// TestForgedRequests has well-formed requests name what does not exist, is in the wrong state or belongs to others:
// nothing of that may change.
func TestForgedRequests(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(nil)
	b := w.publisher()
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10) // available, not uploading
	before := w.sum(rbdVolume(volume))
	active := w.upload(volume, lab.Raw(t.Name()))
	w.made(volume, active, before)
	other, err := w.As(w.ctx, "other")
	w.must(err)
	defer other.Close()
	foreign, err := other.CreateVolume(w.ctx, lab.VolumeSpec{Name: t.Name(), GiB: 1})
	w.must(err)
	defer func() { _ = other.DeleteVolume(context.Background(), foreign) }()
	const nothing = "00000000-0000-4000-8000-00000000000"
	forged := map[string]json.RawMessage{
		"no such volume":              request(nothing+"1", nothing+"2", "raw"),
		"no such image":               request(volume, nothing+"3", "raw"),
		"volume not uploading":        request(volume, w.queued(t.Name()), "raw"),
		"image active":                request(volume, active, "raw"),
		"a format that nobody knows":  request(volume, w.queued(t.Name()+" 3"), "floppy"),
		"foreign volume, known image": request(foreign, w.queued(t.Name()+" 2"), "raw"),
	}
	for name, body := range forged {
		if err := b.Publish(w.ctx, "openstack", topic, oslo.Message{Body: body}, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.must(lab.Wait(w.ctx, "all forged jobs to be closed", func() (bool, error) { return closed(p) >= len(forged), nil }))
	for id, c := range map[string]*lab.Cloud{volume: w.Cloud, foreign: other} {
		if v, err := c.Volume(w.ctx, id); err != nil || v.Status != "available" {
			t.Errorf("volume %s is %q, %v", id, v.Status, err)
		}
	}
	w.made(volume, active, before)
	w.clean(foreign)
}

// closed counts the jobs that the worker is through with, duplicates and dead letters of known images included.
func closed(p *lab.Worker) (n int) {
	for _, l := range p.Logs() {
		switch l["msg"] {
		case "job closed":
			if l["result"] != "done" {
				n++
			}
		case "request rejected to the dead-letter queue", "request known already":
			n++
		}
	}

	return n
}

// queued makes an image without data, as cinder-api does before it casts.
func (w *world) queued(name string) string {
	w.t.Helper()
	id, err := w.CreateImage(w.ctx, name)
	w.must(err)
	w.t.Cleanup(func() {
		if i, err := w.Image(context.Background(), id); err == nil && i.Status != "" {
			_ = w.DeleteImage(context.Background(), id)
		}
	})

	return id
}

// TestBrokerAway: not ready, with the reason, while the broker is away; then everything goes on.
func TestBrokerAway(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(nil)
	w.must(w.Control(w.ctx, "stop", "rabbit"))
	t.Cleanup(func() { _ = w.Control(context.Background(), "start", "rabbit") })
	w.must(lab.Wait(w.ctx, "the worker not to be ready", func() (bool, error) {
		code, body := ready(p)

		return code == http.StatusServiceUnavailable && strings.Contains(body, "bus"), nil
	}))
	w.must(w.Control(w.ctx, "start", "rabbit"))
	w.must(lab.Wait(w.ctx, "the worker to be ready again", func() (bool, error) {
		code, _ := ready(p)

		return code == http.StatusOK, nil
	}))
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	want := w.sum(rbdVolume(volume))
	image := w.upload(volume, lab.Raw(t.Name()))
	w.made(volume, image, want)
	m, err := p.Metrics(w.ctx)
	w.must(err)
	if m["cinderlift_bus_reconnects_total"] < 1 {
		t.Error("no reconnect was counted")
	}
}

func ready(p *lab.Worker) (int, string) {
	res, err := http.Get("http://" + p.Listen + "/readyz")
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	var body struct{ Away map[string]string }
	_ = json.NewDecoder(res.Body).Decode(&body) // an answer that can't be read names nothing

	return res.StatusCode, fmt.Sprint(body.Away)
}

// TestNoTokenAnywhere looks for the users' tokens in everything that the worker has said.
func TestNoTokenAnywhere(t *testing.T) {
	w := open(t)
	w.hook("volume_manager")
	p := w.worker(map[string]string{"CINDERLIFT_LOG_LEVEL": "debug"})
	volume := w.volume(lab.VolumeSpec{GiB: 1}, 10)
	image := w.upload(volume, lab.Raw(t.Name()))
	w.must(w.WaitImage(w.ctx, image, "active"))
	w.must(w.WaitVolume(w.ctx, volume, "available"))
	record, err := w.Exec(w.ctx, "sh", "-c", `for key in $(rados --id "$1" -p images -N cinderlift listomapkeys "$2"); do
		rados --id "$1" -p images -N cinderlift getomapval "$2" "$key" /dev/stdout; done`,
		"sh", w.Env["LAB_CEPH_USER"], "job."+image)
	w.must(err)
	// Fernet tokens begin like this; the lab's Keystone makes no others.
	for name, s := range map[string]string{"the log": text(p.Logs()), "the journal": record} {
		if strings.Contains(s, "gAAAAA") || strings.Contains(s, w.Env["LAB_SERVICE_PASSWORD"]) {
			t.Errorf("a token or password is in %s", name)
		}
	}
	if !strings.Contains(record, image) {
		t.Errorf("the journal's record was not read: %q", record)
	}
}
