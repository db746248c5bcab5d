package keystone

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack"
	"github.com/gophercloud/gophercloud/v2/openstack/identity/v3/tokens"

	"github.com/cinderlift/cinderlift/worker"
)

const (
	// maxAnswer caps answers in bytes: a volume list or a catalog is far below, and a body without end is refused.
	maxAnswer = 4 << 20

	// spare is how long a token must still be valid to be used at all.
	spare = 30 * time.Second
)

// Session is one login that is kept alive. Its methods may be called concurrently.
type Session struct {
	opts   Options
	client *http.Client

	renewing chan struct{} // a lock that can be waited for together with a context

	mu    sync.Mutex
	login login
}

// login is what a token brought. It is replaced as a whole.
type login struct {
	token   string
	expires time.Time
	project string
	catalog []tokens.CatalogEntry
}

// Open logs in. A wrong password and a Keystone that is away are both errors to try again later; options that can't
// work are worker.ReasonBadRequest and GiveUp. The session lives until Close.
func Open(ctx context.Context, o Options) (*Session, error) {
	o, trust, err := o.complete()
	if err != nil {
		return nil, &worker.Error{Op: "open a Keystone session", Reason: worker.ReasonBadRequest, Err: err}
	}
	s := &Session{opts: o, client: newClient(&http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:       trust,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: 5 * time.Second,
		// A connection for each request. A kept one leads to the same worker process of Glance, and one that hashes an
		// image inside librbd answers nothing for minutes, while its siblings would.
		DisableKeepAlives: true,
		Protocols:         http1(),
	}), renewing: make(chan struct{}, 1)}
	if err := s.renew(ctx, Image, ""); err != nil {
		s.Close()

		return nil, err
	}

	return s, nil
}

// Close drops idle connections. The token is left to expire: revoking it would break requests of a sibling that had it
// validated just before.
func (s *Session) Close() { s.client.CloseIdleConnections() }

// Project is the id of the project that the session is scoped to.
func (s *Session) Project() string { return s.current().project }

func http1() *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(true)

	return p
}

func newClient(t http.RoundTripper) *http.Client {
	return &http.Client{
		Transport:     capped{t},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (s *Session) current() login {
	s.mu.Lock()
	defer s.mu.Unlock()

	return s.login
}

// valid answers a login whose token lives at least for need more, as far as a new token can bring that about.
func (s *Session) valid(ctx context.Context, srv Service, need time.Duration) (login, error) {
	l := s.current()
	if time.Until(l.expires) >= max(need, spare) {
		return l, nil
	}
	if err := s.renew(ctx, srv, l.token); err != nil {
		return login{}, err
	}

	return s.current(), nil
}

// renew replaces the login unless somebody has done so since the caller saw the token old.
func (s *Session) renew(ctx context.Context, srv Service, old string) error {
	const op = "log in to Keystone"
	select {
	case s.renewing <- struct{}{}:
		defer func() { <-s.renewing }()
	case <-ctx.Done():
		return ended(ctx, srv, op)
	}
	if s.current().token != old {
		return nil
	}
	l, err := s.authenticate(ctx)
	if err != nil {
		return s.loginError(ctx, srv, op, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.login = l

	return nil
}

func (s *Session) authenticate(ctx context.Context) (l login, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	defer cancel()
	start := time.Now()
	defer func() { s.opts.Observe("identity", "token-create", loginCode(err), time.Since(start), err) }()

	p, err := openstack.NewClient(s.opts.AuthURL)
	if err != nil {
		return login{}, err
	}
	p.HTTPClient = *s.client
	p.UserAgent.Prepend(s.opts.UserAgent)
	if err := openstack.Authenticate(ctx, p, s.opts.auth()); err != nil {
		return login{}, err
	}
	r, ok := p.GetAuthResult().(tokens.CreateResult)
	if !ok {
		return login{}, errors.New("answered with a token that is not of the v3 API")
	}

	return newLogin(r)
}

func newLogin(r tokens.CreateResult) (login, error) {
	t, err := r.ExtractToken()
	if err != nil {
		return login{}, fmt.Errorf("read the token's expiry: %w", err)
	}
	c, err := r.ExtractServiceCatalog()
	if err != nil {
		return login{}, fmt.Errorf("read the catalog: %w", err)
	}
	p, err := r.ExtractProject()
	if err != nil || p == nil {
		return login{}, errors.New("the token is not scoped to a project")
	}

	return login{token: t.ID, expires: t.ExpiresAt, project: p.ID, catalog: c.Entries}, nil
}

// loginCode is the status of a login for metrics.
func loginCode(err error) int {
	var code gophercloud.ErrUnexpectedResponseCode
	switch {
	case err == nil:
		return http.StatusCreated
	case errors.As(err, &code):
		return code.Actual
	default:
		return 0
	}
}

// loginError leaves out gophercloud's text, which quotes Keystone's answer in full length.
func (s *Session) loginError(ctx context.Context, srv Service, op string, err error) error {
	op += " at " + s.opts.AuthURL
	if ctx.Err() != nil {
		return ended(ctx, srv, op)
	}
	code := loginCode(err)
	switch {
	case code == 0:
		return &worker.Error{Op: op, Reason: srv.unavailable(), Advice: worker.Retry, Err: fmt.Errorf("no usable answer: %w", err)}
	case code == http.StatusUnauthorized:
		err = errors.New("401: Keystone refuses the user, password, project or application credential; correct them in the configuration")
	default:
		err = fmt.Errorf("Keystone answered %d", code)
	}
	reason, _ := srv.verdict(code, false)

	return &worker.Error{Op: op, Reason: reason, Advice: worker.Retry, Err: err}
}

// url is where a request goes.
func (s *Session) url(l login, r Request) (string, error) {
	base := s.opts.Endpoints[r.Service]
	if base == "" {
		base = s.catalogURL(l, r.Service)
	}
	if base == "" {
		return "", fmt.Errorf("the catalog has no %s endpoint of %s for region %q and interface %q; name one in the configuration",
			strings.Join(r.Service.types(), "/"), r.Service.name(), s.opts.Region, s.opts.Interface)
	}
	u, err := url.Parse(base)
	if err != nil {
		return "", fmt.Errorf("read the endpoint of %s: %w", r.Service.name(), err)
	}
	u.Path = strings.TrimSuffix(r.Service.root(u.Path, l.project)+r.Path, "/")
	u.RawQuery = r.Query.Encode()

	return u.String(), nil
}

// root brings what operators write into catalogs to one form: Glance's URL without a version, Cinder's with version and
// project. Cinder takes the project's id in the path also since it is optional (microversion 3.67).
func (s Service) root(p, project string) string {
	p = strings.TrimRight(p, "/")
	if s == Image {
		if strings.HasPrefix(path.Base(p), "v2") {
			p = path.Dir(p)
		}

		return strings.TrimRight(p, "/")
	}
	if slices.Contains(strings.Split(path.Dir(p), "/"), "v3") {
		return p
	}
	if path.Base(p) != "v3" {
		p += "/v3"
	}

	return p + "/" + project
}

func (s *Session) catalogURL(l login, srv Service) string {
	want, _ := endpointInterface(s.opts.Interface)
	for _, t := range srv.types() {
		for _, e := range l.catalog {
			if e.Type != t {
				continue
			}
			for _, p := range e.Endpoints {
				if p.Interface == want && (s.opts.Region == "" || p.Region == s.opts.Region || p.RegionID == s.opts.Region) {
					return p.URL
				}
			}
		}
	}

	return ""
}
