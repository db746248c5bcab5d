package oslo

import (
	"bytes"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func (d *desk) openDead() *DeadLetters {
	d.t.Helper()
	o := d.o
	o.Name = "observer"
	l, err := OpenDead(d.ctx(), o)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(l.Close)
	return l
}

func (d *desk) listed(l *DeadLetters, n int) []Dead {
	d.t.Helper()
	var list []Dead
	d.until("listed", func() bool {
		var err error
		if list, err = l.List(d.ctx()); err != nil {
			d.t.Fatal(err)
		}
		return len(list) == n
	})
	return list
}

func everything(Dead) bool { return true }

// bury sends a message and puts it aside.
func (d *desk) bury(method string) {
	d.t.Helper()
	d.send(wrap(`{"method":"` + method + `","args":{"volume_id":"v"},"_context_auth_token":"tok-123","_unique_id":"` + method + `-id"}`))
	if err := d.receive().DeadLetter(d.ctx(), "conflict: two of them"); err != nil {
		d.t.Fatal(err)
	}
}

// Looking leaves everything where it is, however often; what is replayed is in the work queue, what is dropped is gone.
func deadLetters(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	l := d.openDead()
	d.listed(l, 0)
	for _, name := range []string{"one", "two", "three"} {
		d.bury(name)
	}
	for range 2*looksMost + 5 {
		list := d.listed(l, 3)
		for i, name := range []string{"one", "two", "three"} {
			got := list[i]
			if got.ID != name+"-id" || got.Index != i+1 || got.Reason != "conflict: two of them" || got.Request.Method != name ||
				got.Exchange != d.o.Exchange || got.RoutingKey != d.o.Topic || time.Since(got.Time) > time.Hour || got.Worker != d.o.Name {
				t.Fatalf("%d: %+v", i, got)
			}
		}
	}
	done, err := l.Replay(d.ctx(), func(m Dead) bool { return m.ID == "two-id" })
	if err != nil || len(done) != 1 {
		t.Fatalf("replayed %v, %v", done, err)
	}
	if got := d.receive(); got.Request.Method != "two" || got.DeliveryCount != 0 || got.exchange() != d.o.Exchange || got.Ack() != nil {
		t.Errorf("replayed as %+v", got.Request)
	}
	d.listed(l, 2)
	done, err = l.Drop(d.ctx(), func(m Dead) bool { return m.Index == 1 })
	if err != nil || len(done) != 1 || done[0].ID != "one-id" {
		t.Fatalf("dropped %v, %v", done, err)
	}
	if list := d.listed(l, 1); list[0].ID != "three-id" {
		t.Errorf("left is %+v", list[0])
	}
	if done, err = l.Drop(d.ctx(), everything); err != nil || len(done) != 1 {
		t.Fatalf("dropped %v, %v", done, err)
	}
	d.listed(l, 0)
}

// A body that was not kept stays until it is dropped.
func deadWithheld(t *testing.T, s site) {
	d := openDesk(t, s, nil)
	d.send("\xff\xfe")
	if err := d.receive().DeadLetter(d.ctx(), "not-json"); err != nil {
		t.Fatal(err)
	}
	l := d.openDead()
	if list := d.listed(l, 1); list[0].ID == "" || list[0].DecodeError == nil || list[0].BodySize != 2 {
		t.Errorf("listed %+v", list[0])
	}
	if done, err := l.Replay(d.ctx(), everything); !errors.Is(err, ErrWithheld) || len(done) != 0 {
		t.Errorf("replayed %v, %v", done, err)
	}
	d.listed(l, 1)
}

// deadByBroker is what a queue puts there by itself: nobody has redacted it.
func TestDeadByTheBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newFakeSite(t, "rabbit://?rabbit_quorum_queue=1")
		d := openDesk(t, s, nil)
		at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
		m := Message{Body: []byte(wrap(poisonBody)), Headers: map[string]any{"x-death": []any{map[string]any{
			"reason": "delivery_limit", "exchange": "openstack", "routing-keys": []any{"work"}, "time": at, "count": int64(1)}}}}
		if err := d.b.Publish(d.ctx(), "", d.o.DeadLetter, m, true); err != nil {
			t.Fatal(err)
		}
		l := d.openDead()
		for i := range 3 {
			got := d.listed(l, 1)[0]
			if got.Reason != "dead-lettered by the broker: delivery_limit" || got.Exchange != "openstack" || got.RoutingKey != "work" ||
				!got.Time.Equal(at) || bytes.Contains(got.Body, []byte("tok-123")) || !got.Request.Context.AuthToken().IsZero() {
				t.Errorf("look %d: %+v", i, got)
			}
		}
		if left := d.take(d.o.DeadLetter); bytes.Contains(left.Body, []byte("tok-123")) {
			t.Errorf("the token is still there: %s", left.Body)
		}
	})
}

// Every write of a look, a replay and a drop is not applied, or applied and reported failed: nothing is lost, and doing it
// again brings it to its end.
func TestDeadFaults(t *testing.T) {
	for _, c := range []struct {
		op     string
		action fault
	}{{"publish", cutBefore}, {"publish", cutAfter}, {"ack", cutBefore}, {"ack", cutAfter}, {"get", cutAfter}, {"channel.close", cutBefore}} {
		for _, what := range []string{"list", "replay", "drop"} {
			t.Run(c.op+"/"+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newFakeSite(t, "rabbit://?rabbit_quorum_queue=1")
					d := openDesk(t, s, nil)
					d.bury("one")
					m := Message{Body: []byte(wrap(poisonBody))} // not redacted, so that a look writes
					if err := d.b.Publish(d.ctx(), "", d.o.DeadLetter, m, true); err != nil {
						t.Fatal(err)
					}
					var struck atomic.Bool
					s.b.mu.Lock()
					s.b.fault = func(op string) fault {
						if op == c.op && struck.CompareAndSwap(false, true) {
							return c.action
						}
						return healthy
					}
					s.b.mu.Unlock()
					act := func(l *DeadLetters) (err error) {
						switch what {
						case "list":
							_, err = l.List(d.ctx())
						case "replay":
							_, err = l.Replay(d.ctx(), everything)
						default:
							_, err = l.Drop(d.ctx(), everything)
						}
						return err
					}
					err := act(d.openDead())
					if struck.Load() && err == nil {
						t.Error("the fault goes unnoticed")
					}
					if err := act(d.openDead()); err != nil {
						t.Fatal(err)
					}
					here, there := s.ready(t, d.o.DeadLetter), s.ready(t, d.o.Topic)
					if what == "list" && here < 2 || what != "list" && here != 0 || what == "replay" && there < 2 || what == "drop" && there != 0 {
						t.Errorf("%d dead letters, %d requests", here, there)
					}
				})
			})
		}
	}
}

func TestOpenDeadSaysWhichHost(t *testing.T) {
	tr, err := ParseTransportURL("rabbit://u:hunter2@h1,h2/")
	if err != nil {
		t.Fatal(err)
	}
	b := newFakeBroker()
	b.fault = func(string) fault { return cutBefore }
	if _, err := OpenDead(t.Context(), Options{Transport: tr, dial: b.dial}); err == nil || !strings.Contains(err.Error(), "h1:5672") ||
		!strings.Contains(err.Error(), "h2:5672") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error = %v", err)
	}
}
