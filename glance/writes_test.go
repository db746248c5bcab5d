package glance

import (
	"testing"

	"github.com/cinderlift/cinderlift/internal/writestest"
)

// writes names every place of this package from which something is changed in another system, and the tests in which that
// change is not applied, and applied but reported failed. Both are handled by looking: at what the write was for, or by
// doing again what may be done twice.
func writes() map[string][]string {
	return map[string][]string{
		"lock MethodPost":      {"TestWrongImageIsLockedThroughFaults"}, // deactivate
		"request MethodPost":   {"TestRegisterFaults"},                  // location API
		"request MethodPatch":  {"TestRegisterFaults"},                  // the image's locations
		"request MethodPut":    {"TestUploadFaults"},
		"Discard MethodDelete": {"TestDiscardFaults"},
	}
}

// TestEveryWriteHasItsFaults fails when a write has no row, or a row no test.
func TestEveryWriteHasItsFaults(t *testing.T) {
	writestest.Check(t, writes(), "MethodPost", "MethodPut", "MethodPatch", "MethodDelete")
}
