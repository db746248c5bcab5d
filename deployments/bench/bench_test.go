package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample is a report in which every target can be told.
func sample() *report {
	r := &report{}
	add := func(what, tool string, gib int, active, released, cpu, net float64, rss int64) {
		sec := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
		r.add(what, tool, gib, took{active: sec(active), released: sec(released), usage: usage{sec(cpu), int64(net), rss << 20}})
	}
	for _, gib := range []int{1, 4, 16} {
		for _, more := range []float64{0, 1, 5} { // the median is 1 above
			f := float64(gib)
			add(filled, stock, gib, 10*f+more, 10*f+more, 5*f, f*(2<<30), 300)
			add(filled, rbdCopy, gib, 3*f+more, 3*f+more, 2*f, f*(1<<30), 200)
			add(filled, piped, gib, 9*f+more, 9*f+more, 5*f, f*(2<<30), 200)
			add(filled, early, gib, 1+more, 2*f+more, 0.1*f, f*(1<<20), 50)
			add(filled, late, gib, 1.5*f+more, 2*f+more, 0.1*f, f*(1<<20), 60)
			add(filled, copying, gib, 1.5*f+more, 2*f+more, 0.2*f, f*(2<<20), 60)
			add(filled, export, gib, 8*f+more, 8*f+more, 5*f, f*(2<<30), 90)
		}
	}
	add(thin, early, 1024, 2.2, 5, 0.1, 1<<20, 50)
	add(burst, early+", 1 workers", 100, 12, 24, 1, 1<<20, 120)
	add(burst, early+", 4 workers", 100, 12, 12, 1, 1<<20, 400)
	for n, tool := range []string{alone, copying, careful, greedy, rbdCopy, rbdClone, stock} {
		f := float64(n + 2)
		r.add(besides, tool, 4, took{felt: felt{Writes: 500, P50: f, P99: 10 * f, P999: 20 * f, Reads: 500, ReadP50: 1, ReadP99: 5 + f, ReadP999: 9}})
	}
	r.derive()

	return r
}

func TestRatios(t *testing.T) {
	r := sample()
	for name, want := range map[string]float64{
		"active_early_vs_stock": 41. / 2, "active_late_vs_stock": 41. / 7, "active_1tib_vs_1gib": 1.1, "burst_100_active_s": 12,
		"released_vs_rbd_cp": 13. / 9, "data_share_through_worker": 8. / 1024 / 1.6, "cpu_vs_rbd_cp": 0.1, "worker_rss_mib": 120,
		"export_vs_rbd_export": 37. / 33, "growth_1_to_4_workers": 2, "growth_1_to_16_gib " + stock: 161. / 11,
		"cpu_per_gib_vs_rbd_cp " + early: 0.05, "cpu_per_gib_vs_rbd_cp " + copying: 0.1,
		"client_p99_beside_copy": 1.5, "client_p99_write " + rbdCopy: 3, "client_p99_read " + rbdCopy: 11. / 7,
	} {
		if got := r.Ratios[name]; math.Abs(got-want) > 1e-6*want {
			t.Errorf("%s is %g, want %g", name, got, want)
		}
	}
	for _, x := range targets() {
		if r.Ratios[x.name] == 0 {
			t.Errorf("%s has no ratio", x.name)
		}
	}
}

// TestShortRun: what was not run has no ratio, and is no reason to fail.
func TestShortRun(t *testing.T) {
	r := &report{}
	r.add(filled, early, 1, took{active: time.Second})
	r.derive()
	r.print(io.Discard)
	if len(r.Ratios) > 0 {
		t.Errorf("ratios %v of one tool alone", r.Ratios)
	}
}

