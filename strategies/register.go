package strategies

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// RegisterMode says when clone-flatten registers the image.
type RegisterMode string

// The modes. Early needs `profile rbd-read-only` on the volumes' pool among client.glance's caps.
const (
	RegisterAuto  RegisterMode = "auto"  // early where Glance can read the clone's parent, late otherwise; found out
	RegisterEarly RegisterMode = "early" // before the flatten: the image is usable within seconds
	RegisterLate  RegisterMode = "late"  // after the flatten
)

// RegisterModes lists them all.
func RegisterModes() []RegisterMode { return []RegisterMode{RegisterAuto, RegisterEarly, RegisterLate} }

// Memory remembers for a while in which pools Glance could not read clones, so that not every job has to find out. One
// for all jobs of a process; the zero value is ready.
type Memory struct {
	mu    sync.Mutex
	until map[string]time.Time
}

// rememberFor is short enough that an operator who grants the cap sees it work soon.
const rememberFor = 10 * time.Minute

func (m *Memory) refuse(p placement) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.until == nil {
		m.until = map[string]time.Time{}
	}
	m.until[p.FSID+"/"+p.Source.Pool] = time.Now().Add(rememberFor)
}

func (m *Memory) refused(p placement) bool {
	m.mu.Lock()
	defer m.mu.Unlock()

	return time.Now().Before(m.until[p.FSID+"/"+p.Source.Pool])
}

// register is the commit point of both strategies that make the image inside Ceph. flat says that the destination must
// have no parent by now.
func (d Deps) register(mk Make, p placement, flat bool, redo ...string) worker.Step {
	location := Location(p.FSID, mk.Dst)

	return worker.Step{
		Name: StepRegister,
		Do: func(ctx context.Context, _ worker.Progress) error {
			complete, err := d.Destination.Complete(ctx, mk, flat)
			if err != nil {
				return err
			}
			if complete {
				return d.registerMade(ctx, mk, location, p.Size)
			}
			switch err := d.notCommitted(ctx, mk.Job, location); {
			case err == nil:
				// The journal says that it was made, reality does not: Glance's revert removes the data of a location
				// that it could not finish (glance c76abb0 async_/flows/location_import.py:275). Made again only
				// when Glance certainly does not use it.
				return &worker.Replan{Redo: redo, Err: errors.New("image " + mk.Dst.String() + " is not complete")}
			case !errors.Is(err, worker.ErrCommitted):
				return err
			}

			return d.Images.Register(ctx, mk.Job, location, p.Size)
		},
		Undo: d.registered(mk, p),
	}
}

// registered is the Undo of register.
func (d Deps) registered(mk Make, p placement) func(context.Context) error {
	return func(ctx context.Context) error { return d.notCommitted(ctx, mk.Job, Location(p.FSID, mk.Dst)) }
}

// registerMade registers with the size of what was made. That is the snapshot's, and not the planned one when the volume was
// extended in between. What is gone by now was removed together with the image, which Register finds out.
func (d Deps) registerMade(ctx context.Context, mk Make, location string, planned int64) error {
	made, err := d.Source.Stat(ctx, mk.Dst)
	switch {
	case err == nil:
		planned = made.Size
	case worker.ReasonOf(err) != worker.ReasonVolumeMissing:
		return err
	}

	return d.Images.Register(ctx, mk.Job, location, planned)
}

// notCommitted is nil when Glance certainly does not use location: only then may what is behind it be removed.
func (d Deps) notCommitted(ctx context.Context, imageID, location string) error {
	img, err := d.Images.Image(ctx, imageID)
	switch {
	case worker.ReasonOf(err) == worker.ReasonImageMissing:
		return nil
	case err != nil:
		return err
	case img.Status == worker.ImageImporting:
		return &worker.Error{Op: "undo the registration of image " + imageID, Reason: worker.ReasonImageState,
			Advice: worker.Retry, Err: errors.New("glance is still importing the location")}
	case img.Status != worker.ImageActive && img.Status != worker.ImageDeactivated:
		return nil
	case len(img.Locations) > 0 && !slices.Contains(img.Locations, location):
		return nil // active with somebody else's data
	}

	// Active, and either with our location or with one that Glance does not show: better keep too much.
	return worker.ErrCommitted
}
