package glance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// way is a way to register a location.
type way int

const (
	byLocationAPI way = iota + 1
	byPatch
)

// Register makes location, of size bytes, the data of the queued image and returns when Glance shows the image active
// with it; see strategies.Images for the contract. While Glance works on the image it waits, up to Options.Patience.
// Where Glance hides locations, size and store have to be right. When ctx ends the outcome is open; call it again. Two calls
// at the same moment may leave the location twice in the image where only the PATCH is there; that harms nobody.
// ReasonGlanceRefused with OtherWay means that neither way to register is open to us.
func (c *Client) Register(ctx context.Context, imageID, location string, size int64) error {
	r := registration{
		client: c, id: imageID, location: location, size: size,
		op: fmt.Sprintf("register %s as the data of image %s", location, imageID),
	}

	return r.run(ctx)
}

// registration is one call of Register.
type registration struct {
	client       *Client
	op           string
	id, location string
	size         int64
	store        string // Glance's id of the location's store; "" when not known
}

func (r registration) run(ctx context.Context) error {
	img, err := r.client.settled(ctx, r.id)
	if err != nil {
		return err
	}
	if r.store, err = r.client.storeOf(ctx, r.location); err != nil {
		return err
	}
	// A task's lock that outlived our patience may be a dead glance-api's: Glance lets another request take it over.
	if img.Status != worker.ImageQueued {
		return r.judge(img)
	}
	ways, err := r.client.ways(ctx)
	if err != nil {
		return err
	}
	var refusals []error
	for _, w := range ways {
		err := r.try(ctx, w)
		var no refusal
		if !errors.As(err, &no) {
			return err
		}
		refusals = append(refusals, no)
	}

	return &worker.Error{Op: r.op, Reason: worker.ReasonGlanceRefused, Advice: worker.OtherWay, Err: errors.Join(refusals...)}
}

// refusal says that a way is not open, and how to open it.
type refusal struct{ error }

// try goes one way and reads back.
func (r registration) try(ctx context.Context, w way) error {
	a, sent := r.client.session.Do(ctx, r.request(w))
	img, err := r.client.settled(ctx, r.id)
	switch {
	case err != nil:
		return err
	case img.Status != worker.ImageQueued:
		remember(r.client, &r.client.way, w)

		return r.judge(img)
	case sent != nil:
		return sent
	case img.awaitsTask():
		return r.stillBusy(img)
	case w == byPatch:
		return r.patchFailed(a)
	default:
		return r.postFailed(a)
	}
}

func (r registration) request(w way) keystone.Request {
	req := keystone.Request{Service: keystone.Image, What: r.op, Path: "/v2/images/" + r.id}
	if w == byLocationAPI {
		req.Op, req.Method, req.Path, req.ServiceToken = "location-add", http.MethodPost, req.Path+"/locations", true
		req.JSON = map[string]string{"url": r.location}

		return req
	}
	metadata := map[string]string{}
	if r.store != "" {
		metadata["store"] = r.store
	}
	req.Op, req.Method = "location-patch", http.MethodPatch
	req.Header = http.Header{"Content-Type": {"application/openstack-images-v2.1-json-patch"}}
	req.JSON = []map[string]any{{
		"op": "add", "path": "/locations/-", "value": map[string]any{"url": r.location, "metadata": metadata},
	}}

	return req
}

// postFailed: the image is queued after the POST. A 401 to a new token, with which the image could be read a moment ago,
// is for the same token as a service token: service_token_roles_required, and our user lacks the role.
func (r registration) postFailed(a *keystone.Answer) error {
	switch a.Code {
	case http.StatusAccepted, http.StatusOK, http.StatusNoContent:
		return r.unreadable(errors.New("Glance took the location and then fell back to queued"))
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return refusal{fmt.Errorf("the location API: %w (give cinderlift's user the roles admin and service)", a.Err())}
	case http.StatusRequestEntityTooLarge:
		return full(r.op, a)
	default:
		return a.Err()
	}
}