func TestWritten(t *testing.T) {
	dir := t.TempDir()
	o := options{Out: filepath.Join(dir, "bench.json"), Plots: filepath.Join(dir, "plots")}
	if err := sample().write(o); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(o.Out)
	var back struct {
		Runs []map[string]any
	}
	if err != nil || json.Unmarshal(b, &back) != nil || len(back.Runs) != 73 {
		t.Fatalf("%v, %d runs", err, len(back.Runs))
	}
	for _, key := range []string{"case", "tool", "gib", "active_s", "released_s", "cpu_s", "net_bytes", "rss_mib"} {
		if _, there := back.Runs[0][key]; !there {
			t.Errorf("a run lacks %s", key)
		}
	}
	for _, key := range []string{"p50_ms", "p99_ms", "p999_ms", "read_p50_ms", "read_p99_ms", "read_p999_ms"} {
		if _, there := back.Runs[0][key]; there {
			t.Errorf("a run with no client beside it has %s", key)
		}
		if v, _ := back.Runs[72][key].(float64); v <= 0 {
			t.Errorf("a run beside a client has %s %v", key, back.Runs[72][key])
		}
	}
	for _, name := range []string{"active", "released", "cpu", "beside"} {
		svg, err := os.ReadFile(filepath.Join(o.Plots, name+".svg"))
		if err != nil || !bytes.Contains(svg, []byte("<svg")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var out strings.Builder
	sample().print(&out)
	if !strings.Contains(out.String(), "| active_early_vs_stock") || !strings.Contains(out.String(), "| a client beside") {
		t.Errorf("printed:\n%s", out.String())
	}
}

// TestOperations: fio 3.33 wrote these lines. Only what ended inside a window counts.
func TestOperations(t *testing.T) {
	all, err := operations([]byte("1795870602888, 21254091, 0, 4096, 0\n1795870602893, 6973929, 0, 4096, 0\n" +
		"1795870602893, 26670350, 1, 4096, 0\n1795870607921, 13564502, 1, 4096, 0\n1795870607931, 23419990, 1, 4096, 0\n"))
	if err != nil || len(all) != 5 {
		t.Fatalf("%v, %v", all, err)
	}
	at := func(ms int64) time.Time { return time.UnixMilli(1795870600000 + ms) }
	got := summary(all, []window{{at(2890), at(2893)}, {at(7000), at(7925)}})
	want := felt{
		Writes: 2, P50: 13.564502, P99: 26.67035, P999: 26.67035, Reads: 1, ReadP50: 6.973929, ReadP99: 6.973929, ReadP999: 6.973929,
	}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, wrong := range []string{"x, 1, 1\n", "1, x, 1\n", "1\n"} {
		if all, err := operations([]byte(wrong)); err == nil {
			t.Errorf("%q was read as %v", wrong, all)
		}
	}
}

func TestQuantile(t *testing.T) {
	var list []float64
	for n := range 1000 {
		list = append(list, float64(n+1))
	}
	for permille, want := range map[int]float64{1: 1, 500: 500, 990: 990, 999: 999, 1000: 1000} {
		if got := quantile(list, permille); got != want {
			t.Errorf("%d of a thousand: %g, want %g", permille, got, want)
		}
	}
	if got := quantile(list[:500], 999); got != 500 {
		t.Errorf("99.9 %% of 500 values is %g, want the largest", got)
	}
	if got := quantile(nil, 990); got != 0 {
		t.Errorf("of nothing: %g", got)
	}
}

// TestMeter: CPU and TCP of a process are counted, here of the test itself.
func TestMeter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(io.Discard, c)
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m := measure(func() []int { return []int{os.Getpid()} })
	const sent = 8 << 20
	if _, err := c.Write(make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); time.Since(begin) < 300*time.Millisecond; {
		_ = strings.Repeat("x", 1000)
	}
	u := m.end()
	if u.CPU < 50*time.Millisecond || u.RSS < 1<<20 {
		t.Errorf("%+v", u)
	}
	if u.Net < sent || u.Net > 3*sent { // both ends are ours
		t.Errorf("%d bytes over the network, want %d at least", u.Net, sent)
	}
}

func TestParse(t *testing.T) {
	t.Setenv("BENCH_RUNS", "2")
	o, err := parse([]string{"-sizes", "1,2", "-thin", "", "-tools", "stock,rbd cp", "lab.env"})
	if err != nil || o.Runs != 2 || len(o.Sizes) != 2 || len(o.Thin) != 0 || o.Env != "lab.env" {
		t.Errorf("%+v, %v", o, err)
	}
	b := &bench{opt: o}
	if some := b.tools(); len(some) != 2 || some[0].name != stock || some[1].name != rbdCopy {
		t.Errorf("chosen were %d tools", len(some))
	}
	for _, wrong := range [][]string{{}, {"-sizes", "x", "lab.env"}, {"-sizes", "0", "lab.env"}, {"a", "b"}} {
		if _, err := parse(wrong); err == nil {
			t.Errorf("%q was taken", wrong)
		}
	}
}
