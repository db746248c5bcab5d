package oslo

import (
	"errors"
	"fmt"
)

// QueueType is the kind of the work queue and of the dead-letter queue.
type QueueType string

// The queue types; the zero value follows the cloud (rabbit_quorum_queue in the
// transport URL).
const (
	Classic QueueType = "classic"
	Quorum  QueueType = "quorum"
)

// TopologyError says that an exchange or a queue is not as it has to be.
type TopologyError struct {
	Kind string // "exchange" or "queue"
	Name string
	Hint string // what an operator can do
	Err  error
}

func (e *TopologyError) Error() string {
	return fmt.Sprintf("declare %s %q: %v; %s", e.Kind, e.Name, e.Err, e.Hint)
}

func (e *TopologyError) Unwrap() error { return e.Err }

// declareWork makes the way for requests: control exchange, dead-letter exchange and
// queue, work queue and its binding. It runs on every connection before anything is
// consumed, because a transient exchange is gone after a broker restart and whoever
// declares it next does so without our binding.
//
// There is no queue <topic>.<server>: it would tie a request to one worker of the
// pool, and nobody addresses one. There is no fanout either: nothing is for everyone.
func declareWork(c connection, o Options) error {
	dead := queue{name: o.DeadLetter, durable: true, args: o.deadArgs()}
	if err := declareExchange(c, exchange{name: o.DeadLetter, kind: "fanout", durable: true}); err != nil {
		return err
	}
	if err := declareQueue(c, dead, false); err != nil {
		return err
	}
	if err := bind(c, dead.name, "", o.DeadLetter); err != nil {
		return err
	}
	if err := declareExchange(c, o.control()); err != nil {
		return err
	}
	work := queue{name: o.Topic, durable: true, args: o.workArgs()}
	if err := declareQueue(c, work, false); err != nil {
		return err
	}
	return bind(c, work.name, o.Topic, o.Exchange)
}

// declareNotifications does what a Python publisher does: the queue of the topic is
// declared and bound, so that listeners who consume from it under another exchange
// get the event too (oslo.messaging 8ea2d5b _drivers/impl_rabbit.py:1599-1639).
// Both are only looked up if they exist: they belong to all services of the cloud.
func declareNotifications(c connection, o Options, name string) error {
	if err := declareExchange(c, o.control()); err != nil {
		return err
	}
	q := queue{name: name, durable: o.durable(), autoDelete: o.Transport.AutoDelete, args: o.cloudArgs()}
	if err := declareQueue(c, q, true); err != nil {
		return err
	}
	return bind(c, name, name, o.Exchange)
}

// control is the exchange that all services share. Declaring it with the wrong
// durability breaks every one of them, so it is declared only when it is not there.
func (o Options) control() exchange {
	return exchange{name: o.Exchange, kind: "topic", durable: o.durable(), autoDelete: o.Transport.AutoDelete}
}

// durable as in impl_rabbit.py:921-925.
func (o Options) durable() bool { return o.Transport.DurableQueues || o.Transport.QuorumQueues }

func (o Options) cloudArgs() map[string]any {
	if !o.Transport.QuorumQueues {
		return nil
	}
	args := map[string]any{"x-queue-type": string(Quorum)}
	if o.Transport.DeliveryLimit > 0 {
		args["x-delivery-limit"] = int32(o.Transport.DeliveryLimit)
	}
	return args
}

func (o Options) deadArgs() map[string]any {
	if o.QueueType != Quorum {
		return nil
	}
	return map[string]any{"x-queue-type": string(Quorum)}
}

// workArgs: a quorum queue on RabbitMQ 4 drops a message after 20 deliveries, so the
// limit is explicit and what exceeds it goes to the dead letters, token and all. It is
// there for messages that end even who puts them aside unread; Options.Poison is lower. At-least-once dead
// lettering only works with reject-publish; without it the broker silently falls back
// to at-most-once. A classic queue has no limit, and would only dead-letter calls that
// nobody waits for any more.
func (o Options) workArgs() map[string]any {
	if o.QueueType != Quorum {
		return nil
	}
	return map[string]any{
		"x-queue-type": string(Quorum), "x-delivery-limit": int32(o.DeliveryLimit),
		"x-dead-letter-exchange": o.DeadLetter, "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish",
	}
}

// declareExchange looks first and declares only what is missing.
func declareExchange(c connection, e exchange) error {
	err := onChannel(c, func(ch declarerChannel) error { return ch.DeclareExchange(e, true) })
	if brokerCode(err) == codeNotFound {
		err = onChannel(c, func(ch declarerChannel) error { return ch.DeclareExchange(e, false) })
	}
	return topologyError("exchange", e.name, err)
}

func declareQueue(c connection, q queue, lookFirst bool) error {
	err := error(&brokerError{Code: codeNotFound})
	if lookFirst {
		err = onChannel(c, func(ch declarerChannel) error { return ch.DeclareQueue(q, true) })
	}
	if brokerCode(err) == codeNotFound {
		err = onChannel(c, func(ch declarerChannel) error { return ch.DeclareQueue(q, false) })
	}
	return topologyError("queue", q.name, err)
}

func bind(c connection, queue, key, exchange string) error {
	err := onChannel(c, func(ch declarerChannel) error { return ch.Bind(queue, key, exchange) })
	return topologyError("binding of queue", queue, err)
}

// onChannel uses a channel of its own for each declaration: the broker closes it on
// the first error.
func onChannel(c connection, f func(declarerChannel) error) error {
	ch, err := c.Declarer()
	if err != nil {
		return err
	}
	defer ch.Close()
	return f(ch)
}

func topologyError(kind, name string, err error) error {
	if err == nil {
		return nil
	}
	var be *brokerError
	if !errors.As(err, &be) {
		return fmt.Errorf("declare %s %q: %w", kind, name, err)
	}
	hint := "see the broker's log"
	switch be.Code {
	case codePreconditionFailed:
		hint = "it exists with other arguments: either set the queue type, delivery limit and durability of cinderlift to" +
			" what it has, or let it run empty, delete it, and it is declared anew within seconds"
	case codeAccessRefused:
		hint = "grant the user of transport_url the permission to configure, write and read it"
	}
	return &TopologyError{Kind: kind, Name: name, Hint: hint, Err: err}
}
