package worker_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
	"github.com/cinderlift/cinderlift/worker/workertest"
)

const ttl = 30 * time.Second

// errDead is what a killed worker gets for whatever it still tries. It takes the way that leaves most alone.
var errDead = &worker.Error{Op: "be alive", Reason: worker.ReasonLeaseLost, Advice: worker.StandBy, Err: errors.New("killed")}

// mode is what happens to one operation on the world.
type mode int

const (
	well       mode = iota
	dieBefore       // the worker is killed before the operation has an effect
	dieAfter        // … after it had its effect, before anybody noted it
	failBefore      // it fails without an effect
	failAfter       // it has its effect and is reported as failed
)

func modes() []mode { return []mode{dieBefore, dieAfter, failBefore, failAfter} }

func (m mode) String() string {
	return []string{"well", "die-before", "die-after", "fail-before", "fail-after"}[m]
}

// world is all that is outside of workers: broker, journal, Cinder, Glance, Ceph.
type world struct {
	t     tb
	store *workertest.Store
	queue chan *message
	conf  worker.Config

	strategies func(p *proc) []worker.Strategy
	task       func(ctx context.Context, p *proc, j worker.Job) (worker.Task, error)
	settling   func(p *proc, j worker.Job, o worker.Outcome) []worker.Step
	attend     func(ctx context.Context, p *proc, j worker.Job)

	mu     sync.Mutex
	things map[string]bool // made for a job: "<image>/snapshot"
	volume string          // status of every volume
	image  string          // status of every image
	told   []string        // "<step> <image> <result>"
	dlq    []error
	intake []worker.Intake
	trace  []string // effects in order, for the message of a failed test
	most   int      // jobs at a time in one worker
	procs  []*proc
}

// tb is what of testing.TB a world needs; trial has its own.
type tb interface {
	Helper()
	Cleanup(f func())
	Error(args ...any)
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

func newWorld(t tb) *world {
	w := &world{
		t: t, store: workertest.NewStore(ttl), queue: make(chan *message, 1000),
		conf: worker.Config{
			Lease:   worker.LeaseTimes{TTL: ttl},
			Stall:   100 * time.Hour, // steps of tests take long without a word
			Backoff: worker.Backoff{First: 100 * time.Millisecond, Max: time.Second, Patience: time.Minute, Claims: 3},
		},
		strategies: func(p *proc) []worker.Strategy { return []worker.Strategy{p.toy()} },
		things:     map[string]bool{}, volume: worker.VolumeUploading, image: worker.ImageQueued,
	}
	t.Cleanup(func() {
		for _, p := range w.procs {
			p.kill()
		}
	})

	return w
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) set(thing string, there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.note("%s=%v", thing, there)
	if there {
		w.things[thing] = true

		return
	}
	delete(w.things, thing)
}

func (w *world) has(thing string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()

	return w.things[thing]
}

func (w *world) left() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var list []string
	for thing := range w.things {
		list = append(list, thing)
	}
	slices.Sort(list)

	return list
}

// history is what happened, in order.
func (w *world) history() string {
	w.mu.Lock()
	defer w.mu.Unlock()

	return strings.Join(w.trace, "\n\t")
}

func (w *world) record(key string) worker.Record {
	w.t.Helper()
	r, err := w.store.Journal("test").Load(context.Background(), key)
	if err != nil {
		w.t.Errorf("load record %s: %v", key, err)
	}

	return r
}

// message is one request at the broker.
type message struct {
	job         worker.Job
	err         error // what decoding answers
	redelivered bool
	panics      bool
}

func job(n int) worker.Job {
	return worker.Job{
		ImageID: fmt.Sprintf("image-%d", n), VolumeID: fmt.Sprintf("volume-%d", n), ProjectID: "p", DiskFormat: "raw",
		ContainerFormat: "bare", Digest: fmt.Sprint("digest-", n), Private: "canary-token",
	}
}

func (w *world) send(jobs ...worker.Job) {
	for _, j := range jobs {
		w.queue <- &message{job: j}
	}
}

// proc is one worker process.
type proc struct {
	w       *world
	name    string
	journal *workertest.Journal
	fault   func(op string) mode
	runner  *worker.Runner
	gate    *worker.Gate
	cancel  context.CancelFunc
	hurry   chan struct{}
	done    chan struct{}

	mu      sync.Mutex
	dead    bool
	missing []string // operations of the journal that fail until further notice; "*" for all
	unacked []*message
	waiting int // calls of Receive under way
	running int
	ops     []string
	started int
	settled int
	aside   int
}

