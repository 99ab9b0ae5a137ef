// Package jinja renders the chat templates of Hugging Face models.
//
// It implements the Jinja language (https://jinja.palletsprojects.com, version 3.1) as transformers
// configures it for chat templates: the immutable sandbox, trim_blocks and lstrip_blocks, loop
// controls, {% generation %} blocks, and a tojson filter that does not escape HTML. Whitespace,
// printing, arithmetic, slicing, scoping and errors follow Python.
//
//	t, err := jinja.Compile("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
//	if err != nil { … }
//	text, err := t.Render(ctx, map[string]any{"messages": messages})
//
// [Template.Trace] also tells which parts of the text stem from which message.
//
// A template comes with a foreign model, so its cost is bounded: see [Limits]. Template
// inheritance, imports and autoescaping are refused by [Compile].
package jinja

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// Limits bounds what a template may cost. A template that exceeds one fails with a [*LimitError].
type Limits struct {
	Nesting    int // depth of nested expressions and blocks, checked by Compile
	MacroDepth int // depth of macro, call-block and recursive-loop calls
	Steps      int // evaluated expressions, statements and loop iterations
	Bytes      int // size of the output, and of any one value
	Range      int // length of a range() object
	// Time ends a rendering whose steps take longer than they should. It is far above what a
	// template of ordinary size needs.
	Time time.Duration
}

// DefaultLimits are the limits of a compiled template.
var DefaultLimits = Limits{
	Nesting: 200, MacroDepth: 100, Steps: 5_000_000, Bytes: 16 << 20, Range: 100_000,
	Time: 5 * time.Second,
}

// MaxSource is the most bytes of a template, because compiling it takes memory in proportion. The
// templates of models have at most some 10,000.
const MaxSource = 1 << 20

// LimitError reports which limit a template exceeded.
type LimitError struct {
	Limit string // "nesting", "macro depth", "steps", "bytes", "range" or "time"
	Value int    // the limit's value, in milliseconds for time
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("the template exceeds its limit of %d %s", e.Value,
		map[string]string{"nesting": "levels of nesting", "macro depth": "nested macro calls",
			"steps": "steps", "bytes": "bytes", "range": "elements of a range",
			"time": "milliseconds"}[e.Limit])
}

// Error is a failure to compile or render a template. Its text says what Jinja or Python would say.
type Error struct {
	Line    int // line of the template, from 1; 0 if unknown
	Message string
	// Raised is set if the template itself called raise_exception.
	Raised bool
	cause  error
}

func (e *Error) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("template line %d: %s", e.Line, e.Message)
	}
	return e.Message
}

// Unwrap returns the cause: a [*LimitError] or the context's error.
func (e *Error) Unwrap() error { return e.cause }

// Template is a compiled template. It may be rendered by several goroutines at once.
type Template struct {
	// Limits may be changed before the first rendering.
	Limits Limits
	// Now is the clock of strftime_now. nil means time.Now.
	Now func() time.Time

	body   []stmt
	scope  *scope
	blocks bool // has {% generation %} blocks
	strict bool // see Settings
	given  map[string]filter
}

// Span is a half-open range [Start, End) of bytes of a rendered text.
type Span struct{ Start, End int }

// Compile parses a template. The error names the line and the construct that is wrong or not
// supported.
func Compile(source string) (t *Template, err error) { return CompileWith(source, Settings{}) }

// Settings say how a template is read. The zero value is the environment of chat templates.
type Settings struct {
	// KeepSpace leaves trim_blocks and lstrip_blocks off and keeps the newline at the end, if the
	// template has one.
	KeepSpace bool
	// Strict makes every use of an undefined value fail, except for the filter default and the
	// tests defined and undefined: Jinja's StrictUndefined.
	Strict bool
	// Filters are filters beside Jinja's own. They get the text of the operand and those of their
	// arguments, which have no names.
	Filters map[string]func(text string, arguments []string) (string, error)
}

