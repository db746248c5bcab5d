package strategiestest

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

func fakeRig(t testing.TB) (Rig, *Cluster) {
	var n atomic.Int64
	c := New(t)

	return Rig{
		Source: c, Destination: c, Backdoor: c, Volumes: "volumes", Images: "images", ObjectSize: objectSize,
		ID: func() string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", n.Add(1)) },
	}, c
}

func TestFake(t *testing.T) {
	r, _ := fakeRig(t)
	Run(t, r)
}

// TestEverySite lets each site fail, not applied and applied, and goes on: the image has to come out right.
func TestEverySite(t *testing.T) {
	boom := errors.New("boom")
	seen := map[string]bool{}
	for _, site := range Sites() {
		for _, applied := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s applied=%v", site, applied), func(t *testing.T) {
				r, c := fakeRig(t)
				c.Fail = func(at string) (error, error) {
					switch {
					case at != site || seen[t.Name()]:
						return nil, nil
					case applied:
						seen[t.Name()] = true

						return nil, boom
					default:
						seen[t.Name()] = true

						return boom, nil
					}
				}
				throughAll(t, r)
				if !seen[t.Name()] {
					t.Errorf("nothing came by the site %s", site)
				}
				if left := c.Audit(); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	}
}

// throughAll makes an image in both ways, trying each call until it succeeds.
func throughAll(t *testing.T, r Rig) {
	again := func(fn func() error) {
		t.Helper()
		if err := fn(); err != nil {
			must(t, "second try", fn())
		}
	}
	ctx := t.Context()
	for _, way := range []string{"clone", "copy"} {
		src := r.volume(t, 5*r.ObjectSize, 0, 2)
		want := r.Backdoor.Read(t, src, "")
		id := r.ID()
		m := strategies.Make{Src: src, Snapshot: strategies.SourceSnapshot(id), Dst: strategies.Ref{Pool: r.Images, Image: id}, Job: id}
		again(func() error { return r.Source.Snapshot(ctx, src, m.Snapshot) })
		again(func() error { _, err := r.Source.Inspect(ctx, src, m.Snapshot); return err })
		again(func() error { return r.Source.Protect(ctx, src, m.Snapshot) })
		if way == "clone" {
			again(func() error { return r.Destination.Clone(ctx, m) })
		} else {
			again(func() error { return r.Destination.CopyObjects(ctx, m, nil) })
		}
		again(func() error { return r.Destination.Seal(ctx, m) })
		again(func() error { return r.Destination.Flatten(ctx, m, nil) })
		wantComplete(t, r, m, true, true)
		again(func() error { return r.Source.Release(ctx, src, m.Snapshot) })
		if !slices.Equal(r.Backdoor.Read(t, m.Dst, strategies.GlanceSnapshot), want) {
			t.Errorf("%s: wrong bytes", way)
		}
		again(func() error { return r.Destination.Discard(ctx, m) })
	}
}

// spy records what the fake complains about.
type spy struct {
	testing.TB
	said []string
}

func (s *spy) Errorf(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf(format, args...))
}

func TestInvariants(t *testing.T) {
	for name, crime := range map[string]func(*testing.T, Rig, *Glance, strategies.Make){
		"register what is not sealed": func(t *testing.T, r Rig, g *Glance, m strategies.Make) {
			must(t, "clone", r.Destination.Clone(t.Context(), m))
			must(t, "register", g.Register(t.Context(), m.Job, strategies.Location(g.c.ID, m.Dst), 5*r.ObjectSize))
		},
		"register with a wrong size": func(t *testing.T, r Rig, g *Glance, m strategies.Make) {
			must(t, "clone", r.Destination.Clone(t.Context(), m))
			must(t, "seal", r.Destination.Seal(t.Context(), m))
			must(t, "register", g.Register(t.Context(), m.Job, strategies.Location(g.c.ID, m.Dst), 1))
		},
		"discard an active image": func(t *testing.T, r Rig, g *Glance, m strategies.Make) {
			must(t, "clone", r.Destination.Clone(t.Context(), m))
			must(t, "seal", r.Destination.Seal(t.Context(), m))
			must(t, "register", g.Register(t.Context(), m.Job, strategies.Location(g.c.ID, m.Dst), 5*r.ObjectSize))
			must(t, "discard", r.Destination.Discard(t.Context(), m))
		},
		"a name of another job": func(t *testing.T, r Rig, _ *Glance, m strategies.Make) {
			m.Dst.Image = "volume-of-somebody"
			must(t, "clone", r.Destination.Clone(t.Context(), m))
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := &spy{TB: t}
			r, c := fakeRig(s)
			g := NewGlance(c)
			g.ReadsParents = true
			m := prepared(t, r, r.volume(t, 5*r.ObjectSize, 1))
			g.Add(m.Job)
			crime(t, r, g, m)
			if len(s.said) == 0 {
				t.Error("the fake did not notice")
			}
		})
	}
}

func TestGlance(t *testing.T) {
	r, c := fakeRig(t)
	g := NewGlance(c)
	m := prepared(t, r, r.volume(t, 5*r.ObjectSize, 1))
	at := strategies.Location(c.ID, m.Dst)
	register := func() error { return g.Register(t.Context(), m.Job, at, 5*r.ObjectSize) }
	wantReason(t, "register without an image", register(), worker.ReasonImageMissing)
	g.Add(m.Job)
	must(t, "clone", r.Destination.Clone(t.Context(), m))
	must(t, "seal", r.Destination.Seal(t.Context(), m))
	wantReason(t, "register a clone", register(), worker.ReasonGlanceUnreadable)
	must(t, "flatten", r.Destination.Flatten(t.Context(), m, nil))
	must(t, "register", register())
	must(t, "register again", register())
	got, err := g.Data(m.Job)
	must(t, "data", err)
	if !slices.Equal(got, r.Backdoor.Read(t, m.Src, "")) {
		t.Error("Glance has other bytes")
	}
	content, err := r.Source.Open(t.Context(), m.Src, m.Snapshot)
	must(t, "open", err)
	wantReason(t, "upload over active",
		g.Upload(t.Context(), m.Job, "", content, content.Size(), nil), worker.ReasonImageState)
}
