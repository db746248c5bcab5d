//go:build lab

package lab_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// The modes of the failpoints, see cmd/cinderlift/faults_on.go.
const (
	dieBefore      = "die-before"
	dieIn          = "die-in"
	dieLater       = "die-in=" // milliseconds follow
	dieAfter       = "die-after"
	notApplied     = "not-applied"
	appliedFailed  = "applied-failed"
	appliedRefused = "applied-refused"
	refused        = "refused"
	otherWay       = "other-way"
	hang           = "hang"
	stopBefore     = "stop"
	stopIn         = "stop-in"
)

// passing modes are those after which the job goes on as if nothing had been.
func passing() []string {
	return []string{dieBefore, dieIn, dieLater, dieAfter, notApplied, appliedFailed, hang, stopBefore, stopIn}
}

// cell is one disturbance of one job.
type cell struct {
	way   way
	fault string // what CINDERLIFT_FAULT is set to
	mode  string // of the last failpoint
	count int    // of failpoints
	made  bool   // whether there has to be an image in the end
}

// name has no slashes, by which go test would take it apart.
func (c cell) name() string { return strings.ReplaceAll(c.fault, "/", ".") }

// TestNoFailpoints: the program that is shipped knows nothing of failpoints.
func TestNoFailpoints(t *testing.T) {
	w := open(t)
	cmd := exec.CommandContext(w.ctx, w.Binary(), "serve")
	cmd.Env = w.Environment(map[string]string{"CINDERLIFT_FAULT": "clone-flatten/clone/die-before"})
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "CINDERLIFT_FAULT") {
		t.Errorf("with CINDERLIFT_FAULT set: %v: %s", err, out)
	}
}

// matrixSeed chooses the sample; CINDERLIFT_SEED sets another.
func matrixSeed(t *testing.T) uint64 {
	t.Helper()
	seed := uint64(3)
	if s := os.Getenv("CINDERLIFT_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CINDERLIFT_SEED=%d", seed)

	return seed
}

// TestKillMatrix disturbs real jobs at every step of every plan in every mode, by kill -9 of the real program above all.
// The steps are read off the log of an undisturbed job of each way. A second, clean worker is the successor. A sample of
// the cells runs always, all of them with CINDERLIFT_CHAOS=full.
func TestKillMatrix(t *testing.T) {
	w := within(t, 90*time.Minute)
	binary := w.faulty()
	d := w.atDesk("volume_manager")
	rnd := rand.New(rand.NewPCG(matrixSeed(t), 0)) //nolint:gosec // repeatable, not secret
	sums := &tally{}
	t.Run("cells", func(t *testing.T) {
		for _, v := range ways() {
			cells := newDeck[cell]()
			seed := rnd.Uint64()
			for i := range lanesOf(v) {
				t.Run(fmt.Sprintf("%s lane %d", v.name, i), func(t *testing.T) {
					t.Parallel()
					if i == 0 {
						defer cells.deal(nil)
					}
					l := w.of(t, time.Hour).lane(d, fmt.Sprintf("%s-%d", v.name, i), v, 3)
					if i == 0 {
						cells.deal(choose(l.cells(binary), rand.New(rand.NewPCG(seed, 0)))) //nolint:gosec // see above
					}
					for c := range cells.cards {
						t.Run(c.name(), func(t *testing.T) { l.on(t, 4*time.Minute).disturb(binary, c, sums) })
					}
				})
			}
		}
	})
	sums.log(t)
}

func lanesOf(v way) int {
	if thorough() && v.name != "export" {
		return 2
	}

	return 1
}

// deck is the work that some lanes share.
type deck[T any] struct {
	cards chan T
	once  sync.Once
}

func newDeck[T any]() *deck[T] { return &deck[T]{cards: make(chan T)} }

// deal hands out a list; only the first one counts. The lane that finds out what there is to do defers a deal of nothing, so
// that the others do not wait for one that failed before.
func (d *deck[T]) deal(list []T) {
	d.once.Do(func() {
		go func() {
			defer close(d.cards)
			for _, card := range list {
				d.cards <- card
			}
		}()
	})
}

// sampled is how many cells of each way run always.
const sampled = 5

func choose(all []cell, rnd *rand.Rand) []cell {
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	for i, c := range all {
		if strings.HasSuffix(c.fault, dieLater) {
			all[i].fault += fmt.Sprint(1 + rnd.IntN(60))
		}
	}
	if !thorough() {
		all = all[:min(sampled, len(all))]
	}

	return all
}

// cells lists all for the lane's way: a job in which no failpoint fires tells the names.
func (l *lane) cells(binary string) (all []cell) {
	l.t.Helper()
	l.t.Run("undisturbed", func(t *testing.T) {
		cell := l.on(t, 4*time.Minute)
		p := cell.start(binary, map[string]string{"CINDERLIFT_FAULT": "none/none/hang", "CINDERLIFT_SCAN_EVERY": "10m"})
		cell.undisturbed(p)
		steps, undos, settling := cell.names(p)
		commit := slices.Index(steps, map[string]string{"export": "upload"}[l.way.name])
		if commit < 0 {
			commit = slices.Index(steps, "register")
		}
		all = slices.Concat(l.stepCells(steps, commit), l.undoCells(steps[commit], undos), l.settleCells(settling, steps[0]))
		t.Logf("%d cells of the steps %v, undo of %v, settling %v", len(all), steps, undos, settling)
	})

	return all
}

