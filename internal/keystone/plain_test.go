package keystone

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "<html><head><title>403 Forbidden</title></head>\n<body>It&#x27;s not allowed</body></html>": "403 Forbidden It&#x27;s not allowed",
		`{"badRequest": {"code": 400}}`:   `{"badRequest": {"code": 400}}`,
		"\x1b[31mred\r\nINFO forged line": "[31mred INFO forged line", "a > b": "a > b", "cut <short": "cut",
		strings.Repeat("ä", 300): strings.Repeat("ä", 120),
	} {
		if got := plain([]byte(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// What a service answers ends up in logs: one short printable line, whatever it was.
func FuzzPlain(f *testing.F) {
	f.Add([]byte("<html>\n<b>no</b>"))
	f.Add([]byte{0xff, 0x1b, '[', '2', 'J'})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := plain(b)
		if len(s) > 240 || !utf8.ValidString(s) || strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
			t.Fatalf("%q from %q", s, b)
		}
	})
}
