package strategies_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
	"github.com/cinderlift/cinderlift/worker/workertest"
)

const (
	imageID  = "5b1d6c0e-3c0f-4d52-8a57-0f6e3c1f2a11"
	volumeID = "b0a6a3d4-9f0e-4f39-9d1b-7a3f5b0c9e22"
	object   = 4096
)

var (
	source      = strategies.Ref{Pool: "volumes", Image: "volume-" + volumeID}
	destination = strategies.Ref{Pool: "images", Image: imageID}

	errDead = &worker.Error{Op: "be alive", Reason: worker.ReasonLeaseLost, Advice: worker.StandBy, Err: errors.New("killed")}
)

// mode is what happens to one operation on the cloud.
type mode int

const (
	well         mode = iota
	dieBefore         // the worker is killed before the operation has an effect
	dieAfter          // … after it had its effect, before anybody noted it
	failBefore        // it fails without an effect, and may work later
	failAfter         // it has its effect, is reported as failed, and may work later
	refuseBefore      // it fails without an effect, and trying again does not help
	refuseAfter       // it has its effect, is reported as failed, and trying again does not help
	otherBefore       // it fails without an effect, and another strategy may work
	otherAfter        // it has its effect, is reported as failed, and another strategy may work
	hang              // it has no effect and does not come back before its worker is stopped
	loseBefore        // the lease is lost while it hangs, and it has no effect
	loseLate          // the lease is lost while it hangs, and it has its effect when another claim is under way
)

func (m mode) String() string {
	return []string{"well", "die-before", "die-after", "fail-before", "fail-after", "refuse-before", "refuse-after",
		"other-before", "other-after", "hang", "lose-before", "lose-late"}[m]
}

func (m mode) fatal() bool { return m >= refuseBefore && m <= otherAfter }

// cloud is Ceph, Glance, Cinder and the journal around one job, with faults at every operation.
type cloud struct {
	t       testing.TB
	ceph    *strategiestest.Cluster
	glance  *strategiestest.Glance
	images  strategies.Images // what strategies see of glance
	store   *workertest.Store
	options strategies.Options
	format  string                 // that the image is to have; "": raw
	before  map[strategies.Ref]any // foreign images as they were

	// wrap, if set, changes the strategies of workers: other releases.
	wrap func(worker.Strategy) worker.Strategy

	// on is told every operation before it happens; the script of a scenario.
	on func(op string) error

	mu     sync.Mutex
	fault  func(op string) mode
	ops    []string
	dead   bool
	lost   bool          // the lease can't be renewed, until it is claimed anew
	unhang chan struct{} // closed when what hangs comes back
	hung   time.Time     // since when something hangs
	volume string
	told   []worker.Result
	writes uint64
}

func newCloud(t testing.TB) *cloud {
	c := &cloud{t: t, ceph: strategiestest.New(t), store: workertest.NewStore(30 * time.Second), volume: worker.VolumeUploading}
	c.glance = strategiestest.NewGlance(c.ceph)
	c.glance.Shown = []strategies.Store{{ID: "rbd", Type: "rbd", Default: true, FSID: c.ceph.ID, Pool: "images"}}
	c.images, c.glance.Inspecting, c.options.Format.Checks = c.glance, true, strategies.FormatAuto
	c.glance.Add(imageID)
	c.ceph.Put(t, source, strategiestest.Blueprint{Size: 6 * object, ObjectSize: object})
	c.ceph.Write(t, source, 700, noise(1))
	c.ceph.Write(t, source, 3*object+5, noise(2))
	c.ceph.Freeze(t, source, "backup.of.the.user")
	c.before = map[strategies.Ref]any{}
	for i, at := range []strategies.Ref{{Pool: "images", Image: "foreign"}, {Pool: "volumes", Image: "foreign"}} {
		c.ceph.Put(t, at, strategiestest.Blueprint{Size: object, ObjectSize: object})
		c.ceph.Write(t, at, 0, noise(byte(i)+7))
		c.ceph.Freeze(t, at, "snap")
		c.before[at] = c.look(at)
	}
	c.ceph.Fail, c.glance.Fail = c.inject("ceph"), c.inject("glance")

	return c
}

func noise(n byte) []byte { return bytes.Repeat([]byte{n | 0x80, n, 0xa5}, 900) }

// look is all that one can see of an image.
func (c *cloud) look(at strategies.Ref) any {
	return []any{c.ceph.View(c.t, at), c.ceph.Read(c.t, at, ""), c.ceph.Read(c.t, at, "snap")}
}

// inject makes the faults of one service.
func (c *cloud) inject(service string) func(op string) (before, after error) {
	return func(op string) (error, error) { return c.next(service + " " + op) }
}

