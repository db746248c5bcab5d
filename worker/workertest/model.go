package workertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/cinderlift/cinderlift/worker"
)

// RunModel holds a journal against a model of it: several workers create, claim, save, renew, release and remove jobs of
// shared volumes in any order, leases run out, answers get lost, and a worker that lost its lease goes on as if nothing
// had happened. After every step:
//
//   - at most one claim holds a job, and at most one a volume;
//   - the epoch of a job goes up with each claim;
//   - what an owner writes after a successor has claimed does not land;
//   - every record is what was last written to it, and none is missing or back again.
//
// How many runs of how many steps is set by rapid's flags, -rapid.checks and -rapid.steps.
func RunModel(t *testing.T, r Rig) {
	t.Helper()
	journals := []worker.Journal{r.Journal(t, "a"), r.Journal(t, "b"), r.Journal(t, "c")}
	rapid.Check(plain{t}, func(rt *rapid.T) {
		m := &model{rig: r, ctx: t.Context(), journals: journals, volumes: []string{r.ID(), r.ID()}, jobs: map[string]*modelJob{}}
		defer m.end()
		rt.Repeat(map[string]func(*rapid.T){
			"create": m.create, "claim": m.claim, "claim again": m.claim, "save": m.save, "renew": m.renew, "release": m.release,
			"close": m.close, "remove": m.remove, "wait": m.wait, "": m.check,
		})
	})
}

// plain hides Deadline, which must not be asked for inside a synctest bubble.
type plain struct{ *testing.T }

var errLostAnswer = errors.New("the answer is lost")

// model is what the journal should be, and the claims that were made on it.
type model struct {
	rig      Rig
	ctx      context.Context
	journals []worker.Journal
	volumes  []string
	keys     []string // in the order of creation, so that a run can be repeated
	jobs     map[string]*modelJob
	claims   []*modelClaim
	writes   int
}

type modelJob struct {
	there  bool
	life   int // goes up when it is created anew under the same key
	record worker.Record
	writes int    // since the stamp was looked at
	stamp  uint64 // when it was last looked at
}

type modelClaim struct {
	worker.Claim
	key, owner, volume string
	life               int
	record             worker.Record
	released           bool

	// When the lease ends: not before from, and for everyone by until.
	from, until time.Time
}

// lease is a claim's from now on: its time counts from somewhere between asked and now.
func (m *model) lease(c *modelClaim, asked time.Time) {
	c.from, c.until = asked.Add(m.rig.TTL), time.Now().Add(m.rig.TTL+m.rig.Slack)
}

func (c *modelClaim) holds(now time.Time) bool { return !c.released && now.Before(c.from) }
func (c *modelClaim) over(now time.Time) bool  { return c.released || !now.Before(c.until) }

// faulty calls f with the faults of a network: the request does not arrive, or the answer does not. For the latter f was
// carried out, and applied is true.
func (m *model) faulty(rt *rapid.T, f func() error) (err error, applied bool) {
	switch rapid.SampledFrom([]string{"fine", "fine", "fine", "request lost", "answer lost"}).Draw(rt, "network") {
	case "request lost":
		return errLostAnswer, false
	case "answer lost":
		if err := f(); err != nil {
			return err, false
		}

		return errLostAnswer, true
	}
	err = f()

	return err, err == nil
}

func (m *model) journal(rt *rapid.T) (worker.Journal, string) {
	n := rapid.IntRange(0, len(m.journals)-1).Draw(rt, "worker")

	return m.journals[n], string(rune('a' + n))
}

func (m *model) someKey(rt *rapid.T) string {
	if len(m.keys) == 0 {
		rt.Skip("no job")
	}

	return rapid.SampledFrom(m.keys).Draw(rt, "job")
}

func (m *model) someClaim(rt *rapid.T) *modelClaim {
	var live []*modelClaim
	for _, c := range m.claims {
		if !c.released && c.life == m.jobs[c.key].life { // after Remove only a process that slept for days would go on
			live = append(live, c)
		}
	}
	if len(live) == 0 {
		rt.Skip("no claim")
	}

	return live[rapid.IntRange(0, len(live)-1).Draw(rt, "claim")]
}

// wrote is every write of the model.
func (m *model) wrote(j *modelJob) string {
	m.writes++
	j.writes++

	return fmt.Sprint("write ", m.writes)
}

