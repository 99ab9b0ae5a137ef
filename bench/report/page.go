package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"strings"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is what the template shows.
type page struct {
	Title, Summary string
	Problems       []string // result files that could not be read
	Findings       []string // what the numbers say, in a sentence each
	Sections       []section
	Made           []made
}

// section is about one question.
type section struct {
	ID, Title, Intro string
	Missing          string // why there are no figures
	Figures          []figure
}

// figure is a chart with its numbers.
type figure struct {
	Name    string // of its files
	Alt     string // for those who do not see it
	Caption string
	Table   table
	More    table
	chart   *chart
}

// made says which command gave a result file, where and when.
type made struct {
	Title, Command string
	Table          table
}

type table struct {
	Caption string
	Columns []column
	Rows    [][]string
}

type column struct {
	Name string
	Text bool // words rather than numbers
}

// columns reads names; those that end with a bar hold text.
func columns(names ...string) []column {
	list := make([]column, len(names))
	for i, name := range names {
		list[i].Name, list[i].Text = strings.CutSuffix(name, "|")
	}
	return list
}

// SVG is the chart as part of the page: its colors are the page's, which has a light and a dark face.
func (f figure) SVG() template.HTML {
	text := string(f.chart.svg())
	_, text, _ = strings.Cut(text, "<svg ")
	_, text, _ = strings.Cut(text, "viewBox")
	for i, c := range colors() {
		text = strings.ReplaceAll(text, hex(c), "var(--c"+fmt.Sprint(i)+")")
	}
	return template.HTML(`<svg role="img" aria-label="` + template.HTMLEscapeString(f.Alt) + `" viewBox` + text)
}

// Light and Dark are the style sheets' colors of the charts.
func (page) Light() template.CSS {
	return sheet(func(c color.RGBA) color.RGBA { return c })
}

// Dark has the same hues, lighter: a contrast of 4.5 and more to the dark paper.
func (page) Dark() template.CSS {
	return sheet(func(c color.RGBA) color.RGBA {
		switch c {
		case ink:
			return color.RGBA{0xe6, 0xed, 0xf3, 0xff}
		case faint:
			return color.RGBA{0x3a, 0x42, 0x4c, 0xff}
		}
		for contrast(c, color.RGBA{0x14, 0x18, 0x1d, 0xff}) < 5.5 {
			lighter := func(v uint8) uint8 { return uint8(math.Round(float64(v) + 0.06*(255-float64(v)))) }
			c = color.RGBA{lighter(c.R), lighter(c.G), lighter(c.B), 0xff}
		}
		return c
	})
}

func sheet(face func(color.RGBA) color.RGBA) template.CSS {
	var b strings.Builder
	for i, c := range colors() {
		fmt.Fprintf(&b, "--c%d:%s;", i, hex(face(c)))
	}
	return template.CSS(b.String())
}

// contrast is that of the Web Content Accessibility Guidelines: 1 to 21.
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

func (p *page) html() ([]byte, error) {
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, p)
	return printable(b.Bytes()), err
}
