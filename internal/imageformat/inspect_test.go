package imageformat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
)

// inspected is a finding in short: formats, then problems as check/weight.
func inspected(t *testing.T, s sample) string {
	t.Helper()
	f, err := Inspect(s, s.size)
	if err != nil {
		t.Fatal(err)
	}

	return short(f)
}

func short(f Finding) string {
	list := []string{join(f.Formats)}
	for _, p := range f.Problems {
		list = append(list, fmt.Sprintf("%s:%s:%d", p.Format, p.Check, p.Weight))
	}

	return strings.Join(list, " ")
}

func TestInspect(t *testing.T) {
	want := map[string]string{
		"zeros":         "",
		"script":        "",
		"all text":      "",
		"qcow2 v3":      "qcow2",
		"qcow2 v2":      "qcow2",
		"qcow2 v1":      "qcow2 qcow2:unknown_features:0",
		"qed":           "qed qed:banned:0",
		"vhd":           "vhd",
		"vhdx":          "vhdx vhdx::1",
		"vhdx no table": "vhdx",
		"vdi":           "vdi",
		"iso":           "iso",
		"udf":           "iso",
		"hybrid iso":    "iso, gpt",
		"mbr":           "gpt",
		"gpt":           "gpt",
		"fat":           "",
		"ntfs":          "gpt gpt:mbr:0",
		"luks1":         "luks",
		"luks2":         "luks luks:version:0",
		"vmdk sparse":   "vmdk",
		"vmdk stream":   "vmdk",
		"vmdk text":     "vmdk",
		"vmdk3":         " vmdk::2",
	}
	for _, name := range names() {
		if got := inspected(t, samples()[name]); got != want[name] {
			t.Errorf("%s: %q, want %q", name, got, want[name])
		}
	}
}

