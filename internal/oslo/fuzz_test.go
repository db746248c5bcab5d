package oslo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// canary is a token that no decoder could make up. The fuzz targets plant it where tokens are and look for it
// everywhere else.
const canary = "gAAAAABcanary0token0that0nobody0may0see"

// costs runs f and fails when it allocated out of proportion: what comes from the bus is bounded before it is decoded.
// Small inputs are not measured, because measuring stops the world.
func costs(t *testing.T, input int, f func()) {
	t.Helper()
	if input < 2<<10 {
		f()
		return
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > uint64(20*input+256<<10) {
		t.Errorf("%d bytes cost %d", input, used)
	}
}

// FuzzDecode: whatever arrives is refused with a typed error that repeats no value, or decodes into a request that encodes
// into a message that decodes into the same request.
func FuzzDecode(f *testing.F) {
	for _, name := range frameNames(f) {
		f.Add(JSONContentType, []byte(readFrame(f, name).Body))
	}
	f.Add(JSONContentType, []byte(`{"method":"m","args":{}}`))
	f.Add(JSONContentType, []byte(`{"method":"m","args":{"token":"`+canary+`"},"_context_auth_token":"`+canary+`","_context_x":[{"a":1e400}]}`))
	f.Add("application/x-python", []byte("cposix\nsystem\n"))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		if len(body) > defaultBytes {
			body = append(body, ' ')
		}
		var r Request
		var err error
		costs(t, len(body), func() { r, err = Decode(contentType, body, Limits{}) })
		var de *DecodeError
		if err != nil && (!errors.As(err, &de) || de.Reason == "" || len(err.Error()) > 4096) {
			t.Fatalf("error %v", err)
		}
		if (r.MsgID == "") != (r.ReplyQueue == "") {
			t.Fatalf("half a caller: %q, %q", r.MsgID, r.ReplyQueue)
		}
		if err != nil {
			return
		}
		if r.Method == "" || r.Args == nil || len(body) > defaultBytes || contentType != JSONContentType {
			t.Fatalf("accepted %+v", r)
		}
		roundTrip(t, r)
	})
}

func roundTrip(t *testing.T, r Request) {
	t.Helper()
	m, err := EncodeCast(Cast{Method: r.Method, Namespace: r.Namespace, Version: r.Version, Args: r.Args, Context: r.Context, WithSecret: true})
	if err != nil {
		t.Fatalf("encode what was decoded: %v", err)
	}
	again, err := Decode(JSONContentType, m.Body, Limits{Bytes: 16 << 20, Elements: 1 << 20, Depth: 64})
	if err != nil {
		t.Fatalf("decode what was encoded: %v", err)
	}
	version := r.Version
	if version == "" {
		version = "1.0" // an empty one is not sent, which means the same to no server: none serves it
	}
	if again.Method != r.Method || again.Namespace != r.Namespace || again.Version != version ||
		again.Context.AuthToken().Reveal() != r.Context.AuthToken().Reveal() {
		t.Fatalf("%+v came back as %+v", r, again)
	}
	sameValues(t, "arguments", again.Args, r.Args)
	sameValues(t, "context", again.Context.values(), r.Context.values())
}

func sameValues(t *testing.T, what string, got, want map[string]json.RawMessage) {
	t.Helper()
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want))) {
		t.Fatalf("%s %v came back as %v", what, slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(got)))
	}
	for key, raw := range want {
		if !reflect.DeepEqual(valueOf(t, raw), valueOf(t, got[key])) {
			t.Fatalf("%s: %q came back as %s, was %s", what, key, got[key], raw)
		}
	}
}

// valueOf keeps numbers as they were written.
func valueOf(t *testing.T, raw json.RawMessage) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%s: %v", raw, err)
	}
	return v
}

