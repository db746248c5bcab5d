//go:build lab

package imageformat

import (
	_ "embed"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/internal/lab"
)

//go:embed testdata/oracle.py
var oracleScript string

// oracle is Glance's own code, asked one disk after the other.
type oracle struct {
	in       *json.Encoder
	out      *json.Decoder
	Release  int  `json:"release"`
	Inspects bool `json:"inspects"`
}

type question struct {
	Declared Format         `json:"declared"`
	Size     int64          `json:"size"`
	Parts    []questionPart `json:"parts"`
	Match    bool           `json:"match"`
	Nonfatal []string       `json:"nonfatal"`
	Chunk    int64          `json:"chunk,omitempty"`
}

type questionPart struct {
	At   int64  `json:"at"`
	Data []byte `json:"data"`
}

type answer struct {
	Refused  bool   `json:"refused"`
	Why      string `json:"why"`
	Bypassed bool   `json:"bypassed"`
}

// newOracle asks the Glance of the lab. With CINDERLIFT_ORACLE it asks that command instead, which has to run
// testdata/oracle.py on the Glance and oslo.utils of a release that no lab has.
func newOracle(t *testing.T) *oracle {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", os.Getenv("CINDERLIFT_ORACLE"))
	if os.Getenv("CINDERLIFT_ORACLE") == "" {
		l, err := lab.FromEnvironment()
		if err != nil {
			t.Fatal(err)
		}
		cmd = exec.CommandContext(t.Context(), l.Env["LAB_COMMAND"], "exec", l.Generation(), "python3", "-c", oracleScript)
	}
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait() // what it was to say was said, or the test has failed
	})
	o := &oracle{in: json.NewEncoder(in), out: json.NewDecoder(out)}
	if err := o.out.Decode(o); err != nil {
		t.Fatal(err)
	}

	return o
}

func (o *oracle) ask(t *testing.T, s sample, p Policy, declared Format, chunk int64) answer {
	t.Helper()
	q := question{Declared: declared, Size: s.size, Match: !p.AnyFormat, Nonfatal: p.Nonfatal, Chunk: chunk}
	for _, part := range s.parts {
		q.Parts = append(q.Parts, questionPart{part.at, part.data})
	}
	var a answer
	if err := errors.Join(o.in.Encode(q), o.out.Decode(&a)); err != nil {
		t.Fatal(err)
	}

	return a
}

// TestAgainstGlance compares with what Glance's own code does with the same disks, settings and declared format.
func TestAgainstGlance(t *testing.T) {
	o := newOracle(t)
	checks := Off
	if o.Release >= 30 {
		checks = Glance
	}
	if o.Inspects != (checks == Glance) {
		t.Errorf("Glance %d inspects: %v", o.Release, o.Inspects)
	}
	disks, seen := 12_000, map[string]int{}
	if !o.Inspects {
		disks = 500 // all of them are taken
	}
	r := rand.New(rand.NewPCG(12, 7))
	for n := range disks {
		s, name := mutant(r)
		p := Policy{Checks: checks, AnyFormat: r.IntN(5) == 0}
		if r.IntN(3) == 0 {
			p.Nonfatal = []string{"mbr"}
		}
		declared := Raw
		if r.IntN(5) == 0 {
			declared = QCOW2
		}
		f, err := Inspect(s, s.size)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := p.Judge(declared, f), o.ask(t, s, p, declared, 0)
		what := verdict(ours != nil) + ", Glance " + verdict(theirs.Refused)
		switch {
		case (ours != nil) == theirs.Refused:
		case ours != nil && theirs.Bypassed:
			what += ": its inspection broke down"
		case ours != nil && slices.Contains(f.Formats, VHDX):
			what += ": VHDX"
		default:
			t.Errorf("disk %d (%s, %d bytes) as %s with %+v: %v; Glance: %+v; found %+v", n, name, s.size, declared, p, ours, theirs, f)
		}
		seen[what]++
	}
	t.Logf("Glance %d: %v", o.Release, seen)
	for _, what := range []string{"taken, Glance taken", "refused, Glance refused"} {
		if seen[what] < disks/10 && (o.Inspects || what[0] == 't') {
			t.Errorf("only %d of %d disks were %s", seen[what], disks, what)
		}
	}
}

func verdict(refused bool) string {
	if refused {
		return "refused"
	}

	return "taken"
}

// TestPieces shows the two cases of the package comment in which Glance's answer depends on the pieces, and what it overlooks.
func TestPieces(t *testing.T) {
	o := newOracle(t)
	if !o.Inspects {
		t.Logf("Glance %d inspects nothing", o.Release)
	}
	p := Policy{Checks: Glance}
	flat := strings.Replace(descriptor, "monolithicSparse", "monolithicFlat", 1) + text(600)
	parent := strings.Replace(descriptor, "parentCID=ffffffff", "parentCID=12345678\nparentFileNameHint=\"/etc/passwd\"", 1) + "\x00"
	vhdx, mixed := samples()["vhdx"], sample{size: 128 << 10}.with(0, flat).with(100_000, "\xe4")
	for _, c := range []struct {
		name    string
		disk    sample
		chunk   int64
		refused bool
		ours    bool
	}{
		{"VHDX in pieces of 8 MiB", vhdx, 8 << 20, true, true},
		{"VHDX in pieces of 64 KiB", vhdx, 64 << 10, false, true},
		{"VHDX with other metadata", vhdx.with(2<<20, "METADATA"), 8 << 20, false, true},
		{"a descriptor before the first zero", mixed, 8 << 20, true, true},
		{"a descriptor and a byte beyond ASCII, together", mixed.with(int64(len(flat)), "\xe4"), 8 << 20, false, true},
		{"a descriptor and a byte beyond ASCII, apart", mixed.with(int64(len(flat)), "\xe4"), 600, true, true},
		{"a parent in a descriptor", samples()["vmdk sparse"].with(512, parent), 8 << 20, false, false},
	} {
		if a := o.ask(t, c.disk, p, Raw, c.chunk); a.Refused != (c.refused && o.Inspects) {
			t.Errorf("%s: Glance answers %+v", c.name, a)
		}
		f, err := Inspect(c.disk, c.disk.size)
		if err != nil || (p.Judge(Raw, f) != nil) != c.ours {
			t.Errorf("%s: %+v, %v; refused is to be %v", c.name, f, err, c.ours)
		}
	}
}
