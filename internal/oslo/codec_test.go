package oslo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"pgregory.net/rapid"
)

func wrap(message string) string {
	text, err := json.Marshal(message)
	if err != nil {
		panic(err)
	}
	return `{"oslo.version": "2.0", "oslo.message": ` + string(text) + `}`
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		contentType string
		body        string
		reason      Reason
		field       string
	}{
		"no content type":            {"", wrap(`{"method":"m"}`), ReasonContentType, ""},
		"charset in content type":    {"application/json; charset=utf-8", wrap(`{"method":"m"}`), ReasonContentType, ""},
		"pickle":                     {"application/x-python-serialize", "x", ReasonContentType, ""},
		"empty":                      {JSONContentType, "", ReasonNotJSON, ""},
		"blank":                      {JSONContentType, " \n", ReasonNotJSON, ""},
		"not JSON":                   {JSONContentType, "hello", ReasonNotJSON, ""},
		"half an object":             {JSONContentType, `{"method":"m"`, ReasonNotJSON, ""},
		"two objects":                {JSONContentType, `{"method":"m"}{}`, ReasonNotJSON, ""},
		"not UTF-8":                  {JSONContentType, "{\"method\":\"\xff\"}", ReasonNotJSON, ""},
		"array":                      {JSONContentType, `[{"method":"m"}]`, ReasonEnvelope, ""},
		"null":                       {JSONContentType, `null`, ReasonEnvelope, ""},
		"number":                     {JSONContentType, `1`, ReasonEnvelope, ""},
		"envelope 2.1":               {JSONContentType, `{"oslo.version":"2.1","oslo.message":"{}"}`, ReasonVersion, "oslo.version"},
		"envelope 3.0":               {JSONContentType, `{"oslo.version":"3.0","oslo.message":"{}"}`, ReasonVersion, "oslo.version"},
		"envelope 1.0":               {JSONContentType, `{"oslo.version":"1.0","oslo.message":"{}"}`, ReasonVersion, "oslo.version"},
		"envelope version word":      {JSONContentType, `{"oslo.version":"two","oslo.message":"{}"}`, ReasonVersion, "oslo.version"},
		"envelope version number":    {JSONContentType, `{"oslo.version":2.0,"oslo.message":"{}"}`, ReasonEnvelope, "oslo.version"},
		"envelope version null":      {JSONContentType, `{"oslo.version":null,"oslo.message":"{}"}`, ReasonEnvelope, "oslo.version"},
		"message is an object":       {JSONContentType, `{"oslo.version":"2.0","oslo.message":{"method":"m"}}`, ReasonEnvelope, "oslo.message"},
		"message is null":            {JSONContentType, `{"oslo.version":"2.0","oslo.message":null}`, ReasonEnvelope, "oslo.message"},
		"message is not JSON":        {JSONContentType, wrap("hello"), ReasonNotJSON, ""},
		"message is an array":        {JSONContentType, wrap("[]"), ReasonEnvelope, ""},
		"message is null text":       {JSONContentType, wrap("null"), ReasonEnvelope, ""},
		"no method":                  {JSONContentType, wrap(`{"args":{}}`), ReasonMissingField, "method"},
		"method null":                {JSONContentType, wrap(`{"method":null}`), ReasonWrongType, "method"},
		"method number":              {JSONContentType, wrap(`{"method":1}`), ReasonWrongType, "method"},
		"method empty":               {JSONContentType, wrap(`{"method":""}`), ReasonMissingField, "method"},
		"method in other case":       {JSONContentType, wrap(`{"Method":"m"}`), ReasonMissingField, "method"},
		"bare without method":        {JSONContentType, `{"oslo.message":"{\"method\":\"m\"}"}`, ReasonMissingField, "method"},
		"args null":                  {JSONContentType, wrap(`{"method":"m","args":null}`), ReasonWrongType, "args"},
		"args array":                 {JSONContentType, wrap(`{"method":"m","args":[1]}`), ReasonWrongType, "args"},
		"version null":               {JSONContentType, wrap(`{"method":"m","version":null}`), ReasonWrongType, "version"},
		"version number":             {JSONContentType, wrap(`{"method":"m","version":3.0}`), ReasonWrongType, "version"},
		"namespace number":           {JSONContentType, wrap(`{"method":"m","namespace":1}`), ReasonWrongType, "namespace"},
		"unique id list":             {JSONContentType, wrap(`{"method":"m","_unique_id":[]}`), ReasonWrongType, "_unique_id"},
		"msg id number":              {JSONContentType, wrap(`{"method":"m","_msg_id":1,"_reply_q":"reply_1"}`), ReasonWrongType, "_msg_id"},
		"call without reply queue":   {JSONContentType, wrap(`{"method":"m","_msg_id":"1"}`), ReasonMissingField, "_reply_q"},
		"reply into a work queue":    {JSONContentType, wrap(`{"method":"m","_msg_id":"1","_reply_q":"cinder-volume"}`), ReasonWrongType, "_reply_q"},
		"reply queue of 300 letters": {JSONContentType, wrap(`{"method":"m","_msg_id":"1","_reply_q":"reply_` + strings.Repeat("a", 300) + `"}`), ReasonWrongType, "_reply_q"},
		"10 MB":                      {JSONContentType, wrap(`{"method":"` + strings.Repeat("m", 10<<20) + `"}`), ReasonTooLarge, ""},
		"deep outside":               {JSONContentType, strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40), ReasonTooDeep, ""},
		"deep inside":                {JSONContentType, wrap(`{"method":"m","args":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `}`), ReasonTooDeep, ""},
		"wide":                       {JSONContentType, wrap(`{"method":"m","args":{"a":[` + strings.Repeat("{},", 20_000) + `1]}}`), ReasonTooMany, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(c.contentType, []byte(c.body), Limits{})
			var de *DecodeError
			if !errors.As(err, &de) {
				t.Fatalf("error = %v", err)
			}
			if de.Reason != c.reason || de.Field != c.field {
				t.Errorf("reason %q field %q (%v), want %q %q", de.Reason, de.Field, de, c.reason, c.field)
			}
			if len(de.Error()) > 200 {
				t.Errorf("error of %d bytes", len(de.Error()))
			}
		})
	}
}

func TestDecodeAccepts(t *testing.T) {
	for name, c := range map[string]struct {
		body string
		want Request
	}{
		"bare message":         {`{"method":"m","args":{"a":1}}`, Request{Method: "m", Version: "1.0", Args: map[string]json.RawMessage{"a": json.RawMessage("1")}}},
		"no args":              {wrap(`{"method":"m"}`), Request{Method: "m", Version: "1.0"}},
		"other keys":           {wrap(`{"method":"m","log_failure":true,"options":{}}`), Request{Method: "m", Version: "1.0"}},
		"nulls":                {wrap(`{"method":"m","namespace":null,"_msg_id":null,"_reply_q":null,"_timeout":null,"_unique_id":null}`), Request{Method: "m", Version: "1.0"}},
		"raw UTF-8":            {wrap(`{"method":"übergröße"}`), Request{Method: "übergröße", Version: "1.0"}},
		"odd version":          {wrap(`{"method":"m","version":"x"}`), Request{Method: "m", Version: "x"}},
		"reply queue only":     {wrap(`{"method":"m","_reply_q":"reply_1"}`), Request{Method: "m", Version: "1.0"}},
		"reply queue, managed": {wrap(`{"method":"m","_msg_id":"1","_reply_q":"reply_host:cinder-volume:2"}`), Request{Method: "m", Version: "1.0", MsgID: "1", ReplyQueue: "reply_host:cinder-volume:2"}},
		"timeout 1":            {wrap(`{"method":"m","_timeout":1.9}`), Request{Method: "m", Version: "1.0"}},
		"timeout 2.9":          {wrap(`{"method":"m","_timeout":2.9}`), Request{Method: "m", Version: "1.0", MonitorTimeout: 2 * time.Second}},
		"timeout word":         {wrap(`{"method":"m","_timeout":"4"}`), Request{Method: "m", Version: "1.0"}},
		"timeout huge":         {wrap(`{"method":"m","_timeout":1e300}`), Request{Method: "m", Version: "1.0", MonitorTimeout: maxMonitorTimeout}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := Decode(JSONContentType, []byte(c.body), Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if c.want.Args == nil {
				c.want.Args = map[string]json.RawMessage{}
			}
			r.Context = Context{}
			if !reflect.DeepEqual(r, c.want) {
				t.Errorf("got %+v, want %+v", r, c.want)
			}
		})
	}
}

// Whatever else is wrong, a waiting caller is known.
func TestDecodeErrorKeepsCaller(t *testing.T) {
	r, err := Decode(JSONContentType, []byte(wrap(`{"args":[],"version":1,"_msg_id":"id","_reply_q":"reply_1"}`)), Limits{})
	if err == nil || !r.IsCall() || r.MsgID != "id" || r.ReplyQueue != "reply_1" {
		t.Errorf("request %+v, error %v", r, err)
	}
}

// Hostile JSON must be refused before it costs memory: 15 MB of it became 646 MiB
// of Go values in a decoder without bounds.
func TestDecodeAllocatesInBounds(t *testing.T) {
	inner := `{"method":"m","args":{"a":[` + strings.Repeat("{},", 300_000) + `{}]}}`
	for name, c := range map[string]struct {
		body  string
		limit uint64
	}{
		"15 MB of {}":            {"[" + strings.Repeat("{},", 5_000_000) + "{}]", 64 << 10},
		"1 MiB of {}":            {"[" + strings.Repeat("{},", 340_000) + "{}]", 64 << 10},
		"1 MiB of {} inside":     {wrap(inner), 8 << 20},
		"1 MiB of keys":          {`{` + strings.Repeat(`"":0,`, 200_000) + `"method":"m"}`, 64 << 10},
		"1 MiB of open brackets": {strings.Repeat("[", 1<<20), 64 << 10},
		"1 MiB of escapes":       {wrap(`{"method":"` + strings.Repeat(`\u0041`, 150_000) + `"}`), 16 << 20},
		"largest number of keys": {wrap(`{"method":"m","args":{` + strings.Repeat(`"a":0,`, 9_000) + `"b":0}}`), 16 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			body := []byte(c.body)
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, _ = Decode(JSONContentType, body, Limits{})
			runtime.ReadMemStats(&after)
			if used := after.TotalAlloc - before.TotalAlloc; used > c.limit {
				t.Errorf("allocated %d KiB for %d KiB, limit %d KiB", used>>10, len(body)>>10, c.limit>>10)
			}
		})
	}
}

func TestSecretsStayHidden(t *testing.T) {
	const token = "gAAAA-very-secret"
	c := NewContext(map[string]json.RawMessage{
		"auth_token":      json.RawMessage(`"` + token + `"`),
		"request_id":      json.RawMessage(`"req-1"`),
		"service_catalog": json.RawMessage(`[{"x":"` + token + `"}]`),
		"trace_info":      json.RawMessage(`{"hmac_key":"` + token + `"}`),
		"x_auth_password": json.RawMessage(`"` + token + `"`),
		"nested":          json.RawMessage(`{"deep":[{"user_token":"` + token + `","ok":1}]}`),
	})
	r := Request{Method: "m", Context: c}
	type hidden struct {
		s Secret // unexported: fmt can't call its methods
		c Context
	}
	h := hidden{NewSecret(token), c}
	var out bytes.Buffer
	for _, v := range []any{c, &c, r, &r, h, &h, c.AuthToken(), c.Redacted(), []Secret{h.s}, map[string]Secret{"a": h.s}, Host{Password: h.s}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	log := slog.New(slog.NewJSONHandler(&out, nil))
	log.Info("x", "secret", h.s, "context", c, "token", c.AuthToken(), "host", Host{Password: h.s})
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "secret", h.s, "context", c, "request", r)
	for _, v := range []any{c, h.s, r, map[string]any{"c": c, "s": h.s}} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(data)
	}
	text := strings.ReplaceAll(out.String(), `json.RawMessage{0x`, "")
	if i := strings.Index(text, token); i >= 0 {
		t.Errorf("the token shows: …%s…", text[max(0, i-200):min(len(text), i+40)])
	}
	if !strings.Contains(text, "***") || !strings.Contains(text, "req-1") {
		t.Errorf("nothing was printed:\n%s", text)
	}
	if c.AuthToken().Reveal() != token {
		t.Error("Reveal does not")
	}
	if _, ok := c.Redacted().Value("nested"); !ok || !strings.Contains(string(mustValue(c.Redacted(), "nested")), `"ok":1`) {
		t.Error("redaction removed more than the secret")
	}
}

func mustValue(c Context, name string) json.RawMessage {
	raw, _ := c.Value(name)
	return raw
}

func TestCastWithoutSecret(t *testing.T) {
	c := NewContext(map[string]json.RawMessage{"auth_token": json.RawMessage(`"tok-123"`), "user_id": json.RawMessage(`"u"`)})
	for _, with := range []bool{false, true} {
		m, err := EncodeCast(Cast{Method: "m", Context: c, WithSecret: with})
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(m.Body, []byte("tok-123")) != with {
			t.Errorf("with secret %v: %s", with, m.Body)
		}
	}
}

func TestRedactBody(t *testing.T) {
	const token = "tok-123"
	for name, c := range map[string]struct {
		body   string
		opaque bool
		keep   string
	}{
		"request":     {wrap(`{"method":"m","args":{"volume_id":"v","x":{"password":"tok-123"}},"_context_auth_token":"tok-123"}`), false, "volume_id"},
		"bare":        {`{"method":"m","_context_auth_token":"tok-123"}`, false, `"m"`},
		"inner text":  {wrap(`method m "_context_auth_token": "tok-123" broken`), false, "broken"},
		"not JSON":    {`{"method":"m","_context_auth_token":"tok-123"`, false, "method"},
		"half inside": {`{"oslo.version":"2.0","oslo.message":"{\"method\":\"m\", \"_context_auth_token\": \"tok-123\"`, false, "method"},
		"compressed":  {"\x78\x9ctok-123", true, "withheld"},
		"binary":      {"\xff\xfetok-123", false, "withheld"},
		"too large":   {`{"method":"m","_context_auth_token":"tok-123","x":"` + strings.Repeat("y", 2<<20) + `"}`, false, "method"},
		"header form": {"X-Auth-Token: tok-123\n", false, "X-Auth-Token"},
	} {
		t.Run(name, func(t *testing.T) {
			out := string(redactBody([]byte(c.body), c.opaque, Limits{}))
			if strings.Contains(out, token) || !strings.Contains(out, c.keep) || len(out) > 70<<10 {
				t.Errorf("redacted to %d bytes: %.200s", len(out), out)
			}
		})
	}
}

func TestCompatible(t *testing.T) {
	for _, c := range []struct {
		have, want string
		ok         bool
	}{
		{"1.5", "1.0", true}, {"1.5", "1.5", true}, {"1.5", "1.6", false}, {"1.5", "2.0", false}, {"1.5", "1.5.1", false},
		{"1.5.2", "1.5.1", true}, {"1.5.2", "1.4.9", true}, {"3.10", "3.9", true}, {"3.9", "3.10", false},
		{"3.0", "", false}, {"3.0", "x", false}, {"3.0", "3", false}, {"3.0", "3.-1", false}, {"3.0", "3.0.0.0", false}, {"", "3.0", false},
	} {
		if Compatible(c.have, c.want) != c.ok {
			t.Errorf("Compatible(%q, %q) = %v", c.have, c.want, !c.ok)
		}
	}
}

func TestTargetRefuses(t *testing.T) {
	target := Target{Version: "3.5", Methods: []string{"copy"}}
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{Method: "copy", Version: "3.0"}, ""},
		{Request{Method: "copy", Version: "3.6"}, "UnsupportedVersion"},
		{Request{Method: "nope", Version: "4.0"}, "UnsupportedVersion"},
		{Request{Method: "copy", Version: "3.0", Namespace: "n"}, "UnsupportedVersion"},
		{Request{Method: "nope", Version: "3.0"}, "NoSuchMethod"},
		{Request{Method: "__init__", Version: "3.0"}, "NoSuchMethod"},
	} {
		f := target.Refuse(c.r)
		if (f == nil) != (c.want == "") || f != nil && f.Class != c.want {
			t.Errorf("%+v: %v, want %q", c.r, f, c.want)
		}
	}
}

