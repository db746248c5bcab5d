package worker

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestDelay: whatever is configured and however often it failed, the wait is positive and bounded.
func TestDelay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{
			First: time.Duration(rapid.Int64Range(1, int64(48*time.Hour)).Draw(t, "first")),
			Max:   time.Duration(rapid.Int64Range(1, int64(48*time.Hour)).Draw(t, "max")),
		}
		n := rapid.IntRange(1, 1_000_000).Draw(t, "n")
		d := b.delay(n)
		if d < min(b.First, b.Max)/2 || d > b.Max {
			t.Fatalf("wait %s after failure %d of %+v", d, n, b)
		}
		if n > 48 && d < b.Max/2 {
			t.Fatalf("wait %s after failure %d of %+v is too short", d, n, b)
		}
	})
}
