package oslo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"time"
)

// fakeBroker behaves like a RabbitMQ as far as this package can see: an error closes
// its channel, tags count from 1 on each, unsettled messages come back, a returned
// message comes before its confirm. It can fail at every operation, before or after
// having done it. The suite that runs on it runs on real brokers too.
type fakeBroker struct {
	mu        sync.Mutex
	exchanges map[string]exchange
	queues    map[string]*fakeQueue
	conns     map[*fakeConn]bool
	blocked   string
	fault     func(op string) fault // called with mu held; nil: no faults
}

type fault int

const (
	healthy   fault = iota
	cutBefore       // the connection is lost, the operation not done
	cutAfter        // the operation is done, then the connection is lost
	hang            // no answer, ever (publish only)
)

var errCut = errors.New("connection lost: cut by the test")

type fakeQueue struct {
	queue
	ready     []fakeMessage
	bindings  []fakeBinding
	consumers []*fakeChannel
}

type fakeBinding struct{ exchange, key string }

type fakeMessage struct {
	in    incoming
	count int64
}

func newFakeBroker() *fakeBroker {
	return &fakeBroker{exchanges: map[string]exchange{"": {kind: "direct", durable: true}}, queues: map[string]*fakeQueue{}, conns: map[*fakeConn]bool{}}
}

func (b *fakeBroker) dial(ctx context.Context, _ Transport, _ Host, name string) (connection, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if name != "observer" && b.ask("dial") != healthy {
		return nil, errCut
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	c := &fakeConn{b: b, name: name, closed: make(chan struct{}), blocked: make(chan string, 8), channels: map[*fakeChannel]bool{}}
	b.conns[c] = true
	return c, nil
}

func (b *fakeBroker) ask(op string) fault {
	if b.fault == nil {
		return healthy
	}
	return b.fault(op)
}

// restart loses all connections, transient exchanges and transient queues.
func (b *fakeBroker) restart() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cutAll()
	for name, e := range b.exchanges {
		if !e.durable {
			delete(b.exchanges, name)
			for _, q := range b.queues {
				q.unbind(name)
			}
		}
	}
	for name, q := range b.queues {
		if !q.durable {
			delete(b.queues, name)
		}
	}
}

func (q *fakeQueue) unbind(exchange string) {
	kept := q.bindings[:0]
	for _, x := range q.bindings {
		if x.exchange != exchange {
			kept = append(kept, x)
		}
	}
	q.bindings = kept
}

func (b *fakeBroker) cutAll() {
	for c := range b.conns {
		c.die(errCut)
	}
}

func (b *fakeBroker) block(reason string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.blocked = reason
	for c := range b.conns {
		c.blocked <- reason
	}
}

func (b *fakeBroker) dispatch(q *fakeQueue) {
	for _, ch := range q.consumers {
		if len(q.ready) == 0 {
			return
		}
		if len(ch.unsettled) > 0 {
			continue // prefetch 1
		}
		m := q.ready[0]
		q.ready = q.ready[1:]
		ch.tag++
		m.in.Tag = ch.tag
		ch.unsettled[ch.tag] = held{q, m}
		ch.out <- m.in
		switch b.ask("deliver") {
		case cutBefore, cutAfter:
			ch.conn.die(errCut)
			return
		}
	}
}

// route returns the queues that a publish reaches.
func (b *fakeBroker) route(exchange, key string) []*fakeQueue {
	var out []*fakeQueue
	for _, q := range b.queues {
		if exchange == "" && q.name == key {
			out = append(out, q)
			continue
		}
		for _, x := range q.bindings {
			if x.exchange == exchange && (x.key == key || b.exchanges[exchange].kind == "fanout") {
				out = append(out, q)
				break
			}
		}
	}
	return out
}

type fakeConn struct {
	b        *fakeBroker
	name     string
	closed   chan struct{}
	blocked  chan string
	err      error
	channels map[*fakeChannel]bool
}

// die is called with the broker's lock held.
func (c *fakeConn) die(err error) {
	if closed(c.closed) {
		return
	}
	c.err = err
	for ch := range c.channels {
		ch.die(err)
	}
	delete(c.b.conns, c)
	close(c.blocked)
	close(c.closed)
}

func (c *fakeConn) Closed() <-chan struct{} { return c.closed }
func (c *fakeConn) Err() error              { return c.err }
func (c *fakeConn) Blocked() <-chan string  { return c.blocked }

func (c *fakeConn) Close(time.Duration) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	c.die(errChannelClosed)
}

func (c *fakeConn) open() (*fakeChannel, error) {
	c.b.mu.Lock()
	defer c.b.mu.Unlock()
	if closed(c.closed) {
		return nil, c.err
	}
	if c.b.ask("channel.open") != healthy {
		c.die(errCut)
		return nil, errCut
	}
	ch := &fakeChannel{b: c.b, conn: c, unsettled: map[uint64]held{}}
	c.channels[ch] = true
	return ch, nil
}

