package lab

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/cinderlift/cinderlift/internal/keystone"
)

// Cloud is the lab's OpenStack as one user sees it.
type Cloud struct {
	*Lab
	session *keystone.Session
}

// As signs in as one of the lab's users: admin, demo, other, service.
func (l *Lab) As(ctx context.Context, user string) (*Cloud, error) {
	u := "LAB_" + strings.ToUpper(user) + "_"
	s, err := keystone.Open(ctx, keystone.Options{AuthURL: l.Env["OS_AUTH_URL"], Username: l.Env[u+"USER"],
		Password: keystone.Secret(l.Env[u+"PASSWORD"]), ProjectName: l.Env[u+"PROJECT"], Region: l.Env["OS_REGION_NAME"]})
	if err != nil {
		return nil, err
	}

	return &Cloud{Lab: l, session: s}, nil
}

// Close ends the connections.
func (c *Cloud) Close() { c.session.Close() }

// Project is the user's project.
func (c *Cloud) Project() string { return c.session.Project() }

// Do sends a request that has no method of its own.
func (c *Cloud) Do(ctx context.Context, s keystone.Service, method, path string, body, into any) error {
	r := keystone.Request{Service: s, Op: "lab", What: method + " " + path, Method: method, Path: path, JSON: body}
	if s == keystone.Volume {
		r.Header = http.Header{"Openstack-Api-Version": {"volume 3.59"}}
	}
	a, err := c.session.Do(ctx, r)
	switch {
	case err != nil:
		return err
	case into == nil:
		return a.Err()
	default:
		return a.Decode(into)
	}
}

// Volume is what Cinder shows.
type Volume struct {
	ID, Status, Name string
	Attachments      []struct{ ID string }
	Bootable         string
}

// VolumeSpec is what to make: empty, or from an image.
type VolumeSpec struct {
	Name     string `json:"name"`
	GiB      int    `json:"size"`
	ImageRef string `json:"imageRef,omitempty"`
	Type     string `json:"volume_type,omitempty"`
}

// Room lets a project have as many volumes, and as large ones, as a test may want. Only for the admin.
func (c *Cloud) Room(ctx context.Context, project string) error {
	quota := map[string]any{"quota_set": map[string]int{"volumes": 1000, "gigabytes": 200000, "per_volume_gigabytes": -1}}

	return c.Do(ctx, keystone.Volume, "PUT", "/os-quota-sets/"+project, quota, nil)
}

// CreateVolume makes a volume and waits until it is there.
func (c *Cloud) CreateVolume(ctx context.Context, spec VolumeSpec) (string, error) {
	var v struct{ Volume Volume }
	if err := c.Do(ctx, keystone.Volume, "POST", "/volumes", map[string]any{"volume": spec}, &v); err != nil {
		return "", err
	}

	return v.Volume.ID, c.WaitVolume(ctx, v.Volume.ID, "available")
}

// Volume looks at one.
func (c *Cloud) Volume(ctx context.Context, id string) (Volume, error) {
	var v struct{ Volume Volume }
	err := c.Do(ctx, keystone.Volume, "GET", "/volumes/"+id, nil, &v)

	return v.Volume, err
}

// WaitVolume waits for a status; `error` ends it.
func (c *Cloud) WaitVolume(ctx context.Context, id, status string) error {
	return Wait(ctx, "volume "+id+" to be "+status, func() (bool, error) {
		v, err := c.Volume(ctx, id)
		if err == nil && strings.HasPrefix(v.Status, "error") && v.Status != status {
			return false, fmt.Errorf("volume %s is %s", id, v.Status)
		}

		return v.Status == status, err
	})
}

// Volumes lists the user's volumes.
func (c *Cloud) Volumes(ctx context.Context) ([]Volume, error) {
	var l struct{ Volumes []Volume }
	err := c.Do(ctx, keystone.Volume, "GET", "/volumes/detail", nil, &l)

	return l.Volumes, err
}

// Images lists the user's images, a thousand at most.
func (c *Cloud) Images(ctx context.Context) ([]Image, error) {
	var l struct{ Images []Image }
	a, err := c.session.Do(ctx, keystone.Request{Service: keystone.Image, Op: "lab", What: "list images", Method: "GET", Path: "/v2/images",
		Query: url.Values{"limit": {"1000"}}}) // the most that Glance answers at once; 25 otherwise
	if err == nil {
		err = a.Decode(&l)
	}

	return l.Images, err
}

