//go:build lab

package lab_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/cinderlift/cinderlift/internal/lab"
	"github.com/cinderlift/cinderlift/strategies"
)

// thorough reports whether everything is to be run, or only a sample of it.
func thorough() bool { return os.Getenv("CINDERLIFT_CHAOS") == "full" }

// within is open with another limit.
func within(t *testing.T, limit time.Duration) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	l, err := lab.FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.As(ctx, "demo")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)

	return &world{Cloud: c, t: t, ctx: ctx}
}

// of is the same world for a subtest.
func (w *world) of(t *testing.T, limit time.Duration) *world {
	t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, limit)
	t.Cleanup(cancel)

	return &world{Cloud: w.Cloud, t: t, ctx: ctx}
}

// built answers the binary that an environment variable names, or makes it once from this tree.
func (w *world) built(variable, name string, tags ...string) string {
	w.t.Helper()
	if b := os.Getenv(variable); b != "" {
		return b
	}
	_, here, err := sourceTree()
	w.must(err)
	out, err := exec.CommandContext(w.ctx, "make", "-s", "-C", here, "tags").Output()
	w.must(err)
	binary := filepath.Join(here, "build", name)
	all := strings.Join(append(tags, strings.TrimSpace(string(out))), ",")
	cmd := exec.CommandContext(w.ctx, "go", "build", "-tags", all, "-trimpath", "-o", binary, "./cmd/cinderlift")
	cmd.Dir = here
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("build %s: %v: %s", name, err, out)
	}

	return binary
}

// sourceTree is where the tests run, and two folders above it.
func sourceTree() (wd, root string, err error) {
	wd, err = os.Getwd()

	return wd, filepath.Join(wd, "..", ".."), err
}

// faulty is the program with failpoints.
func (w *world) faulty() string {
	w.t.Helper()

	return w.built("CINDERLIFT_LAB_FAULTY", "cinderlift-faults", "faults")
}

// desk takes Cinder's requests off the bus, so that a test can hand each to the worker of its choice.
type desk struct {
	ch *amqp.Channel

	mu   sync.Mutex
	came map[string]amqp.Delivery // by image
	told map[string][]string      // notifications by queue
}

const deskTopic = "cinderlift-test-desk"

// atDesk plugs cinderlift into Cinder with the desk as its topic.
func (w *world) atDesk(hook string) *desk {
	w.t.Helper()
	w.hook(hook, "topic="+deskTopic)
	conn, err := amqp.Dial(strings.Replace(w.Env["LAB_TRANSPORT_URL"], "rabbit://", "amqp://", 1))
	w.must(err)
	w.t.Cleanup(func() { _ = conn.Close() })
	// A broker that was restarted has forgotten the exchange until Cinder comes back. A refusal ends the channel.
	var ch *amqp.Channel
	w.must(lab.Wait(w.ctx, "Cinder's exchange", func() (bool, error) {
		if ch, err = conn.Channel(); err != nil {
			return false, err
		}

		return ch.ExchangeDeclarePassive("openstack", "topic", false, false, false, false, nil) == nil, nil
	}))
	// Like the workers' queue: durable, and it stays, so that another test's Cinder does not find nobody there.
	_, err = ch.QueueDeclare(deskTopic, true, false, false, false, nil)
	w.must(err)
	w.must(ch.QueueBind(deskTopic, deskTopic, "openstack", false, nil))
	d := &desk{ch: ch, came: map[string]amqp.Delivery{}, told: map[string][]string{}}
	requests, err := ch.Consume(deskTopic, "", true, false, false, false, nil)
	w.must(err)
	go func() {
		for m := range requests {
			d.keep(m)
		}
	}()

	return d
}

