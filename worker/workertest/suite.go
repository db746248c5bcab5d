package workertest

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// Rig is a journal to be tested.
type Rig struct {
	// Journal answers the journal as the worker with this name sees it. All share one store.
	Journal func(t testing.TB, owner string) worker.Journal

	// ID answers an id that was not used before, in the form of a UUID.
	ID func() string

	// TTL is how long a lease lasts, Slack how much later than that others may see it end (0 for an exact clock).
	TTL, Slack time.Duration

	// Run runs one case; nil means t.Run. A fake runs each case inside a synctest bubble.
	Run func(t *testing.T, name string, fn func(t *testing.T))
}

// RunJournal runs the conformance suite.
func RunJournal(t *testing.T, r Rig) {
	run := r.Run
	if run == nil {
		run = func(t *testing.T, name string, fn func(t *testing.T)) { t.Run(name, fn) }
	}
	for _, c := range journalCases() {
		run(t, c.name, func(t *testing.T) { c.fn(t, r) })
	}
}

type journalCase struct {
	name string
	fn   func(*testing.T, Rig)
}

func journalCases() []journalCase {
	return []journalCase{
		{"create and load", createAndLoad},
		{"create is exclusive", createIsExclusive},
		{"what is not there", whatIsNotThere},
		{"keys", keys},
		{"remove", remove},
		{"remove leaves an open record", removeLeavesOpen},
		{"remove and create at the same time", removeAndCreate},
		{"claim raises the epoch", claimRaisesTheEpoch},
		{"claim excludes others", claimExcludesOthers},
		{"claim excludes the volume's other jobs", claimExcludesTheVolume},
		{"one of many claims wins", oneClaimWins},
		{"save", save},
		{"release hands over at once", releaseHandsOver},
		{"renew keeps the lease", renewKeepsTheLease},
		{"an expired lease can't be renewed", expiredLease},
		{"a successor shuts the owner before out", successorShutsOut},
		{"a parked claim keeps its lease", parkedClaim},
		{"a newer record is left alone", newerRecord},
		{"the stamp shows a living owner", stamps},
		{"a release is hinted at", hints},
		{"a claim that was not released shows", unreleased},
		{"a finished context", finishedContext},
	}
}

func record(r Rig) worker.Record {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

	return worker.Record{
		Job: worker.Job{
			ImageID: r.ID(), VolumeID: r.ID(), ProjectID: "p", DiskFormat: "raw", ContainerFormat: "bare",
			Digest: "d", Origin: json.RawMessage(`{"reply":"q"}`), Private: "a token",
		},
		Strategy: "copy", Steps: []string{"snapshot"}, Begun: []string{"snapshot", "seal"},
		Doing:  &worker.Activity{Name: "seal", Owner: "w", Since: at},
		Deaths: []worker.Activity{{Name: "seal", Owner: "v", Since: at}}, Accepted: at, Updated: at,
	}
}

// kept is what of a record has to come back from a journal.
func kept(r worker.Record) worker.Record {
	r.Job.Private = nil

	return r
}

func create(t *testing.T, j worker.Journal, rec worker.Record) {
	t.Helper()
	if err := j.Create(t.Context(), rec); err != nil {
		t.Fatalf("create: %v", err)
	}
}

func claimed(t *testing.T, j worker.Journal, key string) worker.Claim {
	t.Helper()
	c, err := j.Claim(t.Context(), key)
	if err != nil {
		t.Fatalf("claim: %v", err)
	}
	t.Cleanup(func() { release(t, c) })

	return c
}

