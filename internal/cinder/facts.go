package cinder

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/cinderlift/cinderlift/worker"
)

// Volumes is what this package needs of Cinder's REST API, with our own credentials (admin). Methods are idempotent, may
// be called concurrently, do not retry, and return *worker.Error.
type Volumes interface {
	// Volume looks at the volume. ReasonVolumeMissing only when Cinder says that there is none.
	Volume(ctx context.Context, id string) (worker.Volume, error)

	// Touched tells the volume's status and when Cinder last changed its record, a text that changes with every change
	// of the status; "" for a volume that is gone.
	Touched(ctx context.Context, id string) (status, at string, err error)

	// ResetStatus frees the volume if it is still `uploading`: to in-use if it is attached, else to available. Any
	// other status is left alone and is success, and so is a volume that is gone.
	ResetStatus(ctx context.Context, id string) error
}

var _ Volumes = (*REST)(nil)

// Images is what this package needs of Glance's API, with our own credentials. Methods are idempotent, may be called
// concurrently, do not retry, and return *worker.Error.
type Images interface {
	// Image looks at the image. ReasonImageMissing only when Glance says that there is none.
	Image(ctx context.Context, id string) (worker.Image, error)

	// Discard deletes the image unless it is active. An active image, deactivated or not, and one that is gone, is
	// success.
	Discard(ctx context.Context, id string) error
}

// Facts asks Cinder and Glance and checks the request against what they say. It implements worker.Facts.
type Facts struct {
	volumes Volumes
	images  Images
}

var _ worker.Facts = (*Facts)(nil)

// NewFacts asks v and i.
func NewFacts(v Volumes, i Images) *Facts { return &Facts{volumes: v, images: i} }

// Task finds out the facts and checks that volume, image and request belong together; there is no authentication on the
// bus, so whoever can write to it could ask for an image of another project's volume. With an error the task holds what
// was found out.
func (f *Facts) Task(ctx context.Context, j worker.Job) (worker.Task, error) {
	t := worker.Task{Job: j}
	var imageErr error
	var beside sync.WaitGroup // the two services do not wait for each other
	beside.Go(func() { t.Image, imageErr = f.images.Image(ctx, j.ImageID) })
	volume, err := f.volumes.Volume(ctx, j.VolumeID)
	beside.Wait()
	t.Volume = volume
	if err := cmp.Or(err, imageErr); err != nil {
		return t, err
	}

	return t, check(t)
}

func check(t worker.Task) error {
	j, v, i := t.Job, t.Volume, t.Image
	switch {
	case i.Owner != j.ProjectID:
		return refused(t, worker.ReasonNotOwner, "the image belongs to another project than the request")
	case v.ProjectID != j.ProjectID:
		return crossProject(t)
	case v.Status != worker.VolumeUploading:
		return refused(t, worker.ReasonVolumeState, fmt.Sprintf("the volume is %q and not %q", v.Status, worker.VolumeUploading))
	case i.DiskFormat != j.DiskFormat || i.ContainerFormat != j.ContainerFormat:
		return refused(t, worker.ReasonConflict, fmt.Sprintf("the request is for %s in %s, the image is %s in %s by now",
			j.DiskFormat, j.ContainerFormat, i.DiskFormat, i.ContainerFormat))
	case !workable(i.Status):
		return refused(t, worker.ReasonImageState, fmt.Sprintf("the image is %q", i.Status))
	}

	return nil
}

// crossProject: Cinder's policy lets an admin upload any project's volume, and the image is then the admin's (cinder
// ab09bc3 policies/volume_actions.py, upload_image: SYSTEM_ADMIN_OR_PROJECT_MEMBER). Whether the sender really is an
// admin can't be seen from a message. So such a request is declined: Cinder, which trusts its bus, makes the image the
// stock way, and we never carry one project's data to another on a message's word.
func crossProject(t worker.Task) error {
	if !claimsAdmin(t.Job) {
		return refused(t, worker.ReasonNotOwner, "the volume belongs to another project than the request")
	}
	err := refused(t, worker.ReasonNotApplicable, "an admin asks for an image of another project's volume, which is left to Cinder")
	err.Advice = worker.OtherWay

	return err
}

func claimsAdmin(j worker.Job) bool {
	var o origin
	if json.Unmarshal(j.Origin, &o) != nil {
		return false
	}
	raw, _ := o.Context.Value("is_admin")

	return string(raw) == "true"
}

// workable: everything up to active may be the work of an earlier try of ours; the steps find out whose it is.
func workable(status string) bool {
	switch status {
	case worker.ImageQueued, worker.ImageSaving, worker.ImageImporting, worker.ImageActive, worker.ImageDeactivated:
		return true
	default:
		return false
	}
}

func refused(t worker.Task, r worker.Reason, why string) *worker.Error {
	return &worker.Error{
		Op:     fmt.Sprintf("make image %s from volume %s", t.Job.ImageID, t.Job.VolumeID),
		Reason: r, Advice: worker.GiveUp, Err: errors.New(why),
	}
}
