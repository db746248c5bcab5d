package cinder

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// origin is what has to be known of a request to answer it later, in any process. It is kept in the journal with the
// job, so it holds no secret: oslo.Context leaves the token and the service catalogue out when it is encoded.
type origin struct {
	Context   oslo.Context    `json:"context"`
	ImageMeta json.RawMessage `json:"image_meta"`
	UniqueID  string          `json:"unique_id,omitempty"` // of the message, for logs
	Received  time.Time       `json:"received"`
	Done      *done           `json:"done,omitempty"`
	Call      *call           `json:"call,omitempty"`
}

// call is who waits for a reply.
type call struct {
	MsgID      string `json:"msg_id"`
	ReplyQueue string `json:"reply_queue"`

	// MonitorSeconds is after how much silence the caller gives up; 0: it must not be sent heartbeats.
	MonitorSeconds int `json:"monitor_seconds,omitempty"`

	// Deadline is when the caller has given up at the latest: the message's expiration, counted from when we took it.
	// Zero: not known.
	Deadline time.Time `json:"deadline,omitzero"`
}

func newOrigin(r oslo.Request, q request, expiration time.Duration, now time.Time) origin {
	o := origin{Context: r.Context, ImageMeta: q.imageMeta, UniqueID: r.UniqueID, Received: now.UTC(), Done: q.done}
	if !r.IsCall() {
		return o
	}
	o.Done = nil // one answer is enough, and the caller's is the one it waits for
	o.Call = &call{MsgID: r.MsgID, ReplyQueue: r.ReplyQueue, MonitorSeconds: int(r.MonitorTimeout / time.Second)}
	if expiration > 0 {
		o.Call.Deadline = now.Add(expiration).UTC()
	}

	return o
}

// originOf reads what newOrigin made. The journal is read with the same distrust as the bus: a result is only ever sent
// where a request could have asked it to be sent.
func originOf(j worker.Job, exchange string) (origin, error) {
	var o origin
	if err := json.Unmarshal(j.Origin, &o); err != nil {
		return origin{}, fmt.Errorf("read origin of job %s: %w", j.Key(), err)
	}
	if o.Done == nil {
		return o, nil
	}
	if err := o.Done.check(exchange); err != nil {
		o.Done = nil

		return o, fmt.Errorf("read origin of job %s: %w", j.Key(), err)
	}

	return o, nil
}

// request is what the bus needs to reply.
func (c *call) request() oslo.Request {
	return oslo.Request{
		Method: methodCopy, MsgID: c.MsgID, ReplyQueue: c.ReplyQueue,
		MonitorTimeout: time.Duration(c.MonitorSeconds) * time.Second,
	}
}

// private is the context with the user's token, if this process took the request itself.
func private(j worker.Job) (oslo.Context, bool) {
	c, ok := j.Private.(oslo.Context)

	return c, ok && !c.AuthToken().IsZero()
}
