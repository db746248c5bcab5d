package oslo

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSite runs the suite on the fake broker.
type fakeSite struct {
	b         *fakeBroker
	transport Transport
	n         int
}

func newFakeSite(t *testing.T, url string) *fakeSite {
	t.Helper()
	tr, err := ParseTransportURL(url)
	if err != nil {
		t.Fatal(err)
	}
	return &fakeSite{b: newFakeBroker(), transport: tr}
}

func (s *fakeSite) options(*testing.T) Options {
	s.n++
	return Options{Transport: s.transport, Exchange: fmt.Sprint("x", s.n), Topic: fmt.Sprint("topic", s.n), Probe: -1, dial: s.b.dial}
}

func (s *fakeSite) ready(_ *testing.T, name string) int {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	q, ok := s.b.queues[name]
	if !ok {
		return -1
	}
	return len(q.ready)
}

func (s *fakeSite) remove(_ *testing.T, name string) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	q, ok := s.b.queues[name]
	if !ok {
		return
	}
	delete(s.b.queues, name)
	for len(q.consumers) > 0 {
		q.consumers[0].stop()
	}
}

func (s *fakeSite) cut(*testing.T, Options) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for c := range s.b.conns {
		if c.name != "observer" {
			c.die(errCut)
		}
	}
}

func TestSuiteOnFake(t *testing.T) {
	for _, kind := range []struct{ name, url string }{
		{"classic", "rabbit://"}, {"durable", "rabbit://h1,h2/?amqp_durable_queues=1"}, {"quorum", "rabbit://?rabbit_quorum_queue=1"},
	} {
		for name, f := range suite() {
			t.Run(kind.name+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { f(t, newFakeSite(t, kind.url)) })
			})
		}
	}
}

// operations of taking and settling, and of publishing, in the fake's words.
var takeOps = [...]string{"dial", "channel.open", "exchange.declare", "queue.declare", "queue.bind", "consume", "deliver", "cancel", "ack", "channel.close"}

// The connection is cut before and after each operation, once, at its first to fourth
// occurrence. Every message is taken, and in the end none is left.
func TestTakingSurvivesEveryCut(t *testing.T) {
	for _, url := range []string{"rabbit://", "rabbit://?rabbit_quorum_queue=1"} {
		for _, op := range takeOps {
			for _, action := range []fault{cutBefore, cutAfter} {
				for occurrence := int32(1); occurrence <= 4; occurrence++ {
					t.Run(fmt.Sprint(url, op, action, occurrence), func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) { takeThrough(t, url, op, action, occurrence) })
					})
				}
			}
		}
	}
}

func takeThrough(t *testing.T, url, op string, action fault, occurrence int32) {
	s := newFakeSite(t, url)
	var seen, struck atomic.Int32
	s.b.fault = func(what string) fault {
		if what == op && seen.Add(1) == occurrence {
			struck.Add(1)
			return action
		}
		return healthy
	}
	d := newDesk(t, s, nil)
	taken := map[string]int{}
	for i := range 3 {
		d.cast2(fmt.Sprint("m", i))
		got := d.receive()
		taken[got.Request.Method]++
		if err := got.Ack(); err != nil && !errors.Is(err, ErrDeliveryGone) {
			t.Fatalf("ack: %v", err)
		}
	}
	// What was not acknowledged after all comes again.
	for {
		synctest.Wait()
		if s.ready(t, d.o.Topic) == 0 && s.unsettled() == 0 {
			break
		}
		got := d.receive()
		taken[got.Request.Method]++
		if !got.Redelivered && taken[got.Request.Method] > 1 {
			t.Errorf("%s came twice and is not marked", got.Request.Method)
		}
		_ = got.Ack() // gone is as good as settled: it comes again
	}
	for i := range 3 {
		if taken[fmt.Sprint("m", i)] == 0 {
			t.Errorf("m%d is lost", i)
		}
	}
}

func (s *fakeSite) unsettled() int {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	n := 0
	for c := range s.b.conns {
		for ch := range c.channels {
			n += len(ch.unsettled)
		}
	}
	return n
}

