package workertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// Fault decides what goes wrong in an operation: before is returned without anything having been done, after is
// returned although everything was done. Both nil: nothing goes wrong.
type Fault func(op string) (before, after error)

// Ops lists the operations that a Fault is asked about.
func Ops() []string {
	return []string{"create", "load", "keys", "claim", "save", "renew", "release", "remove"}
}

// Store is the memory that the journals of several workers share.
type Store struct {
	ttl time.Duration

	mu     sync.Mutex
	jobs   map[string]*job
	leases map[string]lease // by "job.<key>" and "vol.<id>"
	fences int
	parks  int
	stamp  uint64           // of the last write
	watch  map[*func()]bool // whom to tell of open jobs that were released
}

type job struct {
	record []byte
	epoch  uint64
	stamp  uint64
	holder *claim // last to claim it without a clean release
}

type lease struct {
	by    *claim
	until time.Time
}

// NewStore makes an empty store whose leases last for ttl.
func NewStore(ttl time.Duration) *Store {
	return &Store{ttl: ttl, jobs: map[string]*job{}, leases: map[string]lease{}, watch: map[*func()]bool{}}
}

// touch changes the stamp of a job.
func (s *Store) touch(at *job) {
	s.stamp++
	at.stamp = s.stamp
}

// Parks is how often a claim was told that its job waits.
func (s *Store) Parks() int {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.parks
}

// Fences is how many owners were fenced so far: those that did not release their claim.
func (s *Store) Fences() int {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.fences
}

// Held reports whether some lease has not expired.
func (s *Store) Held() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.leases {
		if s.taken(name) {
			return true
		}
	}

	return false
}

// Journal is the journal as one worker sees it.
type Journal struct {
	// Fail injects faults; nil for none. Set it before the journal is used.
	Fail Fault

	owner string
	s     *Store
}

var _ worker.Journal = (*Journal)(nil)

// Journal answers the journal for the worker with this name.
func (s *Store) Journal(owner string) *Journal { return &Journal{owner: owner, s: s} }

// do runs fn under the store's lock, with the faults around it.
func (j *Journal) do(ctx context.Context, op string, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return away(op, context.Cause(ctx))
	}
	var before, after error
	if j.Fail != nil {
		before, after = j.Fail(op)
	}
	if before != nil {
		return before
	}
	j.s.mu.Lock()
	err := fn()
	j.s.mu.Unlock()
	if err != nil {
		return err
	}

	return after
}

// Create implements worker.Journal.
func (j *Journal) Create(ctx context.Context, r worker.Record) error {
	key := r.Job.Key()

	return j.do(ctx, "create", func() error {
		if j.s.jobs[key] != nil {
			return fmt.Errorf("create job %s: %w", key, worker.ErrExists)
		}
		at := &job{record: encode(r), epoch: r.Epoch}
		j.s.touch(at)
		j.s.jobs[key] = at

		return nil
	})
}

// Load implements worker.Journal.
func (j *Journal) Load(ctx context.Context, key string) (worker.Record, error) {
	var r worker.Record
	err := j.do(ctx, "load", func() error {
		at := j.s.jobs[key]
		if at == nil {
			return fmt.Errorf("load job %s: %w", key, worker.ErrNotFound)
		}
		r = at.decode()
		r.Stamp, r.Unreleased = at.stamp, at.holder != nil

		return nil
	})
	if err != nil {
		return worker.Record{}, err
	}

	return r, nil
}

// Keys implements worker.Journal.
func (j *Journal) Keys(ctx context.Context) ([]string, error) {
	var keys []string
	err := j.do(ctx, "keys", func() error {
		for key := range j.s.jobs {
			keys = append(keys, key)
		}

		return nil
	})
	if err != nil {
		return nil, err
	}

	return keys, nil
}

// Remove implements worker.Journal.
func (j *Journal) Remove(ctx context.Context, key string) error {
	return j.do(ctx, "remove", func() error {
		if at := j.s.jobs[key]; at != nil && !at.decode().Closed {
			return &worker.Error{Op: "remove job " + key, Reason: worker.ReasonConflict, Err: errors.New("it is open")}
		}
		delete(j.s.jobs, key)

		return nil
	})
}

// Watch implements worker.Journal. It has no faults: a hint may be lost anyway.
func (j *Journal) Watch(ctx context.Context, hint func()) error {
	j.s.mu.Lock()
	j.s.watch[&hint] = true
	j.s.mu.Unlock()
	<-ctx.Done()
	j.s.mu.Lock()
	defer j.s.mu.Unlock()
	delete(j.s.watch, &hint)

	return ctx.Err()
}