// patchFailed: the image is queued after the PATCH. Glance answers 400 when it finds no such RBD image or snapshot, and
// 500 when its key may not read it (both measured on 25.1.0).
func (r registration) patchFailed(a *keystone.Answer) error {
	switch a.Code {
	case http.StatusBadRequest, http.StatusInternalServerError:
		return r.unreadable(a.Err())
	case http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return refusal{fmt.Errorf("the PATCH of the image: %w (it needs show_multiple_locations=True in "+
			"glance-api.conf and the policy set_image_location)", a.Err())}
	case http.StatusRequestEntityTooLarge:
		return full(r.op, a)
	}
	if err := a.Err(); err != nil {
		return err
	}

	return &worker.Error{Op: r.op, Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry,
		Err: fmt.Errorf("Glance answered %d but shows the image queued", a.Code)}
}

func (r registration) unreadable(err error) error {
	return &worker.Error{Op: r.op, Reason: worker.ReasonGlanceUnreadable, Advice: worker.OtherWay,
		Err: fmt.Errorf("%w; Glance must be able to open the RBD image and its parent with its own Ceph user", err)}
}

// judge decides whether an image that is not queued any more is the one that was to be made.
func (r registration) judge(img image) error {
	switch {
	case img.busy():
		return r.stillBusy(img)
	case !img.complete():
		return r.other(fmt.Errorf("it is %s", img.Status))
	case len(img.urls()) > 0 && slices.Contains(img.urls(), r.location):
		return nil
	case len(img.urls()) > 0:
		return r.other(errors.New("it is active with other data"))
	case img.Size != r.size:
		return r.other(fmt.Errorf("it is active with %d bytes instead of %d", img.Size, r.size))
	case r.store != "" && len(img.stores()) > 0 && !slices.Contains(img.stores(), r.store):
		return r.other(fmt.Errorf("it is active in the stores %q instead of %q", img.StoreList, r.store))
	default:
		return nil
	}
}

func (r registration) stillBusy(img image) error {
	return &worker.Error{Op: r.op, Reason: worker.ReasonImageState, Advice: worker.Retry,
		Err: fmt.Errorf("it is %s (task %q) for more than %s", img.Status, img.Task, r.client.opts.Patience)}
}

func (r registration) other(err error) error {
	return &worker.Error{Op: r.op, Reason: worker.ReasonImageState, Err: err}
}

// ways lists the ways that this Glance has, the one that worked last time first.
func (c *Client) ways(ctx context.Context) ([]way, error) {
	minor, err := c.version(ctx)
	if err != nil {
		return nil, err
	}
	if minor < locationAPI {
		return []way{byPatch}, nil
	}
	first, _ := recall(c, &c.way, func() (way, error) { return 0, errNotKnown })
	if first == byPatch {
		return []way{byPatch, byLocationAPI}, nil
	}

	return []way{byLocationAPI, byPatch}, nil
}

var errNotKnown = errors.New("not known")

// storeOf finds the store in which the location is.
func (c *Client) storeOf(ctx context.Context, location string) (string, error) {
	fsid, pool, ok := cutLocation(location)
	if !ok {
		return "", &worker.Error{Op: "register " + location, Reason: worker.ReasonInternal, Err: errors.New("not a URL of an RBD image")}
	}
	stores, err := c.Stores(ctx)
	if err != nil {
		return "", err
	}
	var found []strategies.Store
	for _, s := range stores {
		if s.Type == "rbd" && s.Pool == pool && (s.FSID == fsid || s.FSID == "") {
			found = append(found, s)
		}
	}
	if len(found) != 1 {
		return "", nil
	}

	return found[0].ID, nil
}

// cutLocation takes rbd://fsid/pool/image/snapshot apart. Each part is percent-encoded by itself (glance_store 5e56164
// _drivers/rbd.py:170-235), so it is cut before it is decoded: a pool's name may hold a slash.
func cutLocation(location string) (fsid, pool string, ok bool) {
	rest, ok := strings.CutPrefix(location, "rbd://")
	part := strings.Split(rest, "/")
	if !ok || len(part) != 4 {
		return "", "", false
	}
	for i, p := range part {
		name, err := url.PathUnescape(p)
		if err != nil || name == "" {
			return "", "", false
		}
		part[i] = name
	}

	return part[0], part[1], true
}
