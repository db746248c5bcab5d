package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Worker is a cinderlift process against the lab.
type Worker struct {
	Listen string // address of /metrics and the probes
	Pid    int

	cmd  *exec.Cmd
	log  *os.File      // the process writes there itself, so that it outlives us
	done chan struct{} // closed when the process has ended and its log is read

	err error // how it ended; read after done

	mu   sync.Mutex
	logs []LogLine
}

// LogLine is one line of the worker's JSON log.
type LogLine map[string]any

// Settings are the variables with which a worker serves this lab; it takes none from the caller's environment.
func (l *Lab) Settings() map[string]string {
	return map[string]string{
		"CINDERLIFT_TRANSPORT_URL": l.Env["LAB_TRANSPORT_URL"],
		"CINDERLIFT_CEPH_CONF":     l.Env["CEPH_CONF"],
		"CINDERLIFT_CEPH_USER":     l.Env["LAB_CEPH_USER"],
		"CINDERLIFT_SCAN_EVERY":    "2s",
		"OS_AUTH_URL":              l.Env["OS_AUTH_URL"],
		"OS_USERNAME":              l.Env["LAB_SERVICE_USER"],
		"OS_PASSWORD":              l.Env["LAB_SERVICE_PASSWORD"],
		"OS_PROJECT_NAME":          l.Env["LAB_SERVICE_PROJECT"],
		"OS_REGION_NAME":           l.Env["OS_REGION_NAME"],
	}
}

// Binary is where `make build` puts the program: build/cinderlift of the repository.
func (l *Lab) Binary() string {
	if b := os.Getenv("CINDERLIFT_LAB_BINARY"); b != "" {
		return b
	}

	return filepath.Join(l.Env["LAB_REPOSITORY"], "build", "cinderlift")
}

// StartWorker starts `cinderlift serve` with Settings and more, and waits until it is ready. Its log goes into file, or
// with "" into a temporary one; tee gets a copy while we live; nil: nobody.
func (l *Lab) StartWorker(ctx context.Context, more map[string]string, file string, tee io.Writer) (*Worker, error) {
	w, err := l.Launch(Launch{Set: more, File: file, Tee: tee})
	if err != nil {
		return nil, err
	}

	return w, w.AwaitReady(ctx)
}

// Launch says how to start a worker.
type Launch struct {
	Binary string            // default: the one of `make build`
	Under  []string          // a program with its arguments that runs the worker, such as strace
	Set    map[string]string // variables besides Settings
	File   string            // of the log; "": a temporary one
	Tee    io.Writer         // gets a copy of the log while we live; nil: nobody
}

// Launch starts a worker and does not wait for it.
func (l *Lab) Launch(how Launch) (*Worker, error) {
	if how.Binary == "" {
		how.Binary = l.Binary()
	}
	w := &Worker{done: make(chan struct{})}
	args := append(append([]string(nil), how.Under...), how.Binary, "serve")
	w.cmd = exec.Command(args[0], args[1:]...) //nolint:noctx // ended by Stop and Kill, which tests tell apart
	w.cmd.Env = l.Environment(how.Set)
	if err := w.openLog(how.File); err != nil {
		return nil, err
	}
	w.cmd.Stderr = w.log
	if err := w.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the worker; `make build` makes it: %w", err)
	}
	w.Pid = w.cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- w.cmd.Wait() }()
	go w.follow(ended, how.Tee)

	return w, nil
}

// Environment is what a cinderlift process gets: Settings and more, and nothing of ours.
func (l *Lab) Environment(more map[string]string) []string {
	set := l.Settings()
	set["CINDERLIFT_LISTEN"] = "127.0.0.1:0"
	for k, v := range more {
		set[k] = v
	}
	env := []string{"PATH=" + os.Getenv("PATH"), "NO_PROXY=127.0.0.1"}
	for k, v := range set {
		env = append(env, k+"="+v)
	}

	return env
}

