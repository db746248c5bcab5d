package lab

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
)

//go:embed audit.py
var auditScript string

// Violation is one thing that is wrong with a cloud at rest.
type Violation struct {
	Code  string `json:"code"` // one of Codes; stable
	What  string `json:"what"`
	Where string `json:"where"`
}

func (v Violation) String() string { return v.Code + ": " + v.Where + ": " + v.What }

// Codes says what each code means.
func Codes() map[string]string {
	return map[string]string{
		"request-lost":        "an accepted request that no worker took, and nobody served",
		"request-open":        "a job that is not at its end",
		"ended-twice":         "a job that was closed more than once",
		"image-lost":          "an image that should be there, by its journal or by its user",
		"image-after-failure": "an image whose job failed or was cancelled",
		"image-after-delete":  "an image that its user deleted",
		"image-content":       "an active image that is not its volume, bit by bit",
		"image-size":          "Glance and Ceph differ about the size",
		"image-data-missing":  "an active image whose data are not there",
		"image-unsealed":      "Glance's snapshot is missing or unprotected",
		"image-parent":        "an image that still hangs on something",
		"image-metadata":      "settings of the volume that came along with the data",
		"image-unfinished":    "an image that is queued, saving, importing, or on its way out",
		"image-hidden":        "an image that its user does not see in lists",
		"image-duplicate":     "several images of one request",
		"volume-uploading":    "a volume that waits for an upload",
		"volume-state":        "a volume that is neither available nor in-use",
		"volume-content":      "a volume that was written to",
		"snapshot-left":       "a snapshot of ours on a volume, or a second one on an image",
		"snapshot-trashed":    "a removed snapshot that a clone keeps",
		"rbd-unknown":         "an RBD image in Glance's pool that Glance does not know",
		"rbd-broken":          "a volume without a header",
		"rbd-trashed":         "an image in RBD's trash",
		"objects-orphaned":    "data of an RBD image that is not there",
		"lock-left":           "a live lease",
		"volume-object-left":  "the object of a volume's lease",
		"index-stray":         "a key of the journal's index without a record",
		"index-missing":       "a record that the journal's index does not name",
		"journal-object":      "an unknown object in the journal's namespace",
		"record-broken":       "a record that can't be read",
		"token-in-journal":    "a token in a record",
		"token-in-log":        "a token or a password in a worker's log",
		"worker-crashed":      "a worker that ended by a panic or a fault of its own",
		"dead-letter":         "messages in the dead-letter queue",
		"queue-entry":         "messages in the work queue or on their way to cinder-volume",
	}
}

// Asked is a request that Cinder (202) or the broker (a confirm) has accepted.
type Asked struct {
	Image     string `json:"image"`
	Volume    string `json:"volume"`
	Name      string `json:"name"`                // of the image; no other image bears it
	Digest    string `json:"digest,omitempty"`    // of the volume, as Digest answers it; "": the format can't be compared
	Cancelled bool   `json:"cancelled,omitempty"` // its user deleted the image meanwhile
	Removed   bool   `json:"removed,omitempty"`   // it was verified, and deleted since
}

// Manifest is what a cloud is held against.
type Manifest struct {
	Requests []Asked           `json:"requests"`
	Volumes  map[string]string `json:"volumes"` // id to digest, of volumes that nobody wrote to

	Namespace   string `json:"namespace"`    // of the journal; default cinderlift
	JournalPool string `json:"journal_pool"` // default images
	Topic       string `json:"topic"`        // of the work queue; default cinder-image-upload

	Queues    []string `json:"queues"`    // that have to be empty; default: of the workers, and on the way to cinder-volume
	Transport string   `json:"transport"` // default LAB_TRANSPORT_URL
}

func (l *Lab) complete(m Manifest) Manifest {
	for s, v := range map[*string]string{&m.Namespace: "cinderlift", &m.JournalPool: "images", &m.Topic: "cinder-image-upload",
		&m.Transport: l.Env["LAB_TRANSPORT_URL"]} {
		if *s == "" {
			*s = v
		}
	}
	if m.Queues == nil {
		host := l.Env["LAB_CINDER_HOST"]
		m.Queues = []string{m.Topic, m.Topic + ".dead", "cinder-volume", "cinder-volume." + host,
			"cinder-volume." + host + "." + strings.Split(host, "@")[0]}
	}

	return m
}

// Audit looks at the whole cloud, which has to be at rest, and at the logs of the workers that were at work. It uses
// nothing of the worker's code. An error means that it could not look.
func (l *Lab) Audit(ctx context.Context, m Manifest, logs []string) ([]Violation, error) {
	found, err := l.auditLogs(logs)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(l.complete(m))
	if err != nil {
		return nil, err
	}
	inside, err := l.auditCloud(ctx, raw)

	return append(found, inside...), err
}

func (l *Lab) auditCloud(ctx context.Context, manifest []byte) ([]Violation, error) {
	cmd := exec.CommandContext(ctx, l.Env["LAB_COMMAND"], "exec", l.Generation(), "python3", "-c", auditScript, "audit")
	cmd.Stdin = bytes.NewReader(manifest)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("audit the cloud: %w: %s", err, lastLines(errs.String()))
	}
	var found []Violation
	if err := json.Unmarshal(out, &found); err != nil {
		return nil, fmt.Errorf("read the audit: %w", err)
	}

	return found, nil
}