// A publish that was not applied, and one that was but whose confirm is lost, look
// alike: not confirmed. Neither confuses the next message.
func TestPublishFaults(t *testing.T) {
	for name, c := range map[string]struct {
		action  fault
		arrives int
	}{
		"not applied": {cutBefore, 0}, "applied, confirm lost": {cutAfter, 1}, "no answer": {hang, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newFakeSite(t, "rabbit://")
				d := openDesk(t, s, nil)
				strike := atomic.Bool{}
				s.b.mu.Lock()
				s.b.fault = func(op string) fault {
					if op == "publish" && strike.CompareAndSwap(false, true) {
						return c.action
					}
					return healthy
				}
				s.b.mu.Unlock()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				err := d.b.Cast(ctx, d.o.Exchange, d.o.Topic, Cast{Method: "one"})
				if !errors.Is(err, ErrNotConfirmed) || errors.Is(err, ErrDisconnected) {
					t.Errorf("error = %v", err)
				}
				d.backlog(c.arrives)
				synctest.Wait() // the loss is noticed
				d.until("ready", func() bool { return d.b.State().Ready() })
				d.cast("two")
				d.backlog(c.arrives + 1)
			})
		})
	}
}

func TestDeadLetterFaults(t *testing.T) {
	for name, c := range map[string]struct {
		op     string
		action fault
		copies int  // in the dead-letter queue after the first try
		gone   bool // the first try says that the delivery is gone
	}{
		"publish not applied":    {"publish", cutBefore, 0, false},
		"publish, confirm lost":  {"publish", cutAfter, 1, false},
		"ack not applied":        {"ack", cutBefore, 1, true},
		"ack applied, then lost": {"ack", cutAfter, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newFakeSite(t, "rabbit://")
				d := openDesk(t, s, nil)
				d.send("garbage")
				got := d.receive()
				strike := atomic.Bool{}
				s.b.mu.Lock()
				s.b.fault = func(op string) fault {
					if op == c.op && strike.CompareAndSwap(false, true) {
						return c.action
					}
					return healthy
				}
				s.b.mu.Unlock()
				err := got.DeadLetter(d.ctx(), "not-json")
				if err == nil || errors.Is(err, ErrDeliveryGone) != c.gone {
					t.Fatalf("error = %v", err)
				}
				if n := s.ready(t, d.o.DeadLetter); n != c.copies {
					t.Errorf("%d copies", n)
				}
				if c.gone {
					return
				}
				// The delivery is still ours: the publishing connection is another one.
				synctest.Wait()
				d.until("ready", func() bool { return d.b.State().Ready() })
				if err := got.DeadLetter(d.ctx(), "not-json"); err != nil {
					t.Fatal(err)
				}
				d.backlog(0)
			})
		})
	}
}

func TestBlockedBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		d.cast("one")
		s.b.block("blocked: low on memory")
		synctest.Wait()
		st := d.b.State()
		if st.Ready() || st.Publish.Blocked == "" || !st.Publish.Connected {
			t.Errorf("state = %+v", st)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		// Nothing was sent, so nothing is in doubt and the connection stays.
		if err := d.b.Cast(ctx, d.o.Exchange, d.o.Topic, Cast{Method: "two"}); !errors.Is(err, ErrDisconnected) || errors.Is(err, ErrNotConfirmed) {
			t.Errorf("error = %v", err)
		}
		if d.b.State().Publish.Generation != st.Publish.Generation {
			t.Error("the blocked connection was given up")
		}
		if err := d.receive().Ack(); err != nil { // taking and settling go on
			t.Fatal(err)
		}
		s.b.block("")
		synctest.Wait()
		if !d.b.State().Ready() {
			t.Errorf("state = %+v", d.b.State())
		}
		d.cast("three")
	})
}

// A transient exchange is gone after a restart: the binding is made again.
func TestFakeRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		d.cast("one")
		s.b.restart()
		synctest.Wait()
		d.until("ready", func() bool { return d.b.State().Ready() })
		d.cast("two")
		for _, want := range []string{"one", "two"} {
			if got := d.receive(); got.Request.Method != want || got.Ack() != nil {
				t.Errorf("received %s, want %s", got.Request.Method, want)
			}
		}
	})
}

func TestDeadReplyQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		var tries atomic.Int32
		s.b.mu.Lock()
		s.b.fault = func(op string) fault {
			if op == "publish" {
				tries.Add(1)
			}
			return healthy
		}
		s.b.mu.Unlock()
		r := Request{Method: "m", MsgID: "1", ReplyQueue: "reply_dead"}
		started := time.Now()
		err := d.b.Reply(context.Background(), r, Reply{})
		if took := time.Since(started); !errors.Is(err, ErrReplyQueueGone) || !errors.Is(err, ErrUnroutable) || took != time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
		if n := tries.Load(); n < 230 || n > 241 {
			t.Errorf("%d tries", n)
		}
		started = time.Now()
		if err := d.b.Reply(context.Background(), r, Reply{}); !errors.Is(err, ErrReplyQueueGone) || time.Since(started) != 0 {
			t.Errorf("second reply after %v: %v", time.Since(started), err)
		}
		<-time.After(time.Minute)
		d.declare(queue{name: "reply_dead"})
		if err := d.b.Reply(context.Background(), r, Reply{}); err != nil {
			t.Errorf("after a minute: %v", err)
		}
	})
}

