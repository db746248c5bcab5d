package oslo

import (
	"testing"

	"github.com/cinderlift/cinderlift/internal/writestest"
)

// writes names every place of this package from which something is changed in another system, and the tests in which that
// change is not applied, and applied but reported failed. Both are handled by looking: at what the write was for, or by
// doing again what may be done twice.
func writes() map[string][]string {
	return map[string][]string{
		// What is published; whoever asked for it gets ErrNotConfirmed and decides.
		"Publish publish":    {"TestPublishFaults"},
		"Cast publish":       {"TestPublishFaults"},
		"Reply publish":      {"TestPublishFaults", "TestDeadReplyQueue"},
		"heartbeat publish":  {"TestPublishFaults", "TestHeartbeats"},
		"answerPing publish": {"TestPublishFaults"}, // a probe that gets no answer has failed as it should
		"DeadLetter publish": {"TestDeadLetterFaults"},
		"replace publish":    {"TestCountingFaults"},
		"renew publish":      {"TestDeadFaults"},
		"replay publish":     {"TestDeadFaults"},

		"publish send": {"TestPublishFaults"},
		"notify send":  {"TestPublishFaults"}, // a listener knows a message_id that it has seen
		"probe send":   {"TestProbe"},         // goes nowhere

		// How a message ends; one that did not comes again.
		"Ack Ack":         {"TestTakingSurvivesEveryCut"}, //nolint:dupword // the caller and what it calls
		"answerPing Ack":  {"TestTakingSurvivesEveryCut"},
		"DeadLetter Ack":  {"TestDeadLetterFaults"},
		"replace Ack":     {"TestCountingFaults"},
		"remove Ack":      {"TestDeadFaults"},
		"Requeue Requeue": {"TestCountingFaults", "TestGiveBackToABlockedBroker"}, //nolint:dupword // the caller and what it calls

		// The seam to the library, and the two places that publish over it.
		"write Publish":                      {"TestPublishFaults"},
		"publish Publish":                    {"TestDeadFaults"},
		"Publish PublishWithDeferredConfirm": {"TestSuiteOnRabbitMQ"},
		"Requeue Nack":                       {"TestSuiteOnRabbitMQ"},
	}
}

// TestEveryWriteHasItsFaults fails when a write has no row, or a row no test.
func TestEveryWriteHasItsFaults(t *testing.T) {
	writestest.Check(t, writes(), "publish", "Publish", "Ack", "Requeue", "PublishWithDeferredConfirm", "Nack", "send")
}
