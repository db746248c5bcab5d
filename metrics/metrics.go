package metrics

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/cinderlift/cinderlift/worker"
)

// none is the label of a job that ended before a strategy was chosen.
const none = "none"

// Services that are counted by name.
const (
	Glance   = "glance"
	Cinder   = "cinder"
	Keystone = "keystone"
	Ceph     = "ceph"
	Bus      = "bus"
)

// Recorder counts. Make it with New; its methods may be called concurrently.
type Recorder struct {
	registry *prometheus.Registry

	deliveries   *prometheus.CounterVec
	redeliveries prometheus.Counter
	adopted      prometheus.Counter
	aside        prometheus.Counter
	running      prometheus.Gauge
	settled      *prometheus.CounterVec
	took         *prometheus.HistogramVec
	stepTook     *prometheus.HistogramVec
	stepFailed   *prometheus.CounterVec
	moved        *prometheus.CounterVec
	requests     *prometheus.CounterVec
	errors       *prometheus.CounterVec
	connected    prometheus.Gauge
	reconnects   prometheus.Counter
	paused       *prometheus.GaugeVec

	orphansFound   *prometheus.CounterVec
	orphansRemoved *prometheus.CounterVec
	reaps          *prometheus.CounterVec
	engines        *prometheus.CounterVec
}

var _ worker.Recorder = (*Recorder)(nil)

// Options say which series there are from the start.
type Options struct {
	Strategies []string            // names
	Steps      map[string][]string // names of the steps by strategy
	Pauses     []string            // names under which taking work is paused
	Orphans    []string            // kinds of what jobs leave behind
	Reaps      []string            // results of looking for it
	Engines    map[string][]string // engines that bring an image's data, with the reasons for each
	Version    string
}

// New makes the series, with those of the Go runtime and the process beside them.
func New(o Options) *Recorder {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := build(reg)
	m.atZero(o)
	promauto.With(reg).NewGaugeVec(prometheus.GaugeOpts{Name: "cinderlift_build_info",
		Help: "Always 1; the label tells what runs."}, []string{"version"}).WithLabelValues(o.Version).Set(1)

	return m
}

func build(reg *prometheus.Registry) *Recorder {
	f := promauto.With(reg)
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return f.NewCounterVec(prometheus.CounterOpts{Name: "cinderlift_" + name, Help: help}, labels)
	}

	return &Recorder{
		registry: reg,
		deliveries: counter("deliveries_total",
			"Messages taken from the work queue, by what became of them.", "intake"),
		redeliveries: f.NewCounter(prometheus.CounterOpts{Name: "cinderlift_redeliveries_total",
			Help: "Messages that the broker had handed out before."}),
		adopted: f.NewCounter(prometheus.CounterOpts{Name: "cinderlift_jobs_adopted_total",
			Help: "Jobs taken over from a worker that died, was stopped or lost its lease."}),
		aside: f.NewCounter(prometheus.CounterOpts{Name: "cinderlift_jobs_put_aside_total",
			Help: "Jobs put aside because they killed several workers: an operator should look at them soon."}),
		running: f.NewGauge(prometheus.GaugeOpts{Name: "cinderlift_jobs_in_progress",
			Help: "Jobs that this worker holds the lease of."}),
		settled: counter("jobs_total",
			"Jobs that ended, by strategy, result and reason.", "strategy", "result", "reason"),
		// Seconds for clones, hours for uploads through the worker.
		took: f.NewHistogramVec(prometheus.HistogramOpts{Name: "cinderlift_job_duration_seconds",
			Help:    "Time from a request's acceptance until everyone was told how it ended.",
			Buckets: []float64{1, 2, 4, 8, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400}}, []string{"strategy", "result"}),
		stepTook: f.NewHistogramVec(prometheus.HistogramOpts{Name: "cinderlift_step_duration_seconds",
			Help:    "Time of one try of a step, good or bad.",
			Buckets: []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 1800, 7200}}, []string{"strategy", "step"}),
		stepFailed: counter("step_failures_total",
			"Tries of a step that failed, by reason.", "strategy", "reason"),
		moved: counter("bytes_total",
			"Data moved: inside the Ceph cluster, or through this worker.", "strategy", "via"),
		requests: counter("openstack_requests_total",
			"Requests to OpenStack services, by class of the answer (2xx, 3xx, 4xx, 5xx, or none without an answer).",
			"service", "code"),
		errors: counter("errors_total",
			"Failures of the services that a worker needs: no answer, a server error, or a refusal of Ceph.", "service"),
		connected: f.NewGauge(prometheus.GaugeOpts{Name: "cinderlift_bus_connected",
			Help: "1 while the connections to the broker are up."}),
		reconnects: f.NewCounter(prometheus.CounterOpts{Name: "cinderlift_bus_reconnects_total",
			Help: "Connections to the broker that were made again."}),
		paused: f.NewGaugeVec(prometheus.GaugeOpts{Name: "cinderlift_paused",
			Help: "1 while this worker takes no new work for this reason; running jobs go on."}, []string{"reason"}),
		orphansFound: counter("orphans_found_total",
			"What jobs left behind and no open job owns, by kind; what stays is counted again by each look.", "kind"),
		orphansRemoved: counter("orphans_removed_total",
			"What jobs left behind and was removed, by kind.", "kind"),
		engines: counter("copies_total",
			"Copies of an image's data inside Ceph, by engine (osd: the OSDs among themselves; worker, librbd: through this "+
				"worker) and why not by the OSDs.", "engine", "reason"),
		reaps: counter("reaps_total",
			"Looks for what jobs left behind, by this worker; there is one for all workers at a time.", "result"),
	}
}

