//go:build qemu

package qcow2

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// qemu runs qemu-img, which has to be there (qemu-utils).
func qemu(args ...string) ([]byte, error) {
	var said bytes.Buffer
	c := exec.Command("qemu-img", args...)
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		return out, fmt.Errorf("qemu-img %v: %w: %s%s", args, err, out, said.Bytes())
	}

	return out, nil
}

// report is what `qemu-img check` and `qemu-img info` say. The first fails by itself when anything is wrong.
type report struct {
	End        int64 `json:"image-end-offset"`
	Allocated  int   `json:"allocated-clusters"`
	Compressed int   `json:"compressed-clusters"`
	Total      int64 `json:"total-clusters"`
	Errors     int   `json:"check-errors"`
	Leaks      int   `json:"leaks"`

	Virtual  int64 `json:"virtual-size"`
	Specific struct {
		Data struct {
			Compression string `json:"compression-type"`
			Corrupt     bool   `json:"corrupt"`
		} `json:"data"`
	} `json:"format-specific"`
}

func ask(command, image string) (r report, err error) {
	out, err := qemu(command, "-f", "qcow2", "--output=json", image)
	if err == nil {
		err = json.Unmarshal(out, &r)
	}

	return r, err
}

// agrees lets qemu-img check a file, compare it with the disk, and convert it back.
func (v volume) agrees(dir string, how variant, file []byte) error {
	image, raw, back := filepath.Join(dir, "image"), filepath.Join(dir, "raw"), filepath.Join(dir, "back")
	want := make([]byte, up(v.size, sector)*sector)
	copy(want, v.data)
	if err := os.WriteFile(image, file, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		return err
	}
	c, err := ask("check", image)
	if err != nil {
		return err
	}
	if c.End != int64(len(file)) || c.Allocated != v.expected(how.name == "plain") || c.Total != up(v.size, v.cluster) ||
		c.Errors != 0 || c.Leaks != 0 {
		return fmt.Errorf("%d bytes: check says %+v", len(file), c)
	}
	i, err := ask("info", image)
	if err != nil {
		return err
	}
	if i.Virtual != int64(len(want)) || i.Specific.Data.Corrupt || i.Specific.Data.Compression != how.method {
		return fmt.Errorf("info says %+v", i)
	}
	if _, err := qemu("compare", "-f", "raw", "-F", "qcow2", raw, image); err != nil {
		return err
	}
	if _, err := qemu("convert", "-f", "qcow2", "-O", "raw", image, back); err != nil {
		return err
	}
	got, err := os.ReadFile(back)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("converted back it is another disk, %d bytes", len(got))
	}

	return nil
}

func TestQemuAgrees(t *testing.T) {
	for _, v := range volumes() {
		for _, how := range variants() {
			t.Run(v.name+"/"+how.name, func(t *testing.T) {
				if err := v.agrees(t.TempDir(), how, v.bytesOf(t, how)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestQemuRounds: an odd size becomes what qemu-img makes of it.
func TestQemuRounds(t *testing.T) {
	for _, size := range []int64{0, 1, 511, 512, 513, 65537, 1000001} {
		v := filled("", size, DefaultClusterSize, noise, [2]int64{0, size})
		dir := t.TempDir()
		raw, theirs, ours := filepath.Join(dir, "raw"), filepath.Join(dir, "theirs"), filepath.Join(dir, "ours")
		if err := os.WriteFile(raw, v.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := qemu("convert", "-f", "raw", "-O", "qcow2", raw, theirs); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ours, v.bytesOf(t, variants()[0]), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := qemu("compare", "-s", "-f", "qcow2", "-F", "qcow2", theirs, ours); err != nil {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// TestQemuOpensLarge: disks that nobody can compare to the end, with metadata of many clusters.
func TestQemuOpensLarge(t *testing.T) {
	const tib, mib = 1 << 40, 1 << 20
	for _, size := range []int64{tib, 64 * tib, 2048 * tib} {
		m, err := NewMap(size, DefaultClusterSize)
		if err != nil {
			t.Fatal(err)
		}
		for at := size / 7; at < size; at += size / 5 {
			if err := m.Add(at, at+mib); err != nil {
				t.Fatal(err)
			}
		}
		f, err := New(m, endless{})
		if err != nil {
			t.Fatal(err)
		}
		image := filepath.Join(t.TempDir(), "image")
		file, err := os.Create(image)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(file, f); err != nil || n != f.Size() {
			t.Fatalf("%d bytes: %v", n, err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
		c, err := ask("check", image)
		if err != nil || c.End != f.Size() || c.Total != size/DefaultClusterSize || c.Allocated == 0 {
			t.Errorf("check says %+v: %v", c, err)
		}
		if i, err := ask("info", image); err != nil || i.Virtual != size {
			t.Errorf("info says %+v: %v", i, err)
		}
	}
}

func FuzzQemuAgrees(f *testing.F) {
	f.Add([]byte{0, 10, 0, 1, 0, 0, 255, 3, 4, 101, 0, 0, 122})
	f.Fuzz(func(t *testing.T, b []byte) {
		v := described(b)
		for _, how := range variants() {
			if err := v.agrees(t.TempDir(), how, v.bytesOf(t, how)); err != nil {
				t.Errorf("%s: %v", how.name, err)
			}
		}
	})
}
