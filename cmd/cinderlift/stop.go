package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// handOver is what giving running jobs back may take beyond the soft stop: a cancelled flatten ends in about a second, work
// that hangs in Ceph is cut off after five.
const handOver = 7 * time.Second

// hurried is closed by a second SIGTERM or SIGINT, after the first has ended ctx.
func hurried(ctx context.Context, log *slog.Logger) <-chan struct{} {
	hurry := make(chan struct{})
	// From now on, not from the end of ctx: a signal in between would be missed. The first one is counted as well.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ctx.Done()
		for range 2 {
			<-signals
		}
		log.Warn("told to stop again: running jobs are handed over now")
		close(hurry)
	}()

	return hurry
}

// atLast ends the process when stopping takes too long, because Ceph or a service hangs: an orchestrator would kill it, and
// the leases of what runs end by themselves. It is called off by the function that it answers.
func atLast(ctx context.Context, soft time.Duration, exit func()) (callOff func()) {
	done := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
		case <-done:
			return
		}
		select {
		case <-time.After(soft + handOver):
			exit()
		case <-done:
		}
	}()

	return func() { close(done) }
}

// leave ends the process while something still hangs. When all jobs were given back, only connections are left to close,
// and nothing depends on that.
func leave(drained bool, log *slog.Logger) {
	if drained {
		log.Warn("a connection does not close; leaving it")
		os.Exit(exitOK) //nolint:forbidigo // something hangs: there is no other way out
	}
	log.Error("stopping took too long; what is left goes on elsewhere when its leases end")
	os.Exit(exitFailed) //nolint:forbidigo // see above
}
