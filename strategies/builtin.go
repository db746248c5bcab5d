package strategies

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cinderlift/cinderlift/worker"
)

// Names of the strategies: configuration, journal, logs, metric labels.
const (
	NameCloneFlatten = "clone-flatten"
	NameCopy         = "copy"
	NameExportUpload = "export-upload"
)

// Names of the steps: journal, logs, metric labels.
const (
	StepSnapshot      = "snapshot"
	StepInspect       = "inspect"
	StepProtect       = "protect"
	StepClone         = "clone"
	StepCopyObjects   = "copy-objects"
	StepSeal          = "seal"
	StepFlatten       = "flatten"
	StepRegister      = "register"
	StepUpload        = "upload"
	StepReleaseSource = "release-source"
)

// Deps is what strategies work with. Source and Destination belong to one job's connection, the rest is shared.
type Deps struct {
	Source      Source
	Destination Destination
	Images      Images
	Backends    Backends
	Memory      *Memory
	Formats     Formats
	Options     Options
}

// All lists the names of the strategies in their default order.
func All() []string { return []string{NameCloneFlatten, NameCopy, NameExportUpload} }

// Builtin builds the strategies of d.Options.Order, or all of them. Those that the operator left out come last and serve
// only jobs that were begun with them: somebody has to finish these, or undo them.
func Builtin(d Deps) ([]worker.Strategy, error) {
	order := d.Options.Order
	if len(order) == 0 {
		order = All()
	}
	if err := CheckOrder(order); err != nil {
		return nil, err
	}
	all := map[string]worker.Strategy{
		NameCloneFlatten: &CloneFlatten{Deps: d},
		NameCopy:         &Copy{Deps: d},
		NameExportUpload: &ExportUpload{Deps: d},
	}
	list := make([]worker.Strategy, 0, len(all))
	for _, name := range order {
		list = append(list, all[name])
	}
	for _, name := range All() {
		if !slices.Contains(order, name) {
			list = append(list, leftOut{all[name]})
		}
	}

	return list, nil
}

// leftOut is a strategy that the operator does not want any more.
type leftOut struct{ worker.Strategy }

// Plan serves jobs that were begun with the strategy.
func (l leftOut) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) {
	if t.Kept == nil {
		return worker.Plan{}, worker.NotApplicable(l.Name(), l.Name()+" is not among the configured strategies")
	}

	return l.Strategy.Plan(ctx, t)
}

// CheckOrder refuses unknown and repeated names, and lists the valid ones.
func CheckOrder(order []string) error {
	for i, name := range order {
		if !slices.Contains(All(), name) {
			return fmt.Errorf("unknown strategy %q; there are %s", name, strings.Join(All(), ", "))
		}
		if slices.Contains(order[:i], name) {
			return fmt.Errorf("strategy %q is named twice", name)
		}
	}

	return nil
}

// snapshot fixes the point in time. Its undo releases the snapshot, protected or not.
func (d Deps) snapshot(mk Make) worker.Step {
	return worker.Step{
		Name: StepSnapshot,
		Do: func(ctx context.Context, _ worker.Progress) error {
			return d.Source.Snapshot(ctx, mk.Src, mk.Snapshot)
		},
		Undo: func(ctx context.Context) error { return d.Source.Release(ctx, mk.Src, mk.Snapshot) },
	}
}

func (d Deps) seal(mk Make) worker.Step {
	return worker.Step{
		Name: StepSeal,
		Do:   func(ctx context.Context, _ worker.Progress) error { return d.Destination.Seal(ctx, mk) },
	}
}

// releaseSource comes before the volume leaves `uploading`: Cinder's delete of a volume fails, or leaves it in the trash,
// while our snapshot is there.
func (d Deps) releaseSource(mk Make) worker.Step {
	return worker.Step{
		Name: StepReleaseSource,
		Do: func(ctx context.Context, _ worker.Progress) error {
			return d.Source.Release(ctx, mk.Src, mk.Snapshot)
		},
	}
}

// inCluster decides, or recalls, where a strategy that stays inside one cluster makes the image.
func (d Deps) inCluster(ctx context.Context, strategy string, t worker.Task) (placement, error) {
	if t.Kept != nil {
		return kept(strategy, t.Kept)
	}
	if err := rawOnly(strategy, t.Job); err != nil {
		return placement{}, err
	}
	p, err := d.source(ctx, strategy, t)
	if err != nil {
		return p, err
	}

	return d.destination(ctx, strategy, t, p)
}

// make keeps the source's object size, whatever Glance's store uses for its own images: only then can the OSDs copy
// whole objects among themselves. Glance reads any size.
func (p placement) make(imageID string) Make {
	return Make{Src: p.Source, Snapshot: SourceSnapshot(imageID), Dst: p.Dest, Job: imageID}
}
