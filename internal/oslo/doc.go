// Package oslo is a worker's place on the OpenStack message bus: it reads and writes the
// messages of oslo.messaging, takes requests from a RabbitMQ queue, and publishes replies,
// casts and notifications. It knows nothing of Cinder. It is the only package that
// imports the AMQP library.
//
// # Words
//
// A request is an RPC message; a call is a request whose sender waits for a reply, a cast
// one whose sender does not. A delivery is a message that was taken and not yet settled;
// settling is Ack, Requeue or DeadLetter. A link is one supervised connection (there are
// two, to consume and to publish), a session one generation of it: between two losses.
//
// # Guarantees
//
//   - Messages are taken by free slot. Only a waiting Receive makes the broker hand out a
//     message, one each; what nobody waits for stays in the queue, visible as its length
//     and available to other workers.
//   - No delivery is lost: until it is settled the broker keeps it, and delivers it again
//     when the connection, the channel or the process ends. So a request can be delivered
//     more than once; recognising it is the caller's part.
//   - No delivery is settled for another. Each has an AMQP channel of its own that is never
//     reopened; settling after it is gone is ErrDeliveryGone and sends nothing.
//   - Ack returns after the broker has read it.
//   - A message that can't be decoded reaches the caller as a delivery with DecodeError, so
//     that it can be dead-lettered with the reason. DeadLetter acknowledges only after the
//     broker has confirmed the copy, and the copy holds no token.
//   - Publish, Cast, Reply and Notify return nil only after the broker's confirm, and after
//     looking for a return: the broker sends it before the confirm.
//   - What is decoded is bounded first: size, depth and number of elements.
//   - A token is a Secret: it does not print, log or encode.
//
// # Failures
//
// The connections are remade for ever, over all hosts in random order, with full jitter
// between 0 and 1 s at first and 0 and 30 s at last. Every connection declares its topology
// anew. A queue that exists with other arguments keeps the consuming link down; State and the
// log name the queue and say what to do, and it comes up when that is done.
//
// Not applied: ErrDisconnected, ErrUnroutable, ErrRefused. Perhaps applied: ErrNotConfirmed.
// A context that ends while a message is under way gives the publishing connection up:
// AMQP has no way to ask what became of it, and a late return would be taken for the
// next message's. Messages are published one at a time for the same reason.
//
// A broker in a memory or disk alarm stops reading from publishing connections, and tells those
// alone that publish. A probe, a message to nobody every few seconds, finds out. State shows it as
// Blocked, publishing waits for as long as its context allows and is ErrDisconnected then, which
// means that nothing was sent, and taking and acknowledging go on, on their own connection. It
// resumes by itself, on the same connection.
//
// # Poison
//
// A message whose takers neither settle it nor give it back, because it ends them, is handed out
// Options.Poison times (8). After that it is a delivery with ReasonPoison that nobody has read,
// for the dead letters, with the number of its takers. Three more may end over redacting it; then
// its body is replaced by its size and digest. See poison.go for how takers are counted. What is
// not bounded: on a classic queue a taker is not counted while nothing can be published. A caller
// is not told of poison: who it is stands in what nobody reads.
//
// # Topology
//
// The control exchange belongs to the whole cloud and is looked up before it is declared:
// declared with other flags it would break every service. The work queue is our own and
// durable, whatever the exchange is. See declareWork for the rest. A quorum work queue
// dead-letters by itself what exceeds its delivery limit (20) and the calls whose time is up, and
// such dead letters still hold the token of the request. The former does not happen: our own
// limit is lower. The latter loses the token when somebody looks ([DeadLetters.List]). The
// limit of the queue is not raised instead: a queue can't be declared with other arguments while
// older workers use it.
//
// At most about 2000 calls of Receive can wait at a time (RabbitMQ's channel_max is 2047).
package oslo
