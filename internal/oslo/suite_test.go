package oslo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// site is a broker to run the suite on: the fake one, or a real one.
type site interface {
	// options returns options for a topic and an exchange of its own.
	options(t *testing.T) Options
	// ready counts the messages of a queue that nobody has taken; -1: no such queue.
	ready(t *testing.T, queue string) int
	remove(t *testing.T, queue string)
	// cut closes the connections whose name starts with that of o.
	cut(t *testing.T, o Options)
}

// desk is a running bus and a second connection to look at the broker with.
type desk struct {
	t *testing.T
	s site
	o Options
	b *Bus
	c connection
}

// patience is for real brokers; the fake one runs on the clock of its bubble.
const patience = 30 * time.Second

func newDesk(t *testing.T, s site, change func(*Options)) *desk {
	t.Helper()
	o := s.options(t)
	if change != nil {
		change(&o)
	}
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		_ = b.Run(ctx)
		close(stopped)
	}()
	o = b.options
	c, err := o.dial(ctx, o.Transport, o.Transport.Hosts[0], "observer")
	if err != nil {
		cancel()
		<-stopped
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Close(time.Second)
		cancel()
		<-stopped
	})
	return &desk{t, s, o, b, c}
}

func openDesk(t *testing.T, s site, change func(*Options)) *desk {
	t.Helper()
	d := newDesk(t, s, change)
	d.until("ready", func() bool { return d.b.State().Ready() })
	return d
}

// until polls: what a broker does has no hook.
func (d *desk) until(what string, f func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(patience)
	for !f() {
		if time.Now().After(deadline) {
			d.t.Fatalf("not within %v: %s; state %+v", patience, what, d.b.State())
		}
		<-time.After(20 * time.Millisecond)
	}
}

func (d *desk) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	d.t.Cleanup(cancel)
	return ctx
}

func (d *desk) cast(method string) {
	d.t.Helper()
	if err := d.b.Cast(d.ctx(), d.o.Exchange, d.o.Topic, Cast{Method: method, Version: "3.0", Args: map[string]string{"name": "Grüße"}}); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) receive() *Delivery {
	d.t.Helper()
	got, err := d.b.Receive(d.ctx())
	if err != nil {
		d.t.Fatalf("receive: %v; state %+v", err, d.b.State())
	}
	return got
}

func (d *desk) backlog(n int) {
	d.t.Helper()
	d.until(fmt.Sprintf("%d messages ready", n), func() bool { return d.s.ready(d.t, d.o.Topic) == n })
}

// take reads one message of a queue past the bus.
func (d *desk) take(queue string) incoming {
	d.t.Helper()
	ch, err := d.c.Consumer()
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() { _ = ch.Close() }()
	messages, err := ch.Consume(queue)
	if err != nil {
		d.t.Fatal(err)
	}
	select {
	case m := <-messages:
		if err := ch.Ack(m.Tag); err != nil {
			d.t.Fatal(err)
		}
		return m
	case <-time.After(patience):
		d.t.Fatalf("no message in %s", queue)
		return incoming{}
	}
}

func (d *desk) declare(q queue) {
	d.t.Helper()
	if err := declareQueue(d.c, q, false); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) send(body string) {
	d.t.Helper()
	if err := d.b.Publish(d.ctx(), d.o.Exchange, d.o.Topic, Message{Body: []byte(body)}, true); err != nil {
		d.t.Fatal(err)
	}
}

// suite is what holds on every broker.
func suite() map[string]func(t *testing.T, s site) {
	return map[string]func(t *testing.T, s site){
		"take and acknowledge":        takeAndAck,
		"backlog stays in the queue":  backlogStays,
		"requeue":                     requeue,
		"poison":                      poison,
		"poison withheld":             poisonWithheld,
		"giving back does not count":  givingBackDoesNotCount,
		"dead letters":                deadLetters,
		"dead letters withheld":       deadWithheld,
		"settled once":                settledOnce,
		"dead letter":                 deadLetter,
		"connection lost mid-way":     connectionLost,
		"pause and resume":            pauseAndResume,
		"receive is cancelled":        receiveCancelled,
		"unroutable":                  unroutable,
		"reply":                       replies,
		"notify":                      notify,
		"queue with other arguments":  otherArguments,
		"exchange with other flags":   otherFlags,
		"ping":                        ping,
		"queue deleted while waiting": queueDeleted,
		"stop while waiting":          stopWhileWaiting,
		"many slots":                  manySlots,
	}
}