// start runs a worker; fault may be nil.
func (w *world) start(name string, fault func(op string) mode) *proc {
	ctx, cancel := context.WithCancel(context.Background())
	p := &proc{w: w, name: name, journal: w.store.Journal(name), fault: fault, cancel: cancel,
		hurry: make(chan struct{}), done: make(chan struct{}), gate: &worker.Gate{}}
	p.journal.Fail = p.journalFault
	p.runner = &worker.Runner{
		Source: source{p}, Journal: p.journal, Facts: facts{p}, Settler: settler{p}, Recorder: recorder{p},
		Strategies: func(worker.Claim) []worker.Strategy { return w.strategies(p) },
		Logger:     slog.New(slog.DiscardHandler), Config: w.conf, Gate: p.gate, Hurry: p.hurry,
	}
	w.procs = append(w.procs, p)
	go func() {
		defer close(p.done)
		if err := p.runner.Run(ctx); err != nil {
			w.t.Error("Run:", err)
		}
	}()

	return p
}

// stop is SIGTERM; it waits for the end.
func (p *proc) stop() {
	p.cancel()
	<-p.done
}

// kill is SIGKILL: nothing that the process still does has an effect, and its leases stay until they end.
func (p *proc) kill() {
	p.die()
	p.cancel()
	<-p.done
}

func (p *proc) die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	p.dead = true
	for _, m := range p.unacked {
		m.redelivered = true
		p.w.queue <- m
	}
	p.unacked = nil
	p.w.mu.Lock()
	p.w.note("%s is killed", p.name)
	p.w.mu.Unlock()
}

// away lets these operations of the journal fail from now on, and no others.
func (p *proc) away(ops ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.missing = ops
}

func (p *proc) lacks(op string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	return slices.Contains(p.missing, op) || slices.Contains(p.missing, "*")
}

func (p *proc) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()

	return p.dead
}

// next asks the fault about an operation. Those whose number depends on the clock are not counted.
func (p *proc) next(op string) mode {
	if op == "keys" || op == "load" || op == "renew" {
		return well
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ops = append(p.ops, op)
	if p.fault == nil {
		return well
	}

	return p.fault(op)
}

func transient(op string) error {
	return &worker.Error{Op: op, Reason: worker.ReasonCephUnavailable, Advice: worker.Retry, Err: errors.New("injected")}
}

// journalFault is the operation's fate when it goes to the journal.
func (p *proc) journalFault(op string) (before, after error) {
	if p.isDead() {
		return errDead, nil
	}
	if p.lacks(op) {
		return transient(op), nil
	}
	switch p.next(op) {
	case dieBefore:
		p.die()

		return errDead, nil
	case dieAfter:
		p.die()

		return nil, errDead
	case failBefore:
		return transient(op), nil
	case failAfter:
		return nil, transient(op)
	default:
		return nil, nil
	}
}

// do has an effect on the world, or not.
func (p *proc) do(op string, effect func() error) error {
	if p.isDead() {
		return errDead
	}
	m := p.next(op)
	switch m {
	case dieBefore:
		p.die()

		return errDead
	case failBefore:
		return transient(op)
	}
	err := effect()
	switch {
	case m == dieAfter:
		p.die()

		return errDead
	case m == failAfter && err == nil:
		return transient(op)
	default:
		return err
	}
}

// step makes thing when done and removes it when undone.
func (p *proc) step(j worker.Job, thing string) worker.Step {
	at := j.ImageID + "/" + thing

	return worker.Step{
		Name: thing,
		Do: func(context.Context, worker.Progress) error {
			return p.do("do "+thing, func() error { p.w.set(at, true); return nil })
		},
		Undo: func(context.Context) error {
			return p.do("undo "+thing, func() error { p.w.set(at, false); return nil })
		},
	}
}

// publish is a commit step: its undo finds out whether it had its effect.
func (p *proc) publish(j worker.Job) worker.Step {
	at := j.ImageID + "/active"

	return worker.Step{
		Name: "publish",
		Do: func(context.Context, worker.Progress) error {
			return p.do("do publish", func() error {
				if !p.w.has(j.ImageID+"/data") || !p.w.has(j.ImageID+"/snapshot") {
					p.w.t.Error("published what is not there")
				}
				p.w.set(at, true)

				return nil
			})
		},
		Undo: func(context.Context) error {
			return p.do("undo publish", func() error {
				if p.w.has(at) {
					return worker.ErrCommitted
				}

				return nil
			})
		},
	}
}

// tidy removes the snapshot at the end.
func (p *proc) tidy(j worker.Job) worker.Step {
	return worker.Step{
		Name: "tidy",
		Do: func(context.Context, worker.Progress) error {
			return p.do("do tidy", func() error { p.w.set(j.ImageID+"/snapshot", false); return nil })
		},
	}
}

// script is a strategy that plans what it is told.
type script struct {
	name string
	plan func(ctx context.Context, t worker.Task) (worker.Plan, error)
}

func (s script) Name() string { return s.name }

func (s script) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) { return s.plan(ctx, t) }

