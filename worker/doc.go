// Package worker runs jobs: it takes requests, keeps them in a journal, holds a lease on each while it works on it, runs
// the plan that a strategy made, and tells everyone how it ended.
//
// # Words
//
// A request is one message that asks for an image made from a volume. A [Job] is a request that was accepted; its key is
// the image id, because cinder-api creates the image before it casts (cinder ab09bc3 volume/api.py:1510-1527), so a
// repeated request carries the same id. A [Strategy] looks at a [Task] (job and facts) and answers a [Plan]: an ordered
// list of [Step] values. The commit point is the step that makes the image usable; after it a job only goes forward. The
// [Journal] keeps a [Record] of every job, a [Claim] is the record under lease. To settle is to tell everyone the
// [Outcome].
//
// # Guarantees
//
//   - A delivery is acknowledged only after the journal has the job. Whoever dies, the job is still there.
//   - At most one worker acts on a job: [Hold] cancels its context before the lease can have expired, and a successor
//     fences the one before it (see [Journal.Claim]).
//   - A step may run more than once, wholly or in part, and in another process; it is never skipped because of what the
//     journal says alone, unless the journal recorded that it ended well.
//   - Before the commit point a failure undoes every step that may have begun, newest first. After it nothing is undone,
//     nor when the commit step's Undo can't find out whether it had its effect.
//   - That a job is given up is in the journal before anything is undone: a successor goes on undoing.
//   - The outcome is in the journal before anyone is told (an outbox). Settling is a list of idempotent steps as well.
//   - Every activity is in the journal before it begins. One that several workers did not come back from puts the job aside
//     ([Aside]); it is ended later, or replayed by hand. So no job can kill workers for ever.
//   - A record of a later [RecordVersion] is left alone.
//   - Before the commit point a job that nobody wants any more (image deleted, volume taken back) stops within Config.Look.
//
// # Failures
//
// Every error that leaves an adapter is an [*Error]: operation, [Reason] (a closed enum, which is also the metric label)
// and [Advice], which says what the runner does: try again, try another strategy, give up, or stop because somebody
// else owns the job. Nobody looks at an error's text.
//
// The package imports the standard library only.
package worker
