package main

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

//go:embed region.py
var regionScript string

// region is where the workers find Glance and Cinder: behind proxies. Everybody else uses the lab's own.
const region = "Chaos"

// chaos is one run.
type chaos struct {
	opt     options
	out     io.Writer
	start   time.Time
	lab     *lab.Lab
	ledger  *ledger
	users   *users
	crew    *crew
	trouble *trouble
	logs    string
	raged   time.Duration
	undo    []func()

	mu sync.Mutex // of out
}

func (c *chaos) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.out, "[%6.1fs] %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

func (c *chaos) later(f func()) { c.undo = append(c.undo, f) }

// close takes everything down again, the last first.
func (c *chaos) close() {
	for n := len(c.undo) - 1; n >= 0; n-- {
		c.undo[n]()
	}
}

// restore leaves the lab's settings as they are when it is brought up: tests run on it afterwards.
func (c *chaos) restore() {
	for _, words := range [][]string{{"caps", "documented"}, {"glance", "reset"}, {"hook", "none"}} {
		if err := c.lab.Control(context.Background(), words[0], words[1:]...); err != nil {
			c.say("restore the lab's %s: %v", words[0], err)
		}
	}
}

// prepare makes everything but the volumes' content ready. What it has begun is undone when it fails.
func prepare(ctx context.Context, o options, out io.Writer) (_ *chaos, err error) {
	c := &chaos{opt: o, out: out, start: time.Now(), ledger: newLedger()}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.lab, err = lab.Open(o.env); err != nil {
		return nil, err
	}
	c.say("seed %d: %s, %d workers, %d volumes, leases of %s, hook %s", o.Seed, o.Time, o.Workers, o.Volumes, o.Lease, o.Hook)
	c.logs = filepath.Join(c.lab.Env["LAB_DIR"], "chaos", strconv.FormatUint(o.Seed, 10))
	if err := os.RemoveAll(c.logs); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.logs, 0o755); err != nil {
		return nil, err
	}
	for _, f := range []func(context.Context) error{c.meetUsers, c.proxies, c.settle, c.fill} {
		if err := f(ctx); err != nil {
			return nil, err
		}
	}

	return c, nil
}

func (c *chaos) meetUsers(ctx context.Context) (err error) {
	u := &users{lab: c.lab, ledger: c.ledger, seed: c.opt.Seed, say: c.say, digests: map[string]string{}, deadline: ctx}
	c.users = u
	if u.demo, err = c.lab.As(ctx, "demo"); err != nil {
		return err
	}
	c.later(u.demo.Close)
	if u.admin, err = c.lab.As(ctx, "service"); err != nil {
		return err
	}
	c.later(u.admin.Close)
	if u.look, err = c.lab.Inspect(lab.Manifest{}); err != nil {
		return err
	}
	c.later(func() { _ = u.look.Close() }) // it was killed, at worst
	if u.wire, err = newWire(ctx, c.lab); err != nil {
		return err
	}
	c.later(u.wire.stop)

	return nil
}

// proxies puts themselves between the workers and Glance, Cinder and RabbitMQ.
func (c *chaos) proxies(ctx context.Context) (err error) {
	t := &trouble{lab: c.lab, ledger: c.ledger, users: c.users, say: c.say, osds: 3}
	c.trouble = t
	if t.glance, err = lab.NewProxy(ctx, c.lab.Env["LAB_GLANCE_URL"]); err != nil {
		return err
	}
	c.later(func() { _ = t.glance.Close() })
	if t.cinder, err = lab.NewProxy(ctx, c.lab.Env["LAB_CINDER_URL"]); err != nil {
		return err
	}
	c.later(func() { _ = t.cinder.Close() })
	broker := c.lab.Env["LAB_AMQP_HOST"] + ":" + c.lab.Env["LAB_AMQP_PORT"]
	if t.bus, err = lab.NewCable(ctx, broker); err != nil {
		return err
	}
	c.later(func() { _ = t.bus.Close() })
	if err := c.catalog(ctx, "image="+t.glance.URL, "volumev3="+t.cinder.URL+"/v3/%(project_id)s"); err != nil {
		return err
	}
	c.later(func() { _ = c.catalog(context.WithoutCancel(ctx)) }) // the next run takes it out as well
	url := strings.Replace(c.lab.Env["LAB_TRANSPORT_URL"], broker, t.bus.Addr, 1)
	t.crew = &crew{lab: c.lab, ledger: c.ledger, dir: c.logs, dice: rand.New(rand.NewPCG(c.opt.Seed, 3)), say: c.say,
		set: map[string]string{"CINDERLIFT_TRANSPORT_URL": url, "OS_REGION_NAME": region, "CINDERLIFT_LEASE_TTL": c.opt.Lease.String(),
			// A job that we killed five times is put aside; no operator will come and look at it here.
			"CINDERLIFT_ASIDE": "5s"}}
	c.crew = t.crew

	return nil
}

func (c *chaos) catalog(ctx context.Context, endpoints ...string) error {
	_, err := c.lab.Exec(ctx, append([]string{"python3", "-c", regionScript, region}, endpoints...)...)
	if err != nil {
		return fmt.Errorf("change the catalog: %w", err)
	}

	return nil
}

// settle puts the lab into the state that most clouds will be in.
func (c *chaos) settle(ctx context.Context) error {
	c.undo = append(c.undo, c.restore)
	if err := c.lab.Control(ctx, "caps", "early"); err != nil {
		return err
	}
	// An upload would write every hole of the volume otherwise, and fill the lab's small OSDs.
	return c.lab.Control(ctx, "glance", "rbd/rbd_thin_provisioning=True")
}

