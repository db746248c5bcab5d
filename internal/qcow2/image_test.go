package qcow2

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"
)

func TestVolumes(t *testing.T) {
	for _, v := range volumes() {
		for _, how := range variants() {
			t.Run(v.name+"/"+how.name, func(t *testing.T) {
				t.Parallel()
				if err := v.check(how, v.bytesOf(t, how)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestSizes holds how long files are: metadata has to be exactly what is needed, and text has to become smaller.
func TestSizes(t *testing.T) {
	const kib, mib = 1 << 10, 1 << 20
	for _, c := range []struct {
		v        volume
		how      int
		clusters int64
	}{
		{filled("", 0, 64*kib, nothing), 0, 3},                                                // header, refcount table, block
		{volume{size: 1 << 40, cluster: 64 * kib}, 0, 4},                                      // and L1
		{filled("", mib, 64*kib, text, [2]int64{0, 1}), 0, 6},                                 // and L2, data
		{filled("", mib, 64*kib, nothing, [2]int64{0, mib}), 0, 21},                           // zeros are data
		{filled("", mib, 64*kib, nothing, [2]int64{0, mib}), 1, 4},                            // or not
		{filled("", mib, 64*kib, one, [2]int64{0, mib}), 2, 6},                                // 16 clusters in one
		{filled("", mib, 64*kib, one, [2]int64{0, mib}), 3, 6},                                //
		{filled("", mib, 64*kib, noise, [2]int64{0, mib}), 2, 21},                             // no larger than without
		{filled("", mib, 64*kib, noise, [2]int64{0, mib}), 3, 21},                             //
		{filled("", mib, 64*kib, turns(one, noise), [2]int64{0, mib}), 3, 21},                 // neither
		{filled("", 512*128, 512, noise, [2]int64{0, 512 * 128}), 0, 1 + 1 + 1 + 1 + 2 + 128}, // 134 < 256
		{filled("", 512*248, 512, noise, [2]int64{0, 512 * 248}), 0, 1 + 1 + 1 + 1 + 4 + 248}, // 256: just one block
		{filled("", 512*249, 512, noise, [2]int64{0, 512 * 249}), 0, 1 + 1 + 2 + 1 + 4 + 249}, // one more: another block
	} {
		f, err := variants()[c.how].make(c.v.mapped(t), c.v.disk())
		if err != nil {
			t.Fatal(err)
		}
		if f.Size() != c.clusters*c.v.cluster {
			t.Errorf("%d bytes of volume, %s: %d clusters, not %d", c.v.size, variants()[c.how].name, f.Size()/c.v.cluster, c.clusters)
		}
	}
}

// TestBoundary walks the end of the file over that of a refcount block, cluster by cluster.
func TestBoundary(t *testing.T) {
	for n := int64(235); n < 260; n++ {
		v := filled("", n*512, 512, noise, [2]int64{0, n * 512})
		for _, how := range variants() {
			if err := v.check(how, v.bytesOf(t, how)); err != nil {
				t.Errorf("%d clusters, %s: %v", n, how.name, err)
			}
		}
	}
}

// TestMissing: blocks count themselves, with 256 clusters in each.
func TestMissing(t *testing.T) {
	for _, c := range []struct{ first, clusters, want int64 }{
		{0, 1, 1}, {0, 255, 1}, {0, 256, 2}, {1, 257, 1}, {1, 511, 1}, {1, 512, 2}, {0, 256 * 255, 256}, {0, 256*255 + 1, 257}, {0, 256 * 256, 258},
	} {
		r := refcounts{geometry: geometry{bits: 9}, first: c.first}
		if got := r.missing(c.clusters * 512); got != c.want {
			t.Errorf("%d clusters, %d blocks are there: %d are missing, not %d", c.clusters, c.first, got, c.want)
		}
	}
}

// TestDeflateWindow: what comes back within 4 KiB is found, what is further back is not.
func TestDeflateWindow(t *testing.T) {
	c, err := newCodec(Zlib)
	if err != nil {
		t.Fatal(err)
	}
	for distance, smaller := range map[int]bool{2 << 10: true, 4000: true, 4200: false, 8 << 10: false} {
		src := make([]byte, distance)
		noise(rand.New(rand.NewPCG(5, 6)), 0, src)
		src = append(src, src...)
		packed, err := c(make([]byte, len(src)), src)
		if err != nil || (packed != nil && len(packed) < len(src)*2/3) != smaller {
			t.Errorf("what was %d bytes before: %d of %d bytes are left, %v", distance, len(packed), len(src), err)
		}
	}
}

// TestHeader holds the bytes.
func TestHeader(t *testing.T) {
	const (
		begin = "514649fb" + "00000003" + "0000000000000000" + "00000000" // magic, version, no backing file
		empty = "00000000" + "0000000000000000"                           // no snapshots
	)
	for name, c := range map[string]struct {
		v   volume
		how int
		hex string
	}{
		"plain": {volume{size: 10<<30 + 1, cluster: 64 << 10}, 0, begin +
			"00000010" + "0000000280000200" + "00000000" + // cluster bits, size, no encryption
			"00000015" + "0000000000030000" + // 21 entries of L1, where
			"0000000000010000" + "00000001" + empty + // refcount table, clusters
			"0000000000000000" + "0000000000000000" + "0000000000000000" + // features
			"00000004" + "00000068" + // refcount order, header length
			"0000000000000000"}, // no extension
		"no size": {filled("", 0, 64<<10, nothing), 0, begin +
			"00000010" + "0000000000000000" + "00000000" + "00000000" + "0000000000000000" +
			"0000000000010000" + "00000001" + empty +
			"0000000000000000" + "0000000000000000" + "0000000000000000" + "00000004" + "00000068" + "0000000000000000"},
		"zlib": {filled("", 512, 512, one, [2]int64{0, 512}), 2, begin +
			"00000009" + "0000000000000200" + "00000000" + "00000001" + "0000000000000400" +
			"0000000000000200" + "00000001" + empty +
			"0000000000000000" + "0000000000000000" + "0000000000000000" + "00000004" + "00000068" + "0000000000000000"},
		"zstd": {filled("", 512, 512, one, [2]int64{0, 512}), 3, begin +
			"00000009" + "0000000000000200" + "00000000" + "00000001" + "0000000000000400" +
			"0000000000000200" + "00000001" + empty +
			"0000000000000008" + "0000000000000000" + "0000000000000000" + "00000004" + "00000070" +
			"0100000000000000" + "0000000000000000"}, // compression type, no extension
	} {
		t.Run(name, func(t *testing.T) {
			f, err := variants()[c.how].make(c.v.mapped(t), c.v.disk())
			if err != nil {
				t.Fatal(err)
			}
			h := make([]byte, c.v.cluster)
			if _, err := io.ReadFull(f, h); err != nil {
				t.Fatal(err)
			}
			got := hex.EncodeToString(h)
			if strings.TrimRight(got, "0") != strings.TrimRight(c.hex, "0") {
				t.Errorf("header:\n%s\nwant:\n%s", got[:len(c.hex)], c.hex)
			}
		})
	}
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		v := described(rapid.SliceOfN(rapid.Byte(), 4, 60).Draw(r, "volume"))
		how := rapid.SampledFrom(variants()).Draw(r, "variant")
		f, err := how.make(v.mapped(t), v.disk())
		if err != nil {
			r.Fatal(err)
		}
		// However much is read at a time, and wherever the reading breaks off.
		step := rapid.IntRange(1, 5000).Draw(r, "step")
		if _, err := io.CopyN(io.Discard, f, rapid.Int64Range(0, f.Size()).Draw(r, "first")); err != nil {
			r.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			r.Fatal(err)
		}
		var b bytes.Buffer
		if _, err := io.CopyBuffer(struct{ io.Writer }{&b}, struct{ io.Reader }{f}, make([]byte, step)); err != nil {
			r.Fatal(err)
		}
		if int64(b.Len()) != f.Size() {
			r.Fatalf("%d bytes, %d said", b.Len(), f.Size())
		}
		if err := v.check(how, b.Bytes()); err != nil {
			r.Fatal(err)
		}
	})
}

// TestSeek reads from anywhere.
func TestSeek(t *testing.T) {
	for _, v := range volumes() {
		want := v.bytesOf(t, variants()[0])
		f, err := New(v.mapped(t), v.disk())
		if err != nil {
			t.Fatal(err)
		}
		dice := rand.New(rand.NewPCG(3, 4))
		for range 30 {
			from := dice.Int64N(f.Size())
			if _, err := f.Seek(from-f.Size(), io.SeekEnd); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, min(dice.Int64N(50000), f.Size()-from))
			if _, err := io.ReadFull(f, b); err != nil || !bytes.Equal(b, want[from:from+int64(len(b))]) {
				t.Fatalf("%s: %d bytes at %d are others: %v", v.name, len(b), from, err)
			}
			if pos, err := f.Seek(0, io.SeekCurrent); err != nil || pos != from+int64(len(b)) {
				t.Fatalf("at %d: %v", pos, err)
			}
		}
	}
	v := volumes()[1]
	for _, how := range variants() {
		f, err := how.make(v.mapped(t), v.disk())
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []struct {
			offset int64
			whence int
		}{{-1, io.SeekStart}, {-1, io.SeekCurrent}, {0, 3}, {0, -1}} {
			if _, err := f.Seek(s.offset, s.whence); err == nil {
				t.Errorf("%s: seek to %d, %d", how.name, s.offset, s.whence)
			}
		}
	}
	if f, err := Compress(v.mapped(t), v.disk(), Zlib, 1); err != nil {
		t.Error(err)
	} else if _, err := f.Seek(5, io.SeekStart); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("into the middle of a compressed file: %v", err)
	}
}

func TestRefused(t *testing.T) {
	const tib = 1 << 40
	for name, try := range map[string]func() error{
		"no cluster":             func() error { _, err := NewMap(1, 0); return err },
		"a negative cluster":     func() error { _, err := NewMap(1, -512); return err },
		"the lowest cluster":     func() error { _, err := NewMap(1, -1<<63); return err },
		"a small cluster":        func() error { _, err := NewMap(1, 256); return err },
		"a large cluster":        func() error { _, err := NewMap(1, 4<<20); return err },
		"no power of two":        func() error { _, err := NewMap(1, 65537); return err },
		"a negative size":        func() error { _, err := NewMap(-1, 65536); return err },
		"too large for L1":       func() error { _, err := NewMap(2048*tib+1, 65536); return err },
		"the largest size":       func() error { _, err := NewMap(1<<63-1, 65536); return err },
		"before the disk":        func() error { return add(t, -1, 1) },
		"behind the disk":        func() error { return add(t, 0, 101) },
		"backwards":              func() error { return add(t, 2, 1) },
		"far behind the disk":    func() error { return add(t, 1<<62, 1<<62+1) },
		"no worker":              func() error { _, err := Compress(empty(t), strings.NewReader(""), Zlib, 0); return err },
		"an unknown compression": func() error { _, err := Compress(empty(t), strings.NewReader(""), 2, 1); return err },
	} {
		if try() == nil {
			t.Errorf("%s is not refused", name)
		}
	}
	for _, c := range []struct{ size, cluster int64 }{{2048 * tib, 65536}, {64 * tib, 65536}, {128 << 30, 512}, {0, 512}} {
		if _, err := NewMap(c.size, c.cluster); err != nil {
			t.Errorf("%d in clusters of %d: %v", c.size, c.cluster, err)
		}
	}
	if err := add(t, 100, 100); err != nil {
		t.Errorf("nothing at the end: %v", err)
	}
}

func empty(t *testing.T) *Map { return volume{size: 100, cluster: 512}.mapped(t) }

func add(t *testing.T, from, to int64) error { return empty(t).Add(from, to) }

// TestSource: a source that fails.
func TestSource(t *testing.T) {
	v := filled("", 100000, 512, text, [2]int64{0, 100000})
	broken := errors.New("broken")
	for _, how := range variants() {
		if _, err := readAll(how, v.mapped(t), rigged{v.disk(), iotest.ErrReader(broken)}); !errors.Is(err, broken) {
			t.Errorf("%s: a reader that fails: %v", how.name, err)
		}
		if _, err := readAll(how, v.mapped(t), bytes.NewReader(v.data[:99999])); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: a short source: %v", how.name, err)
		}
		src := v.disk()
		b, err := readAll(how, v.mapped(t), rigged{src, iotest.HalfReader(src)})
		if err == nil {
			err = v.check(how, b)
		}
		if err != nil {
			t.Errorf("%s: a reader that reads less than it could: %v", how.name, err)
		}
	}
}

// rigged seeks in one and reads from another.
type rigged struct {
	io.Seeker
	io.Reader
}

func readAll(how variant, m *Map, src io.ReadSeeker) ([]byte, error) {
	f, err := how.make(m, src)
	if err != nil {
		return nil, err
	}

	return io.ReadAll(f)
}

// TestGoesOn: after an error of the source, an image without compression is read on; a compressed one stays broken until it
// is rewound.
func TestGoesOn(t *testing.T) {
	v := filled("", 1<<18, 4096, text, [2]int64{0, 1 << 18})
	broken := errors.New("broken")
	for _, how := range variants() {
		src := &flaky{ReadSeeker: v.disk(), err: broken, after: -1}
		f, err := how.make(v.mapped(t), src)
		if err != nil {
			t.Fatal(err)
		}
		src.after = 5
		b, err := io.ReadAll(f)
		if !errors.Is(err, broken) {
			t.Fatalf("%s: %v", how.name, err)
		}
		if _, plain := f.(*Image); !plain {
			if _, err := f.Read(make([]byte, 1)); !errors.Is(err, broken) {
				t.Errorf("%s goes on: %v", how.name, err)
			}
			b = nil
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
		}
		rest, err := io.ReadAll(f)
		if err == nil {
			err = v.check(how, append(b, rest...))
		}
		if err != nil {
			t.Errorf("%s: %v", how.name, err)
		}
	}
}

// flaky fails once, after so many reads.
type flaky struct {
	io.ReadSeeker
	err   error
	after int
}

func (f *flaky) Read(p []byte) (int, error) {
	if f.after--; f.after == 0 {
		_, _ = f.ReadSeeker.Read(p) // where it stands now nobody can tell

		return 0, f.err
	}

	return f.ReadSeeker.Read(p)
}

// TestChanged: a source that changes may end in an error or in a whole file of what it is now, and never in a broken one.
func TestChanged(t *testing.T) {
	for name, change := range map[string]func(p []byte){
		"much is zeros":     func(p []byte) { clear(p[512*100 : 512*200]) },
		"a little is noise": func(p []byte) { noise(rand.New(rand.NewPCG(1, 1)), 0, p[512*300:512*301]) },
		"much is not text":  func(p []byte) { noise(rand.New(rand.NewPCG(1, 1)), 0, p) },
		"the end is zeros":  func(p []byte) { clear(p[len(p)-512:]) },
	} {
		v := filled("", 1<<18, 512, text, [2]int64{0, 1 << 18})
		f, err := Compress(v.mapped(t), v.disk(), Zlib, 3)
		if err != nil {
			t.Fatal(err)
		}
		before := bytes.Clone(v.data)
		change(v.data)
		b, err := io.ReadAll(f)
		if err == nil {
			err = v.check(variants()[2], b)
		}
		if _, again := f.Read(make([]byte, 1)); err != nil && (!errors.Is(err, ErrChanged) || !errors.Is(again, ErrChanged)) ||
			err == nil && strings.HasPrefix(name, "much") {
			t.Errorf("%s: %v, then %v", name, err, again)
		}
		copy(v.data, before)
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(f); err != nil {
			t.Errorf("%s, and back: %v", name, err)
		} else if err := v.check(variants()[2], b); err != nil {
			t.Errorf("%s, and back: %v", name, err)
		}
	}
}

// TestWorkers: however many compress, the bytes are the same.
func TestWorkers(t *testing.T) {
	v := filled("", 1<<20, 4<<10, turns(text, noise, text, one), [2]int64{0, 1 << 20})
	for _, c := range []Compression{Zlib, Zstd} {
		var first []byte
		for _, workers := range []int{1, 2, 7} {
			f, err := Compress(v.mapped(t), v.disk(), c, workers)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = b
			}
			if !bytes.Equal(first, b) {
				t.Errorf("compression %d: other bytes with %d workers", c, workers)
			}
		}
	}
}

