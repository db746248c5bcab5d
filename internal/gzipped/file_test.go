package gzipped_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"go.uber.org/goleak"

	"github.com/cinderlift/cinderlift/internal/gzipped"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is some MiB, half of them noise.
func disk(mib int) []byte {
	b := make([]byte, mib<<20)
	r := rand.NewChaCha8([32]byte{1})
	for at := 0; at < len(b); at += 2 << 20 {
		_, _ = r.Read(b[at:min(at+1<<20, len(b))])
	}

	return b
}

func file(t *testing.T, src io.ReadSeeker, workers int) *gzipped.File {
	t.Helper()
	f, err := gzipped.New(src, workers)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})

	return f
}

func all(t *testing.T, r io.Reader) []byte {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}

	return b
}

// TestRound: what comes out of gzip again is the source, and the length was right.
func TestRound(t *testing.T) {
	for name, src := range map[string][]byte{
		"empty": {}, "a byte": {7}, "a block": disk(1), "zeros": make([]byte, 9<<20), "much": disk(9), "odd": disk(3)[:2<<20+5],
	} {
		t.Run(name, func(t *testing.T) {
			f := file(t, bytes.NewReader(src), 3)
			made := all(t, f)
			if f.Size() != int64(len(made)) {
				t.Errorf("it said %d bytes and has %d", f.Size(), len(made))
			}
			z, err := gzip.NewReader(bytes.NewReader(made))
			if err != nil {
				t.Fatal(err)
			}
			if got := all(t, z); !bytes.Equal(got, src) {
				t.Errorf("%d bytes come out again, want the %d of the source", len(got), len(src))
			}
		})
	}
}

// TestSameBytes: whoever makes the file, and in whatever parts it is read.
func TestSameBytes(t *testing.T) {
	src := disk(5)
	want := all(t, file(t, bytes.NewReader(src), 1))
	for name, r := range map[string]io.Reader{
		"several workers":   file(t, bytes.NewReader(src), 4),
		"small reads":       iotest.HalfReader(file(t, bytes.NewReader(src), 2)),
		"from a dripping":   file(t, dripping{bytes.NewReader(src)}, 2),
		"with late endings": iotest.DataErrReader(file(t, bytes.NewReader(src), 2)),
	} {
		if !bytes.Equal(all(t, r), want) {
			t.Errorf("%s: other bytes", name)
		}
	}
}

// dripping gives a few thousand bytes at a time.
type dripping struct{ io.ReadSeeker }

func (d dripping) Read(p []byte) (int, error) { return d.ReadSeeker.Read(p[:min(len(p), 4097)]) }

// TestRewind: it can begin anew anywhere, as an upload does after a 401, and be measured as a file is.
func TestRewind(t *testing.T) {
	f := file(t, bytes.NewReader(disk(6)), 2)
	want := all(t, f)
	for _, n := range []int64{0, 1, 1 << 20, int64(len(want))} {
		for offset, whence := range map[int64]int{0: io.SeekStart, -f.Size(): io.SeekEnd} {
			if at, err := f.Seek(offset, whence); at != 0 || err != nil {
				t.Fatalf("rewound to %d: %v", at, err)
			}
			if _, err := io.CopyN(io.Discard, f, n); err != nil {
				t.Fatal(err)
			}
			if at, err := f.Seek(0, io.SeekCurrent); at != n || err != nil {
				t.Errorf("it is at %d, want %d: %v", at, n, err)
			}
		}
	}
	if at, err := f.Seek(0, io.SeekEnd); at != f.Size() || err != nil {
		t.Errorf("the end is at %d, want %d: %v", at, f.Size(), err)
	}
	if n, err := f.Read(make([]byte, 10)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("behind the end: %d, %v", n, err)
	}
	if _, err := f.Seek(1, io.SeekStart); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("seek to 1: %v", err)
	}
	if _, err := f.Seek(0, 9); err == nil {
		t.Error("whence 9 is fine")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil || !bytes.Equal(all(t, f), want) {
		t.Errorf("after all that: other bytes, or %v", err)
	}
}

// failing gives an error at an offset, from some pass on.
type failing struct {
	src    *bytes.Reader // not embedded: its WriteTo would pass Read by
	at     int64
	passes int // until it fails
	why    error
}

func (f *failing) Seek(offset int64, whence int) (int64, error) {
	f.passes--

	return f.src.Seek(offset, whence)
}

func (f *failing) Read(p []byte) (int, error) {
	if f.passes < 0 && f.src.Size()-int64(f.src.Len()) >= f.at {
		return 0, f.why
	}

	return f.src.Read(p[:min(len(p), 1<<16)])
}

// TestSourceFails: its error is handed through, in either pass, and no file looks whole.
func TestSourceFails(t *testing.T) {
	away := errors.New("away")
	src := disk(4)
	if _, err := gzipped.New(&failing{bytes.NewReader(src), 2 << 20, 0, away}, 2); !errors.Is(err, away) {
		t.Errorf("first pass: %v", err)
	}
	from := &failing{bytes.NewReader(src), 3 << 20, 1, away}
	f := file(t, from, 2)
	for range 2 {
		if _, err := io.Copy(io.Discard, f); !errors.Is(err, away) {
			t.Errorf("second pass: %v", err)
		}
	}
	from.passes = 100
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if n := len(all(t, f)); int64(n) != f.Size() {
		t.Errorf("once the source is well: %d bytes, want %d", n, f.Size())
	}
}

// changing is another disk from its second pass on.
type changing struct {
	src  *bytes.Reader
	next []byte
}

func (c *changing) Read(p []byte) (int, error) { return c.src.Read(p) }

func (c *changing) Seek(offset int64, whence int) (int64, error) {
	if c.src.Len() == 0 {
		c.src = bytes.NewReader(c.next)
	}

	return c.src.Seek(offset, whence)
}

// TestSourceChanges: a file that would be longer or shorter than it was told is an error, and never as long.
func TestSourceChanges(t *testing.T) {
	for name, next := range map[string][]byte{"longer": disk(4), "shorter": make([]byte, 2<<20)} {
		f := file(t, &changing{bytes.NewReader(disk(2)), next}, 2)
		n, err := io.Copy(io.Discard, f)
		if !errors.Is(err, gzipped.ErrChanged) || n >= f.Size() {
			t.Errorf("%s: %d of %d bytes, %v", name, n, f.Size(), err)
		}
	}
}

func TestNoWorkers(t *testing.T) {
	if _, err := gzipped.New(bytes.NewReader(nil), 0); err == nil {
		t.Error("nobody compresses, and that is fine")
	}
}

func BenchmarkFile(b *testing.B) {
	src := disk(32)
	b.SetBytes(int64(len(src)))
	for b.Loop() {
		f, err := gzipped.New(bytes.NewReader(src), 2)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, f); err != nil {
			b.Fatal(err)
		}
	}
}