// atZero makes every series that can be foreseen.
func (m *Recorder) atZero(o Options) {
	for _, i := range worker.Intakes() {
		m.deliveries.WithLabelValues(string(i))
	}
	for _, name := range o.Pauses {
		m.paused.WithLabelValues(name)
	}
	for _, kind := range o.Orphans {
		m.orphansFound.WithLabelValues(kind)
		m.orphansRemoved.WithLabelValues(kind)
	}
	for _, result := range o.Reaps {
		m.reaps.WithLabelValues(result)
	}
	for engine, reasons := range o.Engines {
		for _, reason := range reasons {
			m.engines.WithLabelValues(engine, reason)
		}
	}
	for _, s := range []string{Glance, Cinder, Keystone, Ceph, Bus} {
		m.errors.WithLabelValues(s)
	}
	for _, s := range []string{Glance, Cinder, Keystone} {
		for _, code := range []string{"2xx", "3xx", "4xx", "5xx", none} {
			m.requests.WithLabelValues(s, code)
		}
	}
	for _, s := range append([]string{none}, o.Strategies...) {
		m.strategyAtZero(s, o.Steps[s])
	}
}

func (m *Recorder) strategyAtZero(strategy string, steps []string) {
	for _, reason := range worker.Reasons() {
		m.stepFailed.WithLabelValues(strategy, string(reason))
		if reason != worker.ReasonNone {
			m.settled.WithLabelValues(strategy, string(worker.Failed), string(reason))
		}
	}
	m.settled.WithLabelValues(strategy, string(worker.Done), string(worker.ReasonNone))
	m.settled.WithLabelValues(strategy, string(worker.Declined), string(worker.ReasonNotApplicable))
	m.settled.WithLabelValues(strategy, string(worker.Cancelled), string(worker.ReasonImageMissing))
	for _, r := range worker.Results() {
		m.took.WithLabelValues(strategy, string(r))
	}
	for _, step := range steps {
		m.stepTook.WithLabelValues(strategy, step)
	}
	for _, via := range []string{"cluster", "worker"} {
		m.moved.WithLabelValues(strategy, via)
	}
}

// Handler serves the series, in OpenMetrics where it is asked for.
func (m *Recorder) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{Registry: m.registry, EnableOpenMetrics: true})
}

// Delivery implements worker.Recorder.
func (m *Recorder) Delivery(i worker.Intake, redelivered bool) {
	m.deliveries.WithLabelValues(string(i)).Inc()
	if redelivered {
		m.redeliveries.Inc()
	}
}

