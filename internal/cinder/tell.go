package cinder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// mayDiscard: an image whose request turned out to be somebody else's is not ours to delete, nor one that somebody else
// gave its data.
func (t *telling) mayDiscard() bool {
	lost := t.outcome.Result == worker.Failed || t.outcome.Result == worker.Cancelled

	return lost && t.outcome.Reason != worker.ReasonNotOwner && t.outcome.Reason != worker.ReasonImageState
}

// discard removes the image that will never have data. Cinder would do it for a call and a cast with done, but with the
// user's token, which may have expired meanwhile. Nobody checked who sent the request, so what it names is touched only
// if it belongs to the request's project.
func (t *telling) discard(ctx context.Context) error {
	i, err := t.images.Image(ctx, t.job.ImageID)
	switch {
	case worker.ReasonOf(err) == worker.ReasonImageMissing:
		return nil
	case err != nil:
		return err
	case i.Owner != t.job.ProjectID:
		t.log.Error("image is left alone: it is not the request's project's", "owner", i.Owner, "project", t.job.ProjectID)

		return nil
	}

	return t.images.Discard(ctx, t.job.ImageID)
}

// free frees the volume over REST.
func (t *telling) free(ctx context.Context) error {
	v, err := t.volumes.Volume(ctx, t.job.VolumeID)
	switch {
	case worker.ReasonOf(err) == worker.ReasonVolumeMissing:
		return nil
	case err != nil:
		return err
	case v.ProjectID != t.job.ProjectID:
		t.log.Error("volume is left alone: it is not the request's project's; if it stays in `uploading`, free it with "+
			"`openstack volume set --state available`", "owner", v.ProjectID, "project", t.job.ProjectID)

		return nil
	}

	return t.volumes.ResetStatus(ctx, t.job.VolumeID)
}

// alone settles a job whose requester can't be told. A declined one counts as failed then: nobody makes its image.
func (t *telling) alone(ctx context.Context) error {
	if t.outcome.Reason == worker.ReasonNotOwner {
		return nil
	}
	if t.outcome.Result == worker.Declined {
		t.log.Error("a declined job could not be handed back to Cinder: its image is removed, the user has to ask again",
			"message", t.outcome.Message)
		err := t.discard(ctx)
		if err != nil && passing(err) {
			return err
		}
		if err != nil {
			t.log.Error("image is left `queued`, delete it with `openstack image delete`", "error", err)
		}
	}

	return t.free(ctx)
}

// reply answers the caller. One that is gone (cinder-volume was restarted) can't free the volume any more, so we do.
// The bus has waited for the reply queue to come back already, as oslo.messaging does.
func (t *telling) reply(ctx context.Context) error {
	t.noteVolume(ctx)
	err := t.bus.Reply(ctx, t.origin.Call.request(), t.answer())
	if errors.Is(err, oslo.ErrReplyQueueGone) {
		t.log.Warn("the caller is gone, settling over REST", "reply_queue", t.origin.Call.ReplyQueue)

		return t.alone(ctx)
	}

	return t.onBus(stepReply, err)
}

func (t *telling) answer() oslo.Reply {
	switch t.outcome.Result {
	case worker.Done:
		return oslo.Reply{Result: map[string]any{"declined": false, "strategy": t.outcome.Strategy}}
	case worker.Declined:
		return oslo.Reply{Result: map[string]any{"declined": true, "reason": t.outcome.Message}}
	case worker.Cancelled: // the user deleted the image: nothing went wrong, and nobody is told that it did
		return oslo.Reply{Result: map[string]any{"declined": false, "cancelled": true, "reason": t.outcome.Message}}
	default:
		return oslo.Reply{Failure: t.failure()}
	}
}

