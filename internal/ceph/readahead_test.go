package ceph

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// tape is a thing to read: some of it exists, the rest are zeros that must not be read.
type tape struct {
	t      *testing.T
	data   []byte
	parts  [][2]int64
	window int64

	mu        sync.Mutex
	now, most int
	looks     int
	long      func(at int64) time.Duration // that a read takes
	broken    func(at int64) error
}

func newTape(t *testing.T, dice *rand.Rand, size int64) *tape {
	t.Helper()
	tp := &tape{t: t, data: make([]byte, size), window: size/3 + 1,
		long: func(int64) time.Duration { return 0 }, broken: func(int64) error { return nil }}
	for at := dice.Int64N(size/10 + 1); at < size; {
		to := min(at+1+dice.Int64N(size/8+1), size)
		tp.parts = append(tp.parts, [2]int64{at, to})
		for i := at; i < to; i++ {
			tp.data[i] = byte(1 + dice.IntN(255))
		}
		at = to + 1 + dice.Int64N(size/6+1)
	}

	return tp
}

func (tp *tape) read(p []byte, at int64) error {
	tp.mu.Lock()
	tp.now++
	tp.most = max(tp.most, tp.now)
	tp.mu.Unlock()
	<-time.After(tp.long(at))
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.now--
	if err := tp.broken(at); err != nil {
		return err
	}
	if n := copy(p, tp.data[at:]); n != len(p) || bytes.ContainsRune(p, 0) {
		tp.t.Errorf("%d bytes at %d: some do not exist", len(p), at)
	}

	return nil
}

func (tp *tape) look(_ context.Context, at int64) (extents, error) {
	tp.looks++
	w := extents{from: at - at%tp.window}
	w.to = min(w.from+tp.window, int64(len(tp.data)))
	w.parts = extents{parts: tp.parts}.within(w.from, w.to)

	return w, nil
}

func (tp *tape) ahead(ctx context.Context, chunk int64) *readAhead {
	tp.window = chunk * max(tp.window/chunk, 1)

	return newReadAhead(ctx, int64(len(tp.data)), chunk, 4, tp.look, tp.read)
}

// TestReadAhead: whatever is asked for in whatever order, the bytes are right, though reads end in any order, and never
// more of them run than there are buffers.
func TestReadAhead(t *testing.T) {
	for seed := range uint64(60) {
		dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // repeatable, not secret
		synctest.Test(t, func(t *testing.T) {
			tp := newTape(t, dice, 1+dice.Int64N(5000))
			slow := rand.New(rand.NewPCG(seed, 1)) //nolint:gosec // see above
			tp.long = func(int64) time.Duration {
				tp.mu.Lock()
				defer tp.mu.Unlock()

				return time.Duration(slow.IntN(1000)) * time.Millisecond
			}
			r := tp.ahead(t.Context(), 1+dice.Int64N(200))
			pos := int64(0)
			for range 200 {
				if dice.IntN(20) == 0 {
					pos = dice.Int64N(int64(len(tp.data)))
				}
				if pos >= int64(len(tp.data)) {
					pos = 0
				}
				part, err := r.at(pos)
				if err != nil || len(part) == 0 {
					t.Fatalf("at %d: %d bytes, %v", pos, len(part), err)
				}
				part = part[:1+dice.IntN(len(part))]
				if !bytes.Equal(part, tp.data[pos:pos+int64(len(part))]) {
					t.Fatalf("seed %d: wrong bytes at %d", seed, pos)
				}
				pos += int64(len(part))
			}
			<-r.end()
			if tp.most > 4 || tp.now != 0 {
				t.Errorf("%d reads at a time, %d left", tp.most, tp.now)
			}
		})
	}
}

