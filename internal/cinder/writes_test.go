package cinder

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
)

// writes names every place of this package from which something is changed in another system, and the tests in which that
// change is not applied, and applied but reported failed. Both are handled by looking: at what the write was for, or by
// doing again what may be done twice.
func writes() map[string][]string {
	return map[string][]string{
		// A request over REST.
		"reset MethodPost": {"TestRESTResetStatusFaults", "TestRESTResetStatusRaces"},

		// What is settled: the result, the hand-back, the event, the image, the volume. The user message of a failure is
		// cinder-volume's, which gets the result; there is no REST request for one.
		"reply Reply":      {"TestFaultMatrix", "TestLostResult"},
		"castDone Cast":    {"TestFaultMatrix", "TestLostResult"},
		"handBack Cast":    {"TestFaultMatrix", "TestHandBackOnceOnly", "TestHandBackHasOneID"},
		"notify Notify":    {"TestFaultMatrix", "TestNotification"},
		"discard Discard":  {"TestFaultMatrix"},
		"free ResetStatus": {"TestFaultMatrix", "TestFreeingFaults"},

		// A caller that waits; a heartbeat too many or too few is harmless.
		"Attend Heartbeat":  {"TestAttend"},
		"Attend Heartbeats": {"TestAttend"},

		// What is taken from the queue: a message that is not settled comes again.
		"reject Reply":      {"TestRejectFaults"},
		"reject DeadLetter": {"TestRejectFaults", "TestRejectOfWhatIsGone"},
		"Reject Requeue":    {"TestRejectFaults", "TestRejectGivesBackWhenStopped"},

		// Handed through to internal/oslo, whose table has them.
		"Ack Ack":               {"TestOverRabbitMQ"}, //nolint:dupword // the caller and what it calls
		"Requeue Requeue":       {"TestOverRabbitMQ"}, //nolint:dupword // the caller and what it calls
		"DeadLetter DeadLetter": {"TestOverRabbitMQ"}, //nolint:dupword // the caller and what it calls
		"Heartbeat Publish":     {"TestOverRabbitMQ"},
	}
}

// TestEveryWriteHasItsFaults fails when a write has no row, or a row no test.
func TestEveryWriteHasItsFaults(t *testing.T) {
	found, tests := map[string]bool{}, map[string]bool{}
	files := token.NewFileSet()
	packages, err := parser.ParseDir(files, ".", func(i fs.FileInfo) bool { return true }, 0) //nolint:staticcheck // one directory, no build tags
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packages {
		for path, f := range p.Files {
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				switch {
				case !ok:
				case strings.HasSuffix(path, "_test.go"):
					tests[fn.Name.Name] = true
				default:
					writesOf(fn, found)
				}
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(writes())); !slices.Equal(got, want) {
		t.Errorf("the writes of this package are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for write, names := range writes() {
		for _, name := range names {
			if !tests[name] {
				t.Errorf("%s: there is no %s", write, name)
			}
		}
	}
}

// writesOf finds what changes something: a request that is no GET, a message, the end of one, and what the services are asked for.
func writesOf(fn *ast.FuncDecl, found map[string]bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			n = c.Fun
		} else if s, ok := n.(*ast.SelectorExpr); !ok || !strings.HasPrefix(s.Sel.Name, "Method") {
			return true
		}
		s, ok := n.(*ast.SelectorExpr)
		if ok && slices.Contains([]string{"MethodPost", "MethodPut", "MethodPatch", "MethodDelete", "Cast", "Reply", "Notify", "Heartbeat", "Heartbeats", "ResetStatus", "Discard", "DeadLetter", "Ack", "Requeue", "Publish"}, s.Sel.Name) {
			found[fn.Name.Name+" "+s.Sel.Name] = true
		}

		return true
	})
}