// undisturbed has p make an image, see firing.
func (l *lane) undisturbed(p *lab.Worker) {
	l.t.Helper()
	for range 5 {
		image := l.ask(lab.Raw(l.t.Name()))
		l.closedBy(image, p, l.heir)
		l.ended(image, true)
		if _, early := when(l.heir, said("job adopted", image)); !early {
			return
		}
	}
	l.t.Fatal("the heir was first, again and again")
}

// names reads the names of the steps off the log: those of the plan, of what can be undone, of settling.
func (l *lane) names(p *lab.Worker) (steps, undos, settling []string) {
	l.t.Helper()
	var chosen, settled []string
	for _, line := range p.Logs() {
		switch {
		case line["msg"] == "strategy chosen":
			chosen = list(line["steps"])
		case line["msg"] == "failpoints" && line["strategy"] == l.way.strategy:
			steps, undos = nil, nil
			for _, name := range list(line["steps"]) {
				if strings.HasPrefix(name, "undo-") {
					undos = append(undos, name)
				} else {
					steps = append(steps, name)
				}
			}
		case line["msg"] == "failpoints" && line["strategy"] == "settle":
			settling = list(line["steps"])
		case line["msg"] == "step done" && line["strategy"] == "settle":
			settled = append(settled, fmt.Sprint(line["step"]))
		}
	}
	if len(steps) == 0 || !slices.Equal(steps, chosen) || len(settling) == 0 || !slices.Equal(settling, settled) {
		l.t.Fatalf("failpoints in %v and %v, but the job had the steps %v and %v", steps, settling, chosen, settled)
	}

	return steps, undos, settling
}

func list(v any) (names []string) {
	if all, ok := v.([]any); ok {
		for _, one := range all {
			names = append(names, fmt.Sprint(one))
		}
	}

	return names
}

func (l *lane) cell(made bool, faults ...string) cell {
	last := faults[len(faults)-1]

	return cell{way: l.way, fault: strings.Join(faults, ","), mode: last[strings.LastIndex(last, "/")+1:], count: len(faults), made: made}
}

// stepCells: what is refused before the commit point ends the way, and whether there is another decides about the image.
// What is refused after it is tried again. What took effect all the same is found out at the commit point.
func (l *lane) stepCells(steps []string, commit int) (all []cell) {
	for i, step := range steps {
		at := l.way.strategy + "/" + step + "/"
		for _, mode := range passing() {
			all = append(all, l.cell(true, at+mode))
		}
		all = append(all, l.cell(i > commit, at+refused), l.cell(i >= commit, at+appliedRefused), l.cell(i > commit || l.way.next, at+otherWay))
	}

	return all
}

// undoCells: the commit step is refused, and something happens while the rest is undone.
func (l *lane) undoCells(commit string, undos []string) (all []cell) {
	for _, undo := range undos {
		for _, mode := range passing() {
			all = append(all, l.cell(false, l.way.strategy+"/"+commit+"/"+refused, l.way.strategy+"/"+undo+"/"+mode))
		}
	}

	return all
}

// settleCells: settling does not depend on the way, so one does.
func (l *lane) settleCells(settling []string, first string) (all []cell) {
	if l.way.name != "early" {
		return nil
	}
	for _, mode := range passing() {
		all = append(all, l.cell(true, "plan/facts/"+mode),
			l.cell(false, l.way.strategy+"/"+first+"/"+refused, "settle/discard-image/"+mode))
		for _, step := range settling {
			all = append(all, l.cell(true, "settle/"+step+"/"+mode))
		}
	}

	return all
}

// tally counts what happened over all lanes.
type tally struct {
	mu        sync.Mutex
	cells     map[string]int // by mode
	failed    int
	takeovers []time.Duration
	stops     []time.Duration // SIGTERM to exit
}

func (s *tally) count(mode string, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cells == nil {
		s.cells = map[string]int{}
	}
	s.cells[strings.TrimRight(mode, "0123456789")]++
	if failed {
		s.failed++
	}
}

func (s *tally) tookOver(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.takeovers = append(s.takeovers, d)
}

func (s *tally) stopped(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stops = append(s.stops, d)
}

func (s *tally) log(t *testing.T) {
	t.Helper()
	n := 0
	for _, c := range s.cells {
		n += c
	}
	t.Logf("%d cells, %d failed: %v", n, s.failed, s.cells)
	t.Logf("takeover after a kill, lease %s: %s; SIGTERM to exit: %s", leaseTTL, spread(s.takeovers), spread(s.stops))
}

