package oslo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	backoffFirst = time.Second
	backoffMost  = 30 * time.Second
	// A connection that lived this long was a good one: the next loss starts over.
	backoffReset = time.Minute
	// closeWithin bounds the farewell; a broker in an alarm reads nothing.
	closeWithin = 2 * time.Second
)

// errStopped is why a session ends when its bus does.
var errStopped = errors.New("bus is stopped")

// session is one generation of a connection. What was made on it is void after it.
type session struct {
	connection
	generation uint64
	unblocked  *gate
	failed     chan error    // asks the link to end it; holds one
	over       chan struct{} // closed after the link has given it up
}

// fail ends the session; the link then makes a new one.
func (s *session) fail(err error) {
	select {
	case s.failed <- err:
	default: // somebody else has asked before
	}
}

// link supervises one connection: it makes the next one whenever the last is lost.
type link struct {
	role    string
	options Options
	setUp   func(connection) error
	log     *slog.Logger

	mu      sync.Mutex
	state   LinkState
	session *session
	changed chan struct{} // closed and replaced when session changes
}

func newLink(role string, o Options, setUp func(connection) error) *link {
	return &link{
		role: role, options: o, setUp: setUp, log: o.Logger.With("connection", role),
		state: LinkState{Since: time.Now(), Reason: "not started"}, changed: make(chan struct{}),
	}
}

func (l *link) snapshot() LinkState {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state
}

// now returns the current session, or nil with the reason.
func (l *link) now() (*session, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session, l.state.Reason
}

// wait returns the current session as soon as there is one.
func (l *link) wait(ctx context.Context) (*session, error) {
	for {
		l.mu.Lock()
		s, changed := l.session, l.changed
		l.mu.Unlock()
		if s != nil {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// run makes connections until ctx ends.
func (l *link) run(ctx context.Context) {
	attempt := 0
	for ctx.Err() == nil {
		lived, err := l.round(ctx)
		if ctx.Err() != nil {
			return
		}
		if lived >= backoffReset {
			attempt = 0
		}
		pause := jitter(attempt)
		attempt++
		l.log.Warn("connection to the message bus is down", "error", err, "retry_in", pause.Round(time.Millisecond))
		if sleep(ctx, pause) != nil {
			return
		}
	}
}

// jitter is full jitter: a broker that comes back is not met by everybody at once.
func jitter(attempt int) time.Duration {
	most := min(backoffMost, backoffFirst<<min(attempt, 10))
	return rand.N(most) + time.Millisecond
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// round tries all hosts in random order until one connection has lived and died.
func (l *link) round(ctx context.Context) (lived time.Duration, err error) {
	hosts := l.options.Transport.Hosts
	var errs []error
	for _, i := range rand.Perm(len(hosts)) {
		lived, err = l.live(ctx, hosts[i])
		if lived > 0 || ctx.Err() != nil {
			return lived, err
		}
		l.down(err)
		errs = append(errs, err)
	}
	return 0, errors.Join(errs...)
}

// live connects to h, sets up, and stays until the connection is lost.
// lived is 0 if it never got as far as being usable.
func (l *link) live(ctx context.Context, h Host) (lived time.Duration, err error) {
	c, err := l.options.dial(ctx, l.options.Transport, h, l.options.Name+" "+l.role)
	if err != nil {
		return 0, fmt.Errorf("connect to %s: %w", h.Address(), err)
	}
	// A broker that stops answering in the middle must not outlive ctx.
	stop := context.AfterFunc(ctx, func() { c.Close(closeWithin) })
	if err := l.setUp(c); err != nil {
		stop()
		c.Close(closeWithin)
		return 0, fmt.Errorf("set up on %s: %w", h.Address(), err)
	}
	if !stop() {
		c.Close(closeWithin)
		return 0, errStopped
	}
	started := time.Now()
	s := l.up(c, h)
	err = l.watch(ctx, s)
	l.down(err)
	c.Close(closeWithin)
	close(s.over)
	return max(time.Since(started), 1), fmt.Errorf("connection to %s: %w", h.Address(), err)
}

// watch returns why the session is over.
func (l *link) watch(ctx context.Context, s *session) error {
	blocked := s.Blocked()
	for {
		select {
		case <-ctx.Done():
			return errStopped
		case err := <-s.failed:
			return err
		case <-s.Closed():
			return s.Err()
		case reason, ok := <-blocked:
			if !ok {
				blocked = nil
				continue
			}
			l.block(s, reason)
		}
	}
}

func (l *link) up(c connection, h Host) *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	generation := l.state.Generation + 1
	l.session = &session{
		connection: c, generation: generation, unblocked: newGate(),
		failed: make(chan error, 1), over: make(chan struct{}),
	}
	l.state = LinkState{Connected: true, Since: time.Now(), Host: h.Address(), Generation: generation}
	close(l.changed)
	l.changed = make(chan struct{})
	l.log.Info("connected to the message bus", "host", h, "generation", generation)
	if f := l.options.Events.Connected; f != nil {
		f(l.role)
	}
	return l.session
}

func (l *link) down(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.state.Connected
	l.session = nil
	l.state.Connected, l.state.Blocked, l.state.Reason = false, "", err.Error()
	if !was {
		return
	}
	l.state.Since = time.Now()
	if f := l.options.Events.Disconnected; f != nil {
		f(l.role, err)
	}
}

func (l *link) block(s *session, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Blocked = reason
	if reason == "" {
		s.unblocked.open()
		l.log.Info("the broker reads from us again")
	} else {
		s.unblocked.shut()
		l.log.Warn("the broker has stopped reading from us", "reason", reason)
	}
	if f := l.options.Events.Blocked; f != nil {
		f(l.role, reason != "")
	}
}
