package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cinderlift/cinderlift/glance"
	"github.com/cinderlift/cinderlift/internal/ceph"
	"github.com/cinderlift/cinderlift/internal/cinder"
	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/metrics"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// parts is everything that a command works with. Close it.
type parts struct {
	config  config
	log     *slog.Logger
	metrics *metrics.Recorder
	session *keystone.Session
	glance  *glance.Client
	cinder  *cinder.REST
	cluster *ceph.Cluster
	bus     *oslo.Bus
	gate    *worker.Gate
}

// Names under which the gate is closed by probes; the runner has its own.
const (
	gateBus  = "bus"
	gateCeph = "ceph"
)

// pauses lists all names under which the gate may be closed.
func pauses() []string {
	names := []string{gateBus, gateCeph}
	for _, r := range worker.Pauses() {
		names = append(names, string(r))
	}

	return names
}

// probeEvery is how often readiness is looked at; shorter than an orchestrator's usual period of 10 s.
const probeEvery = 5 * time.Second

// assemble builds everything and fails fast: a worker that can't sign in or reach Ceph has to say so at once.
func assemble(ctx context.Context, c config, o openstack, log *slog.Logger) (_ *parts, err error) {
	kinds, results := orphans()
	p := &parts{config: c, log: log, metrics: metrics.New(metrics.Options{
		Version: version(), Strategies: strategies.All(), Steps: steps(), Pauses: pauses(), Orphans: kinds, Reaps: results, Engines: ceph.Engines()})}
	p.gate = &worker.Gate{Changed: p.paused}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.bus, err = newBus(c, p.metrics, log); err != nil {
		return nil, err
	}
	if p.session, err = signIn(ctx, o, p.metrics); err != nil {
		return nil, err
	}
	p.glance = glance.New(p.session, glance.Options{})
	if p.cinder, err = cinder.NewREST(p.session, cinder.RESTOptions{NameTemplate: c.VolumeNames}); err != nil {
		return nil, err
	}
	limits, err := c.limits()
	if err != nil {
		return nil, errConfig{err}
	}
	p.cluster, err = ceph.Open(ctx, ceph.Options{ConfFile: c.CephConf, User: c.CephUser, JournalPool: c.journalPool(),
		Namespace: c.JournalNamespace, Owner: c.Name, LeaseTTL: c.LeaseTTL, Limits: limits, Engine: p.metrics.Engine, Logger: log})

	return p, err
}

// paused tells operators when taking work stops, and when it goes on.
func (p *parts) paused(name string, is bool) {
	p.metrics.Paused(name, is)
	if is {
		p.log.Warn("taking no new work", "reason", name)
	} else {
		p.log.Info("a reason for taking no new work is gone", "reason", name)
	}
}

// close gives everything back, the last first.
func (p *parts) close() {
	if p.cluster != nil {
		if err := p.cluster.Close(); err != nil {
			p.log.Warn("close the connection to Ceph", "error", err)
		}
	}
	if p.session != nil {
		p.session.Close()
	}
}

func newBus(c config, m *metrics.Recorder, log *slog.Logger) (*oslo.Bus, error) {
	t, err := oslo.ParseTransportURL(string(c.TransportURL))
	if err != nil {
		return nil, errConfig{fmt.Errorf("CINDERLIFT_TRANSPORT_URL: %w", err)}
	}
	links := &linkCount{metrics: m, seen: map[string]bool{}, up: map[string]bool{}}
	b, err := oslo.New(oslo.Options{Transport: t, Exchange: c.ControlExchange, Topic: c.Topic, Name: "cinderlift " + c.Name,
		QueueType: oslo.QueueType(c.QueueType), Logger: log,
		Events: oslo.Events{Connected: links.connected, Disconnected: links.disconnected}})
	if err != nil {
		return nil, errConfig{fmt.Errorf("CINDERLIFT_TRANSPORT_URL: %w", err)}
	}

	return b, nil
}

// linkCount turns what happens to the two connections of the bus into metrics.
type linkCount struct {
	metrics *metrics.Recorder

	mu       sync.Mutex
	seen, up map[string]bool // by role
}

func (l *linkCount) connected(role string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	again := l.seen[role]
	l.seen[role], l.up[role] = true, true
	if again {
		l.metrics.BusReconnected()
	}
	l.metrics.BusConnected(len(l.up) == 2)
}

func (l *linkCount) disconnected(role string, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.up, role)
	l.metrics.BusConnected(false)
	l.metrics.BusFailed()
}

