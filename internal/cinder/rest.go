package cinder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// RESTOptions tune a REST client; the zero value is right for a cloud with Cinder's defaults.
type RESTOptions struct {
	// NameTemplate is Cinder's volume_name_template: the RBD image's name with %s for the id. "" is volume-%s.
	NameTemplate string

	// Remember is how long back ends and the extra specs of volume types are taken as known. 0 is a minute.
	Remember time.Duration

	// WriteTimeout is how long setting a status may take. It must end before the lease does (25 s), since whoever owns
	// the volume afterwards may have begun another upload. 0 is 10 seconds.
	WriteTimeout time.Duration
}

// REST asks Cinder's API, with a session whose user has the role admin in a project: host, name_id and the owner of a
// volume are shown to nobody else. Its methods may be called concurrently, don't retry, and return *worker.Error.
type REST struct {
	session  *keystone.Session
	template string
	remember time.Duration
	writing  time.Duration

	mu       sync.Mutex
	version  int // index into microversions
	backends known[map[string]strategies.Backend]
	storeIDs map[string]known[string] // by volume type
}

var _ strategies.Backends = (*REST)(nil)

// known is something found out that holds for a while.
type known[T any] struct {
	value T
	until time.Time
}

// NewREST makes a client on a session, which stays the caller's. A template without exactly one %s is an error: every
// volume would have the same name.
func NewREST(s *keystone.Session, o RESTOptions) (*REST, error) {
	if o.NameTemplate == "" {
		o.NameTemplate = "volume-%s"
	}
	if strings.Count(o.NameTemplate, "%s") != 1 || strings.Count(o.NameTemplate, "%") != 1 {
		return nil, &worker.Error{Op: "read volume_name_template " + o.NameTemplate, Reason: worker.ReasonBadRequest,
			Err: errors.New("it must hold %s exactly once, and no other %")}
	}
	if o.Remember <= 0 {
		o.Remember = time.Minute
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = 10 * time.Second
	}

	return &REST{
		session: s, template: o.NameTemplate, remember: o.Remember, writing: o.WriteTimeout,
		storeIDs: map[string]known[string]{},
	}, nil
}

// microversions are tried in this order: 3.63 shows the type's id, 3.61 the cluster, and 3.0 is what all have (cinder
// ab09bc3 api/openstack/rest_api_version_history.rst). Cinder answers 406 to one that it does not have.
func microversions() []string { return []string{"3.63", "3.61", "3.0"} }

// do sends a request in the newest microversion that this Cinder has.
func (c *REST) do(ctx context.Context, r keystone.Request) (*keystone.Answer, error) {
	r.Service = keystone.Volume
	for {
		c.mu.Lock()
		i := c.version
		c.mu.Unlock()
		r.Header = http.Header{"Openstack-Api-Version": {"volume " + microversions()[i]}}
		a, err := c.session.Do(ctx, r)
		if err != nil || a.Code != http.StatusNotAcceptable || i == len(microversions())-1 {
			return a, err
		}
		c.mu.Lock()
		c.version = max(c.version, i+1)
		c.mu.Unlock()
	}
}

// read sends a GET and decodes the answer into v.
func (c *REST) read(ctx context.Context, op, what, path string, q url.Values, v any) error {
	a, err := c.do(ctx, keystone.Request{Op: op, What: what, Method: http.MethodGet, Path: path, Query: q})
	if err != nil {
		return err
	}

	return a.Decode(v)
}

// volume is what Cinder shows to an admin.
type volume struct {
	ID          string     `json:"id"`
	Status      string     `json:"status"`
	Size        int64      `json:"size"`
	Encrypted   bool       `json:"encrypted"`
	Updated     string     `json:"updated_at"`     // null before the first change
	Attachments []struct{} `json:"attachments"`    // the completed ones
	Type        string     `json:"volume_type"`    // name, or id for a type that is gone
	TypeID      string     `json:"volume_type_id"` // since 3.63
	Cluster     string     `json:"cluster_name"`   // since 3.61
	Project     string     `json:"os-vol-tenant-attr:tenant_id"`
	Host        string     `json:"os-vol-host-attr:host"`
	NameID      string     `json:"os-vol-mig-status-attr:name_id"` // null unless the volume was migrated
}

