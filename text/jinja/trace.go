package jinja

import (
	"cmp"
	"context"
	"slices"
	"strings"
	goUnsafe "unsafe"
)

// MarkKind says what a [Mark] stands for.
type MarkKind int

const (
	// Turn is what a loop over the messages wrote while it was at this message.
	Turn MarkKind = iota
	// Header is text of the message's role or name.
	Header
	// Body is text of any other member: content, reasoning, tool calls.
	Body
	// Arguments is a Body from the arguments of a tool call that are a string.
	Arguments
)

// Unclear is the Message of a Mark on text that several messages, or a message and the template,
// formed together.
const Unclear = -1

// Mark is a range of bytes of a rendered text that came from a message.
type Mark struct {
	Span
	Message int // index in the variable messages, or Unclear
	Kind    MarkKind
	Member  string // the message's member, such as content; "" for a Turn
}

// Trace is a rendered text and what is known about its ranges.
type Trace struct {
	Text string
	// Generation are the {% generation %} blocks; nil if the template has none.
	Generation []Span
	// Marks are in no particular order. They follow the messages' text through trimming, slicing,
	// splitting, joining, formatting, replacing, macros and JSON.
	Marks []Mark
	// Encoded says that the template wrote Arguments as a JSON string.
	Encoded bool
}

// Trace renders the template like [Template.RenderSpans] and finds which ranges of the text stem
// from which of the messages. values["messages"] holds a *[Dict] a message, which the call changes.
func (t *Template) Trace(ctx context.Context, values map[string]any) (Trace, error) {
	vars, err := variables(values)
	if err != nil {
		return Trace{}, err
	}
	tr := &tracer{turns: map[*Dict]int{}, holders: map[value][]Mark{}}
	if messages, ok := vars["messages"].(*list); ok {
		for i, m := range messages.items {
			if d, ok := m.(*Dict); ok {
				tr.turns[d] = i
				tr.adopt(d, Mark{Message: i, Kind: Body}, "")
			}
		}
	}
	text, r, err := t.render(ctx, vars, tr)
	if err != nil {
		return Trace{}, err
	}
	generation := within(r.spans, len(text))
	if t.blocks && generation == nil {
		generation = []Span{}
	}
	return Trace{text, generation, r.root.marks, tr.encoded}, nil
}

// tracer knows the origin of strings by where their bytes are: a substring shares the bytes of the
// string it was cut from. Operations that make new bytes tell it the origin of the result. It keeps
// the strings alive, so that their addresses stay theirs.
type tracer struct {
	r       *renderer
	turns   map[*Dict]int
	holders map[value][]Mark // origin of dicts and lists
	pieces  []piece          // by address
	encoded bool
}

type piece struct {
	start uintptr
	text  string
	marks []Mark
}

// work counts the work of a rendering; there is none yet while the messages are adopted.
func (t *tracer) work(n int) {
	if t.r != nil {
		t.r.work(n)
	}
}

func address(s string) uintptr { return uintptr(goUnsafe.Pointer(goUnsafe.StringData(s))) }

// adopt notes that the strings in v have the origin of m and returns v with strings of its own. key
// is the key of v in a dict.
func (t *tracer) adopt(v value, m Mark, key string) value {
	switch v := v.(type) {
	case string:
		m.End = len(v)
		if key == "arguments" {
			m.Kind = Arguments
		}
		return t.own(v, []Mark{m})
	case *list:
		for i := range v.items {
			v.items[i] = t.adopt(v.items[i], m, "")
		}
		t.holders[v] = []Mark{m}
	case *Dict:
		_, top := t.turns[v]
		for i := range v.entries {
			e := &v.entries[i]
			name, _ := e.key.(string)
			inner := m
			if top {
				inner.Member = name
				if name == "role" || name == "name" {
					inner.Kind = Header
				}
			}
			e.value = t.adopt(e.value, inner, name)
		}
		t.holders[v] = []Mark{m}
	}
	return v
}

// own returns a copy of s with the given marks.
func (t *tracer) own(s string, marks []Mark) string {
	if s == "" || len(marks) == 0 {
		return s
	}
	s = strings.Clone(s)
	t.add(s, marks)
	return s
}

// add notes the marks of a string whose bytes nothing else uses.
func (t *tracer) add(s string, marks []Mark) {
	at, found := t.search(address(s))
	if found || s == "" {
		return
	}
	t.work((len(t.pieces) - at) >> 5)
	t.pieces = slices.Insert(t.pieces, at, piece{address(s), s, marks})
}

func (t *tracer) search(start uintptr) (int, bool) {
	return slices.BinarySearchFunc(t.pieces, start, func(p piece, start uintptr) int {
		return cmp.Compare(p.start, start)
	})
}

// marks returns the marks of a string; known is false if it holds only text of the template.
func (t *tracer) marks(s string) (marks []Mark, known bool) {
	if s == "" {
		return nil, false
	}
	start := address(s)
	at, found := t.search(start)
	if !found {
		at--
	}
	if at < 0 || start-t.pieces[at].start >= uintptr(len(t.pieces[at].text)) {
		return nil, false
	}
	shift := int(start - t.pieces[at].start)
	all := t.pieces[at].marks
	t.work(len(all) >> 3)
	for _, m := range all {
		m.Start, m.End = max(m.Start-shift, 0), min(m.End-shift, len(s))
		if m.Start < m.End {
			marks = append(marks, m)
		}
	}
	return marks, true
}

