package strategies

import (
	"context"

	"github.com/cinderlift/cinderlift/worker"
)

// ExportUpload streams a snapshot through this process into Glance. It serves any store, also in another cluster, and any
// format and container that there is an encoder for.
type ExportUpload struct{ Deps Deps }

var _ worker.Strategy = (*ExportUpload)(nil)

// Name is export-upload.
func (*ExportUpload) Name() string { return NameExportUpload }

// Plan needs the volume only; where the data goes is Glance's business.
func (e *ExportUpload) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) {
	p, err := e.place(ctx, t)
	if err != nil {
		return worker.Plan{}, err
	}
	mk := p.make(t.Job.ImageID)
	upload := e.upload(mk, p)
	steps := []worker.Step{e.Deps.snapshot(mk)}
	if isRaw(t.Job) { // what lies inside another format is taken for a disk's bytes, whatever they look like
		steps = append(steps, e.Deps.inspect(mk, upload.Undo))
	}

	return worker.Plan{
		Strategy: NameExportUpload,
		Steps:    append(steps, upload, e.Deps.releaseSource(mk)),
		Commit:   StepUpload,
		Keep:     p.keep(),
	}, nil
}

func (e *ExportUpload) place(ctx context.Context, t worker.Task) (placement, error) {
	if t.Kept != nil {
		p, err := kept(NameExportUpload, t.Kept)
		if p.Encoder == "" && t.Job.DiskFormat != formatRaw {
			p.Encoder = t.Job.DiskFormat
		}

		return p, err
	}
	encoder, err := e.Deps.Formats.encoder(NameExportUpload, t.Job)
	if err != nil {
		return placement{}, err
	}
	if t.Volume.Encrypted && encoder != "" {
		// cinder-api refuses it as well (cinder 21.3 api/contrib/volume_actions.py:219-226).
		return placement{}, worker.NotApplicable(NameExportUpload, "an encrypted volume can become a raw image only")
	}
	p, err := e.Deps.source(ctx, NameExportUpload, t)
	if err != nil {
		return p, err
	}
	p.Encoder, p.Store = encoder, t.Volume.StoreID
	if p.Store == "" {
		p.Store = e.Deps.Options.StoreID
	}

	return p, nil
}

func (e *ExportUpload) upload(mk Make, p placement) worker.Step {
	return worker.Step{
		Name: StepUpload,
		Lane: worker.LaneExport,
		Do:   func(ctx context.Context, pr worker.Progress) error { return e.send(ctx, mk, p, pr) },
		Undo: func(ctx context.Context) error { return e.uploaded(ctx, mk, p) },
	}
}

func (e *ExportUpload) send(ctx context.Context, mk Make, p placement, pr worker.Progress) error {
	content, err := e.Deps.Source.Open(ctx, mk.Src, mk.Snapshot)
	if err != nil {
		return err
	}
	defer content.Close() // read-only: nothing can be lost by it

	file, read, err := e.Deps.Formats.encode(p.Encoder, content, pr)
	if err != nil {
		return err
	}
	defer file.Close() // as above; before the content

	// Of the snapshot's size: the volume may have been extended between the plan and the snapshot.
	return e.Deps.Images.Upload(ctx, mk.Job, p.Store, file, file.Size(), after(read, pr))
}

// after adds what was moved before.
func after(moved int64, p worker.Progress) worker.Progress {
	if p == nil || moved == 0 {
		return p
	}

	return func(a worker.Amount) {
		a.Worker += moved
		p(a)
	}
}

// uploaded answers ErrCommitted when the image is active with the snapshot's bytes. No location tells whose data an
// active image has, so it is compared: what somebody else uploaded meanwhile, or what arrived mangled, is no success.
func (e *ExportUpload) uploaded(ctx context.Context, mk Make, p placement) error {
	img, err := e.Deps.Images.Image(ctx, mk.Job)
	switch {
	case worker.ReasonOf(err) == worker.ReasonImageMissing:
		return nil
	case err != nil:
		return err
	case img.Status != worker.ImageActive && img.Status != worker.ImageDeactivated:
		return nil // nothing of it is ours to remove
	}
	err = e.send(ctx, mk, p, nil)
	switch worker.ReasonOf(err) {
	case worker.ReasonNone:
		return worker.ErrCommitted
	case worker.ReasonMismatch, worker.ReasonImageState, worker.ReasonImageMissing:
		return nil
	default:
		return err
	}
}
