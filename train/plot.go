package train

import (
	"encoding/json"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"conquer/internal/atomicfile"
)

// PlotLoss draws the losses that the file metrics (see [MetricsFile]) holds as a PNG at path: each step's, their moving
// average, and the validation set's.
func PlotLoss(metrics, path string) error {
	steps, validation, err := readLosses(metrics)
	if err != nil {
		return err
	}
	if len(steps) == 0 {
		return fmt.Errorf("%s: there is no step to plot", metrics)
	}
	p := plot.New()
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = "Loss", "step", "nats"
	for _, size := range []*font.Length{&p.Title.TextStyle.Font.Size, &p.X.Label.TextStyle.Font.Size, &p.Y.Label.TextStyle.Font.Size,
		&p.X.Tick.Label.Font.Size, &p.Y.Tick.Label.Font.Size, &p.Legend.TextStyle.Font.Size} {
		*size = vg.Points(15)
	}
	p.Title.Padding, p.X.Padding, p.Y.Padding = vg.Points(8), vg.Points(4), vg.Points(4)
	p.Legend.Top, p.Legend.Padding, p.Legend.XOffs = true, vg.Points(4), -vg.Points(12)
	p.Add(plotter.NewGrid())
	var failed error
	line := func(name string, points plotter.XYs, c color.Color, width float64, marks bool) {
		l, err := plotter.NewLine(points)
		if err != nil {
			failed = err
			return
		}
		l.Color, l.Width = c, vg.Points(width)
		p.Add(l)
		if !marks {
			p.Legend.Add(name, l)
			return
		}
		s, err := plotter.NewScatter(points)
		if err != nil {
			failed = err
			return
		}
		s.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(4), Shape: draw.CircleGlyph{}}
		p.Add(s)
		p.Legend.Add(name, l, s)
	}
	blue, orange := color.RGBA{31, 90, 160, 255}, color.RGBA{214, 96, 16, 255}
	line("training, each step", steps, color.RGBA{170, 196, 226, 255}, 1, false)
	line("training, averaged", smooth(steps), blue, 2.5, false)
	if len(validation) > 0 {
		line("validation", validation, orange, 2.5, true)
	}
	if failed != nil {
		return failed
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

// smooth is the exponential moving average over about a twentieth of the points, without the bias of its beginning.
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

func readLosses(path string) (steps, validation plotter.XYs, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	d := json.NewDecoder(f)
	for {
		var r record
		if err := d.Decode(&r); err == io.EOF {
			return steps, validation, nil
		} else if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, err)
		}
		if r.Loss != nil {
			steps = append(steps, plotter.XY{X: float64(r.Step), Y: float64(*r.Loss)})
		}
		if r.Validation != nil {
			validation = append(validation, plotter.XY{X: float64(r.Step), Y: float64(*r.Validation)})
		}
	}
}