// parkedClaim: a job that waits is as much its worker's as one that works.
func parkedClaim(t *testing.T, r Rig) {
	j, other := r.Journal(t, "a"), r.Journal(t, "b")
	rec := record(r)
	create(t, j, rec)
	before := time.Now()
	c := claimed(t, j, rec.Job.Key())
	if at := c.Taken(); at.Before(before) || at.After(time.Now()) {
		t.Errorf("taken at %v, asked for at %v", at, before)
	}
	c.Park()
	c.Park()
	_, err := other.Claim(t.Context(), rec.Job.Key())
	wantErr(t, "claim of a parked job", err, worker.ErrHeld)
	if err := c.Renew(t.Context()); err != nil {
		t.Errorf("renew: %v", err)
	}
	saved := c.Record()
	saved.Steps = append(saved.Steps, "seal")
	if err := c.Save(t.Context(), saved); err != nil {
		t.Errorf("save: %v", err)
	}
	release(t, c)
	c.Park() // too late, and harmless
	want := kept(saved)
	want.Owner, want.Epoch = "b", saved.Epoch+1
	same(t, claimed(t, other, rec.Job.Key()).Record(), want)
}

// release runs also after the test's own context has ended.
func release(t *testing.T, c worker.Claim) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 30*time.Second)
	defer cancel()
	if err := c.Release(ctx); err != nil {
		t.Errorf("release: %v", err)
	}
}

// same compares what is stored.
func same(t *testing.T, got, want worker.Record) {
	t.Helper()
	got.Stamp, want.Stamp = 0, 0
	got.Unreleased, want.Unreleased = false, false
	if !reflect.DeepEqual(got, want) {
		t.Errorf("record is\n%+v, want\n%+v", got, want)
	}
}

func load(t *testing.T, j worker.Journal, key string) worker.Record {
	t.Helper()
	rec, err := j.Load(t.Context(), key)
	if err != nil {
		t.Fatalf("load: %v", err)
	}

	return rec
}

func wantErr(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: error %v, want %v", what, err, want)
	}
}

func createAndLoad(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	same(t, load(t, r.Journal(t, "b"), rec.Job.Key()), kept(rec))
}

func createIsExclusive(t *testing.T, r Rig) {
	rec := record(r)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		j := r.Journal(t, "w")
		wg.Go(func() { errs[i] = j.Create(t.Context(), rec) })
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
		} else if !errors.Is(err, worker.ErrExists) {
			t.Errorf("create: %v, want ErrExists", err)
		}
	}
	if made != 1 {
		t.Errorf("%d of %d creates succeeded, want 1", made, len(errs))
	}
	other := rec
	other.Job.Digest = "another"
	wantErr(t, "create again", r.Journal(t, "w").Create(t.Context(), other), worker.ErrExists)
	same(t, load(t, r.Journal(t, "w"), rec.Job.Key()), kept(rec))
}

func whatIsNotThere(t *testing.T, r Rig) {
	j, key := r.Journal(t, "a"), r.ID()
	_, err := j.Load(t.Context(), key)
	wantErr(t, "load", err, worker.ErrNotFound)
	_, err = j.Claim(t.Context(), key)
	wantErr(t, "claim", err, worker.ErrNotFound)
	// A refused claim must not have made anything: a create has to find the key free.
	rec := record(r)
	rec.Job.ImageID = key
	create(t, j, rec)
}

func keys(t *testing.T, r Rig) {
	j := r.Journal(t, "a")
	var want []string
	for range 3 {
		rec := record(r)
		create(t, j, rec)
		want = append(want, rec.Job.Key())
	}
	claimed(t, j, want[0]) // the volume's lease is no job
	got, err := j.Keys(t.Context())
	if err != nil {
		t.Fatalf("keys: %v", err)
	}
	for _, key := range want {
		if !slices.Contains(got, key) {
			t.Errorf("keys lack %s", key)
		}
	}
	for _, key := range got {
		if _, err := j.Load(t.Context(), key); err != nil {
			t.Errorf("key %s is listed but: %v", key, err)
		}
	}
}

func remove(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	closeJob(t, j, rec.Job.Key())
	for range 2 {
		if err := j.Remove(t.Context(), rec.Job.Key()); err != nil {
			t.Fatalf("remove: %v", err)
		}
	}
	_, err := j.Load(t.Context(), rec.Job.Key())
	wantErr(t, "load after remove", err, worker.ErrNotFound)
	create(t, j, rec)
}

