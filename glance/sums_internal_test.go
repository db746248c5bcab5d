package glance

import (
	"bytes"
	"crypto/md5" //nolint:gosec // theirs
	"crypto/sha512"
	"encoding/hex"
	"testing"
)

// TestSums: the digests are those of everything that was written, in whatever parts.
func TestSums(t *testing.T) {
	for _, size := range []int{0, 1, sumBlock - 1, sumBlock, sumBlock + 1, 5*sumBlock + 7} {
		data := bytes.Repeat([]byte("cinderlift "), size/11+1)[:size]
		for _, part := range []int{1000, 32 << 10, 3 * sumBlock} {
			s := newSums()
			for rest := data; len(rest) > 0; {
				n := min(part, len(rest))
				p := bytes.Clone(rest[:n])
				s.write(p)
				clear(p) // the caller uses it again
				rest = rest[n:]
			}
			want512, want5 := sha512.Sum512(data), md5.Sum(data) //nolint:gosec // theirs
			for algo, want := range map[string]string{"sha512": hex.EncodeToString(want512[:]), "md5": hex.EncodeToString(want5[:])} {
				if got, ok := s.of(algo); !ok || got != want {
					t.Errorf("%s of %d bytes in parts of %d: %s, want %s", algo, size, part, got, want)
				}
			}
			if _, ok := s.of("sha256"); ok {
				t.Error("there is a digest that was not made")
			}
			s.end()
		}
	}
}
