package strategies_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// alone runs a job to its end in a cloud of its own.
func alone(t *testing.T, set func(c *cloud), check func(c *cloud)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		set(c)
		c.begin(request())
		c.run("alone", nil, 10*time.Minute)
		check(c)
	})
}

// TestDeletedByItsUser: at whatever moment the user deletes the image, nothing is left, and the volume is free.
func TestDeletedByItsUser(t *testing.T) {
	for _, s := range scenarios()[:6] {
		for n, op := range operations(t, s) {
			t.Run(fmt.Sprintf("%s/%d %s", s.name, n, op), func(t *testing.T) {
				alone(t, func(c *cloud) {
					s.set(c)
					count := 0
					c.on = func(string) error {
						if count == n {
							c.glance.Delete(imageID)
						}
						count++

						return nil
					}
				}, func(c *cloud) { c.checkDeleted() })
			})
		}
	}
}

// checkDeleted checks what has to be true when the image was deleted: all but that there is one.
func (c *cloud) checkDeleted() {
	c.t.Helper()
	rec, err := c.record()
	if err != nil || !rec.Closed || c.volume != "in-use" {
		c.t.Fatalf("record %+v, error %v, volume %s", rec, err, c.volume)
	}
	if r := rec.Outcome.Result; r != worker.Cancelled && r != worker.Done {
		c.t.Errorf("the outcome is %+v", rec.Outcome)
	}
	if view := c.ceph.View(c.t, source); len(view.Snapshots) != 1 {
		c.t.Errorf("the volume has the snapshots %v", view.Snapshots)
	}
	// Deleted after it was finished, the RBD image is Glance's to remove, which this Glance does not do.
	if left := c.ceph.Audit(); rec.Outcome.Result == worker.Cancelled && len(left) > 0 {
		c.t.Errorf("left are %q", left)
	}
}

// mangling is a Glance that has other bytes in the end than it was sent.
type mangling struct{ strategies.Images }

func (m mangling) Upload(ctx context.Context, id, store string, body io.ReadSeeker, size int64, p worker.Progress) error {
	if err := m.Images.Upload(ctx, id, store, body, size, p); err != nil {
		return err
	}

	return &worker.Error{Op: "upload", Reason: worker.ReasonMismatch}
}

// TestUploadMangled: an image that is active with other bytes is never a success, also when the worker dies in between.
func TestUploadMangled(t *testing.T) {
	p := newPlanning(t)
	p.options.Order = []string{strategies.NameExportUpload}
	list, err := strategies.Builtin(strategies.Deps{
		Source: p.ceph, Destination: p.ceph, Images: mangling{p.glance}, Backends: p.backends, Memory: p.memory, Options: p.options,
	})
	if err != nil {
		t.Fatal(err)
	}
	plan, err := list[0].Plan(t.Context(), p.task)
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Steps[0].Do(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	upload := plan.Steps[slices.Index(plan.Names(), plan.Commit)]
	for range 2 {
		if err := upload.Do(t.Context(), nil); worker.ReasonOf(err) != worker.ReasonMismatch {
			t.Errorf("the upload says %v", err)
		}
	}
	if p.glance.Status(imageID) != worker.ImageActive {
		t.Fatal("the image is not active")
	}
	if err := upload.Undo(t.Context()); err != nil {
		t.Errorf("the undo says %v: the job would end as done", err)
	}
}

// TestSomebodyElsesData: the user uploads into the image while we are at it. It is theirs; ours goes.
func TestSomebodyElsesData(t *testing.T) {
	for _, s := range scenarios()[:6] {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t)
				s.set(c)
				foreign := &theirs{Images: c.glance}
				c.images = foreign
				c.on = func(op string) error {
					if op == "ceph snapshot" {
						foreign.active = true
					}

					return nil
				}
				c.begin(request())
				c.run("alone", nil, 10*time.Minute)
				rec, err := c.record()
				if err != nil || !rec.Closed || rec.Outcome.Result != worker.Failed || rec.Outcome.Reason != worker.ReasonImageState {
					t.Errorf("record %+v, outcome %+v, error %v", rec, rec.Outcome, err)
				}
				if left := c.ceph.Audit(); len(left) > 0 {
					t.Errorf("left are %q", left)
				}
			})
		})
	}
}

// theirs is a Glance whose image became active with somebody else's data.
type theirs struct {
	strategies.Images
	active bool
}