func TestPythonTime(t *testing.T) {
	at := time.Date(2026, 11, 22, 10, 41, 13, 63_199_999, time.FixedZone("", 3600))
	if got := pythonTime(at); got != "2026-11-22 09:41:13.063199" {
		t.Error(got)
	}
	if got := pythonTime(at.Truncate(time.Second).Add(900)); got != "2026-11-22 09:41:13" {
		t.Error(got)
	}
}

// jsonValue draws a JSON value in its compact form.
func jsonValue() *rapid.Generator[json.RawMessage] {
	return rapid.Custom(func(t *rapid.T) json.RawMessage {
		var v any
		switch rapid.IntRange(0, 5).Draw(t, "kind") {
		case 0:
			v = rapid.String().Draw(t, "string")
		case 1:
			v = rapid.Int().Draw(t, "int")
		case 2:
			v = rapid.Bool().Draw(t, "bool")
		case 3:
			v = rapid.SliceOf(rapid.String()).Draw(t, "list")
		case 4:
			v = rapid.MapOf(rapid.String(), rapid.Int()).Draw(t, "object")
		}
		out, err := marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return out
	})
}

func TestCastRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Cast{
			Method:     rapid.StringN(1, 40, 80).Draw(t, "method"),
			Namespace:  rapid.String().Draw(t, "namespace"),
			Version:    rapid.StringMatching(`[0-9]{1,3}\.[0-9]{1,3}`).Draw(t, "version"),
			WithSecret: true,
		}
		args := rapid.MapOf(rapid.String(), jsonValue()).Draw(t, "args")
		c.Args = args
		values := rapid.MapOf(rapid.String(), jsonValue()).Draw(t, "context")
		if token := rapid.String().Draw(t, "token"); token != "" {
			values["auth_token"], _ = marshal(token)
		}
		c.Context = NewContext(values)
		m, err := EncodeCast(c)
		if err != nil {
			t.Fatal(err)
		}
		r, err := Decode(JSONContentType, m.Body, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if r.Method != c.Method || r.Namespace != c.Namespace || r.Version != c.Version || r.UniqueID != m.UniqueID {
			t.Errorf("got %+v", r)
		}
		if !reflect.DeepEqual(r.Args, args) {
			t.Errorf("args = %s, want %s", r.Args, args)
		}
		if !reflect.DeepEqual(r.Context.values(), c.Context.values()) || r.Context.AuthToken().Reveal() != c.Context.AuthToken().Reveal() {
			t.Errorf("context = %s, want %s", r.Context.values(), c.Context.values())
		}
	})
}

