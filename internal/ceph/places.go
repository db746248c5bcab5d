package ceph

import "context"

// places bounds how many jobs have a connection while they are not moving data. Each costs 1.3 MiB, and about as much again
// while librbd is at work; what a job does then waits for the monitors and gains nothing from more of its kind.
type places chan struct{}

func (p places) tryEnter() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

// enter waits for a place, in the order of coming.
func (p places) enter(ctx context.Context) error {
	select {
	case p <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (p places) leave() { <-p }
