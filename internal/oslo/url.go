package oslo

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Transport is a parsed transport_url: where the brokers are, how to log in, and how
// the cloud declares its queues.
type Transport struct {
	Hosts       []Host // at least one
	VHost       string // never empty; the default is "/"
	LoginMethod string // AMQPLAIN (default), PLAIN or EXTERNAL
	TLS         TLS

	// Heartbeat is heartbeat_timeout_threshold; 0 if the URL does not name it.
	Heartbeat time.Duration

	// How the cloud's services declare the control exchange and their queues.
	DurableQueues bool // amqp_durable_queues
	AutoDelete    bool // amqp_auto_delete
	QuorumQueues  bool // rabbit_quorum_queue
	DeliveryLimit int  // rabbit_quorum_delivery_limit; 0: none
}

// Host is one broker with its own credentials. A host without credentials has empty
// ones, not those of the host before it.
type Host struct {
	Name     string
	Port     int
	Username string
	Password Secret
}

// Address is host:port for dialling and for the log.
func (h Host) Address() string { return net.JoinHostPort(h.Name, strconv.Itoa(h.Port)) }

// TLS says whether and how connections are encrypted.
type TLS struct {
	Enabled  bool
	CAFile   string // empty: the system's authorities
	CertFile string
	KeyFile  string
	Version  string // ssl_version; empty: TLS 1.2 or newer

	// SkipHostname verifies the certificate chain but not the name in it, for
	// clouds whose certificates do not carry the names in transport_url.
	SkipHostname bool
}

// defaultPort is 5672 with TLS as well: oslo.messaging never switches to 5671.
const defaultPort = 5672

// schemes of the rabbit driver. "amqp" is not one of them: it was the name of the
// AMQP 1.0 driver.
var schemes = [...]string{"rabbit", "kombu", "kombu+amqp"}

// ParseTransportURL reads
// driver://[user:pass@]host[:port][,[userN:passN@]hostN[:portN]]/vhost?option=value&…
// as oslo.messaging does (oslo.messaging 8ea2d5b transport.py:417-513). Errors name
// the part that is wrong and never hold a password.
func ParseTransportURL(s string) (Transport, error) {
	t, err := parseTransport(s)
	if err != nil {
		return Transport{}, fmt.Errorf("parse transport URL: %w", err)
	}
	return t, nil
}

func parseTransport(s string) (Transport, error) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return Transport{}, errors.New(`no "rabbit://" at its beginning`)
	}
	if !slices.Contains(schemes[:], scheme) {
		return Transport{}, errors.New(`unknown driver before "://"; use rabbit://`)
	}
	rest, _, _ = strings.Cut(rest, "#")
	rest, query, _ := strings.Cut(rest, "?")
	netloc, path, _ := strings.Cut(rest, "/")

	t := Transport{LoginMethod: "AMQPLAIN"}
	var err error
	if t.VHost, err = parseVHost(path); err != nil {
		return Transport{}, err
	}
	if t.Hosts, err = parseHosts(netloc); err != nil {
		return Transport{}, err
	}
	if err := t.parseOptions(query); err != nil {
		return Transport{}, err
	}
	return t, nil
}

// parseVHost: absent, "/", "//" and "/%2F" all mean the vhost "/".
func parseVHost(path string) (string, error) {
	vhost, err := url.PathUnescape(path)
	if err != nil {
		return "", errors.New("vhost: invalid percent encoding")
	}
	if len(vhost) > maxName {
		return "", fmt.Errorf("vhost: %d bytes, at most %d", len(vhost), maxName)
	}
	if vhost == "" {
		return "/", nil
	}
	return vhost, nil
}

func parseHosts(netloc string) ([]Host, error) {
	if netloc == "" {
		return []Host{{Name: "localhost", Port: defaultPort, Username: "guest", Password: NewSecret("guest")}}, nil
	}
	var hosts []Host
	for i, part := range strings.Split(netloc, ",") {
		h, err := parseHost(part)
		if err != nil {
			return nil, fmt.Errorf("host %d: %w", i+1, err)
		}
		hosts = append(hosts, h)
	}
	return hosts, nil
}

// parseHost splits at the last "@" and the first ":" of the credentials.
func parseHost(part string) (Host, error) {
	var h Host
	if at := strings.LastIndexByte(part, '@'); at >= 0 {
		user, password, _ := strings.Cut(part[:at], ":")
		u, err := url.PathUnescape(user)
		if err != nil {
			return Host{}, errors.New("user name: invalid percent encoding")
		}
		p, err := url.PathUnescape(password)
		if err != nil {
			return Host{}, errors.New("password: invalid percent encoding")
		}
		h.Username, h.Password = u, NewSecret(p)
		part = part[at+1:]
	}
	return h, h.parseAddress(part)
}

func (h *Host) parseAddress(part string) error {
	name, port := part, ""
	if strings.HasPrefix(part, "[") {
		end := strings.IndexByte(part, ']')
		if end < 0 {
			return errors.New(`"[" without "]"`)
		}
		name, port = part[1:end], part[end+1:]
		if net.ParseIP(name) == nil {
			return errors.New("no IP address between the brackets")
		}
		if port != "" && port[0] != ':' {
			return errors.New(`something other than ":port" after "]"`)
		}
		port = strings.TrimPrefix(port, ":")
	} else if colon := strings.IndexByte(part, ':'); colon >= 0 {
		name, port = part[:colon], part[colon+1:]
	}
	if name == "" {
		return errors.New("no host name")
	}
	h.Name, h.Port = name, defaultPort
	if port == "" {
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return errors.New("port is not a number from 1 to 65535")
	}
	h.Port = int(n)
	return nil
}

