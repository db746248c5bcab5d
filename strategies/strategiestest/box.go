package strategiestest

import (
	"bytes"
	"encoding/binary"
	"io"

	"github.com/cinderlift/cinderlift/strategies"
)

// FormatBox is a disk format that only tests have.
const FormatBox = "box"

// Box implements strategies.Encoder: the size, and each part that exists with where it is.
func Box(c strategies.Content) (strategies.File, error) {
	box := binary.BigEndian.AppendUint64(nil, uint64(c.Size()))
	var parts [][2]int64
	err := c.Allocated(func(from, to int64) error {
		parts = append(parts, [2]int64{from, to})

		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		data := make([]byte, p[1]-p[0])
		if err := readAt(c, data, p[0]); err != nil {
			return nil, err
		}
		box = binary.BigEndian.AppendUint64(box, uint64(p[0]))
		box = binary.BigEndian.AppendUint64(box, uint64(len(data)))
		box = append(box, data...)
	}

	return boxFile{bytes.NewReader(box)}, nil
}

type boxFile struct{ *bytes.Reader }

func (boxFile) Close() error { return nil }

func readAt(c strategies.Content, p []byte, from int64) error {
	if _, err := c.Seek(from, io.SeekStart); err != nil {
		return err
	}
	_, err := io.ReadFull(c, p)

	return err
}

// Unbox is what is on the disk of a box.
func Unbox(box []byte) []byte {
	number := func() int64 {
		n := binary.BigEndian.Uint64(box)
		box = box[8:]

		return int64(n)
	}
	disk := make([]byte, number())
	for len(box) > 0 {
		from, size := number(), number()
		copy(disk[from:], box[:size])
		box = box[size:]
	}

	return disk
}
