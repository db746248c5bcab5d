// Package gzipped makes gzip files while they are read, for images in Glance's container "compressed".
//
// # Words
//
// The source is what is compressed. A pass is one compression of it from start to end.
//
// # Two passes
//
// How long a gzip file becomes shows only when it has been made, and whoever sends a file of unknown length can't tell a part
// from the whole. So the source is read and compressed once for the length alone, and again while the file is read. The price is
// to do everything twice; a file on a local disk would be the other price.
//
// # Guarantees
//
//   - The file that is read is whole, or the reader gets an error. A source that changes between two passes gives [ErrChanged], or
//     a file of what it is now.
//   - The same source and the same version of the compressor give the same bytes, whatever is read at a time and however many
//     workers compress.
//   - Memory does not grow with the source: about 4 MiB for each worker.
//
// # Failures
//
// What the source says is handed through.
package gzipped
