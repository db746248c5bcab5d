package main

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// crew keeps a number of workers running: whoever ends is started anew, as an orchestrator does.
type crew struct {
	lab    *lab.Lab
	ledger *ledger
	set    map[string]string
	dir    string // of the logs
	dice   *rand.Rand
	say    func(string, ...any)

	stopping context.Context
	tasks    sync.WaitGroup

	mu    sync.Mutex
	hands []*hand
	exits []time.Duration // from SIGTERM
}

// hand is a place in the crew.
type hand struct {
	n      int
	worker *lab.Worker
	name   string // of the worker now
	asked  bool   // to end, by us
	frozen bool
}

// ways are the settings that differ from worker to worker: all strategies, and both ways to register.
func (c *crew) ways(n int) map[string]string {
	orders := []string{"clone-flatten,copy,export-upload", "copy,clone-flatten,export-upload",
		"clone-flatten,copy,export-upload", "copy,clone-flatten,export-upload", "export-upload,clone-flatten,copy"}
	modes := []string{"auto", "auto", "late", "early"}
	set := map[string]string{"CINDERLIFT_STRATEGIES": orders[c.dice.IntN(len(orders))], "CINDERLIFT_REGISTER": modes[c.dice.IntN(len(modes))],
		"CINDERLIFT_SLOTS": "4"}
	if set["CINDERLIFT_STRATEGIES"] == orders[4] && n%2 == 0 {
		set["CINDERLIFT_STRATEGIES"] = orders[0] // an upload costs a hundred times what a clone does: only some workers
	}
	if set["CINDERLIFT_STRATEGIES"] == orders[4] {
		set["CINDERLIFT_SLOTS"] = "1"
	}

	return set
}

// start fills the crew.
func (c *crew) start(size int) {
	for n := range size {
		h := &hand{n: n}
		c.hands = append(c.hands, h)
		c.tasks.Go(func() { c.keep(h) })
	}
}

// keep keeps one place filled until the crew is to stop.
func (c *crew) keep(h *hand) {
	for try := 1; c.stopping.Err() == nil; try++ {
		w, err := c.launch(h, try)
		if err != nil {
			c.say("worker %d does not start: %v", h.n, err)

			return
		}
		<-w.Ended()
		if c.bury(h, w) {
			c.say("%s ended by itself: %v", h.name, w.Err())
			c.ledger.count("unasked_exits", 1)
		}
		pause(c.stopping, time.Second)
	}
}

func (c *crew) launch(h *hand, try int) (*lab.Worker, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := fmt.Sprintf("chaos-%d.%d", h.n, try)
	set := maps.Clone(c.set)
	maps.Copy(set, c.ways(h.n))
	set["CINDERLIFT_NAME"] = name
	w, err := c.lab.Launch(lab.Launch{Set: set, File: filepath.Join(c.dir, name+".log"), Tee: listener{c.ledger, name}})
	if err != nil {
		return nil, err
	}
	h.worker, h.name, h.asked, h.frozen = w, name, false, false

	return w, nil
}

// bury reports whether nobody had asked the worker to end.
func (c *crew) bury(h *hand, w *lab.Worker) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	unasked := !h.asked && w.Err() != nil
	h.worker = nil
	if unasked {
		c.ledger.killed(h.name, time.Now())
	}

	return unasked
}

// hand finds a worker that lives and was not asked to end; nil when there is none.
func (c *crew) hand(target int) (*hand, *lab.Worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.hands {
		h := c.hands[(target+n)%len(c.hands)]
		if h.worker != nil && !h.asked && !h.frozen {
			return h, h.worker
		}
	}

	return nil, nil
}

func (c *crew) ask(h *hand, what func(*hand)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what(h)
}

// kill ends a worker as a power cut does.
func (c *crew) kill(target int) {
	h, w := c.hand(target)
	if h == nil {
		return
	}
	c.ask(h, func(h *hand) { h.asked = true })
	name, at := h.name, time.Now()
	_ = w.Kill() // "signal: killed" is what it answers
	if n := c.ledger.killed(name, at); n > 0 {
		c.ledger.count("kills_at_work", 1)
	}
	c.ledger.count("kills", 1)
	c.ledger.disturbed(at, at.Add(2*time.Second)) // for others: until its place is filled again
}

// term asks a worker to end and measures how long it takes.
func (c *crew) term(target int) {
	h, w := c.hand(target)
	if h == nil {
		return
	}
	c.ask(h, func(h *hand) { h.asked = true })
	c.end(h.name, w)
	c.ledger.count("terms", 1)
}

// patience is how long after SIGTERM a worker is left alone.
const patience = 60 * time.Second

func (c *crew) end(name string, w *lab.Worker) {
	at := time.Now()
	_ = w.Signal(syscall.SIGTERM) // it may just have ended
	select {
	case <-w.Ended():
	case <-time.After(patience):
		c.say("%s is still there %s after SIGTERM", name, patience)
		_ = w.Kill()
	}
	took := time.Since(at)
	c.ledger.disturbed(at, at.Add(took))
	c.mu.Lock()
	c.exits = append(c.exits, took)
	c.mu.Unlock()
	if took > 10*time.Second || w.Err() != nil {
		c.say("%s ended %.1f s after SIGTERM: %v", name, took.Seconds(), w.Err())
	}
	c.ledger.killed(name, at) // what it left without a word
}

// freeze makes a zombie of a worker.
func (c *crew) freeze(ctx context.Context, target int, d time.Duration) {
	h, w := c.hand(target)
	if h == nil {
		return
	}
	c.ask(h, func(h *hand) { h.frozen = true })
	_ = w.Signal(syscall.SIGSTOP) // it may just have ended
	c.ledger.count("freezes", 1)
	from := time.Now()
	pause(ctx, d)
	c.ledger.disturbed(from, time.Now())
	_ = w.Signal(syscall.SIGCONT)
	c.ask(h, func(h *hand) {
		if h.worker == w {
			h.frozen = false
		}
	})
}

// stop ends all workers; the context of the crew has ended before.
func (c *crew) stop() {
	c.mu.Lock()
	var all sync.WaitGroup
	for _, h := range c.hands {
		if h.worker == nil {
			continue
		}
		h.asked = true
		name, w := h.name, h.worker
		all.Go(func() { c.end(name, w) })
	}
	c.mu.Unlock()
	all.Wait()
	c.tasks.Wait()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
