package cinder

import (
	"context"
	"net/url"
	"strconv"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// Upload is a volume in the state `uploading`.
type Upload struct {
	VolumeID string
	Image    string    // its RBD image
	Since    time.Time // when Cinder last changed it; zero when it does not say
}

// uploadPage is how many volumes are asked for at a time; Cinder gives no more than osapi_max_limit, 1000 by default.
const uploadPage = 1000

// Uploads lists the volumes of all projects that are `uploading`. Idempotent; it does not retry.
func (c *REST) Uploads(ctx context.Context) ([]Upload, error) {
	const what = "list the volumes that are uploading"
	var list []Upload
	for marker := ""; ; {
		q := url.Values{"all_tenants": {"1"}, "status": {worker.VolumeUploading}, "limit": {strconv.Itoa(uploadPage)},
			"sort": {"id:asc"}}
		if marker != "" {
			q.Set("marker", marker)
		}
		var page struct {
			Volumes []struct {
				volume
				Updated string `json:"updated_at"` // without a zone: UTC
			}
		}
		if err := c.read(ctx, "volume-list", what, "/volumes/detail", q, &page); err != nil {
			return nil, err
		}
		for _, v := range page.Volumes {
			marker = v.ID
			if v.Status != worker.VolumeUploading {
				continue // a Cinder that does not filter
			}
			name, err := c.rbdName(what, v.volume)
			if err != nil {
				return nil, err
			}
			since, _ := time.Parse("2006-01-02T15:04:05.999999", v.Updated)
			list = append(list, Upload{VolumeID: v.ID, Image: name, Since: since})
		}
		if len(page.Volumes) == 0 {
			return list, nil
		}
	}
}
