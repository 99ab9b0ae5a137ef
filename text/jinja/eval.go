package jinja

import (
	"math/big"
	"unicode/utf8"
)

// expr is an expression of a template.
type expr interface {
	eval(r *renderer, f *frame) value
}

type constExpr struct{ value value }

func (e constExpr) eval(*renderer, *frame) value { return e.value }

// bodyExpr is the captured text of a filter block.
type bodyExpr struct{}

func (bodyExpr) eval(r *renderer, _ *frame) value { return r.body }

// nameExpr is a variable. Places lists where it may be assigned, innermost first: how many frames
// outwards, and the slot there.
type nameExpr struct {
	name   string
	scope  *scope
	places []place
}

type place struct{ out, slot int }

func (e *nameExpr) resolve() {
	out := 0
	for s := e.scope; s != nil; s = s.parent {
		if slot, assigned := s.slots[e.name]; assigned {
			e.places = append(e.places, place{out, slot})
		}
		out++
	}
}

func (e *nameExpr) eval(r *renderer, f *frame) value {
	out := 0
	for _, p := range e.places {
		for out < p.out {
			f = f.parent
			out++
		}
		if v := f.vars[p.slot]; v != nil {
			return v
		}
	}
	if v, ok := r.context[e.name]; ok {
		return v
	}
	if v, ok := globals[e.name]; ok {
		return v
	}
	return &undefined{name: e.name}
}

type tupleExpr struct{ items []expr }

func (e *tupleExpr) eval(r *renderer, f *frame) value { return tuple(evalAll(r, f, e.items)) }

type listExpr struct{ items []expr }

func (e *listExpr) eval(r *renderer, f *frame) value { return &list{evalAll(r, f, e.items)} }

func evalAll(r *renderer, f *frame, items []expr) []value {
	r.work(len(items))
	values := make([]value, len(items))
	for i, item := range items {
		values[i] = item.eval(r, f)
	}
	return values
}

type dictExpr struct{ keys, values []expr }

func (e *dictExpr) eval(r *renderer, f *frame) value {
	r.work(2 * len(e.keys))
	d := NewDict()
	for i, key := range e.keys {
		k := r.hashable(key.eval(r, f))
		d.set(k, e.values[i].eval(r, f))
	}
	return d
}

type conditionalExpr struct{ then, test, orElse expr }

func (e *conditionalExpr) eval(r *renderer, f *frame) value {
	r.step()
	switch {
	case r.truth(e.test.eval(r, f)):
		return e.then.eval(r, f)
	case e.orElse != nil:
		return e.orElse.eval(r, f)
	}
	return &undefined{hint: "the inline if-expression evaluated to false " +
		"and no else section was defined.", lenient: true}
}

type orExpr struct{ a, b expr }

func (e *orExpr) eval(r *renderer, f *frame) value {
	r.step()
	if v := e.a.eval(r, f); r.truth(v) {
		return v
	}
	return e.b.eval(r, f)
}

type andExpr struct{ a, b expr }

func (e *andExpr) eval(r *renderer, f *frame) value {
	r.step()
	if v := e.a.eval(r, f); !r.truth(v) {
		return v
	}
	return e.b.eval(r, f)
}

type notExpr struct{ e expr }

func (e *notExpr) eval(r *renderer, f *frame) value {
	r.step()
	return !r.truth(e.e.eval(r, f))
}

// compareExpr is a chain of comparisons, such as 0 < x <= 9.
type compareExpr struct {
	first    expr
	ops      []string
	operands []expr
}

func (e *compareExpr) eval(r *renderer, f *frame) value {
	a := e.first.eval(r, f)
	for i, op := range e.ops {
		b := e.operands[i].eval(r, f)
		if !r.holds(op, a, b) {
			return false
		}
		a = b
	}
	return true
}

func (r *renderer) holds(op string, a, b value) bool {
	switch op {
	case "==":
		return r.equal(a, b)
	case "!=":
		return !r.equal(a, b)
	case "in":
		return r.contains(b, a)
	case "not in":
		return !r.contains(b, a)
	}
	order, ordered := r.compare(a, b, op)
	switch {
	case !ordered:
		return false
	case op == "<":
		return order < 0
	case op == "<=":
		return order <= 0
	case op == ">":
		return order > 0
	}
	return order >= 0
}