// Volume looks at a volume. ReasonVolumeMissing only when Cinder itself says that there is none. Idempotent.
func (c *REST) Volume(ctx context.Context, id string) (worker.Volume, error) {
	what := "show volume " + id
	v, err := c.look(ctx, what, id)
	if err != nil {
		return worker.Volume{}, err
	}
	if v.Host == "" || v.Project == "" {
		return worker.Volume{}, &worker.Error{Op: what, Reason: worker.ReasonCinderRefused,
			Err: errors.New("Cinder shows no host or no project of it: cinderlift's user needs the role admin")}
	}
	name, err := c.rbdName(what, v)
	if err != nil {
		return worker.Volume{}, err
	}
	store, err := c.storeID(ctx, v)
	if err != nil {
		return worker.Volume{}, err
	}

	return worker.Volume{
		ID: v.ID, Name: name, Status: v.Status, ProjectID: v.Project, Host: v.Host, Cluster: v.Cluster, SizeGiB: v.Size,
		Attached: len(v.Attachments) > 0, Encrypted: v.Encrypted, StoreID: store,
	}, nil
}

func (c *REST) look(ctx context.Context, what, id string) (volume, error) {
	if !isUUID(id) {
		return volume{}, &worker.Error{Op: what, Reason: worker.ReasonBadRequest, Err: errors.New("the volume id is not a UUID")}
	}
	var v struct{ Volume volume }
	if err := c.read(ctx, "volume-show", what, "/volumes/"+id, nil, &v); err != nil {
		return volume{}, err
	}
	if v.Volume.ID != id || v.Volume.Status == "" {
		return volume{}, &worker.Error{Op: what, Reason: worker.ReasonCinderUnavailable, Advice: worker.Retry,
			Err: fmt.Errorf("the answer speaks of volume %q", v.Volume.ID)}
	}

	return v.Volume, nil
}

// isUUID knows the one form that may become part of a path.
func isUUID(s string) bool {
	u, err := uuid.Parse(s)

	return err == nil && u.String() == s
}

// rbdName is the RBD image's name: after a migration the data bears the name_id (cinder ab09bc3 objects/volume.py:163-188).
func (c *REST) rbdName(what string, v volume) (string, error) {
	id := v.NameID
	if id == "" {
		id = v.ID
	}
	if !isUUID(id) {
		return "", &worker.Error{Op: what, Reason: worker.ReasonCinderRefused, Err: fmt.Errorf("its name_id %q is not a UUID", id)}
	}

	return strings.Replace(c.template, "%s", id, 1), nil
}

// storeID is the Glance store that the volume's type wants its images in. A type that is gone wants none.
func (c *REST) storeID(ctx context.Context, v volume) (string, error) {
	key := v.TypeID
	if key == "" {
		key = v.Type
	}
	if key == "" {
		return "", nil
	}
	c.mu.Lock()
	k := c.storeIDs[key]
	c.mu.Unlock()
	if time.Now().Before(k.until) {
		return k.value, nil
	}
	id, err := c.askStoreID(ctx, v)
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.storeIDs[key] = known[string]{value: id, until: time.Now().Add(c.remember)}

	return id, nil
}

