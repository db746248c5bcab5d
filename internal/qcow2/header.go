package qcow2

import "encoding/binary"

// Compression is how the clusters of an image are compressed. The values are those of the header (qcow2.rst,
// compression_type).
type Compression byte

const (
	// Zlib is what qemu calls so: raw deflate. Every qemu reads it.
	Zlib Compression = 0
	// Zstd needs qemu 5.1 or newer.
	Zstd Compression = 1
)

const (
	magic         = "QFI\xfb"
	version       = 3
	refcountOrder = 4 // 16 bits, as qemu has it and as version 2 always had it
	headerLength  = 104
	headerLonger  = 112 // with the compression type

	compressionBit = 1 << 3 // of the incompatible features

	alone      = 1 << 63 // in L1 and L2: the refcount is one
	compressed = 1 << 62 // in L2
)

// header is the first cluster. What is not set is 0: no backing file, no encryption, no snapshots, no other feature. After it
// a header extension of type 0 and length 0 says that there is none.
func (g geometry) header(l layout, c Compression) []byte {
	h := make([]byte, g.cluster())
	be := binary.BigEndian
	copy(h, magic)
	be.PutUint32(h[4:], version)
	be.PutUint32(h[20:], uint32(g.bits))
	be.PutUint64(h[24:], uint64(g.virtual()))
	be.PutUint32(h[36:], uint32(g.tables()))
	if g.tables() > 0 {
		be.PutUint64(h[40:], uint64(l.l1<<g.bits))
	}
	be.PutUint64(h[48:], uint64(l.refTable<<g.bits))
	be.PutUint32(h[56:], uint32(l.refBlocks-l.refTable))
	be.PutUint32(h[96:], refcountOrder)
	be.PutUint32(h[100:], headerLength)
	if c != Zlib {
		be.PutUint64(h[72:], compressionBit)
		be.PutUint32(h[100:], headerLonger)
		h[104] = byte(c)
	}

	return h
}

// put writes entry number i of a table.
func put(table []byte, i int64, entry uint64) {
	binary.BigEndian.PutUint64(table[i*entrySize:], entry)
}
