package jinja

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A grammar writes templates that the parser accepts more often than random bytes. Each byte of
// data is one choice; without bytes every choice is the first, which ends the recursion.
type grammar struct {
	data  []byte
	depth int

	filters, tests []string // names
	out            strings.Builder
}

func (g *grammar) choose(n int) int {
	if len(g.data) == 0 {
		return 0
	}
	b := g.data[0]
	g.data = g.data[1:]
	return int(b) % n
}

func (g *grammar) one(list []string) string { return list[g.choose(len(list))] }

var (
	grammarNames = []string{"a", "b", "m", "messages", "ns", "loop", "f", "x", "caller", "self",
		"range", "dict", "namespace", "cycler", "joiner", "raise_exception", "strftime_now"}
	grammarLiterals = []string{"1", "'x'", "0", "-3", "2.5", "1e300", "''", "none", "true", "false",
		"'é\\n<%s>'", "'{:>4}{0!r}'", "12345678901234567890", "[]", "{}", "()"}
	grammarOperators = []string{"+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", "<=",
		">", ">=", "in", "not in", "and", "or"}
	grammarMembers = []string{"role", "content", "append", "items", "keys", "get", "update", "pop",
		"index", "first", "last", "length", "previtem", "changed", "cycle", "split", "join",
		"replace", "format", "strip", "startswith", "upper", "title", "zfill", "center", "find",
		"splitlines", "partition", "expandtabs", "isdigit", "count", "extend", "sort", "reverse",
		"bit_length", "next", "__class__", "0"}
	grammarEnds = []string{" %}", " -%}", "+%}"}
)

// arguments writes a call's arguments.
func (g *grammar) arguments() {
	g.out.WriteByte('(')
	for i := range g.choose(4) {
		if i > 0 {
			g.out.WriteString(", ")
		}
		if g.choose(5) == 1 {
			g.out.WriteString(g.one([]string{"attribute", "indent", "default", "x", "reverse",
				"sep", "width", "count", "start"}) + "=")
		}
		g.expression()
	}
	g.out.WriteByte(')')
}

func (g *grammar) expression() {
	if g.depth++; g.depth > 12 {
		g.data = nil
	}
	defer func() { g.depth-- }()
	operand := func() {
		g.out.WriteByte('(')
		g.expression()
		g.out.WriteByte(')')
	}
	switch g.choose(12) {
	case 0, 1:
		g.out.WriteString(g.one(grammarLiterals))
	case 2:
		g.out.WriteString(g.one(grammarNames))
	case 3:
		operand()
		g.out.WriteString(" " + g.one(grammarOperators) + " ")
		operand()
	case 4:
		operand()
		g.out.WriteString("|" + g.one(g.filters))
		g.arguments()
	case 5:
		operand()
		g.out.WriteString(" is " + g.one([]string{"", "not "}) + g.one(g.tests))
		if g.choose(3) == 1 {
			g.arguments()
		}
	case 6:
		operand()
		g.out.WriteString("." + g.one(grammarMembers))
		if g.choose(2) == 1 {
			g.arguments()
		}
	case 7:
		operand()
		g.out.WriteByte('[')
		for range g.choose(3) {
			g.expression()
			g.out.WriteByte(':')
		}
		g.expression()
		g.out.WriteByte(']')
	case 8:
		operand()
		g.out.WriteString(" if ")
		operand()
		g.out.WriteString(" else ")
		operand()
	case 9:
		g.out.WriteString(g.one([]string{"not ", "-", "+"}))
		operand()
	case 10:
		g.out.WriteByte('[')
		for range g.choose(4) {
			g.expression()
			g.out.WriteString(", ")
		}
		g.out.WriteByte(']')
	case 11:
		g.out.WriteByte('{')
		for range g.choose(4) {
			operand()
			g.out.WriteString(": ")
			g.expression()
			g.out.WriteString(", ")
		}
		g.out.WriteByte('}')
	}
}

// tag writes a tag; the parts are strings and functions that write expressions.
func (g *grammar) tag(parts ...any) {
	g.out.WriteString(g.one([]string{"{% ", "{%- ", "{%+ "}))
	for _, part := range parts {
		switch part := part.(type) {
		case string:
			g.out.WriteString(part)
		case func():
			part()
		}
	}
	g.out.WriteString(g.one(grammarEnds))
}

func (g *grammar) statements() {
	if g.depth++; g.depth > 10 {
		g.data = nil
	}
	defer func() { g.depth-- }()
	for range g.choose(4) {
		g.statement()
	}
}