// Act runs a volume action.
func (c *Cloud) Act(ctx context.Context, id string, action map[string]any) error {
	return c.Do(ctx, keystone.Volume, "POST", "/volumes/"+id+"/action", action, nil)
}

// DeleteVolume deletes it and waits until it is gone.
func (c *Cloud) DeleteVolume(ctx context.Context, id string) error {
	if err := c.Do(ctx, keystone.Volume, "DELETE", "/volumes/"+id, nil, nil); err != nil {
		return err
	}

	return Wait(ctx, "volume "+id+" to be gone", func() (bool, error) {
		a, err := c.session.Do(ctx, keystone.Request{Service: keystone.Volume, Op: "lab", What: "show volume", Method: "GET",
			Path: "/volumes/" + id})
		if err != nil {
			return false, err
		}
		if strings.Contains(string(a.Body), `"status": "error_deleting"`) {
			return false, fmt.Errorf("volume %s is error_deleting", id)
		}

		return a.Code == http.StatusNotFound, nil
	})
}

// UploadSpec is the body of os-volume_upload_image, which `openstack image create --volume` sends.
type UploadSpec struct {
	Name            string `json:"image_name"`
	DiskFormat      string `json:"disk_format"`
	ContainerFormat string `json:"container_format"`
	Force           bool   `json:"force"`
}

// Raw is the usual spec.
func Raw(name string) UploadSpec {
	return UploadSpec{Name: name, DiskFormat: "raw", ContainerFormat: "bare"}
}

// Upload asks Cinder for an image of the volume and answers the image's id.
func (c *Cloud) Upload(ctx context.Context, volume string, spec UploadSpec) (string, error) {
	var r struct {
		Upload struct {
			ImageID string `json:"image_id"`
		} `json:"os-volume_upload_image"`
	}
	err := c.Do(ctx, keystone.Volume, "POST", "/volumes/"+volume+"/action",
		map[string]any{"os-volume_upload_image": spec}, &r)

	return r.Upload.ImageID, err
}

// Image is what Glance shows.
type Image struct {
	ID, Status      string
	Name            string
	Owner           string
	DiskFormat      string `json:"disk_format"`
	ContainerFormat string `json:"container_format"`
	Size            int64
	Stores          string
	Checksum        string
	HashAlgo        string `json:"os_hash_algo"`
	HashValue       string `json:"os_hash_value"`
	Task            string `json:"os_glance_import_task"` // of Glance, which still works on it
}

// CreateImage makes an image without data, as cinder-api does before it casts.
func (c *Cloud) CreateImage(ctx context.Context, name string) (string, error) {
	var i Image
	err := c.Do(ctx, keystone.Image, "POST", "/v2/images",
		map[string]any{"name": name, "disk_format": "raw", "container_format": "bare"}, &i)

	return i.ID, err
}

// Image looks at one; the status is "" when it is gone.
func (c *Cloud) Image(ctx context.Context, id string) (Image, error) {
	a, err := c.session.Do(ctx, keystone.Request{Service: keystone.Image, Op: "lab", What: "show image " + id, Method: "GET",
		Path: "/v2/images/" + id})
	if err != nil || a.Code == http.StatusNotFound {
		return Image{}, err
	}
	var i Image

	return i, a.Decode(&i)
}

// WaitImage waits for a status; "" for gone.
func (c *Cloud) WaitImage(ctx context.Context, id, status string) error {
	last := ""
	err := Wait(ctx, "image "+id+" to be "+status, func() (bool, error) {
		i, err := c.Image(ctx, id)
		last = i.Status

		return i.Status == status, err
	})
	if err != nil {
		return fmt.Errorf("%w (it is %q)", err, last)
	}

	return nil
}

// DeleteImage deletes it.
func (c *Cloud) DeleteImage(ctx context.Context, id string) error {
	return c.Do(ctx, keystone.Image, "DELETE", "/v2/images/"+id, nil, nil)
}

// RemoveImage deletes it once Glance leaves it alone, and waits until it is gone. While Glance hashes an active image in
// the background it answers 409, or 500 when both meet half-way. An image that is gone is no error.
func (c *Cloud) RemoveImage(ctx context.Context, id string) error {
	gone := false
	err := Wait(ctx, "Glance to leave image "+id+" alone", func() (bool, error) {
		i, err := c.Image(ctx, id)
		gone = i.Status == ""

		return i.Task == "", err
	})
	if err != nil || gone {
		return err
	}
	if err := c.DeleteImage(ctx, id); err != nil {
		return err
	}

	return c.WaitImage(ctx, id, "")
}
