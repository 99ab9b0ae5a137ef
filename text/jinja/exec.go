package jinja

import (
	"context"
	"strings"
	"time"
)

// stmt is a statement of a template.
type stmt interface {
	exec(r *renderer, f *frame, out *output) signal
}

// signal says how a statement ended.
type signal int

const (
	done signal = iota
	broke
	continued
)

// frame holds the variables of one execution of a block. A nil variable has not been assigned.
type frame struct {
	vars   []value
	parent *frame
}

func (r *renderer) newFrame(s *scope, parent *frame) *frame {
	r.work(len(s.names) >> 2)
	return &frame{make([]value, len(s.names)), parent}
}

func (f *frame) reset() { clear(f.vars) }

// renderer is the state of one rendering.
type renderer struct {
	ctx     context.Context
	limits  Limits
	context map[string]value
	now     func() time.Time
	root    *output // its length counts for generation spans
	spans   []Span
	trace   *tracer // nil unless the origin of text is traced
	began   time.Time
	steps   int
	check   int    // steps at which look looks again
	calls   int    // depth of macro calls
	body    string // the captured text that a filter block's first filter reads
	line    int
	strict  bool // undefined values may not be used
	given   map[string]filter
}

// step counts a unit of work and ends the rendering if there were too many, it took too long or ctx
// was cancelled.
func (r *renderer) step() {
	if r.steps++; r.steps >= r.check {
		r.look()
	}
}

// work counts n units at once: the elements that a filter visits, for example.
func (r *renderer) work(n int) {
	if r.steps += min(n, r.limits.Steps) + 1; r.steps >= r.check {
		r.look()
	}
}

// look compares the steps, the time and the context with their limits.
func (r *renderer) look() {
	if r.steps > r.limits.Steps {
		failLimit("steps", r.limits.Steps)
	}
	if err := r.ctx.Err(); err != nil {
		panic(&Error{Line: r.line, Message: err.Error(), cause: err})
	}
	if time.Since(r.began) > r.limits.Time {
		failLimit("time", int(r.limits.Time.Milliseconds()))
	}
	r.check = min(r.steps+1024, r.limits.Steps+1)
}

// reads counts the work of reading a text of n bytes.
func (r *renderer) reads(n int) { r.work(n >> 6) }

// nested counts a visit to a value that is depth levels inside another.
func (r *renderer) nested(depth int) {
	if depth > r.limits.Nesting {
		failLimit("nesting", r.limits.Nesting)
	}
	r.step()
}

// size checks that a value of n bytes may exist.
func (r *renderer) size(n int) {
	if n < 0 || n > r.limits.Bytes {
		failLimit("bytes", r.limits.Bytes)
	}
}

// grow checks the size of a text of n bytes before it is made, and counts the work of making it.
func (r *renderer) grow(n int) {
	r.size(n)
	r.reads(n)
}

// made does the same for a text that was made, and returns it.
func (r *renderer) made(s string) string {
	r.grow(len(s))
	return s
}

// elements does the same for a list of n elements.
func (r *renderer) elements(n int) {
	if n > r.limits.Bytes {
		failLimit("bytes", r.limits.Bytes)
	}
	r.size(n * 16)
	r.work(n >> 1)
}

func (r *renderer) exec(body []stmt, f *frame, out *output) signal {
	for _, s := range body {
		r.step()
		if sig := s.exec(r, f, out); sig != done {
			return sig
		}
	}
	return done
}

// capture runs body and returns its output.
func (r *renderer) capture(body []stmt, f *frame) (string, signal) {
	out := &output{r: r}
	sig := r.exec(body, f, out)
	return out.String(), sig
}

// at notes the line for errors.
func (r *renderer) at(line int) {
	r.line = line
	r.step()
}

// located adds the current line to an error that passes by.
func (r *renderer) located() {
	if e := recover(); e != nil {
		if failure, ok := e.(*Error); ok && failure.Line == 0 {
			failure.Line = r.line
		}
		panic(e)
	}
}

type dataStmt struct{ text string }

func (s *dataStmt) exec(_ *renderer, _ *frame, out *output) signal {
	out.write(s.text)
	return done
}

type printStmt struct {
	line int
	expr expr
}

