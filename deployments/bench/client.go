package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

const (
	scratch     = "volumes/bench-beside" // the client's image
	scratchSize = "256M"
	perSecond   = "100" // reads, and as many writes, of 4 KiB
	// inFlight is more than ever waits at this rate: latencies are then those of requests that come whether or not the ones
	// before were answered, as a busy guest's do, and a stall counts for all that it delays.
	inFlight = "64"
	settling = time.Second // until the client has the image's lock and its connections to all OSDs
)

// client is fio at work on the scratch image. `rbd bench` tells no percentiles.
type client struct {
	cmd  *exec.Cmd
	dir  string
	errs bytes.Buffer
}

func (b *bench) rbdAs(ctx context.Context, args ...string) error {
	_, err := b.lab.Exec(ctx, append([]string{"rbd", "--id", b.lab.Env["LAB_CEPH_USER"]}, args...)...)

	return err
}

// scratch makes the image, full of data, so that reads find some. Its writes go to the OSDs at once, as those of a guest
// do that waits for them.
func (b *bench) scratch(ctx context.Context) error {
	for _, args := range [][]string{
		{"create", "--size", scratchSize, scratch},
		{"config", "image", "set", scratch, "rbd_cache", "false"},
		{"bench", "--io-type", "write", "--io-size", "4M", "--io-pattern", "seq", "--io-total", scratchSize, scratch},
	} {
		if err := b.rbdAs(ctx, args...); err != nil {
			return err
		}
	}

	return nil
}

// client starts one and waits until it is at work.
func (b *bench) client(ctx context.Context) (*client, error) {
	dir, err := os.MkdirTemp("", "bench-beside-")
	if err != nil {
		return nil, err
	}
	c := &client{dir: dir}
	pool, image, _ := strings.Cut(scratch, "/")
	// Until it is interrupted. Nothing is measured by fio itself: its log has each operation with the time of day.
	c.cmd = exec.CommandContext(ctx, "fio", "--name=client", "--ioengine=rbd", "--clientname="+b.lab.Env["LAB_CEPH_USER"],
		"--pool="+pool, "--rbdname="+image, "--rw=randrw", "--bs=4k", "--iodepth="+inFlight, "--rate_iops="+perSecond+","+perSecond,
		"--time_based", "--runtime=1d", "--write_lat_log=client", "--log_unix_epoch=1", "--exec_prerun=true", "--eta=never")
	c.cmd.Dir, c.cmd.Stderr = dir, &c.errs
	c.cmd.Env = append(os.Environ(), "CEPH_CONF="+b.lab.Env["CEPH_CONF"])
	if err := c.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start fio; `make deps` installs it: %w", err), os.RemoveAll(dir))
	}
	if err := c.working(ctx); err != nil {
		_, ended := c.end(nil)

		return nil, errors.Join(err, ended)
	}

	return c, nil
}

func (c *client) working(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := lab.Wait(ctx, "fio to begin", func() (bool, error) {
		_, err := os.Stat(filepath.Join(c.dir, "client.prerun.txt")) // of exec_prerun, when the image is open
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}

		return err == nil, err
	})
	if err != nil {
		return err
	}

	return pause(ctx, settling)
}

// end interrupts it and answers what it felt in the windows.
func (c *client) end(windows []window) (felt, error) {
	defer func() { _ = os.RemoveAll(c.dir) }() // of what is temporary anyway
	interrupted := c.cmd.Process.Signal(syscall.SIGINT)
	err := c.cmd.Wait()
	var exit *exec.ExitError
	if interrupted != nil || !errors.As(err, &exit) || exit.ExitCode() != 128 { // fio's code when it was interrupted
		return felt{}, fmt.Errorf("fio ended by itself: %w %s", errors.Join(interrupted, err), c.errs.String())
	}
	text, err := os.ReadFile(filepath.Join(c.dir, "client_lat.1.log"))
	if err != nil {
		return felt{}, err
	}
	all, err := operations(text)

	return summary(all, windows), err
}

// operations reads fio's log: time in ms, latency in ns, 0 for a read and 1 for a write, and more (fio's manual, Log File
// Formats).
func operations(log []byte) (all []operation, err error) {
	for s := bufio.NewScanner(bytes.NewReader(log)); s.Scan(); {
		f := strings.Split(s.Text(), ", ")
		if len(f) < 3 {
			return nil, fmt.Errorf("fio's log has a line %q", s.Text())
		}
		at, err1 := strconv.ParseInt(f[0], 10, 64)
		ns, err2 := strconv.ParseInt(f[1], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("fio's log has a line %q: %w", s.Text(), err)
		}
		all = append(all, operation{time.UnixMilli(at), float64(ns) / 1e6, f[2] == "1"})
	}

	return all, nil
}
