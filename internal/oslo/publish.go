package oslo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// How a publish can fail.
var (
	// ErrUnroutable: the broker took the message and had no queue for it (or the exchange
	// does not exist). Nobody will see it.
	ErrUnroutable = errors.New("message is unroutable")

	// ErrNotConfirmed: the message was sent and the broker's answer is not known. It may
	// have arrived. Publishing it again may deliver it twice.
	ErrNotConfirmed = errors.New("message is not confirmed")

	// ErrDisconnected: the message was not sent, for want of a connection that takes it
	// within the time given.
	ErrDisconnected = errors.New("not connected to the message bus")

	// ErrRefused: the broker refused the message, for permissions or size.
	ErrRefused = errors.New("message is refused")

	// ErrReplyQueueGone: the caller's reply queue has been gone for a minute.
	ErrReplyQueueGone = errors.New("reply queue is gone")
)

// publisher sends one message at a time and waits for its confirm. A returned message
// carries no tag, so with one under way it can only be that one. The rate of a
// worker is a few messages per job; a confirm takes milliseconds.
type publisher struct {
	link    *link
	options Options
	slot    chan struct{} // holds the right to use what is below

	session *session
	channel publisherChannel
	bound   map[string]bool // notification queues bound on this session
}

func newPublisher(l *link, o Options) *publisher {
	return &publisher{link: l, options: o, slot: make(chan struct{}, 1)}
}

// publish waits for its turn, for an unblocked connection and for the confirm, all
// within ctx. If ctx ends while the message is under way, the connection is given up:
// a late return must not be taken for that of the next message.
func (p *publisher) publish(ctx context.Context, kind, exchange, key string, m Message, mandatory bool) error {
	err := p.exclusively(ctx, func() error { return p.send(ctx, exchange, key, m, mandatory) })
	p.report(kind, err)
	return err
}

func (p *publisher) report(kind string, err error) {
	events := p.options.Events
	if err == nil && events.Published != nil {
		events.Published(kind)
	}
	if err != nil && events.Unpublished != nil {
		events.Unpublished(kind, err)
	}
}

func (p *publisher) exclusively(ctx context.Context, f func() error) error {
	select {
	case p.slot <- struct{}{}:
	case <-ctx.Done():
		why := "waiting for an earlier message"
		if blocked := p.link.snapshot().Blocked; blocked != "" {
			why = "the broker is " + blocked
		}
		return fmt.Errorf("%w: %s: %w", ErrDisconnected, why, context.Cause(ctx))
	}
	defer func() { <-p.slot }()
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", ErrDisconnected, context.Cause(ctx))
	}
	return f()
}

func (p *publisher) send(ctx context.Context, exchange, key string, m Message, mandatory bool) error {
	if err := p.open(ctx); err != nil {
		return err
	}
	confirm, err := p.write(ctx, exchange, key, m, mandatory)
	if err != nil {
		return err
	}
	select {
	case <-confirm.Done():
	case <-ctx.Done():
		return p.abandon(context.Cause(ctx))
	}
	if returned, ok := p.channel.Returned(); ok {
		return fmt.Errorf("%w: exchange %q, key %q: %w", ErrUnroutable, exchange, key, returned)
	}
	if confirm.Acked() {
		return nil
	}
	return p.lost(exchange, key)
}

// open makes sure of a session and a channel on it.
func (p *publisher) open(ctx context.Context) error {
	s, reason := p.link.now()
	if s == nil {
		return fmt.Errorf("%w: %s", ErrDisconnected, reason)
	}
	select {
	case <-s.unblocked.whenOpen():
	case <-s.Closed():
		return fmt.Errorf("%w: %w", ErrDisconnected, s.Err())
	case <-ctx.Done():
		return fmt.Errorf("%w: the broker is blocked: %w", ErrDisconnected, context.Cause(ctx))
	}
	if s != p.session {
		p.session, p.channel, p.bound = s, nil, map[string]bool{}
	}
	if p.channel != nil && p.channel.Err() == nil {
		return nil
	}
	ch, err := s.Publisher()
	if err != nil {
		s.fail(err)
		return fmt.Errorf("%w: open channel: %w", ErrDisconnected, err)
	}
	p.channel = ch
	return nil
}

