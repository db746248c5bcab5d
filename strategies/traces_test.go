package strategies_test

import (
	"encoding/json"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
)

// TestOfSnapshot: what merely looks like a name of ours is somebody else's.
func TestOfSnapshot(t *testing.T) {
	const id = "6f1b1d3e-0000-4000-8000-00000000000a"
	for name, want := range map[string]bool{
		strategies.SourceSnapshot(id): true,
		id:                            false,
		"cinderlift.":                 false,
		"cinderlift.test":             false,
		"cinderlift." + id + ".old":   false,
		"cinderlift.6F1B1D3E-0000-4000-8000-00000000000A": false,
		"cinderlift.6f1b1d3e+0000-4000-8000-00000000000a": false,
		"cinderlift.6f1b1d3e-0000-4000-8000-0000000000zz": false,
		"xcinderlift." + id: false,
		"":                  false,
	} {
		got, ok := strategies.OfSnapshot(name)
		if ok != want || ok && got != id {
			t.Errorf("OfSnapshot(%q) = %q, %v, want %v", name, got, ok, want)
		}
	}
}

// TestKept: the places come out of the journal as the strategies wrote them.
func TestKept(t *testing.T) {
	raw := json.RawMessage(`{"source":{"Pool":"volumes","Image":"volume-1"},"dest":{"Pool":"images","Image":"i"},"fsid":"f","size":3}`)
	got, err := strategies.Kept(raw)
	want := strategies.Parts{
		Source: strategies.Ref{Pool: "volumes", Image: "volume-1"}, Dest: strategies.Ref{Pool: "images", Image: "i"}, FSID: "f",
	}
	if err != nil || got != want {
		t.Errorf("Kept = %+v, %v, want %+v", got, err, want)
	}
	if got, err := strategies.Kept(nil); err != nil || got != (strategies.Parts{}) {
		t.Errorf("Kept of nothing = %+v, %v", got, err)
	}
	if _, err := strategies.Kept(json.RawMessage(`[]`)); err == nil {
		t.Error("Kept read what is no placement")
	}
}
