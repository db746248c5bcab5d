package cinder

import (
	"context"
	"errors"
	"time"

	"github.com/cinderlift/cinderlift/internal/oslo"
)

// ErrUnroutable is what Bus answers when no queue is bound to where a message was sent: it was not delivered.
var ErrUnroutable = errors.New("no queue takes this message")

// Bus is what this package needs of the message bus. Methods may be called concurrently and return soon after ctx is done.
type Bus interface {
	// Receive waits for a message or for the end of ctx, whose error it then returns. It reconnects by itself.
	Receive(ctx context.Context) (Message, error)

	// Cast sends c with the mandatory flag and waits for the broker's confirm. It does not retry. ErrUnroutable: not
	// delivered. Any other error leaves it open whether it was.
	Cast(ctx context.Context, exchange, key string, c oslo.Cast) error

	// Reply answers the call req. It retries for a while when the reply queue is away, and then answers ErrUnroutable.
	// Any other error leaves it open whether the caller got it; replying twice is harmless.
	Reply(ctx context.Context, req oslo.Request, r oslo.Reply) error

	// Notify publishes n. An error leaves it open whether it was published.
	Notify(ctx context.Context, n oslo.Notification) error

	// Heartbeats tells the caller of req, twice per req.MonitorTimeout, that we are still at it, until ctx ends. It
	// blocks until then and until no more heartbeat can leave.
	Heartbeats(ctx context.Context, req oslo.Request)
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
