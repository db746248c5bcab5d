package strategies

import (
	"context"
	"errors"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/worker"
)

// FormatAuto leaves to Glance whether formats are checked: as its release checks uploads, which is found out.
const FormatAuto imageformat.Checks = "auto"

// FormatChecks lists what Options.Format.Checks may be.
func FormatChecks() []imageformat.Checks {
	return []imageformat.Checks{FormatAuto, imageformat.Glance, imageformat.Strict, imageformat.Off}
}

// inspect refuses bytes that Glance would refuse. It looks at the snapshot, since the volume may change until that is taken,
// and before anything is made of it. A refusal ends the job: handing it back would let stock Cinder move all the data first,
// to be refused at the end, or, where the operator is stricter than Glance, not to be.
//
// committed is the commit step's Undo. A job that a worker of an earlier release began may be beyond the commit point without
// having been inspected, and its snapshot may be gone: then it is too late, and must not keep the job from its end.
func (d Deps) inspect(mk Make, committed func(context.Context) error) worker.Step {
	return worker.Step{
		Name: StepInspect,
		Do: func(ctx context.Context, _ worker.Progress) error {
			err := d.judge(ctx, mk)
			if err == nil || worker.AdviceOf(err) == worker.Retry || worker.AdviceOf(err) == worker.StandBy {
				return err
			}
			asked := committed(ctx)
			switch {
			case errors.Is(asked, worker.ErrCommitted):
				return nil
			case worker.AdviceOf(asked) == worker.Retry:
				return asked
			default:
				return err
			}
		},
	}
}

func (d Deps) judge(ctx context.Context, mk Make) error {
	policy, err := d.policy(ctx)
	if err != nil || policy.Checks == imageformat.Off {
		return err
	}
	found, err := d.Source.Inspect(ctx, mk.Src, mk.Snapshot)
	if err != nil {
		return err
	}
	if err := policy.Judge(imageformat.Raw, found); err != nil {
		return &worker.Error{Op: "inspect " + mk.Src.String() + "@" + mk.Snapshot, Reason: worker.ReasonFormatRefused, Err: err}
	}

	return nil
}

func (d Deps) policy(ctx context.Context) (imageformat.Policy, error) {
	policy := d.Options.Format
	if policy.Checks != FormatAuto {
		return policy, nil
	}
	inspects, err := d.Images.Inspects(ctx)
	policy.Checks = imageformat.Off
	if inspects {
		policy.Checks = imageformat.Glance
	}

	return policy, err
}
