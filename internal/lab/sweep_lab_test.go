//go:build lab

package lab_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// TestKillAtEverySend ends the worker at every message that it sends to Ceph during one whole job, in each way that works
// inside the cluster: strace counts the sendmsg calls of each thread from the moment before the request, and injects
// SIGKILL into the Nth. librados is told to send from one thread a connection, so the thread that is first at its Nth is
// the job's own connection from the first dozen on; a second series counts the control connection's thread alone. A few
// points always, all with CINDERLIFT_CHAOS=full.
func TestKillAtEverySend(t *testing.T) {
	w := within(t, 80*time.Minute)
	d := w.atDesk("volume_manager")
	conf := oneSender(w)
	var mu sync.Mutex
	var report []string
	t.Run("ways", func(t *testing.T) {
		for _, name := range []string{"early", "late", "copy"} {
			for _, series := range []string{"all", "control"} {
				if series == "control" && !thorough() {
					continue
				}
				t.Run(name+" "+series, func(t *testing.T) {
					t.Parallel()
					begin := time.Now()
					v := wayOf(name)
					v.set = with(v.set, map[string]string{"CINDERLIFT_CEPH_CONF": conf})
					s := &sweep{lane: w.of(t, 75*time.Minute).lane(d, "sweep-"+name+"-"+series, v, 0), control: series == "control"}
					s.must(s.Write(s.ctx, rbdVolume(s.volume), 5<<20, "some"))
					s.must(s.Write(s.ctx, rbdVolume(s.volume), 50<<20, "data"))
					s.want = s.sum(rbdVolume(s.volume))
					s.run(t)
					mu.Lock()
					defer mu.Unlock()
					report = append(report, fmt.Sprintf("%s %s: %d points, %d killed, %d failed, %s", name, series, s.points,
						s.killed, s.failed, time.Since(begin).Round(time.Second)))
				})
			}
		}
	})
	for _, line := range report {
		t.Log(line)
	}
}

// oneSender is the lab's ceph.conf with one thread for each connection.
func oneSender(w *world) string {
	w.t.Helper()
	b, err := os.ReadFile(w.Env["CEPH_CONF"])
	w.must(err)
	file := filepath.Join(w.t.TempDir(), "ceph.conf")
	b = bytes.Replace(b, []byte("[global]\n"), []byte("[global]\nms_async_op_threads = 1\n"), 1)
	w.must(os.WriteFile(file, b, 0o600))

	return file
}

// sweep is one series of kills.
type sweep struct {
	*lane
	control bool // only the control connection's thread is counted

	points, killed, failed int
}

// run kills at 1, 2, 3, … until the job ends alive; without CINDERLIFT_CHAOS=full at a few of these.
func (s *sweep) run(t *testing.T) {
	t.Helper()
	total := 0
	t.Run("counted", func(t *testing.T) { total = s.counted(t) })
	t.Logf("%d messages were sent by the thread that sent most", total)
	points := []int{total / 5, total / 2, total * 4 / 5}
	if s.control {
		points = []int{total / 2}
	}
	if thorough() {
		points = points[:0]
		for n := range total {
			points = append(points, n+1)
		}
	}
	for _, n := range points {
		s.points++
		if !t.Run(strconv.Itoa(n), func(t *testing.T) { s.kill(t, n) }) {
			s.failed++
		}
	}
	if s.killed == 0 {
		t.Error("no kill arrived")
	}
}

// counted runs a job under strace without a kill.
func (s *sweep) counted(t *testing.T) (most int) {
	t.Helper()
	l := s.on(t, 3*time.Minute)
	victim := l.start("", map[string]string{"CINDERLIFT_SCAN_EVERY": "10m"})
	out := filepath.Join(t.TempDir(), "strace")
	trace := l.trace(victim, s.control, "-o", out)
	l.undisturbed(victim)
	_ = victim.Kill()
	_ = trace.Wait() // strace ends as what it traces did
	f, err := os.Open(out)
	l.must(err)
	defer f.Close()
	sent := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if thread, _, ok := strings.Cut(lines.Text(), " sendmsg("); ok || strings.HasPrefix(lines.Text(), "sendmsg(") {
			sent[strings.TrimSpace(thread)]++
			most = max(most, sent[strings.TrimSpace(thread)])
		}
	}

	return most
}