// failure is the exception that Cinder's own code would raise for the reason. kwargs name the fields of the class's
// template (cinder ab09bc3 cinder/exception.py), else the caller gets a RemoteError.
func (t *telling) failure() *oslo.Failure {
	switch t.outcome.Reason {
	case worker.ReasonImageMissing:
		return oslo.CinderException("ImageNotFound", t.why(), map[string]any{"image_id": t.job.ImageID})
	case worker.ReasonVolumeMissing:
		return oslo.CinderException("VolumeNotFound", t.why(), map[string]any{"volume_id": t.job.VolumeID})
	case worker.ReasonGlanceUnavailable:
		return oslo.CinderException("GlanceConnectionFailed", t.why(), map[string]any{"reason": t.why()})
	default:
		return copyFailure(t.why())
	}
}

// why is never empty: cinder-volume tells success from failure by it.
func (t *telling) why() string {
	if t.outcome.Message == "" {
		return string(t.outcome.Reason)
	}

	return t.outcome.Message
}

// result is what cinder-volume's image_upload_done takes.
type result struct {
	VolumeID  string          `json:"volume_id"`
	ImageMeta json.RawMessage `json:"image_meta"`
	Error     *string         `json:"error"`
	Declined  bool            `json:"declined"`
	Reason    worker.Reason   `json:"reason"`
}

// castDone casts the result to the cinder-volume service that asked. Its queue may be away for a moment, such as after a
// restart of the broker, so the step is patient before it settles over REST. A result that comes twice is ignored there:
// it is for a volume that is `uploading` to this very image.
func (t *telling) castDone(ctx context.Context) error {
	t.noteVolume(ctx)
	t.memory.cast(t.job.Key())
	d := t.origin.Done
	c := oslo.Cast{Method: d.Method, Version: methodVersion, Args: t.result(), Context: t.origin.Context}
	if full, ok := private(t.job); ok && t.outcome.Result == worker.Declined {
		c.Context, c.WithSecret = full, true
	}

	return t.onBus(stepCastDone, t.bus.Cast(ctx, d.Exchange, d.RoutingKey, c))
}

func (t *telling) result() result {
	r := result{VolumeID: t.job.VolumeID, ImageMeta: t.origin.ImageMeta, Reason: t.outcome.Reason}
	switch t.outcome.Result {
	case worker.Done, worker.Cancelled: // see answer
	case worker.Declined:
		r.Declined = true
	default:
		why := t.why()
		r.Error = &why
	}

	return r
}

// handBack gives a declined job to the cinder-volume that would have got it without us. The copy there runs with the
// user's token, which only the process that took the request has; without it the job fails. The message always has the same
// id: when a confirm was lost and Cinder has not begun yet, so that [telling.pending] can't know, cinder-volume ignores the
// second one by it.
func (t *telling) handBack(ctx context.Context) error {
	v, pending, err := t.pending(ctx)
	if err != nil || !pending {
		return err
	}
	full, ok := private(t.job)
	if !ok {
		t.log.Warn("the user's token went with the worker that took the request")

		return t.alone(ctx)
	}
	key, err := volumeQueue(v)
	if err != nil {
		return err
	}

	return t.onBus(stepHandBack, t.bus.Cast(ctx, t.opt.Exchange, key, oslo.Cast{
		Method: methodCopy, Version: methodVersion, Context: full, WithSecret: true, UniqueID: handBackID(t.job),
		Args: map[string]any{"volume_id": t.job.VolumeID, "image_meta": t.origin.ImageMeta},
	}))
}

// handBackID is a _unique_id in oslo.messaging's form, the same for the same job in every process.
func handBackID(j worker.Job) string {
	sum := sha256.Sum256([]byte("hand-back\n" + j.ImageID + "\n" + j.Digest + "\n" + j.RequestID))

	return hex.EncodeToString(sum[:16])
}

