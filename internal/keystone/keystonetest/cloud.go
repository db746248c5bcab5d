// Package keystonetest is a Keystone in memory with a catalog of services, for tests. It checks tokens for these
// services as keystonemiddleware does, and it can make their answers go wrong before or after they did what was asked.
package keystonetest

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cinderlift/cinderlift/internal/keystone"
)

// Canary is in every token and password. It must not turn up in an error, a log or a label.
const Canary = "canary"

// Password is the right one.
const Password = keystone.Secret(Canary + "-password")

// Project is the id of the project that sessions are scoped to.
const Project = "11111111111111111111111111111111"

// Fault is one way in which an exchange goes wrong.
type Fault struct {
	Name  string
	After bool // the request was carried out all the same
	Code  int  // answer this; 0 with Hang false cuts the connection
	Hang  bool // never answer
}

// Faults are the ways in which a write can go wrong: not carried out, and carried out but reported failed.
func Faults() []Fault {
	return []Fault{
		{Name: "500 before", Code: 500}, {Name: "503 before", Code: 503}, {Name: "429 before", Code: 429},
		{Name: "cut before"}, {Name: "silence before", Hang: true},
		{Name: "500 after", After: true, Code: 500}, {Name: "502 after", After: true, Code: 502},
		{Name: "504 after", After: true, Code: 504},
		{Name: "cut after", After: true}, {Name: "silence after", After: true, Hang: true},
	}
}

// Cloud is the fake.
type Cloud struct {
	*httptest.Server

	mu       sync.Mutex
	services map[string]http.Handler // by first path segment
	tokens   map[string]time.Time    // valid ones
	logins   int
	lifetime time.Duration
	refuse   int // status code for logins
	faults   map[string][]Fault
	seen     []string
}

// New starts a cloud without services that ends with the test.
func New(t testing.TB) *Cloud {
	t.Helper()

	return start(t, httptest.NewServer)
}

// NewTLS starts one behind TLS, and answers the path of its CA's certificate as well.
func NewTLS(t testing.TB) (*Cloud, string) {
	t.Helper()
	c := start(t, httptest.NewTLSServer)
	path := filepath.Join(t.TempDir(), "ca.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate().Raw})
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}

	return c, path
}

func start(t testing.TB, listen func(http.Handler) *httptest.Server) *Cloud {
	t.Helper()
	c := &Cloud{
		services: map[string]http.Handler{}, tokens: map[string]time.Time{}, faults: map[string][]Fault{},
		lifetime: time.Hour,
	}
	c.Server = listen(c)
	t.Cleanup(func() {
		c.CloseClientConnections()
		c.Close()
	})

	return c
}

// Serve puts a service into the catalog.
func (c *Cloud) Serve(s keystone.Service, h http.Handler) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.services[s.String()] = h
}

// Options log in to the cloud, with a timeout that suits tests.
func (c *Cloud) Options() keystone.Options {
	return keystone.Options{
		AuthURL: c.URL + "/identity/v3", Username: "cinderlift", Password: Password, ProjectName: "service",
		Region: "RegionOne", Timeout: 150 * time.Millisecond,
	}
}

// Session logs in.
func (c *Cloud) Session(t testing.TB, change ...func(*keystone.Options)) *keystone.Session {
	t.Helper()
	o := c.Options()
	for _, f := range change {
		f(&o)
	}
	s, err := keystone.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)

	return s
}

// Revoke makes all tokens given out so far invalid.
func (c *Cloud) Revoke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.tokens)
}

// Lifetime is that of tokens to come.
func (c *Cloud) Lifetime(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lifetime = d
}

// RefuseLogins answers logins with code; 0 ends it.
func (c *Cloud) RefuseLogins(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = code
}

// Logins counts the tokens given out.
func (c *Cloud) Logins() int {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.logins
}

// Inject makes the next requests of a method and service go wrong, one fault each: Inject("PUT image", f, f).
func (c *Cloud) Inject(what string, f ...Fault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.faults[what] = append(c.faults[what], f...)
}

