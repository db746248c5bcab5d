package ceph

import (
	"context"
	"fmt"
	"sync"

	"github.com/cinderlift/cinderlift/worker"
)

// gate counts the users of a connection, so that nobody closes it under a call that lingers. The zero value is open.
type gate struct {
	mu      sync.Mutex
	running int
	idle    chan struct{} // nil while open; closed when nobody is inside any more
}

// enter counts one more user; leave has to follow a true. False: the gate is shut.
func (g *gate) enter() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle != nil {
		return false
	}
	g.running++

	return true
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 && g.idle != nil {
		close(g.idle)
	}
}

// shut lets nobody in any more. The channel is closed when all have left.
func (g *gate) shut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle == nil {
		g.idle = make(chan struct{})
		if g.running == 0 {
			close(g.idle)
		}
	}

	return g.idle
}

// through is await inside a gate.
func through[T any](ctx context.Context, g *gate, fn func() (T, error), undo func(T)) (T, error) {
	return await(ctx, func() (T, error) {
		if !g.enter() {
			var none T

			return none, fmt.Errorf("the connection is closed: %w", worker.ErrStopping)
		}
		defer g.leave()

		return fn()
	}, undo)
}

// throughErr is through for a function that only fails or succeeds.
func throughErr(ctx context.Context, g *gate, fn func() error) error {
	_, err := through(ctx, g, func() (struct{}, error) { return struct{}{}, fn() }, nil)

	return err
}
