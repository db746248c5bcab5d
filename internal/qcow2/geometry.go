package qcow2

import (
	"fmt"
	"math/bits"
)

// DefaultClusterSize is qemu's own, in bytes.
const DefaultClusterSize = 64 << 10

const (
	sector = 512 // bytes; the unit of a virtual size in qemu

	minClusterSize = 512     // bytes (qcow2.rst, cluster_bits)
	maxClusterSize = 2 << 20 // bytes, what qemu opens (qcow2.rst, cluster_bits)
	maxL1Bytes     = 32 << 20
	maxTableBytes  = 8 << 20 // of the refcount table; both are limits of qemu (qcow2.rst, size and refcount table)
	hostBits       = 56      // of an offset in L1 and L2 (qcow2.rst, Cluster mapping)

	entrySize = 8 // bytes of an entry in L1, L2 and the refcount table
	countSize = 2 // bytes of a refcount: refcount_order 4
)

// geometry is what follows from the sizes alone.
type geometry struct {
	size int64 // of the guest's data, bytes
	bits int   // log2 of the cluster size
}

func newGeometry(size, clusterSize int64) (geometry, error) {
	g := geometry{size: size, bits: bits.TrailingZeros64(uint64(clusterSize))}
	switch {
	case clusterSize < minClusterSize || clusterSize > maxClusterSize || clusterSize != g.cluster():
		return g, fmt.Errorf("qcow2: a cluster of %d bytes: it has to be a power of two from %d to %d", clusterSize,
			minClusterSize, maxClusterSize)
	case size < 0:
		return g, fmt.Errorf("qcow2: a disk of %d bytes", size)
	case size > maxL1Bytes/entrySize*g.perTable()*g.cluster():
		return g, fmt.Errorf("qcow2: a disk of %d bytes is too large for clusters of %d: the L1 table would be larger than %d bytes",
			size, clusterSize, maxL1Bytes)
	}

	return g, nil
}

func (g geometry) cluster() int64 { return 1 << g.bits }

// virtual is the size that the guest sees. qemu counts in sectors and would cut an odd end off when it opens the image
// (block/qcow2.c qcow2_do_open), so it is rounded up, as `qemu-img create` and `qemu-img convert` do.
func (g geometry) virtual() int64 { return up(g.size, sector) * sector }

// clusters of the guest.
func (g geometry) clusters() int64 { return up(g.size, g.cluster()) }

// perTable is how many clusters one L2 table maps.
func (g geometry) perTable() int64 { return g.cluster() / entrySize }

// perBlock is how many clusters of the file one refcount block counts.
func (g geometry) perBlock() int64 { return g.cluster() / countSize }

// tables is how many entries L1 has.
func (g geometry) tables() int64 { return up(g.clusters(), g.perTable()) }

// layout says where the parts of a file are, in clusters from its start. The header is at 0.
type layout struct {
	refTable, refBlocks, l1, l2, data, total int64
}

// layout places so many L2 tables and clusters of data. Refcounts count their own clusters too, so they grow until they fit.
func (g geometry) layout(tables, data int64) layout {
	l1 := up(g.tables()*entrySize, g.cluster())
	l := layout{refTable: 1}
	for table, blocks := int64(0), int64(0); ; {
		l.refBlocks = l.refTable + table
		l.l1 = l.refBlocks + blocks
		l.l2 = l.l1 + l1
		l.data = l.l2 + tables
		l.total = l.data + data
		b := up(l.total, g.perBlock())
		if b == blocks {
			return l
		}
		table, blocks = up(b*entrySize, g.cluster()), b
	}
}

// fits makes sure that qemu opens it.
func (g geometry) fits(l layout) error {
	if (l.refBlocks-l.refTable)*g.cluster() > maxTableBytes || l.total > 1<<(hostBits-g.bits) {
		return fmt.Errorf("qcow2: a file of %d clusters of %d bytes is larger than qemu opens", l.total, g.cluster())
	}

	return nil
}

// up divides and rounds up.
func up(n, by int64) int64 { return (n + by - 1) / by }
