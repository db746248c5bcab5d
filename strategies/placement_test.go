package strategies_test

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/strategies/strategiestest"
	"github.com/cinderlift/cinderlift/worker"
	"pgregory.net/rapid"
)

const other = "0d0e5f3c-1111-4222-8333-944455556666" // another cluster

// backends is a Cinder that tells where its backends are.
type backends map[string]strategies.Backend

func (b backends) Backend(_ context.Context, host string) (strategies.Backend, error) {
	return b[host], nil
}

// planning is a cloud of which only plans are asked.
type planning struct {
	ceph     *strategiestest.Cluster
	glance   *strategiestest.Glance
	backends backends
	memory   *strategies.Memory
	options  strategies.Options
	task     worker.Task
}

func newPlanning(t *testing.T) *planning {
	p := &planning{ceph: strategiestest.New(t), memory: &strategies.Memory{}}
	p.glance = strategiestest.NewGlance(p.ceph)
	p.glance.Add(imageID)
	p.glance.Shown = []strategies.Store{
		{ID: "fast", Type: "rbd", FSID: p.ceph.ID, Pool: "images-fast"},
		{ID: "usual", Type: "rbd", Default: true, FSID: p.ceph.ID, Pool: "images"},
		{ID: "far", Type: "rbd", FSID: other, Pool: "images"},
		{ID: "web", Type: "http"},
	}
	p.backends = backends{"h@ssd#ssd": {FSID: p.ceph.ID, Pool: "volumes"}, "h@far#far": {FSID: other, Pool: "volumes"}}
	for _, pool := range []string{"volumes", "mine"} {
		p.ceph.Put(t, strategies.Ref{Pool: pool, Image: source.Image}, strategiestest.Blueprint{Size: 2 * object, ObjectSize: object})
	}
	p.task = worker.Task{Job: request(), Volume: worker.Volume{ID: volumeID, Name: source.Image, Host: "h@ssd#ssd"}}

	return p
}

func (p *planning) strategies(t *testing.T) []worker.Strategy {
	t.Helper()
	list, err := strategies.Builtin(strategies.Deps{
		Source: p.ceph, Destination: p.ceph, Images: p.glance, Backends: p.backends, Memory: p.memory, Options: p.options,
		Formats: formats(),
	})
	if err != nil {
		t.Fatal(err)
	}

	return list
}

// answers is what each strategy says: what its plan keeps, or why it does not apply.
func (p *planning) answers(t *testing.T) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, s := range p.strategies(t) {
		plan, err := s.Plan(t.Context(), p.task)
		said[s.Name()] = string(plan.Keep)
		if err != nil {
			said[s.Name()] = string(worker.ReasonOf(err)) + ": " + err.Error()
		}
	}

	return said
}

