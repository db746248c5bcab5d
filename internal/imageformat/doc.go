// Package imageformat looks at the first bytes of a disk and decides whether Glance would take them as an image.
//
// An image that is registered by its location never passes through Glance, so Glance's format inspection never sees it
// (glance c76abb08e inspects in location.py set_data and in its imports, nowhere else). What Glance would refuse to an
// upload must not slip in by the other door: a raw volume can hold a qcow2 header that names a file of the host, and
// whoever lets a tool guess the format hands that file out (OSSA-2015-011, OSSA-2023-002, OSSA-2024-001, OSSA-2024-002).
//
// # Words
//
// A [Format] matches when its signature is there; several may match at once. A [Problem] is what makes an image of a format
// unsafe or unreadable. Both together are a [Finding], which says what is there and judges nothing. A [Policy] judges.
//
// # Guarantees
//
//   - [Inspect] makes at most [MostReads] reads, of [MostBytes] bytes together; a disk without the signature of an image
//     format takes one read of 64 KiB. Nothing in the image decides how much memory is taken.
//   - The policy [Glance] refuses what Glance 30 to 33 (c76abb08e, after 33.0.0.0b2) with oslo.utils 7.4 to 10.1 refuses
//     on an upload, with the same two settings. Glance 25 to 29 refuses nothing, which is [Off].
//   - Texts are ours. No byte of the image gets into them, so they can be logged and told to users.
//
// # Where it is stricter than Glance
//
// In two cases Glance's answer depends on the size of the pieces in which the bytes arrive, and is a mistake for the others:
//
//   - A VHDX image whose region table names a metadata region. With pieces of 8 MiB, which Glance's RBD store takes
//     (glance_store 4.1 _drivers/rbd.py:45), the inspector meets the item that it waits for in a piece that has passed, stays
//     incomplete and is refused. With other pieces, or with metadata behind the first one, it is taken. Here it is refused.
//   - A text with a VMDK descriptor that is followed by a byte beyond ASCII. The inspector then lacks an attribute, and set_data
//     takes that for an image that need not be inspected at all (location.py `except AttributeError`). Here the text up to
//     that byte is judged.
//
// # Failures
//
// [Inspect] fails with what reading failed with. [Policy.Judge] fails with a [*Refusal].
//
// The package imports the standard library only.
package imageformat
