package report

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
	"gonum.org/v1/plot/vg/vgsvg"
)

var (
	ink   = color.RGBA{0x1f, 0x23, 0x28, 0xff} // not black: vgsvg leaves black out, and the page could not replace it
	faint = color.RGBA{0xd0, 0xd7, 0xde, 0xff}
)

// look is how a strategy, or whatever else is compared, is drawn in every chart. Its color keeps a contrast of 3 to white
// and is told apart by people who do not see red or green; its shape and dashes tell it apart in print.
type look struct {
	color color.RGBA
	shape draw.GlyphDrawer
	// plain is without the project's kernels: dashed and pale.
	plain bool
}

var known = map[string]look{
	"default":     {color: color.RGBA{0x00, 0x72, 0xb2, 0xff}, shape: draw.CircleGlyph{}},
	"independent": {color: color.RGBA{0xd5, 0x5e, 0x00, 0xff}, shape: draw.PyramidGlyph{}},
	"windowed:1":  {color: color.RGBA{0xaa, 0x44, 0x99, 0xff}, shape: draw.BoxGlyph{}},
	"windowed:2":  {color: color.RGBA{0x98, 0x70, 0x00, 0xff}, shape: diamond{}},
	"windowed:4":  {color: color.RGBA{0x11, 0x82, 0x4a, 0xff}, shape: draw.RingGlyph{}},
}

var others = []look{
	{color: color.RGBA{0x5b, 0x50, 0xc0, 0xff}, shape: wedge{}},
	{color: color.RGBA{0x88, 0x22, 0x55, 0xff}, shape: draw.SquareGlyph{}},
	{color: color.RGBA{0x57, 0x60, 0x6a, 0xff}, shape: draw.TriangleGlyph{}},
}

// diamond and wedge are shapes that gonum lacks.
type (
	diamond struct{}
	wedge   struct{}
)

func (diamond) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, p vg.Point) {
	r := s.Radius * 1.25
	c.FillPolygon(s.Color, []vg.Point{{X: p.X - r, Y: p.Y}, {X: p.X, Y: p.Y + r}, {X: p.X + r, Y: p.Y}, {X: p.X, Y: p.Y - r}})
}

func (wedge) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, p vg.Point) {
	r := s.Radius * 1.2
	c.FillPolygon(s.Color, []vg.Point{{X: p.X - r, Y: p.Y + r*0.7}, {X: p.X + r, Y: p.Y + r*0.7}, {X: p.X, Y: p.Y - r}})
}

// looks gives every name a look that stays the same over the charts of a page.
type looks struct{ given map[string]look }

func (l *looks) of(name string) look {
	base, optimized := strings.CutSuffix(name, "-optimized")
	found, ok := known[base]
	if !ok {
		found, ok = l.given[base]
	}
	if !ok {
		if l.given == nil {
			l.given = map[string]look{}
		}
		found = others[len(l.given)%len(others)]
		l.given[base] = found
	}
	found.plain = !optimized
	return found
}

// solid is l in full color.
func (l look) solid() look { l.plain = false; return l }

// brief is a name short enough for an axis.
func brief(name string) string {
	if runes := []rune(name); len(runes) > 34 {
		name = string(runes[:33]) + "…"
	}
	return name
}

// printable is a document without the characters that have no place in one, as names from a file may have.
func printable(document []byte) []byte {
	return bytes.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsGraphic(r) {
			return r
		}
		return '\uFFFD'
	}, document)
}

// colors lists all colors that a chart may have, for the page to replace in its dark face.
func colors() []color.RGBA {
	list := []color.RGBA{ink, faint}
	for _, name := range []string{"default", "independent", "windowed:1", "windowed:2", "windowed:4"} {
		list = append(list, known[name].color)
	}
	for _, l := range others {
		list = append(list, l.color)
	}
	return list
}

func hex(c color.RGBA) string { return fmt.Sprintf("#%02X%02X%02X", c.R, c.G, c.B) }

// pale is c thinned.
func pale(c color.RGBA) color.NRGBA { return color.NRGBA{c.R, c.G, c.B, 0x50} }

// chart is a plot with its legend beside it, where no curve runs through it.
type chart struct {
	plot   *plot.Plot
	legend plot.Legend
	named  bool // whether the legend has entries
	height vg.Length
}

const (
	chartWidth  = 7.5 * vg.Inch
	chartHeight = 3.9 * vg.Inch
)

