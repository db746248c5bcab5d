package ceph

import (
	"fmt"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"
)

// geometry is how an image's bytes lie in objects.
type geometry struct {
	objectSize  uint64
	stripeUnit  uint64
	stripeCount uint64
	oldFormat   bool // format 1: other names of objects
	migrating   bool // the data is partly in another image
}

// obstacle is why OSDs can't copy objects among themselves: a name for metrics, a text for people.
type obstacle struct{ name, text string }

// Names of engines, which bring the data of an image, and of what keeps them from the best one, for metrics.
const (
	EngineOSD    = "osd"    // the OSDs copy among themselves
	EngineWorker = "worker" // some of the objects at least went through this process
	EngineLibrbd = "librbd" // librbd's own flatten, through this process as well

	ObstacleNone      = "none"
	ObstacleLayout    = "layout"    // a layer has other object sizes, stripes, or format 1
	ObstacleMigration = "migration" // a layer is being migrated
	ObstaclePart      = "part"      // a parent shows only a part of an object
	ObstacleRefused   = "refused"   // an OSD refused
)

// Engines lists the engines with what may be the reason for each.
func Engines() map[string][]string {
	return map[string][]string{
		EngineOSD:    {ObstacleNone},
		EngineWorker: {ObstacleLayout, ObstacleMigration, ObstaclePart, ObstacleRefused},
		EngineLibrbd: {ObstacleLayout},
	}
}

// apart says why objects of an image with geometry g can't be copied one by one into an image with geometry dst, or nil
// when they can.
func (g geometry) apart(dst geometry) *obstacle {
	switch {
	case g.oldFormat || dst.oldFormat:
		return &obstacle{ObstacleLayout, "an image has format 1"}
	case g.migrating || dst.migrating:
		return &obstacle{ObstacleMigration, "an image is being migrated"}
	case g.objectSize != dst.objectSize:
		return &obstacle{ObstacleLayout, fmt.Sprintf("object sizes differ: %d and %d", g.objectSize, dst.objectSize)}
	case g.striped() || dst.striped():
		return &obstacle{ObstacleLayout, "an image is striped"}
	default:
		return nil
	}
}

// striped: with one stripe the units of an object follow each other, however wide they are (osdc/Striper.cc
// file_to_extents). librbd gives a clone with larger objects the units of its parent.
func (g geometry) striped() bool { return g.stripeCount != 1 }

func geometryOf(image *rbd.Image) (g geometry, err error) {
	old, err := image.IsOldFormat()
	if err != nil {
		return g, err
	}
	info, err := image.Stat()
	if err != nil {
		return g, err
	}
	features, err := image.GetFeatures()
	if err != nil {
		return g, err
	}
	g = geometry{objectSize: info.Obj_size, oldFormat: old, migrating: features&rbd.FeatureMigrating != 0}
	if g.stripeUnit, err = image.GetStripeUnit(); err != nil {
		return g, err
	}
	g.stripeCount, err = image.GetStripeCount()

	return g, err
}

// layer is an image at a snapshot, of which the bytes of another are made: the volume, its parent, and so on.
type layer struct {
	io      *rados.IOContext // of the data pool; reads at the snapshot
	prefix  string           // of the names of its objects
	size    uint64           // at the snapshot
	visible uint64           // how many of its bytes the topmost image shows
}

// cover says what of object n of a layer may be seen.
type cover int

const (
	whole  cover = iota
	partly       // a part is hidden: the object must not be copied as it is
	none
)

func (l layer) covers(n, objectSize uint64) cover {
	switch from := n * objectSize; {
	case from >= l.visible:
		return none
	case from+objectSize <= l.visible, l.visible == l.size: // nothing lies behind the end of an image
		return whole
	default:
		return partly
	}
}

// chain is the layers from the top down, as far as their objects can be copied one by one.
type chain struct {
	layers []layer
	cut    *obstacle // why there are more that can't be, or nil
}

func (c *chain) close() {
	for _, l := range c.layers {
		l.io.Destroy()
	}
	c.layers = nil
}

// place names an image at a snapshot as librbd knows it.
type place struct {
	pool, namespace, id string
	snap                uint64
}

// chain collects the layers from top on down. Close it.
func (im *Images) chain(top place, dst geometry) (*chain, error) {
	c := &chain{}
	visible := ^uint64(0)
	for at := &top; at != nil && c.cut == nil; {
		var next *place
		err := im.place(*at, func(image *rbd.Image) (err error) {
			next, visible, err = im.descend(c, image, *at, dst, visible)

			return err
		})
		if err != nil {
			c.close()

			return nil, fmt.Errorf("look at image %s of pool %s: %w", at.id, at.pool, err)
		}
		at = next
	}

	return c, nil
}

// place opens an image at a snapshot by ids: both may be in the trash by now.
func (im *Images) place(at place, fn func(*rbd.Image) error) error {
	return im.pool(at.pool, func(io *rados.IOContext) error {
		io.SetNamespace(at.namespace)

		return with(io, func(image *rbd.Image) error {
			if err := image.SetSnapByID(at.snap); err != nil {
				return err
			}

			return fn(image)
		})(rbd.OpenImageByIdReadOnly(io, at.id, rbd.NoSnapshot))
	})
}

// descend adds the image to the chain and finds its parent.
func (im *Images) descend(
	c *chain, image *rbd.Image, at place, dst geometry, above uint64,
) (next *place, visible uint64, err error) {
	g, err := geometryOf(image)
	if err != nil {
		return nil, 0, err
	}
	if c.cut = g.apart(dst); c.cut != nil {
		return nil, 0, nil
	}
	l, err := im.layer(image, at)
	if err != nil {
		return nil, 0, err
	}
	l.visible = min(above, l.size)
	c.layers = append(c.layers, l)
	parent, err := image.GetParent()
	if is(err, enoent) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	overlap, err := image.GetOverlap()
	up := parent.Image

	return &place{up.PoolName, up.PoolNamespace, up.ImageID, parent.Snap.ID}, min(l.visible, overlap), err
}

func (im *Images) layer(image *rbd.Image, at place) (layer, error) {
	info, err := image.Stat()
	if err != nil {
		return layer{}, err
	}
	io, err := im.dataPool(image, at.namespace)
	if err != nil {
		return layer{}, err
	}
	if err := io.SetReadSnap(rados.SnapID(at.snap)); err != nil {
		io.Destroy()

		return layer{}, err
	}

	return layer{io: io, prefix: info.Block_name_prefix, size: info.Size}, nil
}

// dataPool opens the pool that holds the image's data; with rbd_data_pool it is not the one that holds the image.
func (im *Images) dataPool(image *rbd.Image, namespace string) (*rados.IOContext, error) {
	id, err := image.GetDataPoolID()
	if err != nil {
		return nil, fmt.Errorf("ask for the data pool: %w", err)
	}

	return im.poolOf(id, namespace)
}

func (im *Images) poolOf(id int64, namespace string) (*rados.IOContext, error) {
	name, err := im.conn().GetPoolByID(id)
	if err != nil {
		return nil, fmt.Errorf("ask for the name of pool %d: %w", id, err)
	}
	io, err := ioctx(im.conn(), name)
	if err != nil {
		return nil, err
	}
	io.SetNamespace(namespace)

	return io, nil
}
