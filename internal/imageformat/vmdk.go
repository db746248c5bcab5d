package imageformat

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// Places in a VMDK (VMDKInspector; VMware "Virtual Disk Format 5.0", Hosted Sparse Extent Header).
const (
	vmdkHeader    = 64 // bytes of the sparse header that are looked at
	vmdkVersion   = 4  // u32
	vmdkDescAt    = 28 // u64, sectors
	vmdkDescSize  = 36 // u64, sectors
	vmdkDirectory = 56 // u64, sectors; all ones: there is a footer that says it
	vmdkAtEnd     = 1<<64 - 1

	descriptorAt  = 512
	descriptorMax = 1<<20 - 1 // bytes, as in qemu and oslo.utils
	footerSize    = 1536      // marker, header, marker; a sector each
)

const noDescriptor = "has no valid descriptor"

// vmdk finds OSSA-2023-002: a descriptor that makes other files part of the disk.
func vmdk(d *disk) (bool, []Problem, error) {
	header := d.head[:min(len(d.head), sectorSize)]
	switch sparse := d.begins("KDMV"); {
	case sparse && len(header) < vmdkHeader:
		return true, tooShort(), nil
	case sparse:
		p, err := vmdkSparse(d, header)

		return true, p, err
	case len(header) < vmdkHeader:
		return false, nil, nil
	case !isText(header):
		return false, unseen(header), nil
	default:
		return vmdkText(d, header)
	}
}

// vmdkSparse judges a file with a header. The order is that in which Glance's inspector gives up.
func vmdkSparse(d *disk, header []byte) ([]Problem, error) {
	version := binary.LittleEndian.Uint32(header[vmdkVersion:])
	at, sectors := binary.LittleEndian.Uint64(header[vmdkDescAt:]), binary.LittleEndian.Uint64(header[vmdkDescSize:])
	footer := binary.LittleEndian.Uint64(header[vmdkDirectory:]) == vmdkAtEnd
	switch {
	case version < 1 || version > 3:
		return []Problem{fails("descriptor", "is of a version that is not allowed")}, nil
	case at != descriptorAt/sectorSize:
		if footer {
			return unreadable("has its descriptor in the wrong place"), nil
		}

		return []Problem{fails("descriptor", "has its descriptor in the wrong place")}, nil
	}
	size := int64(descriptorMax)
	if sectors < descriptorMax/sectorSize+1 {
		size = int64(sectors) * sectorSize
	}
	if d.size < descriptorAt+size || footer && d.size < footerSize {
		return tooShort(), nil
	}
	descriptor, err := d.read(descriptorAt, descriptorMax)
	if err != nil {
		return nil, err
	}
	var p []Problem
	if text := badDescriptor(descriptor[:min(size, int64(len(descriptor)))]); text != "" {
		p = append(p, fails("descriptor", text))
	}
	if !footer {
		return p, nil
	}
	end, err := d.read(d.size-footerSize, footerSize)
	if err == nil && !goodFooter(header, end) {
		p = append(p, fails("footer", "has a footer that contradicts its header"))
	}

	return p, err
}

// goodFooter: what the footer says comes before what the header says, so it must not say anything else.
func goodFooter(header, end []byte) bool {
	marker, footer, last := end[:sectorSize], end[sectorSize:2*sectorSize], end[2*sectorSize:]
	same := func(from, to int) bool { return bytes.Equal(header[from:to], footer[from:to]) }

	return same(0, vmdkVersion+4) && same(vmdkDescAt, vmdkDescSize+8) &&
		binary.LittleEndian.Uint64(footer[vmdkDirectory:]) != vmdkAtEnd &&
		isMarker(marker[8:], 3) && zero(last[:8]) && isMarker(last[8:], 0)
}

// isMarker checks a marker behind its first eight bytes: size 0, the type, and nothing else.
func isMarker(m []byte, kind byte) bool { return zero(m[:4]) && m[4] == kind && zero(m[5:]) }

func zero(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

// vmdkText judges a disk whose first sector is text: it may be a descriptor without header, which qemu opens.
func vmdkText(d *disk, header []byte) (bool, []Problem, error) {
	text, err := d.read(0, descriptorMax)
	if err != nil {
		return false, nil, err
	}
	if i := bytes.IndexFunc(text, func(r rune) bool { return r == 0 || r > 0x7f }); i >= 0 {
		text = text[:i] // beyond ASCII: see the package comment
	}
	if _, ok := createType(lower(text)); !ok {
		return false, unseen(header), nil
	}
	if why := badDescriptor(text); why != "" {
		return true, []Problem{fails("descriptor", why)}, nil
	}

	return true, nil, nil
}

// badDescriptor is what is wrong with the text of a descriptor; "" for nothing. Every line must be one that is known.
func badDescriptor(data []byte) string {
	data, _, _ = bytes.Cut(data, []byte{0})
	if len(data) == 0 || bytes.ContainsFunc(data, func(r rune) bool { return r > 0x7f }) {
		return noDescriptor
	}
	text := lower(data)
	if kind, ok := createType(text); !ok || kind != "monolithicsparse" && kind != "streamoptimized" {
		return "is of a kind (createType) that is not allowed"
	}
	extents, path := 0, false
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimFunc(line, isSpace)
		name, _, assigned := strings.Cut(line, "=")
		word, _, _ := strings.Cut(line, " ")
		switch {
		case line == "" || line[0] == '#' || strings.HasPrefix(line, "ddb"):
		case assigned && !strings.Contains(name, " "):
		case word == "rw" || word == "rdonly" || word == "noaccess":
			extents++
			path = path || strings.Contains(line, "/")
		default:
			return noDescriptor
		}
	}
	switch {
	case path:
		return "names other files as its extents"
	case extents == 0:
		return "names no extents"
	default:
		return ""
	}
}

// createType finds the kind in the lower-case text of a descriptor. Glance takes the first, up to 63 characters long; where
// the closing quote is missing, everything but the last character of the text.
func createType(text string) (string, bool) {
	_, rest, found := strings.Cut(text, `createtype="`)
	if !found {
		return "", false
	}
	end := strings.IndexByte(rest, '"')
	if end < 0 {
		end = max(len(rest)-1, 0)
	} else if end >= 64 {
		return "", false
	}

	return rest[:end], rest[:end] != "formatnotfound" // the word by which the inspector says that there is none
}

func lower(text []byte) string { return string(bytes.ToLower(text)) }

// isText: printable or white space, as Python's str methods say of ASCII.
func isText(p []byte) bool {
	return !bytes.ContainsFunc(p, func(r rune) bool { return r > 0x7e || r < ' ' && !isSpace(r) })
}

func isSpace(r rune) bool { return r == ' ' || r >= 0x09 && r <= 0x0d || r >= 0x1c && r <= 0x1f }

// unseen finds what qemu's probe takes for VMDK although Glance's inspector does not: the signature of an older kind; and
// comments and blank lines, then a version, whatever comes after it (qemu 7.2 block/vmdk.c vmdk_probe).
func unseen(sector []byte) []Problem {
	if bytes.HasPrefix(sector, []byte("COWD")) {
		return []Problem{{Weight: Unseen, Text: "begins like an older kind of it"}}
	}
	for line := range bytes.Lines(sector) {
		switch line = bytes.TrimRight(line, "\r\n"); {
		case bytes.HasPrefix(line, []byte("#")) || len(bytes.Trim(line, " ")) == 0:
		case bytes.HasPrefix(line, []byte("version=")):
			return []Problem{{Weight: Unseen, Text: "begins like a descriptor"}}
		default:
			return nil
		}
	}

	return nil
}
