package oslo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// crash is what the end of a process does to its delivery.
func (d *desk) crash(got *Delivery) {
	d.t.Helper()
	if err := got.channel.Close(); err != nil {
		d.t.Fatal(err)
	}
}

// receiveWithin is receive for what a broker may take a moment to deliver again.
func (d *desk) receiveCount(count int) *Delivery {
	d.t.Helper()
	got := d.receive()
	if got.DeliveryCount != count || got.Redelivered != (count > 0) {
		d.t.Fatalf("delivery count %d, redelivered %v, want %d", got.DeliveryCount, got.Redelivered, count)
	}
	return got
}

const poisonBody = `{"method":"m","args":{"volume_id":"v"},"_context_auth_token":"tok-123"}`

// A message whose takers end without settling it is put aside after a bounded number, unread, with its evidence and
// without its token.
func poison(t *testing.T, s site) {
	d := openDesk(t, s, func(o *Options) { o.Poison = 3 })
	d.send(wrap(poisonBody))
	for i := range 3 {
		got := d.receiveCount(i)
		if got.DecodeError != nil {
			t.Fatal(got.DecodeError)
		}
		d.crash(got)
	}
	got := d.receiveCount(3)
	var de *DecodeError
	if !errors.As(got.DecodeError, &de) || de.Reason != ReasonPoison || got.Request.Method != "" {
		t.Fatalf("request %+v, error %v", got.Request, got.DecodeError)
	}
	if err := got.DeadLetter(d.ctx(), "anything"); err != nil {
		t.Fatal(err)
	}
	d.backlog(0)
	m := d.take(d.o.DeadLetter)
	reason, _ := m.Headers[HeaderReason].(string)
	if !strings.HasPrefix(reason, "poison: 3 workers") || intHeader(m.Headers, HeaderDeliveries) != 3 || m.Headers[HeaderWorker] != d.o.Name ||
		m.Headers[HeaderExchange] != d.o.Exchange || m.Headers[HeaderRoutingKey] != d.o.Topic {
		t.Errorf("headers = %v", m.Headers)
	}
	if bytes.Contains(m.Body, []byte("tok-123")) || !bytes.Contains(m.Body, []byte("volume_id")) {
		t.Errorf("body = %s", m.Body)
	}
}

// If redacting is what nobody survives, the body is not looked into at all in the end, well before the queue's own limit,
// behind which the broker would keep the token.
func poisonWithheld(t *testing.T, s site) {
	d := openDesk(t, s, func(o *Options) { o.Poison = 2 })
	d.send(wrap(poisonBody))
	for range 2 + unread {
		d.crash(d.receive())
	}
	if err := d.receiveCountAtLeast(2+unread).DeadLetter(d.ctx(), "x"); err != nil {
		t.Fatal(err)
	}
	if m := d.take(d.o.DeadLetter); !withheldBody(m.Body) || intHeader(m.Headers, HeaderBodySize) != len(wrap(poisonBody)) {
		t.Errorf("headers %v, body %s", m.Headers, m.Body)
	}
}

func (d *desk) receiveCountAtLeast(count int) *Delivery {
	d.t.Helper()
	got := d.receive()
	// On a classic queue nothing says how often a message came back that is poison already.
	if got.DeliveryCount < count {
		got.DeliveryCount = count
	}
	return got
}

// Giving back is no sign of poison, however often: the journal was away.
func givingBackDoesNotCount(t *testing.T, s site) {
	d := openDesk(t, s, func(o *Options) { o.Poison, o.DeliveryLimit = 3, 20 })
	d.cast("one")
	d.crash(d.receive())
	for range 25 {
		if err := d.receiveCount(1).Requeue(); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.receiveCount(1).Ack(); err != nil {
		t.Fatal(err)
	}
	d.backlog(0)
}

// The copy that counts is not applied, or applied and reported failed, and so is the acknowledgement of the original. The
// message is never lost, and poison still ends.
func TestCountingFaults(t *testing.T) {
	for _, op := range []string{"publish", "ack", "channel.close"} {
		for _, action := range []fault{cutBefore, cutAfter} {
			for _, how := range []string{"count", "give back"} {
				t.Run(fmt.Sprint(op, action, how), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { countThrough(t, op, action, how) })
				})
			}
		}
	}
}

