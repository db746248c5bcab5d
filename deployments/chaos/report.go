package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cinderlift/cinderlift/internal/lab"
)

// audit looks at everything, and keeps the manifest so that it can be looked at again.
func (c *chaos) audit(ctx context.Context) ([]lab.Violation, error) {
	c.users.retry(ctx)
	if err := c.sweepUp(ctx); err != nil {
		return nil, err
	}
	begin := time.Now()
	m := c.ledger.manifest(c.users.digests)
	if err := save(c.manifest(), m); err != nil {
		return nil, err
	}
	logs, err := filepath.Glob(filepath.Join(c.logs, "*.log"))
	if err != nil {
		return nil, err
	}
	found, err := c.lab.Audit(ctx, m, logs)
	if err != nil {
		return nil, err
	}
	c.say("the cloud is audited, in %.1f s", time.Since(begin).Seconds())
	seen := map[lab.Violation]bool{}
	var all []lab.Violation
	for _, v := range append(c.ledger.early, found...) {
		if !seen[v] {
			seen[v] = true
			all = append(all, v)
		}
	}

	return all, nil
}

func (c *chaos) manifest() string {
	return strings.TrimSuffix(c.opt.Out, ".json") + "-manifest.json"
}

func save(file string, v any) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}

	return os.WriteFile(file, append(b, '\n'), 0o644)
}

// counts is build/chaos.json.
func (c *chaos) counts(found []lab.Violation) map[string]any {
	results, reasons := c.ledger.results()
	r := map[string]any{"seed": c.opt.Seed, "seconds": int(c.raged.Seconds()), "violations": len(found), "jobs": len(c.ledger.order),
		"succeeded": results["done"], "failed": results["failed"], "declined": results["declined"], "cancelled": results["cancelled"], "by_stock": results[byStock],
		"unfinished": results[""], "lease_seconds": c.opt.Lease.Seconds(), "workers": c.opt.Workers}
	for name, n := range c.ledger.counts {
		r[key(name)] = n
	}
	for _, name := range []string{"kills", "service_faults"} {
		r[name] = c.ledger.counts[name]
	}
	for name, n := range results {
		if strings.HasPrefix(name, "by ") && name != "by " || strings.HasPrefix(name, "via ") {
			r[key(name)] = n
		}
	}
	for reason, n := range reasons {
		r["failed_"+key(reason)] = n
	}
	r["glance_faults_met"], r["cinder_faults_met"] = c.trouble.glance.Hit(), c.trouble.cinder.Hit()
	var took, calm []time.Duration
	for _, t := range c.ledger.takeovers {
		took = append(took, t.took)
		if c.ledger.calm(t) {
			calm = append(calm, t.took)
		}
	}
	r["calm_takeovers"] = len(calm)
	r["calm_takeover_p50_s"], r["calm_takeover_p99_s"] = quantile(calm, 0.5).Seconds(), quantile(calm, 0.99).Seconds()
	r["takeovers"] = len(took)
	r["takeover_p50_s"], r["takeover_p99_s"] = quantile(took, 0.5).Seconds(), quantile(took, 0.99).Seconds()
	r["exits"], r["exit_max_s"] = len(c.crew.exits), quantile(c.crew.exits, 1).Seconds()

	return r
}

func key(name string) string {
	return strings.Trim(strings.NewReplacer(" ", "_", "-", "_").Replace(strings.ToLower(name)), "_")
}

// report prints the counts and names every violation.
func (c *chaos) report(found []lab.Violation) error {
	counts := c.counts(found)
	if err := save(c.opt.Out, counts); err != nil {
		return err
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w)
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		fmt.Fprintf(w, "%s\t%v\n", name, counts[name])
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(c.out, "\ntakeover after kill -9: p50 %.1f s, p99 %.1f s of %d; the lease is %.0f s\n", counts["takeover_p50_s"],
		counts["takeover_p99_s"], counts["takeovers"], c.opt.Lease.Seconds())
	fmt.Fprintf(c.out, "  while nothing else was out of order: p50 %.1f s, p99 %.1f s of %d\n", counts["calm_takeover_p50_s"],
		counts["calm_takeover_p99_s"], counts["calm_takeovers"])
	fmt.Fprintf(c.out, "SIGTERM to exit: at most %.1f s of %d\n", counts["exit_max_s"], counts["exits"])
	for _, v := range found {
		fmt.Fprintln(c.out, "VIOLATION", v)
	}
	fmt.Fprintf(c.out, "seed %d: %d violations; counts in %s, manifest in %s, logs in %s\n", c.opt.Seed, len(found), c.opt.Out,
		c.manifest(), c.logs)

	return nil
}
