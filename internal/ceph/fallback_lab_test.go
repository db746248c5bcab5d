//go:build lab

package ceph

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// lines collects what is logged.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.all.Write(p)
}

// TestFallback: where OSDs refuse to copy, the image is made through this process, from the beginning or from the middle
// on, and the log says once why.
func TestFallback(t *testing.T) {
	seal := func(ctx context.Context, im *Images, m strategies.Make) error { return im.Seal(ctx, m) }
	clone := func(ctx context.Context, im *Images, m strategies.Make) error { return im.Clone(ctx, m) }
	flatten := func(ctx context.Context, im *Images, m strategies.Make) error { return im.Flatten(ctx, m, nil) }
	copying := func(ctx context.Context, im *Images, m strategies.Make) error { return im.CopyObjects(ctx, m, nil) }
	for name, steps := range map[string][]func(context.Context, *Images, strategies.Make) error{
		"flatten": {clone, seal, flatten},
		"copy":    {copying, seal},
	} {
		for _, allowed := range []int{0, 5} {
			for _, errno := range []error{einval, enotsup} {
				t.Run(fmt.Sprintf("%s/%v after %d", name, errno, allowed), func(t *testing.T) {
					t.Parallel()
					r, im, said := labRig(t), labImages(t), &lines{}
					im.c.opts.Logger = slog.New(slog.NewTextHandler(said, nil))
					im.copy = refusing(allowed, errno)
					m := made(t, r, 24)
					for _, step := range steps {
						for range 2 {
							must(t, step(t.Context(), im, m))
						}
					}
					want := r.Backdoor.Read(t, m.Src, m.Snapshot)
					if !bytes.Equal(r.Backdoor.Read(t, m.Dst, strategies.GlanceSnapshot), want) {
						t.Error("the image has other bytes than the volume")
					}
					text := said.all.String()
					if n := strings.Count(text, "go through this worker"); n != 1 || !strings.Contains(text, errno.Error()) {
						t.Errorf("the log says %d times that data goes through the worker, and why: %s", n, text)
					}
				})
			}
		}
	}
}

// refusing copies some objects and then none.
func refusing(allowed int, errno error) func(*rados.IOContext, string, *rados.IOContext, string) error {
	var mu sync.Mutex

	return func(to *rados.IOContext, dst string, from *rados.IOContext, src string) error {
		mu.Lock()
		defer mu.Unlock()
		if allowed == 0 {
			return errno
		}
		allowed--

		return copyObject(to, dst, from, src)
	}
}

// TestFallbackIsToldOnce: a step that is tried again has the same reason.
func TestFallbackIsToldOnce(t *testing.T) {
	t.Parallel()
	r, im, said := labRig(t), labImages(t), &lines{}
	im.c.opts.Logger = slog.New(slog.NewTextHandler(said, nil))
	m := made(t, r, 24)
	m.ObjectSize = 2 * r.ObjectSize
	ctx, cancel := context.WithCancel(t.Context())
	if err := im.CopyObjects(ctx, m, func(worker.Amount) { cancel() }); err == nil {
		t.Error("an interrupted copy succeeded")
	}
	must(t, im.CopyObjects(t.Context(), m, nil))
	text := said.all.String()
	if n := strings.Count(text, "go through this worker"); n != 1 || !strings.Contains(text, "object sizes differ") {
		t.Errorf("the log says %d times that data goes through the worker, and why: %s", n, text)
	}
}
