package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
)

// plot draws seconds until active and until released over the size, a line for each tool.
func (r *report) plot(folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil { //nolint:gosec // pictures, for everybody
		return err
	}
	for _, p := range []struct {
		name, title string
		column      func(line) float64
	}{
		{"active", "request to active", active},
		{"released", "request to volume released", released},
		{"cpu", "CPU of the process that works", cpu},
	} {
		if err := r.draw(filepath.Join(folder, p.name+".svg"), p.title, p.column); err != nil {
			return fmt.Errorf("plot %s: %w", p.name, err)
		}
	}
	if err := r.drawBesides(filepath.Join(folder, besides+".svg")); err != nil {
		return fmt.Errorf("plot %s: %w", besides, err)
	}

	return nil
}

// drawBesides draws what a client waits for, a pair of bars for each tool beside it.
func (r *report) drawBesides(file string) error {
	list := r.besides()
	if len(list) == 0 {
		return nil
	}
	list = append([]string{alone}, list...)
	p := plot.New()
	p.Title.Text = "99 of 100 operations of a client took at most"
	p.X.Label.Text = "ms, beside"
	p.Legend.Top = true
	width := vg.Points(9)
	for n, c := range []struct {
		name   string
		column func(line) float64
	}{{"writes of 4 KiB", p99}, {"reads of 4 KiB", readP99}} {
		var values plotter.Values
		for _, tool := range list {
			values = append(values, r.beside(tool, c.column))
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return err
		}
		bars.Horizontal, bars.Color, bars.LineStyle.Width = true, plotutil.Color(n), 0
		bars.Offset = width*vg.Length(n) - width/2
		p.Add(bars)
		p.Legend.Add(c.name, bars)
	}
	p.NominalY(list...)

	return p.Save(18*vg.Centimeter, 10*vg.Centimeter, file)
}

func (r *report) draw(file, title string, column func(line) float64) error {
	p := plot.New()
	p.Title.Text = title + ", volumes with 40 % data"
	p.X.Label.Text, p.Y.Label.Text = "GiB", "seconds"
	p.Y.Min = 0
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	var lines []any
	for _, tool := range tools() {
		var points plotter.XYs
		for _, gib := range r.sizes() {
			if list := r.figures(filled, tool.name, gib, column); len(list) > 0 {
				points = append(points, plotter.XY{X: float64(gib), Y: median(list)})
			}
		}
		if len(points) > 0 {
			lines = append(lines, tool.name, points)
		}
	}
	if err := plotutil.AddLinePoints(p, lines...); err != nil {
		return err
	}

	return p.Save(18*vg.Centimeter, 12*vg.Centimeter, file)
}

func (r *report) sizes() (list []int) {
	for _, l := range r.Runs {
		if l.Case == filled {
			list = append(list, l.GiB)
		}
	}
	slices.Sort(list)

	return slices.Compact(list)
}
