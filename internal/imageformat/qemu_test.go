//go:build qemu

package imageformat

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// created is how often qemu-img is asked for an image before a failure counts. For LUKS it measures the user time of its key
// derivation first (crypto/pbkdf.c, qcrypto_pbkdf2_count_iters), which a kernel that counts by ticks reports as nothing now and
// then, and gives up: "Unable to get accurate CPU usage".
const created = 20

// qemuCreate has qemu-img make an image in a folder that the test has made.
func qemuCreate(t *testing.T, dir string, args ...string) {
	t.Helper()
	var out []byte
	var err error
	for range created {
		cmd := exec.CommandContext(t.Context(), "qemu-img", append([]string{"create"}, args...)...)
		cmd.Dir = dir
		out, err = cmd.CombinedOutput()
		if err == nil {
			return
		}
	}
	t.Fatalf("qemu-img create %s: %v: %s", strings.Join(args, " "), err, out)
}

func inspectedFile(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	found, err := Inspect(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}

	return short(found)
}

// TestQemuImages: images as qemu-img makes them.
func TestQemuImages(t *testing.T) {
	dir := t.TempDir()
	qemuCreate(t, dir, "-f", "raw", "base", "1M")
	for _, c := range []struct {
		args string
		want string
	}{
		{"-f raw", ""},
		{"-f qcow2", "qcow2"},
		{"-f qcow2 -o compat=0.10", "qcow2"},
		{"-f qcow2 -o extended_l2=on,cluster_size=128k", "qcow2 qcow2:unknown_features:0"},
		{"-f qcow2 -o compression_type=zstd", "qcow2"},
		{"-f qcow2 -F raw -b base", "qcow2 qcow2:backing_file:0"},
		{"-f qcow2 -o compat=0.10 -F raw -b base", "qcow2 qcow2:backing_file:0"},
		{"-f qcow2 -o data_file=data", "qcow2 qcow2:data_file:0"},
		{"-f qed", "qed qed:banned:0"},
		{"-f vdi", "vdi"},
		{"-f vpc", "vhd"},
		{"-f vhdx", "vhdx vhdx::1"},
		{"-f vmdk", "vmdk"},
		{"-f vmdk -o subformat=streamOptimized", "vmdk"},
		{"-f vmdk -o subformat=monolithicFlat", "vmdk vmdk:descriptor:0"},
		{"-f vmdk -o subformat=twoGbMaxExtentSparse", "vmdk vmdk:descriptor:0"},
		{"-f luks --object secret,id=s,data=x -o key-secret=s,iter-time=10", "luks"},
	} {
		name := "image"
		qemuCreate(t, dir, append(strings.Fields(c.args), name, "2M")...)
		if got := inspectedFile(t, filepath.Join(dir, name)); got != c.want {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

// TestQemuProbe: what qemu-img would open as another format than raw is refused by strict, LUKS apart. It guesses here, which
// the product never lets it.
func TestQemuProbe(t *testing.T) {
	dir := t.TempDir()
	disks := samples()
	disks["descriptor of its kind only"] = sample{size: 64 << 10}.with(0, "# a comment\n  \nversion=1\n")
	disks["another version"] = sample{size: 64 << 10}.with(0, "# a comment\nversion=4\n")
	for name, s := range disks {
		file := filepath.Join(dir, "disk")
		if err := os.WriteFile(file, s.bytes(t), 0o600); err != nil {
			t.Fatal(err)
		}
		var info struct{ Format string }
		out, err := exec.CommandContext(t.Context(), "qemu-img", "info", "--output=json", file).Output()
		if err == nil {
			err = json.Unmarshal(out, &info)
		}
		raw := err == nil && info.Format == "raw" // what is broken of another format is an error
		if _, strict := refusals(t, s); !raw && !strings.HasPrefix(name, "luks") && strict == nil {
			t.Errorf("%s: qemu-img says %q (%v), strict %v", name, info.Format, err, strict)
		}
	}
}
