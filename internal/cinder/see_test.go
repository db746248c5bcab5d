package cinder

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// settleAs runs the steps in one process, and tries each again as soon as the runner would.
func (w *world) settleAs(s *Settler, o worker.Outcome, but ...string) {
	w.t.Helper()
	for _, step := range s.Settle(w.job, o) {
		if slices.Contains(but, step.Name) {
			continue
		}
		for n := 0; step.Do(context.Background(), nil) != nil; n++ {
			if n > 100 {
				w.t.Fatalf("step %s does not end", step.Name)
			}
			<-time.After(2 * time.Second)
		}
	}
}

// TestLostResult: cinder-volume took the result and ended. What can be known decides what is done.
func TestLostResult(t *testing.T) {
	for name, tc := range map[string]struct {
		file    string
		outcome worker.Outcome
		lose    int            // results that are lost, all that come after have their effect
		change  func(w *world) // before the result is told
		late    func(w *world) // when the first result has arrived
		told    int
		frees   int
		status  string
	}{
		"the cast, once":          {"cast-manager.json", made, 1, nil, nil, 2, 0, "available"},
		"the cast of a failure":   {"cast-manager.json", failed, 1, nil, nil, 2, 0, "available"},
		"every cast":              {"cast-manager.json", made, 99, nil, nil, 3, 1, "available"},
		"every cast, attached":    {"cast-manager.json", made, 99, func(w *world) { w.cinder.volume.Attached = true }, nil, 3, 1, "in-use"},
		"the reply":               {"call-driver.json", made, 99, nil, nil, 1, 1, "available"},
		"another process, once":   {"cast-manager.json", made, 1, func(w *world) { w.job.Private = nil }, nil, 2, 0, "available"},
		"another process, always": {"cast-manager.json", made, 99, func(w *world) { w.job.Private = nil }, nil, 4, 0, worker.VolumeUploading},
		"another process, reply":  {"call-driver.json", made, 99, func(w *world) { w.job.Private = nil }, nil, 1, 0, worker.VolumeUploading},
		"the volume is gone":      {"cast-manager.json", made, 99, nil, func(w *world) { w.cinder.gone = true }, 1, 0, worker.VolumeUploading},
		"reset by an operator":    {"cast-manager.json", made, 99, nil, func(w *world) { w.cinder.becomes("error") }, 1, 0, "error"},
		"taken by the next upload": {"cast-manager.json", made, 99, nil, func(w *world) {
			w.cinder.becomes("available")
			w.cinder.becomes(worker.VolumeUploading)
		}, 1, 0, worker.VolumeUploading},
		"another project's volume": {"cast-manager.json", made, 99, func(w *world) { w.cinder.volume.ProjectID = "p2" }, nil, 3, 0, worker.VolumeUploading},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tc.file)
				told, first := 0, tc.late
				w.bus.arrived = func(s sent) {
					if told++; told > tc.lose {
						w.finish(s)
					}
					if first != nil {
						first(w)
						first = nil
					}
				}
				if tc.change != nil {
					tc.change(w)
				}
				<-time.After(time.Minute) // the job
				w.settleAs(w.settler(), tc.outcome, stepNotify)
				if told != tc.told || w.cinder.frees != tc.frees || w.cinder.volume.Status != tc.status {
					t.Errorf("told %d times, freed %d times, the volume is %s", told, w.cinder.frees, w.cinder.volume.Status)
				}
			})
		})
	}
}

// TestQuickJobIsNotFreedOverREST: in a database that counts seconds the next upload may look like this one.
func TestQuickJobIsNotFreedOverREST(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-manager.json")
		w.bus.arrived = nil
		var seen strings.Builder
		w.logs = &seen
		w.settleAs(w.settler(), made, stepNotify)
		if w.cinder.frees != 0 || !strings.Contains(seen.String(), "openstack volume set --state available") {
			t.Errorf("freed %d times: %s", w.cinder.frees, seen.String())
		}
	})
}

// TestFreeingFaults: the write over REST fails once and twice, not applied and applied.
func TestFreeingFaults(t *testing.T) {
	for _, applied := range []bool{false, true} {
		for times := 1; times <= 2; times++ {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, "call-driver.json")
				w.bus.arrived = nil
				w.cinder.queue = slices.Repeat([]fault{{err: away(worker.ReasonCinderUnavailable), applied: applied}}, times)
				<-time.After(time.Minute)
				w.settleAs(w.settler(), made, stepNotify)
				if w.cinder.frees != 1 || w.cinder.volume.Status != "available" {
					t.Errorf("freed %d times, the volume is %s", w.cinder.frees, w.cinder.volume.Status)
				}
			})
		}
	}
}

// TestPatienceOverManyTries: settling is put off when it does not work, and taken up again by the same process or another.
// The way out must come all the same.
func TestPatienceOverManyTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-manager.json")
		s := w.settler()
		w.bus.queue = slices.Repeat([]fault{{err: oslo.ErrUnroutable}}, 1000)
		for range 100 {
			step := s.Settle(w.job, made)[0] // anew each time, as after having been put off
			if step.Name != stepCastDone {
				t.Fatal(step.Name)
			}
			if step.Do(context.Background(), nil) == nil {
				break
			}
			<-time.After(time.Minute)
		}
		if w.cinder.frees != 1 {
			t.Errorf("the volume is %s", w.cinder.volume.Status)
		}
	})
}

func TestMemoryForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m memory
		m.note("a", "1")
		m.cast("b")
		<-time.After(memoryFor + time.Second)
		m.met("c")
		if len(m.all) != 1 {
			t.Errorf("%d recollections", len(m.all))
		}
	})
}

// TestHandBackHasOneID: a repeated hand-back is the same message to cinder-volume, another job's is not.
func TestHandBackHasOneID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "cast-api.json")
		w.bus.queue = []fault{{err: errAway, applied: true}}
		w.run(declined)
		if len(w.bus.sent) != 2 || w.bus.sent[0].message["_unique_id"] != w.bus.sent[1].message["_unique_id"] {
			t.Errorf("sent %v", w.bus.sent)
		}
		id, _ := w.bus.sent[0].message["_unique_id"].(string)
		other := w.job
		other.ImageID = other.VolumeID
		if len(id) != 32 || id == handBackID(other) {
			t.Errorf("id %q", id)
		}
	})
}
