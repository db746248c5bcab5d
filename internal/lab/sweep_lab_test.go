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
	w := within(t, 5*time.Hour)
	w.makeRoom()
	d := w.atDesk("volume_manager")
	conf := oneSender(w)
	all := []*sweep{{way: "early"}, {way: "late"}, {way: "copy"}}
	lanes := 1
	if thorough() {
		all = append(all, &sweep{way: "early", control: true}, &sweep{way: "late", control: true}, &sweep{way: "copy", control: true})
		lanes = 6
	}
	t.Run("ways", func(t *testing.T) {
		for _, s := range all {
			s.points, s.conf = newDeck[int](), conf
			for i := range lanes {
				t.Run(fmt.Sprint(s.name(), " lane ", i), func(t *testing.T) {
					t.Parallel()
					s.lane(t, w.of(t, 5*time.Hour), d, i)
				})
			}
		}
	})
	for _, s := range all {
		t.Logf("%s: %d points of %d, %d killed, %d failed, %s", s.name(), s.tried, s.total, s.killed, s.failed, s.took)
		if s.killed == 0 {
			t.Errorf("%s: no kill arrived", s.name())
		}
	}
}

// makeRoom lets the demo project have as many volumes as there are lanes.
func (w *world) makeRoom() {
	w.t.Helper()
	admin, err := w.As(w.ctx, "admin")
	w.must(err)
	w.t.Cleanup(admin.Close)
	w.must(admin.Room(w.ctx, w.Project()))
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

// sweep is one series of kills, which some lanes share.
type sweep struct {
	way     string
	control bool // only the control connection's thread is counted
	conf    string
	points  *deck[int] // at which message to kill

	mu                           sync.Mutex
	total, tried, killed, failed int
	took                         time.Duration
}

func (s *sweep) name() string {
	if s.control {
		return s.way + ", control connection"
	}

	return s.way
}

// lane kills at the points that are handed out. The first lane finds out how many there are.
func (s *sweep) lane(t *testing.T, w *world, d *desk, i int) {
	t.Helper()
	if i == 0 {
		defer s.points.deal(nil)
	}
	begin := time.Now()
	v := wayOf(s.way)
	v.set = with(v.set, map[string]string{"CINDERLIFT_CEPH_CONF": s.conf})
	l := w.lane(d, fmt.Sprintf("sweep-%s-%v-%d", s.way, s.control, i), v, 0)
	l.must(l.Write(l.ctx, rbdVolume(l.volume), 5<<20, "some"))
	l.must(l.Write(l.ctx, rbdVolume(l.volume), 50<<20, "data"))
	l.want = l.sum(rbdVolume(l.volume))
	if i == 0 {
		total := 0
		t.Run("counted", func(t *testing.T) { total = s.counted(l.on(t, 3*time.Minute)) })
		t.Logf("%d messages were sent by the thread that sent most", total)
		s.total = total
		s.points.deal(chosen(total))
	}
	for n := range s.points.cards {
		ok := t.Run(strconv.Itoa(n), func(t *testing.T) { s.kill(t, l, n) })
		s.count(begin, ok)
	}
}

// chosen are 1, 2, 3, …, total; without CINDERLIFT_CHAOS=full a few of these; with CINDERLIFT_POINTS just those that it lists.
func chosen(total int) (points []int) {
	listed := strings.Fields(os.Getenv("CINDERLIFT_POINTS"))
	for _, p := range listed {
		n, _ := strconv.Atoi(p) // 0 kills nobody, and that is said
		points = append(points, n)
	}
	switch {
	case len(listed) > 0:
		return points
	case !thorough():
		return []int{total / 5, total / 2, total * 4 / 5}
	}
	for n := range total {
		points = append(points, n+1)
	}

	return points
}

func (s *sweep) count(begin time.Time, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tried++
	s.took = time.Since(begin).Round(time.Second)
	if !ok {
		s.failed++
	}
}

// counted runs a job under strace without a kill.
func (s *sweep) counted(l *lane) (most int) {
	l.t.Helper()
	victim := l.start("", map[string]string{"CINDERLIFT_SCAN_EVERY": "10m"})
	out := filepath.Join(l.t.TempDir(), "strace")
	trace := l.trace(victim, s.control, "-o", out)
	l.undisturbed(victim)
	_ = victim.Kill()
	_ = trace.Wait() // strace ends as what it traces did
	f, err := os.Open(out)
	l.must(err)
	defer f.Close()
	sent := map[string]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// A thread's id comes first, but where one thread alone is traced.
		if thread, _, ok := strings.Cut(lines.Text(), "sendmsg("); ok {
			sent[thread]++
			most = max(most, sent[thread])
		}
	}

	return most
}

// kill runs a job whose worker dies at the nth message, again when the heir was first, see firing.
func (s *sweep) kill(t *testing.T, l *lane, n int) {
	t.Helper()
	for range 10 {
		if s.once(l.on(t, 2*time.Minute), n) {
			return
		}
	}
	t.Error("the heir was first, again and again")
}

// once reports whether the worker met the job at all.
func (s *sweep) once(l *lane, n int) bool {
	l.t.Helper()
	victim := l.start("", map[string]string{"CINDERLIFT_SCAN_EVERY": "10m"})
	trace := l.trace(victim, s.control, "-o", os.DevNull, "-e", fmt.Sprintf("inject=sendmsg:signal=KILL:when=%d", n))
	image := l.ask(lab.Raw(l.t.Name()))
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
		s.mu.Lock()
		s.killed++
		s.mu.Unlock()
	}
	_, mine := when(victim, said("job closed", image))

	return killed || mine
}

// settled waits for the end. A kill before the journal has the job leaves the request with the broker, as soon as that has
// noticed the death: it is taken by the next worker on the topic.
func (s *sweep) settled(l *lane, image string, victim *lab.Worker) {
	l.t.Helper()
	workers := []*lab.Worker{victim, l.heir}
	l.must(lab.Wait(l.ctx, "somebody to have the job", func() (bool, error) {
		if len(workers) == 2 && l.desk.waiting(l.world, l.topic()) > 0 {
			workers = append(workers, l.start("", nil))
		}
		for _, p := range workers {
			if _, closed := when(p, said("job closed", image)); closed {
				return true, nil
			}
		}

		return false, nil
	}))
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

// controlThread is the oldest thread that sends for librados: the control connection is made first.
func controlThread(w *world, tasks string) string {
	w.t.Helper()
	all, err := os.ReadDir(tasks)
	w.must(err)
	oldest := 0
	for _, task := range all {
		name, err := os.ReadFile(filepath.Join(tasks, task.Name(), "comm"))
		if err != nil || !strings.HasPrefix(string(name), "msgr-worker") {
			continue
		}
		id, err := strconv.Atoi(task.Name())
		w.must(err)
		if oldest == 0 || id < oldest {
			oldest = id
		}
	}
	if oldest == 0 {
		w.t.Fatal("no thread of the worker sends for librados")
	}

	return strconv.Itoa(oldest)
}
