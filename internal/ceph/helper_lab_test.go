//go:build lab

package ceph

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// order is what the helper is told: a whole job, as the strategies do it.
type order struct {
	ConfFile, User, Pool, Namespace string
	DataConf                        map[string]string
	TTL                             time.Duration
	Make                            strategies.Make
	Copy                            bool   // copy instead of clone and flatten
	Discard                         bool   // and take it away again in the end
	Volume                          string // id; only for a whole job
	Loop                            string // "save" or "renew": only that, again and again
}

func (o order) options(owner string) Options {
	return Options{
		ConfFile: o.ConfFile, User: o.User, JournalPool: o.Pool, Namespace: o.Namespace, Owner: owner,
		LeaseTTL: o.TTL, DataConf: o.DataConf, Logger: slog.New(slog.DiscardHandler),
	}
}

func (o order) key() string { return o.Make.Job }

// step is one step of the job.
type step struct {
	name string
	do   func(context.Context, *Images, worker.Progress) error
}

func (o order) steps() []step {
	m := o.Make
	without := func(fn func(context.Context, *Images) error) func(context.Context, *Images, worker.Progress) error {
		return func(ctx context.Context, im *Images, _ worker.Progress) error { return fn(ctx, im) }
	}
	snapshot := step{"snapshot", without(func(ctx context.Context, im *Images) error { return im.Snapshot(ctx, m.Src, m.Snapshot) })}
	protect := step{"protect", without(func(ctx context.Context, im *Images) error { return im.Protect(ctx, m.Src, m.Snapshot) })}
	clone := step{"clone", without(func(ctx context.Context, im *Images) error { return im.Clone(ctx, m) })}
	copying := step{"copy", func(ctx context.Context, im *Images, p worker.Progress) error { return im.CopyObjects(ctx, m, p) }}
	seal := step{"seal", without(func(ctx context.Context, im *Images) error { return im.Seal(ctx, m) })}
	flatten := step{"flatten", func(ctx context.Context, im *Images, p worker.Progress) error { return im.Flatten(ctx, m, p) }}
	release := step{"release", without(func(ctx context.Context, im *Images) error { return im.Release(ctx, m.Src, m.Snapshot) })}
	discard := step{"discard", without(func(ctx context.Context, im *Images) error { return im.Discard(ctx, m) })}
	list := []step{snapshot, protect, clone, seal, flatten, release}
	if o.Copy {
		list = []step{snapshot, protect, copying, seal, release}
	}
	if o.Discard {
		list = append(list, discard)
	}

	return list
}

// widen lets more tests run at a time than there are processors, unless -parallel is given: they wait for OSDs and leases.
func widen() {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		_ = flag.Set("test.parallel", "12")
	}
}

func helperNamed(name string) func() error {
	return map[string]func() error{"job": helpJob, "whole": helpWhole}[name]
}

// helpJob claims the job and does its steps, and tells on standard output where it is.
func helpJob() error {
	signal.Ignore(syscall.SIGPIPE)
	var o order
	if err := json.Unmarshal([]byte(os.Getenv("CINDERLIFT_TEST_ORDER")), &o); err != nil {
		return err
	}
	ctx := context.Background()
	c, err := Open(ctx, o.options("helper"))
	if err != nil {
		return err
	}
	claim, err := c.Claim(ctx, o.key())
	if err != nil {
		return err
	}
	fmt.Println("claimed", claim.(*Claim).images.address())
	err = worker.Hold(ctx, claim, worker.LeaseTimes{TTL: o.TTL}, func(ctx context.Context) error {
		return o.work(ctx, claim)
	})
	fmt.Println("ended", worker.ReasonOf(err), err)

	return err
}

func (o order) work(ctx context.Context, claim worker.Claim) error {
	rec := claim.Record()
	for n := 0; o.Loop != ""; n++ {
		fmt.Println("step", o.Loop)
		rec.LastError = fmt.Sprint(n)
		if err := map[string]func() error{
			"save":  func() error { return claim.Save(context.Background(), rec) },
			"renew": func() error { return claim.Renew(context.Background()) },
		}[o.Loop](); err != nil {
			return err
		}
	}
	for _, s := range o.steps() {
		if rec.HasStep(s.name) {
			continue
		}
		fmt.Println("step", s.name)
		err := s.do(ctx, claim.(*Claim).Images(), func(worker.Amount) { fmt.Println("progress", s.name) })
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		rec.Steps = append(rec.Steps, s.name)
		if err := claim.Save(ctx, rec); err != nil {
			return err
		}
	}

	return nil
}

// helper is a running worker in a process of its own.
type helper struct {
	cmd   *exec.Cmd
	lines chan string // what it says; closed when it ends
}

func startHelper(t testing.TB, o order, env ...string) *helper {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	h := &helper{cmd: exec.Command(os.Args[0], "-test.run=^$"), lines: make(chan string, 1<<16)}
	h.cmd.Env = append(os.Environ(), "CINDERLIFT_TEST_HELPER=job", "CINDERLIFT_TEST_ORDER="+string(raw))
	h.cmd.Env = append(h.cmd.Env, env...)
	h.cmd.Stderr = os.Stderr
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(h.lines)
		for in := bufio.NewScanner(out); in.Scan(); {
			h.lines <- in.Text()
		}
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Signal(syscall.SIGCONT)
		_ = h.cmd.Process.Kill()
		<-read
		_ = h.cmd.Wait()
	})

	return h
}

// until waits for a line that begins with prefix; "" when the helper ended without it.
func (h *helper) until(t testing.TB, prefix string) string {
	t.Helper()
	deadline := time.After(4 * time.Minute)
	for {
		select {
		case line, ok := <-h.lines:
			if !ok || strings.HasPrefix(line, prefix) {
				return line
			}
		case <-deadline:
			t.Fatalf("the helper did not say %q in time", prefix)
		}
	}
}

func (h *helper) signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := h.cmd.Process.Signal(s); err != nil {
		t.Logf("signal %v: %v", s, err)
	}
}

// adopt claims as soon as the lease is free.
func adopt(t testing.TB, c *Cluster, key string) *Claim {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		claim, err := c.Claim(ctx, key)
		if err == nil {
			return claim.(*Claim)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			t.Fatalf("the job could not be adopted: %v", err)
		}
	}
}