// Forgive drops all faults that were not met yet.
func (c *Cloud) Forgive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.faults)
}

// Seen are the requests to services so far, such as "PUT image /v2/images/1/file".
func (c *Cloud) Seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()

	return append([]string(nil), c.seen...)
}

// ServeHTTP is http.Handler's.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if name == "identity" {
		c.identity(w, r)

		return
	}
	h, f, faulty := c.admit(name, r.Method, rest)
	if h == nil {
		http.NotFound(w, r)

		return
	}
	w.Header().Set("X-Openstack-Request-Id", "req-00000000-0000-0000-0000-000000000000")
	r.URL.Path = "/" + rest
	if !c.known(r.Header.Get("X-Auth-Token")) {
		// The body is taken first, so that a client that does not rewind is found out.
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusUnauthorized)

		return
	}
	if !faulty {
		h.ServeHTTP(w, r)

		return
	}
	c.fail(w, r, h, f)
}

// admit notes the request and takes the fault that waits for it.
func (c *Cloud) admit(name, method, rest string) (http.Handler, Fault, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := method + " " + name
	c.seen = append(c.seen, key+" /"+rest)
	if q := c.faults[key]; len(q) > 0 {
		c.faults[key] = q[1:]

		return c.services[name], q[0], true
	}

	return c.services[name], Fault{}, false
}

func (c *Cloud) fail(w http.ResponseWriter, r *http.Request, h http.Handler, f Fault) {
	if f.After {
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
	switch {
	case f.Hang:
		// The context ends with the connection only when the body was read.
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case f.Code == 0:
		panic(http.ErrAbortHandler)
	default:
		w.WriteHeader(f.Code)
		_, _ = fmt.Fprintf(w, "<html><title>%d</title> it went wrong</html>", f.Code)
	}
}

func (c *Cloud) known(token string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return time.Now().Before(c.tokens[token])
}

func (c *Cloud) identity(w http.ResponseWriter, r *http.Request) {
	b, _ := io.ReadAll(r.Body)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case r.Method != http.MethodPost || !strings.HasSuffix(r.URL.Path, "/auth/tokens"):
		w.WriteHeader(http.StatusNotFound)
	case c.refuse != 0:
		w.WriteHeader(c.refuse)
	case !strings.Contains(string(b), string(Password)):
		w.WriteHeader(http.StatusUnauthorized)
	default:
		c.grant(w)
	}
}

func (c *Cloud) grant(w http.ResponseWriter) {
	c.logins++
	token := fmt.Sprintf("%s-token-%d", Canary, c.logins)
	expires := time.Now().Add(c.lifetime)
	c.tokens[token] = expires
	w.Header().Set("X-Subject-Token", token)
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(map[string]any{"token": map[string]any{
		"expires_at": expires.UTC().Format("2006-01-02T15:04:05.000000Z"),
		"issued_at":  time.Now().UTC().Format("2006-01-02T15:04:05.000000Z"),
		"project":    map[string]any{"id": Project, "name": "service", "domain": map[string]string{"id": "default", "name": "Default"}},
		"catalog":    c.catalog(),
	}})
}

func (c *Cloud) catalog() []map[string]any {
	var l []map[string]any
	for name := range c.services {
		kind, url := name, c.URL+"/"+name
		if name == keystone.Volume.String() {
			kind, url = "volumev3", url+"/v3/"+Project
		}
		l = append(l, map[string]any{"id": name, "type": kind, "name": name, "endpoints": []map[string]string{
			{"id": "1", "interface": "internal", "region": "RegionOne", "region_id": "RegionOne", "url": "http://127.0.0.1:1/internal"},
			{"id": "2", "interface": "public", "region": "RegionTwo", "region_id": "RegionTwo", "url": "http://127.0.0.1:1/elsewhere"},
			{"id": "3", "interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": url},
		}})
	}

	return l
}
