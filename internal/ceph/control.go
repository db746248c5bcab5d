package ceph

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/ceph/go-ceph/rados"

	"github.com/cinderlift/cinderlift/worker"
)

// control is a connection for journal, leases and health. A cluster has one at a time. A connection that was put on the
// OSDs' blocklist stays useless for ever, librados says so with ESHUTDOWN; then the next user makes another. So it does when
// there was no answer for longer than a lease. A connection of librados 16.2.15 has been seen that never again heard from an
// OSD that had been killed and was back, while new ones did; by then all leases that were taken over it are lost anyway.
//
// A lock belongs to the connection that took it. So a lease that was taken over a connection that is gone can't be
// renewed, and Renew answers ErrLeaseLost; everything else that a claim does works over any connection.
type control struct {
	conn *rados.Conn
	io   *rados.IOContext // journal and leases
	addr string           // as OSDs know it
	name string           // as cls_lock knows it

	pool, namespace string

	users   gate
	silence silence
}

// redial is the least time between two tries to make a control connection: a host may be on the blocklist as a whole.
const redial = time.Second

// errFenced is what a control connection answers that was fenced.
var errFenced = fmt.Errorf("the control connection was put on Ceph's blocklist, a new one is made: %w", error(eshutdown))

// errSilent is what a control connection answers that was given up because it answered nothing.
var errSilent = fmt.Errorf("the control connection heard nothing from Ceph for longer than a lease, a new one is made: %w", error(etimedout))

// silence is how long a connection has been without an answer. Safe for concurrent use.
type silence struct {
	mu    sync.Mutex
	since time.Time // when the first call of those timed out that nothing answered since; zero: it answers
}

// heard takes how a call ended, and answers for how long calls have done nothing but time out.
func (s *silence) heard(err error, now time.Time) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !is(err, etimedout) {
		s.since = time.Time{}

		return 0
	}
	if s.since.IsZero() {
		s.since = now
	}

	return now.Sub(s.since)
}

// dial makes a control connection.
func (c *Cluster) dial() (*control, error) {
	k := &control{pool: c.opts.JournalPool, namespace: c.opts.Namespace}
	var err error
	if k.conn, err = c.connect(c.opts.bounded()); err != nil {
		return nil, err
	}
	if k.io, err = k.versioned(); err != nil {
		k.conn.Shutdown()

		return nil, fmt.Errorf("journal: %w", err)
	}
	if k.addr, err = k.conn.GetAddrs(); err != nil {
		k.close()

		return nil, fmt.Errorf("ask for the own address: %w", err)
	}
	k.name = fmt.Sprintf("client.%d", k.conn.GetInstanceID())

	return k, nil
}

// bounded are the options of Ceph for a connection on which no operation may hang.
func (o Options) bounded() map[string]string {
	seconds := strconv.FormatFloat(o.Timeout.Seconds(), 'f', -1, 64)

	return map[string]string{
		"rados_osd_op_timeout": seconds, "rados_mon_op_timeout": seconds, "client_mount_timeout": seconds,
	}
}

// versioned is the journal in an I/O context of its own: the version of the last object that was read or written is kept
// by I/O context. It costs no round trip. The caller destroys it.
func (k *control) versioned() (*rados.IOContext, error) {
	own, err := ioctx(k.conn, k.pool)
	if err != nil {
		return nil, err
	}
	own.SetNamespace(k.namespace)

	return own, nil
}

func (k *control) close() {
	k.io.Destroy()
	k.conn.Shutdown()
}

// enter answers the control connection, with the caller as its user; users.leave has to follow. While one is being made
// all others wait, in goroutines of their own.
func (c *Cluster) enter() (*control, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, fmt.Errorf("the connection is closed: %w", worker.ErrStopping)
	}
	if c.control == nil {
		if time.Since(c.dialed) < redial {
			return nil, errFenced
		}
		k, err := c.dial()
		c.dialed = time.Now()
		if err != nil {
			return nil, err
		}
		c.control = k
	}
	c.control.users.enter() //nolint:errcheck // whoever shuts it takes it out of c under the same lock

	return c.control, nil
}

// drop gives up a control connection. Those who use it already get why.
func (c *Cluster) drop(k *control, why error) {
	c.mu.Lock()
	current := c.control == k
	if current {
		c.control = nil
	}
	c.mu.Unlock()
	if current {
		c.opts.Logger.Warn("the jobs of this worker lose their leases and are taken up again", "reason", why, "address", k.addr)
		c.retire(k, why)
	}
}

// retire closes a connection when its users have left. Who comes later gets why.
func (c *Cluster) retire(k *control, why error) {
	idle := k.users.shut(why)
	c.retired.Go(func() {
		<-idle
		k.close()
	})
}

// on runs fn with the control connection, as await does. A fenced connection is an error to be tried again: the next
// call has another.
func on[T any](ctx context.Context, c *Cluster, fn func(*control) (T, error), undo func(T)) (T, error) {
	return await(ctx, func() (T, error) {
		var none T
		k, err := c.enter()
		if err != nil {
			return none, unfenced(err)
		}
		defer k.users.leave()
		value, err := fn(k)
		c.judge(k, err)

		return value, unfenced(err)
	}, undo)
}

// judge gives up a connection over which nothing will come any more.
func (c *Cluster) judge(k *control, err error) {
	switch {
	case is(err, eshutdown):
		c.drop(k, errFenced)
	case k.silence.heard(err, time.Now()) >= c.opts.LeaseTTL:
		c.drop(k, errSilent)
	}
}

// onErr is on for a function that only fails or succeeds.
func onErr(ctx context.Context, c *Cluster, fn func(*control) error) error {
	_, err := on(ctx, c, func(k *control) (struct{}, error) { return struct{}{}, fn(k) }, nil)

	return err
}

// unfenced says what ESHUTDOWN means on the control connection: no job is lost by it.
func unfenced(err error) error {
	if !is(err, eshutdown) {
		return err
	}

	return refuse("reach Ceph", worker.ReasonCephUnavailable, worker.Retry, "%w", err)
}
