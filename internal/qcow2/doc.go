// Package qcow2 makes qcow2 files while they are read: of a disk, and of a map of what exists on it. It is written from
// the format's specification (qemu docs/interop/qcow2.rst, 0a233da8), for version 3.
//
// # Words
//
// The disk is what the guest sees; the file is its image. Both are divided into clusters of the same size. L1 maps the disk
// to L2 tables, and these to clusters of the file. Refcounts say how often each cluster of the file is used: the refcount
// table points to refcount blocks.
//
// # Layout
//
// Of an [Image], which needs nothing but the map to be laid out:
//
//	header │ refcount table │ refcount blocks │ L1 │ L2 tables │ clusters of the disk, in its order
//
// There are L2 tables only where the disk has clusters, and every cluster of the file is used once. So the length is known
// before a byte of the disk is read, any offset can be read first, and what does not exist costs nothing.
//
// Of a [Compressed]:
//
//	header │ refcount table │ L1 │ clusters, their L2 table │ clusters, their L2 table │ … │ refcount blocks that are left
//
// Compressed clusters follow each other byte by byte. One that does not become smaller is stored as it is, from the next
// cluster of the file on. Each refcount block comes behind the first L2 table that follows all that it counts.
//
// # One pass or two
//
// An Image is made in one pass. That takes extents at their word: clusters that exist and are all zeros are in the file.
//
// To leave these out ([Map.DropZeros]), or to compress, takes two: the header says where L1 is, L1 says where the L2 tables
// are, and where these are follows from all that is between them. A stream can't be changed at its start when that is known
// at its end, and to put L1 where it would be in the worst case would make every file as long as that. So the disk is read
// and compressed a first time for the lengths alone, which are kept for each L2 table and not for each cluster; the rest
// is made again. The price is to read twice, and to compress twice. Then the length is exact as well.
//
// # Guarantees
//
//   - The file that is read is whole and sound, or the reader gets an error. Also a disk that changes between the passes
//     gives an error ([ErrChanged]) or a sound file of what it is now.
//   - The same map, the same data and the same version of the compressors give the same bytes, whatever is read at a time
//     and however many workers compress. The compressors of another version may give others.
//   - Memory does not grow with the data. The map takes 2 MiB for each TiB of disk at most, L1 and what goes with it 40 KiB
//     for each TiB, with clusters of 64 KiB; and 4 MiB for each worker that compresses.
//   - The disk is read in ascending order, once in each pass, and only where the map says so.
//   - A size that is no multiple of 512 is rounded up, with zeros, as qemu-img does.
//   - A match of deflate goes back 4 KiB at most, which is the window that qemu opens.
//
// # Failures
//
// What the source says is handed through, wrapped. Sizes and extents that make no sense are errors, as is what qemu would
// not open: an L1 table of more than 32 MiB, a refcount table of more than 8 MiB.
//
// # Not supported
//
// Backing files, encryption, snapshots, bitmaps, extended L2 entries, external data files, version 2.
package qcow2