// write is apart from the wait for the confirm because it too blocks when the broker
// does not read, and knows no context.
func (p *publisher) write(ctx context.Context, exchange, key string, m Message, mandatory bool) (confirmation, error) {
	type written struct {
		confirm confirmation
		err     error
	}
	done := make(chan written, 1)
	ch := p.channel
	go func() {
		confirm, err := ch.Publish(exchange, key, mandatory, publishing{m.Body, m.Headers, m.properties})
		done <- written{confirm, err}
	}()
	select {
	case w := <-done:
		if errors.Is(w.err, errChannelClosed) {
			return nil, fmt.Errorf("%w: %w", ErrDisconnected, w.err)
		}
		if w.err != nil {
			return nil, p.abandon(w.err)
		}
		return w.confirm, nil
	case <-ctx.Done():
		return nil, p.abandon(context.Cause(ctx))
	}
}

// abandon gives up a message under way, and the connection with it.
func (p *publisher) abandon(cause error) error {
	err := fmt.Errorf("%w: %w", ErrNotConfirmed, cause)
	p.session.fail(err)
	p.session, p.channel = nil, nil
	return err
}

// lost explains a confirm that never came. When the broker has closed the channel over
// the message it says so with a code, and the message is not in a queue.
func (p *publisher) lost(exchange, key string) error {
	cause := p.channel.Err()
	switch brokerCode(cause) {
	case codeNotFound:
		return fmt.Errorf("%w: exchange %q, key %q: %w", ErrUnroutable, exchange, key, cause)
	case codeAccessRefused, codePreconditionFailed:
		return fmt.Errorf("%w: exchange %q, key %q: %w", ErrRefused, exchange, key, cause)
	}
	if cause == nil {
		cause = errors.New("the broker answered nack")
	}
	return fmt.Errorf("%w: exchange %q, key %q: %w", ErrNotConfirmed, exchange, key, cause)
}

// probeKey names no queue: what is published with it goes nowhere, and its confirm says that the broker reads.
const probeKey = "cinderlift.probe"

// probe publishes something that nobody gets, now and then and at once on each new connection: a broker in an alarm only
// tells those who publish, and only then does State know. While it is blocked the probe waits, and whoever publishes waits
// behind it and has not sent anything; so nothing is in doubt, and the connection is kept.
func (p *publisher) probe(ctx context.Context) {
	if p.options.Probe < 0 {
		return
	}
	for ctx.Err() == nil {
		s, err := p.link.wait(ctx)
		if err != nil {
			return
		}
		_ = p.exclusively(ctx, func() error { return p.send(ctx, "", probeKey, Message{Body: []byte("{}")}, false) }) // shows in State
		select {
		case <-s.over:
		case <-ctx.Done():
		case <-time.After(p.options.Probe):
		}
	}
}

// Publish sends m and waits until the broker has it. It does not try again: the errors
// say whether that is safe. With mandatory, a message without a queue is ErrUnroutable;
// without, it is silently dropped. Without a connection it fails at once.
func (b *Bus) Publish(ctx context.Context, exchange, key string, m Message, mandatory bool) error {
	if err := b.publish.publish(ctx, "message", exchange, key, m, mandatory); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return nil
}

// Cast sends c to the topic (or topic.server) key on exchange, mandatory: unlike with
// oslo.messaging a cast that reaches nobody is an error. It does not try again.
func (b *Bus) Cast(ctx context.Context, exchange, key string, c Cast) error {
	m, err := EncodeCast(c)
	if err != nil {
		return err
	}
	if err := b.publish.publish(ctx, "cast", exchange, key, m, true); err != nil {
		return fmt.Errorf("cast %s to %s: %w", c.Method, key, err)
	}
	return nil
}

// As oslo.messaging 8ea2d5b _drivers/amqpdriver.py:215-267, 327-368.
const (
	replyPause    = 250 * time.Millisecond
	replyPatience = 60 * time.Second
	deadFor       = 60 * time.Second
	deadMost      = 200
)

// Reply answers the call r. The queue of a caller that reconnects is gone for a while, so
// it tries again for up to a minute, also over lost connections: a caller ignores a second
// reply. After that the queue counts as dead for a minute and further replies to it
// fail at once with ErrReplyQueueGone. For a cast there is nothing to do.
func (b *Bus) Reply(ctx context.Context, r Request, reply Reply) error {
	if !r.IsCall() {
		return nil
	}
	if b.dead.has(r.ReplyQueue) {
		return fmt.Errorf("reply to %s: %w", r.MsgID, ErrReplyQueueGone)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, replyPatience, errPatience)
	defer cancel()
	var unroutable error
	for {
		m, err := EncodeReply(r.MsgID, reply)
		if err != nil {
			return err
		}
		err = b.publish.publish(ctx, "reply", "", r.ReplyQueue, m, true)
		if err == nil {
			return nil
		}
		if errors.Is(err, ErrUnroutable) {
			unroutable = err
		}
		if !errors.Is(err, ErrRefused) && sleep(ctx, replyPause) == nil {
			continue
		}
		if unroutable != nil && errors.Is(context.Cause(ctx), errPatience) {
			b.dead.add(r.ReplyQueue)
			err = errors.Join(ErrReplyQueueGone, unroutable)
		}
		return fmt.Errorf("reply to %s: %w", r.MsgID, err)
	}
}

