package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"
	"testing"

	"github.com/cinderlift/cinderlift/strategies"
	"github.com/cinderlift/cinderlift/worker"
)

const mib = 1 << 20

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

// half is a disk of 10 MiB of which 4 exist; half of these are zeros.
func half() (disk []byte, c *snapshot) {
	disk = make([]byte, 10*mib)
	copy(disk[4*mib:], bytes.Repeat([]byte("cinderlift"), 2*mib/10))

	return disk, &snapshot{ReadSeeker: bytes.NewReader(disk), size: 10 * mib, parts: [][2]int64{{4 * mib, 8 * mib}}}
}

// made is what an encoder makes; its length has to be what it says.
func made(t *testing.T, name string, c strategies.Content) []byte {
	t.Helper()
	f, err := (&config{}).formats().Encoders[name](c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	if f.Size() != int64(len(b)) {
		t.Errorf("%s: %d bytes, %d said", name, len(b), f.Size())
	}

	return b
}

const metadata = 5 * 64 << 10 // of this qcow2: header, refcount table and block, L1, L2

func TestEncodeQcow2(t *testing.T) {
	disk, c := half()
	b := made(t, encodePlain, c)
	if string(b[:4]) != "QFI\xfb" || binary.BigEndian.Uint64(b[24:]) != 10*mib || !bytes.Equal(b[metadata:], disk[4*mib:8*mib]) {
		t.Error("it is no qcow2 of 10 MiB with the data behind its metadata")
	}
}

// TestEncodeKinds: every kind is one, and what leaves out more is smaller.
func TestEncodeKinds(t *testing.T) {
	sizes := map[string]int{}
	for name, encoder := range qcow2Kinds() {
		_, c := half()
		b := made(t, encoder, c)
		if string(b[:4]) != "QFI\xfb" {
			t.Errorf("%s is no qcow2", name)
		}
		sizes[name] = len(b)
	}
	if sizes["plain"] < metadata+4*mib || sizes["sparse"] > metadata+3*mib || sizes["zlib"] > sizes["sparse"]/4 || sizes["zstd"] > sizes["sparse"]/4 {
		t.Errorf("sizes are %v", sizes)
	}
}

// TestEncodeContainers: what is in the container is what would be without it.
func TestEncodeContainers(t *testing.T) {
	disk, c := half()
	for name, want := range map[string][]byte{encodeGzip: disk, encodeBoth: made(t, encodePlain, c)} {
		_, c := half()
		z, err := gzip.NewReader(bytes.NewReader(made(t, name, c)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(z)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes come out again, want %d: %v", name, len(got), len(want), err)
		}
	}
}

// TestFormats: every format that is offered has an encoder, under each setting.
func TestFormats(t *testing.T) {
	for kind := range qcow2Kinds() {
		f := (&config{Qcow2: kind}).formats()
		if got := slices.Sorted(maps.Keys(f.Use)); !slices.Equal(got, []string{"qcow2/bare", "qcow2/compressed", "raw/compressed"}) {
			t.Errorf("formats are %v", got)
		}
		for format, name := range f.Use {
			if f.Encoders[name] == nil {
				t.Errorf("%s: nothing makes %s, which is %q", kind, format, name)
			}
		}
	}
}

// TestEncodeFails: what Ceph says is kept, so that the step is tried again.
func TestEncodeFails(t *testing.T) {
	away := &worker.Error{Op: "read", Reason: worker.ReasonCephUnavailable, Advice: worker.Retry}
	for name, encode := range (&config{}).formats().Encoders {
		t.Run(name, func(t *testing.T) {
			f, err := encode(&snapshot{ReadSeeker: broken{away}, size: 512, parts: [][2]int64{{0, 512}}, broken: away})
			if worker.ReasonOf(err) != worker.ReasonCephUnavailable || worker.AdviceOf(err) != worker.Retry || f != nil {
				t.Errorf("looking for holes: %v", err)
			}
			f, err = encode(&snapshot{ReadSeeker: broken{away}, size: 512, parts: [][2]int64{{0, 512}}})
			if err == nil {
				_, err = io.Copy(io.Discard, f)
			}
			if worker.ReasonOf(err) != worker.ReasonCephUnavailable || worker.AdviceOf(err) != worker.Retry {
				t.Errorf("reading: %v", err)
			}
		})
	}
}

// TestEncodeQcow2Refuses: what the format has no room for, and a part that can't be.
func TestEncodeQcow2Refuses(t *testing.T) {
	for kind, name := range qcow2Kinds() {
		encode := (&config{}).formats().Encoders[name]
		if _, err := encode(&snapshot{size: 1 << 62}); worker.ReasonOf(err) != worker.ReasonNotApplicable {
			t.Errorf("%s: a volume that is too large: %v", kind, err)
		}
		if _, err := encode(&snapshot{size: 512, parts: [][2]int64{{0, 513}}}); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: a part behind the end: %v", kind, err)
		}
	}
}

type broken struct{ err error }

func (b broken) Read([]byte) (int, error)       { return 0, b.err }
func (b broken) Seek(int64, int) (int64, error) { return 0, nil }
