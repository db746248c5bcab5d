package glance

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/strategies"
)

// Stores lists Glance's stores with their properties, as known for at most Options.Remember. None when Glance has only
// one, is older than API 2.15, or refuses to tell us. It does not retry.
func (c *Client) Stores(ctx context.Context) ([]strategies.Store, error) {
	l, err := c.storeDetails(ctx)
	if err != nil || len(l.Stores) == 0 {
		return nil, err
	}

	return l.stores(), nil
}

// Inspects reports whether Glance inspects the format of what is uploaded. No API tells its release. API 2.17 came with
// 29.0.0, and is the newest up to 32 (api/versions.py); RBD stores tell their fsid since 30.0.0 (api/v2/discovery.py), the
// release in which uploads are inspected. A 29 whose stores are not shown is taken for later: better refuse too much. As
// known for at most Options.Remember; it does not retry.
func (c *Client) Inspects(ctx context.Context) (bool, error) {
	minor, err := c.version(ctx)
	if err != nil || minor < locationAPI {
		return false, err
	}
	l, err := c.storeDetails(ctx)
	for _, s := range l.Stores {
		if s.Type == "rbd" && !s.Properties.FSID.there {
			return false, err
		}
	}

	return true, err
}

func (c *Client) storeDetails(ctx context.Context) (storeList, error) {
	return recall(c, &c.stores, func() (storeList, error) {
		a, err := c.session.Do(ctx, keystone.Request{
			Service: keystone.Image, Op: "store-list", What: "list Glance's stores", Method: http.MethodGet,
			Path: "/v2/info/stores/detail", // open to admins in every release
		})
		if err != nil {
			return storeList{}, err
		}
		// Only Glance itself can say that it has no such page; a proxy's 404 must not turn many stores into one.
		if a.Genuine() && (a.Code == http.StatusForbidden || a.Code == http.StatusNotFound) {
			return storeList{}, nil
		}
		var l storeList
		err = a.Decode(&l)

		return l, err
	})
}

type storeList struct {
	Stores []struct {
		ID         string `json:"id"`
		Type       string `json:"type"`
		Default    any    `json:"default"` // the string "true" (glance c76abb08e api/v2/discovery.py), absent for others
		Properties struct {
			FSID      told   `json:"fsid"` // null when Glance does not know it; absent before 30.0.0
			Pool      string `json:"pool"`
			ChunkSize int64  `json:"chunk_size"`
		} `json:"properties"`
	} `json:"stores"`
}

// told is a string that may be null, and may not be there at all.
type told struct {
	there bool
	value string
}

// UnmarshalJSON is called for null, too.
func (t *told) UnmarshalJSON(b []byte) error {
	t.there = true

	return json.Unmarshal(b, &t.value)
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
			FSID: s.Properties.FSID.value, Pool: s.Properties.Pool, ChunkSize: s.Properties.ChunkSize,
		})
	}

	return out
}
