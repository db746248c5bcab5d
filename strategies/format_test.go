package strategies_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
)

// exporting is a plan of export-upload for a job, perhaps one that was begun with what kept says.
func exporting(t *testing.T, p *planning, f strategies.Formats, kept string) worker.Plan {
	t.Helper()
	e := &strategies.ExportUpload{Deps: strategies.Deps{Source: p.ceph, Images: p.glance, Backends: p.backends, Formats: f}}
	task := p.task
	if kept != "" {
		task = worker.Task{Job: p.task.Job, Kept: []byte(kept)}
	}
	plan, err := e.Plan(t.Context(), task)
	if err != nil {
		t.Fatal(err)
	}

	return plan
}

// do runs a plan's steps up to one of them, whose error it answers.
func do(ctx context.Context, plan worker.Plan, last string, p worker.Progress) error {
	for _, s := range plan.Steps {
		if err := s.Do(ctx, p); err != nil || s.Name == last {
			return err
		}
	}

	return errors.New("no step " + last)
}

// counted is an encoder that reads the snapshot first and counts the files that are open.
func counted(open *int, fail error) strategies.Encoder {
	return func(c strategies.Content) (strategies.File, error) {
		if _, err := io.Copy(io.Discard, c); err != nil {
			return nil, err
		}
		if fail != nil {
			return nil, fail
		}
		f, err := strategiestest.Box(c)
		*open++

		return closing{f, open}, err
	}
}

type closing struct {
	strategies.File
	open *int
}

func (c closing) Close() error {
	*c.open--

	return c.File.Close()
}

// TestEncoderIsKept: a job under way makes the same bytes whatever the operator configures meanwhile, also one of a release
// that did not write the encoder down.
func TestEncoderIsKept(t *testing.T) {
	p := newPlanning(t)
	p.task.Job.DiskFormat, p.glance.Decode = strategiestest.FormatBox, strategiestest.Unbox
	first := exporting(t, p, formats(), "")
	changed := formats()
	changed.Encoders["new"] = func(strategies.Content) (strategies.File, error) { return nil, errors.New("another encoder") }
	changed.Use[strategiestest.FormatBox+"/bare"] = "new"
	if err := do(t.Context(), exporting(t, p, changed, ""), strategies.StepUpload, nil); err == nil {
		t.Fatal("a new job does not use the new encoder, so this test shows nothing")
	}
	for name, kept := range map[string]string{
		"kept":              string(first.Keep),
		"of before":         `{"source":{"Pool":"volumes","Image":"` + source.Image + `"}}`,
		"no longer offered": string(first.Keep),
	} {
		if name == "no longer offered" {
			delete(changed.Use, strategiestest.FormatBox+"/bare")
		}
		if err := do(t.Context(), exporting(t, p, changed, kept), strategies.StepUpload, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	delete(changed.Encoders, strategiestest.FormatBox)
	if err := do(t.Context(), exporting(t, p, changed, string(first.Keep)), strategies.StepUpload, nil); worker.ReasonOf(err) != worker.ReasonInternal {
		t.Errorf("without the encoder: %v, want an internal error", err)
	}
}

// TestEncoderIsSeen: what is read before the upload begins counts, and the file is closed whatever happens.
func TestEncoderIsSeen(t *testing.T) {
	p := newPlanning(t)
	p.task.Job.DiskFormat, p.glance.Decode = strategiestest.FormatBox, strategiestest.Unbox
	open, f := 0, formats()
	f.Encoders[strategiestest.FormatBox] = counted(&open, nil)
	var all []worker.Amount
	err := do(t.Context(), exporting(t, p, f, ""), strategies.StepUpload, func(a worker.Amount) { all = append(all, a) })
	if err != nil || open != 0 {
		t.Fatalf("%v, %d files are open", err, open)
	}
	const size = 2 * object
	if len(all) < 2 || all[0].Worker <= 0 || all[0].Total != 0 || all[len(all)-1].Worker <= size {
		t.Errorf("progress %+v, want %d bytes before the upload and more with it", all, size)
	}
	for i := 1; i < len(all); i++ {
		if all[i].Worker < all[i-1].Worker {
			t.Errorf("progress goes back: %+v", all)
		}
	}
	p.glance.Fail = func(site string) (error, error) {
		if site == "upload" {
			return &worker.Error{Op: site, Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry}, nil
		}

		return nil, nil
	}
	if err := do(t.Context(), exporting(t, p, f, ""), strategies.StepUpload, nil); err == nil || open != 0 {
		t.Errorf("after an upload that failed: %v, %d files are open", err, open)
	}
	away := &worker.Error{Op: "read", Reason: worker.ReasonCephUnavailable, Advice: worker.Retry}
	f.Encoders[strategiestest.FormatBox] = counted(&open, away)
	if err := do(t.Context(), exporting(t, p, f, ""), strategies.StepUpload, nil); !errors.Is(err, away) || open != 0 {
		t.Errorf("an encoder that fails: %v, %d files are open", err, open)
	}
}
