package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// line is one run, as build/bench.json has it.
type line struct {
	Case     string  `json:"case"`
	Tool     string  `json:"tool"`
	GiB      int     `json:"gib"`
	Active   float64 `json:"active_s"`
	Released float64 `json:"released_s"`
	CPU      float64 `json:"cpu_s"`
	Net      int64   `json:"net_bytes"`
	RSS      float64 `json:"rss_mib"`
	felt
}

type report struct {
	Runs    []line             `json:"runs"`
	Ratios  map[string]float64 `json:"ratios"`
	Machine []string           `json:"machine"`
}

func (r *report) add(what, tool string, gib int, t took) {
	r.Runs = append(r.Runs, line{what, tool, gib, t.active.Seconds(), t.released.Seconds(), t.CPU.Seconds(), t.Net,
		float64(t.RSS) / (1 << 20), t.felt})
}

// figures of one column of one tool in one case, sorted.
func (r *report) figures(what, tool string, gib int, column func(line) float64) (list []float64) {
	for _, l := range r.Runs {
		if l.Case == what && l.Tool == tool && l.GiB == gib {
			list = append(list, column(l))
		}
	}
	slices.Sort(list)

	return list
}

func median(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	n := len(sorted)

	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func active(l line) float64   { return l.Active }
func released(l line) float64 { return l.Released }
func cpu(l line) float64      { return l.CPU }
func network(l line) float64  { return float64(l.Net) }
func rss(l line) float64      { return l.RSS }
func p50(l line) float64      { return l.P50 }
func p99(l line) float64      { return l.P99 }
func p999(l line) float64     { return l.P999 }
func readP50(l line) float64  { return l.ReadP50 }
func readP99(l line) float64  { return l.ReadP99 }
func readP999(l line) float64 { return l.ReadP999 }

// target is a row of the table of what is to be reached.
type target struct {
	name, meaning string
	want          string
	value         func(r *report) float64 // 0: not measured
}

// quotient of two medians; 0 when one of them is not there.
func (r *report) quotient(a, b float64) float64 {
	if a == 0 || b == 0 {
		return 0
	}

	return a / b
}

func (r *report) at(what, tool string, gib int, column func(line) float64) float64 {
	return median(r.figures(what, tool, gib, column))
}

// reference is the size that most targets are about, or the largest below it that was run.
func (r *report) reference() int {
	size := 0
	for _, l := range r.Runs {
		if l.Case == filled && l.GiB <= 4 {
			size = max(size, l.GiB)
		}
	}

	return size
}

// dataShare is 40 %.
const dataShare = 0.4

func targets() []target {
	return []target{
		{"active_early_vs_stock", "request to active, stock / early", "25 (bookworm), 12 (trixie)", func(r *report) float64 {
			return r.quotient(r.at(filled, stock, r.reference(), active), r.at(filled, early, r.reference(), active))
		}},
		{"active_late_vs_stock", "request to active, stock / late", "8 (bookworm), 5 (trixie)", func(r *report) float64 {
			return r.quotient(r.at(filled, stock, r.reference(), active), r.at(filled, late, r.reference(), active))
		}},
		{"active_1tib_vs_1gib", "request to active, early: 1 TiB thin / 1 GiB", "0.8 to 1.2", func(r *report) float64 {
			return r.quotient(r.at(thin, early, 1024, active), r.at(filled, early, 1, active))
		}},
		{"burst_100_active_s", "seconds until a burst of 100 GiB volumes is active, one worker", "15 at most, for 100", func(r *report) float64 {
			return r.at(burst, early+", 1 workers", 100, active)
		}},
		{"released_vs_rbd_cp", "whole job: rbd cp / late, released", "1.5", func(r *report) float64 {
			return r.quotient(r.at(filled, rbdCopy, r.reference(), active), r.at(filled, late, r.reference(), released))
		}},
		{"data_share_through_worker", "bytes over the worker's network / data of the volume, copies in the cluster", "below 0.01", func(r *report) float64 {
			most := 0.0
			for _, tool := range []string{early, late, copying} {
				most = max(most, r.at(filled, tool, r.reference(), network))
			}

			return r.quotient(most, dataShare*float64(r.reference())*(1<<30))
		}},
		{"cpu_vs_rbd_cp", "CPU for the same image: the worker's, at most / rbd cp's", "below 0.1", func(r *report) float64 {
			most := 0.0
			for _, tool := range []string{early, late, copying} {
				most = max(most, r.at(filled, tool, r.reference(), cpu))
			}

			return r.quotient(most, r.at(filled, rbdCopy, r.reference(), cpu))
		}},
		{"worker_rss_mib", "peak RSS of one worker, MiB, over all", "below 150", func(r *report) float64 {
			most := 0.0
			for _, l := range r.Runs {
				if strings.HasPrefix(l.Tool, "cinderlift") && (l.Case != burst || strings.HasSuffix(l.Tool, " 1 workers")) {
					most = max(most, l.RSS)
				}
			}

			return most
		}},
		{"export_vs_rbd_export", "rbd export piped into Glance / export", "1 or more", func(r *report) float64 {
			return r.quotient(r.at(filled, piped, r.reference(), active), r.at(filled, export, r.reference(), active))
		}},
		{"client_p99_beside_copy", "p99 of a client's 4 KiB writes: beside a copy with the default limits / alone", "near 1", func(r *report) float64 {
			return r.disturbs(copying, p99)
		}},
	}
}

// derive fills the ratios, one for each target that was measured, and those of growth.
func (r *report) derive() {
	r.Ratios = map[string]float64{}
	for _, t := range targets() {
		if v := t.value(r); v > 0 {
			r.Ratios[t.name] = v
		}
	}
	for _, tool := range []string{stock, early, late, copying} {
		if q := r.quotient(r.at(filled, tool, 16, active), r.at(filled, tool, 1, active)); q > 0 {
			r.Ratios["growth_1_to_16_gib "+tool] = q
		}
	}
	for _, tool := range []string{early, late, copying} {
		if q := r.quotient(r.growth(tool, cpu), r.growth(rbdCopy, cpu)); q > 0 {
			r.Ratios["cpu_per_gib_vs_rbd_cp "+tool] = q // without what each job costs, whatever its size
		}
	}
	if q := r.quotient(r.at(burst, early+", 1 workers", 100, released), r.at(burst, early+", 4 workers", 100, released)); q > 0 {
		r.Ratios["growth_1_to_4_workers"] = q
	}
	for _, tool := range r.besides() {
		for name, column := range map[string]func(line) float64{"client_p99_write ": p99, "client_p99_read ": readP99} {
			if q := r.disturbs(tool, column); q > 0 {
				r.Ratios[name+tool] = q
			}
		}
	}
}

// growth is by how much more 16 GiB take than 1 GiB; 0 when either was not measured.
func (r *report) growth(tool string, column func(line) float64) float64 {
	small, large := r.at(filled, tool, 1, column), r.at(filled, tool, 16, column)
	if small == 0 || large == 0 {
		return 0
	}

	return large - small
}

// disturbs is by how much longer a client waits beside a tool; 0 when that was not measured.
func (r *report) disturbs(tool string, column func(line) float64) float64 {
	return r.quotient(r.beside(tool, column), r.beside(alone, column))
}

// beside is a median of what a client felt; there is one volume only.
func (r *report) beside(tool string, column func(line) float64) float64 {
	for _, l := range r.Runs {
		if l.Case == besides {
			return r.at(besides, tool, l.GiB, column)
		}
	}

	return 0
}

// besides lists the tools that a client worked beside, in the order in which they ran.
func (r *report) besides() (list []string) {
	for _, l := range r.Runs {
		if l.Case == besides && l.Tool != alone && !slices.Contains(list, l.Tool) {
			list = append(list, l.Tool)
		}
	}

	return list
}

func (r *report) write(o options) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(o.Out, append(b, '\n'), 0o644); err != nil { //nolint:gosec // figures, for everybody
		return err
	}
	if o.Plots == "" {
		return nil
	}

	return r.plot(o.Plots)
}

