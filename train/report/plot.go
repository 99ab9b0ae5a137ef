package report

import (
	"fmt"
	"image/color"
	"io"
	"math"

	"conquer/internal/atomicfile"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// PlotLoss draws the losses in the file metrics (see [MetricsFile]) as a PNG at path: each step's
// loss, its moving average, and the validation loss.
func PlotLoss(metrics, path string) error {
	training, validation, err := ReadLosses(metrics)
	if err != nil {
		return err
	}
	if len(training) == 0 {
		return fmt.Errorf("%s: there are no steps to plot", metrics)
	}
	p := newPlot()
	steps := xys(training)
	blue, orange := color.RGBA{31, 90, 160, 255}, color.RGBA{214, 96, 16, 255}
	err = addLine(p, "training, each step", steps, color.RGBA{170, 196, 226, 255}, 1, false)
	if err == nil {
		err = addLine(p, "training, averaged", smooth(steps), blue, 2.5, false)
	}
	if err == nil && len(validation) > 0 {
		err = addLine(p, "validation", xys(validation), orange, 2.5, true)
	}
	if err != nil {
		return err
	}
	p.Y.Min = math.Max(0, math.Min(p.Y.Min, p.Y.Max-0.1))
	picture, err := p.WriterTo(9*vg.Inch, 5.5*vg.Inch, "png")
	if err != nil {
		return err
	}
	return atomicfile.Write(path, func(w io.Writer) error {
		_, err := picture.WriteTo(w)
		return err
	})
}

// newPlot returns an empty plot with title, axes and legend.
func newPlot() *plot.Plot {
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Loss", "step", "nats"
	for _, size := range []*font.Length{
		&p.Title.TextStyle.Font.Size, &p.X.Label.TextStyle.Font.Size,
		&p.Y.Label.TextStyle.Font.Size, &p.X.Tick.Label.Font.Size,
		&p.Y.Tick.Label.Font.Size, &p.Legend.TextStyle.Font.Size,
	} {
		*size = vg.Points(15)
	}
	p.Title.Padding, p.X.Padding, p.Y.Padding = vg.Points(8), vg.Points(4), vg.Points(4)
	p.Legend.Top, p.Legend.Padding, p.Legend.XOffs = true, vg.Points(4), -vg.Points(12)
	p.Add(plotter.NewGrid())
	return p
}

// addLine draws points as a line of the given width in points, with a circle at each point if marks
// is set.
func addLine(
	p *plot.Plot, name string, points plotter.XYs, c color.Color, width float64, marks bool,
) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	l.Color, l.Width = c, vg.Points(width)
	p.Add(l)
	if !marks {
		p.Legend.Add(name, l)
		return nil
	}
	s, err := plotter.NewScatter(points)
	if err != nil {
		return err
	}
	s.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(4), Shape: draw.CircleGlyph{}}
	p.Add(s)
	p.Legend.Add(name, l, s)
	return nil
}

// smooth returns the exponential moving average over about a twentieth of the points, corrected for
// its start at zero.
func smooth(points plotter.XYs) plotter.XYs {
	keep := 1 - 1/math.Max(1, float64(len(points))/20)
	average, weight := 0.0, 0.0
	result := make(plotter.XYs, len(points))
	for i, p := range points {
		average, weight = keep*average+(1-keep)*p.Y, keep*weight+(1-keep)
		result[i] = plotter.XY{X: p.X, Y: average / weight}
	}
	return result
}

func xys(points []Point) plotter.XYs {
	list := make(plotter.XYs, len(points))
	for i, p := range points {
		list[i] = plotter.XY{X: float64(p.Step), Y: p.Loss}
	}
	return list
}
