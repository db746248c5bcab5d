package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// ErrChanged: the source gives other data than before, and the file that was begun can't hold them.
var ErrChanged = errors.New("qcow2: the source has changed since it was read first")

const (
	perWorker = 8   // clusters that a worker gets at once
	overhead  = 512 // bytes that a cluster may grow by before the codec knows that it does not become smaller
)

// Compressed is the qcow2 file of a map and the guest's data, with its clusters compressed, and without those that are all
// zeros. It reads the guest's data again while it is read. It can be rewound, but not read from anywhere else. It is used by
// one goroutine at a time; those that compress end before Read returns.
type Compressed struct {
	m      *Map
	disk   *disk
	codecs []codec
	pieces []piece
	front  []byte // header, refcount table, L1
	at     layout // of the front; the rest is where it comes
	limit  int64  // of a compressed cluster's offset
	size   int64

	pass *pass
}

var _ io.ReadSeeker = (*Compressed)(nil)

// Compress reads src, which is the guest's disk, once from start to end where m says so, and compresses what it reads to
// learn how large it becomes; it keeps 8 bytes for each L2 table and refcount block. m loses the clusters that are all
// zeros. workers compress side by side; each needs memory for 32 clusters, and 2 MiB. Neither m nor src may be used
// otherwise any more.
func Compress(m *Map, src io.ReadSeeker, c Compression, workers int) (*Compressed, error) {
	if workers < 1 {
		return nil, fmt.Errorf("qcow2: %d workers", workers)
	}
	f := &Compressed{
		m: m, disk: newDisk(src, m.size), at: m.worst(), pieces: make([]piece, workers*perWorker),
		limit: 1 << min(hostBits, m.sectorsAt()),
	}
	if err := m.fits(f.at); err != nil {
		return nil, err
	}
	for range workers {
		w, err := newCodec(c)
		if err != nil {
			return nil, err
		}
		f.codecs = append(f.codecs, w)
	}
	for i := range f.pieces {
		f.pieces[i] = piece{data: make([]byte, m.cluster()), room: make([]byte, m.cluster()+overhead)}
	}

	return f, f.measure(c)
}

// worst is the layout of the file when nothing can be compressed. No other is larger: compressed clusters that follow each
// other take no more clusters of the file than they are themselves.
func (m *Map) worst() layout {
	tables, data := int64(0), int64(0)
	for _, t := range m.used {
		if t != nil {
			tables, data = tables+1, data+t.count
		}
	}

	return m.layout(tables, data)
}

// sectorsAt is the bit of an L2 entry from which on a compressed cluster's sectors are counted.
func (g geometry) sectorsAt() int { return 62 - (g.bits - 8) }

// measure makes the front.
func (f *Compressed) measure(c Compression) error {
	table, l1 := (f.at.refBlocks-f.at.refTable)<<f.m.bits, (f.at.l2-f.at.l1)<<f.m.bits
	at := f.at
	at.l1 = at.refBlocks // the blocks come later
	f.front = append(f.m.header(at, c), make([]byte, table+l1)...)
	f.pass = &pass{f: f, refs: refcounts{geometry: f.m.geometry}, front: bytes.Clone(f.front), first: true}
	for {
		err := f.pass.step()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	f.front, f.size = f.pass.front, f.pass.pos
	f.rewind()

	return nil
}

func (f *Compressed) rewind() {
	f.pass = &pass{f: f, refs: refcounts{geometry: f.m.geometry}, front: f.front}
}

// Size is the length of the file in bytes.
func (f *Compressed) Size() int64 { return f.size }

// Seek implements io.Seeker, to the start, to where it is, and to the end.
func (f *Compressed) Seek(offset int64, whence int) (int64, error) {
	pos, err := seek(f.pos(), f.size, offset, whence)
	switch {
	case err != nil:
		return pos, err
	case pos == 0:
		f.rewind()
	case pos == f.pos():
	case pos == f.size:
		f.pass = nil
	default:
		return f.pos(), fmt.Errorf("qcow2: seek to %d of a compressed image: %w", pos, errors.ErrUnsupported)
	}

	return pos, nil
}

func (f *Compressed) pos() int64 {
	if f.pass == nil {
		return f.size
	}

	return f.pass.pos - int64(len(f.pass.out)) + int64(f.pass.given)
}

// Read implements io.Reader. An error stays until it is rewound.
func (f *Compressed) Read(p []byte) (int, error) {
	if f.pass == nil {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	for f.pass.given == len(f.pass.out) {
		if err := f.pass.step(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.pass.out[f.pass.given:])
	f.pass.given += n

	return n, nil
}
