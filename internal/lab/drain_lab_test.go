//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// mostHandover is how long it may take from SIGTERM until another worker has the job; without drain it would be a lease.
const mostHandover = 15 * time.Second

// TestDrain sends SIGTERM during every step of every way, settling and the question for the facts included: the worker
// ends in time with exit code 0, and another one finishes the job within seconds. Some steps of each way always, all of
// them with CINDERLIFT_CHAOS=full.
func TestDrain(t *testing.T) {
	w := within(t, 40*time.Minute)
	binary := w.faulty()
	d := w.atDesk("volume_manager")
	sums := &handovers{}
	t.Run("steps", func(t *testing.T) {
		for _, v := range ways() {
			t.Run(v.name, func(t *testing.T) {
				t.Parallel()
				l := w.of(t, 30*time.Minute).lane(d, "drain-"+v.name, v, 3)
				for _, at := range l.drained(binary) {
					t.Run(slashless(at), func(t *testing.T) { l.on(t, 4*time.Minute).drain(binary, at+"/term-in", sums) })
				}
			})
		}
	})
	sums.log(t)
}

// drained lists <strategy>/<step> of everything in which a SIGTERM is to arrive.
func (l *lane) drained(binary string) (at []string) {
	l.t.Helper()
	seen := map[string]bool{}
	for _, c := range l.cells(binary) {
		where := c.fault[:lastSlash(c.fault)]
		if c.count == 1 && !seen[where] {
			seen[where] = true
			at = append(at, where)
		}
	}
	if !thorough() {
		at = slices.DeleteFunc(at, func(where string) bool {
			return !slices.Contains([]string{"clone-flatten/register", "clone-flatten/flatten", "copy/copy-objects",
				"export-upload/upload", "settle/cast-done", "plan/facts"}, where)
		})
	}

	return at
}

// drain runs a job whose worker gets SIGTERM at a failpoint and may not go on for a moment.
func (l *lane) drain(binary, fault string, sums *handovers) {
	l.t.Helper()
	victim := l.start(binary, map[string]string{"CINDERLIFT_FAULT": fault, "CINDERLIFT_SCAN_EVERY": "10m", "CINDERLIFT_SOFT_STOP": "0s"})
	image := l.firing(victim, cell{count: 1})
	l.handedOver(victim, image, lastFault(victim), sums)
	l.closedBy(image, victim, l.heir)
	l.ended(image, true)
}

// handovers are what was measured.
type handovers struct{ exits, adopted tally }

func (s *handovers) log(t *testing.T) {
	t.Helper()
	t.Logf("SIGTERM to exit: %s; SIGTERM to adopted: %s", spread(s.exits.stops), spread(s.adopted.stops))
}

// handedOver checks that the worker ends in time after its SIGTERM, and that the heir has the job soon, unless the job
// was closed before.
func (l *lane) handedOver(victim *lab.Worker, image string, term time.Time, sums *handovers) {
	l.t.Helper()
	select {
	case <-victim.Ended():
	case <-time.After(2 * mostStop):
		l.t.Fatalf("the worker still runs %s after SIGTERM", time.Since(term))
	}
	exit := time.Since(term)
	if victim.Err() != nil || exit > mostStop {
		l.t.Errorf("%s after SIGTERM the worker ended with %v, want exit code 0 within %s", exit, victim.Err(), mostStop)
	}
	sums.exits.stopped(exit)
	if _, ok := when(victim, said("job closed", image)); ok {
		return
	}
	adopted := l.await("the job to be adopted", said("job adopted", image), l.heir).Sub(term)
	if adopted > mostHandover {
		l.t.Errorf("the job was adopted %s after SIGTERM, want %s at most", adopted, mostHandover)
	}
	sums.adopted.stopped(adopted)
	l.t.Logf("SIGTERM to exit %s, to adopted %s", exit.Round(time.Millisecond), adopted.Round(time.Millisecond))
}

