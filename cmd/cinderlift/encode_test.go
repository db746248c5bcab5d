package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/cinderlift/cinderlift/worker"
)

// snapshot is one of some size, of which parts exist.
type snapshot struct {
	io.ReadSeeker
	size   int64
	parts  [][2]int64
	broken error
}

func (s *snapshot) Size() int64  { return s.size }
func (s *snapshot) Close() error { return nil }

func (s *snapshot) Allocated(found func(from, to int64) error) error {
	for _, p := range s.parts {
		if err := found(p[0], p[1]); err != nil {
			return err
		}
	}

	return s.broken
}

func TestEncodeQcow2(t *testing.T) {
	const mib = 1 << 20
	data := bytes.Repeat([]byte("cinderlift"), 10*mib/10)
	f, err := encoders()["qcow2"](&snapshot{ReadSeeker: bytes.NewReader(data), size: 10 * mib, parts: [][2]int64{{4 * mib, 8 * mib}}})
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	const metadata = 5 * 64 << 10 // header, refcount table and block, L1, L2
	if f.Size() != int64(len(b)) || len(b) != metadata+4*mib {
		t.Errorf("%d bytes, %d said", len(b), f.Size())
	}
	if string(b[:4]) != "QFI\xfb" || binary.BigEndian.Uint64(b[24:]) != 10*mib || !bytes.Equal(b[metadata:], data[4*mib:8*mib]) {
		t.Error("it is no qcow2 of 10 MiB with the data behind its metadata")
	}
}

// TestEncodeQcow2Fails: what Ceph says is kept, so that the step is tried again.
func TestEncodeQcow2Fails(t *testing.T) {
	away := &worker.Error{Op: "read", Reason: worker.ReasonCephUnavailable, Advice: worker.Retry}
	_, err := encodeQcow2(&snapshot{size: 512, broken: away})
	if worker.ReasonOf(err) != worker.ReasonCephUnavailable || worker.AdviceOf(err) != worker.Retry {
		t.Errorf("looking for holes: %v", err)
	}
	f, err := encodeQcow2(&snapshot{ReadSeeker: broken{away}, size: 512, parts: [][2]int64{{0, 512}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(io.Discard, f)
	if worker.ReasonOf(err) != worker.ReasonCephUnavailable || worker.AdviceOf(err) != worker.Retry {
		t.Errorf("reading: %v", err)
	}
	_, err = encodeQcow2(&snapshot{size: 1 << 62})
	if worker.ReasonOf(err) != worker.ReasonNotApplicable {
		t.Errorf("a volume that is too large: %v", err)
	}
	_, err = encodeQcow2(&snapshot{size: 512, parts: [][2]int64{{0, 513}}})
	if err == nil || errors.Is(err, away) {
		t.Errorf("a part behind the end: %v", err)
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error)       { return 0, b.err }
func (b broken) Seek(int64, int) (int64, error) { return 0, nil }
