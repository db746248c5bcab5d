package lab

import (
	"context"
	"strconv"
)

// Scatter writes data in pieces of many sizes at places of its own choice, the same for the same seed.
func (l *Lab) Scatter(ctx context.Context, at string, seed uint64, mib int) error {
	_, err := l.content(ctx, "scatter", at, strconv.FormatUint(seed, 10), strconv.Itoa(mib))

	return err
}
