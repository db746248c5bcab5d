package worker_test

import (
	"flag"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// A schedule takes milliseconds: three times rapid's own number of them. The command line comes later and wins.
	if err := flag.Set("rapid.checks", "300"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}
