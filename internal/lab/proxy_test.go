package lab_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// TestProxyFaults: what the client sees of each fault, and whether the service has done its work.
func TestProxyFaults(t *testing.T) {
	cases := []struct {
		fault lab.Fault
		done  int64
		code  int // 0: no answer
	}{
		{lab.Healthy, 1, 201}, {lab.RefuseFirst, 0, 500}, {lab.FailAfter, 1, 500}, {lab.ResetFirst, 0, 0},
		{lab.ResetAfter, 1, 0}, {lab.Hang, 0, 0}, {lab.HangAfter, 1, 0}, {lab.Slow, 1, 201},
	}
	if len(cases) != len(lab.Faults())+1 {
		t.Errorf("%d faults are tested of %d", len(cases)-1, len(lab.Faults()))
	}
	for _, c := range cases {
		t.Run(string(c.fault), func(t *testing.T) {
			t.Parallel()
			var done atomic.Int64
			service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if b, err := io.ReadAll(r.Body); err != nil || string(b) != "body" || r.URL.Path != "/v2/images" {
					t.Errorf("the service got %s %q, %v", r.URL.Path, b, err)
				}
				done.Add(1)
				w.WriteHeader(http.StatusCreated)
			}))
			t.Cleanup(service.Close)
			p := proxy(t, service.URL)
			p.Set(c.fault, 1)
			if c.fault == lab.Hang || c.fault == lab.HangAfter {
				time.AfterFunc(100*time.Millisecond, func() { p.Set(lab.Healthy, 0) })
			}
			if code := post(t, p.URL+"/v2/images"); code != c.code || done.Load() != c.done {
				t.Errorf("code %d, done %d times, want %d, %d", code, done.Load(), c.code, c.done)
			}
			if hit := p.Hit(); hit != map[bool]int64{true: 0, false: 1}[c.fault == lab.Healthy] {
				t.Errorf("%d requests met the fault", hit)
			}
		})
	}
}

func proxy(t *testing.T, target string) *lab.Proxy {
	t.Helper()
	p, err := lab.NewProxy(context.Background(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })

	return p
}

// post answers the status code, 0 when there was no answer.
func post(t *testing.T, to string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, to, bytes.NewReader([]byte("body")))
	if err != nil {
		t.Fatal(err)
	}
	res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()

	return res.StatusCode
}

// TestCable: a cut ends connections and refuses new ones until it is mended.
func TestCable(t *testing.T) {
	echo, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() {
		for {
			conn, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); _, _ = io.Copy(conn, conn) }()
		}
	}()
	c, err := lab.NewCable(t.Context(), echo.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	conn := dial(t, c.Addr)
	if !answers(conn) {
		t.Fatal("the cable carries nothing")
	}
	c.Cut()
	if answers(conn) || answers(dial(t, c.Addr)) {
		t.Error("the cable carries after the cut")
	}
	c.Mend()
	if !answers(dial(t, c.Addr)) {
		t.Error("the cable carries nothing after it was mended")
	}
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })

	return conn
}

func answers(conn net.Conn) bool {
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(conn, make([]byte, 1))

	return err == nil
}