// signIn opens the session that Glance and Cinder share.
func signIn(ctx context.Context, o openstack, m *metrics.Recorder) (*keystone.Session, error) {
	opts := keystone.Options{
		Cloud:   o.Cloud,
		AuthURL: o.AuthURL, Username: o.Username, Password: keystone.Secret(o.Password), ProjectName: o.ProjectName,
		UserDomainName: o.UserDomainName, ProjectDomainName: o.ProjectDomainName,
		ApplicationCredentialID:     o.ApplicationCredentialID,
		ApplicationCredentialSecret: keystone.Secret(o.ApplicationCredentialSecret),
		Region:                      o.RegionName, Interface: o.Interface, CAFile: o.Cacert,
	}
	if o.ClientConfigFile != "" {
		opts.CloudFiles = []string{o.ClientConfigFile}
	}
	opts.Observe = func(service, _ string, code int, _ time.Duration, _ error) { m.Request(serviceName(service), code) }
	s, err := keystone.Open(ctx, opts)
	if worker.ReasonOf(err) == worker.ReasonBadRequest {
		return nil, errConfig{fmt.Errorf("OS_*: %w", err)}
	}

	return s, err
}

// serviceName is the project's name for the catalog's type.
func serviceName(catalogType string) string {
	switch catalogType {
	case keystone.Image.String():
		return metrics.Glance
	case keystone.Volume.String():
		return metrics.Cinder
	default:
		return metrics.Keystone
	}
}

// steps lists the steps of the strategies for metrics that have to be present at zero.
func steps() map[string][]string {
	return map[string][]string{
		strategies.NameCloneFlatten: {strategies.StepSnapshot, strategies.StepInspect, strategies.StepProtect, strategies.StepClone,
			strategies.StepSeal, strategies.StepRegister, strategies.StepFlatten, strategies.StepReleaseSource},
		strategies.NameCopy: {strategies.StepSnapshot, strategies.StepInspect, strategies.StepCopyObjects, strategies.StepSeal,
			strategies.StepRegister, strategies.StepReleaseSource},
		strategies.NameExportUpload: {strategies.StepSnapshot, strategies.StepInspect, strategies.StepUpload, strategies.StepReleaseSource},
	}
}

func (c *config) journalPool() string {
	if c.JournalPool != "" {
		return c.JournalPool
	}

	return c.ImagePool // "": internal/ceph takes images
}

// imagePool is where images go as far as the configuration says; where it does not, the pool of the journal, which is
// there in any case.
func (p *parts) imagePool() string {
	return cmp.Or(p.config.ImagePool, p.config.journalPool(), "images")
}

func (c *config) strategyOptions() strategies.Options {
	return strategies.Options{Order: c.Strategies, Register: strategies.RegisterMode(c.Register), VolumePools: c.VolumePools,
		ImagePool: c.ImagePool, ImageFSID: c.ImageFsid, StoreID: c.ImageStore, Format: c.formatPolicy()}
}

func (c *config) formatPolicy() imageformat.Policy {
	return imageformat.Policy{Checks: imageformat.Checks(c.FormatCheck), AnyFormat: !c.RequireImageFormatMatch,
		Nonfatal: c.GptSafetyChecksNonfatal}
}

// runner wires one worker.
func (p *parts) runner() *worker.Runner {
	c := p.config
	memory, formats := &strategies.Memory{}, c.formats()

	return &worker.Runner{
		Source:  cinder.NewSource(cinder.OnBus(p.bus), cinder.SourceOptions{Exchange: c.ControlExchange}),
		Journal: p.cluster,
		Facts:   cinder.NewFacts(p.cinder, p.glance),
		Strategies: func(claim worker.Claim) []worker.Strategy {
			images := claim.(*ceph.Claim).Images() //nolint:forcetypeassert // the journal is p.cluster, see above
			list, err := strategies.Builtin(strategies.Deps{Source: images, Destination: images, Images: p.glance,
				Backends: p.cinder, Memory: memory, Formats: formats, Options: c.strategyOptions()})
			if err != nil {
				panic(err) // loadConfig has checked the order
			}

			return list
		},
		Settler: cinder.NewSettler(cinder.OnBus(p.bus), p.cinder, p.glance, cinder.SettlerOptions{Exchange: c.ControlExchange,
			Host: c.Name, Topic: c.Notifications, Quiet: c.Notifications == "none", Logger: p.log}),
		Context:  traced,
		Recorder: p.metrics,
		Logger:   p.log,
		Gate:     p.gate,
		Config: worker.Config{Slots: c.Slots, Data: c.DataSlots, Exports: c.ExportSlots, Lease: worker.LeaseTimes{TTL: c.LeaseTTL}, Scan: c.ScanEvery, Look: c.Look,
			SoftStop: c.SoftStop, Aside: zeroIs(c.Aside, -1), Retention: c.Retention,
			Backoff: worker.Backoff{Patience: c.Patience, Claims: c.Deaths}},
	}
}

