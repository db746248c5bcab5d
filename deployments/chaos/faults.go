package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// trouble carries a plan out.
type trouble struct {
	lab    *lab.Lab
	crew   *crew
	ledger *ledger
	users  *users
	glance *lab.Proxy
	cinder *lab.Proxy
	bus    *lab.Cable
	osds   int
	say    func(string, ...any)
	asleep sync.WaitGroup
}

// happen makes the events of one stream happen, one after the other, at their times or later.
func (t *trouble) happen(ctx context.Context, start time.Time, events []event) {
	for _, e := range events {
		pause(ctx, time.Until(start.Add(e.At)))
		if ctx.Err() != nil {
			return
		}
		if err := t.one(ctx, e); err != nil {
			t.say("%s: %v", e.Kind, err)
		}
	}
}

func (t *trouble) one(ctx context.Context, e event) error {
	switch e.Kind {
	case kill:
		t.crew.kill(e.Target)
	case term:
		t.asleep.Go(func() { t.crew.term(e.Target) })
	case freeze:
		t.asleep.Go(func() { t.crew.freeze(ctx, e.Target, e.For) })
	default:
		t.ledger.count("service_faults", 1)
		t.ledger.count(string(e.Kind), 1)
		t.say("%s", e)
		from := time.Now()
		err := t.service(ctx, e)
		t.ledger.disturbed(from, time.Now().Add(5*time.Second)) // what waited has to find out

		return err
	}

	return nil
}

func (t *trouble) service(ctx context.Context, e event) error {
	switch e.Kind {
	case cutBus:
		t.bus.Cut()
		pause(ctx, e.For)
		t.bus.Mend()

		return nil
	case closeBus:
		_, err := t.lab.Rabbit(ctx, "close_all_connections", "chaos")

		return err
	case restartRabbit:
		return t.users.calmly(ctx, func() error {
			if err := t.bounce(ctx, "rabbit", e); err != nil {
				return err
			}

			return t.listening(ctx)
		})
	case killOSD:
		return t.bounce(ctx, fmt.Sprintf("ceph-osd%d", e.Target%t.osds), e)
	case killGlance:
		return t.users.calmly(ctx, func() error { return t.bounce(ctx, "glance-api", e) })
	case killVolume, resetVolume:
		return t.users.calmly(ctx, func() error { return t.bounce(ctx, "cinder-volume", e) })
	case failGlance:
		t.misbehave(ctx, t.glance, e)
	case failCinder:
		t.misbehave(ctx, t.cinder, e)
	default:
	}

	return nil
}

// listening waits until cinder-volume is back on the broker. Its queue is not durable, and cinder-api casts to it without the
// mandatory flag (oslo.messaging has it for at_least_once alone): what is sent before is lost without a word, and no worker
// ever hears of it. Stock Cinder loses such requests as well.
func (t *trouble) listening(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	host := t.lab.Env["LAB_CINDER_HOST"]
	server, _, _ := strings.Cut(host, "@")
	queues := []string{"cinder-volume." + host, "cinder-volume." + host + "." + server}

	return lab.Wait(ctx, "cinder-volume to listen again", func() (bool, error) {
		out, err := t.lab.Rabbit(ctx, "list_queues", "name", "consumers", "--no-table-headers")
		heard := 0
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 && slices.Contains(queues, f[0]) && f[1] != "0" {
				heard++
			}
		}

		return heard == len(queues), err
	})
}

// bounce takes a daemon away for a while. It comes back also when ctx ends.
func (t *trouble) bounce(ctx context.Context, daemon string, e event) error {
	verb := "kill"
	if e.Kind == resetVolume {
		verb = "stop"
	}
	back := context.WithoutCancel(ctx)
	err := t.lab.Control(back, verb, daemon)
	pause(ctx, e.For)
	if again := t.lab.Control(back, "start", daemon); again != nil {
		return again
	}

	return err
}

func (t *trouble) misbehave(ctx context.Context, p *lab.Proxy, e event) {
	p.Set(e.Fault, e.Share)
	pause(ctx, e.For)
	p.Set(lab.Healthy, 0)
}
