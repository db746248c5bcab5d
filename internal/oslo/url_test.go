package oslo

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every URL that was fed to oslo.messaging 14.0.3 and kombu, and what they made of it.
func TestTransportURLAsOslo(t *testing.T) {
	data, err := os.ReadFile("testdata/transport-url.json")
	if err != nil {
		t.Fatal(err)
	}
	type golden struct {
		Hosts []struct {
			Hostname, Username, Password string
			Port                         int
		}
		DriverExists bool           `json:"driver_exists"`
		QueryError   string         `json:"query_error"`
		Error        string         `json:"error"`
		Effective    map[string]any `json:"effective"`
		Vhosts       []string       `json:"amqp_open_vhost"`
	}
	var all map[string]golden
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	for s, want := range all {
		t.Run(s, func(t *testing.T) {
			got, err := ParseTransportURL(s)
			if want.Error != "" {
				// Parsed by oslo.messaging, but kombu then fails on the "/" in the
				// password. It is a valid URL and works here.
				if err != nil || got.Hosts[0].Password.Reveal() != "p@ss/:#" {
					t.Errorf("got %v, %v", got, err)
				}
				return
			}
			if !want.DriverExists || want.QueryError != "" {
				if err == nil {
					t.Errorf("accepted as %v", got)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.VHost != want.Vhosts[0] {
				t.Errorf("vhost = %q, want %q", got.VHost, want.Vhosts[0])
			}
			if len(want.Hosts) == 0 {
				h := got.Hosts[0]
				if h.Address() != "localhost:5672" || h.Username != "guest" || h.Password.Reveal() != "guest" {
					t.Errorf("default host = %v", h)
				}
			}
			for i, w := range want.Hosts {
				h := got.Hosts[i]
				if w.Port == 0 {
					w.Port = 5672
				}
				if h.Name != w.Hostname || h.Port != w.Port || h.Username != w.Username || h.Password.Reveal() != w.Password {
					t.Errorf("host %d = %v %q, want %v", i, h, h.Password.Reveal(), w)
				}
			}
			for name, value := range map[string]any{
				"ssl": got.TLS.Enabled, "ssl_ca_file": got.TLS.CAFile, "heartbeat_timeout_threshold": got.Heartbeat.Seconds(),
				"rabbit_quorum_queue": got.QuorumQueues, "amqp_durable_queues": got.DurableQueues,
			} {
				if w, ok := want.Effective[name]; ok && w != value {
					t.Errorf("%s = %v, want %v", name, value, w)
				}
			}
		})
	}
}

func TestTransportURLRefuses(t *testing.T) {
	const password = "hunter2"
	for _, c := range []struct{ url, names string }{
		{"rabbit://u:hunter2@h1/v?no_such_option=1", `"no_such_option"`},
		{"rabbit://u:hunter2@h1/v?ssl=perhaps", `"ssl"`},
		{"rabbit://u:hunter2@h1/v?ssl_version=TLSv1", "older than TLS 1.2"},
		{"rabbit://u:hunter2@h1/v?rabbit_login_method=RABBIT-CR-DEMO", `"rabbit_login_method"`},
		{"rabbit://u:hunter2@h1/v?heartbeat_timeout_threshold=-1", `"heartbeat_timeout_threshold"`},
		{"rabbit://u:hunter2@h1/v?rabbit_quorum_delivery_limit=x", `"rabbit_quorum_delivery_limit"`},
		{"rabbit://u:hunter2@h1/v?kombu_reconnect_delay=soon", `"kombu_reconnect_delay"`},
		{"rabbit://u:hunter2@h1/v?rabbit_ha_queues=maybe", `"rabbit_ha_queues"`},
		{"rabbit://u:hunter2@h1/v?conn_pool_ttl=1.5", `"conn_pool_ttl"`},
		{"rabbit://u:hunter2@h1/v?ssl=1&ssl=0", "2 times"},
		{"rabbit://u:hunter2@h1/%zz", "vhost"},
		{"rabbit://u:hunter2@h1/" + strings.Repeat("v", 300), "300 bytes"},
		{"rabbit://u:hunter2%zz@h1/v", "password"},
		{"rabbit://u%zz:hunter2@h1/v", "user name"},
		{"rabbit://u:hunter2@h1:0/v", "port"},
		{"rabbit://u:hunter2@h1:70000/v", "port"},
		{"rabbit://u:hunter2@:5672/v", "no host name"},
		{"rabbit://u:hunter2@h1,/v", "host 2"},
		{"rabbit://u:hunter2@[::1/v", `"]"`},
		{"rabbit://u:hunter2@[h1]/v", "IP address"},
		{"rabbit://u:hunter2@[::1]5672/v", `":port"`},
		{"amqp://u:hunter2@h1/v", "rabbit://"},
		{"u:hunter2@h1/v", "rabbit://"},
		{"", "rabbit://"},
	} {
		_, err := ParseTransportURL(c.url)
		if err == nil || !strings.Contains(err.Error(), c.names) || strings.Contains(err.Error(), password) {
			t.Errorf("%s: error %v, want one that says %s and no password", c.url, err, c.names)
		}
	}
}

func TestTransportHidesPasswords(t *testing.T) {
	tr, err := ParseTransportURL("rabbit://u:hunter2@h1,u2:hunter3@[::1]:5673/v?ssl=1")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(tr), fmt.Sprintf("%+v %#v", tr, tr), tr.LogValue().String(), fmt.Sprintf("%+v", tr.Hosts)} {
		if strings.Contains(s, "hunter") {
			t.Errorf("shows a password: %s", s)
		}
	}
	if got := tr.String(); got != "rabbit://u:***@h1:5672,u2:***@[::1]:5673/v" {
		t.Errorf("String = %s", got)
	}
}

// authority makes certificates for the TLS tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	dir  string
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{dir: t.TempDir()}
	a.cert, a.key = a.issue(t, name, true, nil)
	return a
}

