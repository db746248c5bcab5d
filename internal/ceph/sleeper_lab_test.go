//go:build lab

package ceph

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// thorough asks for the long runs: CINDERLIFT_CHAOS=full.
func thorough() bool { return os.Getenv("CINDERLIFT_CHAOS") == "full" }

// state is all that is to be seen of a job: if anybody writes anything, it changes.
type state map[string]string

// ids are the internal ids of the images that bear the job's names now.
func (v *victim) ids(t testing.TB) []string {
	t.Helper()
	var ids []string
	for _, at := range []strategies.Ref{v.Make.Src, v.Make.Dst} {
		err := v.back.im.reading(at, rbd.NoSnapshot, func(image *rbd.Image) error {
			id, err := image.GetId()
			ids = append(ids, id)

			return err
		})
		if !is(err, enoent) {
			must(t, err)
		}
	}

	return ids
}

// state looks at everything: record, leases, both images with their bytes, and every object whose name has one of the ids.
func (v *victim) state(t testing.TB, ids []string) state {
	t.Helper()
	s := state{}
	rec, err := v.c.Load(t.Context(), v.key())
	must(t, err)
	s["record"] = fmt.Sprintf("%+v", rec) // with its stamp: the object's version
	own, err := controlOf(t, v.c).versioned()
	must(t, err)
	defer own.Destroy()
	_, err = own.Stat(volumePrefix + rec.Job.VolumeID)
	version, _ := own.GetLastVersion()
	s["volume lease"] = fmt.Sprint(err, version)
	for _, at := range []strategies.Ref{v.Make.Src, v.Make.Dst} {
		view := v.back.View(t, at)
		s[at.String()] = fmt.Sprintf("%+v", view)
		if !view.Exists {
			continue
		}
		for snap := range view.Snapshots {
			s[at.String()+"@"+snap] = fmt.Sprintf("%x", sha256.Sum256(v.back.Read(t, at, snap)))
		}
		s[at.String()+"@"] = fmt.Sprintf("%x", sha256.Sum256(v.back.Read(t, at, "")))
		must(t, v.back.im.pool(at.Pool, func(io *rados.IOContext) error { return s.objects(io, at.Pool, ids) }))
	}

	return s
}

func (s state) objects(io *rados.IOContext, pool string, ids []string) error {
	return io.ListObjects(func(name string) {
		if slices.ContainsFunc(ids, func(id string) bool { return strings.Contains(name, "."+id) }) {
			s["object "+pool+"/"+name] = "there"
		}
	})
}

// differ tells what is not the same.
func (s state) differ(later state) []string {
	var list []string
	for _, key := range slices.Sorted(maps.Keys(s)) {
		if s[key] != later[key] {
			list = append(list, fmt.Sprintf("%s: %q became %q", key, s[key], later[key]))
		}
	}
	for key := range later {
		if _, known := s[key]; !known {
			list = append(list, key+" is new: "+later[key])
		}
	}

	return list
}

// TestSleeperChangesNothing stops a worker in the middle of each thing that writes, lets its lease expire and another end
// the job, and wakes it up. It has to find out, and nothing may be different afterwards.
func TestSleeperChangesNothing(t *testing.T) {
	rounds := 2
	if thorough() {
		rounds = 25
	}
	for _, c := range []struct {
		in     string
		within time.Duration // how long it takes about
		order  order
	}{
		{in: "snapshot", within: 400 * time.Millisecond},
		{in: "protect", within: 20 * time.Millisecond},
		{in: "clone", within: 150 * time.Millisecond},
		{in: "seal", within: 600 * time.Millisecond},
		{in: "flatten", within: 400 * time.Millisecond},
		{in: "release", within: 500 * time.Millisecond},
		{in: "copy", within: 500 * time.Millisecond, order: order{Copy: true}},
		{in: "discard", within: 300 * time.Millisecond, order: order{Discard: true}},
		{in: "discard", within: 300 * time.Millisecond, order: order{Copy: true, Discard: true}},
		{in: "save", within: 100 * time.Millisecond, order: order{Loop: "save"}},
		{in: "renew", within: 100 * time.Millisecond, order: order{Loop: "renew"}},
	} {
		for round := range rounds {
			t.Run(fmt.Sprintf("%s/%d", c.in, round), func(t *testing.T) {
				t.Parallel()
				v := newVictim(t, 6*time.Second, 96) // the lease outlasts a busy machine
				v.Copy, v.Discard, v.Loop = c.order.Copy, c.order.Discard, c.order.Loop
				h := startHelper(t, v.order)
				if h.until(t, "step "+c.in) == "" {
					t.Fatalf("the helper ended before it came to %s", c.in)
				}
				<-time.After(rand.N(c.within))
				h.signal(t, syscall.SIGSTOP)
				ids := v.ids(t)
				v.Loop = ""
				v.finish(t)
				v.check(t)
				ids = append(ids, v.ids(t)...)
				before := v.state(t, ids)
				h.signal(t, syscall.SIGCONT)
				if ended := h.until(t, "ended"); !v.found(t, ended) {
					t.Errorf("the worker that slept says %q, want reason %s", ended, worker.ReasonLeaseLost)
				}
				for range h.lines { // until its process is gone
				}
				for _, change := range before.differ(v.state(t, ids)) {
					t.Error(change)
				}
				v.check(t)
			})
		}
	}
}