// TestRules: one change to a good image each.
func TestRules(t *testing.T) {
	all := samples()
	broken := func(name, old, with string) sample {
		return all[name].with(512, strings.Replace(descriptor, old, with, 1)+"\x00")
	}
	flat := strings.NewReplacer("monolithicSparse", "monolithicFlat", "SPARSE", "FLAT").Replace(descriptor)
	for _, c := range []struct {
		name string
		disk sample
		want string
	}{
		{"qcow2 with a backing file", all["qcow2 v3"].with(8, be64(512)), "qcow2 qcow2:backing_file:0"},
		{"qcow2 v2 with a backing file", all["qcow2 v2"].with(8, be64(1<<63)), "qcow2 qcow2:backing_file:0"},
		{"qcow2 with a data file", all["qcow2 v3"].with(72, be64(4)), "qcow2 qcow2:data_file:0"},
		{"qcow2 v2 with what is a data file in v3", all["qcow2 v2"].with(72, be64(4)), "qcow2 qcow2:data_file:0"},
		{"qcow2 with known features", all["qcow2 v3"].with(72, be64(0b1011)), "qcow2"},
		{"qcow2 with an unknown feature", all["qcow2 v3"].with(72, be64(1<<4)), "qcow2 qcow2:unknown_features:0"},
		{"qcow2 with another unknown feature", all["qcow2 v3"].with(72, be64(1<<56)), "qcow2 qcow2:unknown_features:0"},
		{"qcow2 with all that is wrong", all["qcow2 v3"].with(8, be64(1)).with(72, be64(1<<63|4)), "qcow2 qcow2:backing_file:0 qcow2:data_file:0 qcow2:unknown_features:0"},
		{"qcow2 of a later version", all["qcow2 v3"].with(4, be32(4)), "qcow2 qcow2:unknown_features:0"},
		{"qcow2 that ends in its header", all["qcow2 v3"].resized(511), ""},
		{"vhd that ends in its header", all["vhd"].resized(511), "vhd vhd::1"},
		{"vhdx that ends in its table", all["vhdx"].resized(256<<10 - 1), "vhdx vhdx::1"},
		{"vhdx whose table is none", all["vhdx"].with(192<<10, "REGI"), "vhdx"},
		{"vhdx with a long table", all["vhdx"].with(192<<10+8, le32(2048)), "vhdx"},
		{"vhdx whose last entry is the metadata", all["vhdx"].with(192<<10+8, le32(2047)).with(192<<10+16, "\xff").with(192<<10+16+2046*32, metadataGUID), "vhdx vhdx::1"},
		{"luks that ends in its header", all["luks1"].resized(591), "luks luks::1"},
		{"iso that ends in its header", all["iso"].resized(34<<10 - 1), ""},
		{"hybrid of qcow2 and iso", all["iso"].with(0, "QFI\xfb"+be32(3)), "qcow2, iso"},
		{"vmdk of two bytes too few", sample{size: 63}.with(0, "KDMV"), "vmdk vmdk::1"},
		{"vmdk of a later version", all["vmdk sparse"].with(4, le32(4)), "vmdk vmdk:descriptor:0"},
		{"vmdk with a descriptor elsewhere", all["vmdk sparse"].with(28, le64(2)), "vmdk vmdk:descriptor:0"},
		{"vmdk with a descriptor at a place that overflows", all["vmdk sparse"].with(28, le64(1<<55+1)), "vmdk vmdk:descriptor:0"},
		{"vmdk with footer and a descriptor elsewhere", all["vmdk stream"].with(28, le64(2)), "vmdk vmdk::1"},
		{"vmdk with a descriptor of no length", all["vmdk sparse"].with(36, le64(0)), "vmdk vmdk:descriptor:0"},
		{"vmdk with a descriptor longer than the disk", all["vmdk sparse"].with(36, le64(1<<62)), "vmdk vmdk::1"},
		{"vmdk with the longest descriptor", all["vmdk sparse"].with(36, le64(1<<62)).resized(2 << 20), "vmdk"},
		{"vmdk with a descriptor beyond ASCII", broken("vmdk sparse", "CID", "CID\xe4"), "vmdk vmdk:descriptor:0"},
		{"vmdk of another kind", broken("vmdk sparse", "monolithicSparse", "monolithicFlat"), "vmdk vmdk:descriptor:0"},
		{"vmdk without a kind", broken("vmdk sparse", "createType", "created"), "vmdk vmdk:descriptor:0"},
		{"vmdk with a path in an extent", broken("vmdk sparse", "disk.vmdk", "/etc/passwd"), "vmdk vmdk:descriptor:0"},
		{"vmdk without extents", broken("vmdk sparse", "RW 2048", "#RW"), "vmdk vmdk:descriptor:0"},
		{"vmdk with an unknown line", broken("vmdk sparse", "RW 2048", "WRITE 2048"), "vmdk vmdk:descriptor:0"},
		{"vmdk with a path in its parent", broken("vmdk sparse", "parentCID", "parentFileNameHint=\"/x\"\nparentCID"), "vmdk"},
		{"vmdk with another footer", all["vmdk stream"].with(128<<10-1024+28, le64(2)), "vmdk vmdk:footer:0"},
		{"vmdk with another marker", all["vmdk stream"].with(128<<10-512, le64(1)), "vmdk vmdk:footer:0"},
		{"vmdk whose footer names a footer", all["vmdk stream"].with(128<<10-1024+56, le64(vmdkAtEnd)), "vmdk vmdk:footer:0"},
		{"flat vmdk", sample{size: 64 << 10}.with(0, flat+text(600)), "vmdk vmdk:descriptor:0"},
		{"flat vmdk, then a byte beyond ASCII", sample{size: 64 << 10}.with(0, flat+text(600)+"\xff"), "vmdk vmdk:descriptor:0"},
		{"short vmdk that only qemu sees", sample{size: 64 << 10}.with(0, flat), " vmdk::2"},
		{"mbr with a strange boot flag", all["mbr"].with(462, "\x01"), "gpt gpt:mbr:0"},
		{"mbr without partitions", all["mbr"].with(450, "\x00"), "gpt gpt:mbr:0"},
		{"gpt that begins elsewhere", all["gpt"].with(454, le32(2)), "gpt gpt:mbr:0"},
		{"gpt that begins at another cylinder", all["gpt"].with(447, "\x01"), "gpt gpt:mbr:0"},
		{"gpt in the second entry", all["gpt"].with(446, entry(0, 0, 0, 0, 0)+entry(0, 0xee, 0x000200, 1, 5)), "gpt gpt:mbr:0"},
		{"gpt beside a partition", all["gpt"].with(462, entry(0, 0x83, 0, 5, 5)), "gpt gpt:mbr:0"},
		{"nothing", sample{}, ""},
	} {
		if got := inspected(t, c.disk); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// counted counts reads.
type counted struct {
	io.ReaderAt
	reads, bytes int
}

func (c *counted) ReadAt(p []byte, at int64) (int, error) {
	c.reads, c.bytes = c.reads+1, c.bytes+len(p)

	return c.ReaderAt.ReadAt(p, at)
}

// TestReads: most disks take one small read, and no disk takes many or large ones.
func TestReads(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	most := 0
	for range 3000 {
		s, name := mutant(r)
		c := &counted{ReaderAt: s}
		if _, err := Inspect(c, s.size); err != nil {
			t.Fatal(err)
		}
		if c.reads > MostReads || c.bytes > MostBytes {
			t.Errorf("%s: %d reads of %d bytes", name, c.reads, c.bytes)
		}
		most = max(most, c.reads)
	}
	if most < 3 {
		t.Errorf("no disk took more than %d reads", most)
	}
	for _, name := range []string{"zeros", "mbr", "gpt", "fat", "iso", "luks1"} {
		c := &counted{ReaderAt: samples()[name]}
		if _, err := Inspect(c, 1<<40); err != nil || c.reads != 1 || c.bytes != headSize {
			t.Errorf("%s: %d reads of %d bytes, %v", name, c.reads, c.bytes, err)
		}
	}
}

type broken struct{ after int }

var errBroken = errors.New("broken")

func (b *broken) ReadAt(p []byte, at int64) (int, error) {
	if b.after--; b.after < 0 {
		return 0, errBroken
	}

	return samples()["vmdk stream"].ReadAt(p, at)
}

func TestReadingFails(t *testing.T) {
	size := samples()["vmdk stream"].size
	for n := range 3 {
		if _, err := Inspect(&broken{n}, size); !errors.Is(err, errBroken) {
			t.Errorf("read %d: %v", n, err)
		}
	}
	if _, err := Inspect(bytes.NewReader(make([]byte, 5000)), 6000); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a disk that is shorter than said: %v", err)
	}
}

// TestRefused lists what each policy does with each sample.
func TestRefused(t *testing.T) {
	glance := map[string]string{
		"qcow2 v1": "raw qcow2", "qed": "raw qcow2", "vhdx": "raw qcow2", "hybrid iso": "raw qcow2", "ntfs": "raw qcow2", "luks2": "raw qcow2",
	}
	strict := map[string]bool{"qcow2 v3": true, "qcow2 v2": true, "vhd": true, "vhdx no table": true, "vdi": true,
		"vmdk sparse": true, "vmdk stream": true, "vmdk text": true, "vmdk3": true}
	for _, name := range names() {
		f, err := Inspect(samples()[name], samples()[name].size)
		if err != nil {
			t.Fatal(err)
		}
		is := strings.HasPrefix(name, "qcow2")
		for _, c := range []struct {
			policy   Policy
			declared Format
			want     bool
		}{
			{Policy{Checks: Off}, Raw, false},
			{Policy{Checks: Off}, VMDK, false},
			{Policy{Checks: Glance}, Raw, glance[name] != ""},
			{Policy{Checks: Glance}, QCOW2, glance[name] != "" || !is},
			{Policy{Checks: Glance}, VMDK, true},
			{Policy{Checks: Glance, AnyFormat: true}, QCOW2, is && glance[name] != ""},
			{Policy{Checks: Glance, AnyFormat: true}, Raw, glance[name] != "" && name != "vhdx" && name != "hybrid iso"},
			{Policy{Checks: Glance, Nonfatal: []string{"mbr"}}, Raw, glance[name] != "" && name != "ntfs"},
			{Policy{Checks: Strict}, Raw, glance[name] != "" || strict[name]},
			{Policy{Checks: Strict, AnyFormat: true, Nonfatal: []string{"mbr"}}, Raw, (glance[name] != "" || strict[name]) && name != "ntfs"},
			{Policy{}, Raw, glance[name] != "" || strict[name]},
			{Policy{}, QCOW2, glance[name] != "" || !is},
		} {
			err := c.policy.Judge(c.declared, f)
			var no *Refusal
			if (err != nil) != c.want || err != nil && (!errors.As(err, &no) || no.Declared != c.declared || !reflect.DeepEqual(no.Found, f.Formats)) {
				t.Errorf("%s as %s with %+v: %v, want refused: %v", name, c.declared, c.policy, err, c.want)
			}
		}
	}
}

// TestTexts: what people read names what was found and what they can do, and nothing from the disk.
func TestTexts(t *testing.T) {
	secret := "5ecret"
	for name, want := range map[string][]string{
		"qcow2 v3":    {"format raw", "qcow2", "qemu-img convert"},
		"ntfs":        {"partition table", "CINDERLIFT_GPT_SAFETY_CHECKS_NONFATAL=mbr"},
		"hybrid iso":  {"iso, gpt"},
		"vmdk sparse": {"vmdk"},
		"vmdk text":   {"vmdk"},
	} {
		s := samples()[name]
		s = s.with(600, secret).with(40, secret)
		f, err := Inspect(s, s.size)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint(Policy{}.Judge(Raw, f))
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q lacks %q", name, text, w)
			}
		}
		if strings.Contains(text, secret) {
			t.Errorf("%s: %q shows bytes of the disk", name, text)
		}
	}
}