func textStyle(size float64) text.Style {
	return text.Style{Color: ink, Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, vg.Points(size)),
		Handler: plot.DefaultTextHandler, XAlign: draw.XLeft, YAlign: draw.YBottom}
}

// newChart makes an empty chart; y and x are the axes' names with their units.
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
	c.legend.Top, c.legend.Left, c.legend.Padding, c.legend.ThumbnailWidth = true, true, vg.Points(5), vg.Points(28)
	c.legend.TextStyle = textStyle(10.5)
	grid := plotter.NewGrid()
	grid.Vertical.Width = 0
	grid.Horizontal.Color = faint
	p.Add(grid)
	return c
}

func (c *chart) name(entry string, thumbs ...plot.Thumbnailer) {
	c.legend.Add(brief(entry), thumbs...)
	c.named = true
}

func (c *chart) draw(canvas draw.Canvas) {
	canvas = draw.Crop(canvas, vg.Points(6), -vg.Points(10), vg.Points(6), -vg.Points(6))
	if c.named {
		r := c.legend.Rectangle(canvas)
		// Where Liberation Sans is missing, a browser's own letters are up to a fifth wider.
		width := 1.18*(r.Max.X-r.Min.X) + vg.Points(14)
		beside := draw.Crop(canvas, canvas.Max.X-canvas.Min.X-width+vg.Points(14), 0, 0, -vg.Points(28))
		c.legend.Draw(beside)
		canvas = draw.Crop(canvas, 0, -width, 0, 0)
	}
	c.plot.Draw(canvas)
}

// svg draws c without a background.
func (c *chart) svg() []byte {
	canvas := vgsvg.New(chartWidth, c.height)
	c.draw(draw.New(canvas))
	var b bytes.Buffer
	canvas.WriteTo(&b) // a buffer takes all
	return printable(b.Bytes())
}

// png draws c on white, at 144 dots an inch.
func (c *chart) png() ([]byte, error) {
	canvas := vgimg.PngCanvas{Canvas: vgimg.NewWith(vgimg.UseWH(chartWidth, c.height), vgimg.UseDPI(144))}
	c.draw(draw.New(canvas))
	var b bytes.Buffer
	_, err := canvas.WriteTo(&b)
	return b.Bytes(), err
}

// point is a measured value with its spread; low and high are y where it has none.
type point struct{ x, y, low, high float64 }

