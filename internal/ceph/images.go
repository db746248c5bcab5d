package ceph

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/ceph/go-ceph/rados"
	"github.com/ceph/go-ceph/rbd"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

// Images is RBD over one connection at a time. It implements strategies.Source and strategies.Destination. Calls for the
// same image wait for each other, also for what lingers of a call that has returned.
type Images struct {
	c    *Cluster
	line line

	ctx  context.Context // ends when it is closed
	stop context.CancelCauseFunc

	admit *admission

	copy func(to *rados.IOContext, dst string, from *rados.IOContext, src string) error // copyObject, but in tests

	note   func(raw []byte) error // writes into the job's journal what is being filled; nil: belongs to no job
	filled atomic.Pointer[filled]

	mu     sync.Mutex
	busy   map[strategies.Ref]chan struct{} // closed when the call on that image has ended
	fenced []string                         // addresses of the job's earlier owners, see stale.go

	spares map[strategies.Ref]chan uint64 // ids for snapshots, see Prepare
	told   map[strategies.Ref]bool        // the log says already that data of it goes through this process
}

var (
	_ strategies.Source      = (*Images)(nil)
	_ strategies.Destination = (*Images)(nil)
)

// dataConf is what connections that do the work are set to. Without the cache a write of a whole object is one atomic
// operation on the OSD, which resuming a copy relies on, and a job costs no cache memory.
func dataConf(o Options) map[string]string {
	conf := map[string]string{"rbd_cache": "false"}
	maps.Copy(conf, o.DataConf)
	conf["client_mount_timeout"] = fmt.Sprint(o.Timeout.Seconds())

	return conf
}

func (c *Cluster) connectImages() (*Images, error) {
	l, err := c.link()
	if err != nil {
		return nil, err
	}
	im := &Images{
		c: c, copy: copyObject, admit: c.limits.job(),
		busy: map[strategies.Ref]chan struct{}{}, told: map[strategies.Ref]bool{}, spares: map[strategies.Ref]chan uint64{},
	}
	im.line.link.Store(l)
	im.ctx, im.stop = context.WithCancelCause(context.Background())

	return im, nil
}

// Images makes a connection that belongs to no job and that nobody fences: for looking, as `cinderlift check` does. The
// caller closes it.
func (c *Cluster) Images(ctx context.Context) (*Images, error) {
	im, err := await(ctx, c.connectImages, func(im *Images) { im.hangUp() })

	return im, classify("connect to Ceph", err)
}

// Close waits for what runs, until ctx is done, and ends the connection. Only for Images that belong to no Claim.
func (im *Images) Close(ctx context.Context) error { return im.close(ctx) }

// close cancels what runs and ends the connection when it has ended.
func (im *Images) close(ctx context.Context) error {
	select {
	case <-im.shut():
		im.hangUp()

		return nil
	case <-ctx.Done():
		return fmt.Errorf("work in Ceph has not ended: %w", context.Cause(ctx))
	}
}

// closeLate ends the connection whenever what lingers has ended.
func (im *Images) closeLate() {
	<-im.shut()
	im.hangUp()
}

// shut ends what runs, and lets nothing new begin. The channel is closed when nothing runs any more.
func (im *Images) shut() <-chan struct{} {
	im.stop(worker.ErrStopping)

	return im.line.users.shut(fmt.Errorf("the connection is closed: %w", worker.ErrStopping))
}

// do runs fn, which works on one image, and answers when it has ended or ctx is done. The context of fn ends with ctx
// and with the connection; fn looks at it between two calls into librbd.
func (im *Images) do(ctx context.Context, op string, on strategies.Ref, fn func(context.Context) error) error {
	ctx, cancel := im.join(ctx)
	defer cancel()
	release, err := im.reserve(ctx, on)
	if err != nil {
		return classify(op, err)
	}
	if err := im.line.users.enter(); err != nil {
		release()

		return classify(op, err)
	}

	_, err = detach(ctx, func() (struct{}, error) {
		defer im.leave()
		defer release()
		if err := im.connected(); err != nil {
			return struct{}{}, err
		}
		if ctx.Err() != nil {
			return struct{}{}, context.Cause(ctx)
		}

		return struct{}{}, fn(ctx)
	}, nil)

	return classify(op, err)
}

// join makes a context that ends with ctx and with the connection, with the cause of either.
func (im *Images) join(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(im.ctx, func() { cancel(context.Cause(im.ctx)) })

	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// reserve waits until nothing else runs on the image.
func (im *Images) reserve(ctx context.Context, on strategies.Ref) (release func(), err error) {
	for {
		im.mu.Lock()
		other := im.busy[on]
		if other == nil {
			mine := make(chan struct{})
			im.busy[on] = mine
			im.mu.Unlock()

			return func() { im.free(on, mine) }, nil
		}
		im.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (im *Images) free(on strategies.Ref, mine chan struct{}) {
	im.mu.Lock()
	defer im.mu.Unlock()
	delete(im.busy, on)
	close(mine)
}

// pool opens a pool for as long as fn runs.
func (im *Images) pool(name string, fn func(*rados.IOContext) error) error {
	io, err := ioctx(im.conn(), name)
	if err != nil {
		return err
	}
	defer io.Destroy()

	return fn(io)
}

// image opens an image for writing for as long as fn runs. At most one handle on an image is open at a time: closing one
// while another is at work aborted inside librbd 16.
func (im *Images) image(at strategies.Ref, fn func(*rbd.Image) error) error {
	return im.pool(at.Pool, func(io *rados.IOContext) error {
		return with(io, func(image *rbd.Image) error {
			if err := im.breakStale(image); err != nil {
				return err
			}

			return fn(image)
		})(rbd.OpenImage(io, at.Image, rbd.NoSnapshot))
	})
}

// reading opens an image, or its snapshot, read-only for as long as fn runs.
func (im *Images) reading(at strategies.Ref, snap string, fn func(*rbd.Image) error) error {
	return im.pool(at.Pool, func(io *rados.IOContext) error {
		return with(io, fn)(rbd.OpenImageReadOnly(io, at.Image, snap))
	})
}

// with closes the image, which was opened with io, after fn. An error of the close counts: what was written may not be
// there.
func with(io *rados.IOContext, fn func(*rbd.Image) error) func(*rbd.Image, error) error {
	return func(image *rbd.Image, err error) error {
		if err != nil {
			return err
		}
		err = fn(image)
		if closed := closeImage(io, image); err == nil && closed != nil {
			return fmt.Errorf("close the image: %w", closed)
		}

		return err
	}
}

// listed reports whether the pool's directory has the name, or the trash has it for an image that is being removed: librbd
// takes that for listed as well (librbd/api/Image.cc list_images). An image that was half removed, or half made, is listed
// but can't be opened. In the directory the name alone is asked for: a list of the pool grows with the pool.
func listed(io *rados.IOContext, name string) (there bool, err error) {
	values, err := omapValues(io, directoryObject, namePrefix+name)
	if len(values) > 0 || err != nil && !is(err, enoent) { // enoent: the pool never had an image
		return len(values) > 0, err
	}
	err = eachKey(io, trashObject, func(_ string, value []byte) {
		source, removing, ok := trashSpec(value)
		there = there || ok && source == trashRemoving && removing == name
	})

	return there, err
}
