package strategiestest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Clone implements strategies.Destination.
func (c *Cluster) Clone(ctx context.Context, m strategies.Make) error {
	c.names(m)
	op := "clone " + m.Dst.String()
	done := false
	err := c.at(ctx, "clone", op, func() (err error) {
		done, err = c.makeClone(op, m)

		return err
	})
	if err != nil {
		return err
	}
	if !done {
		if err := c.mark(ctx, "clone.mark", op, m, markJob); err != nil {
			return err
		}
	}

	return c.at(ctx, "clone.clean", op, func() error {
		im := c.images[m.Dst]
		for key := range im.meta {
			if _, ours := im.mark(key); strings.HasPrefix(key, "conf_") || strings.HasPrefix(key, "cinderlift.") && !ours {
				delete(im.meta, key)
			}
		}

		return nil
	})
}

// makeClone leaves a clone without a mark, unless Dst is one that an earlier try has marked.
func (c *Cluster) makeClone(op string, m strategies.Make) (done bool, err error) {
	if im := c.images[m.Dst]; im != nil {
		if err := c.foreign(op, m, im); err != nil {
			return false, err
		}
		_, sealed := im.mark(markSealed)
		if !c.outdated(m, im) && (sealed || im.marked() && im.parent != nil) {
			return true, nil
		}
	}
	src, err := c.volume("clone", m.Src)
	if err != nil {
		return false, err
	}
	snap := src.snaps[m.Snapshot]
	if snap == nil || !snap.protected {
		return false, fault(op, worker.ReasonCephRefused, worker.OtherWay, fmt.Errorf("%s@%s is not protected", m.Src, m.Snapshot))
	}
	c.touch(m.Dst, "replacement")
	c.nextID++
	c.images[m.Dst] = &image{
		id: fmt.Sprint(c.nextID), size: snap.size, objectSize: max(src.objectSize, m.ObjectSize),
		objects: map[int64][]byte{}, parent: &parent{m.Src, m.Snapshot}, overlap: snap.size,
		snaps: map[string]*version{}, meta: maps.Clone(src.meta),
	}

	return false, nil
}

// foreign answers an error unless the image bears our mark or can only be an empty remainder of our own try.
func (c *Cluster) foreign(op string, m strategies.Make, im *image) error {
	job, marked := im.mark(markJob)
	if job == m.Job && marked || !marked && im.empty() {
		return nil
	}

	return fault(op, worker.ReasonConflict, worker.GiveUp, fmt.Errorf("%s was not made for job %s", m.Dst, m.Job))
}

func (c *Cluster) mark(ctx context.Context, site, op string, m strategies.Make, key string) error {
	return c.at(ctx, site, op, func() error {
		if im := c.images[m.Dst]; key != markJob {
			im.setMark(key, m.Job, "")
		} else if !im.marked() {
			im.setMark(key, m.Job, c.identity(m))
		}

		return nil
	})
}

// names checks that everything is named after the job.
func (c *Cluster) names(m strategies.Make) {
	if m.Dst.Image != m.Job || m.Snapshot != strategies.SourceSnapshot(m.Job) {
		c.t.Errorf("strategiestest: job %s works on %s@%s and %s, which are not named after it", m.Job, m.Src, m.Snapshot, m.Dst)
	}
}

// CopyObjects implements strategies.Destination.
func (c *Cluster) CopyObjects(ctx context.Context, m strategies.Make, p worker.Progress) error {
	c.names(m)
	op := "copy to " + m.Dst.String()
	var todo []int64
	err := c.at(ctx, "copy.create", op, func() (err error) {
		todo, err = c.makeCopy(op, m)

		return err
	})
	if err != nil {
		return err
	}
	if err := c.mark(ctx, "copy.mark", op, m, markJob); err != nil {
		return err
	}
	if err := c.fill(ctx, "copy.object", op, m, todo, p); err != nil {
		return err
	}

	return c.mark(ctx, "copy.finish", op, m, markCopied)
}

// makeCopy makes Dst unless an earlier try has, and lists the objects that it lacks.
func (c *Cluster) makeCopy(op string, m strategies.Make) ([]int64, error) {
	im := c.images[m.Dst]
	if im != nil {
		if err := c.foreign(op, m, im); err != nil {
			return nil, err
		}
		if _, copied := im.mark(markCopied); copied && !c.outdated(m, im) {
			return nil, nil
		}
	}
	src, err := c.volume("copy", m.Src)
	if err != nil {
		return nil, err
	}
	snap := src.snaps[m.Snapshot]
	if snap == nil {
		return nil, fault(op, worker.ReasonMismatch, worker.GiveUp, errNoSnapshot)
	}
	if im == nil || !im.marked() || im.parent != nil || c.outdated(m, im) {
		c.touch(m.Dst, "replacement")
		im = c.blank(snap.size, cmp.Or(m.ObjectSize, src.objectSize))
		c.images[m.Dst] = im
	}

	return c.missing(im, src, snap), nil
}

func (c *Cluster) blank(size, objectSize int64) *image {
	c.nextID++

	return &image{
		id: fmt.Sprint(c.nextID), size: size, objectSize: objectSize, objects: map[int64][]byte{},
		snaps: map[string]*version{}, meta: map[string]string{},
	}
}

// missing lists the objects of im that hold data in the source and are not there.
func (c *Cluster) missing(im, src *image, snap *version) []int64 {
	var list []int64
	for n := range cut(c.read(src, snap), im.objectSize) {
		if im.objects[n] == nil {
			list = append(list, n)
		}
	}
	slices.Sort(list)

	return list
}

