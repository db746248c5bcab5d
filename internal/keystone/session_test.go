package keystone_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/keystone/keystonetest"
	"github.com/cinderlift/cinderlift/worker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func show() keystone.Request {
	return keystone.Request{Service: keystone.Image, Op: "image-show", What: "show image 1", Method: "GET", Path: "/v2/images/1"}
}

func TestA401RenewsOnceAndSendsTheWholeBodyAgain(t *testing.T) {
	c := keystonetest.New(t)
	data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	var got []byte
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != int64(len(data)) || len(r.TransferEncoding) != 0 {
			t.Errorf("length %d, encoding %v: want an announced length", r.ContentLength, r.TransferEncoding)
		}
		got, _ = io.ReadAll(r.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	s := c.Session(t)
	c.Revoke()

	var teed bytes.Buffer
	a, err := s.Do(t.Context(), keystone.Request{
		Service: keystone.Image, Op: "image-upload", What: "upload", Method: "PUT", Path: "/v2/images/1/file",
		Body: bytes.NewReader(data), Size: int64(len(data)),
		Tee: func(p []byte, reset bool) {
			if reset {
				teed.Reset()
			}
			teed.Write(p)
		},
	})
	if err != nil || a.Code != http.StatusNoContent {
		t.Fatalf("answer %+v, error %v", a, err)
	}
	if !bytes.Equal(got, data) || !bytes.Equal(teed.Bytes(), data) {
		t.Fatalf("service has %d bytes, tee %d, want %d", len(got), teed.Len(), len(data))
	}
	if c.Logins() != 2 {
		t.Fatalf("%d logins, want 2", c.Logins())
	}
}

func TestManyRequestsRenewOnce(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	s := c.Session(t, func(o *keystone.Options) { o.Timeout = 10 * time.Second })
	c.Revoke()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if a, err := s.Do(t.Context(), show()); err != nil || a.Code != 204 {
				t.Errorf("answer %v, error %v", a, err)
			}
		})
	}
	wg.Wait()
	if c.Logins() != 2 {
		t.Fatalf("%d logins, want 2", c.Logins())
	}
}

func TestATokenIsFetchedBeforeItIsTooOld(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	for _, tc := range []struct {
		name           string
		lifetime, need time.Duration
		logins         int
	}{
		{"fresh", time.Hour, 0, 1}, {"about to expire", 10 * time.Second, 0, 2}, {"too short for a long upload", time.Hour, 2 * time.Hour, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := c.Logins()
			c.Lifetime(tc.lifetime)
			s := c.Session(t)
			r := show()
			r.Fresh = tc.need
			if _, err := s.Do(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if n := c.Logins() - before; n != tc.logins {
				t.Fatalf("%d logins, want %d", n, tc.logins)
			}
		})
	}
}

func TestHeaders(t *testing.T) {
	c := keystonetest.New(t)
	var h http.Header
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h = r.Header; w.WriteHeader(204) }))
	s := c.Session(t)
	for _, tc := range []struct {
		id, want string
		service  bool
	}{
		{"req-1", "req-1", false}, {"", "", true}, {"req 1\n", "", false}, {strings.Repeat("a", 65), "", false},
	} {
		r := show()
		r.ServiceToken = tc.service
		if _, err := s.Do(keystone.WithRequestID(t.Context(), tc.id), r); err != nil {
			t.Fatal(err)
		}
		if got := h.Get("X-Openstack-Request-Id"); got != tc.want {
			t.Errorf("request id %q, want %q", got, tc.want)
		}
		if (h.Get("X-Service-Token") != "") != tc.service || h.Get("X-Auth-Token") == "" {
			t.Errorf("service token wanted %t: %v", tc.service, h)
		}
	}
}

// Every status code has a meaning for both services, and only the services themselves can say that something is gone.
func TestEveryStatusCodeHasAMeaning(t *testing.T) {
	c := keystonetest.New(t)
	code, genuine := 0, true
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !genuine {
			w.Header().Del("X-Openstack-Request-Id")
		}
		w.WriteHeader(code)
	})
	c.Serve(keystone.Image, h)
	c.Serve(keystone.Volume, h)
	s := c.Session(t)
	for srv, r := range map[keystone.Service]map[string]worker.Reason{
		keystone.Image:  {"away": worker.ReasonGlanceUnavailable, "no": worker.ReasonGlanceRefused, "gone": worker.ReasonImageMissing, "state": worker.ReasonImageState},
		keystone.Volume: {"away": worker.ReasonCinderUnavailable, "no": worker.ReasonCinderRefused, "gone": worker.ReasonVolumeMissing, "state": worker.ReasonVolumeState},
	} {
		for code = 200; code < 600; code++ {
			if code == http.StatusNotModified { // net/http has its own mind on it
				continue
			}
			want, advice := r["no"], worker.GiveUp
			switch {
			case code < 300:
				want, advice = worker.ReasonNone, worker.GiveUp
			case code < 400, code == 401, code == 407:
				advice = worker.Retry
			case (code == 404 || code == 410) && !genuine:
				want, advice = r["away"], worker.Retry
			case code == 404, code == 410:
				want = r["gone"]
			case code == 409:
				want, advice = r["state"], worker.Retry
			case code == 408, code == 425, code == 429, code >= 500:
				want, advice = r["away"], worker.Retry
			}
			req := show()
			req.Service = srv
			a, err := s.Do(t.Context(), req)
			if err != nil {
				t.Fatal(code, err)
			}
			if e := a.Err(); worker.ReasonOf(e) != want || worker.AdviceOf(e) != advice {
				t.Errorf("%s %d genuine %t: %s and %v, want %s and %v", srv, code, genuine, worker.ReasonOf(e), worker.AdviceOf(e), want, advice)
			}
		}
		genuine = !genuine
	}
}

