package keystone

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/cinderlift/cinderlift/worker"
)

// watch ends a request in which nothing happens any more.
type watch struct {
	limit time.Duration
	timer *time.Timer
}

func newWatch(limit time.Duration, cancel context.CancelCauseFunc) *watch {
	return &watch{limit: limit, timer: time.AfterFunc(limit, func() { cancel(errSilent) })}
}

func (w *watch) stop() { w.timer.Stop() }

func (w *watch) start() { w.timer.Reset(w.limit) }

// lent is a body lent to the HTTP transport. The transport reads from a goroutine of its own that may outlive the
// exchange (after an early answer, say), so the loan can be revoked.
type lent struct {
	watch *watch
	tee   func(p []byte, reset bool)
	size  int64

	mu      sync.Mutex
	r       io.Reader // nil: no body, or revoked
	present bool
	err     error
}

// lend makes the body of one try.
func (r Request) lend(w *watch) (*lent, error) {
	b := &lent{watch: w, tee: r.Tee, size: r.Size, present: true}
	switch {
	case r.JSON != nil:
		j, err := json.Marshal(r.JSON)
		if err != nil {
			return nil, &worker.Error{Op: r.What, Reason: worker.ReasonInternal, Err: fmt.Errorf("encode the request: %w", err)}
		}
		b.r, b.size = bytes.NewReader(j), int64(len(j))
	case r.Body != nil:
		if _, err := r.Body.Seek(0, io.SeekStart); err != nil {
			return nil, fmt.Errorf("rewind the data: %w", err)
		}
		b.r = r.Body
	default:
		b.present = false
	}
	if b.tee != nil {
		b.tee(nil, true)
	}

	return b, nil
}

// attach makes b the body of req.
func (b *lent) attach(req *http.Request, r Request) {
	if !b.present {
		return
	}
	req.Body, req.ContentLength = b, b.size
	if b.size == 0 {
		// Zero with a body means unknown to net/http, and unknown means chunked.
		req.Body = http.NoBody
	}
	if r.JSON != nil {
		req.Header.Set("Content-Type", "application/json")

		return
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	if b.size > 0 {
		// A refusal then comes before the data are on their way.
		req.Header.Set("Expect", "100-continue")
	}
}

// Read is the transport's. The source's time is not the service's: the watch stands still meanwhile.
func (b *lent) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.r == nil {
		return 0, errRevoked
	}
	b.watch.stop()
	n, err := b.r.Read(p)
	b.watch.start()
	if b.tee != nil && n > 0 {
		b.tee(p[:n], false)
	}
	if err != nil && err != io.EOF { // the bare io.EOF is io.Reader's contract
		b.err = err
	}

	return n, err
}

// Close is the transport's. It must not block, so a Read under way is waited for in revoke.
func (b *lent) Close() error { return nil }

// revoke returns when nothing reads from the source any more, and nothing will.
func (b *lent) revoke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.r = nil
}

// failed is the source's own error.
func (b *lent) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()

	return b.err
}

// capped is a transport whose answers have an upper size.
type capped struct{ http.RoundTripper }

// RoundTrip is http.RoundTripper's.
func (c capped) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := c.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = &cappedBody{ReadCloser: resp.Body, left: maxAnswer}
	}

	return resp, err
}

// CloseIdleConnections is looked for by http.Client.
func (c capped) CloseIdleConnections() {
	if t, ok := c.RoundTripper.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

type cappedBody struct {
	io.ReadCloser
	left int64
}

// Read fails beyond the cap instead of cutting the answer short.
func (c *cappedBody) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if c.left -= int64(n); c.left < 0 {
		return 0, errTooLong
	}

	return n, err
}
