package main

import (
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// TestWhatOperatorsSee: one line for each state that a record can be in.
func TestWhatOperatorsSee(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	deaths := []worker.Activity{{Name: "flatten", Owner: "w1", Since: at}, {Name: "flatten", Owner: "w2", Since: at}}
	failed := &worker.Outcome{Result: worker.Failed, Reason: worker.ReasonPoolFull, Message: "pool images is full"}
	for _, c := range []struct {
		state, why string
		r          worker.Record
	}{
		{"accepted", "", worker.Record{}},
		{"working", "copy: refused", worker.Record{Strategy: "copy", LastError: "copy: refused"}},
		{"committed", "", worker.Record{Strategy: "copy", Committed: true}},
		{"undoing", "pool images is full", worker.Record{Strategy: "copy", Verdict: failed}},
		{"settling", "pool images is full; put off until 2026-03-04T05:06:07Z", worker.Record{Outcome: failed, Again: at}},
		{"failed", "pool images is full; passed over: undo-clone", worker.Record{Outcome: failed, Closed: true, Again: at,
			Left: []string{"undo-clone"}}},
		{"aside", `killed 2 workers in "flatten", the last was w2; ends at 2026-03-04T05:06:07Z unless replayed`,
			worker.Record{Strategy: "copy", Deaths: deaths, Aside: &worker.Aside{Activity: "flatten", Until: at}}},
		{"aside", `killed 0 workers in "flatten"; ends`, worker.Record{Aside: &worker.Aside{Activity: "flatten", Until: at}}},
		{"newer", "", worker.Record{Version: worker.RecordVersion + 1, Closed: true}},
		{"closed", "", worker.Record{Closed: true}},
	} {
		if got := state(c.r); got != c.state {
			t.Errorf("%+v is %q, want %q", c.r, got, c.state)
		}
		if got := why(c.r); !strings.HasPrefix(got, c.why) || c.why == "" && got != "" {
			t.Errorf("%s: %q, want %q", c.state, got, c.why)
		}
	}
}