func (d *desk) keep(m amqp.Delivery) {
	var envelope struct {
		Message string `json:"oslo.message"`
	}
	var request struct {
		Args struct {
			Meta struct{ ID string } `json:"image_meta"`
		}
	}
	if json.Unmarshal(m.Body, &envelope) != nil || json.Unmarshal([]byte(envelope.Message), &request) != nil {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.came[request.Args.Meta.ID] = m
}

// request waits for Cinder's request for an image.
func (d *desk) request(w *world, image string) amqp.Delivery {
	w.t.Helper()
	var m amqp.Delivery
	w.must(lab.Wait(w.ctx, "Cinder's request for image "+image, func() (bool, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		var ok bool
		m, ok = d.came[image]

		return ok, nil
	}))

	return m
}

// hand gives a request to whoever listens on a topic. Somebody has to.
func (d *desk) hand(ctx context.Context, m amqp.Delivery, topic string) error {
	d.mu.Lock()
	defer d.mu.Unlock()

	return d.ch.PublishWithContext(ctx, "openstack", topic, false, false, amqp.Publishing{Headers: m.Headers,
		ContentType: m.ContentType, ContentEncoding: m.ContentEncoding, DeliveryMode: amqp.Persistent,
		Expiration: m.Expiration, Body: m.Body})
}

// queue makes one for notifications.
func (d *desk) queue(w *world, name string) {
	w.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.ch.QueueDeclare(name, false, false, false, false, nil)
	w.must(err)
	w.must(d.ch.QueueBind(name, name, "openstack", false, nil))
}

// notifications are all that came to a queue so far.
func (d *desk) notifications(queue string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		m, ok, err := d.ch.Get(queue, true)
		if err != nil || !ok {
			return d.told[queue]
		}
		d.told[queue] = append(d.told[queue], string(m.Body))
	}
}

// drop removes queues.
func (d *desk) drop(names ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, name := range names {
		_, _ = d.ch.QueueDelete(name, false, false, false) // it may never have been there
	}
}

// way is one kind of plan with the settings that bring it about.
type way struct {
	name     string
	strategy string
	set      map[string]string
	next     bool   // another strategy follows when this one says that it can't
	heir     string // binary of the successor; "": the one of `make build`
}

func ways() []way {
	return []way{
		{"early", strategies.NameCloneFlatten, map[string]string{"CINDERLIFT_REGISTER": "early"}, true, ""},
		{"late", strategies.NameCloneFlatten, map[string]string{"CINDERLIFT_REGISTER": "late"}, true, ""},
		{"copy", strategies.NameCopy, map[string]string{"CINDERLIFT_STRATEGIES": "copy"}, false, ""},
		{"export", strategies.NameExportUpload, map[string]string{"CINDERLIFT_STRATEGIES": "export-upload"}, false, ""},
	}
}

func wayOf(name string) way {
	return ways()[slices.IndexFunc(ways(), func(v way) bool { return v.name == name })]
}

// leaseTTL is the shortest that the configuration takes.
const leaseTTL = 3 * time.Second

// lane is a journal, a topic and a volume of its own, where one job after the other is disturbed while other lanes do
// the same.
type lane struct {
	*world
	desk   *desk
	name   string
	way    way
	volume string
	want   string // digest of the volume
	heir   *lab.Worker
	free   map[string]bool // objects of the journal that were found without a lease
}

// small makes a volume of 64 MiB, which Cinder can't, so that an upload does not send a GiB of zeros, and answers its
// digest.
func (w *world) small(percent int) (volume, want string) {
	w.t.Helper()
	volume, err := w.CreateVolume(w.ctx, lab.VolumeSpec{Name: w.t.Name(), GiB: 1})
	w.must(err)
	w.t.Cleanup(func() { w.discard(volume) })
	_, err = w.Exec(w.ctx, "rbd", "resize", "--no-progress", "--allow-shrink", "--size", "64", rbdVolume(volume))
	w.must(err)
	if percent > 0 {
		_, err := w.Fill(w.ctx, rbdVolume(volume), 40, percent)
		w.must(err)
	}

	return volume, w.sum(rbdVolume(volume))
}

// discard deletes a volume, unless somebody did.
func (w *world) discard(volume string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	all, err := w.Volumes(ctx)
	if !slices.ContainsFunc(all, func(v lab.Volume) bool { return v.ID == volume }) && err == nil {
		return
	}
	if err := w.DeleteVolume(ctx, volume); err != nil {
		w.t.Errorf("delete the volume afterwards: %v", err)
	}
}

// lane makes one, with a clean worker that takes no requests but adopts what others leave.
func (w *world) lane(d *desk, name string, v way, percent int) *lane {
	w.t.Helper()
	l := &lane{world: w, desk: d, name: "cinderlift-test-" + name, way: v, free: map[string]bool{}}
	w.t.Cleanup(func() {
		d.drop(l.topic(), l.topic()+".dead", l.topic()+".idle", l.topic()+".idle.dead", l.topic()+".told.info", l.topic()+".told.error")
		_, _ = w.Exec(context.Background(), "sh", "-c", `rados --id "$1" -p images -N "$2" ls | while read -r o; do
			rados --id "$1" -p images -N "$2" rm "$o"; done`, "sh", w.Env["LAB_CEPH_USER"], l.name)
	})
	for _, priority := range []string{"info", "error"} {
		d.queue(w, l.topic()+".told."+priority)
	}
	l.volume, l.want = w.small(percent)
	l.inherit()

	return l
}

