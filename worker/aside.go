package worker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Activities that are no steps have these names, or begin with them.
const (
	asking   = "facts" // asking for facts and planning
	undoing  = "undo-"
	settling = "settle-"
)

// deathsKept is how many deaths the record keeps: enough for several activities, small enough to be read.
const deathsKept = 20

// begin notes what is done from now on, before it may leave anything behind or end this process. Whoever finds the note
// knows that its writer did not come back.
func (j *run) begin(ctx context.Context, activity string) error {
	j.rec.Doing = &Activity{Name: activity, Owner: j.own, Since: time.Now().UTC()}

	return j.save(ctx)
}

// returned notes that this process came back from an activity, whatever became of it: it is not what kills workers.
// Saved with what comes next.
func (j *run) returned(activity string) {
	j.rec.Doing = nil
	j.rec.Deaths = without(j.rec.Deaths, activity)
}

// pause waits after the n-th failure. While it waits there is nothing in the journal that a death could be blamed on: the
// call came back, and a job whose service is away for an hour must not be taken for one that kills. The notes are tried
// once: when the journal is away, so is what would be blamed.
func (j *run) pause(ctx context.Context, n int) error {
	doing := j.rec.Doing
	if doing == nil {
		return j.conf.Backoff.wait(ctx, n)
	}
	j.note(ctx, nil)
	err := j.conf.Backoff.wait(ctx, n)
	if err == nil {
		j.note(ctx, &Activity{Name: doing.Name, Owner: j.own, Since: time.Now().UTC()})
	}

	return err
}

func (j *run) note(ctx context.Context, doing *Activity) {
	j.rec.Doing, j.rec.Updated = doing, time.Now().UTC()
	if err := j.claim.Save(ctx, j.rec); err != nil && ctx.Err() == nil {
		j.log.Debug("note in the journal what is being done", "error", err)
	}
}

// moving runs f, a step, and forgets its deaths as soon as data moves inside the cluster. What was copied there stays
// copied: whoever dies now has brought the job nearer to its end, so a flatten of days may outlive any number of workers.
func (j *run) moving(ctx context.Context, step string, moved <-chan struct{}, f func() error) error {
	ended := make(chan struct{})
	var w sync.WaitGroup
	w.Go(func() {
		select {
		case <-moved:
		case <-ended:
			return
		}
		rec := j.rec // nobody writes to it while f runs
		rec.Doing, rec.Deaths = nil, without(rec.Deaths, step)
		if err := j.claim.Save(ctx, rec); err != nil && ctx.Err() == nil {
			j.log.Debug("note in the journal that the step moves", "error", err)
		}
	})
	defer w.Wait()
	defer close(ended)

	return f()
}

func without(deaths []Activity, activity string) []Activity {
	var rest []Activity
	for _, d := range deaths {
		if d.Name != activity {
			rest = append(rest, d)
		}
	}

	return rest
}

// survive takes the note of what was being done out of the journal when the job is left by a process that lives: a
// rolling restart, or a cluster that was away, would count as deaths otherwise. It fails harmlessly; when a successor has
// the job already, that one has counted it.
func (j *run) survive(ctx context.Context) {
	if j.rec.Doing == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	j.rec.Doing = nil
	if err := j.claim.Save(ctx, j.rec); err != nil {
		j.log.Info("the journal could not be told that this worker lives on", "error", err)
	}
}

// bury counts the worker that did not come back, and decides what becomes of a job that killed too many.
func (j *run) bury(ctx context.Context) error {
	if d := j.rec.Doing; d != nil {
		j.rec.Deaths = append(j.rec.Deaths, *d)
		j.rec.Deaths = j.rec.Deaths[max(0, len(j.rec.Deaths)-deathsKept):]
		j.rec.Doing = nil
		if j.rec.Died(d.Name) >= j.conf.Backoff.Claims {
			return j.tooMany(ctx, d.Name)
		}
	}
	if j.rec.Aside == nil {
		return nil
	}
	// Its time is over: claims before are refused.
	name := j.rec.Aside.Activity
	j.rec.Aside = nil

	return j.passOver(ctx, name)
}

// tooMany is for a job that has killed too many workers in an activity. Telling is never given up, or a volume would stay in
// `uploading`; it is only done ever more rarely.
func (j *run) tooMany(ctx context.Context, activity string) error {
	if !strings.HasPrefix(activity, settling) {
		return j.putAside(ctx, activity)
	}
	why := deadly(activity, j.rec.Died(activity))
	j.log.Error("telling how the job ended kills workers; it is put off", "activity", activity, "deaths", j.rec.Deaths)
	j.rec.Deaths = without(j.rec.Deaths, activity)

	return j.putOff(ctx, &Error{Op: activity, Reason: ReasonAttempts, Err: why})
}

// putAside keeps the job from killing more workers until an operator has looked at it, or had the time to. An old note
// of a job that was put aside before is replaced.
func (j *run) putAside(ctx context.Context, activity string) error {
	if j.conf.Aside == 0 {
		return j.passOver(ctx, activity)
	}
	now := time.Now().UTC()
	j.rec.Aside = &Aside{Activity: activity, Since: now, Until: now.Add(j.conf.Aside)}
	if err := j.save(ctx); err != nil {
		return err
	}
	j.Recorder.JobPutAside()
	j.log.Error("job put aside: it kills its workers", "activity", activity, "deaths", j.rec.Deaths,
		"until", j.rec.Aside.Until, "advice", "see `cinderlift jobs IMAGE_ID`; replay it or let it fail")

	return &Error{Op: "put the job aside", Reason: ReasonAttempts, Advice: StandBy, Err: deadly(activity, j.rec.Died(activity))}
}

func deadly(activity string, deaths int) error {
	return fmt.Errorf("%d workers began %q and none came back", deaths, activity)
}

// passOver goes on without an activity that kills. What is undone is left out, the rest goes on; after the commit point a
// step is left out with those that come after it; before it, the job is given up.
func (j *run) passOver(ctx context.Context, activity string) error {
	j.log.Error("an activity is passed over: it kills its workers", "activity", activity, "deaths", j.rec.Deaths)
	why := &Error{Op: activity, Reason: ReasonAttempts, Err: deadly(activity, j.rec.Died(activity))}
	if strings.HasPrefix(activity, undoing) || j.rec.Committed {
		j.rec.Left = append(j.rec.Left, activity)

		return j.save(ctx)
	}
	j.giveUp(why)

	return j.save(ctx)
}

// Replay lets a job that was put aside, or put off, be tried again at once. It answers whether there was anything to do.
func (r *Record) Replay() bool {
	if r.Closed || r.Aside == nil && r.Again.IsZero() {
		return false
	}
	r.Aside, r.Deaths, r.Doing, r.Again = nil, nil, nil, time.Time{}

	return true
}

// End lets a job that was put aside be ended at once, as it would be at Aside.Until. It answers whether there was one.
func (r *Record) End(now time.Time) bool {
	if r.Closed || r.Aside == nil {
		return false
	}
	r.Aside.Until = now

	return true
}

// doing names what the owner before did not come back from.
func (r *Record) doing() string {
	if r.Doing == nil {
		return ""
	}

	return r.Doing.Name
}
