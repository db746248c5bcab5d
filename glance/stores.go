package glance

import (
	"context"
	"net/http"
	"strings"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
)

// Stores lists Glance's stores with their properties, as known for at most Options.Remember. None when Glance has only
// one, is older than API 2.15, or refuses to tell us. It does not retry.
func (c *Client) Stores(ctx context.Context) ([]strategies.Store, error) {
	return recall(c, &c.stores, func() ([]strategies.Store, error) {
		a, err := c.session.Do(ctx, keystone.Request{
			Service: keystone.Image, Op: "store-list", What: "list Glance's stores", Method: http.MethodGet,
			Path: "/v2/info/stores/detail", // open to admins in every release
		})
		if err != nil {
			return nil, err
		}
		// Only Glance itself can say that it has no such page; a proxy's 404 must not turn many stores into one.
		if a.Genuine() && (a.Code == http.StatusForbidden || a.Code == http.StatusNotFound) {
			return nil, nil
		}
		var v storeList
		if err := a.Decode(&v); err != nil {
			return nil, err
		}

		return v.stores(), nil
	})
}

type storeList struct {
	Stores []struct {
		ID         string `json:"id"`
		Type       string `json:"type"`
		Default    any    `json:"default"` // the string "true" (glance c76abb08e api/v2/discovery.py), absent for others
		Properties struct {
			FSID      string `json:"fsid"`
			Pool      string `json:"pool"`
			ChunkSize int64  `json:"chunk_size"`
		} `json:"properties"`
	} `json:"stores"`
}

func (l storeList) stores() []strategies.Store {
	out := make([]strategies.Store, 0, len(l.Stores))
	for _, s := range l.Stores {
		// Staging and tasks stores bear reserved names; images don't live there.
		if strings.HasPrefix(s.ID, "os_glance_") {
			continue
		}
		out = append(out, strategies.Store{
			ID: s.ID, Type: s.Type, Default: s.Default == true || s.Default == "true",
			FSID: s.Properties.FSID, Pool: s.Properties.Pool, ChunkSize: s.Properties.ChunkSize,
		})
	}

	return out
}