func (w *Worker) openLog(file string) (err error) {
	if file == "" {
		if w.log, err = os.CreateTemp("", "cinderlift-worker-*.log"); err == nil {
			err = os.Remove(w.log.Name()) // it lives as long as somebody has it open
		}

		return err
	}
	w.log, err = os.Create(file)

	return err
}

// follow reads the log as it grows, until the process has ended.
func (w *Worker) follow(ended <-chan error, tee io.Writer) {
	defer close(w.done)
	defer w.log.Close()
	var at int64
	for last := false; ; {
		at = w.read(at, tee)
		if last {
			return
		}
		select {
		case w.err = <-ended:
			last = true // once more, for what came meanwhile
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// read takes the whole lines behind an offset and answers the next one.
func (w *Worker) read(at int64, tee io.Writer) int64 {
	r := bufio.NewReaderSize(io.NewSectionReader(w.log, at, 1<<40), 1<<16)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return at // the rest of the line is still to come
		}
		at += int64(len(line))
		w.keep(bytes.TrimSpace(line), tee)
	}
}

func (w *Worker) keep(text []byte, tee io.Writer) {
	if tee != nil {
		fmt.Fprintf(tee, "%s\n", text)
	}
	var line LogLine
	if json.Unmarshal(text, &line) != nil {
		line = LogLine{"msg": string(text)}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logs = append(w.logs, line)
}

// AwaitReady waits until it answers that it is ready; it kills one that does not become so within a minute.
func (w *Worker) AwaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	err := Wait(ctx, "the worker to be ready", func() (bool, error) {
		select {
		case <-w.done:
			return false, fmt.Errorf("the worker ended: %v", w.Logs())
		default:
		}
		if w.Listen == "" {
			w.Listen = w.find("address")

			return false, nil
		}
		res, err := http.Get("http://" + w.Listen + "/readyz") //nolint:noctx // loopback, answered from memory
		if err != nil {
			return false, nil //nolint:nilerr // not listening yet
		}
		res.Body.Close()

		return res.StatusCode == http.StatusOK, nil
	})
	if err != nil {
		_ = w.Kill()

		return fmt.Errorf("%w; its log: %v", err, w.Logs())
	}

	return nil
}

// find answers the first value of a key in the log.
func (w *Worker) find(key string) string {
	for _, line := range w.Logs() {
		if v, ok := line[key].(string); ok {
			return v
		}
	}

	return ""
}

// Logs is the log so far.
func (w *Worker) Logs() []LogLine {
	w.mu.Lock()
	defer w.mu.Unlock()

	return append([]LogLine(nil), w.logs...)
}

// Stop sends SIGTERM and waits for the end.
func (w *Worker) Stop() error { return w.end(syscall.SIGTERM) }

// Kill ends it as a power cut does.
func (w *Worker) Kill() error { return w.end(syscall.SIGKILL) }

// Signal sends it a signal and does not wait.
func (w *Worker) Signal(s syscall.Signal) error { return w.cmd.Process.Signal(s) }

// Ended is closed when the process has ended and its log is read.
func (w *Worker) Ended() <-chan struct{} { return w.done }

// Err is how it ended: nil for exit code 0. Only after Ended.
func (w *Worker) Err() error { return w.err }

func (w *Worker) end(s syscall.Signal) error {
	if err := w.Signal(s); err != nil {
		return err
	}
	<-w.done

	return w.err
}

// Metrics scrapes the worker: series with labels, as written, to value.
func (w *Worker) Metrics(ctx context.Context) (map[string]float64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.Listen+"/metrics", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	series := map[string]float64{}
	for s := bufio.NewScanner(res.Body); s.Scan(); {
		if i := strings.LastIndexByte(s.Text(), ' '); i > 0 && s.Text()[0] != '#' {
			if v, err := strconv.ParseFloat(s.Text()[i+1:], 64); err == nil {
				series[s.Text()[:i]] = v
			}
		}
	}

	return series, nil
}

// RSS is the worker's resident memory now, in bytes.
func (w *Worker) RSS() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", w.Pid))
	if err != nil {
		return 0, err
	}
	pages, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)

	return pages * int64(os.Getpagesize()), err
}
