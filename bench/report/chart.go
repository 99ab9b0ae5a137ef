package report

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// chart is a plot with its legend beside it.
type chart struct {
	plot   *plot.Plot
	legend plot.Legend
	named  bool // the legend has entries
	height vg.Length
}

const (
	chartWidth  = 7.5 * vg.Inch
	chartHeight = 3.9 * vg.Inch
)

func textStyle(size float64) text.Style {
	return text.Style{Color: ink,
		Font:    font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, vg.Points(size)),
		Handler: plot.DefaultTextHandler, XAlign: draw.XLeft, YAlign: draw.YBottom}
}

// newChart returns an empty chart. x and y are the names of the axes with their units.
func newChart(title, x, y string) *chart {
	p := plot.New()
	p.BackgroundColor = nil
	p.Title.Text, p.X.Label.Text, p.Y.Label.Text = title, x, y
	p.Title.Padding = vg.Points(8)
	style := func(s *text.Style, size float64) {
		s.Color, s.Font = ink, textStyle(size).Font
	}
	style(&p.Title.TextStyle, 13)
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Tick.Color = ink, ink
		axis.Padding, axis.Label.Padding = vg.Points(4), vg.Points(4)
		style(&axis.Label.TextStyle, 11)
		style(&axis.Tick.Label, 10.5)
	}
	c := &chart{plot: p, legend: plot.NewLegend(), height: chartHeight}
	c.legend.Top, c.legend.Left, c.legend.Padding, c.legend.ThumbnailWidth = true, true,
		vg.Points(5), vg.Points(28)
	c.legend.TextStyle = textStyle(10.5)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	grid.Horizontal.Color = faint
	p.Add(grid)
	return c
}

// name adds an entry to the legend.
func (c *chart) name(entry string, thumbs ...plot.Thumbnailer) {
	c.legend.Add(brief(entry), thumbs...)
	c.named = true
}

func (c *chart) draw(canvas draw.Canvas) {
	canvas = draw.Crop(canvas, vg.Points(6), -vg.Points(10), vg.Points(6), -vg.Points(6))
	if c.named {
		r := c.legend.Rectangle(canvas)
		// Without Liberation Sans, a browser's letters are up to 18 % wider.
		width := 1.18*(r.Max.X-r.Min.X) + vg.Points(14)
		beside := draw.Crop(canvas, canvas.Max.X-canvas.Min.X-width+vg.Points(14), 0, 0,
			-vg.Points(28))
		c.legend.Draw(beside)
		canvas = draw.Crop(canvas, 0, -width, 0, 0)
	}
	c.plot.Draw(canvas)
}

// svg returns the chart as SVG without a background.
func (c *chart) svg() []byte {
	canvas := vgsvg.New(chartWidth, c.height)
	c.draw(draw.New(canvas))
	var b bytes.Buffer
	canvas.WriteTo(&b) // writing to a buffer cannot fail
	return printable(b.Bytes())
}

// png returns the chart as PNG on white with 144 dots per inch.
func (c *chart) png() ([]byte, error) {
	canvas := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(chartWidth, c.height),
		vgimg.UseDPI(144))}
	c.draw(draw.New(canvas))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	return b.Bytes(), err
}

// point is a measured value with its quartiles, which are y if there is no spread.
type point struct{ x, y, low, high float64 }

// line adds a curve with error bars to a chart with logarithmic axes. It leaves out points that
// these cannot show.
func (c *chart) line(name string, l look, points []point) error {
	points = where(points, func(p point) bool {
		return p.x > 1e-9 && p.y > 1e-9 && finite(p.x) && finite(p.y)
	})
	if len(points) == 0 {
		return nil
	}
	for i, p := range points {
		if !(p.low > 0 && p.low <= p.y) {
			points[i].low = p.y
		}
		if !(p.high >= p.y && finite(p.high)) {
			points[i].high = p.y
		}
	}
	xys, spread := make(plotter.XYs, len(points)), make(plotter.YErrors, len(points))
	for i, p := range points {
		xys[i] = plotter.XY{X: p.x, Y: p.y}
		spread[i].Low, spread[i].High = p.y-p.low, p.high-p.y
	}
	curve, marks, err := plotter.NewLinePoints(xys)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	curve.Color, curve.Width = l.color, vg.Points(1.8)
	marks.Color, marks.Shape, marks.Radius = l.color, l.shape, vg.Points(3.5)
	if l.plain {
		curve.Dashes = []vg.Length{vg.Points(5), vg.Points(3)}
	}
	bars, err := plotter.NewYErrorBars(struct {
		plotter.XYs
		plotter.YErrors
	}{xys, spread})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	bars.Color, bars.Width, bars.CapWidth = l.color, vg.Points(0.8), vg.Points(5)
	c.plot.Add(bars, curve, marks)
	c.name(name, curve, marks)
	return nil
}