func fixed(name string, plan func(t worker.Task) worker.Plan) script {
	return script{name, func(_ context.Context, t worker.Task) (worker.Plan, error) { return plan(t), nil }}
}

// toy is a strategy with all there is: steps to undo, a commit point, a step after it.
func (p *proc) toy() script {
	return fixed("toy", func(t worker.Task) worker.Plan {
		return worker.Plan{
			Strategy: "toy", Commit: "publish", Keep: []byte(`{}`),
			Steps: []worker.Step{p.step(t.Job, "snapshot"), p.step(t.Job, "data"), p.publish(t.Job), p.tidy(t.Job)},
		}
	})
}

// after changes what a step's Do answers when it went well.
func after(s worker.Step, f func(ctx context.Context) error) worker.Step {
	do := s.Do
	s.Do = func(ctx context.Context, p worker.Progress) error {
		if err := do(ctx, p); err != nil {
			return err
		}

		return f(ctx)
	}

	return s
}

type source struct{ p *proc }

func (s source) Receive(ctx context.Context) (worker.Delivery, error) {
	s.p.count(&s.p.waiting, 1)
	defer s.p.count(&s.p.waiting, -1)
	if s.p.isDead() {
		<-ctx.Done()

		return nil, ctx.Err()
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case m := <-s.p.w.queue:
		s.p.mu.Lock()
		s.p.unacked = append(s.p.unacked, m)
		s.p.mu.Unlock()

		return &delivery{s.p, m, m.redelivered}, nil
	}
}

func (p *proc) count(n *int, by int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n += by
}

func (p *proc) number(n *int) int {
	p.mu.Lock()
	defer p.mu.Unlock()

	return *n
}

type delivery struct {
	p  *proc
	m  *message
	re bool
}

func (d *delivery) Job() (worker.Job, error) {
	if d.m.panics {
		panic("hostile message")
	}

	return d.m.job, d.m.err
}

func (d *delivery) Redelivered() bool { return d.re }

// settle ends the delivery; when that fails because the connection is gone, the broker delivers it again.
func (d *delivery) settle(op string, effect func()) error {
	err := d.p.do(op, func() error {
		d.gone()
		effect()

		return nil
	})
	d.p.mu.Lock()
	open := slices.Contains(d.p.unacked, d.m)
	d.p.mu.Unlock()
	if err != nil && open {
		d.gone()
		d.again()
	}

	return err
}

func (d *delivery) gone() {
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	i := slices.Index(d.p.unacked, d.m)
	if i < 0 {
		if !d.p.dead { // killed in this very moment: the broker has it back
			d.p.w.t.Error("a delivery was settled twice")
		}

		return
	}
	d.p.unacked = slices.Delete(d.p.unacked, i, i+1)
}

func (d *delivery) again() {
	d.m.redelivered = true
	d.p.w.queue <- d.m
}

func (d *delivery) Ack() error {
	return d.settle("ack", func() {
		if _, err := d.p.w.store.Journal("test").Load(context.Background(), d.m.job.Key()); err != nil {
			d.p.w.t.Error("acknowledged before the journal has it:", err)
		}
	})
}

func (d *delivery) Requeue() error { return d.settle("requeue", d.again) }

func (d *delivery) Reject(_ context.Context, why error) error {
	return d.settle("reject", func() {
		d.p.w.mu.Lock()
		defer d.p.w.mu.Unlock()
		d.p.w.dlq = append(d.p.w.dlq, why)
	})
}

type facts struct{ p *proc }

func (f facts) Task(ctx context.Context, j worker.Job) (worker.Task, error) {
	if f.p.isDead() {
		return worker.Task{}, errDead
	}
	f.p.w.mu.Lock()
	task := f.p.w.task
	f.p.w.mu.Unlock()
	if task != nil {
		return task(ctx, f.p, j)
	}

	return f.p.w.plainTask(j)
}