var ones = bytes.Repeat([]byte{1}, DefaultClusterSize)

// endless is a disk without end: every byte is one.
type endless struct{}

func (endless) Read(p []byte) (int, error)              { return copy(p, ones), nil }
func (endless) Seek(offset int64, _ int) (int64, error) { return offset, nil }

// TestMemory: what is kept does not grow with the disk, but for the map.
func TestMemory(t *testing.T) {
	const tib, mib = 1 << 40, 1 << 20
	for name, c := range map[string]struct {
		size, step, length int64
		how                int
		limit              uint64 // bytes
	}{
		"1 TiB, every other object":   {tib, 8 * mib, 4 * mib, 0, 3 * mib},
		"1 TiB, a cluster everywhere": {tib, mib, 1, 0, 3 * mib},
		"64 TiB, thin":                {64 * tib, tib, 4 * mib, 0, 2 * mib},
		"1 TiB, thin, compressed":     {tib, 16 << 30, 4 * mib, 3, 9 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			before := heap()
			m, err := NewMap(c.size, DefaultClusterSize)
			if err != nil {
				t.Fatal(err)
			}
			for at := int64(0); at < c.size; at += c.step {
				if err := m.Add(at, at+c.length); err != nil {
					t.Fatal(err)
				}
			}
			f, err := variants()[c.how].make(m, endless{})
			if err != nil {
				t.Fatal(err)
			}
			most := uint64(0)
			for range 20 {
				if _, err := io.CopyN(io.Discard, f, min(2*mib, f.Size()/20)); err != nil {
					t.Fatal(err)
				}
				most = max(most, heap()-before)
			}
			if most > c.limit {
				t.Errorf("%d KiB are kept", most>>10)
			}
			runtime.KeepAlive(f)
		})
	}
}

// heap is what is reachable.
func heap() uint64 {
	var s runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&s)

	return s.HeapAlloc
}

func FuzzVolume(f *testing.F) {
	f.Add([]byte{0, 10, 0, 1, 0, 0, 255, 3, 4, 101, 0, 0, 122})
	f.Fuzz(func(t *testing.T, b []byte) {
		v := described(b)
		for _, how := range variants() {
			if err := v.check(how, v.bytesOf(t, how)); err != nil {
				t.Errorf("%s: %v", how.name, err)
			}
		}
	})
}
