package strategiestest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Fault decides what goes wrong at a site: before is returned without anything having been done there, after is
// returned although it was done. Both nil: nothing goes wrong. It may block, and may cancel a context.
type Fault func(site string) (before, after error)

// Sites lists the sites of Cluster that change something, in the order in which a job comes by. The other sites are
// fsid, stat, open, read and complete.
func Sites() []string {
	return []string{
		"snapshot", "inspect", "protect",
		"clone", "clone.mark", "clone.clean", "copy.create", "copy.mark", "copy.object", "copy.finish",
		"seal.snapshot", "seal.protect", "seal.mark", "flatten.object", "flatten.detach",
		"release.unprotect", "release.snapshot",
		"discard.unprotect", "discard.snapshot", "discard.image",
	}
}

// objectSize is what images have that ask for no other, in bytes. Small, so that tests have many objects.
const objectSize = 4096

const (
	markJob    = "cinderlift.job"
	markCopied = "cinderlift.copied"
	markSealed = "cinderlift.sealed"
)

var (
	errNoImage    = errors.New("no such image")
	errNoSnapshot = errors.New("no such snapshot")
)

// Cluster is a Ceph cluster in memory. Its methods may be called concurrently.
type Cluster struct {
	// Fail injects faults; nil for none. Set it before the cluster is used, or between uses.
	Fail Fault

	// ID is the cluster's fsid.
	ID string

	t testing.TB

	mu       sync.Mutex
	images   map[strategies.Ref]*image
	nextID   int
	promised map[string][]byte         // by snapshot name: the volume's bytes when it was made
	active   map[strategies.Ref]string // images that Glance has, with the image id
}

// New makes an empty cluster that reports to t what nobody may do.
func New(t testing.TB) *Cluster {
	return &Cluster{
		ID: "c3e1b7a2-55d2-4b56-9a4e-2f8e1f0c7d11", t: t, images: map[strategies.Ref]*image{},
		promised: map[string][]byte{}, active: map[strategies.Ref]string{},
	}
}

var (
	_ strategies.Source      = (*Cluster)(nil)
	_ strategies.Destination = (*Cluster)(nil)
	_ Backdoor               = (*Cluster)(nil)
)

// at is one effect: ctx and the faults around fn, which runs under the cluster's lock.
func (c *Cluster) at(ctx context.Context, site, what string, fn func() error) error {
	if err := ctx.Err(); err != nil {
		return fault(what, worker.ReasonStopping, worker.Retry, context.Cause(ctx))
	}
	var before, after error
	if c.Fail != nil {
		before, after = c.Fail(site)
	}
	if before != nil {
		return before
	}
	c.mu.Lock()
	err := fn()
	c.mu.Unlock()
	if err != nil {
		return err
	}

	return after
}

func fault(op string, r worker.Reason, a worker.Advice, err error) error {
	return &worker.Error{Op: op, Reason: r, Advice: a, Err: err}
}

// FSID implements strategies.Source.
func (c *Cluster) FSID(ctx context.Context) (string, error) {
	err := c.at(ctx, "fsid", "ask for the fsid", func() error { return nil })
	if err != nil {
		return "", err
	}

	return c.ID, nil
}

// Stat implements strategies.Source.
func (c *Cluster) Stat(ctx context.Context, src strategies.Ref) (strategies.SourceInfo, error) {
	var info strategies.SourceInfo
	err := c.at(ctx, "stat", "stat "+src.String(), func() error {
		im, err := c.volume("stat", src)
		if err != nil {
			return err
		}
		info = strategies.SourceInfo{Size: im.size, ObjectSize: im.objectSize}

		return nil
	})

	return info, err
}

// Snapshot implements strategies.Source.
func (c *Cluster) Snapshot(ctx context.Context, src strategies.Ref, snap string) error {
	return c.at(ctx, "snapshot", "snapshot "+src.String(), func() error {
		im, err := c.volume("snapshot", src)
		if err != nil || im.snaps[snap] != nil {
			return err
		}
		c.snap(im, snap)
		c.promised[snap] = c.read(im, im.head())

		return nil
	})
}

// Protect implements strategies.Source.
func (c *Cluster) Protect(ctx context.Context, src strategies.Ref, snap string) error {
	return c.at(ctx, "protect", "protect "+src.String(), func() error {
		im, err := c.volume("protect", src)
		if err != nil {
			return err
		}
		if im.snaps[snap] == nil {
			return fault("protect "+src.String()+"@"+snap, worker.ReasonMismatch, worker.GiveUp, errNoSnapshot)
		}
		im.snaps[snap].protected = true

		return nil
	})
}

// Release implements strategies.Source.
func (c *Cluster) Release(ctx context.Context, src strategies.Ref, snap string) error {
	op := "release " + src.String() + "@" + snap
	err := c.at(ctx, "release.unprotect", op, func() error {
		if child := c.child(src, snap); child != "" {
			return fault(op, worker.ReasonCephRefused, worker.Retry, fmt.Errorf("%s still depends on it", child))
		}
		if im := c.images[src]; im != nil && im.snaps[snap] != nil {
			im.snaps[snap].protected = false
		}

		return nil
	})
	if err != nil {
		return err
	}

	return c.at(ctx, "release.snapshot", op, func() error {
		if im := c.images[src]; im != nil {
			delete(im.snaps, snap)
		}

		return nil
	})
}

// Inspect implements strategies.Source.
func (c *Cluster) Inspect(ctx context.Context, src strategies.Ref, snap string) (imageformat.Finding, error) {
	data, _, err := c.frozen(ctx, "inspect", src, snap)
	if err != nil {
		return imageformat.Finding{}, err
	}

	return imageformat.Inspect(bytes.NewReader(data), int64(len(data)))
}

