package ceph

import (
	"context"
	"sync"
)

// gate counts the users of a connection, so that nobody closes it under a call that lingers. The zero value is open.
type gate struct {
	mu      sync.Mutex
	running int
	why     error         // it is shut
	idle    chan struct{} // nil while open; closed when nobody is inside any more
}

// enter counts one more user, for whom leave has to follow, unless the gate is shut: then it says why.
func (g *gate) enter() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle != nil {
		return g.why
	}
	g.running++

	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running--
	if g.running == 0 && g.idle != nil {
		close(g.idle)
	}
}

// inside counts the users.
func (g *gate) inside() int {
	g.mu.Lock()
	defer g.mu.Unlock()

	return g.running
}

// shut lets nobody in any more and tells them why. The channel is closed when all have left.
func (g *gate) shut(why error) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.idle == nil {
		g.idle, g.why = make(chan struct{}), why
		if g.running == 0 {
			close(g.idle)
		}
	}

	return g.idle
}

// throughErr is awaitErr inside a gate.
func throughErr(ctx context.Context, g *gate, fn func() error) error {
	return awaitErr(ctx, func() error {
		if err := g.enter(); err != nil {
			return err
		}
		defer g.leave()

		return fn()
	})
}
