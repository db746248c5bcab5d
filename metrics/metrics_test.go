package metrics_test

import (
	"bufio"
	"errors"
	"net/http/httptest"
	"os"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/cinderlift/cinderlift/metrics"
	"github.com/cinderlift/cinderlift/worker"
)

func recorder() *metrics.Recorder {
	return metrics.New(metrics.Options{Version: "test", Strategies: []string{"clone-flatten", "copy"},
		Steps:  map[string][]string{"clone-flatten": {"snapshot", "clone"}, "copy": {"copy-objects"}},
		Pauses: []string{"ceph", "pool-full"}, Orphans: []string{"image", "snapshot"}, Reaps: []string{"clean", "broken"}})
}

// scrape answers the lines of ours: no comments, no series of the runtime.
func scrape(t *testing.T, m *metrics.Recorder) []string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	var lines []string
	for s := bufio.NewScanner(w.Body); s.Scan(); {
		if strings.HasPrefix(s.Text(), "cinderlift_") {
			lines = append(lines, s.Text())
		}
	}
	sort.Strings(lines)

	return lines
}

// TestEverySeriesExistsAtZero compares with a golden file, so that renaming a series or a label is a visible change.
// UPDATE_GOLDEN=1 writes it anew.
func TestEverySeriesExistsAtZero(t *testing.T) {
	got := strings.Join(scrape(t, recorder()), "\n") + "\n"
	const golden = "testdata/at-zero.txt"
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("series at start differ from %s; UPDATE_GOLDEN=1 shows how", golden)
	}
	for _, line := range scrape(t, recorder()) {
		if !strings.HasSuffix(line, " 0") && !strings.HasPrefix(line, "cinderlift_build_info") {
			t.Errorf("not zero: %s", line)
		}
	}
}

func TestNamesFollowPrometheusRules(t *testing.T) {
	w := httptest.NewRecorder()
	recorder().Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	problems, err := promlint.New(w.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "cinderlift_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

func TestWhatIsRecordedShows(t *testing.T) {
	full := &worker.Error{Op: "copy", Reason: worker.ReasonPoolFull, Advice: worker.Retry, Err: errors.New("no space")}
	for _, tt := range []struct {
		name string
		do   func(*metrics.Recorder)
		want string
	}{
		{"delivery", func(m *metrics.Recorder) { m.Delivery(worker.Duplicate, true) },
			`cinderlift_deliveries_total{intake="duplicate"} 1`},
		{"redelivery", func(m *metrics.Recorder) { m.Delivery(worker.Accepted, true) }, `cinderlift_redeliveries_total 1`},
		{"running", func(m *metrics.Recorder) { m.JobStarted(false); m.JobStarted(true); m.JobReleased() },
			`cinderlift_jobs_in_progress 1`},
		{"adopted", func(m *metrics.Recorder) { m.JobStarted(false); m.JobStarted(true) }, `cinderlift_jobs_adopted_total 1`},
		{"settled", func(m *metrics.Recorder) {
			m.JobSettled(worker.Outcome{Result: worker.Done, Reason: worker.ReasonNone, Strategy: "copy"}, time.Second)
		}, `cinderlift_jobs_total{reason="none",result="done",strategy="copy"} 1`},
		{"settled before a strategy", func(m *metrics.Recorder) {
			m.JobSettled(worker.Outcome{Result: worker.Cancelled, Reason: worker.ReasonImageMissing}, time.Second)
		}, `cinderlift_jobs_total{reason="image-missing",result="cancelled",strategy="none"} 1`},
		{"step", func(m *metrics.Recorder) { m.StepEnded("copy", "copy-objects", time.Second, nil) },
			`cinderlift_step_duration_seconds_count{step="copy-objects",strategy="copy"} 1`},
		{"failed step", func(m *metrics.Recorder) { m.StepEnded("copy", "copy-objects", time.Second, full) },
			`cinderlift_step_failures_total{reason="pool-full",strategy="copy"} 1`},
		{"failed step counts for Ceph", func(m *metrics.Recorder) { m.StepEnded("copy", "copy-objects", time.Second, full) },
			`cinderlift_errors_total{service="ceph"} 1`},
		{"journal", func(m *metrics.Recorder) { m.StepRetried("journal", "save", worker.ReasonInternal) },
			`cinderlift_errors_total{service="ceph"} 1`},
		{"moved in the cluster", func(m *metrics.Recorder) { m.Moved("copy", 5, 0) },
			`cinderlift_bytes_total{strategy="copy",via="cluster"} 5`},
		{"moved through the worker", func(m *metrics.Recorder) { m.Moved("copy", 0, 7) },
			`cinderlift_bytes_total{strategy="copy",via="worker"} 7`},
		{"request", func(m *metrics.Recorder) { m.Request(metrics.Glance, 204) },
			`cinderlift_openstack_requests_total{code="2xx",service="glance"} 1`},
		{"no answer", func(m *metrics.Recorder) { m.Request(metrics.Cinder, 0) }, `cinderlift_errors_total{service="cinder"} 1`},
		{"server error", func(m *metrics.Recorder) { m.Request(metrics.Keystone, 503) },
			`cinderlift_errors_total{service="keystone"} 1`},
		{"put aside", func(m *metrics.Recorder) { m.JobPutAside() }, `cinderlift_jobs_put_aside_total 1`},
		{"paused", func(m *metrics.Recorder) { m.Paused("ceph", true) }, `cinderlift_paused{reason="ceph"} 1`},
		{"paused no more", func(m *metrics.Recorder) { m.Paused("ceph", true); m.Paused("ceph", false) },
			`cinderlift_paused{reason="ceph"} 0`},
		{"bus up", func(m *metrics.Recorder) { m.BusConnected(true) }, `cinderlift_bus_connected 1`},
		{"bus again", func(m *metrics.Recorder) { m.BusReconnected() }, `cinderlift_bus_reconnects_total 1`},
		{"bus lost", func(m *metrics.Recorder) { m.BusFailed() }, `cinderlift_errors_total{service="bus"} 1`},
		{"orphan found", func(m *metrics.Recorder) { m.OrphanFound("image") }, `cinderlift_orphans_found_total{kind="image"} 1`},
		{"orphan removed", func(m *metrics.Recorder) { m.OrphanRemoved("snapshot") },
			`cinderlift_orphans_removed_total{kind="snapshot"} 1`},
		{"reap", func(m *metrics.Recorder) { m.Reaped("clean") }, `cinderlift_reaps_total{result="clean"} 1`},
		{"probe", func(m *metrics.Recorder) { m.CephFailed() }, `cinderlift_errors_total{service="ceph"} 1`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := recorder()
			tt.do(m)
			for _, line := range scrape(t, m) {
				if line == tt.want {
					return
				}
			}
			t.Errorf("missing: %s", tt.want)
		})
	}
}
