package oslo

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// JSONContentType is the only content type that oslo.messaging reads
// (kombu rejects every other one before it looks at the body), and so do we.
const JSONContentType = "application/json"

// contextPrefix marks the flattened request context
// (oslo.messaging 8ea2d5b _drivers/amqp.py:61-90).
const contextPrefix = "_context_"

// replyPrefix starts every reply queue that oslo.messaging makes
// (_drivers/amqpdriver.py, _get_reply_q). A reply is sent to a queue that the
// message names; holding on to the prefix keeps a forged request from using the
// worker to write into somebody's work queue.
const replyPrefix = "reply_"

// maxName is the longest queue or exchange name AMQP 0-9-1 can carry (shortstr).
const maxName = 255

// maxMonitorTimeout caps what a caller may ask for: a longer monitoring period
// only means that heartbeats come more often than needed.
const maxMonitorTimeout = 24 * time.Hour

// Reason says why a message could not be decoded. The set is closed; a Reason is
// safe as a metric label and is what the dead-letter queue shows.
type Reason string

// The reasons.
const (
	ReasonContentType  Reason = "content-type"
	ReasonCompressed   Reason = "compressed"
	ReasonTooLarge     Reason = "too-large"
	ReasonTooDeep      Reason = "too-deep"
	ReasonTooMany      Reason = "too-many-elements"
	ReasonNotJSON      Reason = "not-json"
	ReasonEnvelope     Reason = "envelope"
	ReasonVersion      Reason = "version"
	ReasonMissingField Reason = "missing-field"
	ReasonWrongType    Reason = "wrong-type"
	ReasonPoison       Reason = "poison" // its takers did not come back from it, so it was not even read
)

// DecodeError is the error of Decode. Detail never holds a value from the
// message, only names and sizes, so that it can be logged and stored.
type DecodeError struct {
	Reason Reason
	Field  string // the key concerned, or empty
	Detail string
}

func (e *DecodeError) Error() string {
	if e.Field == "" {
		return fmt.Sprintf("decode message: %s: %s", e.Reason, e.Detail)
	}
	return fmt.Sprintf("decode message: %s: field %q: %s", e.Reason, e.Field, e.Detail)
}

// Request is one RPC request: a call if it can be answered, else a cast.
type Request struct {
	Method    string
	Namespace string                     // empty: the null namespace
	Version   string                     // as sent; absent on the wire means "1.0"
	Args      map[string]json.RawMessage // never nil after Decode
	Context   Context

	MsgID      string // names the call; empty for a cast
	ReplyQueue string // empty for a cast
	UniqueID   string // names the message; may be empty

	// MonitorTimeout is the call_monitor_timeout of the caller in whole seconds;
	// 0 means that it must not be sent heartbeats.
	MonitorTimeout time.Duration
}

// IsCall reports whether the sender waits for a reply.
func (r Request) IsCall() bool { return r.MsgID != "" && r.ReplyQueue != "" }

// Decode reads one message body. Every error is a *DecodeError. With the error it
// returns what it could read (Method, MsgID and ReplyQueue as far as they were
// valid), so that a caller who waits can be told.
//
// The envelope may be missing; then the body itself is the message, as in
// oslo.messaging (_drivers/common.py:297-339).
func Decode(contentType string, body []byte, l Limits) (Request, error) {
	if contentType != JSONContentType {
		return Request{}, &DecodeError{Reason: ReasonContentType,
			Detail: fmt.Sprintf("want exactly %q, got %d other bytes", JSONContentType, len(contentType))}
	}
	l = l.withDefaults()
	message, err := unwrap(body, l)
	if err != nil {
		return Request{}, err
	}
	return requestOf(message)
}

// unwrap takes the envelope off.
func unwrap(body []byte, l Limits) (map[string]json.RawMessage, error) {
	top, err := object(body, l)
	if err != nil {
		return nil, err
	}
	version, hasVersion := top["oslo.version"]
	inner, hasMessage := top["oslo.message"]
	if !hasVersion || !hasMessage {
		return top, nil
	}
	var v, text string
	if err := stringOf(version, &v); err != nil {
		return nil, &DecodeError{Reason: ReasonEnvelope, Field: "oslo.version", Detail: "is not a string"}
	}
	if !Compatible("2.0", v) {
		return nil, &DecodeError{Reason: ReasonVersion, Field: "oslo.version", Detail: "is not compatible with 2.0"}
	}
	if err := stringOf(inner, &text); err != nil {
		return nil, &DecodeError{Reason: ReasonEnvelope, Field: "oslo.message", Detail: "is not a string"}
	}
	return object([]byte(text), l)
}

