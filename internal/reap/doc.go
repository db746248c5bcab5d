// Package reap finds what jobs of ours have left behind, and removes it.
//
// # Words
//
// A trace is something in Ceph that a job makes (strategies.Trace). An orphan is a trace, an image in Glance, or a leftover
// of the journal, that no open job owns. A [Round] looks once through everything; a [Finding] is one line of its report.
//
// # What is ours
//
// A snapshot is ours by its name, which holds the image id. An image in a pool is ours by its name and the mark in its
// metadata, which carries the image's own internal id; without a mark only if it is empty and either is a clone of a
// snapshot of ours with its id, or is where a job in the journal was to make it. Nothing else is ever touched.
//
// # Guarantees
//
//   - Nothing of an open job is touched, whatever its age, nor of a record of a later version.
//   - Nothing is removed before its job's lease is held. A trace whose job has no record gets a closed one first, made
//     exclusively: another reaper, or a request that comes late, meets it.
//   - Under the lease everything is looked at once more, and judged again.
//   - Data is removed only when Glance itself says that it has no such image, or has it queued and the job that was to
//     fill it failed. Whoever does not answer is taken to say no.
//   - What somebody has open, and what others made clones of, stays.
//   - Without a record, a volume that is `uploading` or an image that is being made counts as a job of somebody else:
//     another pool of workers may have another journal. And what no volume of this cloud leads to counts as another
//     cloud's, which may use the same pools, until an operator names it.
//
// # Failures
//
// A round goes on past what fails, and says so. A reaper that dies leaves a closed record and a lease that expires, and
// the traces that it had not come to; the next round finds them. All removals are idempotent.
package reap