// concatExpr is a ~ b ~ c.
type concatExpr struct{ parts []expr }

func (e *concatExpr) eval(r *renderer, f *frame) value {
	r.work(len(e.parts))
	var joined [8]string
	parts, total := joined[:0], 0
	for _, p := range e.parts {
		s := r.shown(p.eval(r, f))
		total += len(s)
		parts = append(parts, s)
	}
	r.grow(total)
	return r.joined(parts...)
}

type binaryExpr struct {
	op   byte
	a, b expr
}

func (e *binaryExpr) eval(r *renderer, f *frame) value {
	return r.arithmetic(e.op, e.a.eval(r, f), e.b.eval(r, f))
}

type negateExpr struct{ e expr }

func (e *negateExpr) eval(r *renderer, f *frame) value {
	r.step()
	switch v := e.e.eval(r, f).(type) {
	case *undefined:
		v.fail()
	case float64:
		return -v
	default:
		n, ok := number(v)
		if !ok {
			fail("bad operand type for unary -: '%s'", typeName(v))
		}
		return normalize(new(big.Int).Neg(bigOf(n)))
	}
	return nil
}

type positiveExpr struct{ e expr }

func (e *positiveExpr) eval(r *renderer, f *frame) value {
	r.step()
	v := e.e.eval(r, f)
	if u, ok := v.(*undefined); ok {
		u.fail()
	}
	n, ok := number(v)
	if !ok {
		fail("bad operand type for unary +: '%s'", typeName(v))
	}
	return n
}

type attrExpr struct {
	object expr
	name   string
}

func (e *attrExpr) eval(r *renderer, f *frame) value {
	return r.attribute(e.object.eval(r, f), e.name)
}

// attribute is object.name: an attribute, or else an item.
func (r *renderer) attribute(object value, name string) value {
	r.step()
	switch o := object.(type) {
	case *Dict:
		// A dict has few attributes, so its items come first where the name is none of them.
		if v := method(object, name); v != nil {
			return v
		}
		if v, found := o.find(name); found {
			return v
		}
		return &undefined{name: name, object: object}
	case *undefined:
		o.fail()
	case *namespace:
		if v, found := o.attrs.find(name); found {
			return v
		}
		return &undefined{name: name, object: object}
	case *loop:
		if v := o.attribute(name); v != nil {
			return v
		}
		return &undefined{name: name, object: object}
	case *closure:
		if v := o.attribute(name); v != nil {
			return v
		}
		return &undefined{name: name, object: object}
	}
	if v := method(object, name); v != nil {
		return v
	}
	return &undefined{name: name, object: object}
}

// attribute returns an attribute of a macro; nil if there is none of that name.
func (c *closure) attribute(name string) value {
	switch name {
	case "name":
		return c.name
	case "arguments":
		names := make(tuple, len(c.params))
		for i, p := range c.params {
			names[i] = p
		}
		return names
	case "caller":
		return c.usesCaller
	case "catch_kwargs":
		return c.usesKwargs
	case "catch_varargs":
		return c.usesVarargs
	}
	return nil
}

type itemExpr struct{ object, index expr }

func (e *itemExpr) eval(r *renderer, f *frame) value {
	object := e.object.eval(r, f)
	if s, ok := e.index.(*sliceExpr); ok {
		return r.slice(object, s, f)
	}
	return r.item(object, e.index.eval(r, f))
}

