package oslo

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// Message is an encoded body, ready to be published with the properties that
// oslo.messaging gives to every message (see Bus.Publish).
type Message struct {
	Body     []byte
	UniqueID string         // the _unique_id in the body, for the log
	Headers  map[string]any // nil for everything that Python peers read

	properties
}

// Cast is an outgoing request that nobody answers.
type Cast struct {
	Method    string
	Namespace string // empty: the null namespace, not sent
	Version   string // empty: not sent, which means "1.0"
	Args      any    // must encode as a JSON object; nil means {}
	Context   Context

	// WithSecret sends the user's token along. Only for a message that goes back
	// to the service the token came from.
	WithSecret bool

	// UniqueID is the _unique_id; empty: a fresh one. A server ignores a message whose id is among the last 16 that it
	// has received (oslo.messaging 8ea2d5b _drivers/amqp.py:94-116). It does not acknowledge it either, so the broker
	// delivers it once more to whoever comes after that process: only for what must not be done twice at the same time.
	UniqueID string
}

// EncodeCast encodes c.
func EncodeCast(c Cast) (Message, error) {
	if c.Method == "" {
		return Message{}, errors.New("encode cast: no method")
	}
	args := c.Args
	if args == nil {
		args = struct{}{}
	}
	raw, err := marshal(args)
	if err != nil {
		return Message{}, fmt.Errorf("encode cast of %s: arguments: %w", c.Method, err)
	}
	if raw[0] != '{' {
		return Message{}, fmt.Errorf("encode cast of %s: arguments are not an object", c.Method)
	}
	body := []member{{"method", c.Method}, {"args", json.RawMessage(raw)}}
	body = appendText(body, "namespace", c.Namespace)
	body = appendText(body, "version", c.Version)
	if c.UniqueID == "" {
		c.UniqueID = newID()
	}
	return envelope(append(body, c.Context.members(c.WithSecret)...), c.UniqueID)
}

// Reply is the answer to a call. The zero value is a success with the result null.
type Reply struct {
	Result    any
	Failure   *Failure
	Heartbeat bool // "I am still at it": not the end of the call
}

// EncodeReply encodes the answer to the call msgID with a fresh _unique_id. All five
// keys are always there: a Python caller raises KeyError without failure, and waits
// until its timeout without ending (_drivers/amqpdriver.py:190-202).
func EncodeReply(msgID string, r Reply) (Message, error) {
	var failure any
	if r.Failure != nil {
		text, err := r.Failure.encode()
		if err != nil {
			return Message{}, fmt.Errorf("encode reply to %s: failure: %w", msgID, err)
		}
		failure, r.Result = string(text), nil
	}
	if r.Heartbeat {
		failure, r.Result = nil, nil
	}
	message, err := envelope([]member{
		{"result", r.Result}, {"failure", failure}, {"ending", !r.Heartbeat}, {"_msg_id", msgID},
	}, newID())
	if err != nil {
		return Message{}, fmt.Errorf("encode reply to %s: %w", msgID, err)
	}
	return message, nil
}

// Priority of a notification.
type Priority string

// The priorities that listeners know (oslo.messaging 8ea2d5b notify/dispatcher.py:27).
const (
	Audit    Priority = "AUDIT"
	Debug    Priority = "DEBUG"
	Info     Priority = "INFO"
	Warn     Priority = "WARN"
	Error    Priority = "ERROR"
	Critical Priority = "CRITICAL"
	Sample   Priority = "SAMPLE"
)

// Notification is one event for whoever listens.
type Notification struct {
	MessageID   string // a UUID; the same one when the same event is published again
	PublisherID string // <service>.<host>
	EventType   string
	Priority    Priority // empty: Info
	Payload     any
	Timestamp   time.Time // when it happened
	Context     Context   // only its ids are sent

	// Bare leaves the envelope out, as oslo's driver "messaging" does; the
	// zero value is its "messagingv2".
	Bare bool
}

// EncodeNotification encodes n with a fresh _unique_id: a listener that meets a
// known one neither acknowledges nor rejects it (_drivers/amqpdriver.py:387-393).
func EncodeNotification(n Notification) (Message, error) {
	if _, err := uuid.Parse(n.MessageID); err != nil {
		return Message{}, fmt.Errorf("encode notification %s: message id: %w", n.EventType, err)
	}
	body := []member{
		{"message_id", n.MessageID}, {"publisher_id", n.PublisherID}, {"event_type", n.EventType},
		{"priority", n.priority()}, {"payload", n.Payload}, {"timestamp", pythonTime(n.Timestamp)},
	}
	for _, name := range [...]string{"request_id", "global_request_id", "project_id", "user_id"} {
		if raw, ok := n.Context.Value(name); ok {
			body = append(body, member{contextPrefix + name, raw})
		}
	}
	if n.Bare {
		return bare(body, newID())
	}
	return envelope(body, newID())
}

func (n Notification) priority() Priority {
	if n.Priority == "" {
		return Info
	}
	return Priority(strings.ToUpper(string(n.Priority)))
}

// pythonTime is str(datetime): naive UTC, and no fraction when there are no microseconds.
func pythonTime(t time.Time) string {
	t = t.UTC()
	if t.Nanosecond()/1000 == 0 {
		return t.Format("2006-01-02 15:04:05")
	}
	return t.Format("2006-01-02 15:04:05.000000")
}

// member is one key of a JSON object whose order matters to the eye only.
type member struct {
	key   string
	value any
}

func appendText(body []member, key, text string) []member {
	if text == "" {
		return body
	}
	return append(body, member{key, text})
}

// envelope writes the two JSON layers (_drivers/common.py:66-69, 288-294).
func envelope(body []member, id string) (Message, error) {
	m, err := bare(body, id)
	if err != nil {
		return Message{}, err
	}
	m.Body, err = marshalMembers([]member{{"oslo.version", "2.0"}, {"oslo.message", string(m.Body)}})
	return m, err
}

func bare(body []member, id string) (Message, error) {
	text, err := marshalMembers(append(body, member{"_unique_id", id}))
	if err != nil {
		return Message{}, err
	}
	return Message{Body: text, UniqueID: id}, nil
}

// newID is uuid4().hex.
func newID() string { return strings.ReplaceAll(uuid.NewString(), "-", "") }

func marshalMembers(members []member) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range members {
		if i > 0 {
			b.WriteByte(',')
		}
		key, err := marshal(m.key)
		if err != nil {
			return nil, err
		}
		value, err := marshal(m.value)
		if err != nil {
			return nil, fmt.Errorf("key %q: %w", m.key, err)
		}
		b.Write(key)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal is json.Marshal without HTML escapes, so that raw values pass unchanged.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
