package ceph

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

const (
	chunkSize  = 4 << 20 // read from the OSDs at once, in bytes: an object of Cinder
	chunks     = 4       // read at a time
	windowSize = 1 << 30 // asked for holes at once, in bytes
)

// content is an open snapshot. It is read ahead, a few chunks at a time; a chunk in which no object exists is not read.
type content struct {
	im    *Images
	op    string
	ctx   context.Context // of Open: reads end with it
	size  int64
	io    *rados.IOContext
	image *rbd.Image
	reads *readAhead

	pos    int64
	closed bool
	cancel context.CancelFunc
	looks  sync.WaitGroup // of Allocated; they may linger
}

// Open implements strategies.Source.
func (im *Images) Open(ctx context.Context, src strategies.Ref, snap string) (strategies.Content, error) {
	op := fmt.Sprintf("open %s@%s", src, snap)
	joined, cancel := im.join(ctx)
	c := &content{im: im, op: op, ctx: joined, cancel: cancel}
	if err := im.line.users.enter(); err != nil {
		cancel()

		return nil, classify(op, err)
	}
	opened, err := detach(joined, func() (*content, error) {
		err := context.Cause(joined)
		if err == nil {
			err = im.connected()
		}
		if err == nil {
			err = c.open(src, snap)
		}
		if err != nil {
			im.leave()

			return nil, err
		}

		return c, nil
	}, func(c *content) { _ = c.shut() })
	if err != nil {
		cancel()

		return nil, classify(op, err)
	}

	return opened, nil
}

func (c *content) open(src strategies.Ref, snap string) error {
	ioc, err := ioctx(c.im.conn(), src.Pool)
	if err != nil {
		return err
	}
	image, err := rbd.OpenImageReadOnly(ioc, src.Image, rbd.NoSnapshot)
	if err != nil {
		ioc.Destroy()

		return missing(c.op, err)
	}
	err = missingSnapshot(c.op, image.SetSnapshot(snap))
	var info *rbd.ImageInfo
	if err == nil {
		info, err = image.Stat()
	}
	if err != nil {
		_ = closeImage(ioc, image) // the first error says more
		ioc.Destroy()

		return err
	}
	c.io, c.image, c.size = ioc, image, int64(info.Size)
	c.reads = newReadAhead(c.ctx, c.size, chunkSize, chunks, c.look, c.read)

	return nil
}

// Size implements strategies.Content.
func (c *content) Size() int64 { return c.size }

// Seek implements io.Seeker.
func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.pos
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return 0, refuse(c.op, worker.ReasonInternal, worker.GiveUp, "seek to %d, whence %d", offset, whence)
	}
	c.pos = offset

	return offset, nil
}

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	if c.pos >= c.size {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if c.closed {
		return 0, refuse(c.op, worker.ReasonInternal, worker.GiveUp, "read after close: %w", errors.ErrUnsupported)
	}
	part, err := c.reads.at(c.pos)
	if err != nil {
		return 0, classify(c.op, err)
	}
	n := copy(p, part)
	c.pos += int64(n)

	return n, nil
}

// read is called by several goroutines, which librbd allows.
func (c *content) read(p []byte, at int64) error {
	if err := c.im.c.limits.exports.pace(c.ctx, int64(len(p))); err != nil {
		return err
	}
	if _, err := c.image.ReadAt(p, at); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %d bytes at %d: %w", len(p), at, err)
	}

	return nil
}

// Allocated implements strategies.Content.
func (c *content) Allocated(found func(from, to int64) error) error {
	for at := int64(0); at < c.size; {
		if c.closed {
			return refuse(c.op, worker.ReasonInternal, worker.GiveUp, "look for holes after close: %w", errors.ErrUnsupported)
		}
		c.looks.Add(1)
		w, err := detach(c.ctx, func() (extents, error) {
			defer c.looks.Done()

			return c.look(c.ctx, at)
		}, nil)
		if err != nil {
			return classify(c.op, err)
		}
		for _, p := range w.within(at, w.to) {
			if err := found(p[0], p[1]); err != nil {
				return err
			}
		}
		at = w.to
	}

	return nil
}

// look finds out what exists in the window around at. Whole objects: with a fast-diff map librbd knows that without
// asking the OSDs.
func (c *content) look(ctx context.Context, at int64) (extents, error) {
	w := extents{from: at - at%windowSize}
	w.to = min(w.from+windowSize, c.size)
	err := exists(ctx, c.image, w.from, w.to-w.from, rbd.IncludeParent, func(offset, length int64) {
		w.parts = append(w.parts, [2]int64{offset, offset + length})
	})
	if err != nil {
		return w, fmt.Errorf("look for holes from %d on: %w", w.from, err)
	}

	return w, nil
}

// closeWithin is how long Close waits for reads that are under way.
const closeWithin = time.Second

// Close implements io.Closer. While reads linger the handle is closed in the background: closing it under a call that is
// at work aborts inside librbd.
func (c *content) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	c.cancel()
	ended := c.ended()
	timer := time.NewTimer(closeWithin)
	defer timer.Stop()
	select {
	case <-ended:
		return classify(c.op, c.shut())
	case <-timer.C:
		go func() { <-ended; _ = c.shut() }() // nobody can be told any more; reading only, so nothing is lost

		return nil
	}
}

// ended is closed when nothing works with the image any more.
func (c *content) ended() <-chan struct{} {
	ended, reads := make(chan struct{}), c.reads.end()
	go func() {
		defer close(ended)
		<-reads
		c.looks.Wait()
	}()

	return ended
}

func (c *content) shut() error {
	err := closeImage(c.io, c.image)
	c.io.Destroy()
	c.im.leave()

	return err
}

// exists calls found for every part of the image, rounded to whole objects, in which something exists.
func exists(
	ctx context.Context, image *rbd.Image, from, length int64, parents rbd.DiffIncludeParent, found func(offset, length int64),
) error {
	if length <= 0 {
		return nil
	}
	err := image.DiffIterate(rbd.DiffIterateConfig{
		Offset: uint64(from), Length: uint64(length), IncludeParent: parents, WholeObject: rbd.EnableWholeObject,
		Callback: func(offset, length uint64, there int, _ any) int {
			if ctx.Err() != nil {
				return -int(ecanceled)
			}
			if there != 0 {
				found(int64(offset), int64(length))
			}

			return 0
		},
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}

	return err
}