func (s *printStmt) exec(r *renderer, f *frame, out *output) signal {
	r.at(s.line)
	switch v := s.expr.eval(r, f).(type) {
	case string:
		out.write(v)
	default:
		out.write(r.shown(v))
	}
	return done
}

type groupStmt struct{ body []stmt }

func (s *groupStmt) exec(r *renderer, f *frame, out *output) signal {
	return r.exec(s.body, f, out)
}

type ifStmt struct {
	tests  []expr
	bodies [][]stmt
	orElse []stmt
}

func (s *ifStmt) exec(r *renderer, f *frame, out *output) signal {
	for i, test := range s.tests {
		if r.truth(test.eval(r, f)) {
			return r.exec(s.bodies[i], f, out)
		}
	}
	return r.exec(s.orElse, f, out)
}

type breakStmt struct{}

func (breakStmt) exec(*renderer, *frame, *output) signal { return broke }

type continueStmt struct{}

func (continueStmt) exec(*renderer, *frame, *output) signal { return continued }

type setStmt struct {
	line   int
	target target
	expr   expr
}

func (s *setStmt) exec(r *renderer, f *frame, _ *output) signal {
	r.at(s.line)
	s.target.assign(r, f, s.expr.eval(r, f))
	return done
}

// setBlockStmt is {% set x %}…{% endset %}, or {% filter f %}…{% endfilter %} without a target.
type setBlockStmt struct {
	line   int
	target target
	filter expr
	scope  *scope
	body   []stmt
}

func (s *setBlockStmt) exec(r *renderer, f *frame, out *output) signal {
	r.at(s.line)
	text, sig := r.capture(s.body, r.newFrame(s.scope, f))
	var v value = text
	if s.filter != nil {
		outer := r.body
		r.body = text
		v = s.filter.eval(r, f)
		r.body = outer
	}
	if s.target != nil {
		s.target.assign(r, f, v)
	} else {
		out.write(r.str(v))
	}
	return sig
}

type withStmt struct {
	line    int
	targets []target
	values  []expr
	scope   *scope
	body    []stmt
}

func (s *withStmt) exec(r *renderer, f *frame, out *output) signal {
	r.at(s.line)
	inner := r.newFrame(s.scope, f)
	for i, t := range s.targets {
		t.assign(r, inner, s.values[i].eval(r, f))
	}
	return r.exec(s.body, inner, out)
}

type generationStmt struct {
	line  int
	scope *scope
	body  []stmt
}

func (s *generationStmt) exec(r *renderer, f *frame, out *output) signal {
	r.at(s.line)
	text, sig := r.capture(s.body, r.newFrame(s.scope, f))
	start := r.root.Len()
	r.spans = append(r.spans, Span{start, start + len(text)})
	out.write(text)
	return sig
}

type forStmt struct {
	line      int
	target    target
	iter      expr
	test      expr
	recursive bool
	scope     *scope
	loop      int // slot of the variable loop
	body      []stmt
	elseScope *scope
	orElse    []stmt
}

func (s *forStmt) exec(r *renderer, f *frame, out *output) signal {
	r.at(s.line)
	s.run(r, f, out, s.iter.eval(r, f), 0)
	return done
}

// run iterates over v; depth counts recursive calls of the loop.
func (s *forStmt) run(r *renderer, f *frame, out *output, v value, depth int) {
	it := r.iterate(v)
	if s.test != nil {
		it = s.filtered(r, f, it)
	}
	l := &loop{r: r, it: it, depth: depth, stmt: s, frame: f, length: -1}
	inner := r.newFrame(s.scope, f)
	// Jinja runs else unless a pass through the body reached its end.
	completed := false
	for l.advance() {
		r.work(len(inner.vars) >> 6)
		inner.reset()
		inner.vars[s.loop] = l
		s.target.assign(r, inner, l.current)
		start := out.Len()
		sig := r.exec(s.body, inner, out)
		if r.trace != nil {
			r.turn(l.current, out, start)
		}
		if sig == broke {
			break
		}
		completed = completed || sig == done
		r.line = s.line
	}
	if !completed && s.orElse != nil {
		r.exec(s.orElse, r.newFrame(s.elseScope, f), out)
	}
}

