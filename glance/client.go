package glance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Options tune a client; the zero value is right for production.
type Options struct {
	// Poll is the first pause between two looks at an image that is being worked on; it doubles up to 20 times that. 0
	// is 250 ms.
	Poll time.Duration

	// Patience is how long one call waits for an image that Glance works on. 0 is 15 minutes, about the time after
	// which Glance's TCP gives up an upload whose sender has vanished.
	Patience time.Duration

	// Silence is how long Glance may take nothing of an upload, or leave its answer open after the last byte. 0 is 10
	// minutes: an OSD that is replaced makes Glance wait that long.
	Silence time.Duration

	// Remember is how long the cloud's abilities are taken as known: API version, way to register, stores. 0 is 5
	// minutes.
	Remember time.Duration
}

// Client is a Glance client on one session. Its methods may be called concurrently.
type Client struct {
	session *keystone.Session
	opts    Options

	mu     sync.Mutex
	minor  remembered[int]
	way    remembered[way]
	stores remembered[storeList]
	given  map[string]bool // images that took our data, until it was found to be right
}

var _ strategies.Images = (*Client)(nil)

// remembered is something found out that holds for a while.
type remembered[T any] struct {
	value T
	until time.Time
}

// New makes a client. The session stays the caller's.
func New(s *keystone.Session, o Options) *Client {
	if o.Poll <= 0 {
		o.Poll = 250 * time.Millisecond
	}
	if o.Patience <= 0 {
		o.Patience = 15 * time.Minute
	}
	if o.Silence <= 0 {
		o.Silence = 10 * time.Minute
	}
	if o.Remember <= 0 {
		o.Remember = 5 * time.Minute
	}

	return &Client{session: s, opts: o}
}

// recall answers what is remembered, or finds it out. Two callers may find out at the same time.
func recall[T any](c *Client, r *remembered[T], find func() (T, error)) (T, error) {
	c.mu.Lock()
	known := *r
	c.mu.Unlock()
	if time.Now().Before(known.until) {
		return known.value, nil
	}
	v, err := find()
	if err == nil {
		remember(c, r, v)
	}

	return v, err
}

func remember[T any](c *Client, r *remembered[T], v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*r = remembered[T]{value: v, until: time.Now().Add(c.opts.Remember)}
}

// Ping makes sure that Glance answers us with our token. It does not retry.
func (c *Client) Ping(ctx context.Context) error {
	a, err := c.session.Do(ctx, keystone.Request{
		Service: keystone.Image, Op: "ping", What: "ping Glance", Method: http.MethodGet, Path: "/v2/schemas/image",
	})
	if err != nil {
		return err
	}

	return a.Err()
}

// Image asks for an image. ReasonImageMissing only when Glance itself says that there is none. Status is importing also
// while a location that was accepted waits for Glance's task, which Glance shows as queued. Locations are those that
// Glance shows to us in any way. Idempotent; it does not retry.
func (c *Client) Image(ctx context.Context, id string) (worker.Image, error) {
	img, err := c.look(ctx, id)
	if err != nil {
		return worker.Image{}, err
	}

	return img.facts(), nil
}

// image is what Glance says of an image.
type image struct {
	ID              string `json:"id"`
	Status          string `json:"status"`
	Owner           string `json:"owner"`
	DiskFormat      string `json:"disk_format"`
	ContainerFormat string `json:"container_format"`
	Size            int64  `json:"size"`
	Checksum        string `json:"checksum"` // MD5
	HashAlgo        string `json:"os_hash_algo"`
	HashValue       string `json:"os_hash_value"`
	StoreList       string `json:"stores"`                // comma separated; absent without enabled_backends
	Task            string `json:"os_glance_import_task"` // lock of a task that works on the image, or will

	Locations []struct {
		URL string `json:"url"`
	} `json:"locations"` // absent where Glance hides them; empty without data
	DirectURL string `json:"direct_url"` // absent without show_image_direct_url
}

func (i image) urls() []string {
	var l []string
	for _, loc := range i.Locations {
		l = append(l, loc.URL)
	}
	if len(l) == 0 && i.DirectURL != "" {
		l = append(l, i.DirectURL)
	}

	return l
}

func (i image) stores() []string {
	return strings.FieldsFunc(i.StoreList, func(r rune) bool { return r == ',' || r == ' ' })
}

// awaitsTask: the location API takes the lock before it answers 202, and the task drops it at its end, whatever the end
// was (glance c76abb08e api/v2/images.py:1190-1202, async_/flows/api_image_import.py:501-515).
func (i image) awaitsTask() bool { return i.Status == worker.ImageQueued && i.Task != "" }

// busy: Glance works on the image, and the state will change by itself.
func (i image) busy() bool {
	return i.Status == worker.ImageSaving || i.Status == worker.ImageImporting || i.awaitsTask()
}

// complete: it has data. An admin may deactivate an active image, which forbids to download it and changes nothing else.
func (i image) complete() bool {
	return i.Status == worker.ImageActive || i.Status == worker.ImageDeactivated
}

func (i image) facts() worker.Image {
	f := worker.Image{
		ID: i.ID, Status: i.Status, Owner: i.Owner, DiskFormat: i.DiskFormat, ContainerFormat: i.ContainerFormat,
		Size: i.Size, Stores: i.stores(), Locations: i.urls(),
	}
	if i.awaitsTask() {
		f.Status = worker.ImageImporting
	}

	return f
}

