package oslo

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// The seam between this package and the AMQP library. It is as narrow as what is
// used, and what is behind it behaves like AMQP 0-9-1: an error closes its channel,
// tags count from 1 on every channel, and a returned message comes before its confirm.

// connection is one AMQP connection. Its methods are safe for concurrent use.
type connection interface {
	// Declarer opens a channel to declare things on.
	Declarer() (declarerChannel, error)
	// Consumer opens a channel that takes one message at a time (prefetch 1).
	Consumer() (consumerChannel, error)
	// Publisher opens a channel in confirm mode.
	Publisher() (publisherChannel, error)
	// Getter opens a channel to look at messages one by one.
	Getter() (getterChannel, error)
	// Closed is closed when the connection is over; Err then says why.
	Closed() <-chan struct{}
	Err() error
	// Blocked sends the broker's reason when it stops reading from this connection
	// (a memory or disk alarm) and "" when it reads again. It closes with the connection.
	Blocked() <-chan string
	// Close says goodbye within the time given, and drops the socket after it.
	Close(within time.Duration)
}

// declarerChannel declares. The first error is its last: the broker closes it.
type declarerChannel interface {
	DeclareExchange(e exchange, passive bool) error
	DeclareQueue(q queue, passive bool) error
	Bind(queue, key, exchange string) error
	Close()
}

// consumerChannel takes messages from one queue. Not for concurrent use.
type consumerChannel interface {
	// Consume starts. The channel is closed by Cancel, by the broker's cancel and
	// with the AMQP channel; a message that is in it stays readable after Cancel.
	Consume(queue string) (<-chan incoming, error)
	// Cancel stops; when it returns no further message can arrive.
	Cancel() error
	Ack(tag uint64) error
	Requeue(tag uint64) error
	// Close returns what is not acknowledged to the queue. Without error it proves
	// that the broker has read everything sent on the channel before.
	Close() error
	// Err is why the channel is closed, nil while it is open.
	Err() error
}

// getterChannel looks at messages without a consumer. Not for concurrent use.
type getterChannel interface {
	// Get takes the next message; false when there is none.
	Get(queue string) (incoming, bool, error)
	Ack(tag uint64) error
	Requeue(tag uint64) error
	// Close returns what is not acknowledged, as that of a consumerChannel.
	Close() error
}

// publisherChannel publishes in confirm mode. One message at a time: a return carries
// no tag, so it can only be told apart if nothing else is under way.
type publisherChannel interface {
	// Publish may block for as long as the broker does not read.
	Publish(exchange, key string, mandatory bool, p publishing) (confirmation, error)
	// Returned takes one returned message, if there is one.
	Returned() (error, bool)
	Err() error
	Close() error
}

// confirmation of one publish.
type confirmation interface {
	Done() <-chan struct{} // closed when confirmed, refused, or the channel is gone
	Acked() bool
}

// exchange and queue as they are declared.
type exchange struct {
	name       string
	kind       string
	durable    bool
	autoDelete bool
}

type queue struct {
	name       string
	durable    bool
	autoDelete bool
	args       map[string]any
}

// incoming is a message as it was delivered.
type incoming struct {
	Tag             uint64
	Redelivered     bool
	Exchange        string
	RoutingKey      string
	ContentType     string
	ContentEncoding string
	Expiration      string
	Headers         map[string]any
	Body            []byte
}

// publishing is what is sent, apart from the properties that never vary.
type publishing struct {
	Body    []byte
	Headers map[string]any
	properties
}

// properties of a message that only vary in copies of what others sent. The zero value is what oslo.messaging sends.
type properties struct {
	contentType, contentEncoding, expiration string
}

// asSent are those of a copy of m.
func asSent(m incoming) properties { return properties{m.ContentType, m.ContentEncoding, m.Expiration} }

// dialFunc connects and logs in to one host within ctx.
type dialFunc func(ctx context.Context, t Transport, h Host, name string) (connection, error)

// brokerError is what the broker said when it closed a channel or a connection.
type brokerError struct {
	Code   int
	Reason string
}

func (e *brokerError) Error() string { return fmt.Sprintf("broker: %d %s", e.Code, e.Reason) }

// Codes of AMQP 0-9-1 that are told apart here.
const (
	codeAccessRefused      = 403
	codeNotFound           = 404
	codePreconditionFailed = 406
)

func brokerCode(err error) int {
	var be *brokerError
	if errors.As(err, &be) {
		return be.Code
	}
	return 0
}

// errChannelClosed is an operation on a channel that was closed before it, so the
// broker can't have seen it.
var errChannelClosed = errors.New("channel is closed")
