package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kelseyhightower/envconfig"

	"github.com/cinderlift/cinderlift/strategies"
)

const (
	prefix   = "CINDERLIFT"
	osPrefix = "OS"
)

// secret is a configured value that no formatting shows. Its Decode never fails, because envconfig prints the value of
// what it can't decode (envconfig v1.4.0 envconfig.go:47-49).
type secret string

// Decode takes the value as it is.
func (s *secret) Decode(v string) error {
	*s = secret(v)

	return nil
}

// String hides the value.
func (s secret) String() string { return "***" }

// GoString hides the value.
func (s secret) GoString() string { return "***" }

// MarshalText hides the value.
func (s secret) MarshalText() ([]byte, error) { return []byte("***"), nil }

// LogValue hides the value.
func (s secret) LogValue() slog.Value { return slog.StringValue("***") }

// config is everything that can be set, all of it by environment variables. The tag desc is the operator's page.
type config struct {
	TransportURL     secret `split_words:"true" desc:"transport_url of Cinder, verbatim: rabbit://user:password@host:5672,…/vhost?ssl=true"`
	TransportURLFile string `split_words:"true" desc:"file that holds the transport_url, instead of CINDERLIFT_TRANSPORT_URL"`
	ControlExchange  string `split_words:"true" default:"openstack" desc:"control_exchange of Cinder"`
	Topic            string `default:"cinder-image-upload" desc:"topic (queue) on which Cinder's glue sends requests"`
	QueueType        string `split_words:"true" desc:"type of the work queue and the dead-letter queue: classic or quorum; empty: as rabbit_quorum_queue in the transport_url says"`
	Notifications    string `default:"notifications" desc:"topic for notifications; none sends none"`

	CephConf         string `split_words:"true" default:"/etc/ceph/ceph.conf" desc:"ceph.conf of the cluster that holds the volumes"`
	CephUser         string `split_words:"true" default:"cinderlift" desc:"cephx user without client."`
	JournalPool      string `split_words:"true" desc:"pool of the journal, the same for all workers; empty: CINDERLIFT_IMAGE_POOL, or images"`
	JournalNamespace string `split_words:"true" default:"cinderlift" desc:"RADOS namespace of the journal"`

	Strategies  []string          `desc:"strategies in order of preference; empty: clone-flatten,copy,export-upload"`
	Register    string            `default:"auto" desc:"when clone-flatten registers the image: early (usable within seconds; client.glance needs to read the volumes' pool), late, or auto (found out)"`
	VolumePools map[string]string `split_words:"true" desc:"RBD pools by Cinder backend, backend:pool,…; empty: Cinder is asked (location_info)"`
	ImagePool   string            `split_words:"true" desc:"RBD pool of Glance's store; empty: Glance is asked (stores/detail), or images"`
	ImageFsid   string            `split_words:"true" desc:"fsid of the cluster of Glance's store; empty: Glance is asked, or it is taken to be the connected one"`
	VolumeNames string            `split_words:"true" default:"volume-%s" desc:"volume_name_template of Cinder"`
	ImageStore  string            `split_words:"true" desc:"Glance store for volumes whose type names none; empty: Glance's default"`

	FormatCheck             string   `split_words:"true" default:"auto" desc:"what a volume must not hold to become an image: as Glance refuses it to uploads (glance), every other image format as well (strict), nothing (off), or auto: glance where Glance is of release 30 (2025.1) or later, off before"`
	RequireImageFormatMatch bool     `split_words:"true" default:"true" desc:"as in glance-api.conf: with false, what looks like several formats or can't be read to its end is let through, unless CINDERLIFT_FORMAT_CHECK is strict"`
	GptSafetyChecksNonfatal []string `split_words:"true" desc:"as in glance-api.conf: mbr lets odd partition tables through"`

	Qcow2 string `default:"plain" desc:"how qcow2 images are made: plain (in one pass), sparse (without what is all zeros; everything is read twice), zlib or zstd (compressed as well; qemu 5.1 and later read zstd)"`

	Slots       int `default:"64" desc:"jobs at a time; as many again may be taken over from workers that died"`
	DataSlots   int `split_words:"true" default:"4" desc:"of these, how many move data inside Ceph at a time (copy, flatten); the others make images usable meanwhile, or wait"`
	ExportSlots int `split_words:"true" default:"4" desc:"and how many move data through this worker at a time (export-upload)"`

	CopyObjects    int      `split_words:"true" default:"8" desc:"objects copied inside Ceph at a time by this worker"`
	CopyJobObjects int      `split_words:"true" default:"2" desc:"objects copied inside Ceph at a time by one job"`
	CopyRate       byteRate `split_words:"true" desc:"bytes per second copied by this worker, such as 400MiB; empty: as fast as Ceph is"`
	CopyJobRate    byteRate `split_words:"true" desc:"bytes per second copied by one job; empty: as fast as Ceph is"`
	ExportRate     byteRate `split_words:"true" desc:"bytes per second read by all exports of this worker, at least 1MiB; empty: as fast as Ceph and Glance are"`
	LimitsFile     string   `split_words:"true" desc:"file of lines NAME=VALUE that override the four CINDERLIFT_COPY_ settings and CINDERLIFT_EXPORT_RATE; read at the start and at each SIGHUP"`

	LeaseTTL  time.Duration `split_words:"true" default:"30s" desc:"lease of a job; the same for the whole pool of workers"`
	ScanEvery time.Duration `split_words:"true" default:"10s" desc:"how often to look for jobs of dead workers"`
	Look      time.Duration `default:"15s" desc:"how often to look whether the volume and the image of a running job are still as they were"`
	SoftStop  time.Duration `split_words:"true" default:"2s" desc:"how long running jobs may go on after SIGTERM before they are handed over; the process ends within 10s of it"`
	Deaths    int           `default:"5" desc:"how many workers a job may kill in the same step before it is put aside"`
	Aside     time.Duration `default:"1h" desc:"how long a job that kills its workers is put aside, for an operator to look at it, before it is ended"`
	Slow      time.Duration `default:"2s" desc:"no new work while Ceph takes longer than this for one small answer"`
	Patience  time.Duration `default:"24h" desc:"how long a step is tried again while a service is away"`
	Retention time.Duration `default:"168h" desc:"how long finished jobs stay in the journal"`
	ReapEvery time.Duration `split_words:"true" default:"1h" desc:"how often the pool of workers looks for what jobs left behind, and removes it; 0: never"`
	ReapAge   time.Duration `split_words:"true" default:"1h" desc:"what is younger is never taken for something left behind"`

	Listen    string `default:"127.0.0.1:9753" desc:"address of /metrics, /livez and /readyz"`
	Name      string `desc:"name of this worker in journal and logs; empty: host name and pid"`
	LogLevel  string `split_words:"true" default:"info" desc:"debug, info, warn or error"`
	LogFormat string `split_words:"true" default:"json" desc:"json or text"`
}