func (m *model) create(rt *rapid.T) {
	if len(m.keys) == 0 || len(m.keys) < 4 && rapid.Bool().Draw(rt, "new key") {
		key := m.rig.ID()
		m.keys = append(m.keys, key)
		m.jobs[key] = &modelJob{}
	}
	key := m.someKey(rt)
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	rec := worker.Record{
		Version: rapid.SampledFrom([]int{0, worker.RecordVersion, worker.RecordVersion, worker.RecordVersion + 1}).Draw(rt, "version"),
		Job: worker.Job{ImageID: key, VolumeID: rapid.SampledFrom(m.volumes).Draw(rt, "volume"), ProjectID: "p", Digest: fmt.Sprint("d", m.writes),
			Origin: json.RawMessage(`{"reply":"q"}`)},
		Accepted: at, Updated: at,
	}
	j := m.jobs[key]
	journal, _ := m.journal(rt)
	err, applied := m.faulty(rt, func() error { return journal.Create(m.ctx, rec) })
	switch {
	case j.there && !errors.Is(err, worker.ErrExists) && !errors.Is(err, errLostAnswer), j.there && applied:
		rt.Fatalf("create what is there: %v", err)
	case !j.there && err != nil && !errors.Is(err, errLostAnswer):
		rt.Fatalf("create: %v", err)
	case applied:
		m.wrote(j)
		j.there, j.record, j.life = true, rec, j.life+1
	}
}

// rivals are the claims on the job or its volume: whether one of them holds for certain, and whether none may.
func (m *model) rivals(key, volume string) (held, free bool) {
	free = true
	now := time.Now()
	for _, c := range m.claims {
		if c.key != key && c.volume != volume {
			continue
		}
		// The lease of a job that was removed may go with it; that of its volume does not.
		certain := c.volume == volume || c.life == m.jobs[key].life
		held = held || certain && c.holds(now)
		free = free && c.over(now)
	}

	return held, free
}

func (m *model) claim(rt *rapid.T) {
	key := m.someKey(rt)
	j := m.jobs[key]
	journal, owner := m.journal(rt)
	volume := j.record.Job.VolumeID
	_, free := m.rivals(key, volume)
	asked := time.Now()
	got, err := journal.Claim(m.ctx, key)
	held, _ := m.rivals(key, volume) // a lease may have run out meanwhile
	switch {
	case !j.there && !errors.Is(err, worker.ErrNotFound):
		rt.Fatalf("claim what is not there: %v", err)
	case !j.there:
		return
	case j.record.Version > worker.RecordVersion:
		if !errors.Is(err, worker.ErrNewer) {
			rt.Fatalf("claim a newer record: %v", err)
		}

		return
	case err == nil && held:
		rt.Fatalf("two claims hold job %s or its volume", key)
	case err != nil && (free || !errors.Is(err, worker.ErrHeld)):
		rt.Fatalf("claim what is free: %v", err)
	case err != nil:
		return
	}
	c := &modelClaim{Claim: got, key: key, owner: owner, volume: volume, life: j.life, record: got.Record()}
	m.lease(c, asked)
	m.claims = append(m.claims, c)
	m.wrote(j)
	j.record.Epoch, j.record.Owner = j.record.Epoch+1, owner
	m.same(rt, "claim", got.Record(), j.record)
}

func (m *model) save(rt *rapid.T)  { m.write(rt, false) }
func (m *model) close(rt *rapid.T) { m.write(rt, true) }

// write saves through any claim, also one whose lease is lost.
func (m *model) write(rt *rapid.T, closing bool) {
	c := m.someClaim(rt)
	j := m.jobs[c.key]
	next := c.record
	next.Steps = append(slices.Clone(next.Steps), fmt.Sprint("step ", m.writes))
	next.LastError, next.Closed = fmt.Sprint("by ", c.owner, " after write ", m.writes), next.Closed || closing
	if closing {
		next.Outcome = &worker.Outcome{Result: worker.Done, Reason: worker.ReasonNone}
	}
	last := j.there && j.record.Epoch == c.record.Epoch // nobody has claimed since
	err, applied := m.faulty(rt, func() error { return c.Save(m.ctx, next) })
	switch {
	case applied && !last:
		rt.Fatalf("a loser's save of job %s landed: epoch %d, the job's is %d", c.key, c.record.Epoch, j.record.Epoch)
	case !last && !errors.Is(err, worker.ErrLeaseLost) && !errors.Is(err, errLostAnswer):
		rt.Fatalf("a loser's save: %v", err)
	case last && err != nil && !errors.Is(err, errLostAnswer):
		rt.Fatalf("save: %v", err)
	case applied:
		m.wrote(j)
		j.record, c.record = next, next
	}
}

