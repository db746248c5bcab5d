package cinder

import (
	"context"
	"testing"

	"github.com/cinderlift/cinderlift/worker"
)

func TestFacts(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(w *world)
		reason worker.Reason
		advice worker.Advice
	}{
		"all well":            {func(*world) {}, worker.ReasonNone, worker.GiveUp},
		"upload began":        {func(w *world) { w.glance.image.Status = "saving" }, worker.ReasonNone, worker.GiveUp},
		"made already":        {func(w *world) { w.glance.image.Status = "active" }, worker.ReasonNone, worker.GiveUp},
		"no volume":           {func(w *world) { w.cinder.gone = true }, worker.ReasonVolumeMissing, worker.GiveUp},
		"no image":            {func(w *world) { w.glance.gone = true }, worker.ReasonImageMissing, worker.GiveUp},
		"volume free":         {func(w *world) { w.cinder.volume.Status = "available" }, worker.ReasonVolumeState, worker.GiveUp},
		"image deactivated":   {func(w *world) { w.glance.image.Status = "deactivated" }, worker.ReasonNone, worker.GiveUp},
		"image killed":        {func(w *world) { w.glance.image.Status = "killed" }, worker.ReasonImageState, worker.GiveUp},
		"image of another":    {func(w *world) { w.glance.image.Owner = "p2" }, worker.ReasonNotOwner, worker.GiveUp},
		"image of nobody":     {func(w *world) { w.glance.image.Owner = "" }, worker.ReasonNotOwner, worker.GiveUp},
		"volume of another":   {func(w *world) { w.cinder.volume.ProjectID = "p2" }, worker.ReasonNotOwner, worker.GiveUp},
		"both of another":     {func(w *world) { w.cinder.volume.ProjectID, w.glance.image.Owner = "p2", "p2" }, worker.ReasonNotOwner, worker.GiveUp},
		"an admin's upload":   {func(w *world) { w.cinder.volume.ProjectID = "p2"; w.admin() }, worker.ReasonNotApplicable, worker.OtherWay},
		"admin, image stolen": {func(w *world) { w.glance.image.Owner = "p2"; w.admin() }, worker.ReasonNotOwner, worker.GiveUp},
		"other disk format":   {func(w *world) { w.glance.image.DiskFormat = "qcow2" }, worker.ReasonConflict, worker.GiveUp},
		"other container":     {func(w *world) { w.glance.image.ContainerFormat = "ova" }, worker.ReasonConflict, worker.GiveUp},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "cast-manager.json")
			tc.change(w)
			task, err := NewFacts(w.cinder, w.glance).Task(context.Background(), w.job)
			if worker.ReasonOf(err) != tc.reason || worker.AdviceOf(err) != tc.advice {
				t.Errorf("error = %v, advice %d", err, worker.AdviceOf(err))
			}
			if task.Job.ImageID != w.job.ImageID {
				t.Error("the task is not the job's")
			}
		})
	}
}

// admin makes the request an admin's, as its context claims.
func (w *world) admin() {
	m := golden(w.t, "cast-manager.json")
	m["_context_is_admin"] = true
	j, err := taken(w.t, &fakeBus{}, wire(w.t, m)).Job()
	if err != nil {
		w.t.Fatal(err)
	}
	w.job = j
}
