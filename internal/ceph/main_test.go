package ceph

import (
	"os"
	"os/signal"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// helpers are what this binary does instead of testing when CINDERLIFT_TEST_HELPER names one of them: a worker that the
// tests kill and stop.
var helpers = map[string]func() error{}

func TestMain(m *testing.M) {
	signal.Ignore(syscall.SIGPIPE) // as main does: a librados thread that meets a dead socket would end the process
	if help := helpers[os.Getenv("CINDERLIFT_TEST_HELPER")]; help != nil {
		if err := help(); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
