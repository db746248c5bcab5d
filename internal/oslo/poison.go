package oslo

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"
)

// A message that ends every process that takes it would go round for ever, and take the pool with it. So the takers are
// counted that did not come back: neither settled it nor gave it back.
//
// A quorum queue counts them (x-delivery-count), in RabbitMQ before 4.3 also those that gave it back. A classic queue only
// says that there was one. There a message that comes again is replaced by a copy that says how many there were, before
// anybody looks into it; a message that is given back is replaced by a copy on any queue, so that giving back does not
// count. Copy first, then acknowledge: a crash in between makes two of it, which the journal tells from two requests.

// Headers of a dead letter; HeaderDeliveries is also that of a copy.
const (
	HeaderReason     = "x-cinderlift-reason"
	HeaderExchange   = "x-cinderlift-exchange"    // where the message was published
	HeaderRoutingKey = "x-cinderlift-routing-key" // and with which key
	HeaderBodySize   = "x-cinderlift-body-size"   // bytes before redaction
	HeaderTime       = "x-cinderlift-time"        // RFC 3339, UTC
	HeaderDeliveries = "x-cinderlift-deliveries"  // takers that did not come back
	HeaderWorker     = "x-cinderlift-worker"      // who put it aside
)

// brokerCount is the header of a quorum queue.
const brokerCount = "x-delivery-count"

// unread is how many processes may end over redacting a poisonous body before it is put aside without a look.
const unread = 3

// within bounds what is published to give a message back: it must not wait behind an alarm.
const within = 5 * time.Second

func deliveryCount(m incoming) int {
	n := intHeader(m.Headers, HeaderDeliveries)
	if _, ok := m.Headers[brokerCount]; ok {
		return n + intHeader(m.Headers, brokerCount)
	}
	if m.Redelivered {
		n++
	}
	return n
}

// intHeader reads a count; nonsense is 0.
func intHeader(h map[string]any, name string) int {
	n, ok := h[name].(int64)
	if !ok || n < 0 {
		return 0
	}
	return int(min(n, 1<<20))
}

func (d *Delivery) poison() bool {
	limit := d.bus.options.Poison
	return limit > 0 && d.DeliveryCount >= limit
}

func poisonous(count int) *DecodeError {
	return &DecodeError{Reason: ReasonPoison, Detail: fmt.Sprintf("%d workers took it and did not come back; it was not read", count)}
}

// recount reports whether d was replaced by a copy that carries the count. If that fails it is handed out as it is.
func (b *Bus) recount(ctx context.Context, d *Delivery) bool {
	_, counted := d.message.Headers[brokerCount]
	if counted || !d.message.Redelivered || d.poison() {
		return false
	}
	if err := d.replace(ctx); err != nil {
		b.log.Warn("the takers of a message can't be counted", "error", err)
		return d.gone(err)
	}
	return true
}

// gone: with the original lost there is nothing to hand out; the broker delivers it again.
func (d *Delivery) gone(err error) bool { return errors.Is(err, ErrDeliveryGone) }

// replace puts a copy into the queue and acknowledges the original. Unless the copy is confirmed, nothing is settled.
func (d *Delivery) replace(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.unsettled(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	if _, err := d.bus.publish.link.wait(ctx); err != nil { // a lost connection is mostly back in a moment
		return fmt.Errorf("copy message: %w: %w", ErrDisconnected, err)
	}
	if err := d.bus.publish.publish(ctx, "copy", "", d.bus.options.Topic, d.copied(), true); err != nil {
		return fmt.Errorf("copy message: %w", err)
	}
	return d.finish("acknowledge", func() error { return d.channel.Ack(d.message.Tag) })
}

// copied is the message with its count, whatever queue it is in.
func (d *Delivery) copied() Message {
	h := maps.Clone(d.message.Headers)
	if h == nil {
		h = map[string]any{}
	}
	delete(h, brokerCount)
	h[HeaderDeliveries], h[HeaderExchange], h[HeaderRoutingKey] = int64(d.DeliveryCount), d.exchange(), d.routingKey()
	return Message{Body: d.message.Body, Headers: h, properties: asSent(d.message)}
}

// exchange and routingKey are what the sender used.
func (d *Delivery) exchange() string {
	return textHeader(d.message.Headers, HeaderExchange, d.message.Exchange)
}
func (d *Delivery) routingKey() string {
	return textHeader(d.message.Headers, HeaderRoutingKey, d.message.RoutingKey)
}

func textHeader(h map[string]any, name, otherwise string) string {
	if s, ok := h[name].(string); ok && len(s) <= maxName {
		return s
	}
	return otherwise
}

// Requeue gives the message back, for any worker; it goes to the end of the queue, and it does not count against the
// message. Where the broker takes no copy within a few seconds it is put back in its place; on a quorum queue before
// RabbitMQ 4.3 that counts.
func (d *Delivery) Requeue() error {
	err := d.replace(context.Background())
	if err == nil || errors.Is(err, ErrSettled) || errors.Is(err, ErrDeliveryGone) {
		return err
	}
	return d.settle("requeue", func() error { return d.channel.Requeue(d.message.Tag) })
}

// deadBody is what may be kept of the message. Redacting reads the body, which may be what nobody survives.
func (d *Delivery) deadBody() []byte {
	o := d.bus.options
	if d.poison() && d.DeliveryCount >= o.Poison+unread {
		return withheld(d.message.Body)
	}
	return redactBody(d.message.Body, compressed(d.message), o.Limits)
}

func (d *Delivery) deadHeaders(reason string) map[string]any {
	if d.poison() {
		reason = string(ReasonPoison) + ": " + poisonous(d.DeliveryCount).Detail
	}
	if len(reason) > 1024 {
		reason = reason[:1024]
	}
	return map[string]any{
		HeaderReason: reason, HeaderExchange: d.exchange(), HeaderRoutingKey: d.routingKey(),
		HeaderBodySize: int64(d.BodySize), HeaderTime: time.Now().UTC().Format(time.RFC3339),
		HeaderDeliveries: int64(d.DeliveryCount), HeaderWorker: d.bus.options.Name,
	}
}
