package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
)

// volume is a disk to make images of.
type volume struct {
	name          string
	size, cluster int64
	extents       [][2]int64 // what exists; the rest is zeros
	data          []byte
}

// volumes are those that have gone wrong somewhere, or could.
func volumes() []volume {
	const kib, mib = 1 << 10, 1 << 20

	return []volume{
		filled("no size", 0, 64*kib, nothing),
		filled("one byte", 1, 64*kib, noise, [2]int64{0, 1}),
		filled("empty", 3*mib, 64*kib, nothing),
		filled("one cluster", 64*kib, 64*kib, noise, [2]int64{0, 64 * kib}),
		filled("one byte less than a cluster", 64*kib-1, 64*kib, noise, [2]int64{0, 64*kib - 1}),
		filled("one byte more than a cluster", 64*kib+1, 64*kib, noise, [2]int64{0, 64*kib + 1}),
		filled("odd size, only the end", 3*mib+12345, 64*kib, noise, [2]int64{3*mib + 12344, 3*mib + 12345}),
		filled("thin", 8*mib, 64*kib, noise, [2]int64{0, 400 * kib}, [2]int64{4 * mib, 5*mib - 1}, [2]int64{8*mib - 1, 8 * mib}),
		filled("extents that touch the same clusters", mib, 64*kib, noise, [2]int64{5, 6}, [2]int64{100, 70000}, [2]int64{7, 131072}),
		filled("full", 2*mib, 64*kib, text, [2]int64{0, 2 * mib}),
		filled("all zeros, but there", 2*mib, 64*kib, nothing, [2]int64{0, 2 * mib}),
		filled("zeros and noise by turns", mib, 64*kib, turns(nothing, noise), [2]int64{0, mib}),
		filled("text and noise by turns", mib, 64*kib, turns(text, noise), [2]int64{0, mib}),
		filled("the last of one L2 table and the first of the next", 5*mib, 4*kib, text, [2]int64{2*mib - 1, 2*mib + 1}),
		filled("the last L2 table only", 5*mib, 4*kib, text, [2]int64{5*mib - 1, 5 * mib}),
		filled("L2 tables of which every other is missing", mib, 512, text, stripes(mib, 64*kib, 32*kib)...),
		filled("many refcount blocks", mib+77, 512, noise, [2]int64{0, mib + 77}),
		filled("many refcount blocks, compressed", 600*kib, 512, text, [2]int64{0, 600 * kib}),
		filled("a refcount table of two clusters", 9*mib, 512, nothing, [2]int64{0, 9 * mib}),
		filled("clusters of 2 MiB", 5*mib+1, 2*mib, turns(text, noise), [2]int64{mib, 3 * mib}, [2]int64{5 * mib, 5*mib + 1}),
		filled("many small ones in a cluster", 8*mib, 512*kib, one, [2]int64{0, 8 * mib}),
		filled("40 % at random", 3*mib, 64*kib, turns(noise, text, nothing), random(3*mib, 40)...),
		filled("40 % at random, small clusters", mib, 512, turns(noise, text, nothing), random(mib, 40)...),
	}
}

type content func(dice *rand.Rand, cluster int64, p []byte)

func nothing(_ *rand.Rand, _ int64, _ []byte) {}

// noise does not become smaller.
func noise(dice *rand.Rand, _ int64, p []byte) {
	words(dice, p, func(n uint64) uint64 { return n | 0x0101010101010101 })
}

// text becomes smaller, with matches that are far apart.
func text(dice *rand.Rand, _ int64, p []byte) {
	words(dice, p, func(n uint64) uint64 { return n&0x0303030303030303 | 0x6060606060606060 })
	for i := 9000; i+100 < len(p); i += 1000 {
		copy(p[i:i+100], p[i-5000:])
	}
}

// one becomes as small as can be.
func one(_ *rand.Rand, _ int64, p []byte) {
	words(nil, p, func(uint64) uint64 { return 0x0101010101010101 })
}

func words(dice *rand.Rand, p []byte, of func(uint64) uint64) {
	var w [8]byte
	for len(p) > 0 {
		n := uint64(0)
		if dice != nil {
			n = dice.Uint64()
		}
		binary.BigEndian.PutUint64(w[:], of(n))
		p = p[copy(p, w[:]):]
	}
}

// turns takes another one in each cluster.
func turns(c ...content) content {
	return func(dice *rand.Rand, cluster int64, p []byte) { c[cluster%int64(len(c))](dice, cluster, p) }
}

func stripes(size, step, length int64) (e [][2]int64) {
	for at := int64(0); at < size; at += step {
		e = append(e, [2]int64{at, min(at+length, size)})
	}

	return e
}

func random(size int64, percent int) (e [][2]int64) {
	dice := rand.New(rand.NewPCG(1, 2))
	for at := int64(0); at < size; at += 32 << 10 {
		if dice.IntN(100) < percent {
			e = append(e, [2]int64{at, min(at+32<<10, size)})
		}
	}

	return e
}

