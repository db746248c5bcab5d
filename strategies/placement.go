package strategies

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/cinderlift/cinderlift/internal/imageformat"
	"github.com/cinderlift/cinderlift/worker"
)

// defaultImagePool is Glance's pool where neither the operator nor the cloud says anything
// (glance_store 5e56164 _drivers/rbd.py: rbd_store_pool).
const defaultImagePool = "images"

// Options are the operator's word; empty fields are found out. The operator's word comes before Glance's stores/detail
// and Cinder's location_info, and these before what is connected.
type Options struct {
	Order       []string          // strategies by preference; empty: all, in the order of Builtin
	Register    RegisterMode      // when clone-flatten registers
	VolumePools map[string]string // RBD pool by backend name (the part of the host between @ and #); "" for all others
	ImagePool   string            // RBD pool of Glance's store
	ImageFSID   string            // cluster of Glance's store
	StoreID     string            // Glance's store, where a volume type does not name one

	// Format says what a volume must not hold to become a raw image; FormatAuto among its Checks: as Glance says.
	Format imageformat.Policy
}

// placement is where a job's parts are. It is kept in the journal, so that neither a changed configuration nor a
// changed cloud can make a later worker look elsewhere.
type placement struct {
	Source Ref    `json:"source"`
	Dest   Ref    `json:"dest"`
	FSID   string `json:"fsid"`
	Store  string `json:"store,omitempty"` // Glance's store id; "": its default, or there is only one
	Size   int64  `json:"size"`            // bytes

	// Encoder makes the file that is sent; "": raw, or in jobs of releases that did not keep it, the one of the format's name.
	Encoder string `json:"encoder,omitempty"`
}

func (p placement) keep() json.RawMessage {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers: can't happen
	}

	return b
}

// kept reads what keep wrote.
func kept(strategy string, raw json.RawMessage) (placement, error) {
	var p placement
	if err := json.Unmarshal(raw, &p); err != nil {
		return p, &worker.Error{Op: strategy + ": read the kept placement", Reason: worker.ReasonInternal, Err: err}
	}

	return p, nil
}

// source finds the volume's RBD image in the connected cluster.
func (d Deps) source(ctx context.Context, strategy string, t worker.Task) (placement, error) {
	fsid, err := d.Source.FSID(ctx)
	if err != nil {
		return placement{}, err
	}
	pool, err := d.volumePool(ctx, strategy, t.Volume.Host, fsid)
	if err != nil {
		return placement{}, err
	}
	p := placement{Source: Ref{Pool: pool, Image: t.Volume.Name}, FSID: fsid}
	info, err := d.Source.Stat(ctx, p.Source)
	if err != nil {
		return placement{}, err
	}
	p.Size = info.Size

	return p, nil
}

func (d Deps) volumePool(ctx context.Context, strategy, host, fsid string) (string, error) {
	if pool := d.Options.configuredPool(host); pool != "" {
		return pool, nil
	}
	b, err := d.Backends.Backend(ctx, host)
	switch {
	case err != nil:
		return "", err
	case b.Pool == "":
		return "", worker.NotApplicable(strategy, "Cinder does not tell the RBD pool of backend "+host+
			": set CINDERLIFT_VOLUME_POOLS")
	case b.FSID != "" && b.FSID != fsid:
		return "", worker.NotApplicable(strategy, fmt.Sprintf("backend %s is in Ceph cluster %s, this worker in %s", host,
			b.FSID, fsid))
	}

	return b.Pool, nil
}

func (o Options) configuredPool(host string) string {
	_, backend, _ := strings.Cut(host, "@")
	backend, _, _ = strings.Cut(backend, "#")
	if pool := o.VolumePools[backend]; pool != "" {
		return pool
	}

	return o.VolumePools[""]
}

// destination adds where Glance wants the image, provided that it is in the same cluster.
func (d Deps) destination(ctx context.Context, strategy string, t worker.Task, p placement) (placement, error) {
	store, err := d.store(ctx, strategy, t.Volume.StoreID)
	if err != nil {
		return p, err
	}
	if store.Type != "rbd" {
		return p, worker.NotApplicable(strategy, fmt.Sprintf("Glance's store %q is of type %s, not rbd", store.ID, store.Type))
	}
	if store.FSID != "" && store.FSID != p.FSID {
		return p, worker.NotApplicable(strategy, fmt.Sprintf("Glance's store %q is in Ceph cluster %s, the volume in %s",
			store.ID, store.FSID, p.FSID))
	}
	p.Store = store.ID
	p.Dest = Ref{Pool: store.Pool, Image: t.Job.ImageID}

	return p, nil
}

// store picks the store: the volume type's, the operator's, Glance's default; and completes what Glance leaves out.
func (d Deps) store(ctx context.Context, strategy, wanted string) (Store, error) {
	if wanted == "" {
		wanted = d.Options.StoreID
	}
	stores, err := d.Images.Stores(ctx)
	if err != nil {
		return Store{}, err
	}
	if len(stores) == 0 {
		// Without stores/detail there is one store, and the operator's word or the usual names have to do. That it
		// really is there shows when Glance opens the image: it refuses a location that it can't read.
		return d.Options.complete(Store{ID: wanted, Type: "rbd"}), nil
	}
	for _, s := range stores {
		usual := s.Default || len(stores) == 1
		switch {
		case s.ID != wanted && (wanted != "" || !usual):
			continue
		case s.ID == d.Options.StoreID || d.Options.StoreID == "" && usual:
			return d.Options.complete(s), nil
		case s.Type == "rbd" && s.Pool == "":
			// A guess could put the image into the pool of another store.
			return s, worker.NotApplicable(strategy, fmt.Sprintf("Glance does not tell the pool of its store %q", s.ID))
		default:
			return s, nil // not the store that the operator's words are about
		}
	}

	return Store{}, worker.NotApplicable(strategy, fmt.Sprintf("Glance has no store %q", wanted))
}

// complete lets the operator's word win and fills in defaults.
func (o Options) complete(s Store) Store {
	if o.ImagePool != "" {
		s.Pool = o.ImagePool
	}
	if o.ImageFSID != "" {
		s.FSID = o.ImageFSID
	}
	if s.Pool == "" {
		s.Pool = defaultImagePool
	}

	return s
}
