package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"strings"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is the data of the template.
type page struct {
	Title, Summary string
	Problems       []string // result files that could not be read
	Findings       []string // results, one sentence each
	Sections       []section
	Made           []made
}

// section holds the figures of one benchmark.
type section struct {
	ID, Title, Intro string
	Missing          string // why figures are missing
	Figures          []figure
}

// figure is a chart with tables of its numbers.
type figure struct {
	Name    string // name of its files
	Alt     string // text alternative
	Caption string
	Table   table
	More    table
	chart   *chart
}

// made describes the command that wrote a result file, its machine and its time.
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
	Text bool // holds text, not numbers
}

// columns returns columns of the given names. Those whose name ends with | hold text.
func columns(names ...string) []column {
	list := make([]column, len(names))
	for i, name := range names {
		list[i].Name, list[i].Text = strings.CutSuffix(name, "|")
	}
	return list
}

// SVG returns the chart as an element of the page. Its colors are variables of the style sheet,
// which has a light and a dark scheme.
func (f figure) SVG() template.HTML {
	text := string(f.chart.svg())
	_, text, _ = strings.Cut(text, "<svg ")
	_, text, _ = strings.Cut(text, "viewBox")
	for i, c := range colors() {
		text = strings.ReplaceAll(text, hex(c), "var(--c"+fmt.Sprint(i)+")")
	}
	return template.HTML(`<svg role="img" aria-label="` + template.HTMLEscapeString(f.Alt) +
		`" viewBox` + text)
}

func (p *page) html() ([]byte, error) {
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, p)
	return printable(b.Bytes()), err
}