// logX makes the x axis logarithmic with ticks at powers of two, at most about eight.
func (c *chart) logX() {
	x := &c.plot.X
	if x.Min == x.Max {
		x.Min, x.Max = x.Min/2, x.Max*2
	}
	// 257 tokens (256 and the beginning-of-text token) belong to the tick of 256.
	if below := math.Exp2(math.Floor(math.Log2(x.Min))); x.Min < 1.03*below {
		x.Min = below
	}
	x.Scale = plot.LogScale{}
	x.Tick.Marker = plot.TickerFunc(func(low, high float64) (ticks []plot.Tick) {
		every := int(math.Log2(high/low)/8) + 1
		first := int(math.Ceil(math.Log2(low) - 1e-9))
		for e := first; math.Exp2(float64(e)) <= high*(1+1e-9); e += every {
			ticks = append(ticks, plot.Tick{Value: math.Exp2(float64(e)),
				Label: count(math.Exp2(float64(e)))})
		}
		return ticks
	})
}

// logY makes the y axis logarithmic. It spans at least half a decade.
func (c *chart) logY() {
	y := &c.plot.Y
	middle := math.Sqrt(y.Min * y.Max)
	y.Min, y.Max = min(y.Min/1.1, middle/math.Sqrt(3)), max(y.Max*1.1, middle*math.Sqrt(3))
	y.Scale = plot.LogScale{}
	y.Tick.Marker = plot.TickerFunc(logTicks)
}

// logTicks returns ticks at 1, 2 and 5 in each decade, at 1 if there are more than three decades,
// and more if there is hardly one decade.
func logTicks(low, high float64) (ticks []plot.Tick) {
	steps := []float64{1, 2, 5}
	decades := math.Log10(high / low)
	if decades > 3.2 {
		steps = []float64{1}
	}
	if decades < 1.3 {
		steps = []float64{1, 1.5, 2, 3, 4, 5, 7}
	}
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, s := range steps {
			if v := s * math.Pow(10, e); v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: short(v)})
			}
		}
	}
	return ticks
}

// zeroY starts the y axis at zero and leaves room for labels above the bars.
func (c *chart) zeroY() {
	y := &c.plot.Y
	y.Min, y.Max = 0, y.Max*1.15
	if !(y.Max > 0) {
		y.Max = 1
	}
	y.Tick.Marker = labeled(plot.DefaultTicks{})
}

// labeled returns the major ticks of another marker with short labels.
func labeled(marker plot.Ticker) plot.Ticker {
	return plot.TickerFunc(func(low, high float64) (ticks []plot.Tick) {
		for _, t := range marker.Ticks(low, high) {
			if !t.IsMinor() {
				ticks = append(ticks, plot.Tick{Value: t.Value, Label: short(t.Value)})
			}
		}
		return ticks
	})
}

// bar is a bar of a group. It is not drawn if its value is NaN.
type bar struct {
	value float64
	look  look
	label string // above it
}

// bars draws groups of bars. series holds the names of the bars of each group for the legend.
func (c *chart) bars(groups []string, series []string, values [][]bar) error {
	most := 0
	for _, group := range values {
		most = max(most, len(group))
	}
	room := 0.8 * (float64(chartWidth) - 190) / float64(len(groups)*max(most, 1))
	width := vg.Length(math.Min(room, 46))
	labels := plotter.XYLabels{}
	var offsets []vg.Length
	named := make([]bool, most)
	for s := range most {
		for g, group := range values {
			if s >= len(group) || !finite(group[s].value) {
				continue
			}
			b, err := plotter.NewBarChart(plotter.Values{group[s].value}, width-2)
			if err != nil {
				return err
			}
			b.XMin = float64(g)
			b.Offset = (vg.Length(s) - vg.Length(len(group)-1)/2) * width
			b.LineStyle.Color, b.LineStyle.Width, b.Color = group[s].look.color, vg.Points(1),
				group[s].look.color
			if group[s].look.plain {
				b.Color = pale(group[s].look.color)
			}
			c.plot.Add(b)
			if series != nil && !named[s] {
				c.name(series[s], b)
				named[s] = true
			}
			labels.XYs = append(labels.XYs, plotter.XY{X: float64(g), Y: group[s].value})
			labels.Labels = append(labels.Labels, group[s].label)
			offsets = append(offsets, b.Offset)
		}
	}
	c.plot.X.Min, c.plot.X.Max = -0.5, float64(len(groups))-0.5
	c.plot.NominalX(groups...)
	c.plot.X.Min, c.plot.X.Max = -0.5, float64(len(groups))-0.5
	return c.labels(labels, offsets, width < 26)
}