// pending reports whether the job still waits for somebody. It is asked before each try, because a cast that failed may
// have arrived all the same, and two stock copies of one image would get in each other's way: the second one's failure
// deletes the image under the first.
func (t *telling) pending(ctx context.Context) (worker.Volume, bool, error) {
	v, err := t.volumes.Volume(ctx, t.job.VolumeID)
	if worker.ReasonOf(err) == worker.ReasonVolumeMissing {
		return v, false, nil
	}
	if err != nil {
		return v, false, err
	}
	if v.Status != worker.VolumeUploading {
		return v, false, nil
	}
	i, err := t.images.Image(ctx, t.job.ImageID)
	if worker.ReasonOf(err) == worker.ReasonImageMissing {
		return v, false, t.free(ctx)
	}

	return v, err == nil && i.Status == worker.ImageQueued, err
}

// volumeQueue is where cinder-api casts to for this volume: the pool is cut off, and a cluster's name takes the place of
// the host's (cinder ab09bc3 volume/rpcapi.py:150-168, objects/volume.py service_topic_queue).
func volumeQueue(v worker.Volume) (string, error) {
	service := v.Cluster
	if service == "" {
		service = v.Host
	}
	service, _, _ = strings.Cut(service, "#")
	host, _, _ := strings.Cut(service, "@")
	key := "cinder-volume." + service + "." + host
	if !queueForm.MatchString(key) {
		return "", &worker.Error{
			Op: "hand volume " + v.ID + " back to cinder-volume", Reason: worker.ReasonCinderRefused, Advice: worker.GiveUp,
			Err: fmt.Errorf("the volume's host %q is not host@backend", service),
		}
	}

	return key, nil
}

// Event types of notifications.
const (
	eventEnd   = "cinderlift.image_upload.end"
	eventError = "cinderlift.image_upload.error"
)

// payload is documented in the package comment.
type payload struct {
	TenantID string        `json:"tenant_id"`
	UserID   string        `json:"user_id"`
	VolumeID string        `json:"volume_id"`
	ImageID  string        `json:"image_id"`
	Result   worker.Result `json:"result"`
	Reason   worker.Reason `json:"reason"`
	Message  string        `json:"message"`
	Strategy string        `json:"strategy"`
	Duration float64       `json:"duration"`
}

func (t *telling) notify(ctx context.Context) error {
	event, priority := eventEnd, oslo.Info
	if t.outcome.Result != worker.Done && t.outcome.Result != worker.Cancelled {
		event, priority = eventError, oslo.Error
	}
	id, err := messageID(t.job.ImageID, event)
	if err != nil {
		return err
	}
	now := time.Now().UTC()

	return t.onBus(stepNotify, t.bus.Notify(ctx, t.opt.Topic, oslo.Notification{
		MessageID: id, PublisherID: "cinderlift." + t.opt.Host, EventType: event, Priority: priority,
		Payload: t.payload(now), Timestamp: now, Context: t.origin.Context,
	}))
}

// messageID is the same for the same event of the same image, however often and by whomever it is published.
func messageID(imageID, event string) (string, error) {
	space, err := uuid.Parse(imageID)
	if err != nil {
		return "", &worker.Error{Op: "name the notification for image " + imageID, Reason: worker.ReasonInternal, Err: err}
	}

	return uuid.NewSHA1(space, []byte(event)).String(), nil
}

func (t *telling) payload(now time.Time) payload {
	p := payload{
		TenantID: t.job.ProjectID, UserID: t.origin.Context.UserID(), VolumeID: t.job.VolumeID, ImageID: t.job.ImageID,
		Result: t.outcome.Result, Reason: t.outcome.Reason, Message: t.outcome.Message, Strategy: t.outcome.Strategy,
	}
	if !t.origin.Received.IsZero() {
		p.Duration = now.Sub(t.origin.Received).Seconds()
	}

	return p
}

// onBus makes the bus's errors the runner's; [passing] looks at the cause.
func (t *telling) onBus(step string, err error) error {
	if err == nil {
		return nil
	}

	return &worker.Error{Op: step + " for image " + t.job.ImageID, Reason: worker.ReasonBusUnavailable,
		Advice: worker.Retry, Err: err}
}
