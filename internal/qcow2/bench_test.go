package qcow2

import (
	"io"
	"runtime"
	"testing"
)

// BenchmarkRead reads the image of a full disk.
func BenchmarkRead(b *testing.B) {
	v := filled("", 16<<20, DefaultClusterSize, text, [2]int64{0, 16 << 20})
	for _, c := range []struct {
		name string
		make func() (file, error)
	}{
		{"plain", func() (file, error) { return New(v.mapped(b), v.disk()) }},
		{"zlib-1", func() (file, error) { return Compress(v.mapped(b), v.disk(), Zlib, 1) }},
		{"zlib-2", func() (file, error) { return Compress(v.mapped(b), v.disk(), Zlib, 2) }},
		{"zstd-1", func() (file, error) { return Compress(v.mapped(b), v.disk(), Zstd, 1) }},
		{"zstd-2", func() (file, error) { return Compress(v.mapped(b), v.disk(), Zstd, 2) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			f, err := c.make()
			if err != nil {
				b.Fatal(err)
			}
			buffer := make([]byte, 32<<10)
			b.SetBytes(v.size)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := f.Seek(0, io.SeekStart); err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{f}, buffer); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(f.Size())/float64(v.size), "of-disk")
		})
	}
}

// BenchmarkThin makes the image of 1 TiB with an object in every GiB, and reads its metadata.
func BenchmarkThin(b *testing.B) {
	b.ReportAllocs()
	most := uint64(0)
	for b.Loop() {
		before := heap()
		m, err := NewMap(1<<40, DefaultClusterSize)
		if err != nil {
			b.Fatal(err)
		}
		for at := int64(0); at < 1<<40; at += 1 << 30 {
			if err := m.Add(at, at+4<<20); err != nil {
				b.Fatal(err)
			}
		}
		f, err := New(m, endless{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyN(io.Discard, f, f.at.data<<m.bits); err != nil {
			b.Fatal(err)
		}
		most = max(most, heap()-before)
		runtime.KeepAlive(f)
	}
	b.ReportMetric(float64(most)/(1<<20), "MiB-kept")
}