// labels writes a label above each bar, vertically if the bars are narrow.
func (c *chart) labels(at plotter.XYLabels, offsets []vg.Length, upright bool) error {
	for i := range at.XYs {
		l, err := plotter.NewLabels(plotter.XYLabels{XYs: at.XYs[i : i+1],
			Labels: at.Labels[i : i+1]})
		if err != nil {
			return err
		}
		l.TextStyle[0] = textStyle(9)
		l.TextStyle[0].XAlign = draw.XCenter
		l.Offset = vg.Point{X: offsets[i], Y: vg.Points(2)}
		if upright {
			l.TextStyle[0].Rotation, l.TextStyle[0].XAlign, l.TextStyle[0].YAlign = math.Pi/2,
				draw.XLeft, draw.YCenter
			l.Offset.Y = vg.Points(4)
		}
		c.plot.Add(l)
	}
	return nil
}

// boxes draws a box plot of each sample: median, quartiles, whiskers to the last value within 1.5
// times the quartiles' distance, and outliers.
func (c *chart) boxes(names []string, draws []look, samples [][]float64) error {
	width := vg.Length(math.Min(44, 0.5*(float64(chartWidth)-100)/float64(len(names))))
	for i, sample := range samples {
		b, err := plotter.NewBoxPlot(width, float64(i), plotter.Values(sample))
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		b.FillColor = pale(draws[i].color)
		for _, s := range []*draw.LineStyle{&b.BoxStyle, &b.MedianStyle, &b.WhiskerStyle} {
			s.Color, s.Width, s.Dashes = draws[i].color, vg.Points(1.2), nil
		}
		b.MedianStyle.Width = vg.Points(2.4)
		b.GlyphStyle = draw.GlyphStyle{Color: draws[i].color, Radius: vg.Points(2),
			Shape: draw.RingGlyph{}}
		c.plot.Add(b)
	}
	c.plot.NominalX(names...)
	c.plot.X.Min, c.plot.X.Max = -0.5, float64(len(names))-0.5
	y := &c.plot.Y
	room := max(0.06*(y.Max-y.Min), 1e-3)
	y.Min, y.Max = y.Min-room, y.Max+room
	return nil
}

// levels draws a horizontal bar for each name, the first on top, with a label at its end. It adds a
// dashed line at most unless that is 0. The height of the chart grows with the number of bars.
func (c *chart) levels(names []string, levels []bar, most float64) error {
	for i, level := range levels {
		y := float64(len(levels) - 1 - i)
		b, err := plotter.NewBarChart(plotter.Values{level.value}, vg.Points(12))
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		b.Horizontal, b.XMin = true, y
		b.LineStyle.Color, b.LineStyle.Width, b.Color = level.look.color, vg.Points(1),
			level.look.color
		if level.look.plain {
			b.Color = pale(level.look.color)
		}
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: level.value, Y: y}},
			Labels: []string{level.label}})
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		label.TextStyle[0] = textStyle(9)
		label.TextStyle[0].YAlign = draw.YCenter
		label.Offset.X = vg.Points(5)
		c.plot.Add(b, label)
	}
	p := c.plot
	upwards := slices.Clone(names)
	slices.Reverse(upwards)
	p.NominalY(upwards...)
	p.Y.Min, p.Y.Max = -0.6, float64(len(levels))-0.4
	if most > 0 {
		line, err := plotter.NewLine(plotter.XYs{{X: most, Y: p.Y.Min}, {X: most, Y: p.Y.Max}})
		if err != nil {
			return err
		}
		line.Color, line.Width, line.Dashes = ink, vg.Points(1.2), []vg.Length{vg.Points(3),
			vg.Points(2)}
		p.Add(line)
	}
	p.X.Min, p.X.Max = 0, p.X.Max*1.12
	if !(p.X.Max > 0) {
		p.X.Max = 1
	}
	p.X.Tick.Marker = labeled(plot.DefaultTicks{})
	c.height = vg.Points(90 + 17*float64(len(levels)))
	return nil
}