// CompileWith is [Compile] with settings.
func CompileWith(source string, s Settings) (t *Template, err error) {
	defer catch(&err)
	if len(source) > MaxSource {
		fail("the template has %d bytes, expected at most %d", len(source), MaxSource)
	}
	p := &parser{limits: DefaultLimits, given: map[string]filter{}}
	for name, f := range s.Filters {
		p.given[name] = given(name, f)
	}
	p.tokens = lex(source, s.KeepSpace)
	t = &Template{Limits: DefaultLimits, body: p.template(), strict: s.Strict, given: p.given}
	t.scope = p.scope
	t.blocks = p.generation
	return t, nil
}

// HasGeneration reports whether the template marks its assistant's text with {% generation %}.
func (t *Template) HasGeneration() bool { return t.blocks }

// Render renders the template. values holds the template's variables as nil, bool, Go's integers
// and floats, string, slices, maps with string keys, and [*Dict] where the order of keys matters
// (keys of a Go map are sorted). Cancelling ctx ends the rendering with ctx's error.
func (t *Template) Render(ctx context.Context, values map[string]any) (string, error) {
	text, _, err := t.RenderSpans(ctx, values)
	return text, err
}

// RenderSpans is Render; it also returns where the {% generation %} blocks lie in the text.
func (t *Template) RenderSpans(ctx context.Context, values map[string]any) (string, []Span, error) {
	vars, err := variables(values)
	if err != nil {
		return "", nil, err
	}
	return t.renderSpans(ctx, vars)
}

// variables converts the variables of a template.
func variables(values map[string]any) (map[string]value, error) {
	vars := make(map[string]value, len(values))
	for name, v := range values {
		converted, err := fromGo(v)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", name, err)
		}
		vars[name] = converted
	}
	return vars, nil
}

// RenderJSON renders the template with the variables of a JSON object. Objects keep the order of
// their keys.
func (t *Template) RenderJSON(ctx context.Context, object []byte) (string, error) {
	text, _, err := t.RenderJSONSpans(ctx, object)
	return text, err
}

// RenderJSONSpans is RenderJSON; it also returns where the {% generation %} blocks lie in the text.
func (t *Template) RenderJSONSpans(ctx context.Context, object []byte) (string, []Span, error) {
	v, err := parseJSON(object)
	if err != nil {
		return "", nil, err
	}
	d, ok := v.(*Dict)
	if !ok {
		return "", nil, errors.New("expected a JSON object of template variables")
	}
	context := make(map[string]value, d.Len())
	for _, e := range d.entries {
		context[e.key.(string)] = e.value
	}
	return t.renderSpans(ctx, context)
}

func (t *Template) renderSpans(ctx context.Context, vars map[string]value) (string, []Span, error) {
	text, r, err := t.render(ctx, vars, nil)
	if err != nil {
		return "", nil, err
	}
	return text, within(r.spans, len(text)), nil
}

// within cuts spans at the end of a text. A block whose output goes into a variable, such as one in
// {% set %}, has the place in the text that transformers gives it: where the text was by then. The
// text may end before that block's length.
func within(spans []Span, end int) []Span {
	kept := spans[:0]
	for _, s := range spans {
		if s.End = min(s.End, end); s.Start <= s.End {
			kept = append(kept, s)
		}
	}
	return kept
}

func (t *Template) render(ctx context.Context, vars map[string]value, trace *tracer) (
	text string, r *renderer, err error,
) {
	r = &renderer{ctx: ctx, limits: t.Limits, context: vars, now: t.Now, trace: trace,
		began: time.Now(), strict: t.strict, given: t.given}
	if trace != nil {
		trace.r = r
	}
	defer catch(&err)
	defer r.located()
	if r.now == nil {
		r.now = time.Now
	}
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	out := &output{r: r}
	r.root = out
	r.exec(t.body, r.newFrame(t.scope, nil), out)
	return out.String(), r, nil
}

// catch turns a panic with an *Error into an error.
func catch(err *error) {
	switch e := recover().(type) {
	case nil:
	case *Error:
		*err = e
	case runtime.Error:
		*err = &Error{Message: "internal error: " + e.Error()}
	default:
		panic(e)
	}
}

// fail ends the compilation or rendering.
func fail(format string, args ...any) {
	panic(&Error{Message: fmt.Sprintf(format, args...)})
}

func failLimit(limit string, n int) {
	e := &LimitError{limit, n}
	panic(&Error{Message: e.Error(), cause: e})
}
