//go:build lab

package lab_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// TestDuplicateStorm delivers each request a hundred times, in any order, to several workers: each makes one image, once.
// 3 requests always, 100 with CINDERLIFT_CHAOS=full, some at a time because each needs a volume of its own.
func TestDuplicateStorm(t *testing.T) {
	rounds, requests := 1, 3
	if thorough() {
		rounds, requests = 20, 5
	}
	const copies = 100
	w := within(t, 40*time.Minute)
	rnd := rand.New(rand.NewPCG(matrixSeed(t), 1)) //nolint:gosec // repeatable, not secret
	d := w.atDesk("volume_manager")
	l := w.lane(d, "storm", wayOf("early"), 0)
	lanes := []*lane{l}
	for range requests - 1 {
		one := *l
		one.volume, _ = w.small(0)
		lanes = append(lanes, &one)
	}
	for i, one := range lanes {
		w.must(w.Write(w.ctx, rbdVolume(one.volume), 5<<20, fmt.Sprintf("volume %d", i)))
		one.want = w.sum(rbdVolume(one.volume))
	}
	workers := []*lab.Worker{l.start("", nil), l.start("", nil), l.start("", nil), l.heir}
	began := time.Now()
	for round := range rounds {
		t.Run(fmt.Sprint("round ", round), func(t *testing.T) { storm(t, lanes, copies, rnd, workers) })
	}
	accepted, known := counted(workers, "job accepted"), counted(workers, "request known already")
	want := rounds * requests
	t.Logf("%d deliveries of %d requests in %s: %d accepted, %d recognised", want*copies, want,
		time.Since(began).Round(time.Second), accepted, known)
	if n := counted(workers, "job closed"); n != want {
		t.Errorf("%d jobs were closed, want %d", n, want)
	}
	if accepted != want || known != want*(copies-1) {
		t.Errorf("%d requests were accepted and %d recognised, want %d and %d", accepted, known, want, want*(copies-1))
	}
}

// storm has each lane's volume uploaded once and its request delivered many times.
func storm(t *testing.T, lanes []*lane, copies int, rnd *rand.Rand, workers []*lab.Worker) {
	t.Helper()
	var all []amqp.Delivery
	images := make([]string, len(lanes))
	on := make([]*lane, len(lanes))
	for i, l := range lanes {
		on[i] = l.on(t, 10*time.Minute)
		images[i] = on[i].upload(l.volume, lab.Raw(t.Name()))
		for range copies {
			all = append(all, l.desk.request(on[i].world, images[i]))
		}
	}
	rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	known := counted(workers, "request known already")
	for _, m := range all {
		on[0].must(on[0].desk.hand(on[0].ctx, m, on[0].topic()))
	}
	for i, l := range on {
		l.closedBy(images[i], workers...)
	}
	l := on[0]
	l.must(lab.Wait(l.ctx, "all deliveries to be recognised", func() (bool, error) {
		return counted(workers, "request known already")-known >= len(all)-len(on), nil
	}))
	for i, l := range on {
		l.ended(images[i], true)
	}
	for _, queue := range []string{l.topic(), l.topic() + ".dead"} {
		if n := l.desk.waiting(l.world, queue); n != 0 {
			t.Errorf("%d messages are left in %s", n, queue)
		}
	}
}

func counted(workers []*lab.Worker, msg string) (n int) {
	for _, p := range workers {
		for _, line := range p.Logs() {
			if line["msg"] == msg {
				n++
			}
		}
	}

	return n
}

// waiting counts the messages in a queue.
func (d *desk) waiting(w *world, name string) int {
	w.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	q, err := d.ch.QueueDeclarePassive(name, true, false, false, false, nil)
	w.must(err)

	return q.Messages
}