// found reports whether a worker that slept ended as it has to: it was killed by librados, has lost the lease, or what was
// under way for longer than an operation may take has timed out (nobody knows then what became of it). A worker that had
// done everything before it slept ends well.
func (v *victim) found(t testing.TB, ended string) bool {
	t.Helper()
	rec, err := v.c.Load(t.Context(), v.key()) // the successor in these tests saves no steps
	must(t, err)
	steps := v.steps()
	switch _, end, _ := strings.Cut(ended, " "); {
	case ended == "", strings.HasPrefix(end, string(worker.ReasonLeaseLost)), strings.HasPrefix(end, string(worker.ReasonCephUnavailable)):
		return true
	default:
		return strings.HasPrefix(end, string(worker.ReasonNone)) && rec.HasStep(steps[len(steps)-1].name)
	}
}

// TestNothingUnsafeOverControl: a successor does not fence the control connection of the owner before. So everything that
// a lost claim can still do over it must do nothing.
func TestNothingUnsafeOverControl(t *testing.T) {
	t.Parallel()
	for name, do := range map[string]func(*testing.T, *Claim) error{
		"renew": func(t *testing.T, cl *Claim) error { return want(cl.Renew(t.Context()), worker.ErrLeaseLost) },
		"save": func(t *testing.T, cl *Claim) error {
			rec := cl.Record()
			rec.LastError, rec.Closed = "a zombie", true

			return want(cl.Save(t.Context(), rec), worker.ErrLeaseLost)
		},
		"leave":   func(t *testing.T, cl *Claim) error { return cl.leave(controlOf(t, cl.c)) },
		"unlock":  func(t *testing.T, cl *Claim) error { return cl.unlock(controlOf(t, cl.c), 0) },
		"sweep":   func(t *testing.T, cl *Claim) error { controlOf(t, cl.c).sweep(cl.held[1]); return nil },
		"notify":  func(t *testing.T, cl *Claim) error { cl.c.notify(t.Context()); return nil },
		"release": func(t *testing.T, cl *Claim) error { return cl.Release(t.Context()) },
		"enter":   func(_ *testing.T, cl *Claim) error { return want(cl.enter(cl.record, ""), worker.ErrHeld) },
		"take": func(t *testing.T, cl *Claim) error {
			return want(cl.take(t.Context(), strings.TrimPrefix(cl.held[1], volumePrefix)), worker.ErrHeld)
		},
		"cut": func(t *testing.T, cl *Claim) error { return cl.cut(controlOf(t, cl.c)) }, // fences itself once more
		"remove": func(t *testing.T, cl *Claim) error {
			if err := cl.c.Remove(t.Context(), cl.key); worker.ReasonOf(err) != worker.ReasonConflict {
				return fmt.Errorf("%w, want a conflict", err)
			}

			return nil
		},
		"create": func(t *testing.T, cl *Claim) error {
			return want(cl.c.Create(t.Context(), cl.record), worker.ErrExists)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := labOptions(t)
			o.Namespace, o.LeaseTTL, o.Owner = "cinderlift-test-"+newID(), time.Second, "before"
			c := labCluster(t, o)
			wipe(t, c)
			o.LeaseTTL, o.Owner = time.Minute, "after"
			successor := labCluster(t, o)
			rec := fresh()
			must(t, c.Create(t.Context(), rec))
			before := adopt(t, c, rec.Job.Key())
			after := adopt(t, successor, rec.Job.Key())
			was := journalState(t, successor, rec)
			must(t, do(t, before))
			if is := journalState(t, successor, rec); !reflect.DeepEqual(is, was) {
				t.Errorf("the journal was\n%+v and is\n%+v", was, is)
			}
			must(t, after.Renew(t.Context()))
			must(t, after.Save(t.Context(), after.Record()))
			if _, err := after.Images().FSID(t.Context()); err != nil {
				t.Error(err)
			}
			must(t, before.Release(t.Context()))
			must(t, after.Release(t.Context()))
		})
	}
}

func want(got, wanted error) error {
	if errors.Is(got, wanted) {
		return nil
	}

	return fmt.Errorf("it is %q, want: %w", fmt.Sprint(got), wanted)
}

// journalState is what lies in the journal of one job, with versions and lockers.
func journalState(t *testing.T, c *Cluster, rec worker.Record) []any {
	t.Helper()
	own, err := controlOf(t, c).versioned()
	must(t, err)
	defer own.Destroy()
	e, err := load(own, rec.Job.Key())
	must(t, err)
	state := []any{e}
	for _, object := range []string{jobPrefix + rec.Job.Key(), volumePrefix + rec.Job.VolumeID} {
		_, err := own.Stat(object)
		must(t, err)
		version, err := own.GetLastVersion()
		must(t, err)
		lockers, err := own.ListLockers(object, lockName)
		must(t, err)
		state = append(state, version, *lockers)
	}

	return state
}
