package ceph

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/worker"
)

const (
	watchPause = time.Second     // between two tries to watch
	watchCheck = 5 * time.Second // between two looks whether the watch still holds

	// notifyTimeout is how long others may take to acknowledge. Whoever was killed within the last half minute never
	// does, although everybody else has heard at once.
	notifyTimeout = time.Second
)

// Watch implements worker.Journal with a watch on the index. It has a connection of its own: setting up a watch knows no
// timeout while an OSD is away, and go-ceph holds a lock meanwhile that the callbacks of all watches need (go-ceph 0.41.0
// rados/watcher.go:115), so neither may be in the way of a lease.
//
// Each time that the watch is set up the hint is given as well: something may have been released before.
func (c *Cluster) Watch(ctx context.Context, hint func()) error {
	for ctx.Err() == nil {
		err := awaitErr(ctx, func() error { return c.watch(ctx, hint) })
		if ctx.Err() == nil {
			c.opts.Logger.Info("the watch on the journal ended and is set up again", "reason", err)
		}
		_ = pause(ctx, watchPause)
	}

	return context.Cause(ctx)
}

// watch sets up one watch and serves it until it breaks or ctx is done.
func (c *Cluster) watch(ctx context.Context, hint func()) error {
	done := make(chan struct{})
	defer close(done) // after the connection: a callback that nobody listens to would hold up its end
	conn, err := c.connect(c.opts.bounded())
	if err != nil {
		return err
	}
	defer conn.Shutdown()
	k := &control{conn: conn, pool: c.opts.JournalPool, namespace: c.opts.Namespace}
	if k.io, err = k.versioned(); err != nil {
		return err
	}
	defer k.io.Destroy()
	w, err := k.watchIndex()
	if err != nil {
		return fmt.Errorf("watch the journal's index: %w", err)
	}
	addr, _ := conn.GetAddrs() // for the operator only
	c.opts.Logger.Debug("watching the journal", "address", addr)
	broken := make(chan error, 1)
	go serve(w, broken, done, func() {
		if ctx.Err() == nil {
			hint()
		}
	})
	err = hold(ctx, w, broken)

	return errors.Join(err, unwatch(k.io, w))
}

// watchIndex makes the index if there was never a job.
func (k *control) watchIndex() (*rados.Watcher, error) {
	w, err := k.io.Watch(indexObject)
	if !is(err, enoent) {
		return w, err
	}
	op := rados.CreateWriteOp()
	defer op.Release()
	op.Create(rados.CreateIdempotent)
	if err := op.Operate(k.io, indexObject, rados.OperationNoFlag); err != nil {
		return nil, err
	}

	return k.io.Watch(indexObject)
}

// serve takes what the callbacks of a watch bring. It goes on until done, also when the watch has been taken back: a callback
// that nobody listens to would wait for ever, and the end of the connection for it.
func serve(w *rados.Watcher, broken chan<- error, done <-chan struct{}, hint func()) {
	hint()
	events, failures := w.Events(), w.Errors()
	for {
		select {
		case <-done:
			return
		case event := <-events:
			_ = event.Ack(nil) // otherwise the notifier waits; nothing else comes of it
			hint()
		case err := <-failures:
			select {
			case broken <- err:
			default:
			}
		}
	}
}

// hold returns when the watch is broken or ctx is done.
func hold(ctx context.Context, w *rados.Watcher, broken <-chan error) error {
	ticker := time.NewTicker(watchCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-broken:
			return err
		case <-ticker.C:
			if _, err := w.Check(); err != nil {
				return err
			}
		}
	}
}

var errUnheard = errors.New("not everybody who watches the journal has answered")

// notify tells all who watch that a job is to be had. It fails harmlessly: they look by themselves now and then.
func (c *Cluster) notify(ctx context.Context) {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*notifyTimeout, worker.ErrStopping)
	defer cancel()
	err := onErr(ctx, c, func(k *control) error {
		_, _, err := k.io.NotifyWithTimeout(indexObject, nil, notifyTimeout)
		if is(err, etimedout) { // somebody who watches was silent, not Ceph: see silence
			return errUnheard
		}

		return err
	})
	if err != nil {
		c.opts.Logger.Debug("not all other workers could be told that a job was given back", "error", err)
	}
}