func (w *world) plainTask(j worker.Job) (worker.Task, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	image := w.image
	if w.things[j.ImageID+"/active"] {
		image = worker.ImageActive
	}

	return worker.Task{
		Job:    j,
		Volume: worker.Volume{ID: j.VolumeID, Name: "volume-" + j.VolumeID, Status: w.volume},
		Image:  worker.Image{ID: j.ImageID, Status: image},
	}, nil
}

type settler struct{ p *proc }

func (s settler) Settle(j worker.Job, o worker.Outcome) []worker.Step {
	if s.p.w.settling != nil {
		return s.p.w.settling(s.p, j, o)
	}

	return []worker.Step{s.p.tell("volume", j, o), s.p.tell("reply", j, o), s.p.tell("notify", j, o)}
}

func (p *proc) tell(what string, j worker.Job, o worker.Outcome) worker.Step {
	return worker.Step{Name: what, Do: func(context.Context, worker.Progress) error {
		return p.do("tell "+what, func() error {
			p.w.mu.Lock()
			defer p.w.mu.Unlock()
			p.w.note("tell %s %s %s", what, j.ImageID, o.Result)
			p.w.told = append(p.w.told, fmt.Sprintf("%s %s %s", what, j.ImageID, o.Result))

			return nil
		})
	}}
}

func (s settler) Attend(ctx context.Context, j worker.Job) {
	if s.p.w.attend != nil {
		s.p.w.attend(ctx, s.p, j)

		return
	}
	<-ctx.Done()
}

type recorder struct{ p *proc }

func (r recorder) Delivery(i worker.Intake, _ bool) {
	r.p.w.mu.Lock()
	defer r.p.w.mu.Unlock()
	r.p.w.intake = append(r.p.w.intake, i)
}

func (r recorder) JobStarted(bool) {
	r.p.count(&r.p.running, 1)
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	r.p.started++
	r.p.w.mu.Lock()
	defer r.p.w.mu.Unlock()
	r.p.w.most = max(r.p.w.most, r.p.running)
}

func (recorder) StepEnded(string, string, time.Duration, error) {}
func (recorder) StepRetried(string, string, worker.Reason)      {}
func (recorder) Moved(strategy string, cluster, through int64)  {}
func (r recorder) JobPutAside()                                 { r.p.count(&r.p.aside, 1) }
func (r recorder) JobReleased()                                 { r.p.count(&r.p.running, -1) }
func (r recorder) JobSettled(o worker.Outcome, _ time.Duration) { r.p.count(&r.p.settled, 1) }

// closed waits, in fake time, until the journal has closed the job.
func (w *world) closed(key string) worker.Record {
	w.t.Helper()
	for range 2000 {
		r, err := w.store.Journal("test").Load(context.Background(), key)
		if err == nil && r.Closed {
			return r
		}
		<-time.After(time.Second)
	}
	w.t.Fatalf("job %s was never closed: %+v\n\t%s", key, w.record(key), w.history())

	return worker.Record{}
}

// outcome waits for the job's end and checks that everyone was told the same, and at least once.
func (w *world) outcome(key string) worker.Outcome {
	w.t.Helper()
	r := w.closed(key)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range []string{"volume", "reply", "notify"} {
		if !slices.Contains(w.told, fmt.Sprintf("%s %s %s", what, key, r.Outcome.Result)) {
			w.t.Errorf("%s was not told that %s is %s: %q", what, key, r.Outcome.Result, w.told)
		}
	}
	for _, told := range w.told {
		if f := strings.Fields(told); f[1] == key && f[2] != string(r.Outcome.Result) {
			w.t.Errorf("%q was told, and the outcome is %s", told, r.Outcome.Result)
		}
	}

	return *r.Outcome
}

// want checks the outcome of a job and what is left of it.
func (w *world) want(key string, result worker.Result, reason worker.Reason, left ...string) worker.Outcome {
	w.t.Helper()
	o := w.outcome(key)
	if o.Result != result || o.Reason != reason {
		w.t.Errorf("outcome is %s/%s (%s), want %s/%s", o.Result, o.Reason, o.Message, result, reason)
	}
	if got := w.left(); !slices.Equal(got, left) {
		w.t.Errorf("left are %q, want %q\n\t%s", got, left, w.history())
	}

	return o
}