// Open implements strategies.Source.
func (c *Cluster) Open(ctx context.Context, src strategies.Ref, snap string) (strategies.Content, error) {
	data, object, err := c.frozen(ctx, "open", src, snap)
	if err != nil {
		return nil, err
	}

	return &content{c: c, ctx: ctx, data: data, object: object}, nil
}

// frozen answers the snapshot's bytes, and the size of the image's objects.
func (c *Cluster) frozen(ctx context.Context, site string, src strategies.Ref, snap string) (data []byte, object int64, err error) {
	err = c.at(ctx, site, site+" "+src.String(), func() error {
		im, err := c.volume(site, src)
		if err != nil {
			return err
		}
		if im.snaps[snap] == nil {
			return fault(site+" "+src.String()+"@"+snap, worker.ReasonMismatch, worker.GiveUp, errNoSnapshot)
		}
		data, object = c.read(im, im.snaps[snap]), im.objectSize

		return nil
	})

	return data, object, err
}

func (c *Cluster) volume(op string, at strategies.Ref) (*image, error) {
	im := c.images[at]
	if im == nil {
		return nil, fault(op+" "+at.String(), worker.ReasonVolumeMissing, worker.GiveUp, errNoImage)
	}

	return im, nil
}

// Audit says what is left that should not be: snapshots named by us, and marked images that Glance does not have.
func (c *Cluster) Audit() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var left []string
	for at, im := range c.images {
		for name := range im.snaps {
			if strings.HasPrefix(name, strategies.SourceSnapshot("")) {
				left = append(left, fmt.Sprintf("snapshot %s@%s", at, name))
			}
		}
		if job, ours := im.mark(markJob); ours && c.active[at] == "" {
			left = append(left, fmt.Sprintf("image %s of job %s", at, job))
		}
	}
	slices.Sort(left)

	return left
}

// Bytes are the image's as a reader of the snapshot sees them; of the head when snap is "".
func (c *Cluster) Bytes(at strategies.Ref, snap string) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	im := c.images[at]
	if im == nil {
		return nil, fmt.Errorf("read %s: %w", at, errNoImage)
	}
	if snap == "" {
		return c.read(im, im.head()), nil
	}
	if im.snaps[snap] == nil {
		return nil, fmt.Errorf("read %s@%s: %w", at, snap, errNoSnapshot)
	}

	return c.read(im, im.snaps[snap]), nil
}

// child names an image that needs the snapshot.
func (c *Cluster) child(at strategies.Ref, snap string) string {
	for other, im := range c.images {
		if im.parent != nil && im.parent.at == at && im.parent.snap == snap {
			return other.String()
		}
	}

	return ""
}

// touch is called before an image loses or changes data.
func (c *Cluster) touch(at strategies.Ref, how string) {
	if id := c.active[at]; id != "" {
		c.t.Errorf("strategiestest: %s of %s, which is the data of the active image %s", how, at, id)
	}
}

// image is an RBD image. Its objects are never changed in place, so versions can share them.
type image struct {
	id         string
	size       int64
	objectSize int64
	objects    map[int64][]byte
	parent     *parent // of head and snapshots alike: deep-flatten
	overlap    int64   // how much of the parent the head still shows
	snaps      map[string]*version
	meta       map[string]string
}

type parent struct {
	at   strategies.Ref
	snap string
}

// version is the image at one time.
type version struct {
	id            int // of a snapshot: never given again, as names are
	size, overlap int64
	objects       map[int64][]byte
	protected     bool
}

func (im *image) head() *version {
	return &version{size: im.size, overlap: im.overlap, objects: im.objects}
}

func (c *Cluster) snap(im *image, name string) {
	c.nextID++
	v := im.head()
	v.id, v.objects = c.nextID, maps.Clone(im.objects)
	im.snaps[name] = v
}

// mark reads a mark and whether it was written for this very image: librbd copies metadata to clones, so the marks of
// an image turn up on volumes that were made from it.
func (im *image) mark(key string) (string, bool) {
	fields := append(strings.Fields(im.meta[key]), "", "")

	return fields[0], fields[0] != "" && fields[1] == im.id
}

func (im *image) setMark(key, job, of string) {
	im.meta[key] = strings.TrimSpace(job + " " + im.id + " " + of)
}

// identity says of which snapshot an image is to be made, in a way that is never used again; "" while it is not there.
func (c *Cluster) identity(m strategies.Make) string {
	src := c.images[m.Src]
	if src == nil || src.snaps[m.Snapshot] == nil {
		return ""
	}

	return fmt.Sprintf("%s@%d", src.id, src.snaps[m.Snapshot].id)
}

// outdated reports whether the image was made of another snapshot than the one that has the name now.
func (c *Cluster) outdated(m strategies.Make, im *image) bool {
	fields := append(strings.Fields(im.meta[markJob]), "", "", "")
	now := c.identity(m)

	return im.marked() && now != "" && fields[2] != now
}

func (im *image) marked() bool {
	_, ours := im.mark(markJob)

	return ours
}

func (im *image) empty() bool { return len(im.objects) == 0 && len(im.snaps) == 0 }

// read gives the version's bytes through its parents.
func (c *Cluster) read(im *image, v *version) []byte {
	data := make([]byte, v.size)
	if im.parent != nil {
		up := c.images[im.parent.at]
		if up == nil || up.snaps[im.parent.snap] == nil {
			c.t.Errorf("strategiestest: the parent %s@%s is gone but needed", im.parent.at, im.parent.snap)

			return data
		}
		copy(data[:min(v.overlap, v.size)], c.read(up, up.snaps[im.parent.snap]))
	}
	for n, object := range v.objects {
		if from := n * im.objectSize; from < v.size {
			copy(data[from:], object)
		}
	}

	return data
}
