package imageformat

import (
	"bytes"
	"encoding/binary"
)

// The rules are those of oslo.utils 10.1.1 imageutils/format_inspector.py, the same since 7.4.0; the classes are named.

// Places in a qcow2 header (qemu docs/interop/qcow2.txt; QcowInspector).
const (
	qcow2Version  = 4  // u32
	qcow2Backing  = 8  // u64: offset of the backing file's name
	qcow2Features = 72 // u64: incompatible features; header extensions in version 2
	qcow2Known    = 1<<4 - 1
	qcow2DataFile = 1 << 2
)

// qcow2 finds OSSA-2015-011 (backing file), OSSA-2024-001 (data file) and features that nobody knows.
func qcow2(d *disk) (bool, []Problem, error) {
	h := d.sector()
	if h == nil || !d.begins("QFI\xfb") {
		return false, nil, nil
	}
	var p []Problem
	if binary.BigEndian.Uint64(h[qcow2Backing:]) != 0 {
		p = append(p, fails("backing_file", "names a backing file"))
	}
	// In version 2 there are no features in that place; Glance looks all the same.
	features := binary.BigEndian.Uint64(h[qcow2Features:])
	if features&qcow2DataFile != 0 {
		p = append(p, fails("data_file", "keeps its data in another file"))
	}
	switch version := binary.BigEndian.Uint32(h[qcow2Version:]); {
	case version == 2:
	case version != 3:
		p = append(p, fails("unknown_features", "is of a version that is not allowed"))
	case features&^qcow2Known != 0:
		p = append(p, fails("unknown_features", "uses features that are not known"))
	}

	return true, p, nil
}

// qed is never allowed (QEDInspector, SafetyCheck.banned).
func qed(d *disk) (bool, []Problem, error) {
	if d.sector() == nil || !d.begins("QED\x00") {
		return false, nil, nil
	}

	return true, []Problem{fails("banned", "is of a format that is not allowed at all")}, nil
}

// vhd has no safety check (VHDInspector). Its signature counts in a disk that is too short, too.
func vhd(d *disk) (bool, []Problem, error) {
	switch {
	case !d.begins("conectix"):
		return false, nil, nil
	case d.sector() == nil:
		return true, tooShort(), nil
	default:
		return true, nil, nil
	}
}

// Places in a VHDX file (VHDXInspector).
const (
	tableAt      = 192 << 10 // region table
	tableSize    = 64 << 10
	tableCount   = 8  // u32
	tableEntries = 16 // of entrySize bytes each, beginning with a GUID
	entrySize    = 32
	tableMost    = 2047
)

// vhdx has no safety check, but with pieces of 8 MiB the inspector never finds the disk's size: see the package comment.
func vhdx(d *disk) (bool, []Problem, error) {
	if !d.begins("vhdxfile") {
		return false, nil, nil
	}
	table, err := d.read(tableAt, tableSize)
	switch {
	case err != nil:
		return true, nil, err
	case len(table) < tableSize:
		return true, tooShort(), nil
	case namesMetadata(table):
		return true, unreadable("keeps its size where Glance's inspector does not find it"), nil
	default:
		return true, nil, nil
	}
}

// namesMetadata reports whether the region table has an entry for the metadata region,
// 8B7CA206-4790-4B9A-B8FE-575F050F886E. A table that is not one has none.
func namesMetadata(table []byte) bool {
	count := binary.LittleEndian.Uint32(table[tableCount:])
	if !bytes.HasPrefix(table, []byte("regi")) || count > tableMost {
		return false
	}
	guid := []byte("\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e")
	for i := range int(count) {
		if bytes.HasPrefix(table[tableEntries+i*entrySize:], guid) {
			return true
		}
	}

	return false
}

// vdi has no safety check (VDIInspector).
func vdi(d *disk) (bool, []Problem, error) {
	h := d.sector()

	return h != nil && binary.LittleEndian.Uint32(h[0x40:]) == 0xbeda107f, nil, nil
}

// iso has no safety check (ISOInspector): ISO 9660, and the two versions of UDF.
func iso(d *disk) (bool, []Problem, error) {
	const at, size = 32 << 10, 2 << 10 // the first volume descriptor
	if len(d.head) < at+size {
		return false, nil, nil
	}
	switch string(d.head[at+1 : at+6]) {
	case "CD001", "NSR02", "NSR03":
		return true, nil, nil
	default:
		return false, nil, nil
	}
}

// luks allows version 1 only (LUKSInspector); qemu has no other. Without a passphrase nothing else is checked.
func luks(d *disk) (bool, []Problem, error) {
	const header, version = 592, 6 // bytes; offset of a u16
	switch {
	case !d.begins("LUKS\xba\xbe"):
		return false, nil, nil
	case len(d.head) < header:
		return true, tooShort(), nil
	case binary.BigEndian.Uint16(d.head[version:]) != 1:
		return true, []Problem{fails("version", "is of a version that is not allowed")}, nil
	default:
		return true, nil, nil
	}
}

// Places in a master boot record (GPTInspector; UEFI 2.10, 5.2).
const (
	mbrTable     = 446 // four entries
	mbrEntry     = 16  // bytes
	mbrSignature = 510
	mbrGPT       = 0xee // type of the entry that protects a GPT
)

// gpt finds partition tables and checks the entries. What looks like the boot sector of a FAT file system is none: it has the
// signature, and code where the entries would be. That of NTFS looks like a broken table, in Glance too.
func gpt(d *disk) (bool, []Problem, error) {
	h := d.sector()
	if h == nil || h[mbrSignature] != 0x55 || h[mbrSignature+1] != 0xaa {
		return false, nil, nil
	}
	if tables, media := h[0x10], h[0x15]; tables == 2 && media == 0xf8 {
		return false, nil, nil
	}
	if text := brokenTable(h[mbrTable:mbrSignature]); text != "" {
		return true, []Problem{fails("mbr", text)}, nil
	}

	return true, nil, nil
}

// brokenTable is the first thing that is wrong with a partition table; "" for nothing.
func brokenTable(table []byte) string {
	used, protective, first := 0, false, false
	for i := 0; i < len(table); i += mbrEntry {
		e := table[i : i+mbrEntry]
		boot, start, kind, lba := e[0], e[1:4], e[4], binary.LittleEndian.Uint32(e[8:])
		if boot != 0 && boot != 0x80 {
			return "has a partition table with an invalid boot flag"
		}
		if kind != 0 {
			used++
			first = first || i == 0
		}
		if kind != mbrGPT {
			continue
		}
		protective = true
		if !bytes.Equal(start, []byte{0, 2, 0}) || lba != 1 {
			return "has a GPT whose protective entry does not begin where it has to"
		}
	}
	switch {
	case protective && (used != 1 || !first):
		return "has a GPT beside other partitions"
	case used == 0:
		return "has a partition table without partitions"
	default:
		return ""
	}
}
