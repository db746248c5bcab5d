package gzipped

import (
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/pgzip"
)

// ErrChanged: the source gives other data than before, and the length that was told does not hold.
var ErrChanged = errors.New("gzipped: the source has changed since it was read first")

// block is what a worker compresses at once, in bytes. Another one gives another file.
const block = 1 << 20

// File is the gzip file of a source. It can be rewound, but not read from anywhere else. It is used by one goroutine at a
// time; the source belongs to it until Close.
type File struct {
	src     io.ReadSeeker
	workers int
	size    int64

	pass *pass // nil: it is at the start, or at the end
	pos  int64
	err  error // stays until it is rewound
}

var _ io.ReadSeekCloser = (*File)(nil)

// New reads src from start to end and compresses it, for the length. Of the workers, all compress at a time.
func New(src io.ReadSeeker, workers int) (*File, error) {
	if workers < 1 {
		return nil, fmt.Errorf("gzipped: %d workers", workers)
	}
	f := &File{src: src, workers: workers}
	var n count
	if err := f.compress(&n); err != nil {
		return nil, err
	}
	f.size = int64(n)

	return f, nil
}

type count int64

func (c *count) Write(p []byte) (int, error) {
	*c += count(len(p))

	return len(p), nil
}

// compress writes the file to w. The compressor's goroutines have ended when it returns.
func (f *File) compress(w io.Writer) error {
	if _, err := f.src.Seek(0, io.SeekStart); err != nil {
		return err
	}
	z, err := pgzip.NewWriterLevel(w, pgzip.DefaultCompression)
	if err != nil {
		return fmt.Errorf("gzipped: make a compressor: %w", err)
	}
	if err := z.SetConcurrency(block, f.workers); err != nil {
		return fmt.Errorf("gzipped: %w", err)
	}
	if _, err = io.Copy(z, f.src); err == nil {
		err = z.Close()
	}
	z.Reset(io.Discard) // ends its goroutines and waits for them, which Close does not after an error (pgzip 1.3.0)

	return err
}

// pass is a compression under way.
type pass struct {
	out   *io.PipeReader
	ended chan struct{}
}

func (f *File) begin() *pass {
	r, w := io.Pipe()
	p := &pass{out: r, ended: make(chan struct{})}
	go func() {
		defer close(p.ended)
		_ = w.CloseWithError(f.compress(w)) // nil is the end of the file; always nil itself
	}()

	return p
}

// stop returns when nothing reads the source any more.
func (f *File) stop() {
	if f.pass == nil {
		return
	}
	_ = f.pass.out.Close() // always nil; the compressor's next write fails
	<-f.pass.ended
	f.pass = nil
}

// Size is the length of the file in bytes.
func (f *File) Size() int64 { return f.size }

// Close ends what runs. The source stays open.
func (f *File) Close() error {
	f.stop()
	f.pos, f.err = f.size, nil

	return nil
}

// Seek implements io.Seeker, to the start, to where it is, and to the end.
func (f *File) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += f.pos
	case io.SeekEnd:
		offset += f.size
	}
	switch {
	case whence < io.SeekStart || whence > io.SeekEnd:
		return f.pos, fmt.Errorf("gzipped: whence %d", whence)
	case whence == io.SeekCurrent && offset == f.pos:
		return f.pos, nil
	case offset != 0 && offset != f.size:
		return f.pos, fmt.Errorf("gzipped: seek to %d: %w", offset, errors.ErrUnsupported)
	}
	f.stop()
	f.pos, f.err = offset, nil

	return f.pos, nil
}

// Read implements io.Reader. An error stays until it is rewound.
func (f *File) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if f.pass == nil {
		if f.pos == f.size {
			return 0, io.EOF
		}
		f.pass = f.begin()
	}
	n, err := f.pass.out.Read(p)
	f.pos += int64(n)
	if err == nil && f.pos == f.size {
		_, err = f.pass.out.Read(make([]byte, 1)) // whoever counts takes the last byte for the end
	}
	switch {
	case errors.Is(err, io.EOF) && f.pos == f.size:
		f.err = io.EOF

		return n, nil
	case errors.Is(err, io.EOF), err == nil && f.pos >= f.size:
		err = ErrChanged
	}
	if f.err = err; err != nil {
		return 0, err
	}

	return n, nil
}