func (g *grammar) statement() {
	switch g.choose(15) {
	case 0:
		g.out.WriteString(g.one([]string{"t", " \n", "é", "{", "}}", "{# c #}", "\n  "}))
	case 1, 2, 3:
		g.out.WriteString(g.one([]string{"{{ ", "{{- "}))
		g.expression()
		g.out.WriteString(g.one([]string{" }}", " -}}"}))
	case 4:
		g.tag("if ", g.expression)
		g.statements()
		if g.choose(2) == 1 {
			g.tag("elif ", g.expression)
			g.statements()
		}
		if g.choose(2) == 1 {
			g.tag("else")
			g.statements()
		}
		g.tag("endif")
	case 5, 6:
		names := g.one([]string{"m", "a, b", "x"})
		g.tag("for "+names+" in ", g.expression, g.one([]string{"", " if m", " recursive"}))
		g.statements()
		if g.choose(4) == 1 {
			g.tag(g.one([]string{"break", "continue"}))
		}
		if g.choose(4) == 1 {
			g.out.WriteString("{{ loop(")
			g.expression()
			g.out.WriteString(") }}")
		}
		if g.choose(4) == 1 {
			g.tag("else")
			g.statements()
		}
		g.tag("endfor")
	case 7, 8:
		g.tag("set "+g.one([]string{"a", "b", "a, b", "ns.x"})+" = ", g.expression)
	case 9:
		g.tag("set a" + g.one([]string{"", " | upper", " | trim | length"}))
		g.statements()
		g.tag("endset")
	case 10:
		g.tag("macro f(a, b=", g.expression, ")")
		g.statements()
		g.tag("endmacro")
	case 11:
		g.tag("call"+g.one([]string{"", "(x)"})+" f(", g.expression, ")")
		g.statements()
		g.tag("endcall")
	case 12:
		g.tag("filter " + g.one(g.filters))
		g.statements()
		g.tag("endfilter")
	case 13:
		g.tag("with a = ", g.expression)
		g.statements()
		g.tag("endwith")
	case 14:
		g.tag("generation")
		g.statements()
		g.tag("endgeneration")
	}
}

// A template of any form must keep the limits, fail with a line of its own, and render the same
// text each time.
func FuzzTemplate_Grammar(f *testing.F) {
	filters, tests := slices.Sorted(maps.Keys(filters)), slices.Sorted(maps.Keys(tests))
	for i := range 15 {
		f.Add([]byte{3, byte(i), 4, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
		f.Add([]byte{2, 1, byte(i), 0, 2, byte(i), 1, 1, byte(3 * i), 0, 5, 3, byte(i), 2, 2})
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g := &grammar{data: data, filters: filters, tests: tests}
		for len(g.data) > 0 && g.out.Len() < 1000 {
			g.statement()
		}
		source := g.out.String()
		template, err := Compile(source)
		if err != nil {
			if strings.Contains(err.Error(), "internal error") {
				t.Fatalf("%q: %v", source, err)
			}
			return
		}
		template.Limits.Steps, template.Limits.Bytes, template.Limits.Range = 2000, 1<<14, 1000
		template.Now = func() time.Time { return time.Unix(1e9, 0).UTC() }
		render := func() (string, string) {
			text, spans, err := template.RenderSpans(t.Context(), map[string]any{
				"messages": []any{map[string]any{"role": "user", "content": "é <b>"},
					map[string]any{"role": "assistant", "content": nil}},
				"a": 1, "b": []any{1, 2.5, nil, "x"}, "m": map[string]any{"role": "z"},
			})
			if err != nil {
				return "", err.Error()
			}
			last := 0
			for _, s := range spans {
				if s.Start < 0 || s.End < s.Start || s.End > len(text) {
					t.Fatalf("%q: span %v of %d bytes after %d", source, s, len(text), last)
				}
			}
			return text, ""
		}
		began := time.Now()
		text, failed := render()
		if again, failedAgain := render(); again != text || failedAgain != failed {
			t.Fatalf("%q renders %q (%s) and then %q (%s)", source, text, failed, again,
				failedAgain)
		}
		switch took := time.Since(began); {
		case strings.Contains(failed, "internal error"):
			t.Fatalf("%q: %s", source, failed)
		case len(text) > template.Limits.Bytes:
			t.Fatalf("%q gives %s bytes", source, strconv.Itoa(len(text)))
		case took > 3*time.Second:
			t.Fatalf("%q took %v", source, took)
		}
	})
}

func TestRenderSpans_LieInTheText(t *testing.T) {
	template, err := Compile("{% set a %}{% generation %}abcdef{% endgeneration %}{% endset %}xyz" +
		"{% generation %}{{ a }}{% endgeneration %}{% set b %}{% generation %}abc" +
		"{% endgeneration %}{% endset %}")
	if err != nil {
		t.Fatal(err)
	}
	text, spans, err := template.RenderSpans(t.Context(), nil)
	if want := []Span{{0, 6}, {3, 9}, {9, 9}}; err != nil || text != "xyzabcdef" ||
		!slices.Equal(spans, want) {
		t.Errorf("got %q with %v, %v; expected %v", text, spans, err, want)
	}
	trace, err := template.Trace(t.Context(), nil)
	if want := []Span{{0, 6}, {3, 9}, {9, 9}}; err != nil || !slices.Equal(trace.Generation, want) {
		t.Errorf("the trace has %v, %v; expected %v", trace.Generation, err, want)
	}
}
