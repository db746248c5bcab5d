package oslo

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// dialTimeout bounds connecting, TLS and login together.
const dialTimeout = 15 * time.Second

// defaultHeartbeat is shorter than oslo's 60 s: the library gives a silent peer up
// after one and a half heartbeats, and a worker that hears nothing should look for
// another broker soon.
const defaultHeartbeat = 20 * time.Second

// dialAMQP is the dialFunc for real brokers. Config.Recovery stays unset for ever: with
// it an acknowledgement of an old delivery is sent on the reopened channel, where tags
// start at 1 again, and acknowledges a message that nobody has worked on.
func dialAMQP(ctx context.Context, t Transport, h Host, name string) (connection, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	socket, err := dialSocket(ctx, t, h)
	if err != nil {
		return nil, err
	}
	// The handshake of the library knows no context; closing the socket ends it.
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(name)
	c, err := amqp.Open(socket, amqp.Config{
		SASL: logins(t, h), Vhost: t.VHost, Locale: "en_US", Heartbeat: heartbeat(t),
		FrameSize: 128 << 10, Properties: properties,
	})
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		socket.Close()
		return nil, translate(err)
	}
	return newAMQPConnection(c, socket), nil
}

func dialSocket(ctx context.Context, t Transport, h Host) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 4}}
	socket, err := d.DialContext(ctx, "tcp", h.Address())
	if err != nil || !t.TLS.Enabled {
		return socket, err
	}
	config, err := t.TLS.config(h.Name)
	if err != nil {
		socket.Close()
		return nil, err
	}
	encrypted := tls.Client(socket, config)
	if err := encrypted.HandshakeContext(ctx); err != nil {
		socket.Close()
		return nil, fmt.Errorf("TLS with %s: %w", h.Address(), err)
	}
	return encrypted, nil
}

func logins(t Transport, h Host) []amqp.Authentication {
	plain := &amqp.PlainAuth{Username: h.Username, Password: h.Password.Reveal()}
	switch t.LoginMethod {
	case "EXTERNAL":
		return []amqp.Authentication{&amqp.ExternalAuth{}}
	case "PLAIN":
		return []amqp.Authentication{plain}
	}
	// Brokers may have either switched off.
	return []amqp.Authentication{&amqp.AMQPlainAuth{Username: h.Username, Password: h.Password.Reveal()}, plain}
}

// heartbeat: the library can't switch heartbeats off, so 0 means the default too.
func heartbeat(t Transport) time.Duration {
	if t.Heartbeat == 0 {
		return defaultHeartbeat
	}
	return t.Heartbeat
}

// amqpConnection is a connection of the library plus its socket, which is the only
// thing that reliably ends everything.
type amqpConnection struct {
	c       *amqp.Connection
	socket  net.Conn
	closed  chan struct{}
	blocked chan string
	err     error // valid when closed is closed
}

func newAMQPConnection(c *amqp.Connection, socket net.Conn) *amqpConnection {
	a := &amqpConnection{c: c, socket: socket, closed: make(chan struct{}), blocked: make(chan string, 1)}
	closes := c.NotifyClose(make(chan *amqp.Error, 1))
	go a.watch(closes)
	go a.watchBlocked(c.NotifyBlocked(make(chan amqp.Blocking, 8)))
	return a
}

// watch ends when the library closes the channel, which it does on every way down.
func (a *amqpConnection) watch(closes <-chan *amqp.Error) {
	a.err = errChannelClosed
	for err := range closes {
		a.err = translate(err)
	}
	a.socket.Close()
	close(a.closed)
}

// watchBlocked always drains, and keeps only the newest word.
func (a *amqpConnection) watchBlocked(blockings <-chan amqp.Blocking) {
	defer close(a.blocked)
	for b := range blockings {
		reason := ""
		if b.Active {
			reason = "blocked: " + b.Reason
		}
		select {
		case <-a.blocked:
		default:
		}
		a.blocked <- reason
	}
}

func (a *amqpConnection) Closed() <-chan struct{} { return a.closed }
func (a *amqpConnection) Err() error              { return a.err }
func (a *amqpConnection) Blocked() <-chan string  { return a.blocked }

// Close may find a broker that reads nothing any more; then the library's Close hangs
// in the write until the socket goes.
func (a *amqpConnection) Close(within time.Duration) {
	abort := time.AfterFunc(within, func() { a.socket.Close() })
	defer abort.Stop()
	if within > 0 {
		_ = a.c.CloseDeadline(time.Now().Add(within)) // the socket goes in any case
	}
	a.socket.Close()
	<-a.closed
}

func (a *amqpConnection) channel() (*amqpChannel, error) {
	ch, err := a.c.Channel()
	if err != nil {
		return nil, translate(err)
	}
	c := &amqpChannel{ch: ch, closes: ch.NotifyClose(make(chan *amqp.Error, 1))}
	return c, nil
}

func (a *amqpConnection) Declarer() (declarerChannel, error) {
	c, err := a.channel()
	if err != nil {
		return nil, err
	}
	return &amqpDeclarer{c}, nil
}

func (a *amqpConnection) Consumer() (consumerChannel, error) {
	c, err := a.channel()
	if err != nil {
		return nil, err
	}
	if err := c.ch.Qos(1, 0, false); err != nil {
		return nil, c.why(err)
	}
	return &amqpConsumer{c}, nil
}

func (a *amqpConnection) Getter() (getterChannel, error) {
	c, err := a.channel()
	if err != nil {
		return nil, err
	}
	return &amqpConsumer{c}, nil
}

