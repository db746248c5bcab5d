package imageformat

import (
	"encoding/binary"
	"io"
	"maps"
	"slices"
	"testing"
)

// sample is a disk of zeros with some parts written over it, in order.
type sample struct {
	size  int64
	parts []part
}

type part struct {
	at   int64
	data []byte
}

func (s sample) with(at int64, data string) sample {
	return sample{s.size, append(slices.Clone(s.parts), part{at, []byte(data)})}
}

func (s sample) resized(size int64) sample { return sample{size, s.parts} }

// ReadAt implements io.ReaderAt.
func (s sample) ReadAt(p []byte, at int64) (int, error) {
	n := int(min(int64(len(p)), s.size-at))
	if n < 0 {
		return 0, io.EOF
	}
	clear(p[:n])
	for _, q := range s.parts {
		from, to := max(q.at, at), min(q.at+int64(len(q.data)), at+int64(n))
		if from < to {
			copy(p[from-at:to-at], q.data[from-q.at:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}

	return n, nil
}

// bytes are all of a small disk.
func (s sample) bytes(t testing.TB) []byte {
	t.Helper()
	p := make([]byte, s.size)
	if _, err := s.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}

	return p
}

func be32(v uint32) string { return string(binary.BigEndian.AppendUint32(nil, v)) }
func be64(v uint64) string { return string(binary.BigEndian.AppendUint64(nil, v)) }
func le16(v uint16) string { return string(binary.LittleEndian.AppendUint16(nil, v)) }
func le32(v uint32) string { return string(binary.LittleEndian.AppendUint32(nil, v)) }
func le64(v uint64) string { return string(binary.LittleEndian.AppendUint64(nil, v)) }

const descriptor = `# Disk DescriptorFile
version=1
CID=fffffffe
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 2048 SPARSE "disk.vmdk"

# The Disk Data Base
#DDB
ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
`

const metadataGUID = "\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e"

// entry is one of a partition table.
func entry(boot, kind byte, start, lba, sectors uint32) string {
	return string([]byte{boot, byte(start >> 16), byte(start >> 8), byte(start), kind, 0xff, 0xff, 0xff}) + le32(lba) + le32(sectors)
}

func sparse(version uint32, at, sectors, directory uint64) string {
	return "KDMV" + le32(version) + le32(3) + le64(2048) + le64(128) + le64(at) + le64(sectors) + le32(512) + le64(21) + le64(directory)
}

// samples are small disks of each format, made after the specifications. qemu's own are in qemu_test.go.
func samples() map[string]sample {
	blank := sample{size: 128 << 10}
	mbr := blank.with(510, "\x55\xaa")
	qcow2v3 := blank.with(0, "QFI\xfb"+be32(3)+be64(0)+be32(0)+be32(16)+be64(1<<30)).with(72, be64(0)).with(100, be32(104))
	stream := sparse(3, 1, 20, vmdkAtEnd)
	streamed := blank.with(0, stream).with(512, descriptor).
		with(128<<10-1536, le64(1)+le32(0)+le32(3)).with(128<<10-1024, sparse(3, 1, 20, 30))
	hybrid := blank.with(446, entry(0x80, 0x17, 0x010000, 0, 4000)).with(510, "\x55\xaa").with(32<<10, "\x01CD001\x01")

	return map[string]sample{
		"zeros":         blank,
		"script":        blank.with(0, "#!/bin/sh\necho hello\n"),
		"all text":      blank.with(0, text(700)),
		"qcow2 v3":      qcow2v3,
		"qcow2 v2":      qcow2v3.with(4, be32(2)),
		"qcow2 v1":      qcow2v3.with(4, be32(1)),
		"qed":           blank.with(0, "QED\x00"),
		"vhd":           blank.with(0, "conectix"+be32(2)).with(40, be64(1<<30)),
		"vhdx":          vhdxSample(),
		"vhdx no table": sample{size: 256 << 10}.with(0, "vhdxfile"),
		"vdi":           blank.with(0, "<<< Oracle VM VirtualBox Disk Image >>>\n").with(64, "\x7f\x10\xda\xbe").with(368, le64(1<<30)),
		"iso":           blank.with(32<<10, "\x01CD001\x01").with(32<<10+80, le32(64)).with(32<<10+128, le16(2048)),
		"udf":           blank.with(32<<10, "\x00NSR03\x01"),
		"hybrid iso":    hybrid,
		"mbr":           mbr.with(446, entry(0x80, 0x83, 0x202100, 2048, 4096)),
		"gpt":           mbr.with(446, entry(0, 0xee, 0x000200, 1, 0xffffffff)).with(512, "EFI PART"),
		"fat":           mbr.with(0, "\xeb\x3c\x90mkfs.fat").with(0x10, "\x02").with(0x15, "\xf8").with(446, text(60)),
		"ntfs":          mbr.with(0, "\xeb\x52\x90NTFS    ").with(0x15, "\xf8").with(446, text(60)),
		"luks1":         blank.with(0, "LUKS\xba\xbe\x00\x01aes"),
		"luks2":         blank.with(0, "LUKS\xba\xbe\x00\x02"),
		"vmdk sparse":   blank.with(0, sparse(1, 1, 20, 26)).with(512, descriptor),
		"vmdk stream":   streamed,
		"vmdk text":     blank.with(0, descriptor+"\n"+text(600)),
		"vmdk3":         blank.with(0, "COWD"),
	}
}

// vhdxSample has its metadata where every VHDX has it: behind the first 2 MiB.
func vhdxSample() sample {
	const metadata, item = 2 << 20, 64 << 10

	return sample{size: 3 << 20}.with(0, "vhdxfile").
		with(192<<10, "regi"+le32(0)+le32(1)+le32(0)+metadataGUID+le64(metadata)+le32(1<<20)+le32(1)).
		with(metadata, "metadata"+le16(0)+le16(1)).
		with(metadata+32, "\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8"+le32(item)+le32(8)).
		with(metadata+item, le64(1<<30))
}

// text is n bytes of comments.
func text(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = "# text\n"[i%7]
	}

	return string(b)
}

func names() []string { return slices.Sorted(maps.Keys(samples())) }
