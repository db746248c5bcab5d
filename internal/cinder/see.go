package cinder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// Whoever was told frees the volume a moment later. If it ends in that moment (oslo.messaging acknowledges a message before
// it runs the method), nobody does, and the volume would be `uploading` for ever. So the last step of settling looks.
//
// A volume that is `uploading` may be so for its next upload by now, which must not be disturbed. Two things are safe:
// casting the result again, because the receiver minds it only while the volume is `uploading` to this very image; and
// freeing the volume if its record has not changed since before the result was first told, by anybody. The latter can be
// known only by the process that took the request: another one may have come after a first telling.
const (
	seePolls = 5                      // looks of one try
	seeFirst = 100 * time.Millisecond // between the first two; doubled each time: 3 s in all

	recastAfter = 15 * time.Second // without effect a result is cast again
	freeAfter   = 45 * time.Second // and the volume is freed over REST, if that is certain to be right
	seeMost     = 50 * time.Second // after that a process that can't be certain leaves it
)

// someoneFrees: after a declined job Cinder makes the image itself, and the volume stays `uploading` for as long as that
// takes.
func (t *telling) someoneFrees() bool {
	told := t.origin.Call != nil || t.origin.Done != nil

	return told && t.outcome.Result != worker.Declined && t.outcome.Reason != worker.ReasonNotOwner
}

// noteVolume remembers what the volume's record was before anybody was told. It fails silently: without it the volume is
// just not freed over REST.
func (t *telling) noteVolume(ctx context.Context) {
	_, took := private(t.job)
	// The database may count in seconds: the next upload's `uploading` must not look like this one's.
	before := t.memory.telling(t.job.Key())
	if before || !took || !t.someoneFrees() || time.Since(t.origin.Received) < 2*time.Second {
		return
	}
	status, at, err := t.volumes.Touched(ctx, t.job.VolumeID)
	if err == nil && status == worker.VolumeUploading && at != "" {
		t.memory.note(t.job.Key(), at)
	}
}

// see returns when the volume is free, or nothing more can be done about it.
func (t *telling) see(ctx context.Context) error {
	key := t.job.Key()
	for wait := seeFirst; wait < seeFirst<<seePolls; wait *= 2 {
		status, at, err := t.volumes.Touched(ctx, t.job.VolumeID)
		if err != nil {
			return err
		}
		if status != worker.VolumeUploading || t.memory.changed(key, at) {
			t.memory.forget(key)

			return nil // free, or taken by the next
		}
		if !pause(ctx, wait) {
			break
		}
	}

	return t.unseen(ctx, time.Since(t.memory.met(key+" "+stepSee)))
}

// unseen: the volume has not been freed for a while since we began to look.
func (t *telling) unseen(ctx context.Context, since time.Duration) error {
	key := t.job.Key()
	noted := t.memory.noted(key)
	switch {
	case noted && since >= freeAfter:
		t.log.Warn("nobody has freed the volume, though the result was taken; freeing it over REST")
		if err := t.free(ctx); err != nil {
			return err
		}
		t.memory.forget(key)

		return nil
	case !noted && since >= seeMost:
		t.log.Error("volume may be left in `uploading`: the result was taken, and nothing shows whether this is still the " +
			"same upload; if it is, free the volume with `openstack volume set --state available` (in-use if it is attached)")
		t.memory.forget(key)

		return nil
	case t.origin.Done != nil && t.memory.sinceCast(key) >= recastAfter:
		t.log.Warn("nobody has freed the volume, casting the result again")
		if err := t.castDone(ctx); err != nil {
			return err
		}
	}

	return &worker.Error{Op: "see volume " + t.job.VolumeID + " freed", Reason: worker.ReasonVolumeState, Advice: worker.Retry,
		Err: fmt.Errorf("%w for %s", errNotFreed, since.Round(time.Second))}
}

var errNotFreed = errors.New("it is still `uploading`, though its requester was told")

// memory is what a process knows of jobs that it is settling, over all the times that it takes them up. The zero value is
// ready. What is forgotten is only time.
type memory struct {
	mu  sync.Mutex
	all map[string]*recollection // by job, or by job and step
}

type recollection struct {
	met   time.Time // for the first time
	told  bool      // this process has begun to tell the result
	cast  time.Time // when it last cast it
	stamp string    // what the volume's record was before anybody was told; "": not known
}

// memoryFor is longer than any patience; jobs that other workers have ended must not be remembered for ever.
const memoryFor = 24 * time.Hour

// of is used with mu held.
func (m *memory) of(name string) *recollection {
	now := time.Now()
	for old, r := range m.all {
		if now.Sub(r.met) > memoryFor {
			delete(m.all, old)
		}
	}
	if m.all == nil {
		m.all = map[string]*recollection{}
	}
	if m.all[name] == nil {
		m.all[name] = &recollection{met: now}
	}

	return m.all[name]
}

// met answers when this was first asked of name.
func (m *memory) met(name string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()

	return m.of(name).met
}

// telling notes that the result may be known from now on, and answers whether it may have been before.
func (m *memory) telling(key string) (before bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.of(key)
	before, r.told = r.told, true

	return before
}

func (m *memory) cast(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(key).cast = time.Now()
}

// sinceCast is long for a result that another process has cast.
func (m *memory) sinceCast(key string) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()

	return time.Since(m.of(key).cast)
}

func (m *memory) note(key, stamp string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(key).stamp = stamp
}

func (m *memory) noted(key string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()

	return m.of(key).stamp != ""
}

// changed reports whether the record is certainly not what it was.
func (m *memory) changed(key, stamp string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.of(key)

	return r.stamp != "" && r.stamp != stamp
}

func (m *memory) forget(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.of(key).stamp = ""
}