// Claim implements worker.Journal.
func (j *Journal) Claim(ctx context.Context, key string) (worker.Claim, error) {
	c := &claim{j: j, key: key, taken: time.Now()}
	err := j.do(ctx, "claim", func() error { return j.take(c) })
	if err != nil {
		j.s.mu.Lock()
		c.drop()
		j.s.mu.Unlock()

		return nil, err
	}

	return c, nil
}

func (j *Journal) take(c *claim) error {
	at := j.s.jobs[c.key]
	if at == nil {
		return fmt.Errorf("claim job %s: %w", c.key, worker.ErrNotFound)
	}
	r := at.decode()
	if r.Version > worker.RecordVersion {
		return fmt.Errorf("claim job %s: %w", c.key, worker.ErrNewer)
	}
	c.leases = []string{"job." + c.key, "vol." + r.Job.VolumeID}
	for _, name := range c.leases {
		if j.s.taken(name) {
			return fmt.Errorf("claim job %s: %s: %w", c.key, name, worker.ErrHeld)
		}
	}
	if at.holder != nil {
		j.s.fences++
	}
	at.epoch++
	r.Epoch, r.Owner = at.epoch, j.owner
	at.record, at.holder = encode(r), c
	j.s.touch(at)
	c.record, c.epoch = r, r.Epoch
	for _, name := range c.leases {
		j.s.leases[name] = lease{by: c, until: time.Now().Add(j.s.ttl)}
	}

	return nil
}

// claim is a record under lease.
type claim struct {
	j      *Journal
	key    string
	leases []string
	taken  time.Time
	record worker.Record
	epoch  uint64
	done   bool
}

func (c *claim) Taken() time.Time { return c.taken }

func (c *claim) Park() {
	c.j.s.mu.Lock()
	defer c.j.s.mu.Unlock()
	if !c.done {
		c.j.s.parks++
	}
}

func (c *claim) Record() worker.Record { return c.record }

func (c *claim) Save(ctx context.Context, r worker.Record) error {
	return c.j.do(ctx, "save", func() error {
		at := c.j.s.jobs[c.key]
		if c.done || at == nil || at.epoch != c.epoch {
			return lost("save", c.key)
		}
		r.Epoch, r.Owner = c.epoch, c.j.owner
		at.record = encode(r)
		c.j.s.touch(at)

		return nil
	})
}

func (c *claim) Renew(ctx context.Context) error {
	return c.j.do(ctx, "renew", func() error {
		for _, name := range c.leases {
			if c.done || !c.j.s.taken(name) || c.j.s.leases[name].by != c {
				return lost("renew", c.key)
			}
		}
		for _, name := range c.leases {
			c.j.s.leases[name] = lease{by: c, until: time.Now().Add(c.j.s.ttl)}
		}
		if at := c.j.s.jobs[c.key]; at != nil {
			c.j.s.touch(at)
		}

		return nil
	})
}

func (c *claim) Release(ctx context.Context) error {
	return c.j.do(ctx, "release", func() error {
		if c.drop() {
			c.tell()
		}

		return nil
	})
}

// tell hints that the job may be taken, unless it is closed.
func (c *claim) tell() {
	if at := c.j.s.jobs[c.key]; at == nil || at.decode().Closed {
		return
	}
	for hint := range c.j.s.watch {
		(*hint)()
	}
}

// drop gives back what is still the claim's own, and reports whether there was anything.
func (c *claim) drop() bool {
	c.done = true
	dropped := false
	for _, name := range c.leases {
		if c.j.s.leases[name].by == c {
			delete(c.j.s.leases, name)
			dropped = true
		}
	}
	if at := c.j.s.jobs[c.key]; at != nil && at.holder == c {
		at.holder = nil
		c.j.s.touch(at)
	}

	return dropped
}

func (s *Store) taken(name string) bool {
	l, ok := s.leases[name]

	return ok && time.Now().Before(l.until)
}

func (j *job) decode() worker.Record {
	var r worker.Record
	if err := json.Unmarshal(j.record, &r); err != nil {
		panic(fmt.Sprintf("a record that was encoded here does not decode: %v", err))
	}

	return r
}

// encode is what makes the fake forget what a real journal would not keep (Job.Private).
func encode(r worker.Record) []byte {
	raw, err := json.Marshal(r)
	if err != nil {
		panic(fmt.Sprintf("encode record of job %s: %v", r.Job.Key(), err))
	}

	return raw
}

func lost(op, key string) error {
	return &worker.Error{
		Op: op + " job " + key, Reason: worker.ReasonLeaseLost, Advice: worker.StandBy, Err: worker.ErrLeaseLost,
	}
}

func away(op string, err error) error {
	return &worker.Error{Op: op, Reason: worker.ReasonStopping, Advice: worker.Retry, Err: err}
}
