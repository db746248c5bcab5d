//go:build lab

package lab_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// previous builds the release before this one, which deployments/previous-release names, unless that was done.
func (w *world) previous() string {
	w.t.Helper()
	_, root, err := sourceTree()
	w.must(err)
	b, err := os.ReadFile(filepath.Join(root, "deployments", "previous-release"))
	w.must(err)
	commit := strings.TrimSpace(string(b))
	root, err = filepath.Abs(root)
	w.must(err)
	into := filepath.Join(root, "build", "previous")
	binary := filepath.Join(into, "cinderlift-"+commit)
	if _, err := os.Stat(binary); err == nil {
		return binary
	}
	build := exec.CommandContext(w.ctx, "sh", "-ec", `rm -rf "$1" && mkdir -p "$1"
		git archive "$2" | tar -x -C "$1"
		tags=$(make -s tags)
		cd "$1" && go build -tags "$tags" -trimpath -o "$3.new" ./cmd/cinderlift && mv "$3.new" "$3"`,
		"sh", filepath.Join(into, commit), commit, binary)
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		w.t.Fatalf("build the previous release %s: %v: %s", commit, err, out)
	}

	return binary
}

// TestTwoVersions runs the previous release and this one on one queue and one journal, as a rolling upgrade does, and
// kills either in the middle of its jobs: the other one adopts them, and they end right.
func TestTwoVersions(t *testing.T) {
	w := within(t, 15*time.Minute)
	before := w.previous()
	d := w.atDesk("volume_manager")
	names := []string{"early", "copy"}
	if thorough() {
		names = append(names, "late", "export")
	}
	for _, name := range names {
		for _, upgrade := range []bool{true, false} {
			t.Run(map[bool]string{true: "to the new one ", false: "back to the old one "}[upgrade]+name, func(t *testing.T) {
				t.Parallel()
				v, victim := wayOf(name), before
				if !upgrade {
					v.heir, victim = before, ""
				}
				l := w.of(t, 10*time.Minute).lane(d, fmt.Sprintf("versions-%s-%v", name, upgrade), v, 3)
				for _, step := range killedAfter(name) {
					t.Run(step, func(t *testing.T) { l.on(t, 4*time.Minute).overtaken(victim, step) })
				}
			})
		}
	}
}

func killedAfter(name string) []string {
	switch {
	case name == "export":
		return []string{"snapshot", "upload"}
	case name == "copy":
		return []string{"snapshot", "seal", "register"}
	default:
		return []string{"snapshot", "clone", "seal", "register"}
	}
}

// overtaken has a worker of one version die after a step, wherever it is by then, and waits for the other version to
// finish the job. The previous release has no failpoints, so the log tells when; a job that was faster is tried again.
func (l *lane) overtaken(binary, step string) {
	l.t.Helper()
	for range 8 {
		victim := l.start(binary, map[string]string{"CINDERLIFT_SCAN_EVERY": "10m"})
		image := l.ask(lab.Raw(l.t.Name()))
		l.must(lab.Wait(l.ctx, "step "+step, func() (bool, error) {
			_, early := when(l.heir, said("job adopted", image))

			return did(victim, step) || early, nil
		}))
		_ = victim.Kill()
		l.closedBy(image, victim, l.heir)
		l.ended(image, true)
		if _, adopted := when(l.heir, said("job adopted", image)); adopted && did(victim, step) {
			return
		}
	}
	l.t.Error("the other version never adopted a job in the middle")
}

// TestBothVersionsAtWork has old and new workers take requests side by side while one of each is killed and replaced.
func TestBothVersionsAtWork(t *testing.T) {
	const volumes, rounds = 3, 2
	w := within(t, 6*time.Minute)
	before := w.previous()
	d := w.atDesk("volume_manager")
	l := w.lane(d, "side-by-side", wayOf("early"), 3)
	lanes := []*lane{l}
	for range volumes - 1 {
		one := *l
		one.volume, one.want = w.small(3)
		lanes = append(lanes, &one)
	}
	workers := []*lab.Worker{l.heir, l.start(before, nil), l.start("", nil), l.start(before, nil)}
	for round := range rounds {
		var images []string
		for _, one := range lanes {
			images = append(images, one.ask(lab.Raw(t.Name())))
		}
		busy := workers[1+round] // the old one first, then the new one
		l.must(lab.Wait(l.ctx, "a job to kill", func() (bool, error) {
			_, all := when(busy, said("job accepted", ""))
			done := counted(workers, "job closed") == (round+1)*volumes

			return all || done, nil
		}))
		l.must(busy.Signal(syscall.SIGKILL))
		for i, one := range lanes {
			one.closedBy(images[i], workers...)
		}
		for i, one := range lanes {
			one.ended(images[i], true)
			w.must(w.RemoveImage(w.ctx, images[i]))
		}
	}
}

// TestNewerRecord: what a newer version has written is left alone, and shown.
func TestNewerRecord(t *testing.T) {
	const id, volume = "99999999-0000-4000-8000-000000000001", "99999999-0000-4000-8000-000000000002"
	w := within(t, 3*time.Minute)
	l := w.lane(w.atDesk("volume_manager"), "newer", wayOf("early"), 3)
	planted := fmt.Sprintf(`{"version":99,"job":{"image_id":%q,"volume_id":%q,"project_id":"p","digest":"d"},"epoch":1,`+
		`"accepted":"2026-01-02T03:04:05Z","updated":"2026-01-02T03:04:05Z","unheard_of":{"a":1}}`, id, volume)
	run := func(script string) string {
		t.Helper()
		out, err := l.Exec(l.ctx, "sh", "-ec", `r() { rados --id "$user" -p images -N "$space" "$@"; }; user=$1 space=$2 job=job.$3 record=$4; `+script,
			"sh", l.Env["LAB_CEPH_USER"], l.name, id, planted)
		l.must(err)

		return out
	}
	run(`printf '\0\0\0\0\0\0\0\1' | r put "$job" -; r setomapval "$job" record "$record"; r setomapval "$job" owner future
		r setomapval "$job" owner_addr ''; r setomapval index "${job#job.}" ''`)
	look := `r listomapvals "$job"; r stat "$job"; r lock info "$job" lease 2>&1; r get "$job" /dev/stdout | od -c`
	before := run(look)
	// Until a job that came later is through, several scans have met the record.
	second := l.start("", nil)
	image := l.ask(lab.Raw(t.Name()))
	l.closedBy(image, second, l.heir)
	l.must(l.WaitVolume(l.ctx, l.volume, "available"))
	l.stopped(second)
	if after := run(look); after != before {
		t.Errorf("the record was %s\nand is %s", before, after)
	}
	for _, p := range []*lab.Worker{l.heir, second} {
		if _, ok := when(p, said("job adopted", id)); ok {
			t.Error("a worker adopted the record of a newer version")
		}
	}
	shown := false
	for _, r := range l.jobs() {
		shown = shown || r.Job.ImageID == id && r.Version == 99
	}
	if !shown {
		t.Errorf("`cinderlift jobs` does not show it: %v", l.jobs())
	}
	run(`r rm "$job"; r rmomapkey index "${job#job.}"`)
	l.nothingLeft()
}
