// Package workertest has a [worker.Journal] in memory, with faults on demand, and the conformance suite that every
// journal has to pass, this one and the real one alike.
//
// The fake keeps what the contract promises, not more: a lease expires, a successor raises the epoch, and the owner
// before finds out. Time is the time package's, so a test inside a testing/synctest bubble waits for nothing.
package workertest