// item is object[index]: an item, or else an attribute.
func (r *renderer) item(object, index value) value {
	r.step()
	lookup := func(items []value) (value, bool) {
		n, ok := number(index)
		i, whole := n.(int)
		if !ok || !whole {
			return nil, false
		}
		if i < 0 {
			i += len(items)
		}
		if i < 0 || i >= len(items) {
			return nil, false
		}
		return items[i], true
	}
	var v value
	found := false
	switch o := object.(type) {
	case *undefined:
		o.fail()
	case *Dict:
		switch index.(type) {
		case *list, *Dict:
		default:
			v, found = o.find(r.hashable(index))
		}
	case *list:
		v, found = lookup(o.items)
	case tuple:
		v, found = lookup(o)
	case *group:
		v, found = lookup(o.pair())
	case *rangeObject:
		if n, ok := index.(int); ok {
			if n < 0 {
				n += o.len()
			}
			if n >= 0 && n < o.len() {
				v, found = o.start+n*o.step, true
			}
		}
	case string:
		v, found = r.character(o, index)
	case markup:
		if v, found = r.character(string(o), index); found {
			v = markup(v.(string))
		}
	}
	if found {
		return v
	}
	name, ok := text(index)
	if !ok {
		return &undefined{name: r.str(index), object: object}
	}
	switch o := object.(type) {
	case *Dict:
		if v := method(object, name); v != nil {
			return v
		}
		return &undefined{name: name, object: o}
	}
	return r.attribute(object, name)
}

func (r *renderer) character(s string, index value) (value, bool) {
	n, ok := number(index)
	i, whole := n.(int)
	if !ok || !whole {
		return nil, false
	}
	if i < 0 {
		r.reads(len(s))
		i += utf8.RuneCountInString(s)
	}
	if i < 0 {
		return nil, false
	}
	r.reads(min(len(s), i))
	for at, c := range s {
		if i == 0 {
			if c == utf8.RuneError {
				return string(c), true
			}
			return s[at : at+utf8.RuneLen(c)], true
		}
		i--
	}
	return nil, false
}

// sliceExpr is start:stop:step inside a subscript.
type sliceExpr struct{ parts [3]expr }

func (e *sliceExpr) eval(*renderer, *frame) value {
	fail("a slice cannot be part of a tuple subscript")
	return nil
}

func (r *renderer) slice(object value, e *sliceExpr, f *frame) value {
	var bounds [3]*int
	for k, part := range e.parts {
		if part == nil {
			continue
		}
		v := part.eval(r, f)
		if u, ok := v.(*undefined); ok {
			u.fail()
		}
		if _, ok := v.(none); ok {
			continue
		}
		n, _ := number(v)
		switch n := n.(type) {
		case int:
			bounds[k] = &n
		case *big.Int:
			far := n.Sign() * (1 << 40)
			bounds[k] = &far
		default:
			fail("slice indices must be integers or None or have an __index__ method")
		}
	}
	r.step()
	pick := func(items []value) []value {
		indices := sliceIndices(bounds, len(items))
		r.elements(len(indices))
		chosen := make([]value, len(indices))
		for k, i := range indices {
			chosen[k] = items[i]
		}
		return chosen
	}
	cut := func(s string) string {
		r.reads(len(s))
		if (bounds[2] == nil || *bounds[2] == 1) && isASCII(s) {
			start, stop, _ := sliceBounds(bounds, len(s))
			return s[start:max(start, stop)]
		}
		runes := []rune(s)
		r.grow(len(runes))
		chosen := make([]rune, 0, len(runes))
		for _, i := range sliceIndices(bounds, len(runes)) {
			chosen = append(chosen, runes[i])
		}
		return string(chosen)
	}
	switch o := object.(type) {
	case string:
		return r.derived(cut(o), o)
	case markup:
		return r.derived(markup(cut(string(o))), o)
	case *list:
		return &list{pick(o.items)}
	case tuple:
		return tuple(pick(o))
	case *group:
		return tuple(pick(o.pair()))
	case *rangeObject:
		start, stop, step := sliceBounds(bounds, o.len())
		return &rangeObject{o.start + start*o.step, o.start + stop*o.step, o.step * step}
	case *undefined:
		o.fail()
	}
	if _, ok := object.(*Dict); ok {
		fail("unhashable type: 'slice'")
	}
	fail("'%s' object is not subscriptable", typeName(object))
	return nil
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// sliceBounds is Python's slice.indices(n).
func sliceBounds(bounds [3]*int, n int) (start, stop, step int) {
	step = 1
	if bounds[2] != nil {
		if step = *bounds[2]; step == 0 {
			fail("slice step cannot be zero")
		}
	}
	low, high := 0, n
	if step < 0 {
		low, high = -1, n-1
	}
	clip := func(p *int, otherwise int) int {
		if p == nil {
			return otherwise
		}
		i := *p
		if i < 0 {
			i += n
		}
		return max(low, min(high, i))
	}
	if step > 0 {
		return clip(bounds[0], low), clip(bounds[1], high), step
	}
	return clip(bounds[0], high), clip(bounds[1], low), step
}

func sliceIndices(bounds [3]*int, n int) []int {
	start, stop, step := sliceBounds(bounds, n)
	count := 0
	switch {
	case step > 0 && start < stop:
		count = (stop-start-1)/step + 1
	case step < 0 && start > stop:
		count = (start-stop-1)/-step + 1
	}
	list := make([]int, 0, count)
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		list = append(list, i)
	}
	return list
}

