// Package ceph is cinderlift's side of Ceph: the journal and the leases in RADOS ([Cluster], [Claim]), and the images in
// RBD ([Images]). It is the only package with cgo.
//
// # Words
//
// The control connection of a [Cluster] serves journal, leases and health; its operations have timeouts. Each [Claim]
// has a connection of its own for everything that it does in RBD, without timeouts: a timeout there would turn a wait
// into an unknown outcome. To fence an owner is to put the address of its claim's connection on the OSDs' blocklist and
// to wait until every later operation meets that map.
//
// # Guarantees
//
//   - A record is written only by the owner of its epoch: every write compares the epoch on the OSD in the same atomic
//     operation. Compared is the epoch and not the object's version, so a write whose answer was lost can be repeated.
//   - The address of a claim's connection is in the journal before anything is done over that connection, so whoever
//     comes next can fence it.
//   - Only who has the lease at that instant, by the OSD's clock, reads the address to fence and raises the epoch: both are
//     one atomic operation with the look at the lock. A process that slept meanwhile fences nobody who lives.
//   - What makes an image of ours is a mark in its metadata that carries the image's own internal id: librbd copies
//     metadata to clones, so a volume made from one of our images bears that image's marks, and they must prove nothing.
//   - Marks are written after what they say.
//
// # Failures
//
// Every error is a *worker.Error, classified by errno. Calls into librados and librbd can't be interrupted: a method
// returns soon after its context is done, and what it had started ends later, at the next point where it looks at the
// context: between two objects of a copy or flatten, between two calls otherwise. A single call lingers as long as the
// OSDs it waits for are away. [Claim.Release] waits a little for what lingers and then blocklists its own connection,
// which ends it.
//
// A control connection that was put on the blocklist is replaced by the next call. The jobs of this worker then lose their
// leases, since a lock belongs to the connection that took it, and are taken up again by whoever comes first.
//
// The process has to ignore SIGPIPE: a librados thread that writes to a dead socket otherwise ends it.
//
// # Building
//
// Needs librados, its C++ headers (Debian: libradospp-dev) and librbd; go-ceph's build tags name the Ceph release, see
// the Makefile: ceph_preview with pacific (16), quincy (17), reef (18), squid (19).
package ceph