// inherit starts the heir.
func (l *lane) inherit() {
	l.t.Helper()
	l.heir = l.start(l.way.heir, map[string]string{"CINDERLIFT_TOPIC": l.topic() + ".idle"})
}

// dump ends a worker so that its log says where each goroutine was.
func dump(p *lab.Worker) {
	_ = p.Signal(syscall.SIGQUIT)
	select {
	case <-p.Ended():
	case <-time.After(10 * time.Second):
	}
}

func (l *lane) topic() string { return l.name }

// on is the lane for one cell.
func (l *lane) on(t *testing.T, limit time.Duration) *lane {
	t.Helper()
	c := *l
	c.world = l.of(t, limit)
	t.Cleanup(func() {
		if t.Failed() { // what the heir hangs in, and another one for the next cells
			dump(l.heir)
			t.Logf("the heir, worker %d, said:\n%s", l.heir.Pid, text(l.heir.Logs()))
			l.inherit()
		}
	})

	return &c
}

// settings of a worker in this lane.
func (l *lane) settings(more map[string]string) map[string]string {
	set := map[string]string{
		"CINDERLIFT_TOPIC": l.topic(), "CINDERLIFT_JOURNAL_NAMESPACE": l.name,
		"CINDERLIFT_NOTIFICATIONS": l.topic() + ".told", "CINDERLIFT_LEASE_TTL": leaseTTL.String(),
		"CINDERLIFT_SCAN_EVERY": "1s", "CINDERLIFT_SOFT_STOP": "1s",
	}
	for _, m := range []map[string]string{l.way.set, more} {
		for k, v := range m {
			set[k] = v
		}
	}

	return set
}

// start starts a worker of the lane. It ends with the cell.
func (l *lane) start(binary string, more map[string]string) *lab.Worker {
	l.t.Helper()
	p, err := l.Launch(lab.Launch{Binary: binary, Set: l.settings(more)})
	l.must(err)
	l.t.Cleanup(func() {
		_ = p.Signal(syscall.SIGCONT)
		if l.t.Failed() {
			dump(p)
		}
		_ = p.Kill() // whether it stops by itself is looked at where that matters
		if l.t.Failed() {
			l.t.Logf("worker %d said:\n%s", p.Pid, text(p.Logs()))
		}
	})
	l.must(p.AwaitReady(l.ctx))

	return p
}

// ask has Cinder ask for an image and hands the request to the lane's workers. The image is deleted with the cell.
func (l *lane) ask(spec lab.UploadSpec) string {
	l.t.Helper()
	image := l.upload(l.volume, spec)
	l.must(l.desk.hand(l.ctx, l.desk.request(l.world, image), l.topic()))

	return image
}

// when is the time of the first log line that fits.
func when(p *lab.Worker, fits func(lab.LogLine) bool) (time.Time, bool) {
	for _, line := range p.Logs() {
		if fits(line) {
			at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"]))

			return at, err == nil
		}
	}

	return time.Time{}, false
}

// said fits lines with this message about this image, or any.
func said(msg, image string) func(lab.LogLine) bool {
	return func(line lab.LogLine) bool {
		return line["msg"] == msg && (image == "" || line["image"] == image)
	}
}

// await waits until one of the workers says so.
func (w *world) await(what string, fits func(lab.LogLine) bool, workers ...*lab.Worker) time.Time {
	w.t.Helper()
	var at time.Time
	w.must(lab.Wait(w.ctx, what, func() (bool, error) {
		for _, p := range workers {
			if t, ok := when(p, fits); ok {
				at = t

				return true, nil
			}
		}

		return false, nil
	}))

	return at
}

// closedBy waits until the job is closed and checks that it was closed once.
func (l *lane) closedBy(image string, workers ...*lab.Worker) lab.LogLine {
	l.t.Helper()
	l.await("the job to be closed", said("job closed", image), workers...)
	var lines []lab.LogLine
	for _, p := range workers {
		for _, line := range p.Logs() {
			if said("job closed", image)(line) {
				lines = append(lines, line)
			}
		}
	}
	if len(lines) != 1 {
		l.t.Errorf("the job was closed %d times: %v", len(lines), lines)
	}

	return lines[0]
}

// ended checks everything after a job that ended: with an image, or with none.
func (l *lane) ended(image string, made bool) {
	l.t.Helper()
	l.must(l.WaitVolume(l.ctx, l.volume, "available"))
	l.clean(l.volume)
	i, err := l.Image(l.ctx, image)
	l.must(err)
	if made {
		l.whole(image, i)
	} else {
		l.gone(image, i)
	}
	l.told(image, made)
	l.nothingLeft()
}

