package worker

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"time"
)

// sighting is what the last look at a job showed.
type sighting struct {
	stamp uint64
	since time.Time // that it has this stamp
}

const (
	// suspectEvery is how often a job is looked at whose owner seems to be gone: with what a claim takes it keeps a
	// takeover within two seconds of the lease's end.
	suspectEvery = 500 * time.Millisecond

	// hintSpread keeps the workers apart that are all told of the same job.
	hintSpread = 200 * time.Millisecond
)

// adopt looks for jobs that nobody works on until ctx ends: through the whole journal now and then, at once the first
// time and when somebody hints that a job was given back, and in between at those whose owner seems to be gone.
func (r *Runner) adopt(ctx, work context.Context) {
	full := time.NewTimer(0)
	defer full.Stop()
	suspects := time.NewTicker(suspectEvery)
	defer suspects.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-full.C:
			r.scan(ctx, work)
			full.Reset(r.conf.Scan*3/4 + rand.N(r.conf.Scan/2+1))
		case <-r.hinted:
			full.Reset(rand.N(hintSpread))
		case <-suspects.C:
			r.lookAt(ctx, work, r.suspects(), true)
		}
	}
}

// hint asks for a scan soon.
func (r *Runner) hint() {
	select {
	case r.hinted <- struct{}{}:
	default: // there is one under way
	}
}

// scan looks through the whole journal.
func (r *Runner) scan(ctx, work context.Context) {
	keys, err := r.Journal.Keys(ctx)
	if err != nil {
		if ctx.Err() == nil {
			r.Logger.Warn("look through the journal", "error", err)
		}

		return
	}
	r.forget()
	rand.Shuffle(len(keys), func(i, j int) { keys[i], keys[j] = keys[j], keys[i] }) // workers scan apart
	r.lookAt(ctx, work, keys, false)
}

// slotWait is how long adoption waits for a slot. Most open jobs belong to workers that live, and finding that out takes
// a slot for some milliseconds: without a wait the scan would pass the others by meanwhile.
const slotWait = time.Second

// lookAt starts those that can be taken. Of suspects only those that still look as they did: a claim takes a slot.
func (r *Runner) lookAt(ctx, work context.Context, keys []string, suspect bool) {
	wait := slotWait
	for _, key := range keys {
		if ctx.Err() != nil {
			return
		}
		if !r.adoptOne(ctx, work, key, suspect, wait) {
			wait = 0 // full: one wait a scan is enough
		}
	}
}

// adoptOne starts the job if it is open and not ours already. Whether its lease is free shows in Claim. It reports false
// when no slot became free within wait.
func (r *Runner) adoptOne(ctx, work context.Context, key string, suspect bool, wait time.Duration) bool {
	if r.knows(key) {
		return true
	}
	rec, err := r.Journal.Load(ctx, key)
	if errors.Is(err, ErrNotFound) {
		r.tidy(ctx, key)
	}
	if err != nil {
		return true // gone, or the journal is away: the next scan tells
	}
	if rec.Version > RecordVersion {
		return true // closed or not: only who wrote it knows what it says
	}
	if rec.Closed && !rec.Unreleased {
		r.retire(ctx, rec)

		return true
	}
	// A closed one that was not released: its owner died in between, or is just about to. A claim gives back what is left.
	if changed := r.sight(key, rec.Stamp); rec.Waits(time.Now()) || suspect && changed {
		return true
	}
	slot, ok := r.freeSlot(ctx, wait)
	if ok {
		r.start(work, rec.Job, true, slot)
	}

	return ok
}

// sight notes what a job looks like and reports whether that has changed.
func (r *Runner) sight(key string, stamp uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s, known := r.seen[key]; known && s.stamp == stamp {
		return false
	}
	r.seen[key] = sighting{stamp, time.Now()}

	return true
}

// suspects lists the jobs whose owner has missed a renewal. Renewals come each Lease.Every and scans are closer together,
// so that one who dies is suspected before its lease ends. What stays as it is for much longer than a lease waits for
// something else, such as another job of its volume, and has time until the next scan.
func (r *Runner) suspects() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var keys []string
	for key, s := range r.seen {
		if still := time.Since(s.since); still > r.conf.Lease.Every && still < 2*r.conf.Lease.TTL {
			keys = append(keys, key)
		}
	}

	return keys
}

// tidy takes a key out of the journal that has no record: its creation or its removal was cut short.
func (r *Runner) tidy(ctx context.Context, key string) {
	if err := r.Journal.Remove(ctx, key); err != nil && ctx.Err() == nil {
		r.Logger.Warn("tidy the journal's index", "image", key, "error", err)
	}
}

// retire remembers a closed record and removes it when its time is up.
func (r *Runner) retire(ctx context.Context, rec Record) {
	key, keep := rec.Job.Key(), rec.Updated.Add(r.conf.Retention)
	if !time.Now().After(keep) {
		r.mu.Lock()
		r.closed[key] = keep
		delete(r.seen, key)
		r.mu.Unlock()

		return
	}
	// A conflict: another worker has just done the same, or the key has a new request.
	if err := r.Journal.Remove(ctx, key); err != nil && ReasonOf(err) != ReasonConflict && ctx.Err() == nil {
		r.Logger.Warn("remove an old record from the journal", "image", key, "error", err)
	}
}

// forget drops the closed records whose time is up, also those that another worker removed, and old sightings.
func (r *Runner) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.closed, func(_ string, until time.Time) bool { return now.After(until) })
	maps.DeleteFunc(r.seen, func(_ string, s sighting) bool { return now.Sub(s.since) > time.Hour })
}

// knows reports whether a scan can pass the key by.
func (r *Runner) knows(key string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()

	return r.mine[key] || time.Now().Before(r.closed[key])
}

func (r *Runner) freeSlot(ctx context.Context, wait time.Duration) (chan struct{}, bool) {
	for _, slot := range []chan struct{}{r.slots, r.reserve} {
		select {
		case slot <- struct{}{}:
			return slot, true
		default:
		}
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		return r.slots, true
	case r.reserve <- struct{}{}:
		return r.reserve, true
	case <-ctx.Done():
		return nil, false
	}
}