// kill runs a job whose worker dies at the nth message, again when the heir was first, see firing.
func (s *sweep) kill(t *testing.T, n int) {
	t.Helper()
	for range 3 {
		if s.once(t, n) {
			return
		}
	}
	t.Error("the heir was first, again and again")
}

// once reports whether the worker met the job at all.
func (s *sweep) once(t *testing.T, n int) bool {
	t.Helper()
	l := s.on(t, 2*time.Minute)
	victim := l.start("", map[string]string{"CINDERLIFT_SCAN_EVERY": "10m"})
	trace := l.trace(victim, s.control, "-o", os.DevNull, "-e", fmt.Sprintf("inject=sendmsg:signal=KILL:when=%d", n))
	image := l.ask(lab.Raw(t.Name()))
	killed := false
	l.must(lab.Wait(l.ctx, "the worker's end or the job's", func() (bool, error) {
		select {
		case <-victim.Ended():
			killed = true

			return true, nil
		default:
		}
		_, closed := when(victim, said("job closed", image))
		_, adopted := when(l.heir, said("job closed", image))

		return closed || adopted, nil
	}))
	s.settled(l, image, victim)
	_ = victim.Kill() // where it lives still
	_ = trace.Wait()
	if killed {
		s.killed++
	}
	_, mine := when(victim, said("job closed", image))

	return killed || mine
}

// settled waits for the end. A kill before the journal has the job leaves the request with the broker: it is taken by
// the next worker on the topic.
func (s *sweep) settled(l *lane, image string, victim *lab.Worker) {
	l.t.Helper()
	workers := []*lab.Worker{victim, l.heir}
	if l.desk.waiting(l.world, l.topic()) > 0 {
		workers = append(workers, l.start("", nil))
	}
	l.closedBy(image, workers...)
	l.ended(image, true)
}

// trace attaches strace to a worker and waits until every thread is traced.
func (l *lane) trace(p *lab.Worker, control bool, args ...string) *exec.Cmd {
	l.t.Helper()
	args = append([]string{"-q", "-e", "trace=sendmsg"}, args...)
	tasks := fmt.Sprintf("/proc/%d/task", p.Pid)
	if control {
		args = append(args, "-p", controlThread(l.world, tasks))
	} else {
		args = append(args, "-f", "-p", strconv.Itoa(p.Pid))
	}
	cmd := exec.CommandContext(l.ctx, "strace", args...)
	l.must(cmd.Start())
	l.must(lab.Wait(l.ctx, "strace to attach", func() (bool, error) {
		if control {
			return traced(filepath.Join(tasks, args[len(args)-1])), nil
		}
		all, err := os.ReadDir(tasks)
		for _, task := range all {
			if err != nil || !traced(filepath.Join(tasks, task.Name())) {
				return false, err
			}
		}

		return true, nil
	}))

	return cmd
}

func traced(task string) bool {
	b, err := os.ReadFile(filepath.Join(task, "status"))
	if err != nil {
		return true // the thread has ended
	}

	return !strings.Contains(string(b), "TracerPid:\t0\n")
}

// controlThread is the oldest thread that sends for librados.
func controlThread(w *world, tasks string) string {
	w.t.Helper()
	all, err := os.ReadDir(tasks)
	w.must(err)
	for _, task := range all {
		name, err := os.ReadFile(filepath.Join(tasks, task.Name(), "comm"))
		if err == nil && strings.HasPrefix(string(name), "msgr-worker") {
			return task.Name()
		}
	}
	w.t.Fatal("no thread of the worker sends for librados")

	return ""
}