// closeJob does what the runner does in the end.
func closeJob(t *testing.T, j worker.Journal, key string) {
	t.Helper()
	c, err := j.Claim(t.Context(), key)
	if err != nil {
		t.Fatalf("claim: %v", err)
	}
	rec := c.Record()
	rec.Closed = true
	if err := c.Save(t.Context(), rec); err != nil {
		t.Fatalf("save: %v", err)
	}
	release(t, c)
}

func removeLeavesOpen(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	if err := j.Remove(t.Context(), rec.Job.Key()); worker.ReasonOf(err) != worker.ReasonConflict {
		t.Errorf("remove an open record: %v, want a conflict", err)
	}
	same(t, load(t, j, rec.Job.Key()), kept(rec))
	wantListed(t, j, rec.Job.Key())
}

func wantListed(t *testing.T, j worker.Journal, key string) {
	t.Helper()
	all, err := j.Keys(t.Context())
	if err != nil {
		t.Fatalf("keys: %v", err)
	}
	if !slices.Contains(all, key) {
		t.Errorf("keys lack %s", key)
	}
}

// removeAndCreate: two workers find the same old record, while the same request comes once more.
func removeAndCreate(t *testing.T, r Rig) {
	a, b := r.Journal(t, "a"), r.Journal(t, "b")
	for range 5 {
		rec := record(r)
		create(t, a, rec)
		closeJob(t, a, rec.Job.Key())
		var wg sync.WaitGroup
		for _, j := range []worker.Journal{a, b} {
			wg.Go(func() { _ = j.Remove(t.Context(), rec.Job.Key()) }) // refused when it comes too late
		}
		wg.Go(func() {
			err := worker.ErrExists
			for errors.Is(err, worker.ErrExists) && t.Context().Err() == nil {
				err = a.Create(t.Context(), rec)
			}
			if err != nil {
				t.Errorf("create: %v", err)
			}
		})
		wg.Wait()
		same(t, load(t, a, rec.Job.Key()), kept(rec))
		wantListed(t, b, rec.Job.Key())
	}
}

func claimRaisesTheEpoch(t *testing.T, r Rig) {
	rec := record(r)
	create(t, r.Journal(t, "a"), rec)
	for i, owner := range []string{"a", "b", "a"} {
		c := claimed(t, r.Journal(t, owner), rec.Job.Key())
		want := kept(rec)
		want.Owner, want.Epoch = owner, uint64(i+1)
		same(t, c.Record(), want)
		same(t, load(t, r.Journal(t, "c"), rec.Job.Key()), want)
		release(t, c)
	}
}

func claimExcludesOthers(t *testing.T, r Rig) {
	a, rec := r.Journal(t, "a"), record(r)
	create(t, a, rec)
	claimed(t, a, rec.Job.Key())
	for _, j := range []worker.Journal{a, r.Journal(t, "b")} {
		_, err := j.Claim(t.Context(), rec.Job.Key())
		wantErr(t, "second claim", err, worker.ErrHeld)
	}
}

func claimExcludesTheVolume(t *testing.T, r Rig) {
	a, b := r.Journal(t, "a"), r.Journal(t, "b")
	one, two := record(r), record(r)
	two.Job.VolumeID = one.Job.VolumeID
	create(t, a, one)
	create(t, a, two)
	first := claimed(t, a, one.Job.Key())
	_, err := b.Claim(t.Context(), two.Job.Key())
	wantErr(t, "claim of the volume's other job", err, worker.ErrHeld)
	release(t, first)
	claimed(t, b, two.Job.Key()) // at once: the refused claim has left no lease on the job either
}

