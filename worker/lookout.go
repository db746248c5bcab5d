package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// attentively runs f and looks now and then whether the job is still wanted, until j.calm is called at the commit point:
// whoever deletes the image, or takes the volume back, must not wait for a flatten of hours. Then the context of f ends,
// and the error says why.
func (j *run) attentively(ctx context.Context, f func(context.Context) error) error {
	if j.rec.Committed {
		j.calm = func() {}

		return f(ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	j.committing.Store(j.mayHaveCommitted())
	look, calm := context.WithCancel(ctx)
	var w sync.WaitGroup
	w.Go(func() {
		if err := j.lookOut(look); err != nil {
			cancel(err)
		}
	})
	j.calm = func() { calm(); w.Wait() }
	defer j.calm()
	err := f(ctx)
	if unwanted := new(Error); err != nil && errors.As(context.Cause(ctx), &unwanted) {
		return unwanted
	}

	return err
}

// mayHaveCommitted reports whether a worker before may have begun a commit step. Which of the steps begun that is only
// the plan says; any that is begun will do, because this only keeps the look-out from drawing conclusions.
func (j *run) mayHaveCommitted() bool { return len(j.rec.Begun) > 0 }

// lookOut answers why the job is not wanted any more, or nil at the end of ctx. It uses nothing of j that changes.
func (j *run) lookOut(ctx context.Context) error {
	for sleep(ctx, j.conf.Look) == nil {
		var task Task
		err := j.safely("look at volume and image", func() (err error) {
			task, err = j.Facts.Task(ctx, j.rec.Job)

			return err
		})
		if ctx.Err() != nil {
			return nil //nolint:nilerr // cut short because the work has ended: nothing was found out
		}
		if why := j.unwanted(task, err); why != nil {
			j.log.Warn("the job is not wanted any more", "reason", ReasonOf(why), "error", why)

			return why
		}
	}

	return nil
}

// unwanted judges what Cinder and Glance say while the job runs. Only what they say for certain counts. The image's
// status counts only before the commit step has begun, which changes it and finds out whose data an active image has.
func (j *run) unwanted(t Task, err error) error {
	op := fmt.Sprintf("make image %s from volume %s", t.Image.ID, t.Volume.ID)
	switch reason := ReasonOf(err); {
	case reason == ReasonVolumeMissing, reason == ReasonImageMissing, reason == ReasonVolumeState,
		reason == ReasonImageState && !j.committing.Load():
		return &Error{Op: "look at volume and image", Reason: reason, Err: err} // Facts may judge by itself
	case err == nil && t.Volume.Status != VolumeUploading:
		return &Error{Op: op, Reason: ReasonVolumeState,
			Err: fmt.Errorf("the volume became %q while the image was made", t.Volume.Status)}
	case err == nil && !j.committing.Load() && t.Image.Status != ImageQueued:
		return &Error{Op: op, Reason: ReasonImageState,
			Err: fmt.Errorf("somebody else made the image %q", t.Image.Status)}
	default:
		return nil
	}
}