func (f *theirs) Image(ctx context.Context, id string) (worker.Image, error) {
	img, err := f.Images.Image(ctx, id)
	if f.active {
		img.Status, img.Locations = worker.ImageActive, []string{"rbd://theirs"}
	}

	return img, err
}

func (f *theirs) Register(ctx context.Context, id, location string, size int64) error {
	if f.active {
		return &worker.Error{Op: "register", Reason: worker.ReasonImageState}
	}

	return f.Images.Register(ctx, id, location, size)
}

func (f *theirs) Upload(ctx context.Context, id, store string, body io.ReadSeeker, size int64, p worker.Progress) error {
	if f.active {
		return &worker.Error{Op: "upload", Reason: worker.ReasonImageState}
	}

	return f.Images.Upload(ctx, id, store, body, size, p)
}

// saying is a Glance that says one thing of every image.
type saying struct {
	strategies.Images
	img worker.Image
	err error
}

func (s saying) Image(context.Context, string) (worker.Image, error) { return s.img, s.err }

func (saying) Register(context.Context, string, string, int64) error { return nil }

// TestRegisterUndo: what Glance says of the image decides whether what is behind the location may be removed.
func TestRegisterUndo(t *testing.T) {
	ours := strategies.Location("c3e1b7a2-55d2-4b56-9a4e-2f8e1f0c7d11", destination)
	for _, c := range []struct {
		name      string
		img       worker.Image
		err       error
		committed bool
		fails     bool
	}{
		{"queued", worker.Image{Status: worker.ImageQueued}, nil, false, false},
		{"active with ours", worker.Image{Status: worker.ImageActive, Locations: []string{"x", ours}}, nil, true, false},
		{"active, hidden", worker.Image{Status: worker.ImageActive}, nil, true, false},
		{"active with theirs", worker.Image{Status: worker.ImageActive, Locations: []string{"x"}}, nil, false, false},
		{"deactivated", worker.Image{Status: worker.ImageDeactivated, Locations: []string{ours}}, nil, true, false},
		{"importing", worker.Image{Status: worker.ImageImporting}, nil, false, true},
		{"gone", worker.Image{}, &worker.Error{Reason: worker.ReasonImageMissing}, false, false},
		{"away", worker.Image{}, &worker.Error{Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry}, false, true},
		{"refused", worker.Image{}, &worker.Error{Reason: worker.ReasonGlanceRefused}, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlanning(t)
			list, err := strategies.Builtin(strategies.Deps{
				Source: p.ceph, Destination: p.ceph, Images: saying{p.glance, c.img, c.err}, Backends: p.backends, Memory: p.memory,
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range list[:2] {
				plan, err := s.Plan(t.Context(), p.task)
				if err != nil {
					t.Fatal(err)
				}
				for _, step := range plan.Steps {
					if step.Name != plan.Commit {
						continue
					}
					undo := step.Undo(t.Context())
					if errors.Is(undo, worker.ErrCommitted) != c.committed || (undo != nil) != (c.committed || c.fails) {
						t.Errorf("%s: the undo says %v", s.Name(), undo)
					}
					// Nothing was made: Do says whether it may be made again.
					var re *worker.Replan
					do := step.Do(t.Context(), nil)
					if errors.As(do, &re) != (undo == nil) {
						t.Errorf("%s: the undo says %v, registering says %v", s.Name(), undo, do)
					}
				}
			}
		})
	}
}

// TestLostAfterFlatten: a worker that registers late has flattened and dies; Glance's revert removes the image; the next
// worker registers early. What is made again has to be flattened again.
func TestLostAfterFlatten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t)
		c.options.Register = strategies.RegisterLate
		c.begin(request())
		c.run("late", func(op string) mode {
			if op == "glance register" {
				return dieBefore
			}

			return well
		}, 10*time.Minute)
		if rec, err := c.record(); err != nil || !rec.HasStep(strategies.StepFlatten) || rec.HasStep(strategies.StepRegister) {
			t.Fatalf("record %+v, error %v", rec, err)
		}
		c.ceph.Drop(t, destination)
		c.options.Register, c.glance.ReadsParents = strategies.RegisterEarly, true
		c.run("early", nil, 10*time.Minute)
		c.want(worker.Done, worker.ReasonNone, strategies.NameCloneFlatten)
	})
}
