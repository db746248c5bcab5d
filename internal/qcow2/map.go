package qcow2

import (
	"fmt"
	"io"
	"math/bits"
)

// Map says which clusters of the guest's disk are in the image: one bit for each, in those L2 tables that have any. That
// is 2 MiB for each TiB at most, with clusters of 64 KiB, and 8 bytes for each 512 MiB where there is nothing.
type Map struct {
	geometry
	used []*table // by index in L1
}

// table is the part of a Map behind one entry of L1.
type table struct {
	bits  []uint64
	count int64 // of bits that are set
}

// NewMap makes a map without clusters for a disk of size bytes. The size need not be a multiple of anything; the guest's
// disk is rounded up to 512 bytes, with zeros. The cluster size is a power of two from 512 to 2 MiB. The L1 table may have
// 32 MiB at most, which is enough for 2 PiB with clusters of 64 KiB.
func NewMap(size, clusterSize int64) (*Map, error) {
	g, err := newGeometry(size, clusterSize)
	if err != nil {
		return nil, err
	}

	return &Map{geometry: g, used: make([]*table, g.tables())}, nil
}

// Add puts the clusters that hold the bytes [from, to) into the image. Extents may come in any order and may overlap. One
// that is not within the disk is an error.
func (m *Map) Add(from, to int64) error {
	if from < 0 || to < from || to > m.size {
		return fmt.Errorf("qcow2: an extent from %d to %d on a disk of %d bytes", from, to, m.size)
	}
	if from == to {
		return nil
	}
	for c := from >> m.bits; c <= (to-1)>>m.bits; c++ {
		m.set(c)
	}

	return nil
}

// DropZeros reads the clusters of the map from src, which is the guest's disk, and takes those out that are all zeros.
// What src says when it fails is handed through.
func (m *Map) DropZeros(src io.ReadSeeker) error {
	disk, data := newDisk(src, m.size), make([]byte, m.cluster())
	for c := m.after(0); c >= 0; c = m.after(c + 1) {
		if err := disk.fill(data, c<<m.bits); err != nil {
			return err
		}
		if zero(data) {
			m.unset(c)
		}
	}

	return nil
}

func (m *Map) place(c int64) (t, word int64, bit uint64) {
	t, c = c/m.perTable(), c%m.perTable()

	return t, c / 64, 1 << (c % 64)
}

func (m *Map) has(c int64) bool {
	t, word, bit := m.place(c)

	return t < int64(len(m.used)) && m.used[t] != nil && m.used[t].bits[word]&bit != 0
}

func (m *Map) set(c int64) {
	t, word, bit := m.place(c)
	if m.used[t] == nil {
		m.used[t] = &table{bits: make([]uint64, m.perTable()/64)}
	}
	if m.used[t].bits[word]&bit == 0 {
		m.used[t].bits[word] |= bit
		m.used[t].count++
	}
}

func (m *Map) unset(c int64) {
	t, word, bit := m.place(c)
	m.used[t].bits[word] &^= bit
	if m.used[t].count--; m.used[t].count == 0 {
		m.used[t] = nil
	}
}

// after is the first cluster of the map from c on; -1 when there is none.
func (m *Map) after(c int64) int64 {
	for t := c / m.perTable(); t < int64(len(m.used)); t++ {
		if n := m.used[t].after(max(c-t*m.perTable(), 0)); n >= 0 {
			return t*m.perTable() + n
		}
	}

	return -1
}

// after is the first bit from i on; -1 when there is none.
func (t *table) after(i int64) int64 {
	if t == nil {
		return -1
	}
	for word := i / 64; word < int64(len(t.bits)); word++ {
		rest := t.bits[word]
		if word == i/64 {
			rest &= ^uint64(0) << (i % 64)
		}
		if rest != 0 {
			return word*64 + int64(bits.TrailingZeros64(rest))
		}
	}

	return -1
}

// nth is the bit before which n others are set; there has to be one.
func (t *table) nth(n int64) int64 {
	word := 0
	for c := int64(bits.OnesCount64(t.bits[0])); n >= c; c = int64(bits.OnesCount64(t.bits[word])) {
		n -= c
		word++
	}
	rest := t.bits[word]
	for ; n > 0; n-- {
		rest &= rest - 1
	}

	return int64(word*64 + bits.TrailingZeros64(rest))
}
