package imageformat

import (
	"fmt"
	"slices"
	"strings"
)

// Checks says how much is refused.
type Checks string

// The checks. The first release of Glance that inspects what is uploaded is 30.0.0, OpenStack 2025.1 (glance 75a8851c1 "Run
// safety checks on uploaded content"). Before, the inspector only computed virtual_size, and whatever it found the upload went
// on (glance 29.2.1 location.py:614-622, common/format_inspector.py InfoWrapper).
const (
	Off    Checks = "off"    // nothing, as Glance up to 29
	Glance Checks = "glance" // what Glance from 30 on refuses on an upload
	Strict Checks = "strict" // that, and every image format inside a raw image
)

// Policy judges findings. The zero value refuses most.
type Policy struct {
	Checks Checks // "" is Strict

	// AnyFormat is Glance's require_image_format_match = False: what the inspector can't read, or takes for several formats
	// at once, is let through without any check (glance c76abb08e location.py set_data, `except ImageFormatError`). Strict
	// knows no such thing.
	AnyFormat bool

	// Nonfatal is Glance's gpt_safety_checks_nonfatal: checks of partition tables that may fail. There is one, mbr; the
	// gptmbr of Glance's help is not in any oslo.utils up to 10.1.
	Nonfatal []string
}

// Refusal says why an image must not be made of a disk.
type Refusal struct {
	Declared Format
	Found    []Format
	Text     string // what is wrong
	Remedy   string // what people can do
}

// Error is for people.
func (r *Refusal) Error() string {
	return fmt.Sprintf("the disk must not become an image of format %s: %s; %s", r.Declared, r.Text, r.Remedy)
}

const (
	remedyConvert = "its owner has to convert what is on it (qemu-img convert -O raw), or to upload it as the image that it is"
	remedyTable   = "its owner has to repair the partition table, or the operator allows it: " +
		"CINDERLIFT_GPT_SAFETY_CHECKS_NONFATAL=mbr, as gpt_safety_checks_nonfatal in glance-api.conf"
)

// Judge is nil when a disk with this finding may become an image that is declared to be raw or qcow2, and a *Refusal
// otherwise. Other formats are never made here, and refused unless the policy is Off.
func (p Policy) Judge(declared Format, f Finding) error {
	if p.Checks == Off {
		return nil
	}
	text, remedy := p.objection(declared, f)
	if text == "" {
		return nil
	}

	return &Refusal{Declared: declared, Found: slices.Clone(f.Formats), Text: text, Remedy: remedy}
}

// objection goes the way of Glance's set_data (glance c76abb08e location.py:616-681).
func (p Policy) objection(declared Format, f Finding) (text, remedy string) {
	format := Raw
	if len(f.Formats) > 0 {
		format = f.Formats[0]
	}
	switch {
	case declared != Raw && declared != QCOW2:
		return "only raw and qcow2 are judged", "leave it to Glance"
	case len(f.Formats) > 1:
		// Also {iso, gpt}, the bootable ISO: Glance 32 lets that pass for an image that is declared to be iso, and for no other.
		return p.unlessAny("it looks like several formats at once (" + join(f.Formats) + ")"), remedyConvert
	case declared != Raw && format != declared:
		return p.unlessAny("it is " + string(format)), remedyConvert
	case p.strict() && declared == Raw && !plain(format):
		return "it is a " + string(format) + " image", remedyConvert
	default:
		return p.problem(f.Problems)
	}
}

// problem is the first that counts. Glance checks the safety only of what its inspector could read.
func (p Policy) problem(problems []Problem) (text, remedy string) {
	for _, q := range problems {
		text, remedy = fmt.Sprintf("it looks like %s and %s", q.Format, q.Text), remedyConvert
		if q.Format == GPT {
			text, remedy = "it "+q.Text, remedyTable
		}
		switch {
		case q.Weight == Unreadable && p.AnyFormat && !p.strict():
		case q.Weight == Unseen && !p.strict():
		case q.Weight == Unsafe && q.Format == GPT && slices.Contains(p.Nonfatal, q.Check):
		default:
			return text, remedy
		}
	}

	return "", ""
}

// unlessAny is the text unless formats need not match.
func (p Policy) unlessAny(text string) string {
	if p.AnyFormat && !p.strict() {
		return ""
	}

	return text
}

func (p Policy) strict() bool { return p.Checks != Glance }

// plain formats say how the disk is used, not how it is stored: whoever opens the image as raw gets the disk that was meant.
func plain(f Format) bool { return f == Raw || f == GPT || f == ISO || f == LUKS }

func join(list []Format) string {
	var words []string
	for _, f := range list {
		words = append(words, string(f))
	}

	return strings.Join(words, ", ")
}
