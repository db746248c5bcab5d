package qcow2

import (
	"encoding/binary"
	"fmt"
	"math"
)

// refcounts counts who uses the clusters of a file that grows. Blocks that are written are dropped; since an L2 table maps
// fewer clusters than a refcount block counts, two are open at a time, or as many as count the front.
type refcounts struct {
	geometry
	first int64 // number of the first open block
	open  [][]byte
}

// add counts one use of the bytes [from, to) of the file.
func (r *refcounts) add(from, to int64) error {
	for c := from >> r.bits; c <= (to-1)>>r.bits; c++ {
		b := c/r.perBlock() - r.first
		for b >= int64(len(r.open)) {
			r.open = append(r.open, make([]byte, r.cluster()))
		}
		at := r.open[b][c%r.perBlock()*countSize:]
		n := binary.BigEndian.Uint16(at)
		if n == math.MaxUint16 {
			return fmt.Errorf("qcow2: more than %d compressed clusters in cluster %d of the file", n, c)
		}
		binary.BigEndian.PutUint16(at, n+1)
	}

	return nil
}

// due is how many blocks will not change any more when the file ends at pos.
func (r *refcounts) due(pos int64) int64 {
	return (pos>>r.bits)/r.perBlock() - r.first
}

// missing is how many blocks a file needs that ends at pos, which is the end of a cluster, once they are written.
func (r *refcounts) missing(pos int64) int64 {
	n := int64(0)
	for (r.first+n)*r.perBlock() < pos>>r.bits+n {
		n++
	}

	return n
}

// take gives the first open block away.
func (r *refcounts) take() []byte {
	b := r.open[0]
	r.first, r.open = r.first+1, r.open[1:]

	return b
}
