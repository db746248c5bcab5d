package oslo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"time"
)

// DeadLetters is the dead-letter queue as an operator looks at it. Not for concurrent use. Close it.
//
// Looking takes every message and puts it back. On a classic queue that costs nothing. On a quorum queue of RabbitMQ
// before 4.3 it counts as a delivery, and from RabbitMQ 4.0 on a quorum queue drops a message after 20 of them unless a
// policy says otherwise. So a message that has been looked at ten times is replaced by a copy that begins to count anew,
// and so is one that the broker put there by itself (its time was up, or the queue's delivery limit reached): that one
// still holds the user's token, its copy does not. The copy is confirmed before the original goes. While somebody looks,
// others see an empty queue.
type DeadLetters struct {
	options Options
	c       connection
}

// Bounds of one look.
const (
	looksMost     = 10       // before a message is replaced by a copy
	deadBytesMost = 64 << 20 // held at a time; what is beyond stays in the queue, unseen
)

// ErrWithheld is replaying a message whose body was not kept.
var ErrWithheld = errors.New("its body was not kept, so it can't be published again")

// Dead is one dead letter. Nothing in it is secret.
type Dead struct {
	Index      int       // place in the queue at this look, from 1
	ID         string    // the same at every look: the _unique_id of the message, or made of what is left of it
	Reason     string    // why it is here
	Time       time.Time // since when; zero: not known
	Deliveries int       // takers that did not come back from it
	Worker     string    // who put it here; empty: the broker
	Exchange   string    // where it had been published
	RoutingKey string
	BodySize   int    // bytes, as it had been published
	Body       []byte // redacted

	Request     Request // what could be read
	DecodeError error
}

// OpenDead connects to the first host that answers. Of o the transport, the names and the queue type count.
func OpenDead(ctx context.Context, o Options) (*DeadLetters, error) {
	b, err := New(o)
	if err != nil {
		return nil, err
	}
	o = b.options
	var errs []error
	for _, h := range o.Transport.Hosts {
		c, err := o.dial(ctx, o.Transport, h, o.Name+" dead letters")
		if err == nil {
			return &DeadLetters{options: o, c: c}, nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", h.Address(), err))
	}
	return nil, errors.Join(errs...)
}

// Close ends the connection.
func (d *DeadLetters) Close() { d.c.Close(closeWithin) }

// List shows what is there, oldest first, and leaves it there.
func (d *DeadLetters) List(ctx context.Context) ([]Dead, error) {
	var list []Dead
	err := d.look(ctx, func(l letter) error {
		list = append(list, l.Dead)
		if l.redacted && l.looks < looksMost {
			return nil
		}
		return l.renew(ctx)
	})
	return list, err
}

// Replay publishes those that pick picks to the work queue again, where a worker takes them as new requests: a job that
// the journal has already is recognised. What it has published it removes from here, after the broker's confirm; a crash
// or a lost answer in between leaves it in both places. It answers what it has published; the error tells of the others.
func (d *DeadLetters) Replay(ctx context.Context, pick func(Dead) bool) ([]Dead, error) {
	return d.each(ctx, pick, letter.replay)
}

// Drop removes those that pick picks, and answers them.
func (d *DeadLetters) Drop(ctx context.Context, pick func(Dead) bool) ([]Dead, error) {
	return d.each(ctx, pick, func(l letter, _ context.Context) error { return l.remove() })
}

func (d *DeadLetters) each(ctx context.Context, pick func(Dead) bool, f func(letter, context.Context) error) (done []Dead, err error) {
	var errs []error
	err = d.look(ctx, func(l letter) error {
		if !pick(l.Dead) {
			return nil
		}
		if err := f(l, ctx); err != nil {
			errs = append(errs, fmt.Errorf("dead letter %s: %w", l.ID, err))
			return nil
		}
		done = append(done, l.Dead)
		return nil
	})
	return done, errors.Join(append(errs, err)...)
}

// look takes all messages first and visits them then: one that is put back at once would be taken again. What no visit
// has settled goes back when the channel is closed, at the latest by the end of the process.
func (d *DeadLetters) look(ctx context.Context, visit func(letter) error) error {
	ch, err := d.c.Getter()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	all, err := d.take(ctx, ch)
	if brokerCode(err) == codeNotFound {
		return nil // no worker has been here yet
	}
	for i := 0; err == nil && i < len(all); i++ {
		if err = ctx.Err(); err == nil {
			err = visit(d.letter(ch, i+1, all[i]))
		}
	}
	// The answer to the close proves that the broker has read every acknowledgement.
	if closeErr := ch.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("settle dead letters: %w", closeErr)
	}
	return err
}

func (d *DeadLetters) take(ctx context.Context, ch getterChannel) (all []incoming, err error) {
	size := 0
	for size < deadBytesMost && ctx.Err() == nil {
		m, ok, err := ch.Get(d.options.DeadLetter)
		if err != nil {
			return nil, fmt.Errorf("look into %s: %w", d.options.DeadLetter, err)
		}
		if !ok {
			return all, nil
		}
		size += len(m.Body)
		all = append(all, m)
	}
	return all, ctx.Err()
}