func (c *fakeConn) Declarer() (declarerChannel, error) {
	ch, err := c.open()
	if err != nil {
		return nil, err
	}
	return fakeDeclarer{ch}, nil
}

func (c *fakeConn) Consumer() (consumerChannel, error) {
	ch, err := c.open()
	if err != nil {
		return nil, err
	}
	return ch, nil
}

func (c *fakeConn) Getter() (getterChannel, error) {
	ch, err := c.open()
	if err != nil {
		return nil, err
	}
	return ch, nil
}

func (c *fakeConn) Publisher() (publisherChannel, error) {
	ch, err := c.open()
	if err != nil {
		return nil, err
	}
	return ch, nil
}

type held struct {
	q *fakeQueue
	m fakeMessage
}

type fakeChannel struct {
	b         *fakeBroker
	conn      *fakeConn
	err       error
	tag       uint64
	unsettled map[uint64]held
	consuming *fakeQueue
	out       chan incoming
	confirms  []*fakeConfirm
	returned  []error
}

// die is called with the broker's lock held.
func (ch *fakeChannel) die(err error) {
	if ch.err != nil {
		return
	}
	ch.err = err
	delete(ch.conn.channels, ch)
	ch.stop()
	for tag := ch.tag; tag > 0; tag-- { // the oldest ends in front again
		if _, ok := ch.unsettled[tag]; ok {
			ch.putBack(tag)
		}
	}
	for _, c := range ch.confirms {
		c.finish(false)
	}
}

func (ch *fakeChannel) stop() {
	q := ch.consuming
	if q == nil {
		return
	}
	ch.consuming = nil
	kept := q.consumers[:0]
	for _, other := range q.consumers {
		if other != ch {
			kept = append(kept, other)
		}
	}
	q.consumers = kept
	close(ch.out)
}

func (ch *fakeChannel) putBack(tag uint64) {
	h := ch.unsettled[tag]
	delete(ch.unsettled, tag)
	h.m.in.Redelivered = true
	h.m.count++
	if h.q.args["x-queue-type"] == "quorum" {
		headers := map[string]any{"x-delivery-count": h.m.count}
		for k, v := range h.m.in.Headers {
			if k != "x-delivery-count" {
				headers[k] = v
			}
		}
		h.m.in.Headers = headers
	}
	h.q.ready = append([]fakeMessage{h.m}, h.q.ready...)
	ch.b.dispatch(h.q)
}

// do runs one operation that the broker answers.
func (ch *fakeChannel) do(op string, f func() error) error {
	ch.b.mu.Lock()
	defer ch.b.mu.Unlock()
	if ch.err != nil {
		return ch.err
	}
	action := ch.b.ask(op)
	if action == cutBefore {
		ch.conn.die(errCut)
		return errCut
	}
	if err := f(); err != nil {
		ch.die(err)
		return err
	}
	if action == cutAfter {
		ch.conn.die(errCut)
		return errCut
	}
	return nil
}

func (ch *fakeChannel) Err() error {
	ch.b.mu.Lock()
	defer ch.b.mu.Unlock()
	return ch.err
}

func (ch *fakeChannel) Close() error {
	return ch.do("channel.close", func() error {
		ch.die(errChannelClosed)
		return nil
	})
}

func (ch *fakeChannel) Consume(name string) (<-chan incoming, error) {
	err := ch.do("consume", func() error {
		q, ok := ch.b.queues[name]
		if !ok {
			return &brokerError{codeNotFound, "NOT_FOUND - no queue '" + name + "'"}
		}
		ch.out = make(chan incoming, 1)
		ch.consuming = q
		q.consumers = append(q.consumers, ch)
		ch.b.dispatch(q)
		return nil
	})
	return ch.out, err
}

func (ch *fakeChannel) Get(name string) (m incoming, ok bool, err error) {
	err = ch.do("get", func() error {
		q, known := ch.b.queues[name]
		if !known {
			return &brokerError{codeNotFound, "NOT_FOUND - no queue '" + name + "'"}
		}
		if ok = len(q.ready) > 0; !ok {
			return nil
		}
		first := q.ready[0]
		q.ready = q.ready[1:]
		ch.tag++
		first.in.Tag = ch.tag
		ch.unsettled[ch.tag] = held{q, first}
		m = first.in
		return nil
	})
	return m, ok, err
}

func (ch *fakeChannel) Cancel() error {
	return ch.do("cancel", func() error {
		ch.stop()
		return nil
	})
}

func (ch *fakeChannel) Ack(tag uint64) error {
	return ch.do("ack", func() error { return ch.forget(tag) })
}