// line adds a curve with its spread to a chart whose axes are logarithmic; points that these cannot show are left out.
func (c *chart) line(name string, l look, points []point) error {
	points = where(points, func(p point) bool { return p.x > 1e-9 && p.y > 1e-9 && finite(p.x) && finite(p.y) })
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

// logX makes the x axis logarithmic, with a tick at each power of two that is not crowded.
func (c *chart) logX() {
	x := &c.plot.X
	if x.Min == x.Max {
		x.Min, x.Max = x.Min/2, x.Max*2
	}
	// 257 tokens, 256 and the one that begins a text, still are at the tick of 256.
	if below := math.Exp2(math.Floor(math.Log2(x.Min))); x.Min < 1.03*below {
		x.Min = below
	}
	x.Scale = plot.LogScale{}
	x.Tick.Marker = plot.TickerFunc(func(low, high float64) (ticks []plot.Tick) {
		every := int(math.Log2(high/low)/8) + 1
		for e := int(math.Ceil(math.Log2(low) - 1e-9)); math.Exp2(float64(e)) <= high*(1+1e-9); e += every {
			ticks = append(ticks, plot.Tick{Value: math.Exp2(float64(e)), Label: count(math.Exp2(float64(e)))})
		}
		return ticks
	})
}

// logY makes the y axis logarithmic, with at least half a decade of it to see.
func (c *chart) logY() {
	y := &c.plot.Y
	middle := math.Sqrt(y.Min * y.Max)
	y.Min, y.Max = min(y.Min/1.1, middle/math.Sqrt(3)), max(y.Max*1.1, middle*math.Sqrt(3))
	y.Scale = plot.LogScale{}
	y.Tick.Marker = plot.TickerFunc(logTicks)
}

// logTicks are 1, 2 and 5 in each decade, 1 alone where there are many, and more where there is hardly one.
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

// zeroY lets the y axis begin at zero and leaves room above for the labels of bars.
func (c *chart) zeroY() {
	y := &c.plot.Y
	y.Min, y.Max = 0, y.Max*1.15
	if !(y.Max > 0) {
		y.Max = 1
	}
	y.Tick.Marker = labelled(plot.DefaultTicks{})
}

// labelled are the ticks of another marker that have labels, written short.
func labelled(marker plot.Ticker) plot.Ticker {
	return plot.TickerFunc(func(low, high float64) (ticks []plot.Tick) {
		for _, t := range marker.Ticks(low, high) {
			if !t.IsMinor() {
				ticks = append(ticks, plot.Tick{Value: t.Value, Label: short(t.Value)})
			}
		}
		return ticks
	})
}

// bar is a bar of a group, or nothing where the value is no number.
type bar struct {
	value float64
	look  look
	label string // above it
}

// bars draws groups of bars; series names the bars of each group in their order, for the legend.
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
			b.LineStyle.Color, b.LineStyle.Width, b.Color = group[s].look.color, vg.Points(1), group[s].look.color
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

// labels writes a label above each bar, upright where the bars are narrow.
func (c *chart) labels(at plotter.XYLabels, offsets []vg.Length, upright bool) error {
	for i := range at.XYs {
		l, err := plotter.NewLabels(plotter.XYLabels{XYs: at.XYs[i : i+1], Labels: at.Labels[i : i+1]})
		if err != nil {
			return err
		}
		l.TextStyle[0] = textStyle(9)
		l.TextStyle[0].XAlign = draw.XCenter
		l.Offset = vg.Point{X: offsets[i], Y: vg.Points(2)}
		if upright {
			l.TextStyle[0].Rotation, l.TextStyle[0].XAlign, l.TextStyle[0].YAlign = math.Pi/2, draw.XLeft, draw.YCenter
			l.Offset.Y = vg.Points(4)
		}
		c.plot.Add(l)
	}
	return nil
}

// boxes draws a box plot of each sample: the median, the quartiles, whiskers to the last value within 1.5 times their
// distance, and what lies beyond.
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
		b.GlyphStyle = draw.GlyphStyle{Color: draws[i].color, Radius: vg.Points(2), Shape: draw.RingGlyph{}}
		c.plot.Add(b)
	}
	c.plot.NominalX(names...)
	c.plot.X.Min, c.plot.X.Max = -0.5, float64(len(names))-0.5
	y := &c.plot.Y
	room := max(0.06*(y.Max-y.Min), 1e-3)
	y.Min, y.Max = y.Min-room, y.Max+room
	return nil
}

// levels draws a lying bar for each name, the first on top, with its label at its end, and a dashed line at most, where that
// is known; the chart grows with their number.
func (c *chart) levels(names []string, levels []bar, most float64) error {
	for i, level := range levels {
		y := float64(len(levels) - 1 - i)
		b, err := plotter.NewBarChart(plotter.Values{level.value}, vg.Points(12))
		if err != nil {
			return fmt.Errorf("%s: %w", names[i], err)
		}
		b.Horizontal, b.XMin = true, y
		b.LineStyle.Color, b.LineStyle.Width, b.Color = level.look.color, vg.Points(1), level.look.color
		if level.look.plain {
			b.Color = pale(level.look.color)
		}
		label, err := plotter.NewLabels(plotter.XYLabels{XYs: plotter.XYs{{X: level.value, Y: y}}, Labels: []string{level.label}})
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
		line.Color, line.Width, line.Dashes = ink, vg.Points(1.2), []vg.Length{vg.Points(3), vg.Points(2)}
		p.Add(line)
	}
	p.X.Min, p.X.Max = 0, p.X.Max*1.12
	if !(p.X.Max > 0) {
		p.X.Max = 1
	}
	p.X.Tick.Marker = labelled(plot.DefaultTicks{})
	c.height = vg.Points(90 + 17*float64(len(levels)))
	return nil
}

var nan = math.NaN()

// finite says whether x is a number that a chart can show: nothing that is measured has more than 15 digits.
func finite(x float64) bool { return math.Abs(x) < 1e15 }

// short writes a number with three digits that say something: 0.0123, 4.5, 123, 12,345.
func short(x float64) string {
	switch a := math.Abs(x); {
	case !finite(x):
		return "–"
	case a >= 999.5:
		return count(x)
	case a == 0:
		return "0"
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(x))))
	s := strconv.FormatFloat(x, 'f', max(0, digits), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return s
}

// count writes a whole number with commas.
func count(x float64) string {
	s := strconv.FormatFloat(math.Abs(x), 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	if x < 0 {
		s = "-" + s
	}
	return s
}