// object splits a JSON object into its members after the bounds have been checked.
func object(data []byte, l Limits) (map[string]json.RawMessage, error) {
	if err := l.check(data); err != nil {
		return nil, err
	}
	if trimmed := bytes.TrimLeft(data, " \t\r\n"); len(trimmed) == 0 || trimmed[0] != '{' {
		if !json.Valid(data) {
			return nil, &DecodeError{Reason: ReasonNotJSON, Detail: fmt.Sprintf("%d bytes", len(data))}
		}
		return nil, &DecodeError{Reason: ReasonEnvelope, Detail: "is not an object"}
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(data, &members); err != nil {
		return nil, &DecodeError{Reason: ReasonNotJSON, Detail: fmt.Sprintf("%d bytes", len(data))}
	}
	return members, nil
}

// requestOf goes on after the first wrong field, so that the fields that a reply
// needs are known whatever else is wrong; the first error is the one returned.
func requestOf(message map[string]json.RawMessage) (Request, error) {
	f := fields{message: message}
	r := Request{
		Method:         f.required("method"),
		Namespace:      f.optional("namespace"),
		Version:        f.version(),
		Args:           f.args(),
		Context:        contextOf(message),
		UniqueID:       f.optional("_unique_id"),
		MonitorTimeout: f.monitorTimeout(),
	}
	r.MsgID, r.ReplyQueue = f.replyTo()
	if f.err != nil {
		return r, f.err
	}
	return r, nil
}

// fields reads members and remembers the first thing that was wrong.
type fields struct {
	message map[string]json.RawMessage
	err     *DecodeError
}

func (f *fields) fail(reason Reason, field, detail string) {
	if f.err == nil {
		f.err = &DecodeError{Reason: reason, Field: field, Detail: detail}
	}
}

func (f *fields) required(key string) string {
	raw, ok := f.message[key]
	if !ok {
		f.fail(ReasonMissingField, key, "is missing")
		return ""
	}
	var s string
	if err := stringOf(raw, &s); err != nil {
		f.fail(ReasonWrongType, key, "is not a string")
	}
	if s == "" {
		f.fail(ReasonMissingField, key, "is empty")
	}
	return s
}

// optional reads a string for which absent and null mean the same.
func (f *fields) optional(key string) string {
	raw, ok := f.message[key]
	if !ok || isNull(raw) {
		return ""
	}
	var s string
	if err := stringOf(raw, &s); err != nil {
		f.fail(ReasonWrongType, key, "is not a string")
	}
	return s
}

// version: absent means 1.0, but null is no version at all
// (oslo.messaging 8ea2d5b rpc/dispatcher.py:267-320).
func (f *fields) version() string {
	raw, ok := f.message["version"]
	if !ok {
		return "1.0"
	}
	var s string
	if err := stringOf(raw, &s); err != nil {
		f.fail(ReasonWrongType, "version", "is not a string")
	}
	return s
}

func (f *fields) args() map[string]json.RawMessage {
	raw, ok := f.message["args"]
	if !ok {
		return map[string]json.RawMessage{}
	}
	var args map[string]json.RawMessage
	if err := json.Unmarshal(raw, &args); err != nil || args == nil {
		f.fail(ReasonWrongType, "args", "is not an object")
		return map[string]json.RawMessage{}
	}
	return args
}

// monitorTimeout is lenient like its upstream (rpc/dispatcher.py:232-265): what is
// not a number, or below two seconds, means no heartbeats.
func (f *fields) monitorTimeout() time.Duration {
	var seconds float64
	if err := json.Unmarshal(f.message["_timeout"], &seconds); err != nil || seconds < 2 {
		return 0
	}
	if seconds >= maxMonitorTimeout.Seconds() {
		return maxMonitorTimeout
	}
	return time.Duration(int64(seconds)) * time.Second
}

// replyTo: _msg_id alone decides between call and cast (_drivers/amqpdriver.py:205).
func (f *fields) replyTo() (msgID, queue string) {
	msgID, queue = f.optional("_msg_id"), f.optional("_reply_q")
	if msgID == "" {
		return "", ""
	}
	if queue == "" {
		f.fail(ReasonMissingField, "_reply_q", "is missing in a call")
		return "", ""
	}
	if !strings.HasPrefix(queue, replyPrefix) || len(queue) > maxName {
		f.fail(ReasonWrongType, "_reply_q", "is not the name of a reply queue")
		return "", ""
	}
	return msgID, queue
}

// stringOf is strict where json.Unmarshal is not: null is no string.
func stringOf(raw json.RawMessage, s *string) error {
	if isNull(raw) {
		return &DecodeError{Reason: ReasonWrongType, Detail: "is null"}
	}
	return json.Unmarshal(raw, s)
}

func isNull(raw json.RawMessage) bool { return string(bytes.TrimSpace(raw)) == "null" }
