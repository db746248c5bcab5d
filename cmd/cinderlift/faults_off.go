//go:build !faults

package main

import "github.com/cinderlift/cinderlift/worker"

// faults is the identity: failpoints are only in a binary that was built with the tag `faults`, for tests.
func faults() (func(*worker.Runner) *worker.Runner, error) {
	return func(r *worker.Runner) *worker.Runner { return r }, nil
}