func TestNoAnswer(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }))
	s := c.Session(t)
	for _, f := range []keystonetest.Fault{{Name: "cut"}, {Name: "silence", Hang: true}} {
		c.Inject("PATCH image", f)
		r := show()
		r.Method = "PATCH"
		_, err := s.Do(t.Context(), r)
		if worker.ReasonOf(err) != worker.ReasonGlanceUnavailable || worker.AdviceOf(err) != worker.Retry {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}

func TestWhatEndsARequest(t *testing.T) {
	c := keystonetest.New(t)
	hanging := make(chan struct{}, 1)
	c.Serve(keystone.Image, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		hanging <- struct{}{}
		<-r.Context().Done()
	}))
	s := c.Session(t, func(o *keystone.Options) { o.Timeout = time.Minute })
	for _, tc := range []struct {
		cause  error
		reason worker.Reason
		advice worker.Advice
	}{
		{worker.ErrLeaseLost, worker.ReasonLeaseLost, worker.StandBy},
		{worker.ErrStopping, worker.ReasonStopping, worker.StandBy},
		{context.DeadlineExceeded, worker.ReasonGlanceUnavailable, worker.Retry},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { <-hanging; cancel(tc.cause) }()
		_, err := s.Do(ctx, show())
		if worker.ReasonOf(err) != tc.reason || worker.AdviceOf(err) != tc.advice {
			t.Errorf("%v: %v, advice %v", tc.cause, err, worker.AdviceOf(err))
		}
	}
}

type slow struct {
	io.ReadSeeker
	wait time.Duration
	err  error
}

func (s *slow) Read(p []byte) (int, error) {
	<-time.After(s.wait)
	if s.err != nil {
		return 0, s.err
	}

	return s.ReadSeeker.Read(p)
}

// Ceph's slowness is not Glance's, and neither are its errors.
func TestTheSourcesTimeAndErrorsAreItsOwn(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(204)
	}))
	s := c.Session(t, func(o *keystone.Options) { o.Timeout = 50 * time.Millisecond })
	put := func(b io.ReadSeeker) error {
		r := show()
		r.Method, r.Body, r.Size = "PUT", b, 5
		_, err := s.Do(t.Context(), r)

		return err
	}
	if err := put(&slow{strings.NewReader("12345"), 120 * time.Millisecond, nil}); err != nil {
		t.Errorf("slow source: %v", err)
	}
	broken := &worker.Error{Op: "read", Reason: worker.ReasonCephUnavailable, Advice: worker.Retry}
	if err := put(&slow{strings.NewReader("12345"), 0, broken}); !errors.Is(err, broken) {
		t.Errorf("broken source: %v", err)
	}
}

func TestRedirectsAreNotFollowedAndLongAnswersRefused(t *testing.T) {
	c := keystonetest.New(t)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("redirected with token %q", r.Header.Get("X-Auth-Token"))
	}))
	t.Cleanup(elsewhere.Close)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "GET" {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)

			return
		}
		for range 5 {
			_, _ = w.Write(make([]byte, 1<<20))
		}
	}))
	s := c.Session(t)
	a, err := s.Do(t.Context(), show())
	if err != nil || worker.ReasonOf(a.Err()) != worker.ReasonGlanceRefused {
		t.Errorf("redirect: %v, %v", a, err)
	}
	r := show()
	r.Method = "POST"
	if a, err := s.Do(t.Context(), r); err == nil {
		t.Errorf("answer of %d bytes accepted", len(a.Body))
	}
}

