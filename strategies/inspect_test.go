package strategies_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// inspection is the step inspect of each strategy, on a volume that holds this; the snapshot is there.
func inspection(t *testing.T, head string, policy imageformat.Policy, inspecting bool, images func(strategies.Images) strategies.Images) (
	*planning, map[string]worker.Step,
) {
	t.Helper()
	p := newPlanning(t)
	p.glance.Inspecting, p.options.Format = inspecting, policy
	p.ceph.Write(t, source, 0, []byte(head))
	if err := p.ceph.Snapshot(t.Context(), source, strategies.SourceSnapshot(imageID)); err != nil {
		t.Fatal(err)
	}
	p.ceph.Write(t, source, 0, make([]byte, 512)) // the volume changes, the snapshot does not
	list, err := strategies.Builtin(strategies.Deps{
		Source: p.ceph, Destination: p.ceph, Images: images(p.glance), Backends: p.backends, Memory: p.memory, Options: p.options,
	})
	if err != nil {
		t.Fatal(err)
	}
	steps := map[string]worker.Step{}
	for _, s := range list {
		plan, err := s.Plan(t.Context(), p.task)
		if err != nil {
			t.Fatal(err)
		}
		if names := plan.Names(); names[0] != strategies.StepSnapshot || names[1] != strategies.StepInspect {
			t.Errorf("%s: the steps are %q", s.Name(), names)
		}
		steps[s.Name()] = plan.Steps[1]
	}

	return p, steps
}

func asIs(i strategies.Images) strategies.Images { return i }

// TestInspect: each strategy goes by the policy, and auto by Glance's release.
func TestInspect(t *testing.T) {
	const backed = "QFI\xfb\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x02\x00"
	const plain = "QFI\xfb\x00\x00\x00\x03"
	auto := imageformat.Policy{Checks: strategies.FormatAuto}
	for _, c := range []struct {
		name       string
		head       string
		policy     imageformat.Policy
		inspecting bool
		want       worker.Reason
	}{
		{"nothing special", "hello", auto, true, worker.ReasonNone},
		{"auto, Glance inspects", backed, auto, true, worker.ReasonFormatRefused},
		{"auto, Glance does not", backed, auto, false, worker.ReasonNone},
		{"auto, what Glance takes", plain, auto, true, worker.ReasonNone},
		{"glance, whatever Glance does", backed, imageformat.Policy{Checks: imageformat.Glance}, false, worker.ReasonFormatRefused},
		{"strict", plain, imageformat.Policy{Checks: imageformat.Strict}, false, worker.ReasonFormatRefused},
		{"off", backed, imageformat.Policy{Checks: imageformat.Off}, true, worker.ReasonNone},
		{"nothing configured", plain, imageformat.Policy{}, false, worker.ReasonFormatRefused},
	} {
		_, steps := inspection(t, c.head, c.policy, c.inspecting, asIs)
		for name, s := range steps {
			err := s.Do(t.Context(), nil)
			if worker.ReasonOf(err) != c.want || worker.AdviceOf(err) != worker.GiveUp {
				t.Errorf("%s by %s: %v, want %s", c.name, name, err, c.want)
			}
		}
	}
}

// TestInspectTooLate: a job of a worker that did not inspect yet is beyond the commit point; it goes on to its end, whatever is
// on the volume, and also when the snapshot is gone. Before the commit point it is refused.
func TestInspectTooLate(t *testing.T) {
	ours := strategies.Location("c3e1b7a2-55d2-4b56-9a4e-2f8e1f0c7d11", destination)
	away := &worker.Error{Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry}
	for _, c := range []struct {
		name    string
		img     worker.Image
		err     error
		refused worker.Reason
		gone    worker.Reason
	}{
		{"active with ours", worker.Image{Status: worker.ImageActive, Locations: []string{ours}}, nil, worker.ReasonNone, worker.ReasonNone},
		{"queued", worker.Image{Status: worker.ImageQueued}, nil, worker.ReasonFormatRefused, worker.ReasonMismatch},
		{"importing", worker.Image{Status: worker.ImageImporting}, nil, worker.ReasonImageState, worker.ReasonImageState},
		{"away", worker.Image{}, away, worker.ReasonGlanceUnavailable, worker.ReasonGlanceUnavailable},
		{"deleted", worker.Image{}, &worker.Error{Reason: worker.ReasonImageMissing}, worker.ReasonFormatRefused, worker.ReasonMismatch},
	} {
		p, steps := inspection(t, "QED\x00", imageformat.Policy{}, true, func(i strategies.Images) strategies.Images {
			return saying{i, c.img, c.err}
		})
		for _, name := range []string{strategies.NameCloneFlatten, strategies.NameCopy} {
			if err := steps[name].Do(t.Context(), nil); worker.ReasonOf(err) != c.refused {
				t.Errorf("%s, %s: %v, want %s", c.name, name, err, c.refused)
			}
		}
		if err := p.ceph.Release(t.Context(), source, strategies.SourceSnapshot(imageID)); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{strategies.NameCloneFlatten, strategies.NameCopy} {
			if err := steps[name].Do(t.Context(), nil); worker.ReasonOf(err) != c.gone {
				t.Errorf("%s, %s without snapshot: %v, want %s", c.name, name, err, c.gone)
			}
		}
	}
}

// uninspecting is a strategy of the release before the step inspect.
type uninspecting struct{ worker.Strategy }

func (u uninspecting) Plan(ctx context.Context, t worker.Task) (worker.Plan, error) {
	plan, err := u.Strategy.Plan(ctx, t)
	plan.Steps = slices.DeleteFunc(plan.Steps, func(s worker.Step) bool { return s.Name == strategies.StepInspect })

	return plan, err
}

// TestInspectAfterUpgrade: a worker of the release before dies, one of this adopts its job. Whether the volume is refused
// depends on whether the image is active.
func TestInspectAfterUpgrade(t *testing.T) {
	for op, want := range map[string]worker.Result{
		"ceph seal.mark": worker.Failed, "ceph flatten.object": worker.Done, "ceph release.unprotect": worker.Done,
		"ceph release.snapshot": worker.Done,
	} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t)
				c.glance.ReadsParents = true
				c.ceph.Write(t, source, 0, []byte("QED\x00"))
				c.wrap = func(s worker.Strategy) worker.Strategy { return uninspecting{s} }
				c.begin(request())
				c.run("before", func(got string) mode {
					if got == op {
						return dieAfter
					}

					return well
				}, 10*time.Minute)
				if rec, err := c.record(); err != nil || rec.Closed || slices.Contains(rec.Begun, strategies.StepInspect) {
					t.Fatalf("record %+v, error %v", rec, err)
				}
				c.wrap = nil
				c.run("after", nil, 10*time.Minute)
				reason := worker.ReasonNone
				if want == worker.Failed {
					reason = worker.ReasonFormatRefused
				}
				c.want(want, reason, strategies.NameCloneFlatten)
			})
		})
	}
}

// TestInspectBeforeDowngrade: a worker of the release before adopts a job that was inspected.
func TestInspectBeforeDowngrade(t *testing.T) {
	for _, op := range []string{"ceph inspect", "ceph clone", "glance register"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCloud(t)
				c.begin(request())
				c.run("after", func(got string) mode {
					if got == op {
						return dieAfter
					}

					return well
				}, 10*time.Minute)
				c.wrap = func(s worker.Strategy) worker.Strategy { return uninspecting{s} }
				c.run("before", nil, 10*time.Minute)
				c.want(worker.Done, worker.ReasonNone, strategies.NameCloneFlatten)
			})
		})
	}
}