func (m *model) renew(rt *rapid.T) {
	c := m.someClaim(rt)
	j := m.jobs[c.key]
	asked := time.Now()
	wasOver := c.over(asked)
	err, applied := m.faulty(rt, func() error { return c.Renew(m.ctx) })
	held := c.holds(time.Now())
	switch {
	case applied && (wasOver || j.there && j.record.Epoch != c.record.Epoch):
		rt.Fatalf("renewed what is lost: job %s, epoch %d", c.key, c.record.Epoch)
	case !applied && held && j.there && !errors.Is(err, errLostAnswer):
		rt.Fatalf("renew: %v", err)
	case !applied && !errors.Is(err, errLostAnswer) && !errors.Is(err, worker.ErrLeaseLost):
		rt.Fatalf("renew what is lost: %v", err)
	case applied:
		j.writes++
		m.lease(c, asked)
	case errors.Is(err, worker.ErrLeaseLost):
		c.from = asked
	}
}

// release gives back; when its request is lost the claim is only never heard of again, and its lease runs out.
func (m *model) release(rt *rapid.T) {
	c := m.someClaim(rt)
	for range rapid.IntRange(1, 2).Draw(rt, "times") {
		err, applied := m.faulty(rt, func() error { return c.Release(m.ctx) })
		if !applied && !errors.Is(err, errLostAnswer) {
			rt.Fatalf("release: %v", err)
		}
		c.released = c.released || applied
	}
}

func (m *model) remove(rt *rapid.T) {
	key := m.someKey(rt)
	j := m.jobs[key]
	journal, _ := m.journal(rt)
	err, applied := m.faulty(rt, func() error { return journal.Remove(m.ctx, key) })
	open := j.there && !j.record.Closed
	switch {
	case open && (applied || worker.ReasonOf(err) != worker.ReasonConflict && !errors.Is(err, errLostAnswer)):
		rt.Fatalf("remove an open job: %v", err)
	case !open && !applied && !errors.Is(err, errLostAnswer):
		rt.Fatalf("remove: %v", err)
	case applied && j.there:
		j.there, j.writes, j.stamp = false, 0, 0
	}
}

// wait lets leases run out, or nearly so.
func (m *model) wait(rt *rapid.T) {
	<-time.After(rapid.SampledFrom([]time.Duration{m.rig.TTL / 4, m.rig.TTL / 2, m.rig.TTL + m.rig.Slack}).Draw(rt, "time"))
}

// check compares everything.
func (m *model) check(rt *rapid.T) {
	journal := m.journals[m.writes%len(m.journals)]
	listed, err := journal.Keys(m.ctx)
	if err != nil {
		rt.Fatalf("keys: %v", err)
	}
	for _, key := range m.keys {
		j := m.jobs[key]
		if slices.Contains(listed, key) != j.there {
			rt.Fatalf("job %s is listed: %v, there: %v", key, !j.there, j.there)
		}
		got, err := journal.Load(m.ctx, key)
		if !j.there {
			if !errors.Is(err, worker.ErrNotFound) {
				rt.Fatalf("load what is not there: %v", err)
			}

			continue
		}
		if err != nil {
			rt.Fatalf("load: %v", err)
		}
		if j.writes > 0 && got.Stamp == j.stamp {
			rt.Fatalf("job %s was written %d times and has the same stamp", key, j.writes)
		}
		j.stamp, j.writes = got.Stamp, 0
		m.same(rt, "load", got, j.record)
	}
}

func (m *model) same(rt *rapid.T, what string, got, want worker.Record) {
	got.Stamp, want.Stamp = 0, 0
	got.Unreleased, want.Unreleased = false, false
	if !reflect.DeepEqual(got, want) {
		rt.Fatalf("%s gives\n%+v, want\n%+v", what, got, want)
	}
}

// end gives everything back, for the next run and for the connections' sake.
func (m *model) end() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), time.Minute)
	defer cancel()
	for _, c := range m.claims {
		_ = c.Release(ctx) // what fails runs out
	}
}
