package ceph

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/worker"
)

func TestFullFlags(t *testing.T) {
	for _, c := range []struct {
		name, cluster, pool string
		want                worker.Reason
		says                string
	}{
		{"room", "sortbitwise,recovery_deletes", "hashpspool", worker.ReasonNone, ""},
		{"nearly full", "nearfull,sortbitwise", "hashpspool,nearfull", worker.ReasonNone, ""},
		{"backfill stops", "", "hashpspool,backfillfull", worker.ReasonNone, ""},
		{"full", "sortbitwise", "hashpspool,full", worker.ReasonPoolFull, "is full"},
		{"quota", "sortbitwise", "hashpspool,full,full_quota", worker.ReasonPoolFull, "quota"},
		{"cluster full", "full,sortbitwise", "hashpspool", worker.ReasonPoolFull, "cluster"},
		{"paused", "pauserd,pausewr", "hashpspool", worker.ReasonCephUnavailable, "paused"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var m osdMap
			raw := `{"flags":"` + c.cluster + `","pools":[{"pool_name":"other","flags_names":"full"},` +
				`{"pool_name":"images","flags_names":"` + c.pool + `"}]}`
			if err := json.Unmarshal([]byte(raw), &m); err != nil {
				t.Fatal(err)
			}
			err := m.full("look", []string{"images"})
			if worker.ReasonOf(err) != c.want {
				t.Fatalf("%v, want reason %s", err, c.want)
			}
			if err != nil && (worker.AdviceOf(err) != worker.Retry || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("%v, want Retry and a word of %q", err, c.says)
			}
			if err := m.full("look", []string{"no such"}); err == nil {
				t.Error("a pool that is not there has room")
			}
		})
	}
}