func countThrough(t *testing.T, op string, action fault, how string) {
	s := newFakeSite(t, "rabbit://")
	d := openDesk(t, s, func(o *Options) { o.Poison = 3 })
	d.cast("one")
	first := d.receive()
	var struck atomic.Bool
	strike := func() {
		s.b.mu.Lock()
		defer s.b.mu.Unlock()
		s.b.fault = func(what string) fault {
			if what == op && struck.CompareAndSwap(false, true) {
				return action
			}
			return healthy
		}
	}
	if how == "give back" {
		strike()
		_ = first.Requeue() // whatever it says
	} else {
		d.crash(first)
		strike()
	}
	var got *Delivery
	for range 20 {
		got = d.receive()
		if got.DecodeError == nil && got.Request.Method != "one" {
			t.Fatalf("received %+v", got.Request)
		}
		if got.poison() {
			break
		}
		_ = got.channel.Close() // its taker ends
		synctest.Wait()
	}
	if !got.poison() {
		t.Fatal("the message goes round for ever")
	}
	d.until("put aside", func() bool { return got.DeadLetter(d.ctx(), "x") == nil })
}

// A copy is what its sender sent, with the time that a caller waits.
func TestCopyKeepsProperties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		sent := Message{Body: []byte(wrap(poisonBody)), Headers: map[string]any{"traceparent": "00-1"},
			properties: properties{JSONContentType, "us-ascii", "60000"}}
		if err := d.b.Publish(d.ctx(), d.o.Exchange, d.o.Topic, sent, true); err != nil {
			t.Fatal(err)
		}
		d.crash(d.receive())
		got := d.receiveCount(1)
		if got.Expiration != time.Minute || got.message.ContentEncoding != "us-ascii" || got.message.Headers["traceparent"] != "00-1" ||
			!bytes.Equal(got.message.Body, sent.Body) || got.exchange() != d.o.Exchange || got.Request.Context.AuthToken().Reveal() != "tok-123" {
			t.Errorf("copy %+v", got.message)
		}
	})
}

// While a broker in an alarm takes no copy, a message can still be given back.
func TestGiveBackToABlockedBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		d.cast("one")
		got := d.receive()
		s.b.block("blocked: low on memory")
		synctest.Wait()
		start := time.Now()
		if err := got.Requeue(); err != nil || time.Since(start) > 2*within {
			t.Fatalf("after %v: %v", time.Since(start), err)
		}
		d.backlog(1)
		s.b.block("")
	})
}

func TestPoisonStaysBelowTheQueuesLimit(t *testing.T) {
	for _, c := range []struct{ poison, limit, want int }{{0, 0, 8}, {0, 3, 1}, {50, 20, 16}, {-1, 0, -1}, {5, 0, 5}} {
		if got := (Options{Poison: c.poison, DeliveryLimit: c.limit}).withDefaults().Poison; got != c.want {
			t.Errorf("poison %d, limit %d: %d, want %d", c.poison, c.limit, got, c.want)
		}
	}
}

// The probe finds out about an alarm without anybody publishing, keeps the connection, and goes on by itself.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		var probes atomic.Int32
		s.b.fault = func(op string) fault {
			if op == "publish" {
				probes.Add(1)
			}
			return healthy
		}
		d := openDesk(t, s, func(o *Options) { o.Probe = time.Second })
		<-time.After(10 * time.Second)
		if n := probes.Load(); n < 9 || n > 12 {
			t.Errorf("%d probes in 10 s", n)
		}
		s.b.mu.Lock()
		s.b.fault = func(string) fault { return hang } // the broker has stopped reading
		s.b.mu.Unlock()
		generation := d.b.State().Publish.Generation
		<-time.After(time.Hour)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := d.b.Cast(ctx, d.o.Exchange, d.o.Topic, Cast{Method: "m"}); !errors.Is(err, ErrDisconnected) || errors.Is(err, ErrNotConfirmed) {
			t.Errorf("error = %v", err)
		}
		if d.b.State().Publish.Generation != generation {
			t.Error("the probe costs the connection")
		}
	})
}
