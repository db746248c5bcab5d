package lab

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Fault is how a service behaves badly towards one request.
type Fault string

// The faults. "done" means that the service behind the proxy has carried the request out.
const (
	Healthy     Fault = ""
	RefuseFirst Fault = "500 before"   // not done, and 500
	FailAfter   Fault = "500 after"    // done, and 500 all the same
	ResetFirst  Fault = "reset before" // not done, and the connection ends
	ResetAfter  Fault = "reset after"  // done, and the connection ends without an answer
	Hang        Fault = "hang"         // not done, and no answer until the fault is over
	HangAfter   Fault = "hang after"   // done, and no answer until the fault is over
	Slow        Fault = "slow"         // done a while later
)

// Faults lists them all.
func Faults() []Fault {
	return []Fault{RefuseFirst, FailAfter, ResetFirst, ResetAfter, Hang, HangAfter, Slow}
}

const slowBy = 3 * time.Second

// Proxy stands before an HTTP service and makes it fail.
type Proxy struct {
	URL string

	server  *http.Server
	forward http.Handler
	hit     atomic.Int64

	mu    sync.Mutex
	fault Fault
	share float64       // of the requests, 0 to 1
	over  chan struct{} // closed when the fault is over
}

// NewProxy listens on a free port of the loopback and forwards to target. Close it.
func NewProxy(ctx context.Context, target string) (*Proxy, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{URL: "http://" + l.Addr().String(), over: make(chan struct{})}
	p.forward = &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ErrorLog: nil,
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) {
			w.WriteHeader(http.StatusBadGateway) // the service is away, or its client is
		},
	}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go func() { _ = p.server.Serve(l) }() // ends with Close

	return p, nil
}

// Close ends it with all its connections.
func (p *Proxy) Close() error {
	p.Set(Healthy, 0)

	return p.server.Close()
}

// Set makes a share of the requests from now on meet a fault, in place of the one before.
func (p *Proxy) Set(f Fault, share float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.share = f, share
	close(p.over)
	p.over = make(chan struct{})
}

// Hit counts the requests that have met a fault.
func (p *Proxy) Hit() int64 { return p.hit.Load() }

func (p *Proxy) draw() (Fault, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fault == Healthy || rand.Float64() >= p.share {
		return Healthy, p.over
	}
	p.hit.Add(1)

	return p.fault, p.over
}

// ServeHTTP is http.Handler's.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	fault, over := p.draw()
	switch fault {
	case Healthy:
		p.forward.ServeHTTP(w, r)
	case RefuseFirst:
		w.WriteHeader(http.StatusInternalServerError)
	case ResetFirst:
		panic(http.ErrAbortHandler) // net/http's way to end a connection
	case FailAfter:
		p.unseen(r)
		w.WriteHeader(http.StatusInternalServerError)
	case ResetAfter:
		p.unseen(r)
		panic(http.ErrAbortHandler)
	case Hang:
		wait(r.Context(), over)
		panic(http.ErrAbortHandler)
	case HangAfter:
		p.unseen(r)
		wait(r.Context(), over)
		panic(http.ErrAbortHandler)
	case Slow:
		select {
		case <-time.After(slowBy):
		case <-r.Context().Done():
		}
		p.forward.ServeHTTP(w, r)
	}
}

func wait(ctx context.Context, over <-chan struct{}) {
	select {
	case <-over:
	case <-ctx.Done():
	}
}

// unseen carries the request out and keeps the answer back.
func (p *Proxy) unseen(r *http.Request) { p.forward.ServeHTTP(&nowhere{header: http.Header{}}, r) }

type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

// Cable is a TCP connection to a service that can be cut.
type Cable struct {
	Addr string

	target string
	listen net.Listener

	mu    sync.Mutex
	dead  bool // new connections end at once
	conns map[net.Conn]bool
}

// NewCable listens on a free port of the loopback and forwards to target, host:port. Close it.
func NewCable(ctx context.Context, target string) (*Cable, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	c := &Cable{Addr: l.Addr().String(), target: target, listen: l, conns: map[net.Conn]bool{}}
	go c.accept()

	return c, nil
}

func (c *Cable) accept() {
	for {
		conn, err := c.listen.Accept()
		if err != nil {
			return // closed
		}
		go c.carry(conn)
	}
}

func (c *Cable) carry(near net.Conn) {
	defer c.drop(near)
	if !c.keep(near) {
		return
	}
	far, err := net.DialTimeout("tcp", c.target, 10*time.Second) //nolint:noctx // bounded
	if err != nil {
		return
	}
	defer c.drop(far)
	if !c.keep(far) {
		return
	}
	go func() {
		_, _ = io.Copy(far, near) // whichever way ends first ends both
		c.drop(near)
		c.drop(far)
	}()
	_, _ = io.Copy(near, far)
}

func (c *Cable) keep(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns[conn] = true

	return !c.dead
}

func (c *Cable) drop(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.conns, conn)
	_ = conn.Close()
}

// Cut ends all connections at once; until Mend, new ones end as well.
func (c *Cable) Cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
	for conn := range c.conns {
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset: what was under way is lost
		}
		_ = conn.Close()
	}
	c.conns = map[net.Conn]bool{}
}

// Mend undoes Cut.
func (c *Cable) Mend() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = false
}

// Close ends it with all its connections.
func (c *Cable) Close() error {
	c.Cut()

	return c.listen.Close()
}