// TestDrainLong sends SIGTERM in the middle of much data, to a worker with the default soft stop and a successor with a
// long lease: what hands the job over is the drain, not the lease's end.
func TestDrainLong(t *testing.T) {
	w := within(t, 15*time.Minute)
	binary := w.faulty()
	d := w.atDesk("volume_manager")
	sums := &handovers{}
	for name, at := range map[string]string{"late": "clone-flatten/flatten", "early": "clone-flatten/flatten",
		"copy": "copy/copy-objects", "export": "export-upload/upload"} {
		if name == "early" && !thorough() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			v := wayOf(name)
			v.set = with(v.set, map[string]string{"CINDERLIFT_LEASE_TTL": "60s"})
			l := w.of(t, 6*time.Minute).lane(d, "long-"+name, v, 0)
			l.grow()
			victim := l.start(binary, map[string]string{"CINDERLIFT_FAULT": at + "/term-in=300", "CINDERLIFT_SCAN_EVERY": "10m", "CINDERLIFT_SOFT_STOP": "0s"})
			image := l.firing(victim, cell{count: 1})
			l.handedOver(victim, image, lastFault(victim), sums)
			l.closedBy(image, victim, l.heir)
			l.ended(image, true)
		})
	}
	sums.log(t)
}

// grow makes the lane's volume one that takes a while.
func (l *lane) grow() {
	l.t.Helper()
	_, err := l.Exec(l.ctx, "rbd", "resize", "--no-progress", "--size", "1024", rbdVolume(l.volume))
	l.must(err)
	_, err = l.Fill(l.ctx, rbdVolume(l.volume), 40, 40)
	l.must(err)
	l.want = l.sum(rbdVolume(l.volume))
}

func with(maps ...map[string]string) map[string]string {
	all := map[string]string{}
	for _, m := range maps {
		for k, v := range m {
			all[k] = v
		}
	}

	return all
}

// TestDrainAtRest: a worker without work, and one whose only job is held by somebody else.
func TestDrainAtRest(t *testing.T) {
	w := within(t, 4*time.Minute)
	d := w.atDesk("volume_manager")
	rest := w.lane(d, "rest", wayOf("early"), 3)
	t.Run("idle", func(t *testing.T) {
		l := rest.on(t, time.Minute)
		t.Logf("SIGTERM to exit: %s", l.stopped(l.start("", nil)))
	})
	t.Run("lease held", func(t *testing.T) {
		l := rest.on(t, 4*time.Minute)
		rados := func(args ...string) {
			t.Helper()
			_, err := l.Exec(l.ctx, append([]string{"rados", "--id", l.Env["LAB_CEPH_USER"], "-p", "images", "-N", l.name}, args...)...)
			l.must(err)
		}
		held := "vol." + l.volume
		rados("lock", "get", held, "lease", "--lock-cookie", "somebody", "--lock-duration", "60")
		p := l.start("", nil)
		image := l.ask(lab.Raw(t.Name()))
		l.await("the job to be accepted", said("job accepted", image), p)
		t.Logf("SIGTERM to exit: %s", l.stopped(p))
		if _, early := when(l.heir, said("job adopted", image)); early {
			t.Error("the heir adopted a job whose volume's lease is held")
		}
		rados("rm", held)
		l.closedBy(image, p, l.heir)
		l.ended(image, true)
	})
}

// TestDrainTwice: a second SIGTERM ends the soft stop at once.
func TestDrainTwice(t *testing.T) {
	w := within(t, 4*time.Minute)
	binary := w.faulty()
	l := w.lane(w.atDesk("volume_manager"), "twice", wayOf("late"), 3)
	victim := l.start(binary, map[string]string{"CINDERLIFT_FAULT": "clone-flatten/flatten/hang", "CINDERLIFT_SCAN_EVERY": "10m",
		"CINDERLIFT_SOFT_STOP": "10m"})
	image := l.firing(victim, cell{count: 1})
	l.must(victim.Signal(syscall.SIGTERM))
	// The first one was heard when the worker takes no more: its consumer is gone.
	l.must(lab.Wait(l.ctx, "the worker to take no more", func() (bool, error) {
		d := l.desk
		d.mu.Lock()
		defer d.mu.Unlock()
		q, err := d.ch.QueueDeclarePassive(l.topic(), true, false, false, false, nil)

		return q.Consumers == 0, err
	}))
	select {
	case <-victim.Ended():
		t.Fatalf("the worker ended with the first SIGTERM: %v", victim.Err())
	default:
	}
	begin := time.Now()
	l.must(victim.Signal(syscall.SIGTERM))
	l.handedOver(victim, image, begin, &handovers{})
	l.closedBy(image, victim, l.heir)
	l.ended(image, true)
}

