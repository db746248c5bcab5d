package oslo

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"regexp"
	"unicode/utf8"
)

// maxUnreadable is how much of a text that is not JSON is kept in a dead letter.
const maxUnreadable = 64 << 10

// In text that could not be parsed: what comes before a secret, at any level of JSON quoting, and the secret.
var (
	revealing = regexp.MustCompile(`(?i)[\w.-]*(?:auth|passw|token|secret|credential|hmac)[\w.-]*[\\"']*\s*[:=]\s*[\\"']*`)
	revealed  = regexp.MustCompile(`^[^\\"',;&\s}]+`)
)

// redactBody makes a body fit to be kept. JSON loses its sensitive members, in the
// envelope's inner text as well; other text loses what looks like a secret and is cut;
// what can't be looked into is replaced by its size and digest.
func redactBody(body []byte, opaque bool, l Limits) []byte {
	l = l.withDefaults()
	if opaque || !utf8.Valid(body) {
		return withheld(body)
	}
	if l.check(body) == nil && json.Valid(body) {
		return scrubMessage(body, l)
	}
	return mask(body)
}

func withheld(body []byte) []byte {
	sum := sha256.Sum256(body)
	out, err := marshalMembers([]member{
		{"withheld", "body can't be looked into for secrets"},
		{"bytes", len(body)}, {"sha256", hex.EncodeToString(sum[:])},
	})
	if err != nil {
		return []byte("{}") // can't happen: only strings and an int
	}
	return out
}

// withheldBody recognises what withheld made.
func withheldBody(body []byte) bool {
	var b struct {
		Withheld string `json:"withheld"`
		SHA256   string `json:"sha256"`
	}
	return json.Unmarshal(body, &b) == nil && b.Withheld != "" && len(b.SHA256) == 2*sha256.Size
}

func mask(body []byte) []byte {
	if len(body) > maxUnreadable {
		body = body[:maxUnreadable]
	}
	var out []byte
	for at := revealing.FindIndex(body); at != nil; at = revealing.FindIndex(body) {
		out, body = append(out, body[:at[1]]...), body[at[1]:]
		n := secretAt(body)
		if n > 0 {
			out = append(out, masked...)
		}
		body = body[n:]
	}
	return append(out, body...)
}

// secretAt is the length of the secret at the beginning of text. What looks like the name of another one may be that or a
// secret, so both go, and the other one's with them: "auth_token":"auth_token": "…".
func secretAt(text []byte) (n int) {
	for {
		value := revealed.Find(text[n:])
		next := revealing.FindIndex(text[n:])
		if value == nil || next == nil || next[0] >= len(value) {
			return n + len(value)
		}
		n += next[1]
	}
}

// scrubMessage cleans the inner text first: for the outer layer it is just a string.
func scrubMessage(body []byte, l Limits) []byte {
	top, err := object(body, l)
	if err != nil {
		return scrub(body)
	}
	var inner string
	if raw, ok := top["oslo.message"]; ok && stringOf(raw, &inner) == nil {
		text, err := marshal(string(scrubText(inner, l)))
		if err != nil {
			return withheld(body)
		}
		top["oslo.message"] = text
		if body, err = marshal(top); err != nil {
			return withheld(body)
		}
	}
	return scrub(body)
}

func scrubText(inner string, l Limits) []byte {
	if l.check([]byte(inner)) == nil && json.Valid([]byte(inner)) {
		return scrub(json.RawMessage(inner))
	}
	return mask([]byte(inner))
}
