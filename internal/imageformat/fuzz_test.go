package imageformat

import (
	"bytes"
	"testing"
)

// FuzzInspect: whatever the bytes, inspecting ends, reads little, and strict refuses all that Glance does.
func FuzzInspect(f *testing.F) {
	for _, name := range names() {
		if s := samples()[name]; s.size <= 128<<10 {
			f.Add(bytes.TrimRight(s.bytes(f), "\x00"), s.size)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, size int64) {
		size = max(min(size, 4<<20), 0)
		c := &counted{ReaderAt: sample{size: size}.with(0, string(data))}
		found, err := Inspect(c, size)
		if err != nil || c.reads > MostReads || c.bytes > MostBytes {
			t.Fatalf("%d reads of %d bytes: %v", c.reads, c.bytes, err)
		}
		for _, declared := range []Format{Raw, QCOW2} {
			for _, nonfatal := range [][]string{nil, {"mbr"}} {
				loose := Policy{Checks: Glance, AnyFormat: true, Nonfatal: nonfatal}.Judge(declared, found)
				match := Policy{Checks: Glance, Nonfatal: nonfatal}.Judge(declared, found)
				strict := Policy{Checks: Strict, Nonfatal: nonfatal}.Judge(declared, found)
				if loose != nil && match == nil || match != nil && strict == nil {
					t.Errorf("%+v as %s: any format %v, Glance %v, strict %v", found, declared, loose, match, strict)
				}
			}
		}
	})
}
