package strategies

import (
	"context"

	"github.com/cinderlift/cinderlift/worker"
)

// CloneFlatten clones a snapshot of the volume into Glance's pool and detaches the clone. Only metadata moves until the
// flatten.
type CloneFlatten struct{ Deps Deps }

var _ worker.Strategy = (*CloneFlatten)(nil)

// Name is clone-flatten.
func (*CloneFlatten) Name() string { return NameCloneFlatten }

// Plan registers early unless the operator or experience says late.
func (c *CloneFlatten) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) {
	p, err := c.Deps.inCluster(ctx, NameCloneFlatten, t)
	if err != nil {
		return worker.Plan{}, err
	}
	mk := p.make(t.Job.ImageID)
	steps := []worker.Step{c.snapshot(mk), c.Deps.inspect(mk, c.Deps.registered(mk, p)), c.protect(mk), c.clone(mk), c.Deps.seal(mk)}
	if c.early(p) {
		steps = append(steps, c.registerEarly(mk, p), c.flatten(mk))
	} else {
		steps = append(steps, c.flatten(mk), c.Deps.register(mk, p, true, StepClone, StepSeal, StepFlatten))
	}
	steps = append(steps, c.Deps.releaseSource(mk))

	return worker.Plan{Strategy: NameCloneFlatten, Steps: steps, Commit: StepRegister, Keep: p.keep()}, nil
}

func (c *CloneFlatten) early(p placement) bool {
	switch c.Deps.Options.Register {
	case RegisterEarly:
		return true
	case RegisterLate:
		return false
	default:
		return !c.Deps.Memory.refused(p)
	}
}

// snapshot lets the image's side begin with what takes as long as the volume's snapshot.
func (c *CloneFlatten) snapshot(mk Make) worker.Step {
	step := c.Deps.snapshot(mk)
	do := step.Do
	step.Do = func(ctx context.Context, p worker.Progress) error {
		c.Deps.Destination.Prepare(mk)

		return do(ctx, p)
	}

	return step
}

// protect comes before the clone: a clone of format 1, which every cluster has, needs it.
func (c *CloneFlatten) protect(mk Make) worker.Step {
	return worker.Step{
		Name: StepProtect,
		Do: func(ctx context.Context, _ worker.Progress) error {
			return c.Deps.Source.Protect(ctx, mk.Src, mk.Snapshot)
		},
	}
}

func (c *CloneFlatten) clone(mk Make) worker.Step {
	return worker.Step{
		Name: StepClone,
		Do:   func(ctx context.Context, _ worker.Progress) error { return c.Deps.Destination.Clone(ctx, mk) },
		Undo: func(ctx context.Context) error { return c.Deps.Destination.Discard(ctx, mk) },
	}
}

// registerEarly offers Glance a clone that still has its parent. Where Glance may not open the parent, the plan becomes
// the late one, and clone and seal are looked at again: Glance's revert may have removed them.
func (c *CloneFlatten) registerEarly(mk Make, p placement) worker.Step {
	redo := []string{StepClone, StepSeal, StepFlatten} // flatten: an earlier worker may have planned it before this
	step := c.Deps.register(mk, p, false, redo...)
	do := step.Do
	step.Do = func(ctx context.Context, pr worker.Progress) error {
		err := do(ctx, pr)
		if worker.ReasonOf(err) != worker.ReasonGlanceUnreadable || c.Deps.Options.Register == RegisterEarly {
			return err
		}
		c.Deps.Memory.refuse(p)

		return &worker.Replan{Redo: redo, Err: err}
	}

	return step
}

// flatten detaches the clone. After early registration the image may be deleted by its user at any moment, and its data
// with it: then there is nothing to flatten any more.
func (c *CloneFlatten) flatten(mk Make) worker.Step {
	return worker.Step{
		Name: StepFlatten,
		Lane: worker.LaneCopy,
		Do: func(ctx context.Context, p worker.Progress) error {
			err := c.Deps.Destination.Flatten(ctx, mk, p)
			if err == nil || !c.deleted(ctx, mk) {
				return err
			}

			return c.Deps.Destination.Discard(ctx, mk)
		},
	}
}

func (c *CloneFlatten) deleted(ctx context.Context, mk Make) bool {
	_, err := c.Deps.Images.Image(ctx, mk.Job)

	return worker.ReasonOf(err) == worker.ReasonImageMissing
}