// whole checks that the image is complete.
func (l *lane) whole(image string, i lab.Image) {
	l.t.Helper()
	if i.Status != "active" {
		l.t.Fatalf("image %s is %q, want active", image, i.Status)
	}
	if got := l.sum(rbdImage(image)); got != l.want {
		l.t.Errorf("image holds %s, the volume %s", got, l.want)
	}
	info, err := l.Info(l.ctx, "images/"+image)
	l.must(err)
	if info.Parent != "" || info.AllSnapshots != 1 || !info.Snapshots[strategies.GlanceSnapshot] {
		l.t.Errorf("image has parent %q and snapshots %v (%d with those in the trash)", info.Parent, info.Snapshots, info.AllSnapshots)
	}
	if fmt.Sprint(i.Size) != strings.Fields(l.want)[0] {
		l.t.Errorf("Glance says %d bytes, want %s", i.Size, l.want)
	}
}

// gone checks that nothing of the image is there.
func (l *lane) gone(image string, i lab.Image) {
	l.t.Helper()
	if i.Status != "" {
		l.t.Errorf("image %s is %q, want none", image, i.Status)
	}
	for _, args := range [][]string{{"rbd", "ls", "images"}, {"rbd", "trash", "ls", "--all", "images"}} {
		if out, err := l.Exec(l.ctx, args...); err != nil || strings.Contains(out, image) {
			l.t.Errorf("%v: %q, %v: data of an image that was not made are left", args, out, err)
		}
	}
}

// told checks that one outcome was told, however often.
func (l *lane) told(image string, made bool) {
	l.t.Helper()
	ends := map[string]int{}
	for _, priority := range []string{"info", "error"} {
		for _, body := range l.desk.notifications(l.topic() + ".told." + priority) {
			if strings.Contains(body, image) {
				ends[priority]++
			}
		}
	}
	want := map[bool]string{true: "info", false: "error"}[made]
	if len(ends) != 1 || ends[want] == 0 {
		l.t.Errorf("notifications by priority: %v, want only %s", ends, want)
	}
}

// record is what `cinderlift jobs -o json` shows.
type record struct {
	Job struct {
		ImageID string `json:"image_id"`
	} `json:"job"`
	Version   int      `json:"version"`
	Closed    bool     `json:"closed"`
	Begun     []string `json:"begun"`
	Committed bool     `json:"committed"`
	Owner     string   `json:"owner"`
	Outcome   *struct {
		Result string `json:"result"`
		Reason string `json:"reason"`
	} `json:"outcome"`
}

// jobs runs the program's own command.
func (l *lane) jobs(args ...string) []record {
	l.t.Helper()
	cmd := exec.CommandContext(l.ctx, l.Binary(), append([]string{"jobs", "-o", "json"}, args...)...)
	cmd.Env = l.Environment(l.settings(nil))
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		l.t.Fatalf("cinderlift jobs: %v: %s", err, exit.Stderr)
	}
	l.must(err)
	var list []record
	l.must(json.Unmarshal(out, &list))

	return list
}

// nothingLeft checks the lane's journal: no open job and no lock.
func (l *lane) nothingLeft() {
	l.t.Helper()
	if open := l.jobs(); len(open) != 0 {
		l.t.Errorf("open jobs are left: %v", open)
	}
	names, err := l.Exec(l.ctx, "rados", "--id", l.Env["LAB_CEPH_USER"], "-p", "images", "-N", l.name, "ls")
	l.must(err)
	args := []string{"sh", "-c", `id=$1 namespace=$2; shift 2; for o; do rados --id "$id" -p images -N "$namespace" lock info "$o" lease \
		2> /dev/null | jq -c --arg o "$o" 'select((.lockers | length) > 0) | [$o, .]'; done`, "sh", l.Env["LAB_CEPH_USER"], l.name}
	for _, name := range strings.Fields(names) {
		// Nobody locks a closed job again, and there are hundreds of them after a while.
		if l.free[name] {
			continue
		}
		l.free[name] = strings.HasPrefix(name, "job.")
		args = append(args, name)
	}
	// A worker that dies between closing its job and giving the leases back leaves them until their time is up.
	ctx, cancel := context.WithTimeout(l.ctx, 20*time.Second)
	defer cancel()
	out := ""
	err = lab.Wait(ctx, "the leases to be given back", func() (bool, error) {
		out, err = l.Exec(l.ctx, args...)

		return out == "", err
	})
	if err != nil {
		l.t.Errorf("leases are left: %s: %v", out, err)
	}
}