// filled fills the extents of a volume.
func filled(name string, size, cluster int64, c content, extents ...[2]int64) volume {
	v := volume{name: name, size: size, cluster: cluster, extents: extents, data: make([]byte, size)}
	dice := rand.New(rand.NewPCG(uint64(size), uint64(cluster)))
	for _, e := range extents {
		for at := e[0]; at < e[1]; {
			to := min(at-at%cluster+cluster, e[1])
			c(dice, at/cluster, v.data[at:to])
			at = to
		}
	}

	return v
}

// described makes a volume of some bytes of a fuzzer: the cluster size, the size, and pairs of a gap and a run. Each run
// is one of a few kinds of content.
func described(b []byte) volume {
	take := func() int64 {
		if len(b) == 0 {
			return 0
		}
		n := int64(b[0])
		b = b[1:]

		return n
	}
	cluster := int64(512) << (take() % 4)
	size := take()<<11 | take()<<3 | take()%8
	var extents [][2]int64
	var kinds []content
	for at := int64(0); len(b) > 1; {
		at += take() * take() % 4096
		how := take()
		to := min(at+(how>>2)<<(how%8), size)
		if at >= to {
			break
		}
		extents = append(extents, [2]int64{at, to})
		kinds = append(kinds, []content{nothing, noise, text, one}[how%4])
		at = to
	}
	v := filled("described", size, cluster, nothing, extents...)
	dice := rand.New(rand.NewPCG(uint64(size), 7))
	for i, e := range extents {
		kinds[i](dice, 0, v.data[e[0]:e[1]])
	}

	return v
}

func (v volume) disk() io.ReadSeeker { return bytes.NewReader(v.data) }

func (v volume) mapped(t testing.TB) *Map {
	t.Helper()
	m, err := NewMap(v.size, v.cluster)
	for _, e := range v.extents {
		if err == nil {
			err = m.Add(e[0], e[1])
		}
	}
	if err != nil {
		t.Fatal(err)
	}

	return m
}

// file is what Image and Compressed have in common.
type file interface {
	io.ReadSeeker
	Size() int64
}

// variant is a way to make a file.
type variant struct {
	name   string
	method string // as qemu calls the compression type
	make   func(m *Map, src io.ReadSeeker) (file, error)
}

func variants() []variant {
	return []variant{
		{"plain", "zlib", func(m *Map, src io.ReadSeeker) (file, error) { return New(m, src) }},
		{"without zeros", "zlib", func(m *Map, src io.ReadSeeker) (file, error) {
			if err := m.DropZeros(src); err != nil {
				return nil, err
			}

			return New(m, src)
		}},
		{"zlib", "zlib", func(m *Map, src io.ReadSeeker) (file, error) { return Compress(m, src, Zlib, 2) }},
		{"zstd", "zstd", func(m *Map, src io.ReadSeeker) (file, error) { return Compress(m, src, Zstd, 2) }},
	}
}

// bytesOf reads a file of a volume, and makes sure that its length was known and that it can be rewound.
func (v volume) bytesOf(t testing.TB, how variant) []byte {
	t.Helper()
	f, err := how.make(v.mapped(t), v.disk())
	if err != nil {
		t.Fatal(err)
	}
	var b []byte
	for i := range 2 {
		if end, err := f.Seek(0, io.SeekEnd); err != nil || end != f.Size() {
			t.Fatalf("the end is %d, the size %d: %v", end, f.Size(), err)
		}
		if n, err := f.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("at the end: %d bytes, %v", n, err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		again, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(again)) != f.Size() {
			t.Fatalf("%d bytes, %d said", len(again), f.Size())
		}
		if i > 0 && !bytes.Equal(b, again) {
			t.Fatal("other bytes the second time")
		}
		b = again
	}

	return b
}

// check compares what a file says with the volume.
func (v volume) check(how variant, file []byte) error {
	d, err := decode(file)
	if err != nil {
		return err
	}
	want := make([]byte, up(v.size, 512)*512)
	copy(want, v.data)
	if !bytes.Equal(d.disk, want) {
		return fmt.Errorf("another disk, %d bytes", len(d.disk))
	}
	if n := v.expected(how.name == "plain"); d.mapped != n {
		return fmt.Errorf("%d clusters, not %d", d.mapped, n)
	}

	return nil
}

// expected is how many clusters of the volume are in an image.
func (v volume) expected(zeros bool) (n int) {
	there := map[int64]bool{}
	for _, e := range v.extents {
		for c := e[0] / v.cluster; c*v.cluster < e[1]; c++ {
			there[c] = true
		}
	}
	for c := range there {
		if zeros || !zero(v.data[c*v.cluster:min((c+1)*v.cluster, v.size)]) {
			n++
		}
	}

	return n
}