func takeAndAck(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	d.cast("one")
	got := d.receive()
	if got.DecodeError != nil || got.Request.Method != "one" || got.Redelivered || got.DeliveryCount != 0 || got.BodySize == 0 {
		t.Errorf("delivery = %+v", got)
	}
	if string(got.Request.Args["name"]) != `"Grüße"` {
		t.Errorf("args = %s", got.Request.Args)
	}
	if err := got.Ack(); err != nil {
		t.Fatal(err)
	}
	s.cut(t, d.o)
	d.cast2("two")
	if next := d.receive(); next.Request.Method != "two" || next.Redelivered || next.Ack() != nil {
		t.Errorf("after the acknowledged one came %+v", next.Request)
	}
	d.backlog(0)
}

// cast2 casts over a connection that may just be lost.
func (d *desk) cast2(method string) {
	d.t.Helper()
	d.until("cast "+method, func() bool {
		err := d.b.Cast(d.ctx(), d.o.Exchange, d.o.Topic, Cast{Method: method})
		return err == nil
	})
}

func backlogStays(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	for i := range 5 {
		d.cast(fmt.Sprint("m", i))
	}
	d.backlog(5)
	first := d.receive()
	d.backlog(4)
	second := d.receive()
	d.backlog(3)
	if err := first.Ack(); err != nil {
		t.Fatal(err)
	}
	if err := second.Ack(); err != nil {
		t.Fatal(err)
	}
	d.backlog(3) // settling takes nothing
	for range 3 {
		if err := d.receive().Ack(); err != nil {
			t.Fatal(err)
		}
	}
	d.backlog(0)
}

func requeue(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	d.cast("one")
	if err := d.receive().Requeue(); err != nil {
		t.Fatal(err)
	}
	again := d.receive()
	if again.DeliveryCount != 0 || again.Request.Method != "one" {
		t.Errorf("redelivered %v, count %d", again.Redelivered, again.DeliveryCount)
	}
	if err := again.Ack(); err != nil {
		t.Fatal(err)
	}
	d.backlog(0)
}

func settledOnce(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	d.cast("one")
	got := d.receive()
	if err := got.Ack(); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() error{
		"ack": got.Ack, "requeue": got.Requeue, "dead-letter": func() error { return got.DeadLetter(d.ctx(), "x") },
	} {
		if err := f(); !errors.Is(err, ErrSettled) {
			t.Errorf("%s after ack: %v", name, err)
		}
	}
}

func deadLetter(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	d.send(wrap(`{"args":{"volume_id":"v"},"_context_auth_token":"tok-123"}`))
	got := d.receive()
	var de *DecodeError
	if !errors.As(got.DecodeError, &de) || de.Reason != ReasonMissingField {
		t.Fatalf("decode error = %v", got.DecodeError)
	}
	if err := got.DeadLetter(d.ctx(), string(de.Reason)); err != nil {
		t.Fatal(err)
	}
	d.backlog(0)
	m := d.take(d.o.DeadLetter)
	if m.Headers[HeaderReason] != "missing-field" || m.Headers[HeaderExchange] != d.o.Exchange || m.Headers[HeaderRoutingKey] != d.o.Topic {
		t.Errorf("headers = %v", m.Headers)
	}
	if strings.Contains(string(m.Body), "tok-123") || !strings.Contains(string(m.Body), "volume_id") {
		t.Errorf("body = %s", m.Body)
	}
}

// An old acknowledgement must not reach another message: tags start at 1 on every channel.
func connectionLost(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	d.cast("zero")
	old := d.receive()
	d.cast("one")
	before := d.b.State().Consume.Generation
	s.cut(t, d.o)
	d.until("a new connection", func() bool { st := d.b.State(); return st.Ready() && st.Consume.Generation > before })
	seen := map[string]*Delivery{}
	for range 2 {
		got := d.receive()
		seen[got.Request.Method] = got
	}
	if err := old.Ack(); !errors.Is(err, ErrDeliveryGone) {
		t.Errorf("old ack: %v", err)
	}
	if seen["zero"] == nil || seen["one"] == nil || !seen["zero"].Redelivered {
		t.Fatalf("received %v", seen)
	}
	// Both are still there, the old acknowledgement has hit neither.
	for _, name := range []string{"zero", "one"} {
		if err := seen[name].Requeue(); err != nil {
			t.Errorf("requeue %s: %v", name, err)
		}
	}
	d.backlog(2)
}