// filtered leaves out the items that fail the loop's test.
func (s *forStmt) filtered(r *renderer, f *frame, it iterator) iterator {
	inner := r.newFrame(s.scope, f)
	return func() (value, bool) {
		for {
			v, ok := it()
			if !ok {
				return nil, false
			}
			r.work(len(inner.vars) >> 6)
			inner.reset()
			s.target.assign(r, inner, v)
			if r.truth(s.test.eval(r, inner)) {
				return v, true
			}
		}
	}
}

// loop is the variable of that name inside a for block.
type loop struct {
	r       *renderer
	it      iterator
	stmt    *forStmt
	frame   *frame
	index   int // of the current item, from 0; -1 if there was none
	started bool
	depth   int
	length  int // -1 until it is known

	previous, current value
	ahead             []value // items read before their turn
	changed           []value
	hasChanged        bool
}

// advance moves to the next item.
func (l *loop) advance() bool {
	v, ok := l.pull()
	if !l.started {
		l.started, l.index = true, -1
	}
	if !ok {
		return false
	}
	l.previous, l.current = l.current, v
	l.index++
	return true
}

func (l *loop) pull() (value, bool) {
	if len(l.ahead) > 0 {
		v := l.ahead[0]
		l.ahead = l.ahead[1:]
		return v, true
	}
	return l.it()
}

func (l *loop) peek() (value, bool) {
	if len(l.ahead) == 0 {
		v, ok := l.it()
		if !ok {
			return nil, false
		}
		l.ahead = append(l.ahead, v)
	}
	return l.ahead[0], true
}

// size reads the remaining items to count them.
func (l *loop) size() int {
	if l.length < 0 {
		for {
			v, ok := l.it()
			if !ok {
				break
			}
			l.r.size(len(l.ahead) * 16)
			l.r.step()
			l.ahead = append(l.ahead, v)
		}
		l.length = l.index + 1 + len(l.ahead)
	}
	return l.length
}

// attribute returns an attribute of the loop; nil if there is none of that name.
func (l *loop) attribute(name string) value {
	switch name {
	case "index":
		return l.index + 1
	case "index0":
		return l.index
	case "first":
		return l.index == 0
	case "last":
		_, more := l.peek()
		return !more
	case "length":
		return l.size()
	case "revindex":
		return l.size() - l.index
	case "revindex0":
		return l.size() - l.index - 1
	case "depth":
		return l.depth + 1
	case "depth0":
		return l.depth
	case "previtem":
		if l.index == 0 {
			return &undefined{hint: "there is no previous item"}
		}
		return l.previous
	case "nextitem":
		v, ok := l.peek()
		if !ok {
			return &undefined{hint: "there is no next item"}
		}
		return v
	case "cycle":
		return &function{"cycle", func(r *renderer, a args) value {
			if len(a.positional) == 0 {
				fail("no items for cycling given")
			}
			return a.positional[l.index%len(a.positional)]
		}}
	case "changed":
		return &function{"changed", func(r *renderer, a args) value {
			same := l.hasChanged && len(l.changed) == len(a.positional)
			for i := 0; same && i < len(a.positional); i++ {
				same = r.equal(l.changed[i], a.positional[i])
			}
			l.changed, l.hasChanged = a.positional, true
			return !same
		}}
	}
	return nil
}

// call renders the body of a recursive loop over another iterable.
func (l *loop) call(r *renderer, a args) value {
	if !l.stmt.recursive {
		fail("The loop must have the 'recursive' marker to be called recursively.")
	}
	a.count("loop", 1, 1)
	defer r.descend()()
	out := &output{r: r}
	l.stmt.run(r, l.frame, out, a.positional[0], l.depth+1)
	return out.String()
}

// descend counts a level of calls; its result leaves it.
func (r *renderer) descend() func() {
	r.calls++
	if r.calls > r.limits.MacroDepth {
		failLimit("macro depth", r.limits.MacroDepth)
	}
	return func() { r.calls-- }
}

// macro is the definition of a macro or of a call block.
type macro struct {
	name                                string
	scope                               *scope
	params                              []string
	slots                               []int
	defaults                            []expr // of the last parameters
	special                             []int  // slots of caller, varargs and kwargs
	body                                []stmt
	usesCaller, usesVarargs, usesKwargs bool
}

