package strategiestest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Glance is a Glance in memory with an RBD store in a Cluster. It checks what it is told to register.
type Glance struct {
	// Fail injects faults at the sites image, stores, inspects, register and upload; nil for none.
	Fail Fault

	// ReadsParents says whether Glance's key may read the volumes pool; Ceph's documented caps do not allow it.
	ReadsParents bool

	// Inspecting says whether uploads are inspected, as releases from 30.0.0 on do; with the default settings.
	Inspecting bool

	// Decode makes the disk of uploaded data; nil: they are it.
	Decode func(data []byte) []byte

	// Shown is what Stores answers.
	Shown []strategies.Store

	c *Cluster

	mu     sync.Mutex
	images map[string]*glanceImage
}

type glanceImage struct {
	status   string
	location string
	data     []byte // uploaded
}

var _ strategies.Images = (*Glance)(nil)

// NewGlance makes a Glance without images.
func NewGlance(c *Cluster) *Glance {
	return &Glance{c: c, images: map[string]*glanceImage{}}
}

// Add makes a queued image.
func (g *Glance) Add(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.images[id] = &glanceImage{status: worker.ImageQueued}
}

// Delete is a user who deletes the image. Its RBD image stays with the cluster, as ours to remove.
func (g *Glance) Delete(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.images, id)
	g.c.forget(id)
}

// Status is the image's status; "" when there is none.
func (g *Glance) Status(id string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if im := g.images[id]; im != nil {
		return im.status
	}

	return ""
}

// Data is what a user sees on the disk of an active image.
func (g *Glance) Data(id string) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	im := g.images[id]
	switch {
	case im == nil || im.status != worker.ImageActive:
		return nil, errors.New("the image has no data")
	case im.location == "":
		return g.disk(im.data), nil
	default:
		return g.c.Bytes(g.at(im.location), strategies.GlanceSnapshot)
	}
}

func (g *Glance) disk(data []byte) []byte {
	if g.Decode == nil {
		return data
	}

	return g.Decode(data)
}

// Image implements strategies.Images.
func (g *Glance) Image(ctx context.Context, imageID string) (worker.Image, error) {
	var info worker.Image
	err := g.do(ctx, "image", func() error {
		im := g.images[imageID]
		if im == nil {
			return fault("look at image "+imageID, worker.ReasonImageMissing, worker.GiveUp, nil)
		}
		info = worker.Image{ID: imageID, Status: im.status, DiskFormat: "raw", ContainerFormat: "bare"}
		if im.location != "" {
			info.Locations = []string{im.location}
		}

		return nil
	})

	return info, err
}

// Stores implements strategies.Images.
func (g *Glance) Stores(ctx context.Context) ([]strategies.Store, error) {
	err := g.do(ctx, "stores", func() error { return nil })

	return slices.Clone(g.Shown), err
}

// Inspects implements strategies.Images.
func (g *Glance) Inspects(ctx context.Context) (bool, error) {
	err := g.do(ctx, "inspects", func() error { return nil })

	return g.Inspecting, err
}

// Register implements strategies.Images.
func (g *Glance) Register(ctx context.Context, imageID, location string, size int64) error {
	return g.do(ctx, "register", func() error {
		im := g.images[imageID]
		switch {
		case im == nil:
			return fault("register "+imageID, worker.ReasonImageMissing, worker.GiveUp, nil)
		case im.status == worker.ImageActive && im.location == location:
			return nil
		case im.status != worker.ImageQueued:
			return fault("register "+imageID, worker.ReasonImageState, worker.GiveUp, nil)
		}
		if err := g.c.register(imageID, g.at(location), size, g.ReadsParents); err != nil {
			return err
		}
		im.status, im.location = worker.ImageActive, location

		return nil
	})
}

// Upload implements strategies.Images.
func (g *Glance) Upload(
	ctx context.Context, imageID, _ string, body io.ReadSeeker, size int64, p worker.Progress,
) error {
	if _, err := body.Seek(0, io.SeekStart); err != nil {
		return fault("upload "+imageID, worker.ReasonInternal, worker.GiveUp, err)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return fault("upload "+imageID, worker.ReasonOf(err), worker.AdviceOf(err), err)
	}
	if p != nil {
		p(worker.Amount{Done: int64(len(data)), Total: size, Worker: int64(len(data))})
	}

	return g.do(ctx, "upload", func() error {
		im := g.images[imageID]
		switch {
		case im == nil:
			return fault("upload "+imageID, worker.ReasonImageMissing, worker.GiveUp, nil)
		case int64(len(data)) != size:
			return fault("upload "+imageID, worker.ReasonMismatch, worker.GiveUp, nil)
		case im.status == worker.ImageActive && bytes.Equal(im.data, data):
			return nil
		case im.status != worker.ImageQueued:
			return fault("upload "+imageID, worker.ReasonImageState, worker.GiveUp, nil)
		}
		g.c.kept(imageID, g.disk(data))
		im.status, im.data = worker.ImageActive, data

		return nil
	})
}

func (g *Glance) do(ctx context.Context, site string, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return fault(site, worker.ReasonStopping, worker.Retry, context.Cause(ctx))
	}
	var before, after error
	if g.Fail != nil {
		before, after = g.Fail(site)
	}
	if before != nil {
		return before
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := fn(); err != nil {
		return err
	}

	return after
}

// at finds the image that a location means.
func (g *Glance) at(location string) strategies.Ref {
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	for at := range g.c.images {
		if strategies.Location(g.c.ID, at) == location {
			return at
		}
	}

	return strategies.Ref{}
}

// register checks what Glance does not: that the image is complete and has the bytes of the snapshot.
func (c *Cluster) register(id string, at strategies.Ref, size int64, readsParents bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	op, im := "register "+at.String(), c.images[at]
	if im == nil {
		return fault(op, worker.ReasonGlanceUnreadable, worker.OtherWay, errNoImage)
	}
	if im.parent != nil && !readsParents {
		return fault(op, worker.ReasonGlanceUnreadable, worker.OtherWay, errors.New("the parent is in a pool that Glance can't read"))
	}
	snap := im.snaps[strategies.GlanceSnapshot]
	if job, ours := im.mark(markSealed); !ours || job != id || snap == nil || !snap.protected {
		c.t.Errorf("strategiestest: %s was registered for image %s but is not sealed", at, id)

		return nil
	}
	if im.size != size {
		c.t.Errorf("strategiestest: image %s was registered with size %d, but %s has %d", id, size, at, im.size)
	}
	c.check(id, c.read(im, snap))
	c.active[at] = id

	return nil
}

// kept checks uploaded bytes.
func (c *Cluster) kept(id string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.check(id, data)
}

func (c *Cluster) check(id string, data []byte) {
	want, ok := c.promised[strategies.SourceSnapshot(id)]
	if !ok || !bytes.Equal(data, want) {
		c.t.Errorf("strategiestest: image %s has other bytes than the snapshot of its volume had (snapshot known: %v)", id, ok)
	}
}

func (c *Cluster) forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for at, active := range c.active {
		if active == id {
			delete(c.active, at)
		}
	}
}
