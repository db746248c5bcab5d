package cinder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
	"github.com/cinderlift/cinderlift/worker"
)

// fault is what goes wrong with one call of a fake: not applied, or applied and reported failed.
type fault struct {
	err     error
	applied bool
}

// faults is a queue of faults; a nil error lets the call through.
type faults struct {
	mu    sync.Mutex
	queue []fault
}

func (f *faults) next() fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.queue) == 0 {
		return fault{applied: true}
	}
	first := f.queue[0]
	f.queue = f.queue[1:]

	return first
}

// sent is one message as it would go over the wire.
type sent struct {
	kind, exchange, key string
	message             map[string]any
	context             oslo.Context
}

// fakeBus encodes everything with the real codec and keeps what got through.
type fakeBus struct {
	faults
	inbox chan Message
	sent  []sent

	// arrived is called when a result has got through; nil: whoever gets it ends in that moment.
	arrived func(s sent)
	beats   []oslo.Request // the single ones first
	on      int            // series that are running
}

func (b *fakeBus) Receive(ctx context.Context) (Message, error) {
	select {
	case m := <-b.inbox:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *fakeBus) send(s sent, m oslo.Message, err error) error {
	if err != nil {
		return err
	}
	f := b.next()
	if !f.applied {
		return f.err
	}
	var envelope struct {
		Message string `json:"oslo.message"`
	}
	if err := json.Unmarshal(m.Body, &envelope); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(envelope.Message), &s.message); err != nil {
		return err
	}
	b.mu.Lock()
	b.sent = append(b.sent, s)
	b.mu.Unlock()
	if b.arrived != nil && s.kind != "notify" {
		b.arrived(s)
	}

	return f.err
}

func (b *fakeBus) Cast(_ context.Context, exchange, key string, c oslo.Cast) error {
	m, err := oslo.EncodeCast(c)

	return b.send(sent{kind: "cast", exchange: exchange, key: key, context: c.Context}, m, err)
}

func (b *fakeBus) Reply(_ context.Context, req oslo.Request, r oslo.Reply) error {
	m, err := oslo.EncodeReply(req.MsgID, r)

	return b.send(sent{kind: "reply", key: req.ReplyQueue}, m, err)
}

func (b *fakeBus) Notify(_ context.Context, _ string, n oslo.Notification) error {
	m, err := oslo.EncodeNotification(n)

	return b.send(sent{kind: "notify", key: n.EventType}, m, err)
}

func (b *fakeBus) Heartbeat(_ context.Context, r oslo.Request) error {
	f := b.next()
	if f.applied {
		b.beats = append(b.beats, r)
	}

	return f.err
}

func (b *fakeBus) Heartbeats(_ context.Context, r oslo.Request) func() {
	b.beats = append(b.beats, r)
	b.on++

	return func() { b.on-- }
}

// fakeMessage is one delivery.
type fakeMessage struct {
	request    oslo.Request
	err        error
	expiration time.Duration
	ends       []string // ack, requeue, dead:<reason>
	deadErrs   []error  // of DeadLetter, one each
}

func (m *fakeMessage) Request() (oslo.Request, error) { return m.request, m.err }
func (m *fakeMessage) Redelivered() bool              { return false }
func (m *fakeMessage) Expiration() time.Duration      { return m.expiration }
func (m *fakeMessage) Ack() error                     { return m.end("ack") }
func (m *fakeMessage) Requeue() error                 { return m.end("requeue") }

func (m *fakeMessage) DeadLetter(_ context.Context, reason string) error {
	if len(m.deadErrs) > 0 {
		err := m.deadErrs[0]
		m.deadErrs = m.deadErrs[1:]

		return err
	}

	return m.end("dead:" + reason)
}

func (m *fakeMessage) end(how string) error {
	m.ends = append(m.ends, how)

	return nil
}

// fakeCinder is one volume.
type fakeCinder struct {
	faults
	volume worker.Volume
	gone   bool
	frees  int
	look   func() // runs before each look at the volume
	turn   int    // of the record: one more with every change of the status
}

// becomes is every change of the volume's status.
func (c *fakeCinder) becomes(status string) {
	c.volume.Status = status
	c.turn++
}

// after is what Cinder sets when an upload has ended.
func (c *fakeCinder) after() string {
	if c.volume.Attached {
		return "in-use"
	}

	return "available"
}

func (c *fakeCinder) Touched(context.Context, string) (status, at string, err error) {
	if c.look != nil {
		c.look()
	}
	if c.gone {
		return "", "", nil
	}

	return c.volume.Status, fmt.Sprint("turn ", c.turn), nil
}

var errAway = errors.New("connection refused")

func away(r worker.Reason) error {
	return &worker.Error{Op: "ask", Reason: r, Advice: worker.Retry, Err: errAway}
}

func refusal(r worker.Reason) error {
	return &worker.Error{Op: "ask", Reason: r, Advice: worker.GiveUp, Err: errors.New("403")}
}

func (c *fakeCinder) Volume(context.Context, string) (worker.Volume, error) {
	if c.look != nil {
		c.look()
	}
	if c.gone {
		return worker.Volume{}, refusal(worker.ReasonVolumeMissing)
	}

	return c.volume, nil
}

func (c *fakeCinder) ResetStatus(context.Context, string) error {
	f := c.next()
	if !f.applied {
		return f.err
	}
	if c.gone {
		return refusal(worker.ReasonVolumeMissing)
	}
	if c.volume.Status == worker.VolumeUploading {
		c.frees++
		c.becomes(c.after())
	}

	return f.err
}

// fakeGlance is one image.
type fakeGlance struct {
	faults
	image    worker.Image
	gone     bool
	discards int
}

func (g *fakeGlance) Image(context.Context, string) (worker.Image, error) {
	if g.gone {
		return worker.Image{}, refusal(worker.ReasonImageMissing)
	}

	return g.image, nil
}

func (g *fakeGlance) Discard(context.Context, string) error {
	f := g.next()
	if !f.applied {
		return f.err
	}
	if g.gone || g.image.Status == worker.ImageActive {
		return f.err
	}
	g.gone = true
	g.discards++

	return f.err
}
