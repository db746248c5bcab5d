package strategies

import (
	"context"

	"github.com/cinderlift/cinderlift/worker"
)

// Copy copies the objects of a snapshot into a fresh image, from OSD to OSD.
type Copy struct{ Deps Deps }

var _ worker.Strategy = (*Copy)(nil)

// Name is copy.
func (*Copy) Name() string { return NameCopy }

// Plan never depends on what Glance may read: the image has no parent at any time.
func (c *Copy) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) {
	p, err := c.Deps.inCluster(ctx, NameCopy, t)
	if err != nil {
		return worker.Plan{}, err
	}
	mk := p.make(t.Job.ImageID)

	return worker.Plan{
		Strategy: NameCopy,
		Steps: []worker.Step{
			c.Deps.snapshot(mk), c.Deps.inspect(mk, c.Deps.registered(mk, p)), c.copyObjects(mk), c.Deps.seal(mk),
			c.Deps.register(mk, p, true, StepCopyObjects, StepSeal), c.Deps.releaseSource(mk),
		},
		Commit: StepRegister,
		Keep:   p.keep(),
	}, nil
}

func (c *Copy) copyObjects(mk Make) worker.Step {
	return worker.Step{
		Name: StepCopyObjects,
		Lane: worker.LaneCopy,
		Do: func(ctx context.Context, p worker.Progress) error {
			return c.Deps.Destination.CopyObjects(ctx, mk, p)
		},
		Undo: func(ctx context.Context) error { return c.Deps.Destination.Discard(ctx, mk) },
	}
}
