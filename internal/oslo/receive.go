package oslo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// ErrDeliveryGone is settling a delivery whose channel is gone. The broker has
// delivered the message again, or will; nothing was done to another message.
var ErrDeliveryGone = errors.New("delivery is gone: the broker delivers it again")

// ErrSettled is settling a delivery a second time.
var ErrSettled = errors.New("delivery is already settled")

// errPaused ends a wait for a message; it never leaves this package.
var errPaused = errors.New("intake is paused")

// Delivery is one message, out of the queue but not gone from the broker until it is
// settled by exactly one of Ack, Requeue and DeadLetter. It has an AMQP channel of its
// own, so nothing that happens to one delivery touches another.
//
// The broker takes an unsettled delivery back after its consumer timeout
// (30 minutes unless configured): settle in seconds, work afterwards.
type Delivery struct {
	Request     Request
	DecodeError error // not nil: there is no request, only a message for the dead letters

	Redelivered   bool
	DeliveryCount int           // takers that neither settled it nor gave it back
	Expiration    time.Duration // how long from publishing the caller waits; 0: unlimited
	BodySize      int           // bytes

	bus     *Bus
	message incoming
	channel consumerChannel

	mu      sync.Mutex
	settled bool
}

// Receive waits for a message and takes it. While nobody waits nothing is taken, so the
// length of the queue is the work that nobody has begun. It outlives lost
// connections and pauses; its only error is that of ctx, and then no message was
// taken (one that arrived in that moment goes back to the queue).
//
// Health probes (oslo_rpc_server_ping) are answered here and not handed out.
func (b *Bus) Receive(ctx context.Context) (*Delivery, error) {
	for {
		d, err := b.receive(ctx)
		if ctx.Err() != nil {
			if d != nil {
				_ = d.channel.Close() // puts it back; if that fails the broker does
			}
			return nil, context.Cause(ctx)
		}
		if err == nil && !b.recount(ctx, d) && !b.answerPing(ctx, d) {
			return d, nil
		}
	}
}