func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		d.declare(queue{name: "reply_1"})
		r := Request{Method: "m", MsgID: "1", ReplyQueue: "reply_1", MonitorTimeout: 4 * time.Second}
		stop := d.b.Heartbeats(context.Background(), r)
		<-time.After(9 * time.Second)
		stop()
		<-time.After(9 * time.Second)
		if n := s.ready(t, "reply_1"); n != 4 {
			t.Errorf("%d heartbeats in 9 s, want 4", n)
		}
		for name, other := range map[string]Request{
			"not asked for": {Method: "m", MsgID: "1", ReplyQueue: "reply_1"},
			"a cast":        {Method: "m", MonitorTimeout: 4 * time.Second},
		} {
			stop := d.b.Heartbeats(context.Background(), other)
			<-time.After(9 * time.Second)
			stop()
			if n := s.ready(t, "reply_1"); n != 4 {
				t.Errorf("%s: %d heartbeats", name, n-4)
			}
		}
	})
}

// A caller that is gone ends the heartbeats, not the work; a lost connection ends neither.
func TestHeartbeatsWithoutCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://")
		d := openDesk(t, s, nil)
		var tries atomic.Int32
		s.b.mu.Lock()
		s.b.fault = func(op string) fault {
			if op == "publish" && tries.Add(1) == 1 {
				return cutAfter
			}
			return healthy
		}
		s.b.mu.Unlock()
		d.declare(queue{name: "reply_1"})
		r := Request{Method: "m", MsgID: "1", ReplyQueue: "reply_1", MonitorTimeout: 10 * time.Second}
		stop := d.b.Heartbeats(context.Background(), r)
		defer stop()
		<-time.After(11 * time.Second)
		if n := s.ready(t, "reply_1"); n != 2 {
			t.Errorf("%d heartbeats over a lost connection, want 2", n)
		}
		s.remove(t, "reply_1")
		<-time.After(60 * time.Second)
		if n := tries.Load(); n != 3 {
			t.Errorf("%d tries, want one more after the caller had gone", n)
		}
	})
}

func TestDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://h1,h2,h3")
		down := atomic.Bool{}
		var dials atomic.Int32
		s.b.fault = func(op string) fault {
			if op == "dial" && down.Load() {
				dials.Add(1)
				return cutBefore
			}
			return healthy
		}
		d := openDesk(t, s, nil)
		down.Store(true)
		s.cut(t, d.o)
		synctest.Wait()
		if err := d.b.Cast(d.ctx(), d.o.Exchange, d.o.Topic, Cast{Method: "m"}); !errors.Is(err, ErrDisconnected) {
			t.Errorf("error = %v", err)
		}
		<-time.After(10 * time.Minute)
		st := d.b.State()
		if st.Ready() || st.Consume.Reason == "" || time.Since(st.Consume.Since) < 9*time.Minute {
			t.Errorf("state = %+v", st)
		}
		// Two links, three hosts, at most 30 s and 15 s on average between rounds.
		if n := dials.Load(); n < 2*3*20 || n > 2*3*80 {
			t.Errorf("%d dials in ten minutes", n)
		}
		down.Store(false)
		<-time.After(31 * time.Second)
		if !d.b.State().Ready() {
			t.Errorf("state = %+v", d.b.State())
		}
	})
}

func TestNewRefuses(t *testing.T) {
	tr, err := ParseTransportURL("rabbit://")
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"no host":    {},
		"queue type": {Transport: tr, QueueType: "stream"},
		"long name":  {Transport: tr, Topic: string(make([]byte, 256))},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestWrongIncoming(t *testing.T) {
	for name, c := range map[string]struct {
		m      incoming
		reason Reason
	}{
		"compressed": {incoming{ContentType: JSONContentType, Headers: map[string]any{"compression": "application/x-gzip"}}, ReasonCompressed},
		"utf-16":     {incoming{ContentType: JSONContentType, ContentEncoding: "utf-16"}, ReasonContentType},
		"pickle":     {incoming{ContentType: "application/x-python-serialize", ContentEncoding: "binary"}, ReasonContentType},
	} {
		_, err := decodeIncoming(c.m, Limits{})
		var de *DecodeError
		if !errors.As(err, &de) || de.Reason != c.reason {
			t.Errorf("%s: %v", name, err)
		}
	}
}
