// Package writestest keeps the tables complete in which an adapter's tests name the two failures of each of its writes to
// another system: not applied, and applied but reported failed.
package writestest

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

// Check fails when a write of the package in the working directory has no row in writes, or a row no test. A row is
// "<function> <what it calls>", with the tests of its faults. A write is a call of one of these names, or a constant
// Method… of net/http among them.
func Check(t *testing.T, writes map[string][]string, names ...string) {
	t.Helper()
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
					writesOf(fn, names, found)
				}
			}
		}
	}
	if got, want := slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(writes)); !slices.Equal(got, want) {
		t.Errorf("the writes of this package are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for write, rows := range writes {
		for _, name := range rows {
			if !tests[name] {
				t.Errorf("%s: there is no %s", write, name)
			}
		}
	}
}

// writesOf finds what changes something.
func writesOf(fn *ast.FuncDecl, names []string, found map[string]bool) {
	ast.Inspect(fn, func(n ast.Node) bool {
		if c, ok := n.(*ast.CallExpr); ok {
			n = c.Fun
		} else if s, ok := n.(*ast.SelectorExpr); !ok || !strings.HasPrefix(s.Sel.Name, "Method") {
			return true
		}
		s, ok := n.(*ast.SelectorExpr)
		if ok && slices.Contains(names, s.Sel.Name) {
			found[fn.Name.Name+" "+s.Sel.Name] = true
		}

		return true
	})
}
