package main

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// kind is what happens to the cloud.
type kind string

// The disturbances. The first three are of workers, the others of services.
const (
	kill   kind = "kill -9"
	term   kind = "SIGTERM"
	freeze kind = "SIGSTOP" // for longer than a lease: a zombie afterwards

	cutBus        kind = "cut the bus"        // the workers' connections to RabbitMQ are reset
	closeBus      kind = "close the bus"      // RabbitMQ closes everybody's connections
	restartRabbit kind = "kill RabbitMQ"      // and start it again
	killOSD       kind = "kill an OSD"        // and start it again
	failGlance    kind = "Glance misbehaves"  // through a proxy; which way is in the event
	failCinder    kind = "Cinder misbehaves"  // its REST API, in the same ways
	killGlance    kind = "kill Glance"        // and start it again
	killVolume    kind = "kill cinder-volume" // and start it again
	resetVolume   kind = "stop cinder-volume" // politely, and start it again
)

// event is one disturbance. Everything about it follows from the seed.
type event struct {
	At     time.Duration // since the start
	Kind   kind
	Target int           // which worker or OSD, modulo their number
	For    time.Duration // how long it lasts
	Fault  lab.Fault     // of Glance and Cinder
	Share  float64       // of their requests
}

func (e event) String() string {
	s := fmt.Sprintf("%s, for %.1f s", e.Kind, e.For.Seconds())
	if e.Kind == failGlance || e.Kind == failCinder {
		s += fmt.Sprintf(": %s, %.0f %% of the requests", e.Fault, 100*e.Share)
	}

	return s
}

// pace is how often something happens.
type pace struct {
	Workers  time.Duration // between two disturbances of workers, on average
	Services time.Duration // of services
	Lease    time.Duration
}

type weighed struct {
	kind   kind
	weight int
}

// plan lists what happens within a time, in order. The same seed and pace make the same plan; a longer time only adds to it.
func plan(seed uint64, p pace, within time.Duration) (workers, services []event) {
	workers = stream(rand.New(rand.NewPCG(seed, 1)), p.Workers, within, p, []weighed{{kill, 70}, {term, 15}, {freeze, 15}})
	services = stream(rand.New(rand.NewPCG(seed, 2)), p.Services, within, p, []weighed{{cutBus, 18}, {closeBus, 6},
		{restartRabbit, 9}, {killOSD, 14}, {failGlance, 33}, {failCinder, 12}, {killGlance, 3}, {killVolume, 3}, {resetVolume, 2}})

	return workers, services
}

func stream(dice *rand.Rand, gap time.Duration, within time.Duration, p pace, kinds []weighed) []event {
	var events []event
	for at := between(dice, gap/2, gap*3/2); at < within; at += between(dice, gap/2, gap*3/2) {
		e := event{At: at, Kind: pick(dice, kinds), Target: dice.IntN(1 << 20)}
		e.For = between(dice, 2*time.Second, 10*time.Second)
		e.Fault = lab.Faults()[dice.IntN(len(lab.Faults()))]
		e.Share = 0.3 + 0.7*dice.Float64()
		switch e.Kind {
		case freeze:
			e.For += p.Lease
		case cutBus:
			e.For /= 4
		default:
		}
		events = append(events, e)
	}

	return events
}

func between(dice *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(dice.Int64N(int64(to-from)+1))
}

func pick(dice *rand.Rand, kinds []weighed) kind {
	sum := 0
	for _, k := range kinds {
		sum += k.weight
	}
	n := dice.IntN(sum)
	for _, k := range kinds {
		if n -= k.weight; n < 0 {
			return k.kind
		}
	}

	return kinds[0].kind // not reached: n is below the sum
}