// openstack are the OS_* variables as every OpenStack client knows them.
type openstack struct {
	Cloud                       string `desc:"name of a cloud in clouds.yaml, instead of the other OS_ variables"`
	ClientConfigFile            string `split_words:"true" desc:"clouds.yaml to use; empty: looked for in the working directory, ~/.config/openstack and /etc/openstack"`
	AuthURL                     string `split_words:"true" desc:"Keystone, with or without /v3"`
	Username                    string `desc:"user; it needs the roles admin and service"`
	Password                    secret `desc:"its password"`
	PasswordFile                string `split_words:"true" desc:"file that holds the password, instead of OS_PASSWORD"`
	ProjectName                 string `split_words:"true" desc:"project of the user, mostly service"`
	UserDomainName              string `split_words:"true" default:"Default" desc:"domain of the user"`
	ProjectDomainName           string `split_words:"true" default:"Default" desc:"domain of the project"`
	ApplicationCredentialID     string `split_words:"true" desc:"instead of user, password and project"`
	ApplicationCredentialSecret secret `split_words:"true" desc:"its secret"`
	RegionName                  string `split_words:"true" desc:"region of Glance and Cinder"`
	Interface                   string `default:"internal" desc:"endpoints to use: internal, public or admin"`
	Cacert                      string `desc:"CA certificates in a PEM file"`
}