// checkIgnored checks the options of [oslo_messaging_rabbit] that a Python service may
// carry in the same URL and that mean nothing here.
func checkIgnored(name, value string) error {
	switch name {
	case "ssl_enforce_fips_mode", "heartbeat_in_pthread", "rabbit_ha_queues", "rabbit_transient_quorum_queue",
		"rabbit_stream_fanout", "direct_mandatory_flag", "enable_cancel_on_failover", "use_queue_manager":
		_, err := parseBool(value)
		return err
	case "rpc_conn_pool_size", "conn_pool_min_size", "conn_pool_ttl", "heartbeat_rate",
		"kombu_missing_consumer_retry_timeout", "rabbit_retry_interval", "rabbit_retry_backoff",
		"rabbit_interval_max", "rabbit_quorum_max_memory_length", "rabbit_quorum_max_memory_bytes",
		"rabbit_quroum_max_memory_length", "rabbit_quroum_max_memory_bytes", // misspelt until 17.0.0
		"rabbit_transient_queues_ttl", "rabbit_qos_prefetch_count":
		_, err := parseInt(value)
		return err
	case "kombu_reconnect_delay", "kombu_reconnect_splay":
		return checkFloat(value)
	case "kombu_compression", "kombu_failover_strategy", "hostname", "processname":
		return nil
	}
	return errors.New("no such option in [oslo_messaging_rabbit]")
}

func (t *Transport) parseOptions(query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("options: invalid encoding")
	}
	for name, v := range values {
		if len(v) > 1 {
			return fmt.Errorf("option %q: given %d times", name, len(v))
		}
		if err := t.parseOption(name, v[0]); err != nil {
			return fmt.Errorf("option %q: %w", name, err)
		}
	}
	return nil
}

func (t *Transport) parseOption(name, value string) (err error) {
	switch name {
	case "ssl":
		t.TLS.Enabled, err = parseBool(value)
	case "ssl_ca_file":
		t.TLS.CAFile = value
	case "ssl_cert_file":
		t.TLS.CertFile = value
	case "ssl_key_file":
		t.TLS.KeyFile = value
	case "ssl_version":
		t.TLS.Version = value
		_, _, err = tlsVersions(value)
	case "ssl_enforce_hostname_verification":
		var enforce bool
		enforce, err = parseBool(value)
		t.TLS.SkipHostname = !enforce
	case "heartbeat_timeout_threshold":
		t.Heartbeat, err = parseSeconds(value)
	case "amqp_durable_queues":
		t.DurableQueues, err = parseBool(value)
	case "amqp_auto_delete":
		t.AutoDelete, err = parseBool(value)
	case "rabbit_quorum_queue":
		t.QuorumQueues, err = parseBool(value)
	case "rabbit_quorum_delivery_limit":
		t.DeliveryLimit, err = parseInt(value)
	case "rabbit_login_method":
		t.LoginMethod, err = parseLogin(value)
	default:
		err = checkIgnored(name, value)
	}
	return err
}

// parseBool takes what oslo.config takes.
func parseBool(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "true", "1", "yes", "on":
		return true, nil
	case "false", "0", "no", "off":
		return false, nil
	}
	return false, errors.New("is not a boolean")
}

func parseSeconds(s string) (time.Duration, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, errors.New("is not a number of seconds from 0 to 65535")
	}
	return time.Duration(n) * time.Second, nil
}

func parseLogin(s string) (string, error) {
	switch s {
	case "AMQPLAIN", "PLAIN", "EXTERNAL":
		return s, nil
	}
	return "", errors.New("is none of AMQPLAIN, PLAIN, EXTERNAL")
}

func parseInt(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, errors.New("is not an integer")
	}
	return n, nil
}

func checkFloat(s string) error {
	if _, err := strconv.ParseFloat(s, 64); err != nil {
		return errors.New("is not a number")
	}
	return nil
}

// String is the URL with every password as ***, and without options.
func (t Transport) String() string {
	hosts := make([]string, len(t.Hosts))
	for i, h := range t.Hosts {
		hosts[i] = h.String()
	}
	return "rabbit://" + strings.Join(hosts, ",") + "/" + url.PathEscape(t.VHost)
}

// String is user:***@host:port.
func (h Host) String() string {
	if h.Username == "" && h.Password.IsZero() {
		return h.Address()
	}
	// The first colon ends the user's name, and PathEscape leaves it alone.
	return strings.NewReplacer(":", "%3A", "@", "%40").Replace(url.PathEscape(h.Username)) + ":" + masked + "@" + h.Address()
}

// LogValue is String for slog.
func (t Transport) LogValue() slog.Value { return slog.StringValue(t.String()) }

// LogValue is String for slog.
func (h Host) LogValue() slog.Value { return slog.StringValue(h.String()) }