// askStoreID reads the types' list and not the one type: before 3.63 its id is not known, and a type that is gone is then
// no 404, which a proxy could have answered as well.
func (c *REST) askStoreID(ctx context.Context, v volume) (string, error) {
	var l struct {
		VolumeTypes []struct {
			ID    string            `json:"id"`
			Name  string            `json:"name"`
			Specs map[string]string `json:"extra_specs"`
		} `json:"volume_types"`
	}
	q := url.Values{"is_public": {"None"}} // private ones as well
	if err := c.read(ctx, "type-list", "list volume types for volume "+v.ID, "/types", q, &l); err != nil {
		return "", err
	}
	for _, t := range l.VolumeTypes {
		if t.ID == v.TypeID || v.TypeID == "" && (t.ID == v.Type || t.Name == v.Type) {
			return t.Specs["image_service:store_id"], nil
		}
	}

	return "", nil
}

// Touched looks at the status of a volume and at when Cinder last changed its record, to be compared only: UTC, with the
// resolution of Cinder's database, which is a second in MySQL. Setting the status changes it. Both are "" for a volume that
// is gone. Idempotent.
func (c *REST) Touched(ctx context.Context, id string) (status, at string, err error) {
	v, err := c.look(ctx, "look at volume "+id, id)

	return v.Status, v.Updated, unlessMissing(err)
}

// ResetStatus frees the volume if it is still `uploading`: to in-use if it has an attachment of any kind, one that is only
// reserved too, else to available, as Cinder does after an upload of its own (cinder ab09bc3 db/api.py:3329). Any other status is left alone and is success, and so is a
// volume that is gone. Idempotent. Cinder changes the status without looking at the old one, so a second upload that
// begins between our look and our write would be reset as well; the lease on the volume keeps our own jobs apart, and
// for the same reason nothing is read back after Cinder's own 202: the next `uploading` may be somebody else's.
func (c *REST) ResetStatus(ctx context.Context, id string) error {
	// Attached at the look and detached at the write gives 400; then look again. Three times is more than once by chance.
	for range 3 {
		what := "reset the status of volume " + id
		v, err := c.look(ctx, what, id)
		if err != nil || v.Status != worker.VolumeUploading {
			return unlessMissing(err)
		}
		attached, err := c.attached(ctx, what, v)
		if err != nil {
			return err
		}
		a, sent := c.do(ctx, v.reset(what, attached, c.writing))
		if sent == nil && a.Code == http.StatusAccepted && a.Genuine() {
			return nil
		}
		v, err = c.look(ctx, what, id)
		switch {
		case err != nil || v.Status != worker.VolumeUploading:
			return unlessMissing(err)
		case sent != nil:
			return sent
		case a.Code != http.StatusBadRequest && a.Err() != nil:
			return a.Err()
		}
	}

	return &worker.Error{Op: "reset the status of volume " + id, Reason: worker.ReasonCinderRefused, Advice: worker.Retry,
		Err: errors.New("Cinder refuses both in-use and available")}
}

// attached reports whether the volume has an attachment. A volume shows its completed ones only (cinder ab09bc3
// api/v3/views/volumes.py:106-132); the list, since 3.27, has those that are reserved or being made as well. Asking Cinder to
// set in-use and minding its refusal would do only since Yoga (cinder 61f1179c0).
func (c *REST) attached(ctx context.Context, what string, v volume) (bool, error) {
	if len(v.Attachments) > 0 {
		return true, nil
	}
	a, err := c.do(ctx, keystone.Request{
		Op: "attachment-list", What: what, Method: http.MethodGet, Path: "/attachments",
		Query: url.Values{"all_tenants": {"1"}, "volume_id": {v.ID}},
	})
	if err != nil {
		return false, err
	}
	if a.Genuine() && a.Code == http.StatusNotFound {
		return false, nil // a Cinder that has no such list knows completed ones only
	}
	var l struct {
		Attachments []struct {
			VolumeID string `json:"volume_id"`
		} `json:"attachments"`
	}
	if err := a.Decode(&l); err != nil {
		return false, err
	}
	for _, one := range l.Attachments {
		if one.VolumeID == v.ID { // a filter that the operator has switched off is ignored by Cinder
			return true, nil
		}
	}

	return false, nil
}