// next decides the fate of an operation. The volume is attached: its guest writes all the time.
func (c *cloud) next(op string) (before, after error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.dead:
		return errDead, nil
	case op == "journal renew" && c.lost:
		return &worker.Error{Op: op, Reason: worker.ReasonLeaseLost, Advice: worker.StandBy, Err: worker.ErrLeaseLost}, nil
	case op == "journal keys" || op == "journal load" || op == "journal renew":
		return nil, nil
	case op == "journal claim":
		c.lost = false
	}
	c.ops = append(c.ops, op)
	c.writes++
	c.ceph.Write(c.t, source, int64(c.writes%5)*object+int64(c.writes), noise(byte(c.writes)))
	if c.on != nil {
		if err := c.on(op); err != nil {
			return err, nil
		}
	}
	if c.fault == nil {
		return nil, nil
	}
	m := c.fault(op)
	err := &worker.Error{Op: op, Reason: worker.ReasonCephUnavailable, Advice: advice(m), Err: errors.New("injected")}
	switch m {
	case well:
		return nil, nil
	case dieBefore:
		c.dead = true

		return errDead, nil
	case dieAfter:
		c.dead = true

		return nil, errDead
	case failBefore, refuseBefore, otherBefore:
		return err, nil
	case hang:
		c.hung = time.Now()

		return c.away(err, c.unhang), nil
	case loseBefore:
		c.lost = true

		return c.away(err, time.After(35*time.Second)), nil
	case loseLate:
		c.lost = true

		return nil, c.away(err, time.After(35*time.Second))
	default:
		return nil, err
	}
}

// away comes back with err when there is something to come back for. Others go on meanwhile.
func (c *cloud) away(err error, back any) error {
	c.mu.Unlock()
	defer c.mu.Lock()
	switch back := back.(type) {
	case chan struct{}:
		<-back
	case <-chan time.Time:
		<-back
	}

	return err
}

func advice(m mode) worker.Advice {
	switch m {
	case failBefore, failAfter:
		return worker.Retry
	case otherBefore, otherAfter:
		return worker.OtherWay
	default:
		return worker.GiveUp
	}
}

// do is an operation of Cinder's side.
func (c *cloud) do(op string, effect func()) error {
	before, after := c.next(op)
	if before != nil {
		return before
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	effect()

	return after
}

// run runs one worker for a while; the job is sent to it unless it is in the journal already.
func (c *cloud) run(name string, fault func(op string) mode, d time.Duration) {
	c.mu.Lock()
	c.fault, c.dead, c.lost, c.ops, c.unhang, c.hung = fault, false, false, nil, make(chan struct{}), time.Time{}
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	journal := c.store.Journal(name)
	journal.Fail = c.inject("journal")
	memory := &strategies.Memory{}
	r := &worker.Runner{
		Source: c, Journal: journal, Facts: c, Settler: c, Recorder: silent{}, Logger: slog.New(slog.DiscardHandler),
		Strategies: func(worker.Claim) []worker.Strategy {
			list, err := strategies.Builtin(strategies.Deps{
				Source: c.ceph, Destination: c.ceph, Images: c.images, Backends: c, Memory: memory, Options: c.options,
				Formats: formats(),
			})
			if err != nil {
				c.t.Error(err)
			}
			for i := range list {
				if c.wrap != nil {
					list[i] = c.wrap(list[i])
				}
			}

			return list
		},
		Config: worker.Config{Backoff: worker.Backoff{
			First: 100 * time.Millisecond, Max: time.Second, Patience: time.Minute, Claims: 20,
		}},
	}
	var ended sync.WaitGroup
	ended.Go(func() { _ = r.Run(ctx) })
	for range int(d / time.Second) {
		<-time.After(time.Second)
		if rec, err := c.record(); c.killed() || c.hangs() || err == nil && rec.Closed {
			break
		}
	}
	cancel()
	<-time.After(3 * time.Second) // more than the soft stop
	close(c.unhang)
	ended.Wait()
	if c.killed() { // the lease stays; that a successor waits for its end is tested in package worker
		<-time.After(30 * time.Second)
	}
}

// hangs: nothing more will happen before the worker is stopped.
func (c *cloud) hangs() bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return !c.hung.IsZero() && time.Since(c.hung) > 30*time.Second
}

func (c *cloud) killed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.dead
}

func (c *cloud) record() (worker.Record, error) {
	return c.store.Journal("test").Load(context.Background(), imageID)
}

// begin is the accepted job.
func (c *cloud) begin(j worker.Job) {
	if c.format != "" {
		j.DiskFormat = c.format
	}
	now := time.Now().UTC()
	if err := c.store.Journal("test").Create(context.Background(), worker.Record{Job: j, Accepted: now, Updated: now}); err != nil {
		c.t.Errorf("accept the job: %v", err)
	}
}

// formats has the format that only tests have, bare and in a container that does nothing.
func formats() strategies.Formats {
	return strategies.Formats{
		Encoders: map[string]strategies.Encoder{strategiestest.FormatBox: strategiestest.Box, "raw+crate": strategiestest.Box},
		Use:      map[string]string{strategiestest.FormatBox + "/bare": strategiestest.FormatBox, "raw/crate": "raw+crate", "raw/void": "gone"},
	}
}

