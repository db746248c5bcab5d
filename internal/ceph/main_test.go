package ceph

import (
	"os"
	"os/signal"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// TestMain lets this binary be a worker instead, which the tests kill and stop, when CINDERLIFT_TEST_HELPER names it.
func TestMain(m *testing.M) {
	signal.Ignore(syscall.SIGPIPE) // as main does: a librados thread that meets a dead socket would end the process
	if help := helperNamed(os.Getenv("CINDERLIFT_TEST_HELPER")); help != nil {
		if err := help(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	widen()
	goleak.VerifyTestMain(m)
}