func TestPlacement(t *testing.T) {
	const no = "not-applicable"
	src := func(pool string) string { return `"source":{"Pool":"` + pool + `","Image":"` + source.Image + `"}` }
	dst := func(pool string) string { return `"dest":{"Pool":"` + pool + `","Image":"` + imageID + `"}` }
	for _, c := range []struct {
		name      string
		set       func(p *planning)
		inCluster []string // what clone-flatten and copy say has to contain
		upload    []string
	}{
		{"all is told", func(*planning) {}, []string{src("volumes"), dst("images"), `"store":"usual"`, `"size":8192`},
			[]string{src("volumes"), `"size":8192`}},
		{"operator's volume pool before Cinder's", func(p *planning) { p.options.VolumePools = map[string]string{"ssd": "mine"} },
			[]string{src("mine")}, []string{src("mine")}},
		{"operator's volume pool for all others", func(p *planning) { p.options.VolumePools = map[string]string{"": "mine", "hdd": "x"} },
			[]string{src("mine")}, []string{src("mine")}},
		{"operator's image pool before Glance's", func(p *planning) { p.options.ImagePool = "golden" },
			[]string{dst("golden")}, []string{src("volumes")}},
		{"operator's cluster before Glance's", func(p *planning) { p.options.ImageFSID = other },
			[]string{no, other}, []string{src("volumes")}},
		{"operator's store before the default", func(p *planning) { p.options.StoreID = "fast" },
			[]string{dst("images-fast"), `"store":"fast"`}, []string{`"store":"fast"`}},
		{"type's store before the operator's", func(p *planning) { p.options.StoreID, p.task.Volume.StoreID = "usual", "fast" },
			[]string{dst("images-fast"), `"store":"fast"`}, []string{`"store":"fast"`}},
		{"operator's pool is not that of the type's store", func(p *planning) {
			p.options.ImagePool, p.task.Volume.StoreID = "golden", "fast"
		}, []string{dst("images-fast")}, []string{`"store":"fast"`}},
		{"operator's cluster is not that of the type's store", func(p *planning) {
			p.options.ImageFSID, p.task.Volume.StoreID = p.ceph.ID, "far"
		}, []string{no, other}, []string{`"store":"far"`}},
		{"store in another cluster", func(p *planning) { p.options.StoreID = "far" }, []string{no, "far", other},
			[]string{`"store":"far"`}},
		{"store of another type", func(p *planning) { p.options.StoreID = "web" }, []string{no, "http"}, []string{`"store":"web"`}},
		{"unknown store", func(p *planning) { p.options.StoreID = "gone" }, []string{no, "gone"}, []string{`"store":"gone"`}},
		{"Glance tells nothing", func(p *planning) { p.glance.Shown = nil }, []string{dst("images"), `"fsid":"`}, []string{src("volumes")}},
		{"Glance tells no pool of the only store", func(p *planning) {
			p.glance.Shown = []strategies.Store{{ID: "one", Type: "rbd"}}
		}, []string{dst("images"), `"store":"one"`}, []string{src("volumes")}},
		{"Glance tells no pool of the type's store", func(p *planning) {
			p.glance.Shown[0].Pool, p.task.Volume.StoreID = "", "fast"
		}, []string{no, "fast"}, []string{`"store":"fast"`}},
		{"no default among several", func(p *planning) { p.glance.Shown[1].Default = false }, []string{no}, []string{src("volumes")}},
		{"backend in another cluster", func(p *planning) { p.task.Volume.Host = "h@far#far" }, []string{no, other}, []string{no, other}},
		{"unknown backend", func(p *planning) { p.task.Volume.Host = "h@lvm#lvm" }, []string{no, "CINDERLIFT_VOLUME_POOLS"},
			[]string{no, "CINDERLIFT_VOLUME_POOLS"}},
		{"volume is not there", func(p *planning) { p.task.Volume.Name = "volume-gone" }, []string{"volume-missing"},
			[]string{"volume-missing"}},
		{"vmdk", func(p *planning) { p.task.Job.DiskFormat = "vmdk" }, []string{no, "vmdk"}, []string{no, "vmdk"}},
		{"a format with an encoder", func(p *planning) { p.task.Job.DiskFormat = strategiestest.FormatBox },
			[]string{no, strategiestest.FormatBox}, []string{src("volumes"), `"encoder":"box"`}},
		{"a container with an encoder", func(p *planning) { p.task.Job.ContainerFormat = "crate" },
			[]string{no, "raw/crate"}, []string{src("volumes"), `"encoder":"raw+crate"`}},
		{"a container with an encoder, encrypted", func(p *planning) {
			p.task.Job.ContainerFormat, p.task.Volume.Encrypted = "crate", true
		}, []string{no, "raw/crate"}, []string{no, "encrypted"}},
		{"a container whose encoder is not there", func(p *planning) { p.task.Job.ContainerFormat = "void" },
			[]string{no, "raw/void"}, []string{no, "raw/void"}},
		{"a format with an encoder, encrypted", func(p *planning) {
			p.task.Job.DiskFormat, p.task.Volume.Encrypted = strategiestest.FormatBox, true
		}, []string{no, strategiestest.FormatBox}, []string{no, "encrypted"}},
		{"a format with an encoder, in a container", func(p *planning) {
			p.task.Job.DiskFormat, p.task.Job.ContainerFormat = strategiestest.FormatBox, "ova"
		}, []string{no, "ova"}, []string{no, "ova"}},
		{"container", func(p *planning) { p.task.Job.ContainerFormat = "compressed" }, []string{no, "compressed"}, []string{no, "compressed"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlanning(t)
			c.set(p)
			said := p.answers(t)
			for name, want := range map[string][]string{
				strategies.NameCloneFlatten: c.inCluster, strategies.NameCopy: c.inCluster, strategies.NameExportUpload: c.upload,
			} {
				for _, part := range want {
					if !strings.Contains(said[name], part) {
						t.Errorf("%s says %s, want it to say %s", name, said[name], part)
					}
				}
			}
		})
	}
}