func request() worker.Job {
	return worker.Job{ImageID: imageID, VolumeID: volumeID, ProjectID: "p", DiskFormat: "raw", ContainerFormat: "bare", Digest: "d"}
}

// Receive implements worker.Source: nothing comes.
func (*cloud) Receive(ctx context.Context) (worker.Delivery, error) {
	<-ctx.Done()

	return nil, ctx.Err()
}

// Task implements worker.Facts.
func (c *cloud) Task(ctx context.Context, j worker.Job) (worker.Task, error) {
	img, err := c.glance.Image(ctx, j.ImageID)
	if err != nil {
		return worker.Task{}, err
	}
	t := worker.Task{Job: j, Image: img}
	err = c.do("cinder volume", func() {
		t.Volume = worker.Volume{ID: j.VolumeID, Name: source.Image, Status: c.volume, Host: "h@rbd#rbd", SizeGiB: 1}
	})

	return t, err
}

// Backend implements strategies.Backends.
func (c *cloud) Backend(context.Context, string) (strategies.Backend, error) {
	var b strategies.Backend
	err := c.do("cinder backend", func() { b = strategies.Backend{FSID: c.ceph.ID, Pool: "volumes"} })

	return b, err
}

// Settle implements worker.Settler. The volume is free only after our snapshot is gone from it.
func (c *cloud) Settle(_ worker.Job, o worker.Outcome) []worker.Step {
	return []worker.Step{
		{Name: "volume", Do: func(context.Context, worker.Progress) error {
			return c.do("settle volume", func() { c.volume = "in-use" })
		}},
		{Name: "tell", Do: func(context.Context, worker.Progress) error {
			return c.do("settle tell", func() { c.told = append(c.told, o.Result) })
		}},
	}
}

// Attend implements worker.Settler.
func (*cloud) Attend(ctx context.Context, _ worker.Job) { <-ctx.Done() }

// silent records nothing.
type silent struct{}

func (silent) Delivery(worker.Intake, bool)                   {}
func (silent) JobStarted(bool)                                {}
func (silent) StepEnded(string, string, time.Duration, error) {}
func (silent) StepRetried(string, string, worker.Reason)      {}
func (silent) Moved(string, int64, int64)                     {}
func (silent) JobReleased()                                   {}
func (silent) JobPutAside()                                   {}
func (silent) JobSettled(worker.Outcome, time.Duration)       {}

// check states what has to be true at the end of every job, however it went, and answers the outcome.
func (c *cloud) check() worker.Outcome {
	c.t.Helper()
	rec, err := c.record()
	if err != nil || !rec.Closed || rec.Outcome == nil {
		c.t.Errorf("the job is not closed: %v, %+v, after %q", err, rec, c.ops)

		return worker.Outcome{}
	}
	o := *rec.Outcome
	if c.volume != "in-use" || len(c.told) == 0 {
		c.t.Errorf("the volume is %s, told was %v", c.volume, c.told)
	}
	if i := slices.IndexFunc(c.told, func(r worker.Result) bool { return r != o.Result }); i >= 0 {
		c.t.Errorf("the outcome is %s, told was %v", o.Result, c.told)
	}
	c.ceph.Fail, c.glance.Fail = nil, nil
	data, err := c.glance.Data(imageID)
	if done := o.Result == worker.Done; done != (err == nil) || done && len(data) != 6*object {
		c.t.Errorf("the outcome is %+v, the image has %d bytes: %v", o, len(data), err)
	}
	if left := c.ceph.Audit(); len(left) > 0 && (o.Result != worker.Done || o.Reason == worker.ReasonNone) {
		c.t.Errorf("the outcome is %+v, left are %q", o, left)
	}
	view := c.ceph.View(c.t, destination)
	if o.Result == worker.Done && o.Reason == worker.ReasonNone && view.Parent != "" {
		c.t.Errorf("the image still has the parent %s", view.Parent)
	}
	if o.Result != worker.Done && view.Exists {
		c.t.Errorf("the outcome is %+v, and there is an image %+v", o, view)
	}
	if !c.ceph.View(c.t, source).Snapshots["backup.of.the.user"] {
		c.t.Error("the user's snapshot is gone")
	}
	for at, was := range c.before {
		if !reflect.DeepEqual(c.look(at), was) {
			c.t.Errorf("%s was touched", at)
		}
	}

	return o
}

// want checks the outcome as well.
func (c *cloud) want(result worker.Result, reason worker.Reason, strategy string) {
	c.t.Helper()
	if o := c.check(); o.Result != result || o.Reason != reason || strategy != "" && o.Strategy != strategy {
		c.t.Errorf("the outcome is %+v, want %s/%s by %s", o, result, reason, strategy)
	}
}

func (c *cloud) String() string { return fmt.Sprint(c.ops) }
