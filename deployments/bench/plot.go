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

	return nil
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
