package oslo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Secret is a value that must not be seen. It prints as *** under every fmt verb,
// in slog and in JSON; only Reveal gives it away.
//
// The text hangs on a pointer on purpose: fmt walks unexported fields by reflection
// without calling their methods, and a pointer inside a struct prints as an address.
type Secret struct{ text *string }

const masked = "***"

// NewSecret wraps text. The empty text is the zero Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: &text}
}

// Reveal returns the text.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no text.
func (s Secret) IsZero() bool { return s.text == nil }

// Format prints *** whatever the verb.
func (s Secret) Format(w fmt.State, _ rune) { _, _ = io.WriteString(w, masked) }

// String returns ***.
func (s Secret) String() string { return masked }

// LogValue is *** for slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(masked) }

// MarshalText is *** for JSON and other encodings.
func (s Secret) MarshalText() ([]byte, error) { return []byte(masked), nil }

// Context is the flattened request context of a message. The user's token is kept
// apart from the rest and never leaves through fmt, slog or JSON.
// A Context is read-only and safe for concurrent use; its zero value is empty.
type Context struct{ data *contextData } // a pointer, for the reason given at Secret

type contextData struct {
	values map[string]json.RawMessage // without the _context_ prefix, without auth_token
	token  Secret
}

func (c Context) values() map[string]json.RawMessage {
	if c.data == nil {
		return nil
	}
	return c.data.values
}

// NewContext builds a context from its values (keys without the _context_ prefix).
// An auth_token among them becomes the secret.
func NewContext(values map[string]json.RawMessage) Context {
	d := &contextData{values: make(map[string]json.RawMessage, len(values))}
	for key, raw := range values {
		d.add(key, raw)
	}
	return Context{d}
}

func contextOf(message map[string]json.RawMessage) Context {
	d := &contextData{values: map[string]json.RawMessage{}}
	for key, raw := range message {
		if name, ok := strings.CutPrefix(key, contextPrefix); ok {
			d.add(name, raw)
		}
	}
	return Context{d}
}

func (d *contextData) add(name string, raw json.RawMessage) {
	if name != "auth_token" {
		d.values[name] = raw
		return
	}
	var token string
	if err := json.Unmarshal(raw, &token); err == nil {
		d.token = NewSecret(token)
	}
}

// RequestID is the id of the API request (req-<uuid>), or empty.
func (c Context) RequestID() string { return c.text("request_id") }

// GlobalRequestID is the id that the first caller chose, or empty.
func (c Context) GlobalRequestID() string { return c.text("global_request_id") }

// ProjectID is the project of the request, or empty.
func (c Context) ProjectID() string { return c.firstText("project_id", "project", "tenant") }

// UserID is the user of the request, or empty.
func (c Context) UserID() string { return c.firstText("user_id", "user") }

// AuthToken is the user's live token. It is never to be logged or stored.
func (c Context) AuthToken() Secret {
	if c.data == nil {
		return Secret{}
	}
	return c.data.token
}

// Value returns a value as it was sent.
func (c Context) Value(name string) (json.RawMessage, bool) {
	raw, ok := c.values()[name]
	return raw, ok
}

func (c Context) firstText(names ...string) string {
	for _, name := range names {
		if s := c.text(name); s != "" {
			return s
		}
	}
	return ""
}

// text returns short strings only: these values end up in log lines.
func (c Context) text(name string) string {
	var s string
	if err := json.Unmarshal(c.values()[name], &s); err != nil || len(s) > maxName {
		return ""
	}
	return s
}

// Redacted returns a copy that may be stored: without the token, the service
// catalogue and everything whose name says that it opens a door, at any depth.
func (c Context) Redacted() Context {
	d := &contextData{values: make(map[string]json.RawMessage, len(c.values()))}
	for name, raw := range c.values() {
		if !sensitive(name) {
			d.values[name] = scrub(raw)
		}
	}
	return Context{d}
}

// String shows the ids and nothing else.
func (c Context) String() string {
	return fmt.Sprintf("context(request_id=%s global_request_id=%s project_id=%s user_id=%s)",
		c.RequestID(), c.GlobalRequestID(), c.ProjectID(), c.UserID())
}

// GoString keeps %#v from walking through the values.
func (c Context) GoString() string { return c.String() }

// LogValue is the ids as a group.
func (c Context) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("request_id", c.RequestID()),
		slog.String("global_request_id", c.GlobalRequestID()),
		slog.String("project_id", c.ProjectID()),
		slog.String("user_id", c.UserID()),
	)
}

// MarshalJSON writes the redacted values, so that a stored context holds no secret.
func (c Context) MarshalJSON() ([]byte, error) { return marshal(c.Redacted().values()) }

// UnmarshalJSON reads what MarshalJSON wrote.
func (c *Context) UnmarshalJSON(data []byte) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(data, &values); err != nil {
		return fmt.Errorf("read stored context: %w", err)
	}
	*c = NewContext(values)
	return nil
}

// members returns the context as message keys, sorted by name.
func (c Context) members(withSecret bool) []member {
	out := make([]member, 0, len(c.values())+1)
	if withSecret && !c.AuthToken().IsZero() {
		out = append(out, member{contextPrefix + "auth_token", c.AuthToken().Reveal()})
	}
	for _, name := range slices.Sorted(maps.Keys(c.values())) {
		out = append(out, member{contextPrefix + name, c.values()[name]})
	}
	return out
}

// openers are the parts of names that mark a value as a key to something.
var openers = [...]string{"auth", "password", "passwd", "token", "secret", "credential", "hmac", "service_catalog", "trace_info"}

func sensitive(name string) bool {
	name = strings.ToLower(name)
	for _, o := range openers {
		if strings.Contains(name, o) {
			return true
		}
	}
	return false
}

// scrub removes sensitive members at any depth of a JSON value. What is not JSON
// comes back as null: an unreadable value can't be called clean.
func scrub(raw json.RawMessage) json.RawMessage {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return json.RawMessage("null")
	}
	if !clean(v) {
		return raw
	}
	out, err := marshal(v)
	if err != nil {
		return json.RawMessage("null")
	}
	return out
}

// clean removes sensitive members in place and reports whether there were any.
func clean(v any) bool {
	changed := false
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if sensitive(key) {
				delete(v, key)
				changed = true
				continue
			}
			changed = clean(value) || changed
		}
	case []any:
		for _, value := range v {
			changed = clean(value) || changed
		}
	}
	return changed
}