// JobStarted implements worker.Recorder.
func (m *Recorder) JobStarted(adopted bool) {
	m.running.Inc()
	if adopted {
		m.adopted.Inc()
	}
}

// JobReleased implements worker.Recorder.
func (m *Recorder) JobReleased() { m.running.Dec() }

// JobPutAside implements worker.Recorder.
func (m *Recorder) JobPutAside() { m.aside.Inc() }

// Engine counts a copy of an image's data by the engine that does it, and why not by the best one.
func (m *Recorder) Engine(engine, reason string) { m.engines.WithLabelValues(engine, reason).Inc() }

// Moving makes two series of what f answers: how many jobs move data, and how many wait until they may. Call it once.
func (m *Recorder) Moving(f func() (now, waiting int)) {
	gauge := func(name, help string, value func() int) {
		promauto.With(m.registry).NewGaugeFunc(prometheus.GaugeOpts{Name: "cinderlift_" + name, Help: help},
			func() float64 { return float64(value()) })
	}
	gauge("jobs_moving_data", "Jobs of this worker that copy, flatten or upload now.", func() int { now, _ := f(); return now })
	gauge("jobs_waiting_to_move_data", "Jobs of this worker that wait until others have moved their data.",
		func() int { _, waiting := f(); return waiting })
}

// StepEnded implements worker.Recorder.
func (m *Recorder) StepEnded(strategy, step string, took time.Duration, err error) {
	m.stepTook.WithLabelValues(strategy, step).Observe(took.Seconds())
	if err == nil {
		return
	}
	reason := worker.ReasonOf(err)
	m.stepFailed.WithLabelValues(strategy, string(reason)).Inc()
	if reason == worker.ReasonCephUnavailable || reason == worker.ReasonCephRefused || reason == worker.ReasonPoolFull {
		m.errors.WithLabelValues(Ceph).Inc()
	}
}

// StepRetried implements worker.Recorder. Failed tries are counted by StepEnded; this counts those outside of steps,
// such as the facts and the journal.
func (m *Recorder) StepRetried(strategy, step string, r worker.Reason) {
	if strategy == "journal" {
		m.errors.WithLabelValues(Ceph).Inc()
	}
}

// Moved implements worker.Recorder.
func (m *Recorder) Moved(strategy string, cluster, through int64) {
	m.moved.WithLabelValues(strategy, "cluster").Add(float64(cluster))
	m.moved.WithLabelValues(strategy, "worker").Add(float64(through))
}

// JobSettled implements worker.Recorder.
func (m *Recorder) JobSettled(o worker.Outcome, took time.Duration) {
	strategy := o.Strategy
	if strategy == "" {
		strategy = none
	}
	m.settled.WithLabelValues(strategy, string(o.Result), string(o.Reason)).Inc()
	m.took.WithLabelValues(strategy, string(o.Result)).Observe(took.Seconds())
}

// Request counts a request to an OpenStack service; code is 0 when there was no answer.
func (m *Recorder) Request(service string, code int) {
	class := none
	if code >= 100 && code < 600 {
		class = strconv.Itoa(code/100) + "xx"
	}
	m.requests.WithLabelValues(service, class).Inc()
	if code == 0 || code >= 500 {
		m.errors.WithLabelValues(service).Inc()
	}
}

// BusConnected tells whether all connections to the broker are up.
func (m *Recorder) BusConnected(up bool) {
	if up {
		m.connected.Set(1)
	} else {
		m.connected.Set(0)
	}
}

// Paused tells whether no new work is taken for this reason.
func (m *Recorder) Paused(reason string, is bool) {
	value := 0.0
	if is {
		value = 1
	}
	m.paused.WithLabelValues(reason).Set(value)
}

// BusReconnected counts a connection that was made again.
func (m *Recorder) BusReconnected() { m.reconnects.Inc() }

// BusFailed counts a connection that was lost or could not be made.
func (m *Recorder) BusFailed() { m.errors.WithLabelValues(Bus).Inc() }

// CephFailed counts a failure outside of a job, such as a health probe that got no answer.
func (m *Recorder) CephFailed() { m.errors.WithLabelValues(Ceph).Inc() }
