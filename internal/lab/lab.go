package lab

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

//go:embed content.py
var contentScript string

// Lab is a lab that runs.
type Lab struct {
	Env map[string]string // of lab.env
}

// Open reads the environment file that `lab up` wrote.
func Open(file string) (*Lab, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("open the lab's environment; `deployments/lab/lab up bookworm` makes it: %w", err)
	}
	defer f.Close()
	l := &Lab{Env: map[string]string{}}
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), "="); ok {
			l.Env[k] = strings.Trim(v, `'"`)
		}
	}

	return l, nil
}

// FromEnvironment opens the lab that CINDERLIFT_LAB_ENV names.
func FromEnvironment() (*Lab, error) { return Open(os.Getenv("CINDERLIFT_LAB_ENV")) }

// Generation is bookworm or trixie.
func (l *Lab) Generation() string { return l.Env["LAB_GENERATION"] }

// Control runs a command of the lab: Control(ctx, "hook", "volume_manager").
func (l *Lab) Control(ctx context.Context, command string, args ...string) error {
	_, err := l.run(ctx, "", append([]string{command, l.Generation()}, args...)...)

	return err
}

// Exec runs a program inside the lab's root file system and answers its standard output.
func (l *Lab) Exec(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, "", append([]string{"exec", l.Generation()}, args...)...)
}

func (l *Lab) run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.Env["LAB_COMMAND"], args...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("lab %s: %w: %s", strings.Join(args, " "), err, lastLines(errs.String()))
	}

	return strings.TrimSpace(out.String()), nil
}

func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")

	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

func (l *Lab) content(ctx context.Context, args ...string) (string, error) {
	return l.run(ctx, contentScript, append([]string{"exec", l.Generation(), "python3", "-"}, args...)...)
}

// Fill writes recognisable data into the first percent of every step MiB of an RBD image; it answers the bytes written.
func (l *Lab) Fill(ctx context.Context, at string, step, percent int) (int64, error) {
	out, err := l.content(ctx, "fill", at, strconv.Itoa(step), strconv.Itoa(percent))
	if err != nil {
		return 0, err
	}

	return strconv.ParseInt(out, 10, 64)
}

// Write writes text at an offset in bytes.
func (l *Lab) Write(ctx context.Context, at string, offset int64, text string) error {
	_, err := l.content(ctx, "write", at, strconv.FormatInt(offset, 10), text)

	return err
}

// Sum answers "size sha256" of an image or snapshot, read by Ceph's own Python binding.
func (l *Lab) Sum(ctx context.Context, at string) (string, error) { return l.content(ctx, "sum", at) }

// Digest answers "size digest" of an image or snapshot: every byte is read, and two are equal if and only if their
// contents are. Faster than Sum, because zeros are compared and not hashed.
func (l *Lab) Digest(ctx context.Context, at string) (string, error) {
	return l.content(ctx, "digest", at)
}

// Info is what an RBD image looks like from outside.
type Info struct {
	Size         int64
	Features     uint64
	Parent       string            // "" or pool/image/snapshot
	Snapshots    map[string]bool   // user snapshots: protected?
	AllSnapshots int               `json:"all_snapshots"` // with those in the trash
	Metadata     map[string]string // conf_* and marks
}

// Info looks at an RBD image.
func (l *Lab) Info(ctx context.Context, at string) (Info, error) {
	var i Info
	out, err := l.content(ctx, "info", at)
	if err == nil {
		err = json.Unmarshal([]byte(out), &i)
	}

	return i, err
}

// Wait asks until ok, an error, or the end of ctx. Real services offer nothing better than asking.
func Wait(ctx context.Context, what string, ok func() (bool, error)) error {
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, context.Cause(ctx))
		case <-time.After(150 * time.Millisecond): // an answer of Cinder or Glance costs 30 ms of CPU, which others want as well
		}
	}
}