// TestReadAheadIsAhead: four reads of a second each take a second, not four; holes take none.
func TestReadAheadIsAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tp := &tape{t: t, data: bytes.Repeat([]byte{7}, 400), parts: [][2]int64{{0, 400}}, window: 400,
			long: func(int64) time.Duration { return time.Second }, broken: func(int64) error { return nil }}
		tp.data = append(tp.data, make([]byte, 100000)...)
		tp.window = int64(len(tp.data))
		r := tp.ahead(t.Context(), 100)
		begin := time.Now()
		for pos := int64(0); pos < int64(len(tp.data)); {
			part, err := r.at(pos)
			if err != nil {
				t.Fatal(err)
			}
			pos += int64(len(part))
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("took %s, want 1 s", took)
		}
		<-r.end()
	})
}

// TestReadAheadSkips: who skips holes reads everything else once.
func TestReadAheadSkips(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tp := &tape{t: t, data: make([]byte, 100000), window: 20000,
			long: func(int64) time.Duration { return time.Second }}
		reads := map[int64]int{}
		tp.broken = func(at int64) error {
			reads[at]++

			return nil
		}
		for at := int64(0); at < 50000; at += 500 {
			tp.parts = append(tp.parts, [2]int64{at, at + 100})
		}
		tp.parts = append(tp.parts, [2]int64{99900, 100000}) // further away than what is waited for
		for _, p := range tp.parts {
			copy(tp.data[p[0]:p[1]], bytes.Repeat([]byte{7}, 100))
		}
		r := tp.ahead(t.Context(), 100)
		for _, p := range tp.parts {
			part, err := r.at(p[0])
			if err != nil || !bytes.Equal(part, tp.data[p[0]:p[1]]) {
				t.Fatalf("at %d: %d bytes, %v", p[0], len(part), err)
			}
		}
		<-r.end()
		for at, n := range reads {
			if n != 1 {
				t.Errorf("what is at %d was read %d times", at, n)
			}
		}
		if len(reads) != len(tp.parts) {
			t.Errorf("%d reads of %d parts", len(reads), len(tp.parts))
		}
	})
}

// TestReadAheadFails: an error comes where it belongs, and who asks again reads again.
func TestReadAheadFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("broken")
		tp := &tape{t: t, data: bytes.Repeat([]byte{7}, 1000), parts: [][2]int64{{0, 1000}}, window: 1000,
			long: func(int64) time.Duration { return 0 }}
		left := 2
		tp.broken = func(at int64) error {
			if at == 500 && left > 0 {
				left--

				return why
			}

			return nil
		}
		r := tp.ahead(t.Context(), 100)
		failed := 0
		for pos := int64(0); pos < 1000; {
			part, err := r.at(pos)
			if errors.Is(err, why) && pos == 500 && failed < 2 {
				failed++

				continue
			}
			if err != nil {
				t.Fatalf("at %d: %v", pos, err)
			}
			pos += int64(len(part))
		}
		if failed != 2 {
			t.Errorf("failed %d times", failed)
		}
		<-r.end()
	})
}

// TestReadAheadEnds: with its context, and when nobody reads on; nothing runs afterwards.
func TestReadAheadEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := errors.New("over")
		tp := &tape{t: t, data: bytes.Repeat([]byte{7}, 1000), parts: [][2]int64{{0, 1000}}, window: 1000,
			long: func(int64) time.Duration { return time.Hour }, broken: func(int64) error { return nil }}
		ctx, cancel := context.WithCancelCause(t.Context())
		r := tp.ahead(ctx, 100)
		go func() {
			<-time.After(time.Minute)
			cancel(why)
		}()
		begin := time.Now()
		if _, err := r.at(0); !errors.Is(err, why) || time.Since(begin) != time.Minute {
			t.Errorf("after %s: %v", time.Since(begin), err)
		}
		<-r.end()
		if time.Since(begin) != time.Hour || tp.now != 0 {
			t.Errorf("what lingered ended after %s, %d left", time.Since(begin), tp.now)
		}
		fresh := tp.ahead(t.Context(), 100)
		<-fresh.end()
	})
}