// cut makes objects of bytes.
func cut(data []byte, size int64) map[int64][]byte {
	objects, zero := map[int64][]byte{}, make([]byte, size)
	for n := int64(0); n*size < int64(len(data)); n++ {
		part := data[n*size : min((n+1)*size, int64(len(data)))]
		if !slices.Equal(part, zero[:len(part)]) {
			objects[n] = part
		}
	}

	return objects
}

// fill copies objects into the head and into snapshots taken earlier, one site each.
func (c *Cluster) fill(ctx context.Context, site, op string, m strategies.Make, todo []int64, p worker.Progress) error {
	var a worker.Amount
	for _, n := range todo {
		err := c.at(ctx, site, op, func() error {
			im, src := c.images[m.Dst], c.images[m.Src]
			if im == nil || src == nil || src.snaps[m.Snapshot] == nil {
				return fault(op, worker.ReasonMismatch, worker.GiveUp, errNoImage)
			}
			data := c.read(src, src.snaps[m.Snapshot])
			object := data[n*im.objectSize : min((n+1)*im.objectSize, im.size)]
			im.objects[n] = object
			for _, v := range im.snaps {
				v.objects[n] = object
			}
			a.Total = int64(len(todo)) * im.objectSize
			a.Done += im.objectSize
			a.Cluster += int64(len(object))

			return nil
		})
		if err != nil {
			return err
		}
		if p != nil {
			p(a)
		}
	}

	return nil
}

// Seal implements strategies.Destination.
func (c *Cluster) Seal(ctx context.Context, m strategies.Make) error {
	c.names(m)
	op := "seal " + m.Dst.String()
	err := c.at(ctx, "seal.snapshot", op, func() error {
		im := c.images[m.Dst]
		if im == nil {
			return fault(op, worker.ReasonMismatch, worker.GiveUp, errNoImage)
		}
		job, _ := im.mark(markJob)
		_, copied := im.mark(markCopied)
		_, sealed := im.mark(markSealed)
		if job != m.Job || c.outdated(m, im) || !sealed && !copied && im.parent == nil {
			return fault(op, worker.ReasonMismatch, worker.GiveUp, fmt.Errorf("%s is not finished", m.Dst))
		}
		if im.snaps[strategies.GlanceSnapshot] == nil {
			c.snap(im, strategies.GlanceSnapshot)
		}

		return nil
	})
	if err != nil {
		return err
	}
	err = c.at(ctx, "seal.protect", op, func() error {
		c.images[m.Dst].snaps[strategies.GlanceSnapshot].protected = true

		return nil
	})
	if err != nil {
		return err
	}

	return c.mark(ctx, "seal.mark", op, m, markSealed)
}

// Flatten implements strategies.Destination.
func (c *Cluster) Flatten(ctx context.Context, m strategies.Make, p worker.Progress) error {
	c.names(m)
	op := "flatten " + m.Dst.String()
	c.mu.Lock()
	im, src := c.images[m.Dst], c.images[m.Src]
	sealed, flat := c.sealed(m, im), im != nil && im.parent == nil
	var todo []int64
	if sealed && !flat {
		todo = c.missing(im, src, src.snaps[m.Snapshot])
	}
	c.mu.Unlock()
	if !sealed {
		return fault(op, worker.ReasonMismatch, worker.GiveUp, fmt.Errorf("%s is not sealed", m.Dst))
	}
	if flat {
		return nil
	}
	if err := c.fill(ctx, "flatten.object", op, m, todo, p); err != nil {
		return err
	}

	return c.at(ctx, "flatten.detach", op, func() error {
		im.parent, im.overlap = nil, 0
		for _, v := range im.snaps {
			v.overlap = 0
		}

		return nil
	})
}

func (c *Cluster) sealed(m strategies.Make, im *image) bool {
	if im == nil {
		return false
	}
	job, ours := im.mark(markSealed)
	snap := im.snaps[strategies.GlanceSnapshot]

	return ours && job == m.Job && !c.outdated(m, im) && snap != nil && snap.protected
}

// Complete implements strategies.Destination.
func (c *Cluster) Complete(ctx context.Context, m strategies.Make, flat bool) (bool, error) {
	c.names(m)
	yes := false
	err := c.at(ctx, "complete", "look at "+m.Dst.String(), func() error {
		im := c.images[m.Dst]
		yes = c.sealed(m, im) && (!flat || im.parent == nil)

		return nil
	})

	return yes && err == nil, err
}

// Prepare implements strategies.Destination.
func (*Cluster) Prepare(strategies.Make) {}

// Discard implements strategies.Destination.
func (c *Cluster) Discard(ctx context.Context, m strategies.Make) error {
	c.names(m)
	op := "discard " + m.Dst.String()
	gone := false
	err := c.at(ctx, "discard.unprotect", op, func() error {
		im := c.images[m.Dst]
		if gone = im == nil; gone {
			return nil
		}
		if err := c.foreign(op, m, im); err != nil {
			return err
		}
		if child := c.child(m.Dst, strategies.GlanceSnapshot); child != "" {
			return fault(op, worker.ReasonCephRefused, worker.Retry, fmt.Errorf("%s depends on it", child))
		}
		c.touch(m.Dst, "removal")
		if snap := im.snaps[strategies.GlanceSnapshot]; snap != nil {
			snap.protected = false
		}

		return nil
	})
	if err != nil || gone {
		return err
	}
	err = c.at(ctx, "discard.snapshot", op, func() error {
		delete(c.images[m.Dst].snaps, strategies.GlanceSnapshot)

		return nil
	})
	if err != nil {
		return err
	}

	return c.at(ctx, "discard.image", op, func() error {
		delete(c.images, m.Dst)

		return nil
	})
}
