package keystone

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/gophercloud/gophercloud/v2"
)

// Secret is a string that no formatting shows.
type Secret string

// String hides the secret.
func (s Secret) String() string { return "[redacted]" }

// GoString hides the secret.
func (s Secret) GoString() string { return "[redacted]" }

// LogValue hides the secret.
func (s Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText hides the secret.
func (s Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Options says who logs in where. The fields bear the meaning of the OS_* variables of the same name.
type Options struct {
	// Cloud names an entry of clouds.yaml, which replaces AuthURL and all credentials. CloudFiles are the paths where the
	// file may be; none: ./, ~/.config/openstack and /etc/openstack.
	Cloud      string
	CloudFiles []string

	AuthURL string // of Keystone, with or without /v3

	Username, UserID             string // one of them, unless an application credential's id is given
	UserDomainName, UserDomainID string // with Username; "" and "" is the domain with the id `default`
	Password                     Secret
	ProjectName, ProjectID       string // one of them, unless an application credential is used
	ProjectDomainName            string // with ProjectName; "" and "" is the domain with the id `default`
	ProjectDomainID              string
	ApplicationCredentialID      string // instead of user, password and project
	ApplicationCredentialName    string // with Username or UserID
	ApplicationCredentialSecret  Secret
	Region                       string             // "" takes the first endpoint of the catalog
	Interface                    string             // public (also ""), internal or admin; with or without URL behind it
	CAFile                       string             // PEM; added to the system's certificates
	Endpoints                    map[Service]string // used instead of the catalog's
	UserAgent                    string             // "" is cinderlift

	// Timeout is how long one request may take, and for a request with a streamed body how long the service may take
	// nothing of it or leave the answer open. 0 is a minute.
	Timeout time.Duration

	// Observe is told of every request, for metrics: the service (`image`, `volume`, `identity`), the request's Op, the
	// status code (0 when there was no answer), and how long it took with its possible second try. It may be called
	// concurrently. Nil: nobody is told.
	Observe func(service, op string, code int, took time.Duration, err error)
}

// defaultDomain is the id of the domain that Keystone creates on its own.
const defaultDomain = "default"

func (o Options) withDefaults() Options {
	if o.Timeout <= 0 {
		o.Timeout = time.Minute
	}
	if o.UserAgent == "" {
		o.UserAgent = "cinderlift"
	}
	if o.Observe == nil {
		o.Observe = func(string, string, int, time.Duration, error) {}
	}

	return o
}

// validate finds what can't work before anything is sent.
func (o Options) validate() error {
	if err := absoluteURL(o.AuthURL); err != nil {
		return fmt.Errorf("auth URL: %w", err)
	}
	for s, u := range o.Endpoints {
		if err := absoluteURL(u); err != nil {
			return fmt.Errorf("endpoint of %s: %w", s, err)
		}
	}
	if _, err := endpointInterface(o.Interface); err != nil {
		return err
	}

	return o.validateUser()
}

func (o Options) validateUser() error {
	switch {
	case o.ApplicationCredentialID != "" || o.ApplicationCredentialName != "":
		return o.validateApplicationCredential()
	case o.Username == "" && o.UserID == "":
		return errors.New("neither a user nor an application credential is given")
	case o.Password == "":
		return errors.New("no password is given")
	case o.ProjectName == "" && o.ProjectID == "":
		return errors.New("no project is given")
	default:
		return nil
	}
}

func (o Options) validateApplicationCredential() error {
	switch {
	case o.ApplicationCredentialSecret == "":
		return errors.New("no secret of the application credential is given")
	case o.ApplicationCredentialID == "" && o.Username == "" && o.UserID == "":
		return errors.New("an application credential's name needs its user")
	default:
		return nil
	}
}

// absoluteURL never answers with the URL itself, which may hold a password.
func absoluteURL(s string) error {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return errors.New("not an absolute http or https URL")
	}
	if u.User != nil {
		return errors.New("holds a user name or password; give these by their own options")
	}

	return nil
}

func endpointInterface(s string) (string, error) {
	switch s {
	case "", "public", "publicURL":
		return "public", nil
	case "internal", "internalURL":
		return "internal", nil
	case "admin", "adminURL":
		return "admin", nil
	default:
		return "", fmt.Errorf("interface %q is none of public, internal, admin", s)
	}
}

// auth is gophercloud's form of the credentials.
func (o Options) auth() gophercloud.AuthOptions {
	a := gophercloud.AuthOptions{
		IdentityEndpoint:            o.AuthURL,
		ApplicationCredentialID:     o.ApplicationCredentialID,
		ApplicationCredentialSecret: string(o.ApplicationCredentialSecret),
	}
	if o.ApplicationCredentialID != "" {
		return a
	}
	a.ApplicationCredentialName = o.ApplicationCredentialName
	a.UserID, a.Username = o.UserID, o.Username
	if o.UserID != "" {
		a.Username = ""
	} else {
		a.DomainID, a.DomainName = domain(o.UserDomainID, o.UserDomainName)
	}
	if o.ApplicationCredentialName == "" {
		a.Password = string(o.Password)
		a.Scope = o.scope()
	}

	return a
}

func (o Options) scope() *gophercloud.AuthScope {
	if o.ProjectID != "" {
		return &gophercloud.AuthScope{ProjectID: o.ProjectID}
	}
	id, name := domain(o.ProjectDomainID, o.ProjectDomainName)

	return &gophercloud.AuthScope{ProjectName: o.ProjectName, DomainID: id, DomainName: name}
}

// domain prefers the id, since Keystone refuses both together.
func domain(id, name string) (string, string) {
	switch {
	case id != "":
		return id, ""
	case name != "":
		return "", name
	default:
		return defaultDomain, ""
	}
}

// complete looks up the cloud, if one is named, checks the result, and answers the TLS rules that go with it.
func (o Options) complete() (Options, *tls.Config, error) {
	o = o.withDefaults()
	trust := &tls.Config{MinVersion: tls.VersionTLS12}
	var err error
	if o.Cloud != "" {
		if o, trust, err = o.fromCloud(); err != nil {
			return o, nil, err
		}
	}
	if err := o.validate(); err != nil {
		return o, nil, err
	}
	trust, err = o.trustCA(trust)

	return o, trust, err
}

// trustCA adds CAFile to the system's certificates.
func (o Options) trustCA(c *tls.Config) (*tls.Config, error) {
	if o.CAFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read CA file: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("read the system's certificates: %w", err)
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA file %s holds no certificate", o.CAFile)
	}
	c.RootCAs = pool

	return c, nil
}
