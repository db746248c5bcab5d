package ceph

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

const (
	chunkSize  = 8 << 20 // read from the OSDs at once, in bytes: two objects of Cinder, one of Glance
	windowSize = 1 << 30 // asked for holes at once, in bytes
)

// content is an open snapshot. Reads go through a buffer of one chunk; a chunk in which no object exists is not read.
type content struct {
	im    *Images
	op    string
	ctx   context.Context // of Open: reads end with it
	size  int64
	limit int64 // object size

	mu     sync.Mutex // one call into librbd at a time, also one that lingers
	io     *rados.IOContext
	image  *rbd.Image // nil once closed
	chunk  []byte     // of the file from at on
	at     int64
	window extents

	pos    int64
	cancel context.CancelFunc
}

// extents are the parts of a window of the image in which something exists, in order.
type extents struct {
	from, to int64
	parts    [][2]int64
}

// Open implements strategies.Source.
func (im *Images) Open(ctx context.Context, src strategies.Ref, snap string) (strategies.Content, error) {
	op := fmt.Sprintf("open %s@%s", src, snap)
	joined, cancel := im.join(ctx)
	c := &content{im: im, op: op, ctx: joined, cancel: cancel}
	if err := im.users.enter(); err != nil {
		cancel()

		return nil, classify(op, err)
	}
	opened, err := detach(joined, func() (*content, error) {
		err := context.Cause(joined)
		if err == nil {
			err = c.open(src, snap)
		}
		if err != nil {
			im.users.leave()

			return nil, err
		}

		return c, nil
	}, func(c *content) { _ = c.close() })
	if err != nil {
		cancel()

		return nil, classify(op, err)
	}

	return opened, nil
}

func (c *content) open(src strategies.Ref, snap string) error {
	ioc, err := ioctx(c.im.conn, src.Pool)
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
	c.io, c.image, c.size, c.limit = ioc, image, int64(info.Size), int64(info.Obj_size)

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
	pos := c.pos
	part, err := await(c.ctx, func() ([]byte, error) { return c.load(pos) }, nil)
	if err != nil {
		return 0, classify(c.op, err)
	}
	n := copy(p, part)
	c.pos += int64(n)

	return n, nil
}

// load answers what follows pos, at least one byte of it. The slice is good until the next load.
func (c *content) load(pos int64) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.image == nil {
		return nil, refuse(c.op, worker.ReasonInternal, worker.GiveUp, "read after close: %w", errors.ErrUnsupported)
	}
	if pos >= c.at && pos < c.at+int64(len(c.chunk)) {
		return c.chunk[pos-c.at:], nil
	}
	at := pos - pos%chunkSize
	n := min(chunkSize, c.size-at)
	if c.chunk == nil {
		c.chunk = make([]byte, chunkSize)
	}
	c.chunk = c.chunk[:n]
	if err := c.fill(c.chunk, at); err != nil {
		c.chunk = c.chunk[:0]

		return nil, err
	}
	c.at = at

	return c.chunk[pos-at:], nil
}

// fill reads what exists of a chunk and makes the rest zeros.
func (c *content) fill(p []byte, at int64) error {
	clear(p)
	if err := c.look(at); err != nil {
		return err
	}
	end := at + int64(len(p))
	for _, part := range c.window.parts {
		from, to := max(part[0], at), min(part[1], end)
		if from >= to {
			continue
		}
		if _, err := c.image.ReadAt(p[from-at:to-at], from); err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("read %d bytes at %d: %w", to-from, from, err)
		}
	}

	return nil
}

// look finds out what exists in the window around at. Whole objects: with a fast-diff map librbd knows that without
// asking the OSDs.
func (c *content) look(at int64) error {
	if at >= c.window.from && at < c.window.to {
		return nil
	}
	w := extents{from: at - at%windowSize}
	w.to = min(w.from+windowSize, c.size)
	err := exists(c.ctx, c.image, w.from, w.to-w.from, rbd.IncludeParent, func(offset, length int64) {
		w.parts = append(w.parts, [2]int64{offset, offset + length})
	})
	if err != nil {
		return fmt.Errorf("look for holes from %d on: %w", w.from, err)
	}
	c.window = w

	return nil
}

// Close implements io.Closer. While a read lingers the handle is closed in the background: closing it under a call that
// is at work aborts inside librbd.
func (c *content) Close() error {
	c.cancel()
	if !c.mu.TryLock() {
		go func() { _ = c.close() }() // nobody can be told any more; reading only, so nothing is lost

		return nil
	}
	c.mu.Unlock()

	return classify(c.op, c.close())
}

func (c *content) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.image == nil {
		return nil
	}
	err := closeImage(c.io, c.image)
	c.io.Destroy()
	c.image, c.chunk = nil, nil
	c.im.users.leave()

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
