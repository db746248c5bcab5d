package cinder

import (
	"context"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
)

// Bus is what this package needs of the message bus; [OnBus] makes one of internal/oslo's. Methods may be called
// concurrently and return soon after ctx is done. Their errors tell apart: oslo.ErrUnroutable (no queue took it),
// oslo.ErrReplyQueueGone (and it has been gone for a while), oslo.ErrRefused (the broker will not have it). Any other
// leaves it open whether the message was delivered, and may pass.
type Bus interface {
	// Receive waits for a message or for the end of ctx, whose error it then returns. It reconnects by itself.
	Receive(ctx context.Context) (Message, error)

	// Cast sends c with the mandatory flag and waits for the broker's confirm. It does not retry.
	Cast(ctx context.Context, exchange, key string, c oslo.Cast) error

	// Reply answers the call r. It retries for a minute, as oslo.messaging does; replying twice is harmless.
	Reply(ctx context.Context, r oslo.Request, reply oslo.Reply) error

	// Notify publishes n to topic. It does not retry.
	Notify(ctx context.Context, topic string, n oslo.Notification) error

	// Heartbeat tells the caller of r once that we are at it. It does not retry.
	Heartbeat(ctx context.Context, r oslo.Request) error

	// Heartbeats does so twice per r.MonitorTimeout, for the first time after one period, until ctx ends or stop is
	// called. After stop has returned, no heartbeat follows.
	Heartbeats(ctx context.Context, r oslo.Request) (stop func())
}

// Message is one message taken from the queue. It must be settled exactly once, by Ack, Requeue or DeadLetter.
type Message interface {
	// Request is the decoded message. With an error it holds what could be read, as oslo.Decode does.
	Request() (oslo.Request, error)

	// Redelivered reports whether the broker has handed it out before.
	Redelivered() bool

	// Expiration is how long the sender wanted it to wait in the queue, which for a call is how long the caller waits;
	// 0: for ever.
	Expiration() time.Duration

	Ack() error
	Requeue() error

	// DeadLetter puts the message, redacted, into the dead-letter queue with reason in a header, waits for the
	// confirm, and then acknowledges it. Without the confirm it stays unacknowledged.
	DeadLetter(ctx context.Context, reason string) error
}

// OnBus makes the bus of internal/oslo a Bus.
func OnBus(b *oslo.Bus) Bus { return bus{b} }

type bus struct{ *oslo.Bus }

func (b bus) Receive(ctx context.Context) (Message, error) {
	d, err := b.Bus.Receive(ctx)
	if err != nil {
		return nil, err
	}

	return message{d}, nil
}

func (b bus) Heartbeat(ctx context.Context, r oslo.Request) error {
	m, err := oslo.EncodeReply(r.MsgID, oslo.Reply{Heartbeat: true})
	if err != nil {
		return err
	}

	return b.Publish(ctx, "", r.ReplyQueue, m, true)
}

type message struct{ d *oslo.Delivery }

func (m message) Request() (oslo.Request, error) { return m.d.Request, m.d.DecodeError }
func (m message) Redelivered() bool              { return m.d.Redelivered }
func (m message) Expiration() time.Duration      { return m.d.Expiration }
func (m message) Ack() error                     { return m.d.Ack() }
func (m message) Requeue() error                 { return m.d.Requeue() }

func (m message) DeadLetter(ctx context.Context, reason string) error {
	return m.d.DeadLetter(ctx, reason)
}