// TestKeptPlacement: once begun, neither another configuration nor another cloud moves the job; and nobody is asked.
func TestKeptPlacement(t *testing.T) {
	p := newPlanning(t)
	first := p.answers(t)
	p.options = strategies.Options{ImagePool: "golden", VolumePools: map[string]string{"": "mine"}, StoreID: "fast", ImageFSID: other}
	p.glance.Shown = nil
	p.task = worker.Task{Job: request()} // volume and image are gone
	down := func(site string) (error, error) { return errors.New("nobody may be asked: " + site), nil }
	p.ceph.Fail, p.glance.Fail = down, down
	for _, s := range p.strategies(t) {
		p.task.Kept = []byte(first[s.Name()])
		plan, err := s.Plan(t.Context(), p.task)
		if err != nil || string(plan.Keep) != first[s.Name()] {
			t.Errorf("%s keeps %s (%v), want %s", s.Name(), plan.Keep, err, first[s.Name()])
		}
		p.task.Kept = []byte("{")
		if _, err := s.Plan(t.Context(), p.task); worker.ReasonOf(err) != worker.ReasonInternal {
			t.Errorf("%s reads nonsense: %v", s.Name(), err)
		}
	}
}

func TestOrder(t *testing.T) {
	for _, c := range []struct {
		order []string
		ok    bool
	}{
		{nil, true},
		{strategies.All(), true},
		{[]string{"copy"}, true},
		{[]string{"copy", "copy"}, false},
		{[]string{"copy", "magic"}, false},
	} {
		list, err := strategies.Builtin(strategies.Deps{Options: strategies.Options{Order: c.order}})
		if (err == nil) != c.ok || (strategies.CheckOrder(c.order) == nil) != c.ok {
			t.Errorf("order %q: error %v", c.order, err)
		}
		for i, name := range c.order {
			if err == nil && list[i].Name() != name {
				t.Errorf("order %q: strategy %d is %s", c.order, i, list[i].Name())
			}
		}
	}
}

// TestLeftOut: a strategy that is not in the order begins nothing, but finishes what it began.
func TestLeftOut(t *testing.T) {
	p := newPlanning(t)
	kept := p.answers(t)
	p.options.Order = []string{"copy"}
	for name, said := range p.answers(t) {
		if begins := !strings.HasPrefix(said, "not-applicable"); begins != (name == "copy") {
			t.Errorf("%s says %s", name, said)
		}
	}
	for _, s := range p.strategies(t) {
		p.task.Kept = []byte(kept[s.Name()])
		if _, err := s.Plan(t.Context(), p.task); err != nil {
			t.Errorf("%s does not finish: %v", s.Name(), err)
		}
	}
}

// flattensFirst tells whether the plan is the late one.
func (p *planning) flattensFirst(t *testing.T) bool {
	t.Helper()
	plan, err := p.strategies(t)[0].Plan(t.Context(), p.task)
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Join(plan.Names(), " ")
	switch names {
	case "snapshot inspect protect clone seal register flatten release-source":
		return false
	case "snapshot inspect protect clone seal flatten register release-source":
		return true
	}
	t.Fatalf("steps are %s", names)

	return false
}

