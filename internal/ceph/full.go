package ceph

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/cinderlift/cinderlift/worker"
)

// Full is nil while the pools take data, as the monitors see it: ReasonPoolFull when one of them is full or at its quota,
// ReasonCephUnavailable while writes are paused. It is one question to a monitor and no write. That a pool is nearly full
// is no error: it takes data for a long while yet, and one OSD that holds more than the others is enough for that flag.
//
// Quotas are enforced late, from statistics, so nil is no promise.
func (c *Cluster) Full(ctx context.Context, pools ...string) error {
	op := "look whether there is room in " + strings.Join(pools, ", ")
	raw, err := on(ctx, c, func(k *control) ([]byte, error) {
		answer, _, err := k.conn.MonCommand([]byte(`{"prefix":"osd dump","format":"json"}`))

		return answer, err
	}, nil)
	if err != nil {
		return classify(op, err)
	}
	var m osdMap
	if err := json.Unmarshal(raw, &m); err != nil {
		return refuse(op, worker.ReasonInternal, worker.Retry, "decode what the monitors say: %w", err)
	}

	return m.full(op, pools)
}

// osdMap is what `ceph osd dump` says of room. Flags are separated by commas (ceph 16.2.15 osd/OSDMap.cc get_flag_string,
// osd/osd_types.h pg_pool_t::get_flags_string).
type osdMap struct {
	Flags string `json:"flags"`
	Pools []struct {
		Name  string `json:"pool_name"`
		Flags string `json:"flags_names"`
	} `json:"pools"`
}

func (m osdMap) full(op string, pools []string) error {
	switch cluster := strings.Split(m.Flags, ","); {
	case slices.Contains(cluster, "full"):
		return refuse(op, worker.ReasonPoolFull, worker.Retry, "the cluster is full; add room or delete something")
	case slices.Contains(cluster, "pausewr"):
		return refuse(op, worker.ReasonCephUnavailable, worker.Retry, "an operator has paused all writes (ceph osd unset pause)")
	}
	for _, name := range pools {
		if err := m.fullPool(op, name); err != nil {
			return err
		}
	}

	return nil
}

func (m osdMap) fullPool(op, name string) error {
	for _, p := range m.Pools {
		if p.Name != name {
			continue
		}
		flags := strings.Split(p.Flags, ",")
		switch { // at its quota a pool has both flags
		case slices.Contains(flags, "full_quota"):
			return refuse(op, worker.ReasonPoolFull, worker.Retry,
				"pool %s has reached its quota; raise it (ceph osd pool set-quota) or delete something", name)
		case slices.Contains(flags, "full"):
			return refuse(op, worker.ReasonPoolFull, worker.Retry, "pool %s is full; add room or delete something", name)
		}

		return nil
	}

	return refuse(op, worker.ReasonCephRefused, worker.Retry, "pool %s is not there: %w", name, error(enoent))
}
