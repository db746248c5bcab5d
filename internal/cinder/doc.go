// Package cinder speaks Cinder: it turns the messages that ask for an image into jobs, finds out what Cinder and Glance
// say of the volume and the image, and tells Cinder how it ended. It does not know AMQP ([Bus] does) nor Ceph.
//
// # Words
//
// A request is Cinder's own RPC message `copy_volume_to_image`, version 3.x, with `volume_id` and `image_meta` (cinder
// ab09bc3 volume/rpcapi.py:239-242). How it asks decides who frees the volume and who is told:
//
//   - a call (it has a `_msg_id`): the caller waits, is kept patient with heartbeats, and gets a reply. Cinder's manager
//     frees the volume when its driver returns.
//   - a cast with the argument `done`: the result is cast back to the cinder-volume service that sent the request, and
//     that service does Cinder's own clean-up.
//   - a plain cast: nobody waits. The volume is freed over REST.
//
// To hand back means to let Cinder make the image itself, its stock way, because no strategy can serve the job.
//
// # Guarantees
//
//   - Nothing from the bus is trusted. Ids are lower-case UUIDs, names are bounded and of a known form, and [Facts] asks
//     Cinder and Glance with our own credentials whether the volume is `uploading` and whether volume, image and request
//     belong together. What the message says of the volume is not even read.
//   - What is kept for answering later (Job.Origin) holds no secret. The user's token lives in Job.Private, which is
//     never written, and leaves it in one case only: in the cast that hands a declined job back to Cinder.
//   - Settling touches only an image and a volume of the request's own project, and neither when [Facts] found that they
//     do not belong together: a forged request can't have us delete an image or free a volume.
//   - A result is told with an AMQP confirm and the mandatory flag. Where the receiver is gone for good, the volume is
//     freed over REST instead: no outcome leaves it in `uploading`.
//   - An image is discarded before the volume is freed, so that a user who sees the volume free sees no half-made image.
//   - Every settling step may run twice, also in two processes. Notifications keep their message_id when repeated.
//
// # Failures
//
// All errors are *worker.Error. A broker, Cinder, Glance or Keystone that is away is Retry. A step that can't succeed any
// more says so in the log, with what the operator can do, and returns nil.
//
// A result that was confirmed and then lost by cinder-volume (oslo.messaging acknowledges before it runs a method) would
// leave the volume in `uploading`. The last step of settling looks, casts it again after a while, and frees the volume over
// REST if its record has not changed since before the result was first told; see see.go. That is known only to the process
// that took the request and for jobs of two seconds at least; any other logs what an operator can do. The same for a
// declined job: its volume stays `uploading` for as long as Cinder itself makes the image, so nothing can be concluded.
//
// A plain cast that is rejected as no request at all, and poison, leave the volume in `uploading`: what they say can't be
// acted upon. Cinder and our own glue don't send such; `cinderlift dead` shows them. A hand-back whose confirm was lost is
// sent again under the same id, which cinder-volume ignores while it is among the last 16 that it received; it keeps the
// second one unacknowledged until its connection ends.
//
// With `done` and with a call, Cinder frees the volume a moment after we have told it; the next upload of the same volume
// may then begin before this job is closed, and waits for it.
//
// # Notifications
//
// Cinder emits nothing around an upload, so the event types are our own: `cinderlift.image_upload.end` (INFO) and
// `cinderlift.image_upload.error` (ERROR, for failed jobs), publisher `cinderlift.<host>`. Nothing is sent
// for a declined job, which is Cinder's again. The payload:
//
//	tenant_id, user_id   of the request (named as in Cinder's own volume.* events, for Ceilometer)
//	volume_id, image_id
//	result               done, failed, cancelled
//	reason               none, or why: the words of worker.Reason
//	message              the same for people; "" when it worked
//	strategy             that made the image; "" when none was chosen
//	duration             seconds since the request was taken from the queue
package cinder