func (ch *fakeChannel) forget(tag uint64) error {
	if _, ok := ch.unsettled[tag]; !ok {
		return &brokerError{codePreconditionFailed, fmt.Sprintf("PRECONDITION_FAILED - unknown delivery tag %d", tag)}
	}
	delete(ch.unsettled, tag)
	return nil
}

func (ch *fakeChannel) Requeue(tag uint64) error {
	return ch.do("requeue", func() error {
		if _, ok := ch.unsettled[tag]; !ok {
			return ch.forget(tag)
		}
		ch.putBack(tag)
		return nil
	})
}

// Publish is not answered: what goes wrong shows in the confirm.
func (ch *fakeChannel) Publish(exchange, key string, mandatory bool, p publishing) (confirmation, error) {
	ch.b.mu.Lock()
	defer ch.b.mu.Unlock()
	if ch.err != nil {
		return nil, errChannelClosed
	}
	c := &fakeConfirm{done: make(chan struct{})}
	ch.confirms = append(ch.confirms, c)
	action := ch.b.ask("publish")
	if action == hang || ch.b.blocked != "" {
		return c, nil
	}
	if action == cutBefore {
		ch.conn.die(errCut)
		return c, nil
	}
	if _, ok := ch.b.exchanges[exchange]; !ok {
		ch.die(&brokerError{codeNotFound, "NOT_FOUND - no exchange '" + exchange + "'"})
		return c, nil
	}
	if p.properties == (properties{}) {
		p.contentType, p.contentEncoding = JSONContentType, "utf-8"
	}
	queues := ch.b.route(exchange, key)
	for _, q := range queues {
		q.ready = append(q.ready, fakeMessage{in: incoming{
			Exchange: exchange, RoutingKey: key, ContentType: p.contentType, ContentEncoding: p.contentEncoding,
			Expiration: p.expiration, Headers: p.Headers, Body: bytes.Clone(p.Body),
		}})
		ch.b.dispatch(q)
	}
	if action == cutAfter {
		ch.conn.die(errCut)
		return c, nil
	}
	if len(queues) == 0 && mandatory {
		ch.returned = append(ch.returned, &brokerError{312, "NO_ROUTE"})
	}
	c.finish(true)
	return c, nil
}

func (ch *fakeChannel) Returned() (error, bool) {
	ch.b.mu.Lock()
	defer ch.b.mu.Unlock()
	if len(ch.returned) == 0 {
		return nil, false
	}
	err := ch.returned[0]
	ch.returned = ch.returned[1:]
	return err, true
}

type fakeConfirm struct {
	done  chan struct{}
	acked bool
}

func (c *fakeConfirm) finish(acked bool) {
	if !closed(c.done) {
		c.acked = acked
		close(c.done)
	}
}

func (c *fakeConfirm) Done() <-chan struct{} { return c.done }
func (c *fakeConfirm) Acked() bool           { return closed(c.done) && c.acked }

type fakeDeclarer struct{ *fakeChannel }

func (d fakeDeclarer) Close() { _ = d.fakeChannel.Close() }

func (d fakeDeclarer) DeclareExchange(e exchange, passive bool) error {
	return d.do("exchange.declare", func() error {
		old, ok := d.b.exchanges[e.name]
		switch {
		case !ok && passive:
			return &brokerError{codeNotFound, "NOT_FOUND - no exchange '" + e.name + "'"}
		case !ok:
			d.b.exchanges[e.name] = e
		case !passive && old != e:
			return &brokerError{codePreconditionFailed, "PRECONDITION_FAILED - inequivalent arg for exchange '" + e.name + "'"}
		}
		return nil
	})
}

func (d fakeDeclarer) DeclareQueue(q queue, passive bool) error {
	return d.do("queue.declare", func() error {
		old, ok := d.b.queues[q.name]
		switch {
		case !ok && passive:
			return &brokerError{codeNotFound, "NOT_FOUND - no queue '" + q.name + "'"}
		case !ok:
			d.b.queues[q.name] = &fakeQueue{queue: q}
		case !passive && (old.durable != q.durable || old.autoDelete != q.autoDelete || len(old.args)+len(q.args) > 0 && !reflect.DeepEqual(old.args, q.args)):
			return &brokerError{codePreconditionFailed, "PRECONDITION_FAILED - inequivalent arg for queue '" + q.name + "'"}
		}
		return nil
	})
}

func (d fakeDeclarer) Bind(name, key, exchange string) error {
	return d.do("queue.bind", func() error {
		q, ok := d.b.queues[name]
		if _, known := d.b.exchanges[exchange]; !ok || !known {
			return &brokerError{codeNotFound, "NOT_FOUND - no queue or exchange"}
		}
		for _, x := range q.bindings {
			if x == (fakeBinding{exchange, key}) {
				return nil
			}
		}
		q.bindings = append(q.bindings, fakeBinding{exchange, key})
		return nil
	})
}
