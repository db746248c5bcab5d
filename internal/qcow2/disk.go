package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// disk reads the guest's data. Behind its end come zeros, as many as are wanted.
type disk struct {
	src  io.ReadSeeker
	size int64
	at   int64 // where src stands; -1: nobody knows
}

func newDisk(src io.ReadSeeker, size int64) *disk { return &disk{src: src, size: size, at: -1} }

// read answers at least one byte of what is at offset from.
func (d *disk) read(p []byte, from int64) (int, error) {
	if from >= d.size {
		clear(p)

		return len(p), nil
	}
	p = p[:min(int64(len(p)), d.size-from)]
	if d.at != from {
		if _, err := d.src.Seek(from, io.SeekStart); err != nil {
			return 0, fmt.Errorf("qcow2: seek to %d: %w", from, err)
		}
	}
	d.at = -1
	n, err := io.ReadAtLeast(d.src, p, 1)
	switch {
	case errors.Is(err, io.EOF):
		return 0, fmt.Errorf("qcow2: the source ends at %d of %d bytes: %w", from, d.size, io.ErrUnexpectedEOF)
	case err != nil:
		return 0, fmt.Errorf("qcow2: read at %d: %w", from, err)
	}
	d.at = from + int64(n)

	return n, nil
}

// fill fills p with what is at offset from.
func (d *disk) fill(p []byte, from int64) error {
	for len(p) > 0 {
		n, err := d.read(p, from)
		if err != nil {
			return err
		}
		p, from = p[n:], from+int64(n)
	}

	return nil
}

// zero reports whether there is nothing but zeros: the first byte is, and each is like the one before.
func zero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
