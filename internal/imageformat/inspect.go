package imageformat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// Format is a disk format, named as Glance's disk_format where it has one and as oslo.utils' inspector otherwise.
type Format string

// The formats that oslo.utils 7.4 and later know (imageutils/format_inspector.py ALL_FORMATS).
const (
	Raw   Format = "raw" // nothing that is known
	QCOW2 Format = "qcow2"
	VHD   Format = "vhd"
	VHDX  Format = "vhdx"
	VMDK  Format = "vmdk"
	VDI   Format = "vdi"
	QED   Format = "qed"
	ISO   Format = "iso"
	GPT   Format = "gpt" // a partition table, also the older kind without GPT
	LUKS  Format = "luks"
)

// Weight says who minds a problem.
type Weight int

// The weights.
const (
	Unsafe     Weight = iota // one of Glance's safety checks fails: refused whatever is configured, except for partition tables
	Unreadable               // Glance's inspector does not come to an end: refused while formats have to match
	Unseen                   // Glance does not see it: only the policy Strict refuses
)

// Problem is something that is wrong with an image of a format.
type Problem struct {
	Format Format
	Check  string // oslo.utils' name of the safety check, such as backing_file; "" for what is not Unsafe
	Weight Weight
	Text   string // what it is, as the end of a sentence; without any bytes of the image
}

// Finding is what the bytes look like.
type Finding struct {
	Formats  []Format  // whose signatures are there, in a fixed order; none: raw
	Problems []Problem // of each format either one that is Unreadable or any number of others
}

// What Inspect reads at most.
const (
	MostReads = 4
	MostBytes = headSize + tableSize + descriptorMax + footerSize
)

const headSize = 64 << 10 // holds everything that is looked at in most disks, see iso

// Inspect looks at a disk of size bytes. It reads little, see MostReads and MostBytes, and fails only when reading does.
func Inspect(r io.ReaderAt, size int64) (Finding, error) {
	d := &disk{r: r, size: size}
	if err := d.begin(); err != nil {
		return Finding{}, err
	}
	var f Finding
	for _, i := range inspectors() {
		matches, problems, err := i.look(d)
		if err != nil {
			return Finding{}, err
		}
		if matches {
			f.Formats = append(f.Formats, i.format)
		}
		for _, p := range problems {
			p.Format = i.format
			f.Problems = append(f.Problems, p)
		}
	}

	return f, nil
}

// inspector looks for one format. Its problems are without Format.
type inspector struct {
	format Format
	look   func(*disk) (matches bool, problems []Problem, err error)
}

func inspectors() []inspector {
	return []inspector{
		{QCOW2, qcow2}, {VHD, vhd}, {VHDX, vhdx}, {VMDK, vmdk}, {VDI, vdi}, {QED, qed}, {ISO, iso}, {GPT, gpt}, {LUKS, luks},
	}
}

// disk is what is inspected.
type disk struct {
	r    io.ReaderAt
	size int64
	head []byte // the first headSize bytes, fewer when there are no more
}

func (d *disk) begin() (err error) {
	d.head, err = d.read(0, headSize)

	return err
}

// read answers length bytes, fewer where the disk ends. length is a constant of the caller, not a field of an image.
func (d *disk) read(offset, length int64) ([]byte, error) {
	length = min(length, d.size-offset)
	if offset < 0 || length <= 0 {
		return nil, nil
	}
	p := make([]byte, length)
	n, err := d.r.ReadAt(p, offset)
	switch {
	case n == len(p):
		return p, nil // whatever the error: io.EOF is allowed at the end
	case err == nil, errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}

	return nil, fmt.Errorf("read %d bytes at %d of %d: %w", length, offset, d.size, err)
}

// begins reports whether the disk begins with these bytes.
func (d *disk) begins(with string) bool { return bytes.HasPrefix(d.head, []byte(with)) }

// sector is the first 512 bytes; nil when there are fewer.
func (d *disk) sector() []byte {
	if len(d.head) < sectorSize {
		return nil
	}

	return d.head[:sectorSize]
}

const sectorSize = 512

func fails(check, text string) Problem { return Problem{Check: check, Weight: Unsafe, Text: text} }

func unreadable(text string) []Problem { return []Problem{{Weight: Unreadable, Text: text}} }

// tooShort is the problem of a disk that bears a signature and ends before its header does.
func tooShort() []Problem { return unreadable("ends before its header does") }
