package keystone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode"

	"github.com/cinderlift/cinderlift/worker"
)

// Request is one call.
type Request struct {
	Service Service
	Op      string // stable name for metrics: "image-show"
	What    string // for people, with the ids that matter: "show image 2"
	Method  string
	Path    string // below the service's root; segments that come from outside must be checked by the caller
	Query   url.Values
	Header  http.Header

	// JSON is the body, encoded; or Body is, streamed with Size bytes and announced by a Content-Length, never chunked.
	// Body is read from its start, again after a 401. Tee gets what was read; it is told a new start with reset.
	JSON any
	Body io.ReadSeeker
	Size int64
	Tee  func(p []byte, reset bool)

	// ServiceToken sends the session's token as X-Service-Token as well, which tells a service that a service asks.
	ServiceToken bool

	// Fresh is how long the token has to be valid still. A new token is fetched when this one's time is shorter.
	Fresh time.Duration

	// Timeout replaces Options.Timeout. 0 does not.
	Timeout time.Duration
}

// Answer is what a service said, whatever the status code.
type Answer struct {
	Code   int
	Header http.Header
	Body   []byte

	service Service
	what    string
}

// Do sends a request and reads the whole answer. A status code of any kind is an Answer; an error means that there was
// no answer, and then it is open whether the request was carried out. An error of Body is handed through as it is. Do is
// as idempotent as the request; it may be called concurrently; it retries nothing but one 401. When ctx ends, Do returns
// soon, with worker.ReasonStopping, or worker.ReasonLeaseLost if that was the cause.
func (s *Session) Do(ctx context.Context, r Request) (*Answer, error) {
	start := time.Now()
	a, err := s.authorized(ctx, r)
	code := 0
	if a != nil {
		code = a.Code
	}
	s.opts.Observe(r.Service.String(), r.Op, code, time.Since(start), err)

	return a, err
}

func (s *Session) authorized(ctx context.Context, r Request) (*Answer, error) {
	l, err := s.valid(ctx, r.Service, r.Fresh)
	if err != nil {
		return nil, err
	}
	a, err := s.once(ctx, l, r)
	if err != nil || a.Code != http.StatusUnauthorized {
		return a, err
	}
	// The service may know better than our clock, or the token was revoked.
	if err := s.renew(ctx, r.Service, l.token); err != nil {
		return nil, err
	}

	return s.once(ctx, s.current(), r)
}

// once makes one exchange.
func (s *Session) once(parent context.Context, l login, r Request) (*Answer, error) {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	watch := newWatch(s.timeout(r), cancel)
	defer watch.stop()

	body, err := r.lend(watch)
	if err != nil {
		return nil, err
	}
	defer body.revoke()
	req, err := s.build(ctx, l, r, body)
	if err != nil {
		return nil, &worker.Error{Op: r.What, Reason: r.Service.refused(), Advice: worker.Retry, Err: err}
	}
	a, err := s.exchange(req, r)
	body.revoke()
	switch {
	case body.failed() != nil:
		return nil, body.failed()
	case err == nil:
		a.Body = bytes.ReplaceAll(a.Body, []byte(l.token), []byte("[redacted]"))

		return a, nil
	case parent.Err() != nil:
		return nil, ended(parent, r.Service, r.What)
	case errors.Is(context.Cause(ctx), errSilent):
		err = fmt.Errorf("%w within %s", errSilent, s.timeout(r))
	}

	return nil, &worker.Error{Op: r.What, Reason: r.Service.unavailable(), Advice: worker.Retry, Err: err}
}

var (
	errSilent  = errors.New("the service did not answer or took no more data")
	errTooLong = errors.New("the answer is longer than 4 MiB")
	errRevoked = errors.New("the request is over")
)

func (s *Session) timeout(r Request) time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}

	return s.opts.Timeout
}

func (s *Session) exchange(req *http.Request, r Request) (*Answer, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer %d: %w", resp.StatusCode, err)
	}

	return &Answer{Code: resp.StatusCode, Header: resp.Header, Body: b, service: r.Service, what: r.What}, nil
}

func (s *Session) build(ctx context.Context, l login, r Request, body *lent) (*http.Request, error) {
	u, err := s.url(l, r)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, u, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", s.opts.UserAgent)
	body.attach(req, r)
	for k, v := range r.Header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	if id := requestID(ctx); id != "" {
		req.Header.Set("X-Openstack-Request-Id", id)
	}
	req.Header.Set("X-Auth-Token", l.token)
	if r.ServiceToken {
		req.Header.Set("X-Service-Token", l.token)
	}

	return req, nil
}

// Err is nil for 2xx. Otherwise it says what the status code means for the service, with what the service gave as its
// reason.
func (a *Answer) Err() error {
	if a.Code >= 200 && a.Code < 300 {
		return nil
	}
	reason, advice := a.service.verdict(a.Code, a.Genuine())

	return &worker.Error{Op: a.what, Reason: reason, Advice: advice, Err: errors.New(a.text())}
}

// Genuine reports whether the service itself answered and not a proxy before it: Glance and Cinder put a request id on
// whatever they answer (glance c76abb08e api/middleware/context.py:84; oslo.middleware request_id.py).
func (a *Answer) Genuine() bool { return a.Header.Get("X-Openstack-Request-Id") != "" }

func (a *Answer) text() string {
	who := a.service.name()
	if !a.Genuine() {
		who = "something before " + who + " (no x-openstack-request-id)"
	}
	s := fmt.Sprintf("%s answered %d", who, a.Code)
	if a.Code >= 300 && a.Code < 400 {
		return s + ", a redirect, which is not followed; correct the endpoint in the catalog or the configuration"
	}
	if a.Code == http.StatusUnauthorized {
		s += " to a new token; check that cinderlift's user has the roles admin and service"
	}
	if m := plain(a.Body); m != "" {
		s += ": " + m
	}

	return s
}

// Decode reads a JSON answer. What can't be read counts as a service that is away: it is a proxy's page or cut short.
func (a *Answer) Decode(v any) error {
	if err := a.Err(); err != nil {
		return err
	}
	if err := json.Unmarshal(a.Body, v); err != nil {
		return &worker.Error{Op: a.what, Reason: a.service.unavailable(), Advice: worker.Retry,
			Err: fmt.Errorf("read the answer of %s: %w", a.service.name(), err)}
	}

	return nil
}

// plain makes one short line of an answer, which is HTML or JSON.
func plain(b []byte) string {
	const most = 240
	var s strings.Builder
	inTag := false
	for _, c := range string(b[:min(len(b), 4096)]) {
		switch {
		case c == '<':
			inTag = true
		case c == '>' && inTag:
			inTag = false
			s.WriteByte(' ')
		case inTag:
		case !unicode.IsPrint(c):
			s.WriteByte(' ')
		default:
			s.WriteRune(c)
		}
	}
	line := strings.Join(strings.Fields(s.String()), " ")

	return strings.ToValidUTF8(line[:min(len(line), most)], "")
}

// ended is the error for a context that is over.
func ended(ctx context.Context, s Service, op string) error {
	cause := context.Cause(ctx)
	switch {
	case errors.Is(cause, worker.ErrLeaseLost):
		return &worker.Error{Op: op, Reason: worker.ReasonLeaseLost, Advice: worker.StandBy, Err: cause}
	case errors.Is(cause, context.DeadlineExceeded):
		return &worker.Error{Op: op, Reason: s.unavailable(), Advice: worker.Retry, Err: cause}
	default:
		return &worker.Error{Op: op, Reason: worker.ReasonStopping, Advice: worker.StandBy, Err: cause}
	}
}