// reset sets the field status alone: attach_status and migration_status have side effects of their own.
func (v volume) reset(what string, attached bool, limit time.Duration) keystone.Request {
	status := "available"
	if attached {
		status = "in-use"
	}

	return keystone.Request{
		Op: "volume-reset-status", What: what + " to " + status, Method: http.MethodPost, Path: "/volumes/" + v.ID + "/action",
		JSON: map[string]any{"os-reset_status": map[string]string{"status": status}}, Timeout: limit,
	}
}

func unlessMissing(err error) error {
	if worker.ReasonOf(err) == worker.ReasonVolumeMissing {
		return nil
	}

	return err
}

// Backend tells the cluster and the RBD pool of a host (host@backend#pool) from what the scheduler knows of its back
// ends, at most RESTOptions.Remember old. The zero Backend when Cinder does not tell us, or knows no such host. The
// host of an active-active back end is known to the scheduler by its cluster, so a host that it does not know counts as
// any other with the same backend and pool, provided that these agree.
func (c *REST) Backend(ctx context.Context, host string) (strategies.Backend, error) {
	all, err := c.Backends(ctx)
	if err != nil {
		return strategies.Backend{}, err
	}
	if b, ok := all[host]; ok {
		return b, nil
	}
	_, behind, ok := strings.Cut(host, "@")
	if !ok {
		return strategies.Backend{}, nil
	}
	alike := map[strategies.Backend]bool{}
	var one strategies.Backend
	for name, b := range all {
		if _, s, _ := strings.Cut(name, "@"); s == behind {
			alike[b], one = true, b
		}
	}
	if len(alike) != 1 {
		return strategies.Backend{}, nil
	}

	return one, nil
}

// Backends is the scheduler's view by host@backend#pool; RBD ones only, none when Cinder does not tell us.
func (c *REST) Backends(ctx context.Context) (map[string]strategies.Backend, error) {
	c.mu.Lock()
	k := c.backends
	c.mu.Unlock()
	if time.Now().Before(k.until) {
		return k.value, nil
	}
	all, err := c.askPools(ctx)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.backends = known[map[string]strategies.Backend]{value: all, until: time.Now().Add(c.remember)}

	return all, nil
}

func (c *REST) askPools(ctx context.Context) (map[string]strategies.Backend, error) {
	a, err := c.do(ctx, keystone.Request{
		Op: "pool-list", What: "list the scheduler's pools", Method: http.MethodGet, Path: "/scheduler-stats/get_pools",
		Query: url.Values{"detail": {"true"}},
	})
	if err != nil {
		return nil, err
	}
	// The policy scheduler_extension:scheduler_stats:get_pools may be closed to us; then the operator names the pools.
	if a.Genuine() && a.Code == http.StatusForbidden {
		return nil, nil
	}
	var l struct {
		Pools []struct {
			Name         string `json:"name"`
			Capabilities struct {
				Location string `json:"location_info"`
			} `json:"capabilities"`
		} `json:"pools"`
	}
	if err := a.Decode(&l); err != nil {
		return nil, err
	}
	all := map[string]strategies.Backend{}
	for _, p := range l.Pools {
		if b, ok := parseLocation(p.Capabilities.Location); ok {
			all[p.Name] = b
		}
	}

	return all, nil
}

// parseLocation reads the RBD driver's location_info, cluster:conf:fsid:user:pool (cinder ab09bc3
// volume/drivers/rbd.py:757-763). It counts from the right, because the path of ceph.conf may hold colons.
func parseLocation(s string) (strategies.Backend, bool) {
	f := strings.Split(s, ":")
	if len(f) < 5 {
		return strategies.Backend{}, false
	}
	b := strategies.Backend{FSID: f[len(f)-3], Pool: f[len(f)-1]}

	return b, isUUID(b.FSID) && b.Pool != ""
}
