package arrows

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/cinderlift/cinderlift/"

// arrows says which of our packages a package may import. Imports only go down: an adapter knows what it adapts and the
// contracts it fulfils, and nothing else.
func arrows() map[string][]string {
	return map[string][]string{
		"worker":            {},
		"strategies":        {"internal/imageformat", "worker"},
		"internal/oslo":     {},
		"internal/keystone": {"worker"},
		"metrics":           {"worker"},
		"glance":            {"internal/keystone", "strategies", "worker"},
		"internal/cinder":   {"internal/keystone", "internal/oslo", "strategies", "worker"},
		"internal/ceph":     {"internal/imageformat", "strategies", "worker"},
		"internal/reap":     {"strategies", "worker"},
		"cmd/cinderlift": {"glance", "internal/ceph", "internal/cinder", "internal/gzipped", "internal/imageformat", "internal/keystone",
			"internal/oslo", "internal/qcow2", "internal/reap", "metrics", "strategies", "worker"},
		"internal/imageformat": {},
		"internal/qcow2":       {},
		"internal/gzipped":     {},

		// Test kits and the lab's driver: nothing of the product imports them.
		"worker/workertest":              {"worker"},
		"strategies/strategiestest":      {"internal/imageformat", "strategies", "worker"},
		"internal/lab":                   {"internal/keystone"},
		"internal/arrows":                {},
		"internal/writestest":            {},
		"deployments/demo":               {"internal/lab"},
		"deployments/audit":              {"internal/lab"},
		"deployments/chaos":              {"internal/keystone", "internal/lab", "internal/oslo"},
		"deployments/bench":              {"internal/keystone", "internal/lab"},
		"glance/glancetest":              {},
		"internal/keystone/keystonetest": {"internal/keystone"},
		"internal/cinder/cindertest":     {},
	}
}

// owners says which package alone may import an outside dependency.
func owners() map[string][]string {
	return map[string][]string{
		"github.com/rabbitmq/amqp091-go":       {"internal/oslo"},
		"github.com/ceph/go-ceph":              {"internal/ceph"},
		"github.com/gophercloud/gophercloud":   {"internal/keystone", "cmd/cinderlift"},
		"github.com/prometheus/client_golang":  {"metrics"},
		"github.com/kelseyhightower/envconfig": {"cmd/cinderlift"},
		"github.com/spf13/cobra":               {"cmd/cinderlift"},
		"github.com/klauspost/compress":        {"internal/qcow2"},
		"github.com/klauspost/pgzip":           {"internal/gzipped"},
		"github.com/google/uuid":               {"internal/oslo", "internal/cinder"},
		"C":                                    {"internal/ceph"},
	}
}

type pkg struct {
	name    string
	imports []string
}

// packages lists ours with what they import outside of tests. Files behind build tags count as well.
func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-e", "-tags", "lab", "-f", `{{.ImportPath}} {{join .Imports " "}}`,
		module+"...").Output()
	if err != nil {
		t.Fatalf("list packages: %v", err)
	}
	var list []pkg
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		list = append(list, pkg{strings.TrimPrefix(f[0], module), f[1:]})
	}
	if len(list) < 8 {
		t.Fatalf("only %d packages found", len(list))
	}

	return list
}

// TestArrows keeps the arrows of the package diagram pointing one way. Go's test cache does not see that `go list` would
// answer differently: run it with -count=1.
func TestArrows(t *testing.T) {
	may := arrows()
	for _, p := range packages(t) {
		allowed, known := may[p.name]
		if !known {
			t.Errorf("package %s is not on the diagram: say in arrows() what it may import", p.name)
		}
		for _, i := range p.imports {
			if ours, ok := strings.CutPrefix(i, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which is not below it", p.name, ours)
			}
		}
	}
}

// TestOwners keeps each outside dependency in one package, and worker and strategies free of any.
func TestOwners(t *testing.T) {
	for _, p := range packages(t) {
		for _, i := range p.imports {
			outside := strings.Contains(strings.Split(i, "/")[0], ".") && !strings.HasPrefix(i, module)
			if outside && (p.name == "worker" || p.name == "strategies") {
				t.Errorf("%s imports %s; it is to need the standard library only", p.name, i)
			}
			for dep, owner := range owners() {
				if (i == dep || strings.HasPrefix(i, dep+"/")) && owner != nil && !slices.Contains(owner, p.name) {
					t.Errorf("%s imports %s, which belongs to %s", p.name, i, strings.Join(owner, ", "))
				}
			}
		}
	}
}
