package worker

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestStill: a step that moves nothing says every minute that it waits; one that moves says how far it is instead.
func TestStill(t *testing.T) {
	for _, c := range []struct {
		name         string
		reports      bool
		waits, moves int
	}{
		{"waits", false, 3, 0},
		{"moves", true, 0, 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				m := &meter{log: slog.New(slog.NewTextHandler(&out, nil)), logged: time.Now(), went: time.Now()}
				stalls := 0
				stop := m.still(150*time.Second, func() { stalls++ })
				for n := range 10 {
					<-time.After(20*time.Second + time.Millisecond)
					if c.reports {
						m.report(Amount{Done: int64(n)})
					}
				}
				stop()
				if (stalls > 0) == c.reports {
					t.Errorf("stalled %d times", stalls)
				}
				if waits := strings.Count(out.String(), "step waits"); waits != c.waits {
					t.Errorf("said %d times that it waits, want %d", waits, c.waits)
				}
				if moves := strings.Count(out.String(), "step under way"); moves != c.moves {
					t.Errorf("said %d times how far it is, want %d", moves, c.moves)
				}
			})
		})
	}
}
