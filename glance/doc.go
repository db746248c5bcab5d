// Package glance makes data in Ceph, or a stream of bytes, the data of a Glance image that cinder-api has created.
//
// # Words
//
// An image is queued while it has no data, active once it has. To register is to tell Glance where in Ceph the data is
// (a location); to upload is to send it. There are two ways to register, the location API (POST /v2/images/{id}/locations,
// API 2.17, Glance 29.0.0) and the older PATCH of the image. Which one a cloud offers is found out and remembered for a
// while: /versions tells what there is, and a refusal leads to the other way.
//
// # Guarantees
//
//   - Whatever the answer to a write was, also none at all, the image is read afterwards, and what Glance shows decides.
//     No text of Glance's is ever looked at.
//   - [Client.Register] and [Client.Upload] may be called again after any failure, by any process: an image that is
//     active with our data is success, one that is active with other data is never overwritten nor deleted.
//   - An upload announces its length and is never chunked, so Glance can't take a part for the whole. Its SHA-512 and MD5
//     are computed on the way and compared with what Glance has computed. An image that is active with other bytes than
//     the source's is deactivated: it keeps them, but nobody can use it until an operator has looked at it.
//   - [Client.Discard] never deletes an image that Glance shows active. Glance knows no conditional delete, so an image
//     that becomes active between our look and our delete is lost; the lease keeps our own workers from doing that.
//   - Memory is bounded: a body passes through in the transport's buffer.
//
// # What registering leaves out
//
// Glance applies some checks only to data that passes through it (glance c76abb08e location.py:569-683,
// api/v2/image_data.py:108-116). Whoever registers does without:
//
//   - the format inspection (require_image_format_match, on since 30.0.0). Package strategies does it instead, by the rules of
//     internal/imageformat; [Client.Inspects] says whether this Glance would.
//   - the quota image_size_total of Keystone's unified limits: it is counted afterwards, so that a project can go over
//     it once. The legacy user_storage_quota and image_location_quota are applied (413).
//   - the signature check of img_signature* properties. Cinder strips these from the images it creates.
//   - checksum and os_hash_*: with the location API Glance computes them in the background (do_secure_hash, which is the
//     default) and reads the whole image for it; with PATCH they stay empty.
//
// image_size_cap (1 TiB by default) is applied when Glance saves the image: with PATCH at once, with the location API
// in the task, after the 202, so the image falls back to queued.
//
// # Failures
//
// [worker.ReasonGlanceFull] is Glance's 413, which it answers for a project's quota and for a store without space alike;
// only the text differs, and the space that is left in a store is nothing that Glance shows.
//
// Every error is a [*worker.Error], except one of the body's source, which is handed through. Glance's revert of a location that
// it could not finish may delete the RBD image behind it (async_/flows/location_import.py:275): after
// [worker.ReasonGlanceUnreadable] the image in Ceph has to be looked at anew. An image that stays saving because a
// glance-api was killed can't be reclaimed: Glance refuses another upload, so it is given up as
// [worker.ReasonGlanceUnavailable], and may be discarded. When the session's token
// expires during an upload Glance deletes the image (api/v2/image_data.py:205-220), which then looks like a deletion by
// its user; a token that lasts is fetched before.
package glance
