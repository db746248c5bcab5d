package reap

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// digest is that of the records which a reaper makes. No request has it: those are hashes.
const digest = "reap"

// facts is what decides about what one job has left.
type facts struct {
	now, youngest time.Time
	age           time.Duration
	fsid          string

	record     *worker.Record // nil: the journal has none
	unreadable error          // it can't be read
	image      worker.Image   // as Glance shows it
	imageErr   error
	uploading  string // a volume with a trace of the job that is `uploading`
	volumeErr  error  // Cinder did not say
	ours       bool   // a volume of this cloud has a trace of the job, or somebody has named the image
}

// job is the record of a request; nil when there is none, or only one that a reaper has made.
func (f *facts) job() *worker.Record {
	if f.record == nil || f.record.Job.Digest == digest {
		return nil
	}

	return f.record
}

func (f *facts) missing() bool { return worker.ReasonOf(f.imageErr) == worker.ReasonImageMissing }

// making reports whether somebody may be filling the image.
func (f *facts) making() bool {
	switch f.image.Status {
	case worker.ImageActive, worker.ImageDeactivated:
		return false
	default:
		return f.imageErr == nil
	}
}

// used reports whether the image is in use and nobody is at work on it.
func (f *facts) used() bool {
	return f.imageErr == nil && !f.making() && f.unreadable == nil && (f.record == nil || f.record.Closed)
}

// hold says why nothing of the job may be touched now, "" for Action when there is nothing to say about it either.
func (f *facts) hold() (a Action, why string, held bool) {
	switch {
	case f.unreadable != nil:
		return Wait, "the journal's record of the job can't be read", true
	case f.record != nil && f.record.Version > worker.RecordVersion:
		return Wait, "the journal's record is of a later version of cinderlift", true
	case f.record != nil && !f.record.Closed:
		return "", "", true // the job owns it, whatever its age
	case f.youngest.IsZero():
		return Look, "Ceph does not tell when it was made, and the journal does not know the job", true
	case f.now.Sub(f.youngest) < f.age:
		return Wait, "younger than " + f.age.String(), true
	case f.job() != nil:
		return "", "", false
	default:
		return f.holdStranger()
	}
}

// holdStranger is about traces of which the journal knows nothing. Mostly the record was removed when its time was up, but
// the job may as well be in another journal, and be worked on; or it is of another cloud that uses the same pool, whose Cinder
// and Glance nobody here can ask.
func (f *facts) holdStranger() (a Action, why string, held bool) {
	switch {
	case f.volumeErr != nil:
		return Wait, "the journal does not know the job, and Cinder does not say whether the volume is in use", true
	case f.uploading != "":
		return Wait, "the journal does not know the job, but volume " + f.uploading + " is `uploading`: is there another journal?", true
	case f.imageErr != nil && !f.missing():
		return Wait, "the journal does not know the job, and Glance does not say whether the image is being made", true
	case f.making():
		return Wait, "the journal does not know the job, but the image is " + f.image.Status + ": is there another journal?", true
	case !f.ours:
		return Look, "neither the journal nor Cinder knows anything of it; if no other cloud uses this pool, name the image to " +
			"`cinderlift reap`", true
	default:
		return "", "", false
	}
}

// judge decides about one trace. With Action "" there is nothing to report.
func (f *facts) judge(t strategies.Trace, going []strategies.Ref) (Action, string) {
	data := t.Kind == strategies.TraceImage || t.Kind == strategies.TraceRemains
	if data && f.used() {
		if a, why := f.judgeUsed(t); a == "" {
			return a, why // however young: most images that are found are like that
		}
	}
	if a, why, held := f.hold(); held {
		return a, why
	}
	if data {
		return f.judgeImage(t)
	}
	if others := without(t.Children, going); len(others) > 0 {
		return Look, "clones depend on it: " + list(others)
	}

	return Remove, ""
}

// judgeImage is about data that may be an image's.
func (f *facts) judgeImage(t strategies.Trace) (Action, string) {
	switch {
	case f.imageErr != nil && !f.missing():
		return Wait, "Glance does not say whether it uses it: " + f.imageErr.Error()
	case !f.missing() && !f.making():
		return f.judgeUsed(t)
	case len(t.Users) > 0:
		return Look, "it is open at " + strings.Join(t.Users, ", ")
	case len(t.Children) > 0:
		return Look, "clones depend on it: " + list(t.Children)
	case f.missing():
		return Remove, ""
	case f.image.Status != worker.ImageQueued:
		return Wait, "Glance is at work on the image: it is " + f.image.Status
	case f.job() != nil && f.now.Sub(f.job().Updated) < f.age:
		return Wait, "the image is queued, and its job ended less than " + f.age.String() + " ago"
	case !f.discardable():
		return Look, "the image is queued, and no job of ours that failed is known to have made it"
	default:
		return Remove, ""
	}
}

// judgeUsed is about an image that Glance shows active. Nothing is removed then, whatever its data may be.
func (f *facts) judgeUsed(t strategies.Trace) (Action, string) {
	switch {
	case t.Kind == strategies.TraceRemains:
		return Look, "the image is " + f.image.Status + ", but its data may be half removed"
	case len(f.image.Locations) > 0 && !slices.Contains(f.image.Locations, strategies.Location(f.fsid, t.At)):
		return Look, "the image is " + f.image.Status + " with other data: " + strings.Join(f.image.Locations, ", ")
	default:
		return "", "" // an image as it should be
	}
}

// discardable reports whether the image in Glance is that of a job which failed and so has to be discarded, as
// internal/cinder does when it settles: not when the request, or the data, turned out to be somebody else's.
func (f *facts) discardable() bool {
	j := f.job()
	if j == nil || !j.Closed || j.Outcome == nil || f.imageErr != nil || f.image.Owner != j.Job.ProjectID {
		return false
	}

	return lost(*j.Outcome) && f.making() && f.now.Sub(j.Updated) >= f.age
}

// lost: the image will never have data.
func lost(o worker.Outcome) bool {
	return (o.Result == worker.Failed || o.Result == worker.Cancelled) &&
		o.Reason != worker.ReasonNotOwner && o.Reason != worker.ReasonImageState
}

func without(list, minus []strategies.Ref) []strategies.Ref {
	return slices.DeleteFunc(slices.Clone(list), func(r strategies.Ref) bool { return slices.Contains(minus, r) })
}

func list(refs []strategies.Ref) string {
	var names []string
	for _, r := range refs {
		names = append(names, r.String())
	}

	return strings.Join(names, ", ")
}

// youngest is the time of the last of the traces. What Ceph knows no time of is as old as the end of its job.
func youngest(traces []strategies.Trace, rec *worker.Record) time.Time {
	var last time.Time
	for _, t := range traces {
		made := t.Made
		if made.IsZero() && rec != nil {
			made = rec.Updated
		}
		if made.IsZero() {
			return time.Time{}
		}
		if made.After(last) {
			last = made
		}
	}

	return last
}

func finding(t strategies.Trace, a Action, why string) Finding {
	where := t.String()
	if t.Trashed {
		where += fmt.Sprintf(" (in the trash, id %s)", t.ID)
	}

	return Finding{Kind: Kind(t.Kind), ImageID: t.ImageID, Where: where, Made: t.Made, Action: a, Why: why}
}
