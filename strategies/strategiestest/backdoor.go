package strategiestest

import (
	"cmp"
	"fmt"
	"maps"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
)

// Backdoor prepares a cluster for a test and looks behind the interfaces. Its methods fail the test when something is
// wrong; they are used by one goroutine.
type Backdoor interface {
	// Put makes an image.
	Put(t testing.TB, at strategies.Ref, b Blueprint)

	// Write writes into the head.
	Write(t testing.TB, at strategies.Ref, offset int64, data []byte)

	// Resize makes the head larger or smaller.
	Resize(t testing.TB, at strategies.Ref, size int64)

	// Freeze makes a protected snapshot.
	Freeze(t testing.TB, at strategies.Ref, snap string)

	// Read answers all bytes of the snapshot, or of the head when snap is "".
	Read(t testing.TB, at strategies.Ref, snap string) []byte

	// View looks at the image.
	View(t testing.TB, at strategies.Ref) View

	// Drop removes an image with its snapshots, whatever state it is in. It may be missing.
	Drop(t testing.TB, at strategies.Ref)
}

// Blueprint describes an image to be made. With a parent it is a clone of the parent's snapshot, with the parent's size
// and metadata, as librbd does it.
type Blueprint struct {
	Size       int64 // bytes; not for a clone
	ObjectSize int64 // bytes; 0 for the default
	Parent     strategies.Ref
	Snapshot   string // of Parent
	Meta       map[string]string
}

// View is what an image looks like.
type View struct {
	Exists     bool // its name is listed
	Size       int64
	ObjectSize int64
	Parent     string          // pool/image@snapshot, "" for none
	Snapshots  map[string]bool // by name: protected
	Meta       map[string]string
	ObjectMap  bool // the image keeps an object map
}

// Put implements Backdoor.
func (c *Cluster) Put(t testing.TB, at strategies.Ref, b Blueprint) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	im := c.blank(b.Size, cmp.Or(b.ObjectSize, objectSize))
	if b.Snapshot != "" {
		up := c.images[b.Parent]
		im.parent, im.size = &parent{b.Parent, b.Snapshot}, up.snaps[b.Snapshot].size
		im.overlap, im.objectSize = im.size, max(im.objectSize, up.objectSize)
		maps.Copy(im.meta, up.meta)
	}
	maps.Copy(im.meta, b.Meta)
	c.images[at] = im
}

// Write implements Backdoor.
func (c *Cluster) Write(t testing.TB, at strategies.Ref, offset int64, data []byte) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	im := c.images[at]
	if offset+int64(len(data)) > im.size {
		t.Fatalf("write %d bytes at %d into %s of %d", len(data), offset, at, im.size)
	}
	all := c.read(im, im.head())
	copy(all[offset:], data)
	for n := offset / im.objectSize; n*im.objectSize < offset+int64(len(data)); n++ {
		im.objects[n] = all[n*im.objectSize : min((n+1)*im.objectSize, im.size)]
	}
}

// Resize implements Backdoor.
func (c *Cluster) Resize(t testing.TB, at strategies.Ref, size int64) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	im := c.images[at]
	im.size, im.overlap = size, min(im.overlap, size)
	for n, object := range im.objects {
		switch from := n * im.objectSize; {
		case from >= size:
			delete(im.objects, n)
		case from+int64(len(object)) > size:
			im.objects[n] = object[:size-from]
		}
	}
}

// Freeze implements Backdoor.
func (c *Cluster) Freeze(t testing.TB, at strategies.Ref, snap string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.snap(c.images[at], snap)
	c.images[at].snaps[snap].protected = true
}

// Read implements Backdoor.
func (c *Cluster) Read(t testing.TB, at strategies.Ref, snap string) []byte {
	t.Helper()
	data, err := c.Bytes(at, snap)
	if err != nil {
		t.Fatal(err)
	}

	return data
}

// View implements Backdoor.
func (c *Cluster) View(t testing.TB, at strategies.Ref) View {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	im := c.images[at]
	if im == nil {
		return View{}
	}
	v := View{
		Exists: true, Size: im.size, ObjectSize: im.objectSize, Snapshots: map[string]bool{}, Meta: maps.Clone(im.meta),
	}
	if im.parent != nil {
		v.Parent = fmt.Sprintf("%s@%s", im.parent.at, im.parent.snap)
	}
	for name, snap := range im.snaps {
		v.Snapshots[name] = snap.protected
	}

	return v
}

// Drop implements Backdoor.
func (c *Cluster) Drop(t testing.TB, at strategies.Ref) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.images, at)
}
