package ceph

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ceph/go-ceph/rados"
)

// link is a connection of an Images, and the address by which a successor fences it.
type link struct {
	conn *rados.Conn
	addr string
}

// line is what an Images has a connection by: one at a time, or none while a job waits.
type line struct {
	mu      sync.Mutex           // held while a connection is made or closed
	link    atomic.Pointer[link] // nil: parked, or closed for good
	parking atomic.Bool          // close it as soon as nobody uses it

	users gate

	// announce, if set, writes the address of a new connection where a successor looks for it, before it is used.
	announce func(addr string) error

	// place, if set, gives back the place among Options.Connections. A connection that is made anew takes none: whoever
	// waits for one must not wait for those that wait for it.
	place func()
}

// link connects. Nothing may be done over the connection before its address is where a successor fences it.
func (c *Cluster) link() (*link, error) {
	conn, err := c.connect(dataConf(c.opts))
	if err != nil {
		return nil, fmt.Errorf("connect for the job: %w", err)
	}
	addr, err := conn.GetAddrs()
	if err != nil {
		conn.Shutdown()

		return nil, fmt.Errorf("ask for the own address: %w", err)
	}

	return &link{conn, addr}, nil
}

// conn is the connection, for those among the users.
func (im *Images) conn() *rados.Conn { return im.line.link.Load().conn }

// address is by what the connection is fenced; "" without one.
func (im *Images) address() string {
	if l := im.line.link.Load(); l != nil {
		return l.addr
	}

	return ""
}

// connected makes a connection if there is none. The caller is among the users already, so nobody closes it meanwhile.
func (im *Images) connected() error {
	l := &im.line
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parking.Store(false)
	if l.link.Load() != nil {
		return nil
	}
	made, err := im.c.link()
	if err != nil {
		return err
	}
	if err := im.introduce(made); err != nil {
		made.conn.Shutdown()

		return err
	}
	l.link.Store(made)

	return nil
}

// introduce makes a connection one that a successor fences, and that knows whom this job has fenced. A release that
// begins meanwhile ends im.ctx first and takes the lease away afterwards; so either it is seen here, or announce fails.
func (im *Images) introduce(l *link) error {
	if im.line.announce != nil {
		if err := im.line.announce(l.addr); err != nil {
			return fmt.Errorf("note the new connection: %w", err)
		}
	}
	if err := l.conn.WaitForLatestOSDMap(); err != nil {
		return fmt.Errorf("wait for the OSD map: %w", err)
	}

	return context.Cause(im.ctx)
}

// leave is for users, when they are done.
func (im *Images) leave() {
	im.line.users.leave()
	im.hangUpIdle()
}

// park closes the connection as soon as nobody uses it. Whoever needs one again makes one. Closing takes a moment, and may
// hang, so nobody waits for it; who comes before it has begun finds the connection as it was.
func (im *Images) park() {
	im.line.parking.Store(true)
	go im.hangUpIdle()
}

func (im *Images) hangUpIdle() {
	l := &im.line
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.parking.Load() && l.users.inside() == 0 {
		l.hangUp()
	}
}

// hangUp closes the connection. The caller holds mu, and nobody is among the users.
func (l *line) hangUp() {
	if link := l.link.Swap(nil); link != nil {
		link.conn.Shutdown()
	}
	if l.place != nil {
		l.place()
		l.place = nil
	}
}

// hangUp closes the connection for good: the users are shut out.
func (im *Images) hangUp() {
	im.line.mu.Lock()
	defer im.line.mu.Unlock()
	im.line.hangUp()
}