func oneClaimWins(t *testing.T, r Rig) {
	rec := record(r)
	create(t, r.Journal(t, "a"), rec)
	claims, errs := make([]worker.Claim, 6), make([]error, 6)
	var wg sync.WaitGroup
	for i := range claims {
		j := r.Journal(t, "w")
		wg.Go(func() { claims[i], errs[i] = j.Claim(t.Context(), rec.Job.Key()) })
	}
	wg.Wait()
	won := 0
	for i, err := range errs {
		if err == nil {
			won++
			release(t, claims[i])
		} else if !errors.Is(err, worker.ErrHeld) {
			t.Errorf("claim: %v, want ErrHeld", err)
		}
	}
	if won != 1 {
		t.Errorf("%d claims won, want 1", won)
	}
}

func save(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	c := claimed(t, j, rec.Job.Key())
	next := c.Record()
	next.Steps = append(slices.Clone(next.Steps), "clone")
	next.Outcome = &worker.Outcome{Result: worker.Done, Reason: worker.ReasonNone}
	for range 2 { // saving the same again is right
		if err := c.Save(t.Context(), next); err != nil {
			t.Fatalf("save: %v", err)
		}
	}
	same(t, load(t, j, rec.Job.Key()), next)
}

func releaseHandsOver(t *testing.T, r Rig) {
	rec := record(r)
	create(t, r.Journal(t, "a"), rec)
	c := claimed(t, r.Journal(t, "a"), rec.Job.Key())
	release(t, c)
	release(t, c)
	claimed(t, r.Journal(t, "b"), rec.Job.Key())
	release(t, c) // not the successor's lease
	_, err := r.Journal(t, "a").Claim(t.Context(), rec.Job.Key())
	wantErr(t, "claim after a stranger's release", err, worker.ErrHeld)
}

func renewKeepsTheLease(t *testing.T, r Rig) {
	rec := record(r)
	create(t, r.Journal(t, "a"), rec)
	c, other := claimed(t, r.Journal(t, "a"), rec.Job.Key()), r.Journal(t, "b")
	tick := time.NewTicker(r.TTL / 4)
	defer tick.Stop()
	for range 10 { // two and a half lease times
		<-tick.C
		if err := c.Renew(t.Context()); err != nil {
			t.Fatalf("renew: %v", err)
		}
		_, err := other.Claim(t.Context(), rec.Job.Key())
		wantErr(t, "claim while renewed", err, worker.ErrHeld)
	}
}

func expiredLease(t *testing.T, r Rig) {
	rec := record(r)
	create(t, r.Journal(t, "a"), rec)
	c := claimed(t, r.Journal(t, "a"), rec.Job.Key())
	expire(r)
	wantErr(t, "renew after expiry", c.Renew(t.Context()), worker.ErrLeaseLost)
}

// expire waits until a lease that is not renewed has ended for everyone.
func expire(r Rig) { <-time.After(r.TTL + r.Slack + time.Millisecond) }

func successorShutsOut(t *testing.T, r Rig) {
	rec := record(r)
	create(t, r.Journal(t, "a"), rec)
	before := claimed(t, r.Journal(t, "a"), rec.Job.Key())
	expire(r)
	after := claimed(t, r.Journal(t, "b"), rec.Job.Key())

	zombie := before.Record()
	zombie.LastError = "written by the owner before"
	err := before.Save(t.Context(), zombie)
	wantErr(t, "save by the owner before", err, worker.ErrLeaseLost)
	if worker.AdviceOf(err) != worker.StandBy {
		t.Errorf("advice of a lost lease is %v, want StandBy", worker.AdviceOf(err))
	}
	wantErr(t, "renew by the owner before", before.Renew(t.Context()), worker.ErrLeaseLost)
	same(t, load(t, r.Journal(t, "c"), rec.Job.Key()), after.Record())

	release(t, before) // must not end the successor's lease
	if err := after.Renew(t.Context()); err != nil {
		t.Errorf("renew by the successor: %v", err)
	}
	next := after.Record()
	next.LastError = "written by the successor"
	if err := after.Save(t.Context(), next); err != nil {
		t.Errorf("save by the successor: %v", err)
	}
}

