package report

import (
	"image/color"
	"io"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"conquer/internal/atomicfile"
)

// Bin counts the samples whose lengths are from From to To, both included.
type Bin struct {
	From    int `json:"from"`
	To      int `json:"to"`
	Samples int `json:"samples"`
}

// PlotLengths draws how many samples have which length as a PNG at path.
func PlotLengths(bins []Bin, path string) error {
	p := newPlot()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Lengths", "tokens", "samples"
	bars := &plotter.Histogram{FillColor: color.RGBA{31, 90, 160, 255},
		LineStyle: plotter.DefaultLineStyle}
	bars.LineStyle.Color = color.White
	for _, b := range bins {
		bars.Bins = append(bars.Bins, plotter.HistogramBin{
			Min: float64(b.From), Max: float64(b.To) + 1, Weight: float64(b.Samples)})
	}
	p.Add(bars)
	p.X.Min, p.Y.Min = 0, 0
	picture, err := p.WriterTo(9*vg.Inch, 5.5*vg.Inch, "png")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, func(w io.Writer) error {
		_, err := picture.WriteTo(w)
		return err
	})
}
