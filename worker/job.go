package worker

import "encoding/json"

// Job is an accepted request. It is written into the journal as it is, so it never holds a token: what only the
// receiving process may know is in Private.
type Job struct {
	ImageID         string `json:"image_id"` // the job's key
	VolumeID        string `json:"volume_id"`
	ProjectID       string `json:"project_id"` // of the request's context
	DiskFormat      string `json:"disk_format"`
	ContainerFormat string `json:"container_format"`
	RequestID       string `json:"request_id,omitempty"`
	GlobalRequestID string `json:"global_request_id,omitempty"`

	// Digest is equal for repeated requests and differs for different ones with the same image id.
	Digest string `json:"digest"`

	// Origin is what the Settler needs to answer; only the package that made it looks inside. It holds no secrets.
	Origin json.RawMessage `json:"origin,omitempty"`

	// Private is what the Settler may use while the process that received the request lives, such as the user's
	// token to hand a declined job back. Never written anywhere; nil after adoption.
	Private any `json:"-"`
}

// Key names the job's record; everything that a job makes is named after it.
func (j Job) Key() string { return j.ImageID }

// Task is a job with the facts needed to plan it. The facts are of now: they are asked anew after each adoption.
type Task struct {
	Job    Job
	Volume Volume
	Image  Image

	// Kept is what the plan made before for the same job by the same strategy wanted to keep; nil for the first.
	Kept json.RawMessage
}

// Volume is what Cinder says of the volume.
type Volume struct {
	ID        string
	Name      string // RBD image name: volume-<name_id or id>
	Status    string
	ProjectID string
	Host      string // host@backend#pool as Cinder writes it; the part behind # is the backend's name, not the RBD pool
	Cluster   string // cluster_name of an active-active backend, or ""
	SizeGiB   int64
	Attached  bool
	Encrypted bool
	StoreID   string // extra spec image_service:store_id of the volume's type, or ""
}

// Image is what Glance says of the image.
type Image struct {
	ID              string
	Status          string // queued, saving, importing, active, …
	Owner           string
	DiskFormat      string
	ContainerFormat string
	Size            int64    // bytes; 0 while unknown
	Stores          []string // ids of the stores that hold the data
	Locations       []string // URLs, where Glance shows them
}

// Volume states and image states that cinderlift acts on.
const (
	VolumeUploading = "uploading"

	ImageQueued    = "queued"
	ImageSaving    = "saving"
	ImageImporting = "importing"
	ImageActive    = "active"

	// ImageDeactivated is active with the download locked by an operator: it has data, and keeps it.
	ImageDeactivated = "deactivated"
)
