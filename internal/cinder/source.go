package cinder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// SourceOptions of NewSource. The zero value is useful.
type SourceOptions struct {
	Exchange string // the cloud's control exchange, the only one where results may go; default "openstack"
}

// Source hands out the requests that arrive on the bus. It implements worker.Source.
type Source struct {
	bus      Bus
	exchange string
}

var _ worker.Source = (*Source)(nil)

// NewSource takes requests from bus.
func NewSource(bus Bus, o SourceOptions) *Source {
	return &Source{bus: bus, exchange: exchangeOr(o.Exchange)}
}

func exchangeOr(name string) string {
	if name == "" {
		return DefaultExchange
	}

	return name
}

// Receive waits for a request.
func (s *Source) Receive(ctx context.Context) (worker.Delivery, error) {
	m, err := s.bus.Receive(ctx)
	if err != nil {
		return nil, err
	}

	return &delivery{Message: m, bus: s.bus, exchange: s.exchange, received: time.Now()}, nil
}

// delivery is one message that is a request, or should be.
type delivery struct {
	Message
	bus      Bus
	exchange string
	received time.Time
}

// Job reads the request.
func (d *delivery) Job() (worker.Job, error) {
	r, err := d.Request()
	if err != nil {
		return worker.Job{}, badRequest(err)
	}
	q, err := parse(r, d.exchange)
	if err != nil {
		return worker.Job{}, err
	}
	kept, err := json.Marshal(newOrigin(r, q, d.Expiration(), d.received))
	if err != nil {
		return worker.Job{}, badRequest(fmt.Errorf("keep the request for image %s: %w", q.imageID, err))
	}

	return worker.Job{
		ImageID: q.imageID, VolumeID: q.volumeID, ProjectID: q.project,
		DiskFormat: q.disk, ContainerFormat: q.container,
		RequestID: r.Context.RequestID(), GlobalRequestID: r.Context.GlobalRequestID(),
		Digest: q.digest(), Origin: kept, Private: r.Context,
	}, nil
}

// How long a rejection is tried. Nothing else is taken meanwhile, which is right while the bus takes nothing from us.
const (
	rejectTries = 6
	rejectPause = time.Second // doubled each time: half a minute in all
)

// Reject tells a caller first and dead-letters then, because the dead letter acknowledges the message: a crash between
// the two repeats the telling, which is harmless, and loses nothing. When it can't be done for a while the message is given
// back: unsettled it would be nobody's until our connection ends.
func (d *delivery) Reject(ctx context.Context, why error) error {
	var err error
	for n := range rejectTries {
		err = d.reject(ctx, why)
		if err == nil || errors.Is(err, oslo.ErrDeliveryGone) || errors.Is(err, oslo.ErrSettled) {
			return err
		}
		if n == rejectTries-1 || !pause(ctx, rejectPause<<n) {
			break
		}
	}

	return errors.Join(err, d.Requeue())
}

func (d *delivery) reject(ctx context.Context, why error) error {
	if r, _ := d.Request(); r.IsCall() {
		err := d.bus.Reply(ctx, r, oslo.Reply{Failure: rejection(r, why)})
		if err != nil && !errors.Is(err, oslo.ErrReplyQueueGone) {
			return fmt.Errorf("tell the caller of %s: %w", r.MsgID, err)
		}
	}

	return d.DeadLetter(ctx, string(worker.ReasonOf(why))+": "+why.Error())
}

// pause is false when ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// rejection is the failure for a caller: what a Python server would say to what it does not serve, else Cinder's own
// exception.
func rejection(r oslo.Request, why error) *oslo.Failure {
	var f *oslo.Failure
	if errors.As(why, &f) {
		return f
	}
	if worker.ReasonOf(why) == worker.ReasonBadRequest && r.Method != methodCopy {
		return oslo.NoSuchMethod(r.Method)
	}

	return copyFailure(why.Error())
}

// copyFailure is the exception that Cinder's own drivers raise when an upload fails (cinder ab09bc3
// cinder/exception.py, ImageCopyFailure: the template's one field is reason).
func copyFailure(reason string) *oslo.Failure {
	return oslo.CinderException("ImageCopyFailure", reason, map[string]any{"reason": reason})
}
