//go:build lab

package lab_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// benchGiB is the size of the benchmark's volume; CINDERLIFT_BENCH_GIB sets it, CI takes 1.
func benchGiB(b *testing.B) int {
	b.Helper()
	s := os.Getenv("CINDERLIFT_BENCH_GIB")
	if s == "" {
		return 4
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		b.Fatal(err)
	}

	return n
}

// BenchmarkUpload runs stock Cinder and cinderlift in one go on the same volume, 40 % of it written, and an empty volume
// of 100 GiB with cinderlift alone. It reports seconds from the request until the image is active and until the volume is
// free again, and the ratio to stock. `make bench` runs it; absolute times say little on a shared machine.
func BenchmarkUpload(b *testing.B) {
	ctx := context.Background()
	l, err := lab.FromEnvironment()
	if err != nil {
		b.Fatal(err)
	}
	c, err := l.As(ctx, "demo")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	full := benchVolume(b, c, benchGiB(b), 40)
	must(b, l.Control(ctx, "hook", "none"))
	var stock time.Duration
	b.Run("stock", func(b *testing.B) {
		for b.Loop() {
			stock, _ = benchUpload(b, c, full)
		}
		b.ReportMetric(stock.Seconds(), "active_s")
	})
	must(b, l.Control(ctx, "hook", "volume_manager"))
	defer func() { _ = l.Control(ctx, "hook", "none") }()
	empty := benchVolume(b, c, 100, 0)
	for _, way := range []struct {
		name, caps, volume string
		set                map[string]string
	}{
		{"clone-flatten early", "early", full, map[string]string{"CINDERLIFT_REGISTER": "early"}},
		{"clone-flatten late", "documented", full, map[string]string{"CINDERLIFT_REGISTER": "late"}},
		{"copy", "documented", full, map[string]string{"CINDERLIFT_STRATEGIES": "copy"}},
		{"export-upload", "documented", full, map[string]string{"CINDERLIFT_STRATEGIES": "export-upload"}},
		{"clone-flatten early, empty 100 GiB", "early", empty, map[string]string{"CINDERLIFT_REGISTER": "early"}},
	} {
		b.Run(way.name, func(b *testing.B) {
			must(b, l.Control(ctx, "caps", way.caps))
			w, err := l.StartWorker(ctx, way.set, "", nil)
			must(b, err)
			defer func() { _ = w.Stop() }()
			var active, released time.Duration
			for b.Loop() {
				active, released = benchUpload(b, c, way.volume)
			}
			b.ReportMetric(active.Seconds(), "active_s")
			b.ReportMetric(released.Seconds(), "released_s")
			b.ReportMetric(float64(through(b, w))/(1<<20), "worker_MiB")
			if way.volume == full && stock > 0 {
				b.ReportMetric(stock.Seconds()/active.Seconds(), "x_stock")
			}
		})
	}
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func benchVolume(b *testing.B, c *lab.Cloud, gib, percent int) string {
	b.Helper()
	ctx := context.Background()
	id, err := c.CreateVolume(ctx, lab.VolumeSpec{Name: fmt.Sprintf("bench-%d", gib), GiB: gib})
	must(b, err)
	b.Cleanup(func() { _ = c.DeleteVolume(ctx, id) })
	if percent > 0 {
		_, err = c.Fill(ctx, rbdVolume(id), 40, percent)
		must(b, err)
	}

	return id
}

// benchUpload makes an image, times it and deletes it.
func benchUpload(b *testing.B, c *lab.Cloud, volume string) (active, released time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	begin := time.Now()
	id, err := c.Upload(ctx, volume, lab.Raw("bench"))
	must(b, err)
	must(b, c.WaitImage(ctx, id, "active"))
	active = time.Since(begin)
	must(b, c.WaitVolume(ctx, volume, "available"))
	released = time.Since(begin)
	must(b, c.RemoveImage(ctx, id))

	return active, released
}

// through is how many bytes of data went through the worker.
func through(b *testing.B, w *lab.Worker) (n int64) {
	b.Helper()
	m, err := w.Metrics(context.Background())
	must(b, err)
	for series, v := range m {
		if strings.HasPrefix(series, "cinderlift_bytes_total{") && strings.Contains(series, `via="worker"`) {
			n += int64(v)
		}
	}

	return n
}
