package ceph

import "context"

// await is detach for a ctx that may be done already: then fn is not run at all.
func await[T any](ctx context.Context, fn func() (T, error), undo func(T)) (T, error) {
	if ctx.Err() != nil {
		var none T

		return none, context.Cause(ctx)
	}

	return detach(ctx, fn, undo)
}

// detach runs fn, which calls into librados or librbd and can't be interrupted, and answers when fn has ended or ctx is
// done, whichever comes first. In the second case fn goes on by itself and must give back what it holds; a value that
// it still produces goes to undo (nil: nothing to give back).
func detach[T any](ctx context.Context, fn func() (T, error), undo func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	// Unbuffered: either the caller takes the value or undo gets it, never both and never neither.
	done := make(chan result)
	go func() {
		value, err := fn()
		select {
		case done <- result{value, err}:
		case <-ctx.Done():
			if err == nil && undo != nil {
				undo(value)
			}
		}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	}
}

// awaitErr is await for a function that only fails or succeeds.
func awaitErr(ctx context.Context, fn func() error) error {
	_, err := await(ctx, func() (struct{}, error) { return struct{}{}, fn() }, nil)

	return err
}