func pauseAndResume(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	type result struct {
		d   *Delivery
		err error
	}
	results := make(chan result, 1)
	go func() {
		got, err := d.b.Receive(d.ctx())
		results <- result{got, err}
	}()
	d.b.PauseIntake()
	d.b.PauseIntake()
	if !d.b.State().Paused {
		t.Error("not paused")
	}
	<-time.After(300 * time.Millisecond) // the consumer that was waiting goes away
	d.cast("one")
	d.backlog(1)
	select {
	case r := <-results:
		t.Fatalf("received %+v while paused", r)
	default:
	}
	d.b.ResumeIntake()
	r := <-results
	if r.err != nil || r.d.Request.Method != "one" || r.d.Redelivered {
		t.Fatalf("received %+v, %v", r.d, r.err)
	}
	if err := r.d.Ack(); err != nil {
		t.Fatal(err)
	}
}

func receiveCancelled(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	cause := errors.New("no slot")
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error, 1)
	go func() {
		_, err := d.b.Receive(ctx)
		done <- err
	}()
	<-time.After(100 * time.Millisecond)
	cancel(cause)
	if err := <-done; !errors.Is(err, cause) {
		t.Errorf("error = %v", err)
	}
	d.cast("one")
	d.backlog(1)
}

func unroutable(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	if err := d.b.Cast(d.ctx(), d.o.Exchange, "nobody", Cast{Method: "m"}); !errors.Is(err, ErrUnroutable) {
		t.Errorf("no queue: %v", err)
	}
	if err := d.b.Cast(d.ctx(), d.o.Exchange+".none", "nobody", Cast{Method: "m"}); !errors.Is(err, ErrUnroutable) {
		t.Errorf("no exchange: %v", err)
	}
	m, err := EncodeCast(Cast{Method: "m"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.b.Publish(d.ctx(), d.o.Exchange, "nobody", m, false); err != nil {
		t.Errorf("not mandatory: %v", err)
	}
	generation := d.b.State().Publish.Generation
	d.cast("one")
	if d.b.State().Publish.Generation != generation {
		t.Error("an unroutable message costs the connection")
	}
}

func replies(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	queueName := "reply_" + newID()
	r := Request{Method: "m", MsgID: "id-1", ReplyQueue: queueName}
	if err := d.b.Reply(d.ctx(), Request{Method: "a cast"}, Reply{}); err != nil {
		t.Errorf("reply to a cast: %v", err)
	}
	// The caller's queue comes back after the first attempts.
	done := make(chan error, 1)
	go func() { done <- d.b.Reply(d.ctx(), r, Reply{Result: "ok"}) }()
	<-time.After(600 * time.Millisecond)
	d.declare(queue{name: queueName, durable: true})
	t.Cleanup(func() { s.remove(t, queueName) })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	message := messageOf(t, d.take(queueName).Body)
	if message["result"] != "ok" || message["_msg_id"] != "id-1" || message["ending"] != true || message["failure"] != nil {
		t.Errorf("reply = %v", message)
	}
	// Heartbeats stop before the reply.
	r.MonitorTimeout = 2 * time.Second
	stop := d.b.Heartbeats(d.ctx(), r)
	beat := messageOf(t, d.take(queueName).Body)
	if beat["ending"] != false || beat["result"] != nil {
		t.Errorf("heartbeat = %v", beat)
	}
	stop()
	stop()
	if n := s.ready(t, queueName); n != 0 {
		t.Errorf("%d messages after stop", n)
	}
}

func notify(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	topic := d.o.Topic + "-notifications"
	name := topic + ".error"
	t.Cleanup(func() { s.remove(t, name) })
	n := Notification{MessageID: "51fd2ec1-830b-423c-9ef6-07d0a915bd52", EventType: "image.upload.end", PublisherID: "cinderlift.h", Priority: Error, Payload: map[string]int{"a": 1}, Timestamp: time.Now()}
	for range 2 {
		if err := d.b.Notify(d.ctx(), topic, n); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		m := d.take(name)
		if got := messageOf(t, m.Body); got["message_id"] != n.MessageID || got["priority"] != "ERROR" || m.RoutingKey != name {
			t.Errorf("notification = %v", got)
		}
	}
}

func otherArguments(t *testing.T, s site) {
	o := s.options(t)
	d := openDesk(t, s, nil) // only to have a connection
	d.declare(queue{name: o.Topic, durable: true, args: map[string]any{"x-max-length": int32(7)}})
	e := newDesk(t, s, func(p *Options) { p.Topic, p.Exchange = o.Topic, o.Exchange })
	e.until("a reason that names the queue", func() bool {
		return strings.Contains(e.b.State().Consume.Reason, fmt.Sprintf("%q", o.Topic))
	})
	reason := e.b.State().Consume.Reason
	if !strings.Contains(reason, "406") || !strings.Contains(reason, "delete it") || e.b.State().Ready() {
		t.Errorf("reason = %s", reason)
	}
	s.remove(t, o.Topic)
	e.until("ready after the queue is gone", func() bool { return e.b.State().Ready() })
	e.cast("one")
	if err := e.receive().Ack(); err != nil {
		t.Fatal(err)
	}
}

func otherFlags(t *testing.T, s site) {
	o := s.options(t)
	d := openDesk(t, s, nil)
	other := exchange{name: o.Exchange, kind: "topic", durable: !d.o.durable()}
	if err := onChannel(d.c, func(ch declarerChannel) error { return ch.DeclareExchange(other, false) }); err != nil {
		t.Fatal(err)
	}
	e := openDesk(t, s, func(p *Options) { p.Topic, p.Exchange = o.Topic, o.Exchange })
	e.cast("one")
	if err := e.receive().Ack(); err != nil {
		t.Fatal(err)
	}
}

func ping(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	queueName := "reply_" + newID()
	d.declare(queue{name: queueName, durable: true})
	t.Cleanup(func() { s.remove(t, queueName) })
	d.send(wrap(`{"method":"oslo_rpc_server_ping","args":{},"_msg_id":"p","_reply_q":"` + queueName + `"}`))
	d.cast("one")
	got := d.receive()
	if got.Request.Method != "one" {
		t.Errorf("received %s", got.Request.Method)
	}
	if err := got.Ack(); err != nil {
		t.Fatal(err)
	}
	if message := messageOf(t, d.take(queueName).Body); message["result"] != "pong" {
		t.Errorf("answer = %v", message)
	}
}

func queueDeleted(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	results := make(chan *Delivery, 1)
	go func() {
		got, _ := d.b.Receive(d.ctx())
		results <- got
	}()
	<-time.After(200 * time.Millisecond)
	s.remove(t, d.o.Topic)
	d.until("declared anew", func() bool { return s.ready(t, d.o.Topic) >= 0 })
	d.cast2("one")
	got := <-results
	if got == nil || got.Request.Method != "one" {
		t.Fatalf("received %+v", got)
	}
	if err := got.Ack(); err != nil {
		t.Fatal(err)
	}
}

// Stopping the bus with a delivery unsettled gives it back.
func stopWhileWaiting(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	o := d.o
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	go func() {
		_ = b.Run(ctx)
		close(stopped)
	}()
	d.cast("one")
	got, err := b.Receive(d.ctx())
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error, 1)
	receiveCtx, cancelReceive := context.WithCancel(context.Background())
	go func() {
		_, err := b.Receive(receiveCtx)
		waiting <- err
	}()
	cancel()
	select {
	case <-stopped:
	case <-time.After(10 * time.Second):
		t.Fatal("Run does not return")
	}
	cancelReceive()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting receive: %v", err)
	}
	if err := got.Ack(); !errors.Is(err, ErrDeliveryGone) {
		t.Errorf("ack after stop: %v", err)
	}
	if again := d.receive(); again.Request.Method != "one" || !again.Redelivered || again.Ack() != nil {
		t.Errorf("received %+v", again)
	}
}

func manySlots(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	const slots, messages = 20, 60
	ctx, cancel := context.WithCancel(d.ctx())
	got := make(chan string, messages)
	done := make(chan struct{})
	for range slots {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				m, err := d.b.Receive(ctx)
				if err != nil {
					return
				}
				if err := m.Ack(); err != nil {
					t.Errorf("ack: %v", err)
				}
				got <- m.Request.UniqueID
			}
		}()
	}
	for i := range messages {
		d.cast(fmt.Sprint("m", i))
	}
	seen := map[string]bool{}
	for range messages {
		select {
		case id := <-got:
			seen[id] = true
		case <-time.After(patience):
			t.Fatalf("%d of %d messages", len(seen), messages)
		}
	}
	cancel()
	for range slots {
		<-done
	}
	if len(seen) != messages {
		t.Errorf("%d different messages of %d", len(seen), messages)
	}
	d.backlog(0)
}