func (a *amqpConnection) Publisher() (publisherChannel, error) {
	c, err := a.channel()
	if err != nil {
		return nil, err
	}
	p := &amqpPublisher{amqpChannel: c, returns: c.ch.NotifyReturn(make(chan amqp.Return, 4))}
	if err := c.ch.Confirm(false); err != nil {
		return nil, c.why(err)
	}
	return p, nil
}

// amqpChannel remembers why it was closed.
type amqpChannel struct {
	ch     *amqp.Channel
	closes <-chan *amqp.Error

	mu  sync.Mutex
	err error
}

func (c *amqpChannel) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	select {
	case err, ok := <-c.closes:
		c.err = errChannelClosed
		if ok {
			c.err = translate(err)
		}
	default:
	}
	return c.err
}

// why prefers what the broker said over the library's "channel is closed".
func (c *amqpChannel) why(err error) error {
	if cause := c.Err(); cause != nil {
		return cause
	}
	return translate(err)
}

func (c *amqpChannel) Close() error {
	if err := c.Err(); err != nil {
		return err
	}
	if err := c.ch.Close(); err != nil {
		return translate(err)
	}
	// The library returns nil for a channel that the broker closed in between.
	if err := c.Err(); err != nil && !errors.Is(err, errChannelClosed) {
		return err
	}
	return nil
}

type amqpDeclarer struct{ *amqpChannel }

func (d *amqpDeclarer) DeclareExchange(e exchange, passive bool) error {
	declare := d.ch.ExchangeDeclare
	if passive {
		declare = d.ch.ExchangeDeclarePassive
	}
	return d.result(declare(e.name, e.kind, e.durable, e.autoDelete, false, false, nil))
}

func (d *amqpDeclarer) DeclareQueue(q queue, passive bool) error {
	declare := d.ch.QueueDeclare
	if passive {
		declare = d.ch.QueueDeclarePassive
	}
	_, err := declare(q.name, q.durable, q.autoDelete, false, false, amqp.Table(q.args))
	return d.result(err)
}

func (d *amqpDeclarer) Bind(queue, key, exchange string) error {
	return d.result(d.ch.QueueBind(queue, key, exchange, false, nil))
}

func (d *amqpDeclarer) Close() { _ = d.amqpChannel.Close() } // nothing is lost with it

func (d *amqpDeclarer) result(err error) error {
	if err == nil {
		return nil
	}
	return translate(err)
}

type amqpConsumer struct{ *amqpChannel }

// consumerTag is enough: there is one consumer per channel.
const consumerTag = "slot"

func (c *amqpConsumer) Consume(queue string) (<-chan incoming, error) {
	deliveries, err := c.ch.Consume(queue, consumerTag, false, false, false, false, nil)
	if err != nil {
		return nil, c.why(err)
	}
	out := make(chan incoming, 1) // prefetch is 1: never more than one
	go func() {
		defer close(out)
		for d := range deliveries {
			out <- incomingOf(d)
		}
	}()
	return out, nil
}

// table reads a nested table of headers.
func table(v any) map[string]any {
	switch t := v.(type) {
	case amqp.Table:
		return t
	case map[string]any:
		return t
	}
	return nil
}

func incomingOf(d amqp.Delivery) incoming {
	return incoming{
		Tag: d.DeliveryTag, Redelivered: d.Redelivered, Exchange: d.Exchange, RoutingKey: d.RoutingKey,
		ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, Expiration: d.Expiration,
		Headers: d.Headers, Body: d.Body,
	}
}

// Get is basic.get.
func (c *amqpConsumer) Get(queue string) (incoming, bool, error) {
	d, ok, err := c.ch.Get(queue, false)
	if err != nil {
		return incoming{}, false, c.why(err)
	}
	return incomingOf(d), ok, nil
}

func (c *amqpConsumer) Cancel() error {
	if err := c.ch.Cancel(consumerTag, false); err != nil {
		return c.why(err)
	}
	return nil
}

func (c *amqpConsumer) Ack(tag uint64) error {
	if err := c.ch.Ack(tag, false); err != nil {
		return c.why(err)
	}
	return nil
}

func (c *amqpConsumer) Requeue(tag uint64) error {
	if err := c.ch.Nack(tag, false, true); err != nil {
		return c.why(err)
	}
	return nil
}

type amqpPublisher struct {
	*amqpChannel
	returns <-chan amqp.Return
}

func (p *amqpPublisher) Publish(exchange, key string, mandatory bool, m publishing) (confirmation, error) {
	if m.properties == (properties{}) {
		m.contentType, m.contentEncoding = JSONContentType, "utf-8"
	}
	confirm, err := p.ch.PublishWithDeferredConfirm(exchange, key, mandatory, false, amqp.Publishing{
		ContentType: m.contentType, ContentEncoding: m.contentEncoding, Expiration: m.expiration,
		DeliveryMode: amqp.Persistent, Headers: amqp.Table(m.Headers), Body: m.Body,
	})
	if err != nil {
		return nil, translate(err)
	}
	return confirm, nil
}

func (p *amqpPublisher) Returned() (error, bool) {
	select {
	case r, ok := <-p.returns:
		if !ok {
			return nil, false
		}
		return &brokerError{Code: int(r.ReplyCode), Reason: r.ReplyText}, true
	default:
		return nil, false
	}
}

// translate keeps the library's types on this side of the seam.
func translate(err error) error {
	if errors.Is(err, amqp.ErrClosed) {
		return errChannelClosed
	}
	var ae *amqp.Error
	if errors.As(err, &ae) && ae.Server {
		return &brokerError{Code: ae.Code, Reason: ae.Reason}
	}
	if ae != nil {
		return fmt.Errorf("connection lost: %s", ae.Reason)
	}
	return err
}