// errConfig is an error of the configuration: exit code 2.
type errConfig struct{ err error }

func (e errConfig) Error() string { return e.err.Error() }
func (e errConfig) Unwrap() error { return e.err }

// loadConfig reads and checks the environment. Every error is one line that names the variable.
func loadConfig() (config, openstack, error) {
	var c config
	var o openstack
	err := errors.Join(firstLine(envconfig.CheckDisallowed(prefix, &c)), process(prefix, &c), process(osPrefix, &o))
	if err != nil {
		return c, o, errConfig{err}
	}
	if err := c.complete(&o); err != nil {
		return c, o, errConfig{err}
	}

	return c, o, nil
}

func process(prefix string, spec any) error {
	err := envconfig.Process(prefix, spec)
	var parse *envconfig.ParseError
	if errors.As(err, &parse) {
		// Not the library's own text, which holds the value.
		return fmt.Errorf("%s: not a %s", parse.KeyName, parse.TypeName)
	}

	return err
}

func firstLine(err error) error {
	if err == nil {
		return nil
	}

	return fmt.Errorf("%w: no such setting; `cinderlift config` lists them", err)
}

// complete reads the files and checks what depends on what.
func (c *config) complete(o *openstack) error {
	if err := fromFile("CINDERLIFT_TRANSPORT_URL", &c.TransportURL, c.TransportURLFile); err != nil {
		return err
	}
	if err := fromFile("OS_PASSWORD", &o.Password, o.PasswordFile); err != nil {
		return err
	}
	if c.TransportURL == "" {
		return errors.New("CINDERLIFT_TRANSPORT_URL: missing; it is transport_url in cinder.conf")
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("CINDERLIFT_NAME: missing, and the host has no name: %w", err)
		}
		c.Name = fmt.Sprintf("%s.%d", host, os.Getpid())
	}

	_, limits := c.limits()

	return errors.Join(c.choices(), c.numbers(), limits, o.check())
}

// fromFile fills s from a file, for secrets that must not be in the environment.
func fromFile(name string, s *secret, file string) error {
	if file == "" {
		return nil
	}
	if *s != "" {
		return fmt.Errorf("%s and %s_FILE: both are set, only one may be", name, name)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("%s_FILE: %w", name, err)
	}
	*s = secret(strings.TrimSpace(string(b)))

	return nil
}

func (c *config) choices() error {
	fsid := regexp.MustCompile(`^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?$`)
	if !fsid.MatchString(c.ImageFsid) {
		return fmt.Errorf("CINDERLIFT_IMAGE_FSID: %q is no fsid; `ceph fsid` shows it", c.ImageFsid)
	}
	if err := strategies.CheckOrder(c.Strategies); err != nil {
		return fmt.Errorf("CINDERLIFT_STRATEGIES: %w", err)
	}
	var modes []string
	for _, m := range strategies.RegisterModes() {
		modes = append(modes, string(m))
	}

	if strings.Count(c.VolumeNames, "%s") != 1 {
		return fmt.Errorf("CINDERLIFT_VOLUME_NAMES: %q does not hold %%s once", c.VolumeNames)
	}

	var checks []string
	for _, k := range strategies.FormatChecks() {
		checks = append(checks, string(k))
	}

	return errors.Join(
		oneOf("CINDERLIFT_FORMAT_CHECK", c.FormatCheck, checks...),
		oneOf("CINDERLIFT_REGISTER", c.Register, modes...),
		oneOf("CINDERLIFT_QCOW2", c.Qcow2, slices.Sorted(maps.Keys(qcow2Kinds()))...),
		oneOf("CINDERLIFT_QUEUE_TYPE", c.QueueType, "", "classic", "quorum"),
		oneOf("CINDERLIFT_LOG_LEVEL", c.LogLevel, "debug", "info", "warn", "error"),
		oneOf("CINDERLIFT_LOG_FORMAT", c.LogFormat, "json", "text"),
	)
}

func oneOf(name, value string, valid ...string) error {
	if slices.Contains(valid, value) {
		return nil
	}

	return fmt.Errorf("%s: %q is none of %s", name, value, strings.Join(valid, ", "))
}

