package keystone_test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cinderlift/cinderlift/internal/keystone"
	"github.com/cinderlift/cinderlift/internal/keystone/keystonetest"
	"github.com/cinderlift/cinderlift/worker"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}

	return path
}

func TestCloudsYAML(t *testing.T) {
	c := keystonetest.New(t)
	c.Serve(keystone.Image, http.NotFoundHandler())
	const entry = `clouds:
  mine:
    auth: {auth_url: %s/identity/v3, username: cinderlift, password: %s, project_name: service%s}
    region_name: RegionOne
    interface: public
%s`
	for _, tc := range []struct {
		name, cloud, auth, more string
		reason                  worker.Reason
	}{
		{"right", "mine", ", user_domain_name: Default, project_domain_id: default", "", worker.ReasonNone},
		{"without domains", "mine", "", "", worker.ReasonNone},
		{"unknown cloud", "yours", "", "", worker.ReasonBadRequest},
		{"not verified", "mine", "", "    verify: false\n", worker.ReasonBadRequest},
		{"a token", "mine", ", token: " + keystonetest.Canary, "", worker.ReasonBadRequest},
		{"not YAML", "mine", "", "\t!", worker.ReasonBadRequest},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := write(t, "clouds.yaml", fmt.Sprintf(entry, c.URL, string(keystonetest.Password), tc.auth, tc.more))
			s, err := keystone.Open(t.Context(), keystone.Options{Cloud: tc.cloud, CloudFiles: []string{path}})
			if worker.ReasonOf(err) != tc.reason || err != nil && strings.Contains(err.Error(), keystonetest.Canary) {
				t.Fatal(err)
			}
			if s == nil {
				return
			}
			defer s.Close()
			if a, err := s.Do(t.Context(), show()); err != nil || a.Code != http.StatusNotFound {
				t.Fatal(a, err)
			}
		})
	}
}

func TestTLS(t *testing.T) {
	c, ca := keystonetest.NewTLS(t)
	c.Serve(keystone.Image, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			t.Errorf("HTTP/%d", r.ProtoMajor)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	open := func(change func(*keystone.Options)) error {
		o := c.Options()
		o.Timeout, o.CAFile = 0, ca
		change(&o)
		s, err := keystone.Open(t.Context(), o)
		if err != nil {
			return err
		}
		defer s.Close()
		_, err = s.Do(t.Context(), show())

		return err
	}
	if err := open(func(*keystone.Options) {}); err != nil {
		t.Errorf("right CA: %v", err)
	}
	for name, change := range map[string]func(*keystone.Options){
		"system's CAs only": func(o *keystone.Options) { o.CAFile = "" },
		"wrong host name":   func(o *keystone.Options) { o.AuthURL = strings.Replace(o.AuthURL, "127.0.0.1", "localhost", 1) },
	} {
		if err := open(change); worker.ReasonOf(err) != worker.ReasonGlanceUnavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := open(func(o *keystone.Options) { o.CAFile = write(t, "ca.pem", "no PEM") }); worker.ReasonOf(err) != worker.ReasonBadRequest {
		t.Errorf("no PEM: %v", err)
	}
}