// zeroIs answers other for zero, where worker takes zero for its default.
func zeroIs(d, other time.Duration) time.Duration {
	if d == 0 {
		return other
	}

	return d
}

// traced makes every request to OpenStack on a job's behalf bear the id by which its user's request can be followed.
func traced(ctx context.Context, j worker.Job) context.Context {
	id := j.GlobalRequestID
	if id == "" {
		id = j.RequestID
	}

	return keystone.WithRequestID(ctx, id)
}

// serve is a worker's life: everything up, work until ctx ends, hand over, everything down. The bus outlives the runner:
// jobs that end while stopping still have to be told. inject wraps the runner, see faults.
func serve(ctx context.Context, c config, o openstack, inject func(*worker.Runner) *worker.Runner, stderr io.Writer) error {
	log := newLogger(c, stderr)
	signals, deaf := hangUps()
	defer deaf()
	p, err := assemble(ctx, c, o, log)
	if err != nil {
		return err
	}
	var drained atomic.Bool
	defer atLast(ctx, c.SoftStop, func() { leave(drained.Load(), log) })() // bounds also what is deferred after it
	defer p.close()
	p.gate.Set(gateBus, errors.New("not connected yet"))
	stopAdmin, err := serveAdmin(ctx, c.Listen, adminServer(p.metrics.Handler(), readiness(p.gate)), log)
	if err != nil {
		return errConfig{fmt.Errorf("CINDERLIFT_LISTEN: %w", err)}
	}
	defer stopAdmin()

	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	var w sync.WaitGroup
	defer w.Wait()
	defer stop()
	w.Go(func() { _ = p.bus.Run(background) }) // ends with background, without an error
	w.Go(func() { probe(background, p.gate, probeEvery, gateBus, p.busReady) })
	w.Go(func() { probe(background, p.gate, probeEvery, gateCeph, p.cephReady) })
	w.Go(func() { p.keepReaping(ctx) })
	w.Go(func() { c.reload(background, signals, p.cluster.Limit, log) })
	log.Info("worker started", "version", version(), "slots", c.Slots, "data_slots", c.DataSlots, "export_slots", c.ExportSlots)
	r := p.runner()
	p.metrics.Moving(r.Moving)
	r.Hurry = hurried(ctx, log)
	err = inject(r).Run(ctx)
	drained.Store(true)
	log.Info("worker stopped")

	return err
}

// busReady is asked each probeEvery; it waits for the first connection, so that readiness comes with it.
func (p *parts) busReady(ctx context.Context) error {
	for {
		s := p.bus.State()
		if s.Ready() {
			return nil
		}
		why := fmt.Errorf("consuming: %s, publishing: %s", linkText(s.Consume), linkText(s.Publish))
		select {
		case <-ctx.Done():
			return why
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func linkText(l oslo.LinkState) string {
	switch {
	case l.Blocked != "":
		return "blocked by the broker: " + l.Blocked
	case l.Connected:
		return "connected"
	case l.Reason != "":
		return l.Reason
	default:
		return "not connected yet"
	}
}

// cephReady looks whether the journal answers, soon enough, and whether there is room for images. Running jobs go on
// whatever it says; a slow or full cluster does not get more of them.
func (p *parts) cephReady(ctx context.Context) error {
	start := time.Now()
	err := p.cluster.Ping(ctx)
	if err == nil {
		if took := time.Since(start); took > p.config.Slow {
			err = fmt.Errorf("the journal took %s for one small answer, more than CINDERLIFT_SLOW", took.Round(time.Millisecond))
		}
	}
	if err == nil {
		err = p.cluster.Full(ctx, p.imagePool())
	}
	if err != nil && ctx.Err() == nil {
		p.metrics.CephFailed()
	}

	return err
}

// newLogger writes to stderr, where orchestrators expect it.
func newLogger(c config, w io.Writer) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		panic(err) // loadConfig has checked it
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.LogFormat == "text" {
		return slog.New(slog.NewTextHandler(w, opts)).With("worker", c.Name)
	}

	return slog.New(slog.NewJSONHandler(w, opts)).With("worker", c.Name)
}