func (a *authority) issue(t *testing.T, name string, isCA bool, signer *authority) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: isCA, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	parent, parentKey := template, key
	if signer != nil {
		parent, parentKey = signer.cert, signer.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(file, kind string, data []byte) {
		if err := os.WriteFile(filepath.Join(a.dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(name+".pem", "CERTIFICATE", der)
	write(name+".key", "PRIVATE KEY", keyDER)
	return cert, key
}

func (a *authority) path(file string) string { return filepath.Join(a.dir, file) }

func TestTLSHandshakes(t *testing.T) {
	good, evil := newAuthority(t, "ca"), newAuthority(t, "ca")
	good.issue(t, "broker", false, good)
	good.issue(t, "worker", false, good)
	evil.issue(t, "broker", false, evil)
	client := TLS{Enabled: true, CAFile: good.path("ca.pem"), CertFile: good.path("worker.pem"), KeyFile: good.path("worker.key")}
	for name, c := range map[string]struct {
		server *authority
		change func(*TLS)
		host   string
		ok     bool
	}{
		"right name":                    {good, func(*TLS) {}, "broker", true},
		"other name":                    {good, func(*TLS) {}, "h1", false},
		"other name, name not checked":  {good, func(o *TLS) { o.SkipHostname = true }, "h1", true},
		"other CA":                      {evil, func(*TLS) {}, "broker", false},
		"other CA, name not checked":    {evil, func(o *TLS) { o.SkipHostname = true }, "broker", false},
		"system CAs, name not checked":  {good, func(o *TLS) { o.SkipHostname, o.CAFile = true, "" }, "broker", false},
		"no client certificate":         {good, func(o *TLS) { o.CertFile = "" }, "broker", false},
		"TLS 1.2":                       {good, func(o *TLS) { o.Version = "TLSv1_2" }, "broker", true},
		"TLS 1.3, name not checked":     {good, func(o *TLS) { o.Version, o.SkipHostname = "TLSv1_3", true }, "h1", true},
		"CA given as client, unchecked": {evil, func(o *TLS) { o.SkipHostname, o.Version = true, "TLSv1_2" }, "h1", false},
	} {
		t.Run(name, func(t *testing.T) {
			o := client
			c.change(&o)
			config, err := o.config(c.host)
			if err != nil {
				t.Fatal(err)
			}
			if err := handshake(t, config, c.server, good); (err == nil) != c.ok {
				t.Errorf("handshake: %v, want ok=%v", err, c.ok)
			}
		})
	}
}

func handshake(t *testing.T, config *tls.Config, server, clients *authority) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(server.path("broker.pem"), server.path("broker.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(clients.cert)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	a, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{a, b} {
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	result := make(chan error, 1)
	go func() {
		defer b.Close()
		s := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert})
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		result <- err
	}()
	c := tls.Client(a, config)
	err = c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1)) // TLS 1.3 refuses client certificates after the handshake
	}
	a.Close()
	if serverErr := <-result; err == nil {
		err = serverErr
	}
	return err
}

func TestTLSFilesMissing(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []TLS{{CAFile: "/nonexistent/ca.pem"}, {CAFile: empty}, {CertFile: "/nonexistent/c.pem"}, {Version: "SSLv3"}} {
		if _, err := o.config("h"); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}
