// Package strategiestest has a Ceph cluster in memory, a Glance to go with it, and the conformance suite that every
// pair of [strategies.Source] and [strategies.Destination] has to pass, the fake one and RBD alike.
//
// The fake models what strategies and crashes can tell apart: objects, snapshots, clones that read through their
// parent, marks, half-made images. Every effect is one site of a [Fault], so a test can let each of them fail before or
// after it happened, or end the process there. The fake watches its user: it fails the test when an image is registered
// that is not sealed or has other bytes than the snapshot had, or when an active image loses its data.
package strategiestest
