package oslo

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// config builds the TLS configuration for a connection to host. It reads the files
// on every call, so that a renewed certificate is used from the next connection on.
func (t TLS) config(host string) (*tls.Config, error) {
	c := &tls.Config{ServerName: host}
	var err error
	if c.MinVersion, c.MaxVersion, err = tlsVersions(t.Version); err != nil {
		return nil, fmt.Errorf("option \"ssl_version\": %w", err)
	}
	if t.CAFile != "" {
		if c.RootCAs, err = authorities(t.CAFile); err != nil {
			return nil, err
		}
	}
	if t.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(t.CertFile, t.keyFile())
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w", t.CertFile, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	if t.SkipHostname {
		skipHostname(c)
	}
	return c, nil
}

// keyFile: Python reads the key from the certificate file if none is named.
func (t TLS) keyFile() string {
	if t.KeyFile == "" {
		return t.CertFile
	}
	return t.KeyFile
}

func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read certificate authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read certificate authorities: no certificate in %s", file)
	}
	return pool, nil
}

// skipHostname leaves out the name and nothing else. crypto/tls has no such switch:
// its own verification is turned off and the chain verified here, on every
// handshake (VerifyConnection runs for resumed sessions too).
func skipHostname(c *tls.Config) {
	roots := c.RootCAs
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("verify broker certificate: there is none")
		}
		intermediates := x509.NewCertPool()
		for _, cert := range s.PeerCertificates[1:] {
			intermediates.AddCert(cert)
		}
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
		if err != nil {
			return fmt.Errorf("verify broker certificate: %w", err)
		}
		return nil
	}
}

// tlsVersions translates the names of Python's ssl module. What is older than TLS 1.2
// is refused rather than silently raised.
func tlsVersions(name string) (lowest, highest uint16, err error) {
	switch name {
	case "", "SSLv23", "TLS":
		return tls.VersionTLS12, 0, nil
	case "TLSv1_2":
		return tls.VersionTLS12, tls.VersionTLS12, nil
	case "TLSv1_3":
		return tls.VersionTLS13, tls.VersionTLS13, nil
	case "TLSv1", "TLSv1_1", "SSLv2", "SSLv3":
		return 0, 0, errors.New("is older than TLS 1.2; leave it unset")
	}
	return 0, 0, errors.New("is no version of TLS; leave it unset")
}