// look asks for an image, with its locations if Glance shows them to anybody of our kind.
func (c *Client) look(ctx context.Context, id string) (image, error) {
	what := "show image " + id
	path, err := imagePath(what, id)
	if err != nil {
		return image{}, err
	}
	a, err := c.session.Do(ctx, keystone.Request{
		Service: keystone.Image, Op: "image-show", What: what, Method: http.MethodGet, Path: path,
	})
	if err != nil {
		return image{}, err
	}
	var img image
	if err := a.Decode(&img); err != nil {
		return image{}, err
	}
	switch {
	case img.ID != id:
		return image{}, &worker.Error{Op: what, Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry,
			Err: fmt.Errorf("the answer speaks of image %q", img.ID)}
	case img.Status == "deleted", img.Status == "pending_delete":
		return image{}, &worker.Error{Op: what, Reason: worker.ReasonImageMissing, Err: errors.New("it is " + img.Status)}
	case img.complete() && len(img.urls()) == 0:
		return c.lookClosely(ctx, what, path, img)
	default:
		return img, nil
	}
}

// lookClosely adds the locations of a complete image by the location API, which shows them to services alone. That it is
// not offered to us is no error.
func (c *Client) lookClosely(ctx context.Context, what, path string, img image) (image, error) {
	minor, err := c.version(ctx)
	if err != nil || minor < locationAPI {
		return img, err
	}
	a, err := c.session.Do(ctx, keystone.Request{
		Service: keystone.Image, Op: "location-list", What: what, Method: http.MethodGet, Path: path + "/locations",
		ServiceToken: true,
	})
	if err != nil {
		return image{}, err
	}
	switch a.Code {
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed:
		return img, nil
	}

	return img, a.Decode(&img.Locations)
}

// settled looks until Glance does not work on the image any more, or patience is at its end; the image is then answered
// as it is.
func (c *Client) settled(ctx context.Context, id string) (image, error) {
	deadline := time.Now().Add(c.opts.Patience)
	for pause := c.opts.Poll; ; pause = min(2*pause, 20*c.opts.Poll) {
		img, err := c.look(ctx, id)
		if err != nil || !img.busy() || time.Now().After(deadline) {
			return img, err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			// The next look answers with what it was that ended.
		}
	}
}

// imagePath refuses what is no UUID before it becomes part of a path.
func imagePath(what, id string) (string, error) {
	ok := len(id) == 36
	for i, r := range id {
		switch i {
		case 8, 13, 18, 23:
			ok = ok && r == '-'
		default:
			ok = ok && (r >= '0' && r <= '9' || r >= 'a' && r <= 'f')
		}
	}
	if !ok {
		return "", &worker.Error{Op: what, Reason: worker.ReasonBadRequest, Err: errors.New("the image id is not a UUID")}
	}

	return "/v2/images/" + id, nil
}

// locationAPI is the minor version of API 2 that has it (glance c76abb08e api/versions.py:88).
const locationAPI = 17

// version is the highest minor version of Glance's API 2.
func (c *Client) version(ctx context.Context) (int, error) {
	return recall(c, &c.minor, func() (int, error) {
		a, err := c.session.Do(ctx, keystone.Request{
			Service: keystone.Image, Op: "versions", What: "ask Glance for its versions", Method: http.MethodGet, Path: "/versions",
		})
		if err != nil {
			return 0, err
		}
		var v struct {
			Versions []struct {
				ID string `json:"id"`
			} `json:"versions"`
		}
		if err := a.Decode(&v); err != nil {
			return 0, err
		}
		most := 0
		for _, e := range v.Versions {
			var minor int
			if _, err := fmt.Sscanf(e.ID, "v2.%d", &minor); err == nil {
				most = max(most, minor)
			}
		}

		return most, nil
	})
}

// Discard deletes an image that has no complete data: queued, saving, importing or killed. An image that is gone, and
// one that is active (deactivated counts as such), is left alone and is success. Idempotent; it does not retry.
func (c *Client) Discard(ctx context.Context, id string) error {
	img, err := c.look(ctx, id)
	if err != nil {
		return unlessMissing(err)
	}
	if !img.discardable() {
		return nil
	}
	what := fmt.Sprintf("delete image %s, which is %s", id, img.Status)
	a, sent := c.session.Do(ctx, keystone.Request{
		Service: keystone.Image, Op: "image-delete", What: what, Method: http.MethodDelete, Path: "/v2/images/" + id,
	})
	img, err = c.look(ctx, id)
	switch {
	case err != nil:
		return unlessMissing(err)
	case !img.discardable():
		return nil
	case sent != nil:
		return sent
	case a.Err() != nil:
		return a.Err()
	default:
		return &worker.Error{Op: what, Reason: worker.ReasonGlanceUnavailable, Advice: worker.Retry,
			Err: fmt.Errorf("Glance answered %d, and the image is still there", a.Code)}
	}
}

func (i image) discardable() bool {
	return i.Status == worker.ImageQueued || i.Status == "killed" || i.busy()
}

func unlessMissing(err error) error {
	if worker.ReasonOf(err) == worker.ReasonImageMissing {
		return nil
	}

	return err
}
