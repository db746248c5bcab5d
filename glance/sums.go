package glance

import (
	"encoding/hex"
	"hash"
	"sync"
)

const (
	sumBlock  = 1 << 20 // bytes that are hashed at once
	sumBlocks = 3       // blocks in memory: one that is filled, one that is hashed, one between
)

// sums hashes what is sent, beside the sending: hashing takes nearly as long as Glance takes to read, and would be added to it.
// It is written to by one goroutine at a time.
type sums struct {
	hashes map[string]hash.Hash // by Glance's name of the algorithm; the hasher's until ended is closed
	free   chan []byte          // blocks to fill
	filled chan []byte          // blocks to hash
	now    []byte               // is being filled; nil: none
	once   sync.Once
	ended  chan struct{}
}

// newSums begins. Call end.
func newSums() *sums {
	s := &sums{
		hashes: map[string]hash.Hash{"sha512": newHash("sha512"), "md5": newHash("md5")},
		free:   make(chan []byte, sumBlocks), filled: make(chan []byte, sumBlocks), ended: make(chan struct{}),
	}
	for range sumBlocks {
		s.free <- nil // made when it is needed
	}
	go s.work()

	return s
}

func (s *sums) work() {
	defer close(s.ended)
	for b := range s.filled {
		for _, h := range s.hashes {
			_, _ = h.Write(b) // never fails
		}
		s.free <- b[:0] // there is room for all
	}
}

// write takes a copy of p. It waits while the hasher is behind.
func (s *sums) write(p []byte) {
	for len(p) > 0 {
		if s.now == nil {
			if s.now = <-s.free; s.now == nil {
				s.now = make([]byte, 0, sumBlock)
			}
		}
		n := min(len(p), sumBlock-len(s.now))
		s.now = append(s.now, p[:n]...)
		p = p[n:]
		if len(s.now) == sumBlock {
			s.filled <- s.now
			s.now = nil
		}
	}
}

// end hashes what is left. Nothing may be written afterwards. Idempotent.
func (s *sums) end() {
	s.once.Do(func() {
		if s.now != nil {
			s.filled <- s.now
		}
		close(s.filled)
	})
	<-s.ended
}

// of is the digest of all that was written; false for an algorithm that was not used. It ends the sums.
func (s *sums) of(algo string) (digest string, ok bool) {
	s.end()
	h := s.hashes[algo]
	if h == nil {
		return "", false
	}

	return hex.EncodeToString(h.Sum(nil)), true
}