// FuzzContext: a token in a context leaves it through Reveal and through a cast that is told to carry it, and in no other
// way; the stored form comes back as it was.
func FuzzContext(f *testing.F) {
	for _, name := range frameNames(f) {
		inner, err := unwrap([]byte(readFrame(f, name).Body), Limits{}.withDefaults())
		if err != nil {
			continue
		}
		raw, err := json.Marshal(inner)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte(`{"_context_request_id":"req-1","_context_trace_info":{"hmac_key":"k"},"_context_roles":["admin"]}`))
	f.Add([]byte(`{"_context_service_catalog":[{"endpoints":[]}],"_context_a":{"b":[{"X-Auth-Token":"t"}]}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		message, err := object(body, Limits{}.withDefaults())
		if err != nil {
			return
		}
		if strings.Contains(string(body), canary) {
			return // the finder of the canary found itself
		}
		message[contextPrefix+"auth_token"] = json.RawMessage(`"` + canary + `"`)
		message[contextPrefix+"deep"] = json.RawMessage(`{"a":[{"service_token":"` + canary + `","Password":{"x":"` + canary + `"}}],"b":1}`)
		var c Context
		costs(t, len(body), func() { c = contextOf(message) })
		if c.AuthToken().Reveal() != canary {
			t.Fatal("the token is not where it may be")
		}
		keepsSecret(t, c)
		storedAsItWas(t, c)
	})
}

func keepsSecret(t *testing.T, c Context) {
	t.Helper()
	stored, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"JSON": string(stored), "fmt": fmt.Sprintf("%v %+v %#v %s", c, c, c, c), "struct": fmt.Sprintf("%+v %#v", Request{Context: c}, &Request{Context: c}),
		"log": c.LogValue().String(), "secret": fmt.Sprintf("%v %+v %#v %x %q", c.AuthToken(), c.AuthToken(), c.AuthToken(), c.AuthToken(), c.AuthToken()),
	} {
		if strings.Contains(text, canary) {
			t.Fatalf("%s shows the token: %s", what, text)
		}
	}
}

func storedAsItWas(t *testing.T, c Context) {
	t.Helper()
	stored, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	var back Context
	if err := json.Unmarshal(stored, &back); err != nil {
		t.Fatalf("read %s: %v", stored, err)
	}
	if !back.AuthToken().IsZero() || back.String() != c.String() {
		t.Fatalf("%v came back as %v", c, back)
	}
	sameValues(t, "stored context", back.values(), c.Redacted().values())
	again, err := json.Marshal(back)
	if err != nil || !bytes.Equal(again, stored) {
		t.Fatalf("stored as %s, then as %s (%v)", stored, again, err)
	}
}

// FuzzRedact: no dead letter holds the token of its request, whatever else is wrong with the body, and the redacted form
// is not longer than what may be kept.
func FuzzRedact(f *testing.F) {
	for _, name := range frameNames(f) {
		f.Add([]byte(readFrame(f, name).Body), []byte(""), false)
	}
	f.Add([]byte(`{"method":"m",`), []byte(`,"x":1`), false)
	f.Add([]byte(`"`), []byte(`"`), true)
	f.Add([]byte("\xff"), []byte(""), false)
	f.Fuzz(func(t *testing.T, before, after []byte, opaque bool) {
		if bytes.Contains(before, []byte(canary)) || bytes.Contains(after, []byte(canary)) {
			return
		}
		// In the middle of anything, as a sender writes it: in the open, inside the envelope's string, as a header.
		for _, planted := range []string{
			`"_context_auth_token": "` + canary + `"`, `\"_context_auth_token\": \"` + canary + `\"`, `X-Auth-Token: ` + canary,
		} {
			body := slices.Concat(before, []byte(planted), after)
			var out []byte
			costs(t, 2*len(body), func() { out = redactBody(body, opaque, Limits{}) })
			if bytes.Contains(out, []byte(canary)) && !inString(body, planted) {
				t.Fatalf("the token survives: %s", out)
			}
			if len(out) > max(2*len(body), 256) {
				t.Fatalf("%d bytes redacted to %d", len(body), len(out))
			}
		}
	})
}

// inString: in a JSON text that is whole, the planted words may have become part of a value that only looks like a pair.
// No name marks such a value, so nobody has put a token there as a token.
func inString(body []byte, planted string) bool {
	if !json.Valid(body) {
		return false
	}
	out := redactBody(body, false, Limits{})
	return json.Valid(out) && !strings.HasPrefix(planted, `"`)
}

// FuzzParseTransportURL: what is accepted can be dialled, prints without its passwords, and what is printed means the same.
func FuzzParseTransportURL(f *testing.F) {
	data, err := os.ReadFile("testdata/transport-url.json")
	if err != nil {
		f.Fatal(err)
	}
	var all map[string]any
	if err := json.Unmarshal(data, &all); err != nil {
		f.Fatal(err)
	}
	for s := range all {
		f.Add(s)
	}
	f.Add("rabbit://u:" + canary + "@h1,u2:" + canary + "@[::1]:5671/v?ssl=1&heartbeat_timeout_threshold=60")
	f.Fuzz(func(t *testing.T, s string) {
		var tr Transport
		var err error
		costs(t, len(s), func() { tr, err = ParseTransportURL(s) })
		if err != nil {
			hidesPasswords(t, s, err.Error())
			return
		}
		if len(tr.Hosts) == 0 || tr.VHost == "" || tr.LoginMethod == "" {
			t.Fatalf("accepted %+v", tr)
		}
		for _, h := range tr.Hosts {
			if h.Name == "" || h.Port < 1 || h.Port > 65535 {
				t.Fatalf("accepted host %+v", h)
			}
		}
		hidesPasswords(t, s, fmt.Sprintf("%v %+v %#v %s", tr, tr, tr, tr.LogValue()))
		again, err := ParseTransportURL(tr.String())
		if err != nil || again.VHost != tr.VHost || again.String() != tr.String() {
			t.Fatalf("%q prints as %q, which gives %v, %v", s, tr, again, err)
		}
		for i, h := range again.Hosts {
			if h.Name != tr.Hosts[i].Name || h.Port != tr.Hosts[i].Port || h.Username != tr.Hosts[i].Username {
				t.Fatalf("%q came back as %q", tr.Hosts[i], h)
			}
		}
	})
}

// hidesPasswords looks for the canary that stands where a password does, and nowhere else.
func hidesPasswords(t *testing.T, url, shown string) {
	t.Helper()
	_, rest, _ := strings.Cut(url, "://")
	hosts := rest
	if end := strings.IndexAny(rest, "/?#"); end >= 0 {
		hosts = rest[:end]
	}
	if n := strings.Count(hosts, ":"+canary+"@"); n > 0 && n == strings.Count(url, canary) && strings.Contains(shown, canary) {
		t.Fatalf("%q shows a password", shown)
	}
}