// register lets the plan come to its registration and answers what that says.
func (p *planning) register(t *testing.T) error {
	t.Helper()
	plan, err := p.strategies(t)[0].Plan(t.Context(), p.task)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range plan.Steps {
		err := s.Do(t.Context(), func(worker.Amount) {})
		if s.Name == strategies.StepRegister {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	return nil
}

func TestRegisterMode(t *testing.T) {
	for mode, late := range map[strategies.RegisterMode][2]bool{ // before and after Glance could not read a parent
		strategies.RegisterAuto: {false, true}, "": {false, true}, strategies.RegisterEarly: {false, false}, strategies.RegisterLate: {true, true},
	} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlanning(t)
				p.options.Register = mode
				if got := p.flattensFirst(t); got != late[0] {
					t.Errorf("at first the flatten comes first: %v", got)
				}
				err := p.register(t)
				var re *worker.Replan
				switch {
				case late[0] && err != nil:
					t.Errorf("late registration: %v", err)
				case mode == strategies.RegisterEarly && (errors.As(err, &re) || worker.ReasonOf(err) != worker.ReasonGlanceUnreadable):
					t.Errorf("the operator's early registration: %v", err)
				case !late[0] && mode != strategies.RegisterEarly && !errors.As(err, &re):
					t.Errorf("early registration: %v, want a replan", err)
				}
				if got := p.flattensFirst(t); got != late[1] {
					t.Errorf("afterwards the flatten comes first: %v", got)
				}
				<-time.After(9 * time.Minute)
				if got := p.flattensFirst(t); got != late[1] {
					t.Errorf("nine minutes later the flatten comes first: %v", got)
				}
				<-time.After(2 * time.Minute)
				if got := p.flattensFirst(t); got != late[0] {
					t.Errorf("a while later the flatten comes first: %v", got)
				}
			})
		})
	}
}

// TestMemoryIsPerPool: what Glance may not read in one pool says nothing of another.
func TestMemoryIsPerPool(t *testing.T) {
	p := newPlanning(t)
	_ = p.register(t)
	p.options.VolumePools = map[string]string{"ssd": "mine"}
	if p.flattensFirst(t) {
		t.Error("another pool is taken for unreadable")
	}
}

func TestNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := strategies.SourceSnapshot(rapid.StringMatching(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`).Draw(t, "id"))
		if strings.HasSuffix(name, ".clone_snap") || strings.HasPrefix(name, "backup.") || strings.ContainsAny(name, "@/") {
			t.Fatalf("Cinder takes %q for its own", name)
		}
	})
}

// TestLocation: Glance finds the four parts again, whatever the pool is called, by splitting at slashes and unquoting.
func TestLocation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := []string{
			rapid.StringMatching(`[0-9a-f-]{36}`).Draw(t, "fsid"), rapid.StringN(1, 20, -1).Draw(t, "pool"),
			rapid.StringN(1, 20, -1).Draw(t, "image"), strategies.GlanceSnapshot,
		}
		location := strategies.Location(parts[0], strategies.Ref{Pool: parts[1], Image: parts[2]})
		rest, ok := strings.CutPrefix(location, "rbd://")
		pieces := strings.Split(rest, "/")
		if !ok || len(pieces) != 4 {
			t.Fatalf("location is %s", location)
		}
		for i, piece := range pieces {
			// glance_store 5e56164 _drivers/rbd.py: urllib.parse.unquote, which leaves + alone as PathUnescape does.
			if got, err := url.PathUnescape(piece); err != nil || got != parts[i] {
				t.Fatalf("part %d of %s is %q (%v), want %q", i, location, got, err, parts[i])
			}
		}
		for _, r := range location {
			if r <= ' ' || r > '~' {
				t.Fatalf("location %q has %q in it", location, r)
			}
		}
	})
}
