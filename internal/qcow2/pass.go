package qcow2

import (
	"encoding/binary"
	"fmt"
	"io"
)

// pass makes a compressed file from start to end, a part at each step: the front; for each L2 table its clusters, the
// table, and the refcount blocks that are full; the refcount blocks that are left.
type pass struct {
	f     *Compressed
	first bool   // it writes L1 and the refcount table into front; later ones compare
	front []byte // header, refcount table, L1

	pos   int64  // where the file ends so far
	out   []byte // the end of the file so far
	given int    // how much of out has been read

	begun, ended bool
	table        int64 // what comes next: index in L1
	next         int64 // which of its clusters
	l2           []byte
	mapped       bool // l2 has an entry
	refs         refcounts
	err          error // why it can't go on
}

// step makes the next part, which may be empty; io.EOF when there is none.
func (p *pass) step() error {
	p.out, p.given = p.out[:0], 0
	if p.err == nil {
		p.err = p.part()
	}
	if p.err != nil {
		p.pos -= int64(len(p.out)) // nobody shall read what is wrong
		p.out = p.out[:0]
	}

	return p.err
}

func (p *pass) part() error {
	switch {
	case !p.begun:
		return p.begin()
	case p.table < int64(len(p.f.m.used)):
		return p.group()
	case !p.ended:
		return p.end()
	default:
		return io.EOF
	}
}

func (p *pass) begin() error {
	p.begun = true
	p.l2 = make([]byte, p.f.m.cluster())

	return p.write(p.front)
}

// write writes something that has its clusters to itself.
func (p *pass) write(b []byte) error {
	if err := p.refs.add(p.pos, p.pos+int64(len(b))); err != nil {
		return err
	}
	p.append(b)

	return nil
}

func (p *pass) append(b []byte) {
	p.out = append(p.out, b...)
	p.pos += int64(len(b))
}

// group writes some of the clusters behind an entry of L1, or the L2 table when all are there.
func (p *pass) group() error {
	m := p.f.m
	n := 0
	for ; n < len(p.f.pieces); n++ {
		c := m.used[p.table].after(p.next)
		if c < 0 {
			break
		}
		piece := &p.f.pieces[n]
		piece.cluster = p.table*m.perTable() + c
		if err := p.f.disk.fill(piece.data, piece.cluster<<m.bits); err != nil {
			return err
		}
		p.next = c + 1
	}
	if n == 0 {
		return p.close()
	}
	squeeze(p.f.codecs, p.f.pieces[:n])
	for i := range n {
		if err := p.place(&p.f.pieces[i]); err != nil {
			return err
		}
	}

	return nil
}

// place writes a cluster and its entry in L2.
func (p *pass) place(c *piece) error {
	m := p.f.m
	switch {
	case c.err != nil:
		return c.err
	case c.zero:
		if p.first {
			m.unset(c.cluster)
		}

		return nil
	}
	p.mapped = true
	i := c.cluster % m.perTable()
	if c.packed == nil {
		p.align()
		put(p.l2, i, alone|uint64(p.pos))

		return p.write(c.data)
	}
	last := p.pos + int64(len(c.packed)) - 1
	if last >= p.f.limit {
		return fmt.Errorf("qcow2: with clusters of %d bytes there is no place for compressed ones at %d", m.cluster(), p.pos)
	}
	put(p.l2, i, compressed|uint64(last/sector-p.pos/sector)<<m.sectorsAt()|uint64(p.pos))

	return p.write(c.packed)
}

// align fills the last cluster up.
func (p *pass) align() {
	if over := p.pos & (p.f.m.cluster() - 1); over > 0 {
		p.append(make([]byte, p.f.m.cluster()-over))
	}
}

// close writes the L2 table, and what is due behind it.
func (p *pass) close() error {
	if p.mapped {
		p.align()
		if err := p.note(p.f.at.refBlocks<<p.f.m.bits+p.table*entrySize, alone|uint64(p.pos)); err != nil {
			return err
		}
		if err := p.write(p.l2); err != nil {
			return err
		}
		clear(p.l2)
		p.mapped = false
	}
	p.table, p.next = p.table+1, 0

	return p.blocks(p.refs.due(p.pos))
}

// end writes the refcount blocks that are left, which count themselves.
func (p *pass) end() error {
	p.ended = true
	n := p.refs.missing(p.pos)
	if n > 0 {
		if err := p.refs.add(p.pos, p.pos+n<<p.f.m.bits); err != nil {
			return err
		}
	}
	for range n {
		if err := p.block(); err != nil {
			return err
		}
	}
	if !p.first && p.pos != p.f.size {
		return ErrChanged
	}

	return nil
}

// blocks writes refcount blocks that count others.
func (p *pass) blocks(n int64) error {
	for range n {
		if err := p.refs.add(p.pos, p.pos+p.f.m.cluster()); err != nil {
			return err
		}
		if err := p.block(); err != nil {
			return err
		}
	}

	return nil
}

func (p *pass) block() error {
	if err := p.note(p.f.at.refTable<<p.f.m.bits+p.refs.first*entrySize, uint64(p.pos)); err != nil {
		return err
	}
	p.append(p.refs.take())

	return nil
}

// note writes an entry of the front, or makes sure that it is what has been written there.
func (p *pass) note(at int64, entry uint64) error {
	switch {
	case p.first:
		binary.BigEndian.PutUint64(p.front[at:], entry)
	case binary.BigEndian.Uint64(p.front[at:]) != entry:
		return ErrChanged
	}

	return nil
}
