package strategiestest

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/cinderlift/cinderlift/strategies"
)

// Finder looks for what jobs left in a Cluster, as internal/ceph does in Ceph. Its sites are traces and look.
type Finder struct {
	Cluster *Cluster

	Made  map[string]time.Time // of traces, by Trace.String; all others were made long ago
	Users map[string][]string  // clients that have an image open, likewise
}

// LongAgo is when everything was made that Finder.Made does not have.
func LongAgo() time.Time { return time.Date(1999, 12, 31, 0, 0, 0, 0, time.UTC) }

// Traces lists the snapshots of ours and the images with our mark, see internal/ceph. Nothing here is half removed, so
// nobody is suspect.
func (f *Finder) Traces(
	ctx context.Context, pool string, _ func(imageID string) bool, seen func(done, total int),
) ([]strategies.Trace, error) {
	var list []strategies.Trace
	c := f.Cluster
	err := c.at(ctx, "traces", "look through pool "+pool, func() error {
		done := 0
		for at, im := range c.images {
			if at.Pool != pool {
				continue
			}
			list = append(list, f.of(at, im)...)
			done++
			seen(done, done)
		}

		return nil
	})
	slices.SortFunc(list, func(a, b strategies.Trace) int { return cmp.Compare(a.String(), b.String()) })

	return list, err
}

func (f *Finder) of(at strategies.Ref, im *image) []strategies.Trace {
	var list []strategies.Trace
	for name := range im.snaps {
		if id, ok := strategies.OfSnapshot(name); ok {
			t := strategies.Trace{
				Kind: strategies.TraceSnapshot, ImageID: id, At: at, ID: im.id, Children: f.Cluster.children(at, name),
			}
			list = append(list, f.dated(t))
		}
	}
	job, marked := im.mark(markJob)
	if marked && job == at.Image && strategies.IsImageID(job) {
		list = append(list, f.image(at, im, job))
	}

	return list
}

func (f *Finder) image(at strategies.Ref, im *image, job string) strategies.Trace {
	t := strategies.Trace{Kind: strategies.TraceImage, ImageID: job, At: at, ID: im.id, Marked: im.marked()}
	for name := range im.snaps {
		t.Children = append(t.Children, f.Cluster.children(at, name)...)
	}
	t.Users = f.Users[t.String()]

	return f.dated(t)
}

func (f *Finder) dated(t strategies.Trace) strategies.Trace {
	t.Made = LongAgo()
	if made, ok := f.Made[t.String()]; ok {
		t.Made = made
	}

	return t
}

// Look looks at one trace again, see internal/ceph.
func (f *Finder) Look(ctx context.Context, t strategies.Trace) (strategies.Trace, bool, error) {
	there := false
	c := f.Cluster
	err := c.at(ctx, "look", "look at "+t.String(), func() error {
		im := c.images[t.At]
		if im == nil {
			return nil
		}
		if t.Kind == strategies.TraceImage {
			there = c.foreign("", strategies.Make{Dst: t.At, Job: t.ImageID}, im) == nil
			t = f.image(t.At, im, t.ImageID)

			return nil
		}
		for _, now := range f.of(t.At, im) {
			if now.Kind == t.Kind && now.ImageID == t.ImageID && now.ID == t.ID {
				t, there = now, true
			}
		}

		return nil
	})

	return t, there && err == nil, err
}

// children lists the images that need the snapshot.
func (c *Cluster) children(at strategies.Ref, snap string) []strategies.Ref {
	var list []strategies.Ref
	for other, im := range c.images {
		if im.parent != nil && im.parent.at == at && im.parent.snap == snap {
			list = append(list, other)
		}
	}

	return list
}