// spread sums durations up.
func spread(list []time.Duration) string {
	if len(list) == 0 {
		return "none"
	}

	return fmt.Sprintf("n=%d p50=%s p99=%s max=%s", len(list), percentile(list, 50).Round(time.Millisecond),
		percentile(list, 99).Round(time.Millisecond), slices.Max(list).Round(time.Millisecond))
}

func percentile(list []time.Duration, p int) time.Duration {
	sorted := slices.SortedFunc(slices.Values(list), cmp.Compare[time.Duration])

	return sorted[(len(sorted)*p+99)/100-1]
}

// disturb runs one job with a fault, and checks everything afterwards.
func (l *lane) disturb(binary string, c cell, sums *tally) {
	l.t.Helper()
	defer func() { sums.count(c.mode, l.t.Failed()) }()
	victim := l.start(binary, map[string]string{"CINDERLIFT_FAULT": c.fault, "CINDERLIFT_SCAN_EVERY": "10m"})
	image := l.firing(victim, c)
	l.aftermath(victim, image, c, sums)
	l.closedBy(image, victim, l.heir)
	l.ended(image, c.made)
}

// firing asks for an image until the victim's faults have fired. A job may be the heir's at once: its scan can come
// between the record's creation and the victim's claim.
func (l *lane) firing(victim *lab.Worker, c cell) string {
	l.t.Helper()
	for range 5 {
		image := l.ask(lab.Raw(l.t.Name()))
		lost := false
		l.must(lab.Wait(l.ctx, "the fault to fire", func() (bool, error) {
			n := fired(victim)
			_, early := when(l.heir, said("job adopted", image))
			lost = n == 0 && early

			return n == c.count || lost, nil
		}))
		if !lost {
			return image
		}
		l.closedBy(image, victim, l.heir)
		l.ended(image, true)
	}
	l.t.Fatal("the heir was first, again and again")

	return ""
}

func fired(p *lab.Worker) (n int) {
	for _, line := range p.Logs() {
		if line["msg"] == "fault fired" {
			n++
		}
	}

	return n
}

// aftermath is what follows the fault: death and takeover, a drain, or a zombie that wakes up.
func (l *lane) aftermath(victim *lab.Worker, image string, c cell, sums *tally) {
	l.t.Helper()
	adopted := func() time.Time { return l.await("the job to be adopted", said("job adopted", image), l.heir) }
	switch {
	case strings.HasPrefix(c.mode, "die-"):
		<-victim.Ended()
		died := lastFault(victim)
		sums.tookOver(adopted().Sub(died))
	case c.mode == hang:
		sums.stopped(l.stopped(victim))
		adopted()
	case strings.HasPrefix(c.mode, stopBefore):
		adopted()
		l.must(victim.Signal(syscall.SIGCONT))
		// By either: on a slow machine the heir may lose its lease as well, to the one that woke up.
		l.await("the job to be closed", said("job closed", image), victim, l.heir)
		sums.stopped(l.stopped(victim))
	}
}

func lastFault(p *lab.Worker) (at time.Time) {
	for _, line := range p.Logs() {
		if line["msg"] == "fault fired" {
			at, _ = time.Parse(time.RFC3339Nano, fmt.Sprint(line["time"])) // zero shows
		}
	}

	return at
}

// mostStop is how long a worker may take from SIGTERM to its exit: Kubernetes gives 30 s.
const mostStop = 10 * time.Second

// stopped sends SIGTERM and checks the exit.
func (w *world) stopped(p *lab.Worker) time.Duration {
	w.t.Helper()
	begin := time.Now()
	err := p.Stop()
	took := time.Since(begin)
	if err != nil || took > mostStop {
		w.t.Errorf("after SIGTERM the worker ended after %s with %v, want exit code 0 within %s", took, err, mostStop)
	}

	return took
}

// TestTakeover measures the time from kill -9 to the moment another worker has the job, with the default pause between
// two scans.
func TestTakeover(t *testing.T) {
	kills := 3
	if thorough() {
		kills = 24
	}
	w := within(t, 20*time.Minute)
	binary := w.faulty()
	v := wayOf("early")
	v.set = with(v.set, map[string]string{"CINDERLIFT_SCAN_EVERY": "10s"})
	l := w.lane(w.atDesk("volume_manager"), "takeover", v, 3)
	sums := &tally{}
	steps := []string{"snapshot", "clone", "flatten", "release-source"}
	for i := range kills {
		step := steps[i%len(steps)]
		t.Run(fmt.Sprintf("%d %s", i, step), func(t *testing.T) {
			l.on(t, 4*time.Minute).disturb(binary, l.cell(true, l.way.strategy+"/"+step+"/"+dieIn), sums)
		})
	}
	sums.log(t)
	const most = leaseTTL + 2*time.Second
	if p99 := percentile(sums.takeovers, 99); p99 > most {
		t.Errorf("takeover took %s at the 99th percentile, want %s at most", p99, most)
	}
}