// closure is a macro with the variables around it.
type closure struct {
	*macro
	frame *frame
}

type macroStmt struct {
	line  int
	slot  int
	macro *macro
}

func (s *macroStmt) exec(_ *renderer, f *frame, _ *output) signal {
	f.vars[s.slot] = &closure{s.macro, f}
	return done
}

type callStmt struct {
	line  int
	call  *callExpr
	macro *macro
}

func (s *callStmt) exec(r *renderer, f *frame, out *output) signal {
	r.at(s.line)
	callee := s.call.callee.eval(r, f)
	a := s.call.args.eval(r, f)
	a.names = append(a.names, "caller")
	a.named = append(a.named, &closure{s.macro, f})
	out.write(r.str(r.call(callee, a)))
	return done
}

func (c *closure) call(r *renderer, a args) value {
	defer r.descend()()
	f := r.newFrame(c.scope, c.frame)
	given := min(len(a.positional), len(c.params))
	for i := range given {
		f.vars[c.slots[i]] = a.positional[i]
	}
	extra := a.positional[given:]
	if len(extra) > 0 && !c.usesVarargs {
		fail("macro '%s' takes not more than %d argument(s)", c.name, len(c.params))
	}
	kwargs := NewDict()
	r.work(len(c.params) + len(a.names)*(len(c.params)+1)>>3)
	for i, name := range a.names {
		at := -1
		for j, p := range c.params {
			if p == name {
				at = j
			}
		}
		switch {
		case at >= 0 && at < given:
			fail("macro '%s' got multiple values for argument '%s'", c.name, name)
		case at >= 0:
			f.vars[c.slots[at]] = a.named[i]
		case name == "caller" && c.usesCaller:
			f.vars[c.special[0]] = a.named[i]
		case c.usesKwargs:
			kwargs.set(name, a.named[i])
		default:
			fail("macro '%s' takes no keyword argument '%s'", c.name, name)
		}
	}
	if c.usesCaller && f.vars[c.special[0]] == nil {
		f.vars[c.special[0]] = &undefined{hint: "No caller defined"}
	}
	if c.usesVarargs {
		f.vars[c.special[1]] = tuple(extra)
	}
	if c.usesKwargs {
		f.vars[c.special[2]] = kwargs
	}
	optional := len(c.params) - len(c.defaults)
	for i, slot := range c.slots {
		if f.vars[slot] != nil {
			continue
		}
		if i >= optional {
			f.vars[slot] = c.defaults[i-optional].eval(r, f)
		} else {
			f.vars[slot] = &undefined{hint: "parameter '" + c.params[i] + "' was not provided"}
		}
	}
	line := r.line
	text, _ := r.capture(c.body, f)
	r.line = line
	return text
}

// target is what an assignment writes to.
type target interface {
	assign(r *renderer, f *frame, v value)
}

type nameTarget struct{ slot int }

func (t nameTarget) assign(_ *renderer, f *frame, v value) { f.vars[t.slot] = v }

type tupleTarget struct{ items []target }

func (t *tupleTarget) assign(r *renderer, f *frame, v value) {
	switch v.(type) {
	case int, bool, float64, none:
		fail("cannot unpack non-iterable %s object", typeName(v))
	}
	list := r.collect(v)
	switch {
	case len(list) > len(t.items):
		fail("too many values to unpack (expected %d)", len(t.items))
	case len(list) < len(t.items):
		fail("not enough values to unpack (expected %d, got %d)", len(t.items), len(list))
	}
	for i, item := range t.items {
		item.assign(r, f, list[i])
	}
}

type attrTarget struct {
	object *nameExpr
	name   string
}

func (t *attrTarget) assign(r *renderer, f *frame, v value) {
	ns, ok := t.object.eval(r, f).(*namespace)
	if !ok {
		fail("cannot assign attribute on non-namespace object")
	}
	ns.set(t.name, v)
}

// namespace is the object of {% set ns = namespace() %}.
type namespace struct{ attrs *Dict }

func (n *namespace) set(name string, v value) {
	if strings.HasPrefix(name, "_") {
		fail("Chat templates cannot store underscore-prefixed attributes on a namespace, "+
			"but got '%s'. "+
			"Please rename the attribute.", name)
	}
	n.attrs.set(name, v)
}
