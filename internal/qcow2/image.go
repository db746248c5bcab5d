package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
	"sort"
)

// Image is the qcow2 file of a map and the guest's data, without compression. It is made while it is read, and any offset
// can be read at any time; nothing is kept but the map, 12 bytes for each L2 table, and one cluster of metadata. It is used
// by one goroutine at a time.
type Image struct {
	m    *Map
	disk *disk
	at   layout
	pos  int64

	order []int32 // the L2 tables that there are, by index in L1
	first []int64 // number of the first cluster of data of each; the last is the number of all

	meta   []byte // a cluster of metadata
	metaAt int64  // which one
}

var _ io.ReadSeeker = (*Image)(nil)

// New makes the image of what m holds. src is the guest's disk: as many bytes as m has been made for are read from it, in
// ascending order, and only where m says so. Neither m nor src may be used otherwise any more. What src says when it fails is
// handed through; reading may go on then.
func New(m *Map, src io.ReadSeeker) (*Image, error) {
	i := &Image{m: m, disk: newDisk(src, m.size), metaAt: -1}
	data := int64(0)
	for t, u := range m.used {
		if u != nil {
			i.order, i.first = append(i.order, int32(t)), append(i.first, data)
			data += u.count
		}
	}
	i.first = append(i.first, data)
	i.at = m.layout(int64(len(i.order)), data)

	return i, m.fits(i.at)
}

// Size is the length of the file in bytes.
func (i *Image) Size() int64 { return i.at.total << i.m.bits }

// Seek implements io.Seeker. It is free.
func (i *Image) Seek(offset int64, whence int) (int64, error) {
	pos, err := seek(i.pos, i.Size(), offset, whence)
	if err == nil {
		i.pos = pos
	}

	return pos, err
}

func seek(pos, size, offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += pos
	case io.SeekEnd:
		offset += size
	}
	if offset < 0 || whence < io.SeekStart || whence > io.SeekEnd {
		return pos, fmt.Errorf("qcow2: seek to %d, whence %d", offset, whence)
	}

	return offset, nil
}

// Read implements io.Reader.
func (i *Image) Read(p []byte) (int, error) {
	switch {
	case i.pos >= i.Size():
		return 0, io.EOF
	case len(p) == 0:
		return 0, nil
	}
	c, within := i.pos>>i.m.bits, i.pos&(i.m.cluster()-1)
	if c >= i.at.data {
		n, err := i.data(p, c-i.at.data, within)
		i.pos += int64(n)

		return n, err
	}
	if i.metaAt != c {
		i.meta, i.metaAt = i.metadata(c), c
	}
	n := copy(p, i.meta[within:])
	i.pos += int64(n)

	return n, nil
}

// data reads cluster n of the data from some byte on, and what follows it on the disk and in the file alike.
func (i *Image) data(p []byte, n, within int64) (int, error) {
	j := int64(sort.Search(len(i.order), func(j int) bool { return i.first[j+1] > n }))
	c := int64(i.order[j])*i.m.perTable() + i.m.used[i.order[j]].nth(n-i.first[j])
	end := c + 1
	for (end-c)<<i.m.bits < within+int64(len(p)) && i.m.has(end) {
		end++
	}
	p = p[:min(int64(len(p)), (end-c)<<i.m.bits-within)]

	return i.disk.read(p, c<<i.m.bits+within)
}

// metadata makes cluster c of the file.
func (i *Image) metadata(c int64) []byte {
	switch {
	case c < i.at.refTable:
		return i.m.header(i.at, Zlib)
	case c < i.at.refBlocks:
		return i.refTable(c - i.at.refTable)
	case c < i.at.l1:
		return i.refBlock(c - i.at.refBlocks)
	case c < i.at.l2:
		return i.l1(c - i.at.l1)
	default:
		return i.l2(c - i.at.l2)
	}
}

func (i *Image) refTable(k int64) []byte {
	b, per := make([]byte, i.m.cluster()), i.m.perTable()
	blocks := i.at.l1 - i.at.refBlocks
	for n := k * per; n < min((k+1)*per, blocks); n++ {
		put(b, n-k*per, uint64((i.at.refBlocks+n)<<i.m.bits))
	}

	return b
}

// refBlock: every cluster of the file is used once.
func (i *Image) refBlock(k int64) []byte {
	b, per := make([]byte, i.m.cluster()), i.m.perBlock()
	for n := k * per; n < min((k+1)*per, i.at.total); n++ {
		binary.BigEndian.PutUint16(b[(n-k*per)*countSize:], 1)
	}

	return b
}

func (i *Image) l1(k int64) []byte {
	b, per := make([]byte, i.m.cluster()), i.m.perTable()
	j := sort.Search(len(i.order), func(j int) bool { return int64(i.order[j]) >= k*per })
	for ; j < len(i.order) && int64(i.order[j]) < (k+1)*per; j++ {
		put(b, int64(i.order[j])-k*per, alone|uint64((i.at.l2+int64(j))<<i.m.bits))
	}

	return b
}

func (i *Image) l2(j int64) []byte {
	b, t := make([]byte, i.m.cluster()), i.m.used[i.order[j]]
	at := i.at.data + i.first[j]
	for n := t.after(0); n >= 0; n = t.after(n + 1) {
		put(b, n, alone|uint64(at<<i.m.bits))
		at++
	}

	return b
}