// origin returns the marks of v, or of what it holds.
func (t *tracer) origin(v value) []Mark { return t.originAt(v, 0) }

func (t *tracer) originAt(v value, depth int) (marks []Mark) {
	t.r.nested(depth)
	if s, ok := text(v); ok {
		marks, _ = t.marks(s)
		return marks
	}
	switch v := v.(type) {
	case *list:
		if known := t.holders[v]; known != nil {
			return known
		}
		for _, item := range v.items {
			marks = append(marks, t.originAt(item, depth+1)...)
		}
	case tuple:
		for _, item := range v {
			marks = append(marks, t.originAt(item, depth+1)...)
		}
	case *Dict:
		if known := t.holders[v]; known != nil {
			return known
		}
		for _, e := range v.entries {
			marks = append(marks, t.originAt(e.value, depth+1)...)
		}
	}
	return marks
}

// derived returns result with the origin of the values that it was made of.
func (r *renderer) derived(result value, from value, others ...value) value {
	t := r.trace
	if t == nil {
		return result
	}
	switch v := result.(type) {
	case string:
		return t.derive(v, from, others)
	case markup:
		return markup(t.derive(string(v), from, others))
	case *list:
		if t.holders[v] == nil {
			for i, item := range v.items {
				if s, ok := item.(string); ok {
					v.items[i] = t.derive(s, from, others)
				}
			}
		}
	}
	return result
}

func (t *tracer) derive(s string, from value, others []value) string {
	if _, known := t.marks(s); known || s == "" {
		return s
	}
	marks := t.origin(from)
	input, isText := text(from)
	for _, o := range others {
		if more := t.origin(o); len(more) > 0 {
			marks, isText = append(slices.Clip(marks), more...), false
		}
	}
	if len(marks) == 0 {
		return s
	}
	if isText && len(input) == len(s) { // a change of case, for example
		return t.own(s, marks)
	}
	whole := marks[0]
	whole.Span = Span{0, len(s)}
	covered := 0
	for _, m := range marks {
		if m.Message != whole.Message {
			whole.Message = Unclear
		}
		if m.Kind != whole.Kind {
			whole.Kind = Body
		}
		if m.Kind != Turn {
			covered += m.End - m.Start
		}
	}
	if isText && covered < len(input) { // partly the template's
		whole.Message = Unclear
	}
	return t.own(s, []Mark{whole})
}

// shown is str(v) with its origin.
func (r *renderer) shown(v value) string {
	s := r.str(v)
	if r.trace != nil {
		if _, isText := text(v); !isText {
			return r.trace.derive(s, v, nil)
		}
	}
	return s
}

// encodes notes that s is written as a JSON string.
func (r *renderer) encodes(s string) {
	if r.trace == nil {
		return
	}
	marks, _ := r.trace.marks(s)
	for _, m := range marks {
		r.trace.encoded = r.trace.encoded || m.Kind == Arguments
	}
}

// joined returns the concatenation of parts.
func (r *renderer) joined(parts ...string) string {
	if r.trace == nil {
		return strings.Join(parts, "")
	}
	out := &output{r: r}
	for _, p := range parts {
		out.WriteString(p)
	}
	return out.String()
}

// turn notes that out got a message's turn from start on.
func (r *renderer) turn(v value, out *output, start int) {
	d, ok := v.(*Dict)
	if !ok {
		return
	}
	if i, ok := r.trace.turns[d]; ok && out.Len() > start {
		out.marks = append(out.marks, Mark{Span: Span{start, out.Len()}, Message: i, Kind: Turn})
	}
}

// output collects text and the marks on it.
type output struct {
	strings.Builder
	r     *renderer
	marks []Mark
}

// write appends text to a value or to the rendering, which have a limit.
func (o *output) write(s string) {
	o.r.size(o.Len() + len(s))
	o.r.reads(len(s))
	o.WriteString(s)
}

// WriteString appends s and its marks.
func (o *output) WriteString(s string) (int, error) {
	if o.r.trace != nil {
		marks, _ := o.r.trace.marks(s)
		o.r.work(len(marks))
		for _, m := range marks {
			m.Start += o.Len()
			m.End += o.Len()
			o.mark(m)
		}
	}
	return o.Builder.WriteString(s)
}

// mark notes the origin of text. Text that continues the text before it extends its mark: a message
// that is written letter by letter has one.
func (o *output) mark(m Mark) {
	if n := len(o.marks); n > 0 {
		last := &o.marks[n-1]
		if last.End == m.Start && last.Message == m.Message && last.Kind == m.Kind &&
			last.Member == m.Member {
			last.End = m.End
			return
		}
	}
	o.marks = append(o.marks, m)
}

// String returns the text. Its origin is known from then on.
func (o *output) String() string {
	s := o.Builder.String()
	if o.r.trace != nil && len(o.marks) > 0 {
		o.r.trace.add(s, o.marks)
	}
	return s
}