// Rabbit runs rabbitmqctl. It takes seconds, most of them for starting Erlang.
func (l *Lab) Rabbit(ctx context.Context, args ...string) (string, error) {
	port, err := strconv.Atoi(l.Env["LAB_AMQP_PORT"])
	if err != nil {
		return "", fmt.Errorf("LAB_AMQP_PORT: %w", err)
	}

	return l.Exec(ctx, append([]string{"env", "HOME=" + l.Env["LAB_DIR"] + "/rabbit/home", "RABBITMQ_NODENAME=lab@localhost",
		fmt.Sprintf("ERL_EPMD_PORT=%d", port-1), "ERL_EPMD_ADDRESS=127.0.0.1", "/usr/lib/rabbitmq/bin/rabbitmqctl", "-q"}, args...)...)
}

// auditLogs looks for secrets, for panics, and for jobs that were closed twice.
func (l *Lab) auditLogs(files []string) ([]Violation, error) {
	var found []Violation
	closed := map[string][]string{} // image to files
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("read a worker's log: %w", err)
		}
		more, err := l.auditLog(f, file, closed)
		_ = f.Close() // only read
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		found = append(found, more...)
	}
	for _, image := range slices.Sorted(maps.Keys(closed)) {
		if n := len(closed[image]); n > 1 {
			found = append(found, Violation{"ended-twice", fmt.Sprintf("closed %d times", n),
				"image " + image + ", " + strings.Join(closed[image], ", ")})
		}
	}

	return found, nil
}

// crash begins what the Go runtime and the C library print when a process is at its end.
func crash(line []byte) bool {
	for _, sign := range []string{"panic: ", "fatal error: ", "SIGSEGV", "SIGABRT", "WARNING: DATA RACE"} {
		if bytes.HasPrefix(line, []byte(sign)) {
			return true
		}
	}

	return false
}

func (l *Lab) auditLog(r io.Reader, file string, closed map[string][]string) ([]Violation, error) {
	var found []Violation
	secrets := [][]byte{[]byte("gAAAA"), []byte(l.Env["LAB_SERVICE_PASSWORD"])}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<22)
	for n := 1; lines.Scan(); n++ {
		text, where := lines.Bytes(), fmt.Sprintf("%s:%d", file, n)
		if slices.ContainsFunc(secrets, func(s []byte) bool { return len(s) > 0 && bytes.Contains(text, s) }) {
			found = append(found, Violation{"token-in-log", "a token or a password", where})
		}
		if crash(text) {
			found = append(found, Violation{"worker-crashed", string(text[:min(len(text), 200)]), where})
		}
		var line struct{ Msg, Image string }
		if json.Unmarshal(text, &line) != nil {
			continue
		}
		switch line.Msg {
		case "job closed":
			closed[line.Image] = append(closed[line.Image], where)
		case "panic":
			found = append(found, Violation{"worker-crashed", "a panic that was caught", where})
		}
	}

	return found, lines.Err()
}

// Inspector looks at single jobs and images while others work. Its methods may be called concurrently.
type Inspector struct {
	where map[string]string

	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Inspect starts an inspector, which costs less per look than an audit. Close it.
func (l *Lab) Inspect(m Manifest) (*Inspector, error) {
	m = l.complete(m)
	i := &Inspector{where: map[string]string{"journal_pool": m.JournalPool, "namespace": m.Namespace}}
	//nolint:noctx // ended by Close
	i.cmd = exec.Command(l.Env["LAB_COMMAND"], "exec", l.Generation(), "python3", "-c", auditScript, "serve")
	i.cmd.Stderr = os.Stderr
	var err error
	if i.in, err = i.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := i.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	i.out = bufio.NewReader(out)
	if err := i.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the inspector: %w", err)
	}

	return i, nil
}

// Close ends it.
func (i *Inspector) Close() error {
	_ = i.in.Close() // it ends by that

	return i.cmd.Wait()
}

// Standing is what the journal says of a job.
type Standing struct {
	Closed                            bool
	Result, Reason, Message, Strategy string
}

// Records answers how jobs stand, by image; those without a record are left out.
func (i *Inspector) Records(images []string) (map[string]Standing, error) {
	found := map[string]Standing{}

	return found, i.ask(&found, "records", i.where, images)
}

// Verify answers what is wrong with the image of a request, if it is active.
func (i *Inspector) Verify(a Asked) ([]Violation, error) {
	var found []Violation

	return found, i.ask(&found, "verify", a)
}

// Named answers the ids of the images that bear a name.
func (i *Inspector) Named(name string) ([]string, error) {
	var found []string

	return found, i.ask(&found, "named", name)
}

func (i *Inspector) ask(into any, words ...any) error {
	line, err := json.Marshal(words)
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, err := fmt.Fprintf(i.in, "%s\n", line); err != nil {
		return fmt.Errorf("ask the inspector: %w", err)
	}
	line, err = i.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("ask the inspector: %w", err)
	}
	var answer struct {
		OK    json.RawMessage `json:"ok"`
		Error string          `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("ask the inspector: %w", err)
	}
	if answer.Error != "" {
		return errors.New("inspector: " + answer.Error)
	}

	return json.Unmarshal(answer.OK, into)
}
