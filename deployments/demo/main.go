// Command demo shows on a lab of real services what cinderlift does: the same volume is uploaded through stock Cinder and
// through cinderlift, and what came out is compared. Run it with `make demo`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1) //nolint:forbidigo // main's way to fail
	}
}

// volumeGiB is large enough to feel the difference and small enough for a minute.
const volumeGiB = 1

func run(ctx context.Context, out io.Writer, args []string) error {
	if len(args) != 1 {
		return errors.New("usage: demo LAB.ENV (make demo does everything)")
	}
	l, err := lab.Open(args[0])
	if err != nil {
		return err
	}
	c, err := l.As(ctx, "demo")
	if err != nil {
		return err
	}
	defer c.Close()
	d := &demo{Cloud: c, out: out, start: time.Now(), report: map[string]any{"generation": l.Generation()}}
	for _, scene := range []func(context.Context) error{d.tidy, d.prepare, d.stock, d.lift, d.prove, d.boot} {
		if err := scene(ctx); err != nil {
			return err
		}
	}
	if err := d.save(filepath.Join("build", "demo.json")); err != nil {
		return err
	}
	d.table()
	d.goodbye()
	if !d.identical {
		return errors.New("the images differ from the volume; see build/demo.json")
	}

	return nil
}

// say prints a line with the seconds since the start.
func (d *demo) say(format string, args ...any) {
	fmt.Fprintf(d.out, "[%5.1fs] %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) title(s string) {
	fmt.Fprintf(d.out, "\n== %s %s\n", s, strings.Repeat("=", max(0, 90-len(s))))
}