// print shows tables that can be put into docs/performance.md as they are.
func (r *report) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "\n| case\t| GiB\t| tool\t| runs\t| active s (min, median, max)\t| released s\t| CPU s\t| network MiB\t| RSS MiB\t|")
	fmt.Fprintln(t, "| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t|")
	seen := map[string]bool{}
	for _, l := range r.Runs {
		key := fmt.Sprint(l.Case, l.Tool, l.GiB)
		if seen[key] {
			continue
		}
		seen[key] = true
		a := r.figures(l.Case, l.Tool, l.GiB, active)
		fmt.Fprintf(t, "| %s\t| %d\t| %s\t| %d\t| %.2f, %.2f, %.2f\t| %.2f\t| %.2f\t| %.1f\t| %.0f\t|\n", l.Case, l.GiB, l.Tool, len(a),
			a[0], median(a), a[len(a)-1], r.at(l.Case, l.Tool, l.GiB, released), r.at(l.Case, l.Tool, l.GiB, cpu),
			r.at(l.Case, l.Tool, l.GiB, network)/(1<<20), r.at(l.Case, l.Tool, l.GiB, rss))
	}
	r.printBesides(t)
	fmt.Fprintln(t, "\n| measure\t| name\t| value\t| wanted\t|\n| ---\t| ---\t| ---\t| ---\t|")
	named := map[string]bool{}
	for _, x := range targets() {
		named[x.name] = true
		fmt.Fprintf(t, "| %s\t| %s\t| %.3g\t| %s\t|\n", x.meaning, x.name, r.Ratios[x.name], x.want)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Ratios)) {
		if !named[name] {
			fmt.Fprintf(t, "| \t| %s\t| %.3g\t| \t|\n", name, r.Ratios[name])
		}
	}
	_ = t.Flush() // to the terminal
}

func (r *report) printBesides(t io.Writer) {
	list := r.besides()
	if len(list) == 0 {
		return
	}
	fmt.Fprintln(t, "\n| a client beside\t| writes, ms: p50\t| p99\t| p99.9\t| p99 / alone\t| reads, ms: p50\t| p99\t| p99.9\t| p99 / alone\t|")
	fmt.Fprintln(t, "| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t| ---\t|")
	for _, tool := range append([]string{alone}, list...) {
		at := func(column func(line) float64) float64 { return r.beside(tool, column) }
		fmt.Fprintf(t, "| %s\t| %.1f\t| %.1f\t| %.1f\t| %.2f\t| %.1f\t| %.1f\t| %.1f\t| %.2f\t|\n", tool, at(p50), at(p99), at(p999),
			r.disturbs(tool, p99), at(readP50), at(readP99), at(readP999), r.disturbs(tool, readP99))
	}
}
