package oslo

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
		// What is published; whoever asked for it gets ErrNotConfirmed and decides.
		"Publish publish":    {"TestPublishFaults"},
		"Cast publish":       {"TestPublishFaults"},
		"Reply publish":      {"TestPublishFaults", "TestDeadReplyQueue"},
		"heartbeat publish":  {"TestPublishFaults", "TestHeartbeats"},
		"answerPing publish": {"TestPublishFaults"}, // a probe that gets no answer has failed as it should
		"DeadLetter publish": {"TestDeadLetterFaults"},
		"replace publish":    {"TestCountingFaults"},
		"renew publish":      {"TestDeadFaults"},
		"replay publish":     {"TestDeadFaults"},

		"publish send": {"TestPublishFaults"},
		"notify send":  {"TestPublishFaults"}, // a listener knows a message_id that it has seen
		"probe send":   {"TestProbe"},         // goes nowhere

		// How a message ends; one that did not comes again.
		"Ack Ack":         {"TestTakingSurvivesEveryCut"}, //nolint:dupword // the caller and what it calls
		"answerPing Ack":  {"TestTakingSurvivesEveryCut"},
		"DeadLetter Ack":  {"TestDeadLetterFaults"},
		"replace Ack":     {"TestCountingFaults"},
		"remove Ack":      {"TestDeadFaults"},
		"Requeue Requeue": {"TestCountingFaults", "TestGiveBackToABlockedBroker"}, //nolint:dupword // the caller and what it calls

		// The seam to the library, and the two places that publish over it.
		"write Publish":                      {"TestPublishFaults"},
		"publish Publish":                    {"TestDeadFaults"},
		"Publish PublishWithDeferredConfirm": {"TestSuiteOnRabbitMQ"},
		"Requeue Nack":                       {"TestSuiteOnRabbitMQ"},
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

// writesOf finds what changes something: a publish, or the end of a message.
func writesOf(fn *ast.FuncDecl, found map[string]bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			n = c.Fun
		} else if s, ok := n.(*ast.SelectorExpr); !ok || !strings.HasPrefix(s.Sel.Name, "Method") {
			return true
		}
		s, ok := n.(*ast.SelectorExpr)
		if ok && slices.Contains([]string{"publish", "Publish", "Ack", "Requeue", "PublishWithDeferredConfirm", "Nack", "send"}, s.Sel.Name) {
			found[fn.Name.Name+" "+s.Sel.Name] = true
		}

		return true
	})
}
