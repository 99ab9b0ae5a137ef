package report

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// HeatMap is a table of shares from 0 to 1, drawn as coloured cells with the shares in them.
type HeatMap struct {
	Title, X, Y string // X and Y name what the columns and the rows are
	Columns     []string
	Rows        []string    // the first is at the top
	Values      [][]float64 // by row and column; NaN for a cell without a value
}

// Draw returns the heat map as an image in the format svg or png.
func (h HeatMap) Draw(format string) ([]byte, error) {
	c := newChart(h.Title, h.X, h.Y)
	c.height = max(chartHeight/2, vg.Length(len(h.Rows)+3)*vg.Points(26))
	labels := plotter.XYLabels{}
	for row, values := range h.Values {
		y := float64(len(h.Rows) - 1 - row)
		for column, v := range values {
			if math.IsNaN(v) {
				continue
			}
			x := float64(column)
			cell, err := plotter.NewPolygon(plotter.XYs{{X: x - 0.5, Y: y - 0.5},
				{X: x + 0.5, Y: y - 0.5}, {X: x + 0.5, Y: y + 0.5}, {X: x - 0.5, Y: y + 0.5}})
			if err != nil {
				return nil, err
			}
			cell.Color = heat(v)
			cell.LineStyle.Width = 0
			c.plot.Add(cell)
			labels.XYs = append(labels.XYs, plotter.XY{X: x, Y: y})
			labels.Labels = append(labels.Labels, fmt.Sprintf("%.0f %%", 100*v))
		}
	}
	if len(labels.XYs) == 0 {
		return nil, fmt.Errorf("the heat map %q has no values", h.Title)
	}
	texts, err := plotter.NewLabels(labels)
	if err != nil {
		return nil, err
	}
	for i := range texts.TextStyle {
		texts.TextStyle[i] = textStyle(10)
		texts.TextStyle[i].XAlign, texts.TextStyle[i].YAlign = draw.XCenter, draw.YCenter
		if v := h.valueOf(labels.XYs[i]); v > 0.55 {
			texts.TextStyle[i].Color = color.White
		}
	}
	c.plot.Add(texts)
	ticks := func(names []string, place func(i int) float64) plot.ConstantTicks {
		list := make(plot.ConstantTicks, len(names))
		for i, name := range names {
			list[i] = plot.Tick{Value: place(i), Label: name}
		}
		return list
	}
	c.plot.X.Tick.Marker = ticks(h.Columns, func(i int) float64 { return float64(i) })
	c.plot.Y.Tick.Marker = ticks(h.Rows, func(i int) float64 {
		return float64(len(h.Rows) - 1 - i)
	})
	c.plot.X.Min, c.plot.X.Max = -0.5, float64(len(h.Columns))-0.5
	c.plot.Y.Min, c.plot.Y.Max = -0.5, float64(len(h.Rows))-0.5
	switch format {
	case "svg":
		return c.svg(), nil
	case "png":
		return c.png()
	}
	return nil, fmt.Errorf("the format is %q, expected svg or png", format)
}

func (h HeatMap) valueOf(at plotter.XY) float64 {
	return h.Values[len(h.Rows)-1-int(at.Y)][int(at.X)]
}

// heat is the colour of a share: from pale to dark blue.
func heat(v float64) color.Color {
	v = min(max(v, 0), 1)
	between := func(from, to float64) uint8 { return uint8(math.Round(from + (to-from)*v)) }
	return color.NRGBA{between(240, 8), between(245, 69), between(250, 148), 255}
}
