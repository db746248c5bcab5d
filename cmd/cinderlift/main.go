package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1 // it was tried and did not work
	exitUsage  = 2 // configuration or command line; nothing was tried
	exitFound  = 3 // reap: something is left
)

func main() {
	// First of all: a thread of librados that writes to a dead socket would end the process otherwise, because Go
	// raises SIGPIPE again when it comes from a thread that is not its own.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main without the process around it.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cmd := commands()
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	err := cmd.ExecuteContext(ctx)
	var config errConfig
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &config):
		fmt.Fprintln(stderr, "cinderlift:", err)

		return exitUsage
	case errors.Is(err, errChecks), errors.Is(err, errReap):
		return exitFailed // the table has said it all
	case errors.Is(err, errFound):
		return exitFound
	default:
		fmt.Fprintln(stderr, "cinderlift:", err)

		return exitFailed
	}
}
