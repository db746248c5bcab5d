package imageformat

import (
	"strings"
	"testing"
)

// refusals judges a disk that is declared to be raw.
func refusals(t *testing.T, s sample) (glance, strict error) {
	t.Helper()
	f, err := Inspect(s, s.size)
	if err != nil {
		t.Fatal(err)
	}

	return Policy{Checks: Glance}.Judge(Raw, f), Policy{Checks: Strict}.Judge(Raw, f)
}

func wantRefused(t *testing.T, s sample) {
	t.Helper()
	if g, x := refusals(t, s); g == nil || x == nil {
		t.Errorf("not refused: as Glance %v, strict %v", g, x)
	}
}

// TestOSSA2015011: a raw volume with a qcow2 header that names a file of the host as its backing file (CVE-2015-1850,
// CVE-2015-1851).
func TestOSSA2015011(t *testing.T) {
	wantRefused(t, samples()["qcow2 v3"].with(8, be64(200)+be32(11)).with(200, "/etc/passwd"))
	wantRefused(t, samples()["qcow2 v2"].with(8, be64(200)+be32(11)).with(200, "/etc/passwd"))
}

// TestOSSA2023002: a VMDK descriptor that makes a file of the host an extent (CVE-2022-47951), with a header and without.
func TestOSSA2023002(t *testing.T) {
	flat := strings.NewReplacer("monolithicSparse", "monolithicFlat", `SPARSE "disk.vmdk"`, `FLAT "/etc/passwd" 0`).Replace(descriptor)
	wantRefused(t, samples()["vmdk sparse"].with(512, flat+"\x00"))
	wantRefused(t, sample{size: 64 << 10}.with(0, flat+text(600)))
	named := strings.Replace(descriptor, "disk.vmdk", "/etc/passwd", 1)
	wantRefused(t, samples()["vmdk sparse"].with(512, named+"\x00"))
	wantRefused(t, sample{size: 64 << 10}.with(0, named+text(600)))
}

// TestVMDKParent: parentFileNameHint names a file of the host as well. Glance takes it (c76abb08e with oslo.utils 10.1.1, shown
// by TestPieces); strict does not.
func TestVMDKParent(t *testing.T) {
	hint := strings.Replace(descriptor, "parentCID=ffffffff", "parentCID=12345678\nparentFileNameHint=\"/etc/passwd\"", 1)
	g, x := refusals(t, samples()["vmdk sparse"].with(512, hint+"\x00"))
	if g != nil || x == nil {
		t.Errorf("as Glance %v, strict %v", g, x)
	}
}

// TestOSSA2024001: a qcow2 header whose data is in another file (CVE-2024-32498).
func TestOSSA2024001(t *testing.T) {
	wantRefused(t, samples()["qcow2 v3"].with(72, be64(qcow2DataFile)).with(104, "\x44\x41\x54\x41"+be32(11)+"/etc/passwd"))
}

// TestOSSA2024002: what the first fix of it let pass, an image that is declared to be something else than it is
// (CVE-2024-40767).
func TestOSSA2024002(t *testing.T) {
	for _, s := range []sample{samples()["qcow2 v3"].with(8, be64(200)), samples()["qcow2 v3"].with(72, be64(4)), samples()["qed"]} {
		wantRefused(t, s)
	}
	f, err := Inspect(samples()["zeros"], 128<<10)
	if err != nil || (Policy{Checks: Glance}).Judge(QCOW2, f) == nil {
		t.Errorf("zeros as qcow2 are not refused: %v", err)
	}
}

// TestOSSA2024003 and OSSA-2026-002 (CVE-2026-24708, CVE-2026-24709) are about whoever guesses the format of a raw disk. What
// can be guessed wrong to harm is refused by strict: each format that qemu would open as something else than the disk.
func TestOSSA2024003(t *testing.T) {
	for _, name := range []string{"qcow2 v1", "qcow2 v2", "qcow2 v3", "qed", "vhd", "vhdx", "vdi", "vmdk sparse", "vmdk stream", "vmdk text", "vmdk3"} {
		if _, x := refusals(t, samples()[name]); x == nil {
			t.Errorf("%s is not refused by strict", name)
		}
	}
}
