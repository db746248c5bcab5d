// Command audit looks at the whole cloud of a lab after work has come to rest, and reports what is wrong with it: lost or
// unfinished requests, images that are not their volumes, and whatever workers left behind in Ceph, in Cinder, in Glance,
// in their journal or on the message bus. It uses nothing of the worker's code. Exit code 0: nothing is wrong; 1: it
// reports violations; 2: it could not look.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"text/tabwriter"

	"github.com/cinderlift/cinderlift/internal/lab"
)

const usage = `audit [-manifest FILE] [-logs GLOB] [-o table|json] LAB.ENV

The manifest is the JSON that chaos writes: {"requests": [{"image", "volume", "name", "digest", "cancelled", "removed"}],
"volumes": {id: digest}}. Without one, only what is wrong by itself is found. The cloud has to be at rest.

Example:
  audit -manifest build/chaos-manifest.json -logs '.lab/bookworm/chaos/*.log' .lab/bookworm/lab.env

Options:
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	code, err := run(ctx, os.Stdout, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "audit:", err)
	}
	os.Exit(code) //nolint:forbidigo,gocritic // main's way to tell; nothing is left to be done
}

// run answers the exit code.
func run(ctx context.Context, out io.Writer, args []string) (int, error) {
	flags := flag.NewFlagSet("audit", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(flags.Output(), usage); flags.PrintDefaults(); codes(flags.Output()) }
	manifest := flags.String("manifest", "", "what was asked for (JSON)")
	logs := flags.String("logs", "", "logs of the workers, by a pattern")
	format := flags.String("o", "table", "table or json")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0, nil
	} else if err != nil || flags.NArg() != 1 || *format != "table" && *format != "json" {
		return 2, errors.New("wrong usage; see audit -h")
	}
	found, err := look(ctx, flags.Arg(0), *manifest, *logs)
	if err != nil {
		return 2, err
	}
	if err := show(out, found, *format); err != nil {
		return 2, err
	}
	if len(found) > 0 {
		return 1, nil
	}

	return 0, nil
}

func codes(w io.Writer) {
	fmt.Fprintln(w, "\nCodes of violations:")
	all := lab.Codes()
	for _, c := range slices.Sorted(maps.Keys(all)) {
		fmt.Fprintf(w, "  %-20s %s\n", c, all[c])
	}
}

func look(ctx context.Context, env, manifest, logs string) ([]lab.Violation, error) {
	l, err := lab.Open(env)
	if err != nil {
		return nil, err
	}
	var m lab.Manifest
	if manifest != "" {
		raw, err := os.ReadFile(manifest)
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, fmt.Errorf("read %s: %w", manifest, err)
		}
	}
	files, err := filepath.Glob(logs)
	if err != nil {
		return nil, fmt.Errorf("-logs: %w", err)
	}

	return l.Audit(ctx, m, files)
}

func show(out io.Writer, found []lab.Violation, format string) error {
	if format == "json" {
		e := json.NewEncoder(out)
		e.SetIndent("", "  ")
		if found == nil {
			found = []lab.Violation{}
		}

		return e.Encode(found)
	}
	if len(found) == 0 {
		_, err := fmt.Fprintln(out, "no violations")

		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CODE\tWHERE\tWHAT")
	for _, v := range found {
		fmt.Fprintf(w, "%s\t%s\t%s\n", v.Code, v.Where, v.What)
	}

	return w.Flush()
}
