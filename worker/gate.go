package worker

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"
)

// Gate says whether new work may be taken, and why not. Several parts close it, each under a name of its own, and it is
// open when none does. The zero value is open. Its methods may be called concurrently.
type Gate struct {
	// Changed, if set, is told what is closed and opened. It must not block or call the gate. Set it before use.
	Changed func(name string, closed bool)

	mu      sync.Mutex
	closed  map[string]closure
	changed chan struct{} // closed with the next change; nil while nobody waits
}

type closure struct {
	why   string
	timed *time.Timer // opens it again; nil for none
	token *int        // whose timer it is
}

// Set closes the gate under this name, or opens it with a nil error.
func (g *Gate) Set(name string, why error) { g.set(name, why, 0) }

// CloseFor closes the gate under this name for a while.
func (g *Gate) CloseFor(name string, why error, d time.Duration) { g.set(name, why, d) }

func (g *Gate) set(name string, why error, d time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	before, was := g.closed[name]
	if before.timed != nil {
		before.timed.Stop()
	}
	if why == nil {
		delete(g.closed, name)
		g.tell(name, was, false)

		return
	}
	if g.closed == nil {
		g.closed = map[string]closure{}
	}
	c := closure{why: why.Error(), token: new(int)}
	if d > 0 {
		c.timed = time.AfterFunc(d, func() { g.expire(name, c.token) })
	}
	g.closed[name] = c
	g.tell(name, was, true)
}

// expire opens what this timer was set for, unless it was set anew meanwhile.
func (g *Gate) expire(name string, token *int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c, ok := g.closed[name]; ok && c.token == token {
		delete(g.closed, name)
		g.tell(name, true, false)
	}
}

func (g *Gate) tell(name string, was, is bool) {
	if was == is {
		return
	}
	if g.Changed != nil {
		g.Changed(name, is)
	}
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// Closed says why no work is taken, by name; empty when it is.
func (g *Gate) Closed() map[string]string {
	g.mu.Lock()
	defer g.mu.Unlock()
	why := map[string]string{}
	for name, c := range g.closed {
		why[name] = c.why
	}

	return why
}

// state reports whether the gate is open, with a channel that is closed at the next change.
func (g *Gate) state() (open bool, changed <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed == nil {
		g.changed = make(chan struct{})
	}

	return len(g.closed) == 0, g.changed
}

// Wait returns when the gate is open, or with the cause of ctx's end.
func (g *Gate) Wait(ctx context.Context) error {
	for {
		open, changed := g.state()
		if open {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		}
	}
}

// While is a context that ends when the gate closes, or with ctx.
func (g *Gate) While(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			open, changed := g.state()
			if !open {
				cancel()

				return
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			}
		}
	}()

	return ctx, cancel
}

// pressure turns what running jobs wait for into a closed gate: when Ceph is full or Glance is away, new jobs would only
// wait as well. A job that begins to wait closes the gate for a while and not for as long as it waits: its problem may be
// its own. A job that gets on opens it. Those that wait keep their slots, so a worker never takes more than it has.
type pressure struct {
	gate *Gate

	mu      sync.Mutex
	waiting map[string]Reason // by job: what it has closed the gate for
	full    map[string]time.Time
}

const (
	pressureFor   = time.Minute     // that one waiting job closes the gate
	pressureAfter = 2               // failures in a row: the first may be a hiccup
	fullWithin    = 5 * time.Minute // two projects refused within this time: it is the store that is full, not their quotas
)

// Pauses lists the reasons for which the runner closes its gate: what is no job's own problem, as a rule.
func Pauses() []Reason {
	return []Reason{ReasonCephUnavailable, ReasonPoolFull, ReasonGlanceUnavailable, ReasonGlanceFull, ReasonCinderUnavailable,
		ReasonBusUnavailable}
}

// failed notes the n-th failure in a row of something that will be tried again.
func (p *pressure) failed(key string, n int, err error) {
	reason := ReasonOf(err)
	if n < pressureAfter || !slices.Contains(Pauses(), reason) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting[key] == reason {
		return
	}
	if p.waiting == nil {
		p.waiting = map[string]Reason{}
	}
	p.waiting[key] = reason
	p.gate.CloseFor(string(reason), err, pressureFor)
}

// well notes that a job got on, or ended: what it waited for is there again, and what others wait for may be their own
// problem, which the time limit settles.
func (p *pressure) well(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reason, was := p.waiting[key]; was {
		delete(p.waiting, key)
		p.gate.Set(string(reason), nil)
	}
}

// refused notes that Glance takes no more data of a project.
func (p *pressure) refused(project string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(p.full, func(_ string, at time.Time) bool { return now.Sub(at) > fullWithin })
	if p.full == nil {
		p.full = map[string]time.Time{}
	}
	p.full[project] = now
	if len(p.full) > 1 {
		p.gate.CloseFor(string(ReasonGlanceFull), err, pressureFor)
	}
}
