package report

import (
	"fmt"
	"html/template"
	"image/color"
	"math"
	"strings"

	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

var (
	// ink is not black, because vgsvg omits black and the page must replace the color.
	ink   = color.RGBA{0x1f, 0x23, 0x28, 0xff}
	faint = color.RGBA{0xd0, 0xd7, 0xde, 0xff}
)

// look is the style of a strategy in every chart. Its color has a contrast of at least 3 to white
// and is distinguishable with red-green color blindness. Its shape and dashes distinguish it in
// print.
type look struct {
	color color.RGBA
	shape draw.GlyphDrawer
	// plain is set for libtorch's operations, which are dashed and pale.
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

// diamond and wedge are shapes that gonum does not have.
type (
	diamond struct{}
	wedge   struct{}
)

func (diamond) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, p vg.Point) {
	r := s.Radius * 1.25
	c.FillPolygon(s.Color, []vg.Point{{X: p.X - r, Y: p.Y}, {X: p.X, Y: p.Y + r},
		{X: p.X + r, Y: p.Y}, {X: p.X, Y: p.Y - r}})
}

func (wedge) DrawGlyph(c *draw.Canvas, s draw.GlyphStyle, p vg.Point) {
	r := s.Radius * 1.2
	c.FillPolygon(s.Color, []vg.Point{{X: p.X - r, Y: p.Y + r*0.7}, {X: p.X + r, Y: p.Y + r*0.7},
		{X: p.X, Y: p.Y - r}})
}

// looks gives every name the same look in all charts of a page.
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

// solid returns l in full color.
func (l look) solid() look { l.plain = false; return l }

// colors lists all colors of charts, which the page replaces in its dark color scheme.
func colors() []color.RGBA {
	list := []color.RGBA{ink, faint}
	for _, name := range []string{"default", "independent", "windowed:1", "windowed:2",
		"windowed:4"} {
		list = append(list, known[name].color)
	}
	for _, l := range others {
		list = append(list, l.color)
	}
	return list
}

func hex(c color.RGBA) string { return fmt.Sprintf("#%02X%02X%02X", c.R, c.G, c.B) }

// pale returns c with low opacity.
func pale(c color.RGBA) color.NRGBA { return color.NRGBA{c.R, c.G, c.B, 0x50} }

func sheet(face func(color.RGBA) color.RGBA) template.CSS {
	var b strings.Builder
	for i, c := range colors() {
		fmt.Fprintf(&b, "--c%d:%s;", i, hex(face(c)))
	}
	return template.CSS(b.String())
}

// contrast returns the contrast ratio of the Web Content Accessibility Guidelines, 1 to 21.
func contrast(a, b color.RGBA) float64 {
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

func luminance(c color.RGBA) float64 {
	linear := func(v uint8) float64 {
		s := float64(v) / 255
		if s <= 0.04045 {
			return s / 12.92
		}
		return math.Pow((s+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(c.R) + 0.7152*linear(c.G) + 0.0722*linear(c.B)
}

// Light returns the chart colors of the light scheme for the style sheet.
func (page) Light() template.CSS {
	return sheet(func(c color.RGBA) color.RGBA { return c })
}

// Dark returns the chart colors of the dark scheme: lighter, with a contrast of at least 5.5 to the
// background.
func (page) Dark() template.CSS {
	return sheet(func(c color.RGBA) color.RGBA {
		switch c {
		case ink:
			return color.RGBA{0xe6, 0xed, 0xf3, 0xff}
		case faint:
			return color.RGBA{0x3a, 0x42, 0x4c, 0xff}
		}
		for contrast(c, color.RGBA{0x14, 0x18, 0x1d, 0xff}) < 5.5 {
			lighter := func(v uint8) uint8 {
				return uint8(math.Round(float64(v) +
					0.06*(255-float64(v))))
			}
			c = color.RGBA{lighter(c.R), lighter(c.G), lighter(c.B), 0xff}
		}
		return c
	})
}
