// bench measures stock Cinder, Ceph's own tools and cinderlift side by side, in one go on one lab.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

const usageText = `bench [options] LAB.ENV

Every tool makes an image of the same volume, one after the other, again and again; so whatever slows the machine down slows
all of them. Each image is compared with its volume. Options have variables of the environment: -runs is BENCH_RUNS, and so on.

Examples:
  bench .lab/bookworm/lab.env                            everything, hours
  bench -sizes 1 -runs 1 -thin "" -burst 4 LAB.ENV       a few minutes

Options:
`

// options are what to run.
type options struct {
	Sizes   []int // GiB, 40 % written
	Thin    []int // GiB, nothing written
	Runs    int   // of each tool on each size below Once
	Once    int   // GiB: from this size on there is one run
	Burst   int   // volumes at a time
	Workers []int // numbers of workers to compare
	Tools   []string
	Beside  int // seconds that a client is watched beside each tool
	Out     string
	Plots   string // folder; "": none
	Env     string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0) //nolint:forbidigo,gocritic // main's way to tell; nothing is left to be done
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2) //nolint:forbidigo // see above
	}
	if err := work(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1) //nolint:forbidigo // see above
	}
}

func parse(args []string) (options, error) {
	var o options
	var sizes, thin, workers, only string
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.Usage = func() { fmt.Fprint(f.Output(), usageText); f.PrintDefaults() }
	f.StringVar(&sizes, "sizes", "1,4,16", "GiB of volumes with 40 % data")
	f.StringVar(&thin, "thin", "100,1024", "GiB of volumes without data")
	f.IntVar(&o.Runs, "runs", 5, "of each tool on each volume")
	f.IntVar(&o.Once, "once", 16, "GiB from which on there is one run")
	f.IntVar(&o.Burst, "burst", 100, "volumes of 100 GiB without data, all at once to one worker; 0: none")
	f.IntVar(&o.Beside, "beside", 10, "seconds that a client's latency is watched beside each tool, in each run; 0: not")
	f.StringVar(&workers, "workers", "1,2,4", "numbers of workers that serve the burst")
	f.StringVar(&only, "tools", "", "only these, such as stock,cinderlift early; empty: all")
	f.StringVar(&o.Out, "out", "build/bench.json", "where the figures go")
	f.StringVar(&o.Plots, "plots", "", "folder for the plots (SVG); empty: none")
	var wrong error
	f.VisitAll(func(fl *flag.Flag) {
		if v, set := os.LookupEnv("BENCH_" + strings.ToUpper(fl.Name)); set {
			wrong = errors.Join(wrong, f.Set(fl.Name, v))
		}
	})
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() != 1 {
		return o, errors.New("name the lab.env of a running lab")
	}
	o.Env = f.Arg(0)
	o.Tools = strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	for text, list := range map[*string]*[]int{&sizes: &o.Sizes, &thin: &o.Thin, &workers: &o.Workers} {
		var err error
		*list, err = numbers(*text)
		wrong = errors.Join(wrong, err)
	}

	return o, wrong
}

func numbers(text string) (list []int, err error) {
	for _, s := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' }) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a number above zero", s)
		}
		list = append(list, n)
	}

	return list, nil
}

// bench is one going through everything.
type bench struct {
	opt         options
	lab         *lab.Lab
	demo, admin *lab.Cloud
	begin       time.Time
	undo        []func()
	hooked      string
	first       string // volume of each worker's first job, which is not measured
	report      report
}

func work(ctx context.Context, o options) (err error) {
	b := &bench{opt: o, begin: time.Now()}
	defer b.close()
	if b.lab, err = lab.Open(o.Env); err != nil {
		return err
	}
	for user, c := range map[string]**lab.Cloud{"demo": &b.demo, "admin": &b.admin} {
		if *c, err = b.lab.As(ctx, user); err != nil {
			return err
		}
		b.later((*c).Close)
	}
	b.report.Machine = machine(ctx, b.lab)
	b.later(func() {
		back := context.WithoutCancel(ctx)
		_ = b.lab.Control(back, "caps", documented) // the lab as it was; what fails here shows in the next run
		_ = b.lab.Control(back, "hook", "none")
	})
	err = b.everything(ctx)
	b.report.derive()
	if written := b.report.write(o); err == nil {
		err = written
	}
	b.report.print(os.Stdout)

	return err
}

func (b *bench) later(f func()) { b.undo = append(b.undo, f) }

// close undoes what was done, the last first.
func (b *bench) close() {
	for i := len(b.undo) - 1; i >= 0; i-- {
		b.undo[i]()
	}
}

func (b *bench) say(format string, args ...any) {
	fmt.Printf("[%6.1fs] %s\n", time.Since(b.begin).Seconds(), fmt.Sprintf(format, args...))
}
