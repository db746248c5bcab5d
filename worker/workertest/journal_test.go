package workertest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

func fakeRig(s func() *Store) Rig {
	var n atomic.Int64

	return Rig{
		Journal: func(_ testing.TB, owner string) worker.Journal { return s().Journal(owner) },
		ID:      func() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n.Add(1)) },
		TTL:     30 * time.Second,
	}
}

func TestFake(t *testing.T) {
	var store *Store
	rig := fakeRig(func() *Store { return store })
	rig.Run = func(t *testing.T, name string, fn func(t *testing.T)) {
		t.Run(name, func(t *testing.T) {
			store = NewStore(rig.TTL)
			synctest.Test(t, fn)
		})
	}
	RunJournal(t, rig)
}

func TestFaults(t *testing.T) {
	boom := errors.New("boom")
	for _, op := range Ops() {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s applied=%v", op, applied), func(t *testing.T) {
				s := NewStore(time.Minute)
				j := s.Journal("a")
				rec := record(fakeRig(func() *Store { return s }))
				if op != "create" {
					create(t, j, rec)
				}
				if op == "remove" {
					closeJob(t, j, rec.Job.Key())
				}
				claim := prepare(t, j, rec, op)
				j.Fail = func(o string) (error, error) {
					switch {
					case o != op:
						return nil, nil
					case applied:
						return nil, boom
					default:
						return boom, nil
					}
				}
				wantErr(t, op, call(t.Context(), j, claim, rec, op), boom)
				if got := effect(s, rec, op); got != applied && op != "load" && op != "keys" {
					t.Errorf("%s took effect: %v, want %v", op, got, applied)
				}
			})
		}
	}
}

func prepare(t *testing.T, j *Journal, rec worker.Record, op string) worker.Claim {
	if op != "save" && op != "renew" && op != "release" {
		return nil
	}
	c, err := j.Claim(t.Context(), rec.Job.Key())
	if err != nil {
		t.Fatal(err)
	}
	if op == "renew" { // as if time had passed
		for name, l := range j.s.leases {
			j.s.leases[name] = lease{by: l.by, until: time.Now().Add(time.Second)}
		}
	}

	return c
}

func call(ctx context.Context, j *Journal, c worker.Claim, rec worker.Record, op string) error {
	switch op {
	case "create":
		return j.Create(ctx, rec)
	case "load":
		_, err := j.Load(ctx, rec.Job.Key())

		return err
	case "keys":
		_, err := j.Keys(ctx)

		return err
	case "claim":
		_, err := j.Claim(ctx, rec.Job.Key())

		return err
	case "save":
		rec.LastError = "saved"

		return c.Save(ctx, rec)
	case "renew":
		return c.Renew(ctx)
	case "release":
		return c.Release(ctx)
	default:
		return j.Remove(ctx, rec.Job.Key())
	}
}

// effect reports whether op has changed the store.
func effect(s *Store, rec worker.Record, op string) bool {
	at := s.jobs[rec.Job.Key()]
	switch op {
	case "create":
		return at != nil
	case "claim":
		return at.epoch == 1 && !s.Held() // an error never leaves a lease
	case "save":
		return at.decode().LastError == "saved"
	case "renew":
		return time.Until(s.leases["job."+rec.Job.Key()].until) > 30*time.Second
	case "release":
		return !s.Held()
	default:
		return at == nil
	}
}

func TestFences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore(time.Second)
		rec := record(fakeRig(func() *Store { return s }))
		create(t, s.Journal("a"), rec)
		for i := range 3 {
			if _, err := s.Journal("a").Claim(t.Context(), rec.Job.Key()); err != nil {
				t.Fatal(err)
			}
			if s.Fences() != i {
				t.Errorf("%d fences after %d dead owners", s.Fences(), i)
			}
			<-time.After(time.Second)
		}
	})
}
