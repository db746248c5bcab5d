// Package strategies holds the three ways to make an image, as plans of steps that package worker runs.
//
//	clone-flatten   snapshot inspect protect clone seal register▲ flatten release-source    same cluster, raw, bare
//	   or, late     snapshot inspect protect clone seal flatten register▲ release-source    where Glance can't read the parent
//	copy            snapshot inspect copy-objects seal register▲ release-source             same cluster, raw, bare
//	export-upload   snapshot inspect upload▲ release-source                                 raw, bare, any store of Glance
//	   or           snapshot upload▲ release-source                                         what Formats has, any store of Glance
//
// ▲ is the commit point: before it everything can be undone, after it the job only goes forward.
//
// # Words
//
// The source is the volume's RBD image, the destination is the RBD image that becomes the Glance image. To seal is to
// give the destination the protected snapshot `snap`, as Glance's RBD store does itself. A clone can be sealed and used
// before it is flattened; until then whoever opens it opens its parent too, so Glance must be allowed to read the
// volumes' pool (early registration), or the flatten has to come first (late registration).
//
// # Guarantees
//
// Every strategy reads from a snapshot, never from the live volume: the image of an attached volume is one point in
// time. All names are in names.go and come from the job's ids; where things are is decided once (placement.go) and kept
// with the job. Nothing is made of bytes that Options.Format refuses, in any strategy, and nothing is registered that is not
// marked complete and sealed. Nothing is removed that does not bear the
// job's mark, and nothing at all once Glance shows the image active with it.
//
// # Failures
//
// A strategy that can't serve a task says so with ReasonNotApplicable and a sentence for the operator; the runner asks
// the next. An error with the advice OtherWay before the commit point does the same after undoing.
package strategies
