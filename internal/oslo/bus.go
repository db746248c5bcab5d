package oslo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Options of a Bus. Transport and Topic are needed; the rest has a useful zero value.
type Options struct {
	Transport Transport
	Exchange  string // the cloud's control_exchange; default "openstack"
	Topic     string // work queue and routing key; default "cinder-image-upload"
	Name      string // shown as the connection's name in RabbitMQ; default "cinderlift"

	QueueType     QueueType // of the work queue; default as the cloud's
	DeliveryLimit int       // deliveries before a quorum queue dead-letters; default 20

	// Poison is how many takers of a message may not have come back from it before it is taken for the dead letters
	// unread; default 8, and always some below DeliveryLimit, so that it is we who do it and not the broker, whose dead
	// letters are not redacted. Below 0: never.
	Poison int

	DeadLetter string // exchange and queue; default Topic + ".dead"

	// Probe is how often the publishing connection is tried when nothing else is published: a broker in an alarm says
	// so only to who publishes. Default 5 s; below 0: never.
	Probe time.Duration

	Limits Limits // of a message
	Logger *slog.Logger
	Events Events

	dial dialFunc // nil: a real broker
}

// Events are called as things happen, for metrics. They must not block. Each may be nil.
// The role is "consume" or "publish".
type Events struct {
	Connected    func(role string)
	Disconnected func(role string, err error)
	Blocked      func(role string, blocked bool)
	Redelivered  func()            // a delivery that was delivered before
	Undecodable  func(Reason)      // a delivery that is no request
	Published    func(kind string) // confirmed: cast, reply, heartbeat, notification, dead-letter
	Unpublished  func(kind string, err error)
}

func (o Options) withDefaults() Options {
	defaultText(&o.Exchange, "openstack")
	defaultText(&o.Topic, "cinder-image-upload")
	defaultText(&o.Name, "cinderlift")
	defaultText(&o.DeadLetter, o.Topic+".dead")
	if o.QueueType == "" {
		o.QueueType = Classic
		if o.Transport.QuorumQueues {
			o.QueueType = Quorum
		}
	}
	if o.DeliveryLimit == 0 {
		o.DeliveryLimit = 20
	}
	if o.Poison == 0 {
		o.Poison = 8
	}
	if most := max(1, o.DeliveryLimit-unread-1); o.Poison > most {
		o.Poison = most
	}
	if o.Probe == 0 {
		o.Probe = 5 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.dial == nil {
		o.dial = dialAMQP
	}
	o.Limits = o.Limits.withDefaults()
	return o
}

func defaultText(s *string, value string) {
	if *s == "" {
		*s = value
	}
}

// Bus is a worker's place on the message bus. All methods are safe for concurrent use;
// they need a Run under way.
type Bus struct {
	options Options
	log     *slog.Logger
	consume *link
	publish *publisher
	intake  *gate
	dead    *deadQueues
}

// New checks o. It connects to nothing; Run does.
func New(o Options) (*Bus, error) {
	o = o.withDefaults()
	if len(o.Transport.Hosts) == 0 {
		return nil, errors.New("open bus: no host in the transport")
	}
	if o.QueueType != Classic && o.QueueType != Quorum {
		return nil, fmt.Errorf("open bus: queue type %q is neither classic nor quorum", o.QueueType)
	}
	for _, name := range []string{o.Exchange, o.Topic, o.DeadLetter} {
		if len(name) > maxName {
			return nil, fmt.Errorf("open bus: the name %.20s… has %d bytes, at most %d", name, len(name), maxName)
		}
	}
	b := &Bus{options: o, log: o.Logger, intake: newGate(), dead: newDeadQueues()}
	b.consume = newLink("consume", o, func(c connection) error { return declareWork(c, o) })
	b.publish = newPublisher(newLink("publish", o, func(connection) error { return nil }), o)
	return b, nil
}

// Run keeps two connections, one to consume and one to publish, until ctx ends, and
// returns when both are closed (a few seconds at most). They are two because a broker
// in a memory or disk alarm stops reading from connections that publish, and
// acknowledgements must not wait behind that. It returns nil: there is no
// failure that it does not keep working on.
func (b *Bus) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	wg.Go(func() { b.consume.run(ctx) })
	wg.Go(func() { b.publish.link.run(ctx) })
	wg.Go(func() { b.publish.probe(ctx) })
	wg.Wait()
	return nil
}

// State is what readiness probes look at.
type State struct {
	Consume LinkState
	Publish LinkState
	Paused  bool
}

// Ready reports whether requests can be taken and answered.
func (s State) Ready() bool {
	return s.Consume.Connected && s.Publish.Connected && s.Publish.Blocked == ""
}

// LinkState is the state of one connection.
type LinkState struct {
	Connected  bool
	Since      time.Time // of the current state
	Reason     string    // why it is not connected
	Blocked    string    // why the broker does not read from it, empty if it does
	Host       string    // of the current or last connection
	Generation uint64    // counts connections
}

// State returns the state now.
func (b *Bus) State() State {
	return State{Consume: b.consume.snapshot(), Publish: b.publish.link.snapshot(), Paused: !b.intake.isOpen()}
}

// PauseIntake stops taking messages: consumers are cancelled, nothing is returned to
// the queue, waiting calls of Receive go on waiting. A message that was under way is
// still handed out. Idempotent.
func (b *Bus) PauseIntake() { b.intake.shut() }

// ResumeIntake undoes PauseIntake. Idempotent.
func (b *Bus) ResumeIntake() { b.intake.open() }

// gate can be waited for in both directions.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed while open
	shutC  chan struct{} // closed while shut
}

func newGate() *gate {
	g := &gate{opened: make(chan struct{}), shutC: make(chan struct{})}
	close(g.opened)
	return g
}

func (g *gate) isOpen() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return closed(g.opened)
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if closed(g.opened) {
		g.opened = make(chan struct{})
		close(g.shutC)
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !closed(g.opened) {
		close(g.opened)
		g.shutC = make(chan struct{})
	}
}

// whenOpen and whenShut return a channel that is closed in that state.
func (g *gate) whenOpen() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.opened
}

func (g *gate) whenShut() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shutC
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