func newerRecord(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	rec.Version = worker.RecordVersion + 1
	create(t, j, rec)
	before := load(t, j, rec.Job.Key())
	_, err := j.Claim(t.Context(), rec.Job.Key())
	wantErr(t, "claim a newer record", err, worker.ErrNewer)
	if after := load(t, j, rec.Job.Key()); after.Stamp != before.Stamp || !reflect.DeepEqual(after, before) {
		t.Errorf("a claim of a newer record changed it:\n%+v, was\n%+v", after, before)
	}
}

func stamps(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	key := rec.Job.Key()
	last := load(t, r.Journal(t, "b"), key).Stamp
	changes := func(what string, want bool) {
		t.Helper()
		now := load(t, r.Journal(t, "b"), key).Stamp
		if (now != last) != want {
			t.Errorf("%s: the stamp was %d and is %d, change wanted: %v", what, last, now, want)
		}
		last = now
	}
	changes("looking", false)
	c := claimed(t, j, key)
	changes("claim", true)
	if err := c.Renew(t.Context()); err != nil {
		t.Fatalf("renew: %v", err)
	}
	changes("renew", true)
	_, err := r.Journal(t, "b").Claim(t.Context(), key)
	wantErr(t, "second claim", err, worker.ErrHeld)
	changes("a claim that is refused", false)
	release(t, c)
	changes("release", true)
}

func unreleased(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	key := rec.Job.Key()
	want := func(what string, yes bool) {
		t.Helper()
		if got := load(t, r.Journal(t, "b"), key).Unreleased; got != yes {
			t.Errorf("%s: unreleased is %v", what, got)
		}
	}
	want("created", false)
	c := claimed(t, j, key)
	want("claimed", true)
	closed := c.Record()
	closed.Closed = true
	if err := c.Save(t.Context(), closed); err != nil {
		t.Fatalf("save: %v", err)
	}
	want("closed", true)
	release(t, c)
	want("released", false)
}

func hints(t *testing.T, r Rig) {
	a, b := r.Journal(t, "a"), r.Journal(t, "b")
	hinted := make(chan struct{}, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- b.Watch(ctx, func() {
			select {
			case hinted <- struct{}{}:
			default:
			}
		})
	}()
	// Nothing tells when the watch is set, so an open job is released until it is hinted at.
	rec := record(r)
	create(t, a, rec)
	deadline := time.After(30 * time.Second)
	for again := true; again; {
		release(t, claimed(t, a, rec.Job.Key()))
		select {
		case <-hinted:
			again = false
		case <-time.After(100 * time.Millisecond):
		case <-deadline:
			t.Fatal("the release of an open job was never hinted at")
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v", err)
	}
}

func finishedContext(t *testing.T, r Rig) {
	j, rec := r.Journal(t, "a"), record(r)
	create(t, j, rec)
	c := claimed(t, j, rec.Job.Key())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	calls := map[string]func() error{
		"create": func() error { return j.Create(ctx, record(r)) },
		"load":   func() error { _, err := j.Load(ctx, rec.Job.Key()); return err },
		"keys":   func() error { _, err := j.Keys(ctx); return err },
		"claim":  func() error { _, err := j.Claim(ctx, rec.Job.Key()); return err },
		"remove": func() error { return j.Remove(ctx, rec.Job.Key()) },
		"save":   func() error { return c.Save(ctx, c.Record()) },
		"renew":  func() error { return c.Renew(ctx) },
	}
	for name, call := range calls {
		if err := call(); err == nil {
			t.Errorf("%s with a finished context succeeded", name)
		} else if errors.Is(err, worker.ErrLeaseLost) {
			t.Errorf("%s with a finished context: %v", name, err)
		}
	}
	same(t, load(t, j, rec.Job.Key()), c.Record())
}