// errPatience tells our own deadline from the caller's.
var errPatience = errors.New("no reply queue for a minute")

// deadQueues remembers reply queues that nobody will come back for.
type deadQueues struct {
	mu    sync.Mutex
	until map[string]time.Time
}

func newDeadQueues() *deadQueues { return &deadQueues{until: map[string]time.Time{}} }

func (d *deadQueues) has(queue string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return time.Now().Before(d.until[queue])
}

func (d *deadQueues) add(queue string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for name, until := range d.until {
		if !now.Before(until) {
			delete(d.until, name)
		}
	}
	if len(d.until) < deadMost {
		d.until[queue] = now.Add(deadFor)
	}
}

// Notify publishes n to <topic>.<priority> on the control exchange, after declaring and
// binding the queue of that name once per connection. Published again with the same
// MessageID it is the same event for those who look at the id. It does not try again.
func (b *Bus) Notify(ctx context.Context, topic string, n Notification) error {
	m, err := EncodeNotification(n)
	if err != nil {
		return err
	}
	key := topic + "." + strings.ToLower(string(n.priority()))
	if err := b.publish.notify(ctx, key, m); err != nil {
		return fmt.Errorf("notify %s: %w", n.EventType, err)
	}
	return nil
}

func (p *publisher) notify(ctx context.Context, key string, m Message) error {
	err := p.exclusively(ctx, func() error {
		if err := p.open(ctx); err != nil {
			return err
		}
		if !p.bound[key] {
			if err := p.declare(ctx, key); err != nil {
				return err
			}
			p.bound[key] = true
		}
		return p.send(ctx, p.options.Exchange, key, m, false)
	})
	p.report("notification", err)
	return err
}

// declare is bounded by ctx: the broker's answers are not.
func (p *publisher) declare(ctx context.Context, key string) error {
	done := make(chan error, 1)
	c := p.session.connection
	go func() { done <- declareNotifications(c, p.options, key) }()
	select {
	case err := <-done:
		var te *TopologyError
		if errors.As(err, &te) {
			return fmt.Errorf("%w: %w", ErrRefused, err)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDisconnected, err)
		}
		return nil
	case <-ctx.Done():
		p.session.fail(context.Cause(ctx))
		return fmt.Errorf("%w: declare queue %q: %w", ErrDisconnected, key, context.Cause(ctx))
	}
}

// Heartbeats tells the caller of r every half of its MonitorTimeout that the work goes
// on, until stop or until ctx ends. stop returns after the last heartbeat has left, so
// that none can follow the final reply. A caller that did not ask for heartbeats gets
// none: it would raise AttributeError (rpc/client, oslo.messaging 8ea2d5b
// _drivers/amqpdriver.py:628-677). stop may be called more than once.
func (b *Bus) Heartbeats(ctx context.Context, r Request) (stop func()) {
	if !r.IsCall() || r.MonitorTimeout < 2*time.Second {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { b.heartbeats(ctx, r) })
	return func() {
		cancel()
		wg.Wait()
	}
}

func (b *Bus) heartbeats(ctx context.Context, r Request) {
	period := r.MonitorTimeout / 2
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		err := b.heartbeat(ctx, r, period)
		if errors.Is(err, ErrUnroutable) {
			b.log.Info("caller is gone, no more heartbeats", "msg_id", r.MsgID)
			return // the work goes on (rpc/dispatcher.py:232-265)
		}
		if err != nil {
			b.log.Warn("heartbeat is not sent", "msg_id", r.MsgID, "error", err)
		}
	}
}

// heartbeat does not end with ctx: giving up a message under way costs the connection.
func (b *Bus) heartbeat(ctx context.Context, r Request, within time.Duration) error {
	m, err := EncodeReply(r.MsgID, Reply{Heartbeat: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), within)
	defer cancel()
	return b.publish.publish(ctx, "heartbeat", "", r.ReplyQueue, m, true)
}