// A stored context comes back the same, except for what must not be stored.
func TestContextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.MapOf(rapid.StringMatching(`[a-z_]{1,12}`), jsonValue()).Draw(t, "context")
		values["auth_token"] = json.RawMessage(`"s3cr3t"`)
		c := NewContext(values)
		stored, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(stored, []byte("s3cr3t")) {
			t.Fatalf("the token is stored: %s", stored)
		}
		var back Context
		if err := json.Unmarshal(stored, &back); err != nil {
			t.Fatal(err)
		}
		again, err := json.Marshal(back)
		if err != nil || !bytes.Equal(again, stored) {
			t.Errorf("stored %s, then %s (%v)", stored, again, err)
		}
	})
}

func TestReplyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var failure *Failure
		if rapid.Bool().Draw(t, "fails") {
			failure = &Failure{
				Class: rapid.String().Draw(t, "class"), Module: rapid.String().Draw(t, "module"),
				Message: rapid.String().Draw(t, "message"),
				Kwargs:  map[string]any{rapid.String().Draw(t, "key"): rapid.String().Draw(t, "value")},
			}
		}
		result := rapid.String().Draw(t, "result")
		heartbeat := rapid.Bool().Draw(t, "heartbeat")
		m, err := EncodeReply("id", Reply{Result: result, Failure: failure, Heartbeat: heartbeat})
		if err != nil {
			t.Fatal(err)
		}
		message, err := unwrap(m.Body, Limits{}.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		if len(message) != 5 {
			t.Fatalf("%d keys", len(message))
		}
		if string(message["ending"]) != fmt.Sprint(!heartbeat) {
			t.Errorf("ending = %s", message["ending"])
		}
		if heartbeat || failure != nil {
			if string(message["result"]) != "null" {
				t.Errorf("result = %s", message["result"])
			}
		}
		if failure == nil || heartbeat {
			if string(message["failure"]) != "null" {
				t.Errorf("failure = %s", message["failure"])
			}
			return
		}
		var text string
		if err := json.Unmarshal(message["failure"], &text); err != nil {
			t.Fatal(err)
		}
		var back struct {
			Class, Module, Message string
			TB                     []string
			Args                   []any
			Kwargs                 map[string]any
		}
		if err := json.Unmarshal([]byte(text), &back); err != nil {
			t.Fatal(err)
		}
		if back.Class != failure.Class || back.Module != failure.Module || back.Message != failure.Message ||
			!reflect.DeepEqual(back.Kwargs, failure.Kwargs) || back.TB == nil || back.Args == nil {
			t.Errorf("failure = %+v, want %+v", back, failure)
		}
	})
}

func TestEncodeRefuses(t *testing.T) {
	for name, c := range map[string]Cast{
		"no method":      {},
		"list as args":   {Method: "m", Args: []int{1}},
		"args no JSON":   {Method: "m", Args: func() {}},
		"args with null": {Method: "m", Args: json.RawMessage("null")},
	} {
		if _, err := EncodeCast(c); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := EncodeNotification(Notification{MessageID: "x"}); err == nil {
		t.Error("notification with a message id that is no UUID: no error")
	}
	if _, err := EncodeReply("id", Reply{Result: func() {}}); err == nil {
		t.Error("reply with a func: no error")
	}
}

func BenchmarkDecode(b *testing.B) {
	body := []byte(readFrame(b, "hookB-call").Body)
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(JSONContentType, body, Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEncodeReply(b *testing.B) {
	id := uuid.NewString()
	failure := CinderException("ImageNotFound", "gone", map[string]any{"image_id": id})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := EncodeReply(id, Reply{Failure: failure}); err != nil {
			b.Fatal(err)
		}
	}
}
