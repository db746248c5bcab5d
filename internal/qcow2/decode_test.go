package qcow2

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
)

// decoded is what a reader that knows the specification only finds in a file.
type decoded struct {
	disk       []byte
	length     int // of the header
	mapped     int // clusters
	compressed int // of these
}

// reader reads a file strictly: what this package never writes is an error, and so is any refcount that is not the number
// of references.
type reader struct {
	file    []byte
	cluster int64
	refs    map[int64]int // references found, by cluster of the file
	zstd    *zstd.Decoder
}

func decode(file []byte) (d decoded, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the file leads out of itself: %v", r)
		}
	}()
	be := binary.BigEndian
	if string(file[:4]) != "QFI\xfb" || be.Uint32(file[4:]) != 3 {
		return d, errors.New("no qcow2 of version 3")
	}
	r := &reader{file: file, cluster: 1 << be.Uint32(file[20:]), refs: map[int64]int{0: 1}}
	d.length = int(be.Uint32(file[100:]))
	if features := be.Uint64(file[72:]); features == 1<<3 && file[104] == 1 {
		r.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return d, err
		}
		defer r.zstd.Close()
	} else if features != 0 {
		return d, fmt.Errorf("features %x", features)
	}
	if len(file)%int(r.cluster) != 0 {
		return d, fmt.Errorf("%d bytes are no number of clusters", len(file))
	}
	size := int64(be.Uint64(file[24:]))
	if size%512 != 0 {
		return d, fmt.Errorf("a disk of %d bytes", size)
	}
	d.disk = make([]byte, size)
	if err := r.tables(&d, int64(be.Uint64(file[40:])), int64(be.Uint32(file[36:]))); err != nil {
		return d, err
	}

	return d, r.counts(int64(be.Uint64(file[48:])), int64(be.Uint32(file[56:])))
}

func (r *reader) refer(from, to int64) {
	for c := from / r.cluster; c <= (to-1)/r.cluster; c++ {
		r.refs[c]++
	}
}

func (r *reader) tables(d *decoded, at, entries int64) error {
	per := r.cluster / 8
	if want := (int64(len(d.disk)) + per*r.cluster - 1) / (per * r.cluster); entries != want {
		return fmt.Errorf("L1 has %d entries, not %d", entries, want)
	}
	if entries > 0 {
		r.refer(at, at+entries*8)
	}
	for i := range entries {
		e := binary.BigEndian.Uint64(r.file[at+i*8:])
		if e == 0 {
			continue
		}
		l2 := int64(e &^ (1 << 63))
		if e>>63 != 1 || l2%r.cluster != 0 {
			return fmt.Errorf("L1 entry %x", e)
		}
		r.refer(l2, l2+r.cluster)
		if err := r.table(d, l2, i*per); err != nil {
			return err
		}
	}

	return nil
}

func (r *reader) table(d *decoded, l2, first int64) error {
	empty := true
	for n := range r.cluster / 8 {
		e := binary.BigEndian.Uint64(r.file[l2+n*8:])
		if e == 0 {
			continue
		}
		empty = false
		data, err := r.data(d, e)
		if err != nil {
			return err
		}
		at := (first + n) * r.cluster
		left := copy(d.disk[at:], data)
		if !zero(data[left:]) {
			return fmt.Errorf("cluster %d has data behind the end of the disk", first+n)
		}
		d.mapped++
	}
	if empty {
		return errors.New("an L2 table without entries")
	}

	return nil
}

func (r *reader) data(d *decoded, e uint64) ([]byte, error) {
	if e>>62 == 2 {
		at := int64(e &^ (1 << 63))
		if at%r.cluster != 0 {
			return nil, fmt.Errorf("L2 entry %x", e)
		}
		r.refer(at, at+r.cluster)

		return r.file[at : at+r.cluster], nil
	}
	if e>>62 != 1 {
		return nil, fmt.Errorf("L2 entry %x", e)
	}
	d.compressed++
	x := 62 - (int(math.Log2(float64(r.cluster))) - 8)
	at := int64(e & (1<<x - 1))
	sectors := int64(e&^(1<<62)) >> x
	end := at/512*512 + (sectors+1)*512
	r.refer(at, end)
	data := make([]byte, r.cluster)
	if r.zstd != nil {
		// The frame ends before the last sector does: what follows is not its own.
		if err := r.zstd.Reset(bytes.NewReader(r.file[at:end])); err != nil {
			return nil, err
		}
		_, err := io.ReadFull(r.zstd, data)

		return data, err
	}
	_, err := io.ReadFull(flate.NewReader(bytes.NewReader(r.file[at:end])), data)

	return data, err
}

// counts compares the refcounts with the references.
func (r *reader) counts(table, clusters int64) error {
	r.refer(table, table+clusters*r.cluster)
	per := r.cluster / 2
	blocks := map[int64]int64{}
	for i := range clusters * r.cluster / 8 {
		if at := int64(binary.BigEndian.Uint64(r.file[table+i*8:])); at != 0 {
			r.refer(at, at+r.cluster)
			blocks[i] = at
		}
	}
	end := int64(len(r.file)) / r.cluster
	for c := end; c < up(end, per)*per; c++ {
		if binary.BigEndian.Uint16(r.file[blocks[c/per]+c%per*2:]) != 0 {
			return fmt.Errorf("cluster %d, behind the end, has a refcount", c)
		}
	}
	for c := range end {
		at := blocks[c/per]
		if at == 0 {
			return fmt.Errorf("no refcount block for cluster %d", c)
		}
		if got := int(binary.BigEndian.Uint16(r.file[at+c%per*2:])); got != r.refs[c] || got == 0 {
			return fmt.Errorf("refcount of cluster %d is %d, with %d references", c, got, r.refs[c])
		}
		delete(r.refs, c)
	}
	if len(r.refs) > 0 {
		return fmt.Errorf("references behind the end: %v", r.refs)
	}

	return nil
}