// letter is a dead letter in hand.
type letter struct {
	Dead
	d        *DeadLetters
	ch       getterChannel
	m        incoming
	redacted bool
	looks    int
}

func (d *DeadLetters) letter(ch getterChannel, index int, m incoming) letter {
	l := letter{d: d, ch: ch, m: m, looks: intHeader(m.Headers, brokerCount)}
	_, l.redacted = m.Headers[HeaderReason]
	l.Dead = Dead{
		Index: index, Reason: textHeader(m.Headers, HeaderReason, ""), Deliveries: intHeader(m.Headers, HeaderDeliveries),
		Worker: textHeader(m.Headers, HeaderWorker, ""), Exchange: textHeader(m.Headers, HeaderExchange, m.Exchange),
		RoutingKey: textHeader(m.Headers, HeaderRoutingKey, m.RoutingKey), BodySize: intHeader(m.Headers, HeaderBodySize),
		Body: m.Body,
	}
	if reason, ok := m.Headers[HeaderReason].(string); ok {
		l.Reason = reason
	}
	l.Time, _ = time.Parse(time.RFC3339, textHeader(m.Headers, HeaderTime, ""))
	if !l.redacted {
		l.byBroker()
	}
	l.Request, l.DecodeError = decodeIncoming(incoming{ContentType: m.ContentType, ContentEncoding: m.ContentEncoding, Body: l.Body}, d.options.Limits)
	l.Request.Context = l.Request.Context.Redacted()
	if l.ID = l.Request.UniqueID; l.ID == "" || len(l.ID) > 64 {
		sum := sha256.Sum256(append([]byte(l.Reason+l.Time.String()), l.Body...))
		l.ID = hex.EncodeToString(sum[:8])
	}
	return l
}

// byBroker fills in what the broker says of a message that it has put here itself (x-death).
func (l *letter) byBroker() {
	l.BodySize = len(l.m.Body)
	l.Body = redactBody(l.m.Body, compressed(l.m), l.d.options.Limits)
	l.Reason = "dead-lettered by the broker"
	deaths, _ := l.m.Headers["x-death"].([]any)
	if len(deaths) == 0 {
		return
	}
	death := table(deaths[0])
	l.Reason += ": " + textHeader(death, "reason", "no reason given")
	l.Exchange = textHeader(death, "exchange", l.Exchange)
	if keys, _ := death["routing-keys"].([]any); len(keys) > 0 {
		l.RoutingKey, _ = keys[0].(string)
	}
	l.Time, _ = death["time"].(time.Time)
}

// remove acknowledges it.
func (l letter) remove() error { return l.ch.Ack(l.m.Tag) }

// renew replaces it by a redacted copy that begins to count anew.
func (l letter) renew(ctx context.Context) error {
	h := map[string]any{}
	if l.redacted {
		h = maps.Clone(l.m.Headers)
		delete(h, brokerCount)
	} else {
		h[HeaderReason], h[HeaderExchange], h[HeaderRoutingKey] = l.Reason, l.Exchange, l.RoutingKey
		h[HeaderBodySize], h[HeaderDeliveries] = int64(l.BodySize), int64(l.Deliveries)
		h[HeaderTime] = l.Time.UTC().Format(time.RFC3339)
	}
	m := publishing{l.Body, h, asSent(l.m)}
	m.expiration = "" // a dead letter stays
	if err := l.d.publish(ctx, l.d.options.DeadLetter, m); err != nil {
		return fmt.Errorf("copy dead letter %s: %w", l.ID, err)
	}
	return l.remove()
}

func (l letter) replay(ctx context.Context) error {
	if withheldBody(l.Body) {
		return ErrWithheld
	}
	m := publishing{l.Body, map[string]any{HeaderExchange: l.Exchange, HeaderRoutingKey: l.RoutingKey}, asSent(l.m)}
	m.expiration = "" // it has waited long enough
	if err := l.d.publish(ctx, l.d.options.Topic, m); err != nil {
		return fmt.Errorf("publish to %s: %w", l.d.options.Topic, err)
	}
	return l.remove()
}

// publish waits for the confirm, with a channel for each message: a return carries no tag.
func (d *DeadLetters) publish(ctx context.Context, queue string, m publishing) error {
	ch, err := d.c.Publisher()
	if err != nil {
		return fmt.Errorf("%w: open channel: %w", ErrDisconnected, err)
	}
	defer func() { _ = ch.Close() }() // the confirm says what became of the message
	confirm, err := ch.Publish("", queue, true, m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotConfirmed, err)
	}
	select {
	case <-confirm.Done():
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrNotConfirmed, context.Cause(ctx))
	}
	if returned, ok := ch.Returned(); ok {
		return fmt.Errorf("%w: %w", ErrUnroutable, returned)
	}
	if !confirm.Acked() {
		return errors.Join(ErrNotConfirmed, ch.Err())
	}
	return nil
}
