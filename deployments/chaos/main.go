// Command chaos lets workers make images in a lab while it kills workers, cuts connections, takes services away and makes
// them lie, and then audits the whole cloud: every request has to have ended once and rightly, and nothing may be left. Run
// it with `make chaos`. Exit code 0: no violations; 1: it reports violations; 2: it could not run or look.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const usage = `chaos [options] LAB.ENV

Each option has a variable of the environment: -time is CHAOS_TIME, and so on. The seed that it prints repeats the plan of
disturbances and of requests; what runs beside it in the lab does not repeat.

Example:
  chaos -time 20m -seed 7 .lab/bookworm/lab.env

Options:
`

// options are what can be chosen.
type options struct {
	env     string
	Time    time.Duration // how long users ask
	Drain   time.Duration // how long after that everything may take to end
	Jobs    int64
	Seed    uint64
	Workers int
	Volumes int
	Lease   time.Duration
	Every   time.Duration // between two disturbances of workers
	Service time.Duration // between two disturbances of services
	Hook    string
	Out     string
	Keep    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	code, err := run(ctx, os.Stdout, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
	}
	os.Exit(code) //nolint:forbidigo,gocritic // main's way to tell; nothing is left to be done
}

// run answers the exit code.
func run(ctx context.Context, out io.Writer, args []string) (int, error) {
	o, err := parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 2, err
	}
	c, err := prepare(ctx, o, out)
	if err != nil {
		return 2, err
	}
	defer c.close()
	c.rage(ctx)
	found, err := c.audit(ctx)
	if err != nil {
		return 2, err
	}
	if err := c.report(found); err != nil {
		return 2, err
	}
	if len(found) > 0 {
		return 1, nil
	}

	return 0, nil
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("chaos", flag.ContinueOnError)
	f.Usage = func() { fmt.Fprint(f.Output(), usage); f.PrintDefaults() }
	f.DurationVar(&o.Time, "time", 2*time.Minute, "how long users ask for images")
	f.DurationVar(&o.Drain, "drain", 17*time.Minute, "how long everything may take to end after that: Glance is given 15 minutes to end an upload")
	f.Int64Var(&o.Jobs, "jobs", 1<<40, "stop asking after so many requests")
	f.Uint64Var(&o.Seed, "seed", 0, "repeat this plan; 0: a new one")
	f.IntVar(&o.Workers, "workers", 3, "how many workers")
	f.IntVar(&o.Volumes, "volumes", 12, "how many volumes, so how many requests at a time")
	f.DurationVar(&o.Lease, "lease", 10*time.Second, "CINDERLIFT_LEASE_TTL of the workers")
	f.DurationVar(&o.Every, "every", 10*time.Second, "between two disturbances of workers, on average")
	f.DurationVar(&o.Service, "service", 25*time.Second, "between two disturbances of services, on average")
	f.StringVar(&o.Hook, "hook", "both", "volume_api_class, volume_manager, or both, one half of the time each")
	f.StringVar(&o.Out, "out", "build/chaos.json", "where the counts go; the manifest goes beside it")
	f.BoolVar(&o.Keep, "keep", false, "keep the volumes and images")
	var bad error
	f.VisitAll(func(g *flag.Flag) {
		if v := os.Getenv("CHAOS_" + strings.ToUpper(g.Name)); v != "" {
			if err := f.Set(g.Name, v); err != nil {
				bad = errors.Join(bad, fmt.Errorf("CHAOS_%s=%s: %w", strings.ToUpper(g.Name), v, err))
			}
		}
	})
	if err := errors.Join(bad, f.Parse(args)); err != nil {
		return o, err
	}
	if f.NArg() != 1 || o.Workers < 1 || o.Volumes < 1 {
		return o, errors.New("wrong usage; see chaos -h")
	}
	o.env = f.Arg(0)
	if o.Seed == 0 {
		seed, err := strconv.ParseUint(time.Now().Format("0102150405"), 10, 64)
		if err != nil {
			return o, err
		}
		o.Seed = seed
	}

	return o, nil
}
