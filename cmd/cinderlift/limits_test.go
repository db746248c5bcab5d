package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cinderlift/cinderlift/internal/ceph"
)

func TestLimits(t *testing.T) {
	base := config{CopyObjects: 16, CopyJobObjects: 8, CopyRate: 5}
	for _, c := range []struct {
		name, file string
		want       ceph.Limits
		wrong      string // part of the error
	}{
		{"empty", "", ceph.Limits{Objects: 16, JobObjects: 8, Rate: 5}, ""},
		{"all", "CINDERLIFT_COPY_OBJECTS=3\nCINDERLIFT_COPY_JOB_OBJECTS=2\nCINDERLIFT_COPY_RATE=200MiB\nCINDERLIFT_COPY_JOB_RATE=1GB\nCINDERLIFT_EXPORT_RATE=1MiB\n",
			ceph.Limits{Objects: 3, JobObjects: 2, Rate: 200 << 20, JobRate: 1e9, ExportRate: 1 << 20}, ""},
		{"comment, quotes, no rate", "# by night\nCINDERLIFT_COPY_RATE=\"\"\n", ceph.Limits{Objects: 16, JobObjects: 8}, ""},
		{"another setting", "CINDERLIFT_SLOTS=3\n", ceph.Limits{}, "CINDERLIFT_SLOTS can't be set there"},
		{"no number", "CINDERLIFT_COPY_OBJECTS=many\n", ceph.Limits{}, "CINDERLIFT_COPY_OBJECTS"},
		{"none at a time", "CINDERLIFT_COPY_OBJECTS=0\n", ceph.Limits{}, "CINDERLIFT_COPY_OBJECTS: 0 is not between"},
		{"too many", "CINDERLIFT_COPY_JOB_OBJECTS=5000\n", ceph.Limits{}, "CINDERLIFT_COPY_JOB_OBJECTS: 5000"},
		{"no rate at all", "CINDERLIFT_COPY_RATE=fast\n", ceph.Limits{}, "not a number of bytes"},
		{"below zero", "CINDERLIFT_COPY_RATE=-1\n", ceph.Limits{}, "not a number of bytes"},
		{"beyond all", "CINDERLIFT_COPY_RATE=7EiB\n", ceph.Limits{}, "not a number of bytes"},
		{"too slow to be seen", "CINDERLIFT_EXPORT_RATE=1023KiB\n", ceph.Limits{}, "CINDERLIFT_EXPORT_RATE: 1047552 is below"},
		{"no lines", "what is this", ceph.Limits{}, "CINDERLIFT_LIMITS_FILE"},
	} {
		conf := base
		conf.LimitsFile = write(t, c.file)
		l, err := conf.limits()
		if c.wrong == "" && (err != nil || l != c.want) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, l, err, c.want)
		}
		if c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %v, want something of %q", c.name, err, c.wrong)
		}
	}
	base.LimitsFile = "/no/such/file"
	if _, err := base.limits(); err == nil {
		t.Error("a file that is not there was read")
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "limits")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	return file
}

// TestReload: SIGHUP changes the limits to what the file says by then; a broken file changes nothing, and says so.
func TestReload(t *testing.T) {
	conf := config{CopyObjects: 16, CopyJobObjects: 8, LimitsFile: write(t, "")}
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended, said := make(chan ceph.Limits), make(chan struct{}), make(chan string)
	signals, stop := hangUps()
	defer stop()
	go func() {
		defer close(ended)
		conf.reload(ctx, signals, func(l ceph.Limits) { changed <- l }, slog.New(slog.NewTextHandler(told(said), nil)))
	}()
	for _, c := range []struct {
		file string
		want int
		text string
	}{
		{"CINDERLIFT_COPY_OBJECTS=3", 3, "read again"},
		{"CINDERLIFT_COPY_OBJECTS=none", 0, "stay as they are"},
		{"CINDERLIFT_COPY_OBJECTS=5", 5, "read again"},
	} {
		if err := os.WriteFile(conf.LimitsFile, []byte(c.file), 0o600); err != nil {
			t.Fatal(err)
		}
		hangUp(t)
		for open := true; open; {
			select {
			case l := <-changed:
				if l.Objects != c.want {
					t.Errorf("%s: %+v", c.file, l)
				}
			case text := <-said:
				open = false
				if !strings.Contains(text, c.text) {
					t.Errorf("%s: the log says %q, want %q", c.file, text, c.text)
				}
			}
		}
	}
	cancel()
	<-ended
}

// told hands on every line of a log.
type told chan string

func (l told) Write(p []byte) (int, error) {
	l <- string(p)

	return len(p), nil
}

func hangUp(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
}
