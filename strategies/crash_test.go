package strategies_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
	"pgregory.net/rapid"
)

// scenario is a job that is then disturbed.
type scenario struct {
	name     string
	set      func(c *cloud)
	result   worker.Result
	reason   worker.Reason
	strategy string
	scripted bool // some operation fails for good
}

func order(names ...string) func(c *cloud) {
	return func(c *cloud) { c.options.Order = names }
}

// boxed asks for an image that has to be encoded.
func boxed(c *cloud) { c.format, c.glance.Decode = strategiestest.FormatBox, strategiestest.Unbox }

// refusing lets an operation fail for good, whoever tries it.
func refusing(op string, r worker.Reason, a worker.Advice) func(c *cloud) {
	return func(c *cloud) {
		c.on = func(got string) error {
			if got == op {
				return &worker.Error{Op: op, Reason: r, Advice: a}
			}

			return nil
		}
	}
}

func both(fs ...func(c *cloud)) func(c *cloud) {
	return func(c *cloud) {
		for _, f := range fs {
			f(c)
		}
	}
}

func scenarios() []scenario {
	none := worker.ReasonNone
	late := func(c *cloud) { c.options.Register = strategies.RegisterLate }
	caps := func(c *cloud) { c.glance.ReadsParents = true }
	full, format := worker.ReasonPoolFull, worker.ReasonFormatRefused
	// The guest's writes spare the signature, which is all that is needed.
	qcow2 := func(c *cloud) { c.ceph.Write(c.t, source, 0, []byte("QFI\xfb\x00\x00\x00\x01")) }

	return []scenario{
		{"clone early", caps, worker.Done, none, "clone-flatten", false},
		{"clone late", late, worker.Done, none, "clone-flatten", false},
		{"clone auto", func(*cloud) {}, worker.Done, none, "clone-flatten", false},
		{"copy", order("copy"), worker.Done, none, "copy", false},
		{"upload", order("export-upload"), worker.Done, none, "export-upload", false},
		{"upload of another format", both(order("export-upload"), boxed), worker.Done, none, "export-upload", false},
		{"clone to copy", refusing("ceph clone", worker.ReasonCephRefused, worker.OtherWay), worker.Done, none, "copy", true},
		{"clone to copy to upload", refusing("glance register", worker.ReasonGlanceRefused, worker.OtherWay), worker.Done, none,
			"export-upload", true},
		{"clone refused", both(caps, refusing("glance register", worker.ReasonGlanceRefused, worker.GiveUp)), worker.Failed,
			worker.ReasonGlanceRefused, "clone-flatten", true},
		{"copy full", both(order("copy"), refusing("ceph copy.finish", full, worker.GiveUp)), worker.Failed, full, "copy", true},
		{"upload full", both(order("export-upload"), refusing("glance upload", full, worker.GiveUp)), worker.Failed, full,
			"export-upload", true},
		{"clone of what is refused", qcow2, worker.Failed, format, "clone-flatten", true},
		{"copy of what is refused", both(qcow2, order("copy")), worker.Failed, format, "copy", true},
		{"upload of what is refused", both(qcow2, order("export-upload")), worker.Failed, format, "export-upload", true},
	}
}

// at faults operation n, counted from 0, and as many after it as times says.
func at(n, times int, m mode) func(string) mode {
	count := 0

	return func(string) mode {
		count++
		if count > n && count <= n+times {
			return m
		}

		return well
	}
}

// operations lists what a job does that nobody disturbs.
func operations(t *testing.T, s scenario) []string {
	var ops []string
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		s.set(c)
		c.begin(request())
		c.run("alone", nil, 10*time.Minute)
		c.want(s.result, s.reason, s.strategy)
		ops = c.ops
	})

	return ops
}

// disturbance is something that happens to one operation, or to several in a row.
type disturbance struct {
	mode  mode
	times int
}

// reads have no effect: whether one is reported as failed before or after it is the same.
func reads(op string) bool {
	return slices.Contains([]string{
		"ceph fsid", "ceph stat", "ceph inspect", "ceph open", "ceph read", "ceph complete", "glance image", "glance stores",
		"glance inspects", "cinder volume", "cinder backend",
	}, op)
}