// receive is one attempt on the connection there is.
func (b *Bus) receive(ctx context.Context) (*Delivery, error) {
	select {
	case <-b.intake.whenOpen():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	s, err := b.consume.wait(ctx)
	if err != nil {
		return nil, err
	}
	d, err := b.receiveOn(ctx, s)
	if err == nil || errors.Is(err, errPaused) || ctx.Err() != nil {
		return d, err
	}
	// The queue or the connection is gone: declare everything anew.
	s.fail(err)
	select {
	case <-s.over:
	case <-ctx.Done():
	}
	return nil, err
}

// receiveOn opens a channel, takes one message and leaves the channel to it.
//
// One channel per waiting slot with prefetch 1, cancelled when its message has come:
// a shared consumer with a larger prefetch would hold messages back that nobody
// waits for, and basic.get would have to poll. It costs four round trips per
// message, some milliseconds in front of a job of seconds to hours.
func (b *Bus) receiveOn(ctx context.Context, s *session) (*Delivery, error) {
	ch, err := s.Consumer()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	messages, err := ch.Consume(b.options.Topic)
	if err != nil {
		return nil, fmt.Errorf("consume from %s: %w", b.options.Topic, err)
	}
	m, ok, err := b.first(ctx, ch, messages)
	if err == nil && ok {
		return b.delivery(m, ch), nil
	}
	closeErr := ch.Close()
	if err == nil {
		err = fmt.Errorf("consume from %s: cancelled by the broker", b.options.Topic)
		if closeErr != nil {
			err = fmt.Errorf("consume from %s: %w", b.options.Topic, closeErr)
		}
	}
	return nil, err
}

// first waits for the one message and stops the consumer, in this order: while the
// message is unsettled the prefetch of 1 keeps a second one away, after Cancel
// nothing does any more.
func (b *Bus) first(ctx context.Context, ch consumerChannel, messages <-chan incoming) (m incoming, ok bool, err error) {
	select {
	case m, ok = <-messages:
		if !ok {
			return m, false, nil
		}
		return m, true, ch.Cancel()
	case <-ctx.Done():
		return m, false, context.Cause(ctx) // closing the channel puts back what arrives now
	case <-b.intake.whenShut():
	}
	if err := ch.Cancel(); err != nil {
		return m, false, err
	}
	// Handing out what was under way costs nothing; putting it back would count as
	// a failed delivery on a quorum queue.
	if m, ok = <-messages; ok {
		return m, true, nil
	}
	return m, false, errPaused
}

func (b *Bus) delivery(m incoming, ch consumerChannel) *Delivery {
	d := &Delivery{
		DeliveryCount: deliveryCount(m), Expiration: expiration(m.Expiration),
		BodySize: len(m.Body), bus: b, message: m, channel: ch,
	}
	d.Redelivered = m.Redelivered || d.DeliveryCount > 0
	if d.poison() {
		d.DecodeError = poisonous(d.DeliveryCount)
	} else {
		d.Request, d.DecodeError = decodeIncoming(m, b.options.Limits)
	}
	if f := b.options.Events.Redelivered; f != nil && d.Redelivered {
		f()
	}
	var de *DecodeError
	if f := b.options.Events.Undecodable; f != nil && errors.As(d.DecodeError, &de) {
		f(de.Reason)
	}
	return d
}

// decodeIncoming looks at what Decode can't see. Compression is refused: it is
// experimental upstream, off by default, and would hide the size of a body.
func decodeIncoming(m incoming, l Limits) (Request, error) {
	if compressed(m) {
		return Request{}, &DecodeError{Reason: ReasonCompressed, Detail: "unset kombu_compression in the sender's configuration"}
	}
	switch m.ContentEncoding {
	case "", "utf-8", "UTF-8", "us-ascii":
	default:
		return Request{}, &DecodeError{Reason: ReasonContentType, Field: "content_encoding", Detail: "is not utf-8"}
	}
	return Decode(m.ContentType, m.Body, l)
}

func compressed(m incoming) bool {
	_, ok := m.Headers["compression"]
	return ok
}

// expiration is in milliseconds.
func expiration(s string) time.Duration {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return time.Duration(n) * time.Millisecond
}

// answerPing reports whether d was a probe. It is acknowledged whatever becomes of the
// answer: a probe that can't be answered has failed as it should.
func (b *Bus) answerPing(ctx context.Context, d *Delivery) bool {
	if d.DecodeError != nil || !d.Request.isPing() {
		return false
	}
	if err := d.Ack(); err == nil && d.Request.IsCall() {
		m, err := EncodeReply(d.Request.MsgID, Reply{Result: "pong"})
		if err == nil {
			err = b.publish.publish(ctx, "reply", "", d.Request.ReplyQueue, m, true)
		}
		if err != nil {
			b.log.Warn("ping is not answered", "msg_id", d.Request.MsgID, "error", err)
		}
	}
	return true
}

// Ack removes the message from the queue. Without error the broker has done it.
func (d *Delivery) Ack() error {
	return d.settle("acknowledge", func() error { return d.channel.Ack(d.message.Tag) })
}

// DeadLetter publishes the message, without its secrets, to the dead-letter exchange
// and removes it from the queue after the broker has confirmed that. If it
// can't be published the delivery is not settled. If only the removal fails
// (ErrDeliveryGone) the message is in both places: dead letters are at least once.
func (d *Delivery) DeadLetter(ctx context.Context, reason string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unsettled(); err != nil {
		return err
	}
	o := d.bus.options
	m := Message{Body: d.deadBody(), Headers: d.deadHeaders(reason)}
	if err := d.bus.publish.publish(ctx, "dead-letter", o.DeadLetter, d.message.RoutingKey, m, true); err != nil {
		return fmt.Errorf("dead-letter message to %s: %w", o.DeadLetter, err)
	}
	return d.finish("acknowledge", func() error { return d.channel.Ack(d.message.Tag) })
}

func (d *Delivery) settle(verb string, f func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unsettled(); err != nil {
		return err
	}
	return d.finish(verb, f)
}

// unsettled refuses before anything is sent. The channel is the delivery's own and
// is never reopened: that is what keeps an old tag from meeting a new message.
func (d *Delivery) unsettled() error {
	if d.settled {
		return ErrSettled
	}
	if err := d.channel.Err(); err != nil {
		d.settled = true
		return fmt.Errorf("%w (%w)", ErrDeliveryGone, err)
	}
	return nil
}

// finish sends and then closes the channel: AMQP does not answer an acknowledgement,
// but the answer to the close proves that the broker has read it.
func (d *Delivery) finish(verb string, f func() error) error {
	d.settled = true
	if err := f(); err != nil {
		return fmt.Errorf("%s: %w (%w)", verb, ErrDeliveryGone, err)
	}
	if err := d.channel.Close(); err != nil {
		return fmt.Errorf("%s: %w (%w)", verb, ErrDeliveryGone, err)
	}
	return nil
}