// The canary: whatever goes wrong, nobody gets to read token or password.
func TestNothingShowsASecret(t *testing.T) {
	c := keystonetest.New(t)
	var texts []string
	note := func(v any) { texts = append(texts, fmt.Sprintf("%v %+v %#v", v, v, v)) }
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(400)
		_, _ = fmt.Fprintf(w, "bad token %s", r.Header.Get("X-Auth-Token"))
	}))
	s := c.Session(t, func(o *keystone.Options) {
		o.Observe = func(service, op string, code int, took time.Duration, err error) {
			note([]any{service, op, code, took, err})
		}
	})
	note(c.Options())
	for _, code := range []int{0, 401, 403, 500} {
		c.RefuseLogins(code)
		c.Revoke()
		a, err := s.Do(t.Context(), show())
		note(err)
		if a != nil {
			note(a.Err())
			note(*a)
			note(string(a.Body))
		}
	}
	c.RefuseLogins(0)
	for _, f := range keystonetest.Faults() {
		c.Inject("GET image", f)
		_, err := s.Do(t.Context(), show())
		note(err)
	}
	for _, s := range texts {
		if strings.Contains(s, keystonetest.Canary) {
			t.Errorf("shown: %s", s)
		}
	}
}

func TestOpen(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.NotFoundHandler())
	for _, tc := range []struct {
		name   string
		change func(*keystone.Options)
		code   int
		reason worker.Reason
		advice worker.Advice
	}{
		{"right", func(*keystone.Options) {}, 0, worker.ReasonNone, worker.GiveUp},
		{"application credential", func(o *keystone.Options) {
			*o = keystone.Options{AuthURL: o.AuthURL, ApplicationCredentialID: "1", ApplicationCredentialSecret: o.Password}
		}, 0, worker.ReasonNone, worker.GiveUp},
		{"wrong password", func(o *keystone.Options) { o.Password = "wrong" }, 0, worker.ReasonGlanceRefused, worker.Retry},
		{"keystone 503", func(*keystone.Options) {}, 503, worker.ReasonGlanceUnavailable, worker.Retry},
		{"keystone away", func(o *keystone.Options) { o.AuthURL = "http://127.0.0.1:1/v3" }, 0, worker.ReasonGlanceUnavailable, worker.Retry},
		{"keystone missing", func(o *keystone.Options) { o.AuthURL += "/x" }, 404, worker.ReasonGlanceUnavailable, worker.Retry},
		{"no URL", func(o *keystone.Options) { o.AuthURL = "" }, 0, worker.ReasonBadRequest, worker.GiveUp},
		{"password in URL", func(o *keystone.Options) { o.AuthURL = "http://a:b@c/" }, 0, worker.ReasonBadRequest, worker.GiveUp},
		{"no user", func(o *keystone.Options) { o.Username = "" }, 0, worker.ReasonBadRequest, worker.GiveUp},
		{"no password", func(o *keystone.Options) { o.Password = "" }, 0, worker.ReasonBadRequest, worker.GiveUp},
		{"no project", func(o *keystone.Options) { o.ProjectName = "" }, 0, worker.ReasonBadRequest, worker.GiveUp},
		{"bad interface", func(o *keystone.Options) { o.Interface = "secret" }, 0, worker.ReasonBadRequest, worker.GiveUp},
		{"no CA file", func(o *keystone.Options) { o.CAFile = "/nonexistent" }, 0, worker.ReasonBadRequest, worker.GiveUp},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c.RefuseLogins(tc.code)
			o := c.Options()
			tc.change(&o)
			s, err := keystone.Open(t.Context(), o)
			if worker.ReasonOf(err) != tc.reason || worker.AdviceOf(err) != tc.advice {
				t.Fatalf("%v, advice %v", err, worker.AdviceOf(err))
			}
			if s != nil {
				s.Close()
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	c := keystonetest.New(t)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Header().Set("Path", r.URL.Path) })
	c.Serve(keystone.Image, h)
	c.Serve(keystone.Volume, h)
	const p = "/v3/" + keystonetest.Project + "/volumes/1"
	for _, tc := range []struct {
		service        keystone.Service
		override, want string
	}{
		{keystone.Image, "", "/v2/images/1"},
		{keystone.Image, c.URL + "/image/", "/v2/images/1"},
		{keystone.Image, c.URL + "/image/v2", "/v2/images/1"},
		{keystone.Image, c.URL + "/image/v2.17/", "/v2/images/1"},
		{keystone.Volume, "", p},
		{keystone.Volume, c.URL + "/volume", p},
		{keystone.Volume, c.URL + "/volume/v3/", p},
		{keystone.Volume, c.URL + "/volume/v3/2", "/v3/2/volumes/1"},
	} {
		s := c.Session(t, func(o *keystone.Options) {
			if tc.override != "" {
				o.Endpoints = map[keystone.Service]string{tc.service: tc.override}
			}
		})
		r := show()
		if r.Service = tc.service; tc.service == keystone.Volume {
			r.Path = "/volumes/1"
		}
		a, err := s.Do(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got := a.Header.Get("Path"); got != tc.want {
			t.Errorf("%s %q: path %s, want %s", tc.service, tc.override, got, tc.want)
		}
	}
	s := c.Session(t, func(o *keystone.Options) { o.Region = "RegionThree" })
	if _, err := s.Do(t.Context(), show()); worker.ReasonOf(err) != worker.ReasonGlanceRefused {
		t.Errorf("unknown region: %v", err)
	}
}
