package qcow2

import (
	"errors"
	"fmt"
	"sync"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// deflateWindow is how far back a match may be: qemu inflates with windowBits -12 (block/qcow2-threads.c).
const deflateWindow = 1 << 12

// A codec compresses a cluster into dst, of the cluster's size, and answers what it used of it; nil when it does not become
// smaller. What it answers depends on src only, not on what it did before. It is used by one goroutine at a time.
type codec func(dst, src []byte) ([]byte, error)

func newCodec(c Compression) (codec, error) {
	switch c {
	case Zlib:
		return newDeflate()
	case Zstd:
		return newZstd()
	default:
		return nil, fmt.Errorf("qcow2: compression type %d", c)
	}
}

func newDeflate() (codec, error) {
	w, err := flate.NewWriterWindow(nil, deflateWindow)
	if err != nil {
		return nil, fmt.Errorf("qcow2: make a compressor: %w", err)
	}

	return func(dst, src []byte) ([]byte, error) {
		out := &limited{room: dst[:len(src)-1]}
		w.Reset(out)
		_, err := w.Write(src)
		if err == nil {
			err = w.Close()
		}
		switch {
		case errors.Is(err, errTooLarge):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("qcow2: deflate: %w", err)
		}

		return dst[:out.used], nil
	}, nil
}

// newZstd: one frame for each cluster. A checksum would have to be read behind the data by who stops there.
func newZstd() (codec, error) {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, fmt.Errorf("qcow2: make a compressor: %w", err)
	}

	return func(dst, src []byte) ([]byte, error) {
		out := e.EncodeAll(src, dst[:0])
		if len(out) >= len(src) {
			return nil, nil
		}

		return out, nil
	}, nil
}

var errTooLarge = errors.New("it does not become smaller")

// limited takes what there is room for.
type limited struct {
	room []byte
	used int
}

func (l *limited) Write(p []byte) (int, error) {
	if len(p) > len(l.room)-l.used {
		return 0, errTooLarge
	}
	l.used += copy(l.room[l.used:], p)

	return len(p), nil
}

// piece is a cluster of the guest on its way.
type piece struct {
	cluster int64
	data    []byte
	zero    bool
	packed  []byte // nil: it does not become smaller
	room    []byte
	err     error
}

// squeeze compresses pieces side by side, one worker for each codec.
func squeeze(codecs []codec, pieces []piece) {
	var workers sync.WaitGroup
	for w := range codecs {
		workers.Go(func() {
			for i := w; i < len(pieces); i += len(codecs) {
				pieces[i].pack(codecs[w])
			}
		})
	}
	workers.Wait()
}

func (p *piece) pack(c codec) {
	if p.zero = zero(p.data); !p.zero {
		p.packed, p.err = c(p.room, p.data)
	}
}