// arguments are the expressions of a call's arguments.
type arguments struct {
	positional []expr
	names      []string
	named      []expr
	list, dict expr // *args and **kwargs
}

func (a *arguments) eval(r *renderer, f *frame) (out args) {
	if len(a.positional) > 0 {
		out.positional = evalAll(r, f, a.positional)
	}
	if len(a.named) > 0 {
		out.names = append(out.names, a.names...)
		out.named = evalAll(r, f, a.named)
	}
	if a.list != nil {
		out.positional = append(out.positional, r.collect(a.list.eval(r, f))...)
	}
	if a.dict != nil {
		d, ok := a.dict.eval(r, f).(*Dict)
		if !ok {
			fail("argument after ** must be a mapping")
		}
		for _, e := range d.entries {
			name, ok := text(e.key)
			if !ok {
				fail("keywords must be strings")
			}
			r.step()
			out.names = append(out.names, name)
			out.named = append(out.named, e.value)
		}
	}
	r.work(len(out.names) * min(len(out.names), r.limits.Steps) >> 3)
	for i, name := range out.names {
		for _, other := range out.names[:i] {
			if name == other {
				fail("got multiple values for keyword argument '%s'", name)
			}
		}
	}
	return out
}

type callExpr struct {
	callee expr
	args   arguments
}

func (e *callExpr) eval(r *renderer, f *frame) value {
	if attr, ok := e.callee.(*attrExpr); ok && r.trace != nil {
		object := attr.object.eval(r, f)
		callee := r.attribute(object, attr.name)
		a := e.args.eval(r, f)
		result := r.call(callee, a)
		if _, isText := text(object); isText {
			return r.derived(result, object, append(a.positional, a.named...)...)
		}
		return result
	}
	callee := e.callee.eval(r, f)
	return r.call(callee, e.args.eval(r, f))
}

func (r *renderer) call(callee value, a args) value {
	r.step()
	switch c := callee.(type) {
	case *function:
		return c.f(r, a)
	case callable:
		return c.call(r, a)
	case *undefined:
		c.fail()
	}
	fail("'%s' object is not callable", typeName(callee))
	return nil
}

type filterExpr struct {
	operand expr
	name    string
	filter  func(r *renderer, v value, a args) value
	args    arguments
}

func (e *filterExpr) eval(r *renderer, f *frame) value {
	r.step()
	v := e.operand.eval(r, f)
	if e.filter == nil {
		fail("No filter named '%s'.", e.name)
	}
	if r.trace == nil {
		return e.filter(r, v, e.args.eval(r, f))
	}
	a := e.args.eval(r, f)
	return r.derived(e.filter(r, v, a), v, append(a.positional, a.named...)...)
}

type testExpr struct {
	operand expr
	name    string
	test    func(r *renderer, v value, a args) bool
	args    arguments
}

func (e *testExpr) eval(r *renderer, f *frame) value {
	r.step()
	v := e.operand.eval(r, f)
	if e.test == nil {
		fail("No test named '%s'.", e.name)
	}
	return e.test(r, v, e.args.eval(r, f))
}
