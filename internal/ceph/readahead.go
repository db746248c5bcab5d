package ceph

import (
	"context"
	"sync"
)

// extents are the parts of a window of the image in which something exists, in order.
type extents struct {
	from, to int64
	parts    [][2]int64
}

// within answers the parts of what exists between two offsets of the window.
func (e extents) within(from, to int64) (parts [][2]int64) {
	for _, p := range e.parts {
		if a, b := max(p[0], from), min(p[1], to); a < b {
			parts = append(parts, [2]int64{a, b})
		}
	}

	return parts
}

// readAhead reads parts of something side by side and hands them out in order. Its memory is bounded by its buffers, and
// what does not exist is not read. It is used by one goroutine; what it calls runs in others.
type readAhead struct {
	size  int64
	chunk int64                                                // bytes that are read at once
	read  func(p []byte, at int64) error                       // called by several goroutines at a time
	look  func(ctx context.Context, at int64) (extents, error) // the window around an offset, of whole chunks; one call at a time

	ctx   context.Context
	free  chan []byte // buffers that nobody uses
	zeros []byte

	run  *run // nil: none yet
	head *piece
}

// piece is a part, from at on.
type piece struct {
	at, size int64
	data     []byte
	buffer   []byte // nil: data is zeros
	err      error
	ready    chan struct{} // closed when data or err is there
}

// run is a reading ahead from some offset to the end.
type run struct {
	next   int64 // offset of the piece that comes next
	pieces chan *piece
	stop   context.CancelFunc
	ended  chan struct{} // closed when nothing of it runs any more
}

// ahead is how many pieces that are all zeros may wait: they need no memory.
const ahead = 64

func newReadAhead(
	ctx context.Context, size, chunk int64, buffers int,
	look func(context.Context, int64) (extents, error), read func([]byte, int64) error,
) *readAhead {
	r := &readAhead{size: size, chunk: chunk, look: look, read: read, ctx: ctx, free: make(chan []byte, buffers)}
	for range buffers {
		r.free <- nil // made when it is needed
	}

	return r
}

// at answers what follows pos, which is below size: at least one byte of it, good until the next call.
func (r *readAhead) at(pos int64) ([]byte, error) {
	for {
		if h := r.head; h != nil {
			if pos >= h.at && pos < h.at+h.size {
				return h.data[pos-h.at:], nil
			}
			r.giveBack(h)
			r.head = nil
		}
		if next := pos - pos%r.chunk; !r.comes(next) {
			r.begin(next)
		}
		if err := r.take(); err != nil {
			return nil, err
		}
	}
}

// comes reports whether the run gets to an offset soon enough to wait for it. Who skips a hole finds behind it what has been
// read meanwhile, and would lose that by beginning anew.
func (r *readAhead) comes(at int64) bool {
	return r.run != nil && r.run.next >= 0 && at >= r.run.next && at-r.run.next <= ahead*r.chunk
}

// take waits for the next piece.
func (r *readAhead) take() error {
	var p *piece
	select {
	case p = <-r.run.pieces:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	select {
	case <-p.ready:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	r.run.next += p.size
	if p.err != nil {
		r.giveBack(p)
		r.run.next = -1 // who asks again begins anew

		return p.err
	}
	r.head = p

	return nil
}

func (r *readAhead) giveBack(p *piece) {
	if p.buffer != nil {
		r.free <- p.buffer // there is room for all
	}
}

// begin reads from pos on. The reading before ends first: its buffers are needed.
func (r *readAhead) begin(pos int64) {
	before := r.run
	if before != nil {
		before.stop()
	}
	ctx, stop := context.WithCancel(r.ctx)
	now := &run{next: pos, pieces: make(chan *piece, ahead), stop: stop, ended: make(chan struct{})}
	r.run = now
	go func() {
		defer close(now.ended)
		if before != nil {
			<-before.ended
			r.reclaim(before)
		}
		r.produce(ctx, now, pos)
	}()
}

// reclaim takes the buffers of pieces that nobody wants any more.
func (r *readAhead) reclaim(old *run) {
	for {
		select {
		case p := <-old.pieces:
			r.giveBack(p)
		default:
			return
		}
	}
}

func (r *readAhead) produce(ctx context.Context, to *run, pos int64) {
	var readers sync.WaitGroup
	defer readers.Wait()
	var window extents
	for at := pos; at < r.size; {
		p := &piece{at: at, size: min(r.chunk, r.size-at), ready: make(chan struct{})}
		var err error
		if at < window.from || at >= window.to {
			window, err = r.look(ctx, at)
		}
		switch {
		case err != nil:
			p.err = err
			close(p.ready)
		case !r.start(ctx, &readers, p, window.within(at, at+p.size)):
			return // ctx is done
		}
		select {
		case to.pieces <- p:
		case <-ctx.Done():
			readers.Wait()
			r.giveBack(p)

			return
		}
		if err != nil {
			return
		}
		at += p.size
	}
}

// start begins to fill a piece; false when ctx is done before there is a buffer. An error of the reading is set before
// ready is closed.
func (r *readAhead) start(ctx context.Context, readers *sync.WaitGroup, p *piece, parts [][2]int64) bool {
	if len(parts) == 0 {
		if r.zeros == nil {
			r.zeros = make([]byte, r.chunk)
		}
		p.data = r.zeros[:p.size]
		close(p.ready)

		return true
	}
	select {
	case p.buffer = <-r.free:
	case <-ctx.Done():
		return false
	}
	if p.buffer == nil {
		p.buffer = make([]byte, r.chunk)
	}
	p.data = p.buffer[:p.size]
	readers.Go(func() {
		defer close(p.ready)
		p.err = r.fill(ctx, p, parts)
	})

	return true
}

func (r *readAhead) fill(ctx context.Context, p *piece, parts [][2]int64) error {
	clear(p.data)
	for _, part := range parts {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := r.read(p.data[part[0]-p.at:part[1]-p.at], part[0]); err != nil {
			return err
		}
	}

	return nil
}

// end stops reading. The channel is closed when nothing runs any more.
func (r *readAhead) end() <-chan struct{} {
	if r.run == nil {
		ended := make(chan struct{})
		close(ended)

		return ended
	}
	r.run.stop()

	return r.run.ended
}
