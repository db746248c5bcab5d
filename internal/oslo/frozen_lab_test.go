//go:build lab

package oslo

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// wire passes bytes to the broker until it is frozen: then the sockets stay open and
// nothing goes through, like a broker that has stopped reading or a cut cable.
type wire struct {
	listener net.Listener
	target   string
	frozen   chan struct{}
	mu       sync.Mutex
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, target: target, frozen: make(chan struct{})}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

func (w *wire) accept() {
	for {
		in, err := w.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.target)
		if err != nil {
			in.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, in, out)
		w.mu.Unlock()
		w.wg.Go(func() { w.pass(in, out) })
		w.wg.Go(func() { w.pass(out, in) })
	}
}

func (w *wire) pass(from, to net.Conn) {
	buffer := make([]byte, 4096)
	for {
		n, err := from.Read(buffer)
		if closed(w.frozen) {
			<-time.After(time.Millisecond)
			if err != nil {
				return
			}
			continue
		}
		if _, writeErr := to.Write(buffer[:n]); writeErr != nil || errors.Is(err, io.EOF) || err != nil {
			to.Close()
			return
		}
	}
}

// Nothing hangs on a broker that is silent: not a publish, not a settling, not the stop.
func TestFrozenBroker(t *testing.T) {
	s := openLab(t, "")
	o := s.options(t)
	host := o.Transport.Hosts[0]
	w := newWire(t, host.Address())
	port := w.listener.Addr().(*net.TCPAddr).Port
	o.Transport.Hosts = []Host{{Name: "127.0.0.1", Port: port, Username: host.Username, Password: host.Password}}
	o.Transport.Heartbeat = 4 * time.Second
	b, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stopped := make(chan struct{})
	go func() {
		_ = b.Run(ctx)
		close(stopped)
	}()
	d := &desk{t: t, s: s, o: o, b: b}
	d.until("ready", func() bool { return b.State().Ready() })
	d.cast("one")
	got := d.receive()

	close(w.frozen)
	publishCtx, cancelPublish := context.WithTimeout(ctx, time.Second)
	defer cancelPublish()
	started := time.Now()
	err = b.Cast(publishCtx, o.Exchange, o.Topic, Cast{Method: "two"})
	if !errors.Is(err, ErrNotConfirmed) || time.Since(started) > 3*time.Second {
		t.Errorf("cast after %v: %v", time.Since(started), err)
	}
	// The heartbeats of both sides find out; then the acknowledgement fails.
	started = time.Now()
	if err := got.Ack(); !errors.Is(err, ErrDeliveryGone) || time.Since(started) > 15*time.Second {
		t.Errorf("ack after %v: %v", time.Since(started), err)
	}
	d.until("noticed", func() bool { st := b.State(); return !st.Consume.Connected && !st.Publish.Connected })
	started = time.Now()
	cancel()
	select {
	case <-stopped:
	case <-time.After(20 * time.Second):
		t.Fatal("Run does not return")
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