// TestDrainWithoutCeph kills all OSDs under a running job, so that all I/O blocks: SIGTERM still ends the
// worker. How long that took is in the log; exit code 0 can't be asked for, since leases could not be given back.
func TestDrainWithoutCeph(t *testing.T) {
	w := within(t, 6*time.Minute)
	binary := w.faulty()
	l := w.lane(w.atDesk("volume_manager"), "noceph", wayOf("late"), 3)
	victim := l.start(binary, map[string]string{"CINDERLIFT_FAULT": "clone-flatten/clone/hang", "CINDERLIFT_SCAN_EVERY": "10m",
		"CINDERLIFT_SOFT_STOP": "2s"})
	image := l.firing(victim, cell{count: 1})
	osds := []string{"ceph-osd0", "ceph-osd1", "ceph-osd2"}
	start := func() {
		for _, osd := range osds {
			w.must(w.Control(context.Background(), "start", osd))
		}
	}
	t.Cleanup(start)
	for _, osd := range osds {
		w.must(w.Control(w.ctx, "kill", osd))
	}
	begin := time.Now()
	l.must(victim.Signal(syscall.SIGTERM))
	select {
	case <-victim.Ended():
	case <-time.After(time.Minute):
		t.Error("the worker still runs a minute after SIGTERM")
	}
	took := time.Since(begin)
	t.Logf("SIGTERM to exit while Ceph does not answer: %s, %v", took.Round(time.Millisecond), victim.Err())
	if took > mostStop {
		t.Errorf("that is more than %s", mostStop)
	}
	start()
	l.closedBy(image, victim, l.heir)
	l.ended(image, true)
}

// TestDrainWithoutBroker stops RabbitMQ while a job runs, and while one is being told.
func TestDrainWithoutBroker(t *testing.T) {
	all := within(t, 12*time.Minute)
	binary := all.faulty()
	for _, at := range []string{"clone-flatten/flatten/hang", "settle/cast-done/not-applied"} {
		t.Run(slashless(at), func(t *testing.T) {
			w := all.of(t, 5*time.Minute)
			l := w.lane(w.atDesk("volume_manager"), "nobus", wayOf("late"), 3)
			victim := l.start(binary, map[string]string{"CINDERLIFT_FAULT": at, "CINDERLIFT_SCAN_EVERY": "10m"})
			image := l.firing(victim, cell{count: 1})
			t.Cleanup(func() { _ = w.Control(context.Background(), "start", "rabbit") })
			w.must(w.Control(w.ctx, "kill", "rabbit"))
			t.Logf("SIGTERM to exit without a broker: %s", l.stopped(victim))
			w.must(w.Control(w.ctx, "start", "rabbit"))
			l.desk = w.atDesk("volume_manager") // the one before lost its connection
			l.closedBy(image, victim, l.heir)
			l.must(l.WaitVolume(l.ctx, l.volume, "available"))
			i, err := l.Image(l.ctx, image)
			l.must(err)
			l.whole(image, i) // the broker forgot the notifications with their queue
			l.nothingLeft()
		})
	}
}

func slashless(s string) string { return cell{fault: s}.name() }

func lastSlash(s string) int {
	for i := len(s) - 1; i >= 0; i-- {
		if s[i] == '/' {
			return i
		}
	}

	panic(fmt.Sprintf("no slash in %q", s))
}
