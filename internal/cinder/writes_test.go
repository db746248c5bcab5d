package cinder

import (
	"testing"

	"github.com/cinderlift/cinderlift/internal/writestest"
)

// writes names every place of this package from which something is changed in another system, and the tests in which that
// change is not applied, and applied but reported failed. Both are handled by looking: at what the write was for, or by
// doing again what may be done twice.
func writes() map[string][]string {
	return map[string][]string{
		// A request over REST.
		"reset MethodPost": {"TestRESTResetStatusFaults", "TestRESTResetStatusRaces"},

		// What is settled: the result, the hand-back, the event, the image, the volume. The user message of a failure is
		// cinder-volume's, which gets the result; there is no REST request for one.
		"reply Reply":      {"TestFaultMatrix", "TestLostResult"},
		"castDone Cast":    {"TestFaultMatrix", "TestLostResult"},
		"handBack Cast":    {"TestFaultMatrix", "TestHandBackOnceOnly", "TestHandBackHasOneID"},
		"notify Notify":    {"TestFaultMatrix", "TestNotification"},
		"discard Discard":  {"TestFaultMatrix"},
		"free ResetStatus": {"TestFaultMatrix", "TestFreeingFaults"},

		// A caller that waits; a heartbeat too many or too few is harmless.
		"Attend Heartbeat":  {"TestAttend"},
		"Attend Heartbeats": {"TestAttend"},

		// What is taken from the queue: a message that is not settled comes again.
		"reject Reply":      {"TestRejectFaults"},
		"reject DeadLetter": {"TestRejectFaults", "TestRejectOfWhatIsGone"},
		"Reject Requeue":    {"TestRejectFaults", "TestRejectGivesBackWhenStopped"},

		// Handed through to internal/oslo, whose table has them.
		"Ack Ack":               {"TestOverRabbitMQ"}, //nolint:dupword // the caller and what it calls
		"Requeue Requeue":       {"TestOverRabbitMQ"}, //nolint:dupword // the caller and what it calls
		"DeadLetter DeadLetter": {"TestOverRabbitMQ"}, //nolint:dupword // the caller and what it calls
		"Heartbeat Publish":     {"TestOverRabbitMQ"},
	}
}

// TestEveryWriteHasItsFaults fails when a write has no row, or a row no test.
func TestEveryWriteHasItsFaults(t *testing.T) {
	writestest.Check(t, writes(), "MethodPost", "MethodPut", "MethodPatch", "MethodDelete", "Cast", "Reply", "Notify", "Heartbeat", "Heartbeats", "ResetStatus", "Discard", "DeadLetter", "Ack", "Requeue", "Publish")
}