func (c *config) numbers() error {
	if err := cmp.Or(between("CINDERLIFT_DATA_SLOTS", c.DataSlots, 1000), between("CINDERLIFT_EXPORT_SLOTS", c.ExportSlots, 1000),
		between("CINDERLIFT_SLOTS", c.Slots, 1000)); err != nil {
		return err
	}
	// Below that a busy OSD or a pause of the process costs leases; above it a dead worker's jobs wait too long.
	if c.LeaseTTL < 3*time.Second || c.LeaseTTL > 10*time.Minute {
		return fmt.Errorf("CINDERLIFT_LEASE_TTL: %s is not between 3s and 10m", c.LeaseTTL)
	}
	for name, d := range map[string]time.Duration{"SCAN_EVERY": c.ScanEvery, "PATIENCE": c.Patience, "RETENTION": c.Retention, "REAP_AGE": c.ReapAge,
		"LOOK": c.Look, "SLOW": c.Slow} {
		if d <= 0 {
			return fmt.Errorf("CINDERLIFT_%s: %s is not above zero", name, d)
		}
	}
	if c.ReapEvery != 0 && c.ReapEvery < time.Second {
		return fmt.Errorf("CINDERLIFT_REAP_EVERY: %s is neither 0 nor at least 1s", c.ReapEvery)
	}
	if c.SoftStop < 0 || c.Aside < 0 {
		return fmt.Errorf("CINDERLIFT_SOFT_STOP or CINDERLIFT_ASIDE: %s or %s is below zero", c.SoftStop, c.Aside)
	}
	if c.Deaths < 1 {
		return fmt.Errorf("CINDERLIFT_DEATHS: %d is not above zero", c.Deaths)
	}

	return nil
}

// between is an error unless n is 1 to most.
func between(name string, n, most int) error {
	if n < 1 || n > most {
		return fmt.Errorf("%s: %d is not between 1 and %d", name, n, most)
	}

	return nil
}

func (o *openstack) check() error {
	byUser, byCredential := o.Username != "" || o.Password != "", o.ApplicationCredentialID != ""
	switch {
	case o.Cloud != "" && (o.AuthURL != "" || byUser || byCredential):
		return errors.New("OS_CLOUD: set together with OS_AUTH_URL, OS_USERNAME or others; clouds.yaml has them")
	case o.Cloud != "":
		return nil
	case o.AuthURL == "":
		return errors.New("OS_AUTH_URL: missing")
	case byUser && byCredential:
		return errors.New("OS_APPLICATION_CREDENTIAL_ID: set together with OS_USERNAME or OS_PASSWORD; only one may be")
	case byCredential && o.ApplicationCredentialSecret == "":
		return errors.New("OS_APPLICATION_CREDENTIAL_SECRET: missing")
	case byCredential:
		return nil
	case o.Username == "":
		return errors.New("OS_USERNAME: missing")
	case o.Password == "":
		return errors.New("OS_PASSWORD: missing")
	case o.ProjectName == "":
		return errors.New("OS_PROJECT_NAME: missing")
	default:
		return nil
	}
}

// setting is one line of the operator's table.
type setting struct {
	Variable string `json:"variable"`
	Default  string `json:"default"`
	Meaning  string `json:"meaning"`
}

// settings lists all variables.
func settings() []setting {
	return append(settingsOf(prefix, &config{}), settingsOf(osPrefix, &openstack{})...)
}

func settingsOf(prefix string, spec any) []setting {
	var list []setting
	var names strings.Builder
	if err := envconfig.Usagef(prefix, spec, &names, "{{range .}}{{usage_key .}}\n{{end}}"); err != nil {
		panic(err) // the template is right there
	}
	keys := strings.Fields(names.String())
	t := reflect.TypeOf(spec).Elem()
	for i := range t.NumField() {
		tag := t.Field(i).Tag
		list = append(list, setting{Variable: keys[i], Default: tag.Get("default"), Meaning: tag.Get("desc")})
	}

	return list
}

// writeSettings prints the table as docs/operator.md shows it.
func writeSettings(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "VARIABLE\tDEFAULT\tMEANING")
	for _, s := range settings() {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", s.Variable, s.Default, s.Meaning)
	}

	return tw.Flush()
}
