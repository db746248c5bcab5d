package oslo

import (
	"fmt"
	"unicode/utf8"
)

// Limits bound what Decode reads before it allocates anything in proportion to it.
// The zero value means the defaults.
type Limits struct {
	Bytes    int // of a body; default 1 MiB
	Depth    int // of nested objects and arrays; default 32
	Elements int // values and keys per JSON text; default 20 000
}

// The broker's own limit is no protection: it lets 16 MiB (RabbitMQ 4) or 128 MiB
// through, and 15 MB of "{}," became 646 MiB of Go values when it was measured.
const (
	defaultBytes    = 1 << 20
	defaultDepth    = 32
	defaultElements = 20_000
)

func (l Limits) withDefaults() Limits {
	if l.Bytes <= 0 {
		l.Bytes = defaultBytes
	}
	if l.Depth <= 0 {
		l.Depth = defaultDepth
	}
	if l.Elements <= 0 {
		l.Elements = defaultElements
	}
	return l
}

// check counts without allocating. It does not validate: on text that is not JSON
// its counts are meaningless but still bounded, and json.Unmarshal refuses it next.
func (l Limits) check(data []byte) error {
	if len(data) > l.Bytes {
		return &DecodeError{Reason: ReasonTooLarge, Detail: fmt.Sprintf("%d bytes, limit %d", len(data), l.Bytes)}
	}
	if !utf8.Valid(data) {
		return &DecodeError{Reason: ReasonNotJSON, Detail: fmt.Sprintf("%d bytes, not UTF-8", len(data))}
	}
	depth, deepest, elements := measure(data)
	if deepest > l.Depth {
		return &DecodeError{Reason: ReasonTooDeep, Detail: fmt.Sprintf("%d levels, limit %d", deepest, l.Depth)}
	}
	if elements > l.Elements {
		return &DecodeError{Reason: ReasonTooMany, Detail: fmt.Sprintf("%d elements, limit %d", elements, l.Elements)}
	}
	if depth != 0 {
		return &DecodeError{Reason: ReasonNotJSON, Detail: fmt.Sprintf("%d bytes, unbalanced brackets", len(data))}
	}
	return nil
}

// measure walks over the text outside strings. Each bracket, comma and colon
// begins at most one value, so their count is an upper bound of the values.
func measure(data []byte) (depth, deepest, elements int) {
	inString, escaped := false, false
	for _, c := range data {
		if inString {
			switch {
			case escaped:
				escaped = false
			case c == '\\':
				escaped = true
			case c == '"':
				inString = false
			}
			continue
		}
		switch c {
		case '"':
			inString = true
		case '{', '[':
			depth++
			deepest = max(deepest, depth)
			elements++
		case '}', ']':
			depth--
		case ',', ':':
			elements++
		}
	}
	return depth, deepest, elements
}