// disturbances of operation n. To die before an operation is to die after the one before it.
func (s scenario) disturbances(n int, op string) []disturbance {
	all := []disturbance{{dieAfter, 1}, {failBefore, 2}}
	if n == 0 {
		all = append(all, disturbance{dieBefore, 1})
	}
	refusals := !s.scripted && !strings.HasPrefix(op, "journal") && !strings.HasPrefix(op, "settle") // tried for ever
	if refusals {
		// A refusal sends a job back. Where the script does that already, it would hit the undo, and what can't be
		// undone is left; package worker tests that.
		all = append(all, disturbance{refuseBefore, 1})
	}
	if !strings.HasPrefix(op, "journal claim") { // before it there is no lease to lose
		all = append(all, disturbance{hang, 1}, disturbance{loseBefore, 1})
	}
	if reads(op) {
		return all
	}
	if !strings.HasPrefix(op, "journal claim") && !strings.HasPrefix(op, "journal release") {
		all = append(all, disturbance{loseLate, 1})
	}
	all = append(all, disturbance{failAfter, 1}, disturbance{failAfter, 2})
	if refusals {
		all = append(all, disturbance{refuseAfter, 1}, disturbance{otherAfter, 1})
	}

	return all
}

// TestCrashMatrix walks every plan by itself: each operation of each scenario is disturbed in every way, and a second
// worker goes on.
func TestCrashMatrix(t *testing.T) {
	for _, s := range scenarios() {
		ops := operations(t, s)
		for n, op := range ops {
			last := n >= len(ops)-6 // what has its effect late may close the job before anybody takes it over
			for _, d := range s.disturbances(n, op) {
				t.Run(fmt.Sprintf("%s/%d %s/%s×%d", s.name, n, op, d.mode, d.times), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						c := disturbed(t, s, d.mode.fatal(), at(n, d.times, d.mode))
						if rec, err := c.record(); d.mode >= hang && !last && (err != nil || rec.Epoch < 2) {
							t.Errorf("nobody took the job over: %v, epoch %d", err, rec.Epoch)
						}
					})
				})
			}
		}
	}
}

// disturbed runs the job on disturbed workers and then on one that is not. free says that the disturbance may change
// the outcome; that all is consistent is checked all the same.
func disturbed(t testing.TB, s scenario, free bool, faults ...func(string) mode) *cloud {
	c := newCloud(t)
	s.set(c)
	c.begin(request())
	for i, f := range faults {
		c.run(fmt.Sprint("disturbed-", i), f, 10*time.Minute)
	}
	if rec, err := c.record(); err != nil || !rec.Closed {
		c.run("good", nil, 10*time.Minute)
	}
	if free {
		c.check()

		return c
	}
	c.want(s.result, s.reason, s.strategy)

	return c
}

// trial is one run that rapid judges: a failure of it must not fail the test before it is shrunk.
type trial struct {
	testing.TB
	failed []string
}

func (*trial) Helper()                        {}
func (r *trial) Error(args ...any)            { r.failed = append(r.failed, fmt.Sprintln(args...)) }
func (r *trial) Errorf(f string, args ...any) { r.failed = append(r.failed, fmt.Sprintf(f, args...)) }

// TestSchedules: several workers in a row, disturbed at random. The job ends once, as it has to.
func TestSchedules(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.SampledFrom(scenarios()).Draw(rt, "scenario")
		faults := make([]func(string) mode, rapid.IntRange(1, 4).Draw(rt, "workers"))
		for i := range faults {
			faults[i] = schedule(rt, fmt.Sprint("worker ", i))
		}
		tr := &trial{TB: t}
		synctest.Test(t, func(*testing.T) { disturbed(tr, s, false, faults...) })
		if len(tr.failed) > 0 {
			rt.Fatal(strings.Join(tr.failed, "\n"))
		}
	})
}

func schedule(rt *rapid.T, who string) func(string) mode {
	some := []mode{well, well, well, well, well, well, well, well, dieBefore, dieAfter, failBefore, failAfter, loseLate}
	plan := rapid.SliceOfN(rapid.SampledFrom(some), 0, 60).Draw(rt, who)
	n := 0

	return func(string) mode {
		n++
		if n > len(plan) {
			return well
		}

		return plan[n-1]
	}
}