// fill makes the volumes, or takes those of a run before, and remembers what they hold.
func (c *chaos) fill(ctx context.Context) error {
	have := map[string]string{}
	old, err := c.users.demo.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range old {
		have[v.Name] = v.ID
	}
	c.users.volumes = make([]string, c.opt.Volumes)
	if err := c.users.admin.Room(ctx, c.users.demo.Project()); err != nil {
		return err
	}
	if err := c.inParallel(func(n int) error { return c.volume(ctx, n, have) }); err != nil {
		return err
	}
	c.say("%d volumes are filled", len(c.users.volumes))

	return nil
}

// inParallel does something for all volumes, a few at a time.
func (c *chaos) inParallel(f func(n int) error) error {
	errs := make([]error, c.opt.Volumes)
	var all sync.WaitGroup
	slots := make(chan struct{}, 3)
	for n := range errs {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			errs[n] = f(n)
		})
	}
	all.Wait()

	return errors.Join(errs...)
}

func (c *chaos) volume(ctx context.Context, n int, have map[string]string) error {
	name := fmt.Sprintf("chaos-%d", n)
	id := have[name]
	if id == "" {
		var err error
		if id, err = c.users.demo.CreateVolume(ctx, lab.VolumeSpec{Name: name, GiB: 1}); err != nil {
			return err
		}
		if err := c.lab.Scatter(ctx, "volumes/volume-"+id, uint64(n), 4+n*7%29); err != nil {
			return err
		}
	}
	sum, err := c.lab.Digest(ctx, "volumes/volume-"+id)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.users.volumes[n], c.users.digests[id] = id, sum
	if !c.opt.Keep {
		c.later(func() { c.forget(context.WithoutCancel(ctx), id) })
	}

	return err
}

// forget deletes a volume at the end, which also proves that nothing hangs on it.
func (c *chaos) forget(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := c.users.demo.DeleteVolume(ctx, id); err != nil {
		c.say("delete volume %s: %v", id, err)
	}
}

func (c *chaos) hooks() []string {
	if c.opt.Hook == "both" {
		return []string{"volume_api_class", "volume_manager"}
	}

	return []string{c.opt.Hook}
}

// rage is the run: workers, users and disturbances, one phase for each way into Cinder.
func (c *chaos) rage(ctx context.Context) {
	begin := time.Now()
	working, stop := context.WithCancel(context.WithoutCancel(ctx))
	c.crew.stopping = working
	c.crew.start(c.opt.Workers)
	watching, done := context.WithCancel(context.WithoutCancel(ctx))
	var watch sync.WaitGroup
	watch.Go(func() { c.users.watch(watching) })
	watch.Go(func() { c.progress(watching) })
	c.rest(ctx)
	hooks := c.hooks()
	each := c.opt.Time / time.Duration(len(hooks))
	for n, hook := range hooks {
		if err := c.lab.Control(ctx, "hook", hook); err != nil {
			c.say("hook %s: %v", hook, err)

			continue
		}
		c.users.manager.Store(hook == "volume_manager")
		c.users.most = c.opt.Jobs * int64(n+1) / int64(len(hooks))
		c.phase(ctx, n, each)
	}
	done()
	watch.Wait()
	stop()
	c.crew.stop()
	c.raged = time.Since(begin)
}

// rest waits until workers have ended what a run before has left.
func (c *chaos) rest(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for _, id := range c.users.volumes {
		if err := c.users.free(ctx, id); err != nil {
			c.say("%v", err)
		}
	}
}

// phase lets users ask and things happen for a while, and then waits until all has come to its end.
func (c *chaos) phase(ctx context.Context, n int, length time.Duration) {
	from := time.Duration(n) * length
	deadline, end := context.WithTimeout(context.WithoutCancel(ctx), length+c.opt.Drain)
	defer end()
	c.users.deadline = deadline
	asking, hush := context.WithTimeout(ctx, length)
	defer hush()
	disturbing, calm := context.WithCancel(asking)
	defer calm()
	var users, troubles sync.WaitGroup
	for v := range c.users.volumes {
		users.Go(func() { c.users.serve(asking, n, v) })
	}
	workers, services := plan(c.opt.Seed, pace{Workers: c.opt.Every, Services: c.opt.Service, Lease: c.opt.Lease}, c.opt.Time)
	for _, events := range [][]event{workers, services} {
		troubles.Go(func() { c.trouble.happen(disturbing, time.Now().Add(-from), cut(events, from, from+length)) })
	}
	asked := make(chan struct{})
	go func() { defer close(asked); users.Wait() }()
	select {
	case <-asked: // enough was asked for
	case <-asking.Done():
	}
	calm()
	troubles.Wait()
	c.trouble.asleep.Wait()
	c.say("no more disturbances, %d jobs are to end", len(c.ledger.waiting(0)))
	<-asked
}

func cut(events []event, from, to time.Duration) []event {
	var some []event
	for _, e := range events {
		if e.At >= from && e.At < to {
			some = append(some, e)
		}
	}

	return some
}

// progress prints a line now and then.
func (c *chaos) progress(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, 15*time.Second)
		c.ledger.mu.Lock()
		asked := len(c.ledger.order)
		c.ledger.mu.Unlock()
		open := len(c.ledger.waiting(0))
		c.say("%d jobs, %d under way; %d kills, %d service faults, %d adoptions", asked, open, c.ledger.counted("kills"),
			c.ledger.counted("service_faults"), c.ledger.counted("adoptions"))
	}
}
