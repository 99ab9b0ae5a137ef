package jinja

import (
	"cmp"
	"fmt"
	"math"
	"math/big"
	"strings"
	"unicode"
	"unicode/utf8"
)

// value is a Python value: none, bool, int, *big.Int, float64, string, markup, *list, tuple, *Dict,
// *rangeObject, *view, *generator, *undefined, or something that can be called. A nil value is a
// variable that has not been assigned.
type value = any

// none is Python's None.
type none struct{}

// markup is a string that the filter safe or escape has marked.
type markup string

// list is Python's list.
type list struct{ items []value }

// tuple is Python's tuple.
type tuple []value

// undefined is a variable, attribute or item that does not exist.
type undefined struct {
	name   string // of the variable, attribute or item
	object value  // that lacks it; nil for a variable
	hint   string // overrides the message
	// It may be used in a strict template too, as Jinja allows where an if has no else.
	lenient bool
}

// rangeObject is Python's range.
type rangeObject struct{ start, stop, step int }

func (r *rangeObject) len() int {
	switch {
	case r.step > 0 && r.start < r.stop:
		return (r.stop - r.start + r.step - 1) / r.step
	case r.step < 0 && r.start > r.stop:
		return (r.start - r.stop - r.step - 1) / -r.step
	}
	return 0
}

// view is dict.keys(), dict.values() or dict.items().
type view struct {
	kind  string // "keys", "values" or "items"
	items []value
}

// iterator returns the next item; false at the end.
type iterator func() (value, bool)

// generator is an iterator as a value. It can be consumed once.
type generator struct {
	kind string // Python's type name
	next iterator
}

// function is a callable with a name.
type function struct {
	name string
	f    func(r *renderer, a args) value
}

// opaque is an object with nothing in it, such as self.
type opaque struct{ kind string }

// callable is implemented by macros and loops.
type callable interface {
	call(r *renderer, a args) value
}

// message says why the undefined value cannot be used.
func (u *undefined) message() string {
	switch {
	case u.hint != "":
		return u.hint
	case u.object == nil:
		return fmt.Sprintf("'%s' is undefined", u.name)
	}
	return fmt.Sprintf("'%s object' has no attribute '%s'", typeName(u.object), u.name)
}

func (u *undefined) fail() { fail("%s", u.message()) }

// typeName is Python's name of a value's type.
func typeName(v value) string {
	switch v := v.(type) {
	case none:
		return "NoneType"
	case bool:
		return "bool"
	case int, *big.Int:
		return "int"
	case float64:
		return "float"
	case string:
		return "str"
	case markup:
		return "Markup"
	case *list:
		return "list"
	case tuple:
		return "tuple"
	case *Dict:
		return "dict"
	case *rangeObject:
		return "range"
	case *view:
		return "dict_" + v.kind
	case *generator:
		return v.kind
	case *undefined:
		return "Undefined"
	case *namespace:
		return "Namespace"
	case *loop:
		return "LoopContext"
	case *closure:
		return "Macro"
	case *function:
		return "function"
	case *opaque:
		return v.kind
	case *cycler:
		return "Cycler"
	case *group:
		return "_GroupTuple"
	}
	return "object"
}

// truth is Python's bool(v).
func truth(v value) bool {
	switch v := v.(type) {
	case bool:
		return v
	case none, *undefined, nil:
		return false
	case int:
		return v != 0
	case *big.Int:
		return v.Sign() != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case markup:
		return v != ""
	case *list:
		return len(v.items) > 0
	case tuple:
		return len(v) > 0
	case *Dict:
		return v.Len() > 0
	case *rangeObject:
		return v.len() > 0
	case *view:
		return len(v.items) > 0
	}
	return true
}

// truth is Python's bool(v), which fails for an undefined value if the template is strict.
func (r *renderer) truth(v value) bool {
	r.defined(v)
	return truth(v)
}

// defined fails for an undefined value if the template is strict.
func (r *renderer) defined(v value) {
	if u, ok := v.(*undefined); ok && r.strict && !u.lenient {
		u.fail()
	}
}

// text returns the characters of a str or Markup.
func text(v value) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case markup:
		return string(v), true
	}
	return "", false
}

// str is Python's str(v).
func (r *renderer) str(v value) string {
	switch v := v.(type) {
	case string:
		return v
	case markup:
		return string(v)
	case *undefined, nil:
		r.defined(v)
		return ""
	}
	return r.repr(v)
}

// repr is Python's repr(v).
func (r *renderer) repr(v value) string {
	var b strings.Builder
	r.writeRepr(&b, v, 0)
	return b.String()
}

func (r *renderer) writeRepr(b *strings.Builder, v value, depth int) {
	r.nested(depth)
	sequence := func(open, end string, items []value) {
		b.WriteString(open)
		for i, item := range items {
			if i > 0 {
				b.WriteString(", ")
			}
			r.writeRepr(b, item, depth+1)
			if b.Len() > r.limits.Bytes {
				failLimit("bytes", r.limits.Bytes)
			}
		}
		b.WriteString(end)
	}
	switch v := v.(type) {
	case none, nil:
		b.WriteString("None")
	case bool:
		if v {
			b.WriteString("True")
		} else {
			b.WriteString("False")
		}
	case int:
		fmt.Fprintf(b, "%d", v)
	case *big.Int:
		r.grow(v.BitLen() / 3)
		b.WriteString(v.String())
	case float64:
		b.WriteString(formatFloat(v))
	case string:
		r.reads(4 * len(v))
		b.WriteString(r.made(repr(v)))
	case markup:
		r.reads(4 * len(v))
		b.WriteString("Markup(" + r.made(repr(string(v))) + ")")
	case *list:
		sequence("[", "]", v.items)
	case tuple:
		if len(v) == 1 {
			sequence("(", ",)", v)
		} else {
			sequence("(", ")", v)
		}
	case *Dict:
		b.WriteString("{")
		for i, e := range v.entries {
			if i > 0 {
				b.WriteString(", ")
			}
			r.writeRepr(b, e.key, depth+1)
			b.WriteString(": ")
			r.writeRepr(b, e.value, depth+1)
			if b.Len() > r.limits.Bytes {
				failLimit("bytes", r.limits.Bytes)
			}
		}
		b.WriteString("}")
	case *rangeObject:
		if v.step == 1 {
			fmt.Fprintf(b, "range(%d, %d)", v.start, v.stop)
		} else {
			fmt.Fprintf(b, "range(%d, %d, %d)", v.start, v.stop, v.step)
		}
	case *view:
		sequence("dict_"+v.kind+"([", "])", v.items)
	case *undefined:
		b.WriteString("Undefined")
	case *group:
		sequence("(", ")", v.pair())
	case *namespace:
		b.WriteString("<Namespace ")
		r.writeRepr(b, v.attrs, depth+1)
		b.WriteString(">")
	case *loop:
		fmt.Fprintf(b, "<LoopContext %d/%d>", v.index+1, v.size())
	case *closure:
		fmt.Fprintf(b, "<Macro %s>", repr(v.name))
	case *function:
		fmt.Fprintf(b, "<function %s at 0x%012x>", v.name, 0)
	default:
		fmt.Fprintf(b, "<%s object at 0x%012x>", typeName(v), 0)
	}
}

// repr is Python's repr of a string.
func repr(s string) string {
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, "\"") {
		quote = '"'
	}
	var b strings.Builder
	b.WriteByte(quote)
	for _, c := range s {
		switch {
		case c == rune(quote) || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString("\\n")
		case c == '\r':
			b.WriteString("\\r")
		case c == '\t':
			b.WriteString("\\t")
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, "\\x%02x", c)
		case c < 0x7f || printable(c):
			b.WriteRune(c)
		case c <= 0xff:
			fmt.Fprintf(&b, "\\x%02x", c)
		case c <= 0xffff:
			fmt.Fprintf(&b, "\\u%04x", c)
		default:
			fmt.Fprintf(&b, "\\U%08x", c)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// printable is Python's str.isprintable for one character.
func printable(c rune) bool {
	if c == ' ' {
		return true
	}
	return unicode.IsPrint(c)
}

// number returns v as Python's numeric tower sees it: int, *big.Int or float64.
func number(v value) (value, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, true
		}
		return 0, true
	case int, *big.Int, float64:
		return v, true
	}
	return nil, false
}

// equal is Python's a == b.
func (r *renderer) equal(a, b value) bool { return r.equalAt(a, b, 0) }

func (r *renderer) equalAt(a, b value, depth int) bool {
	r.nested(depth)
	r.defined(a)
	r.defined(b)
	if g, ok := a.(*group); ok {
		a = g.pair()
	}
	if g, ok := b.(*group); ok {
		b = g.pair()
	}
	if x, ok := text(a); ok {
		y, ok := text(b)
		if !ok || len(x) != len(y) {
			return false
		}
		r.reads(len(x))
		return x == y
	}
	if x, ok := number(a); ok {
		y, ok := number(b)
		if !ok {
			return false
		}
		c, ordered := compareNumbers(x, y)
		return ordered && c == 0
	}
	all := func(x, y []value) bool {
		if len(x) != len(y) {
			return false
		}
		for i := range x {
			if !r.equalAt(x[i], y[i], depth+1) {
				return false
			}
		}
		return true
	}
	switch x := a.(type) {
	case none:
		_, ok := b.(none)
		return ok
	case *undefined:
		_, ok := b.(*undefined)
		return ok
	case *list:
		y, ok := b.(*list)
		return ok && all(x.items, y.items)
	case tuple:
		y, ok := b.(tuple)
		return ok && all(x, y)
	case *Dict:
		y, ok := b.(*Dict)
		if !ok || x.Len() != y.Len() {
			return false
		}
		for _, e := range x.entries {
			other, found := y.find(e.key)
			if !found || !r.equalAt(e.value, other, depth+1) {
				return false
			}
		}
		return true
	case *rangeObject:
		y, ok := b.(*rangeObject)
		if !ok || x.len() != y.len() {
			return false
		}
		n := x.len()
		return n == 0 || x.start == y.start && (n == 1 || x.step == y.step)
	case *view:
		y, ok := b.(*view)
		if !ok || x.kind == "values" || x.kind != y.kind {
			return a == b
		}
		return all(x.items, y.items)
	}
	return a == b
}

// compareNumbers orders two numbers; ordered is false with a NaN.
func compareNumbers(a, b value) (order int, ordered bool) {
	x, xInt := a.(int)
	y, yInt := b.(int)
	if xInt && yInt {
		return cmp.Compare(x, y), true
	}
	fx, xFloat := a.(float64)
	fy, yFloat := b.(float64)
	if xFloat && yFloat {
		if math.IsNaN(fx) || math.IsNaN(fy) {
			return 0, false
		}
		return cmp.Compare(fx, fy), true
	}
	if xFloat || yFloat {
		f, other, sign := fx, b, 1
		if yFloat {
			f, other, sign = fy, a, -1
		}
		if math.IsNaN(f) {
			return 0, false
		}
		if math.IsInf(f, 0) {
			return sign * int(math.Copysign(1, f)), true
		}
		exact := new(big.Rat)
		exact.SetFloat64(f)
		return sign * exact.Cmp(new(big.Rat).SetInt(bigOf(other))), true
	}
	return bigOf(a).Cmp(bigOf(b)), true
}

// compare orders a and b as Python's < does; op is the operator for the error.
func (r *renderer) compare(a, b value, op string) (order int, ordered bool) {
	r.step()
	if u, ok := a.(*undefined); ok {
		u.fail()
	}
	if u, ok := b.(*undefined); ok {
		u.fail()
	}
	if x, ok := text(a); ok {
		if y, ok := text(b); ok {
			r.reads(min(len(x), len(y)))
			return strings.Compare(x, y), true // UTF-8 sorts as code points do
		}
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			r.reads((bigBits(x) + bigBits(y)) >> 3)
			return compareNumbers(x, y)
		}
	}
	var x, y []value
	match := false
	switch a := a.(type) {
	case *list:
		if b, ok := b.(*list); ok {
			x, y, match = a.items, b.items, true
		}
	case tuple:
		if b, ok := b.(tuple); ok {
			x, y, match = a, b, true
		}
	}
	if !match {
		fail("'%s' not supported between instances of '%s' and '%s'", op, typeName(a), typeName(b))
	}
	for i := range min(len(x), len(y)) {
		if !r.equal(x[i], y[i]) {
			return r.compare(x[i], y[i], op)
		}
	}
	return cmp.Compare(len(x), len(y)), true
}

// iterate returns Python's iter(v).
func (r *renderer) iterate(v value) iterator {
	over := func(items []value) iterator {
		i := 0
		return func() (value, bool) {
			if i >= len(items) {
				return nil, false
			}
			i++
			return items[i-1], true
		}
	}
	switch v := v.(type) {
	case *list:
		return over(v.items)
	case tuple:
		return over(v)
	case *group:
		return over(v.pair())
	case *view:
		return over(v.items)
	case *Dict:
		i := 0
		return func() (value, bool) {
			if i >= len(v.entries) {
				return nil, false
			}
			i++
			return v.entries[i-1].key, true
		}
	case string:
		return characters(v)
	case markup:
		return characters(string(v))
	case *rangeObject:
		i, n := 0, v.len()
		return func() (value, bool) {
			if i >= n {
				return nil, false
			}
			i++
			return v.start + (i-1)*v.step, true
		}
	case *generator:
		return v.next
	case *undefined:
		r.defined(v)
		return func() (value, bool) { return nil, false }
	}
	fail("'%s' object is not iterable", typeName(v))
	return nil
}

func characters(s string) iterator {
	return func() (value, bool) {
		if s == "" {
			return nil, false
		}
		_, size := utf8.DecodeRuneInString(s)
		c := s[:size]
		s = s[size:]
		return c, true
	}
}

// collect is Python's list(v), as a slice of its own.
func (r *renderer) collect(v value) []value {
	var items []value
	switch v := v.(type) {
	case *list:
		items = append(items, v.items...)
	case tuple:
		items = append(items, v...)
	default:
		it := r.iterate(v)
		for {
			item, ok := it()
			if !ok {
				break
			}
			r.size(len(items) * 16)
			r.step()
			items = append(items, item)
		}
		return items
	}
	r.elements(len(items))
	return items
}

// length is Python's len(v).
func (r *renderer) length(v value) int {
	r.defined(v)
	switch v := v.(type) {
	case string:
		r.reads(len(v))
		return utf8.RuneCountInString(v)
	case markup:
		r.reads(len(v))
		return utf8.RuneCountInString(string(v))
	case *list:
		return len(v.items)
	case tuple:
		return len(v)
	case *Dict:
		return v.Len()
	case *rangeObject:
		return v.len()
	case *view:
		return len(v.items)
	case *undefined:
		return 0
	case *group:
		return 2
	case *loop:
		return v.size()
	}
	fail("object of type '%s' has no len()", typeName(v))
	return 0
}

// contains is Python's item in v.
func (r *renderer) contains(v, item value) bool {
	if s, ok := text(v); ok {
		part, ok := text(item)
		if !ok {
			if u, undef := item.(*undefined); undef {
				u.fail()
			}
			fail("'in <string>' requires string as left operand, not %s", typeName(item))
		}
		r.grow(len(s))
		return strings.Contains(s, part)
	}
	switch v := v.(type) {
	case *Dict:
		_, found := v.find(r.hashable(item))
		return found
	case *rangeObject:
		n, ok := number(item)
		if i, whole := n.(int); ok && whole {
			return v.len() > 0 && (i-v.start)%v.step == 0 && (i-v.start)/v.step >= 0 &&
				(i-v.start)/v.step < v.len()
		}
	case *list, tuple, *view, *generator, *undefined:
	case *opaque, *function, *closure, *namespace, none, bool, int, *big.Int, float64:
		fail("argument of type '%s' is not iterable", typeName(v))
	}
	it := r.iterate(v)
	for {
		candidate, ok := it()
		if !ok {
			return false
		}
		if r.equal(candidate, item) {
			return true
		}
	}
}

// args are the values of a call's arguments.
type args struct {
	positional []value
	names      []string
	named      []value
}

// count fails unless the call has min to max positional arguments and no named ones.
func (a args) count(name string, min, max int) {
	if len(a.names) > 0 {
		fail("%s() takes no keyword arguments", name)
	}
	if n := len(a.positional); n < min || n > max {
		if max == 0 {
			fail("%s() takes no arguments (%d given)", name, n)
		}
		fail("%s expected %d to %d arguments, got %d", name, min, max, n)
	}
}

// bind matches a call's arguments with parameters. A parameter that ends in "=" may be left out,
// and is nil then.
func (a args) bind(name string, params ...string) []value {
	bound := make([]value, len(params))
	if len(a.positional) > len(params) {
		fail("%s() takes %d positional arguments but %d were given",
			name, len(params), len(a.positional))
	}
	copy(bound, a.positional)
	for i, n := range a.names {
		at := -1
		for j, p := range params {
			if strings.TrimSuffix(p, "=") == n {
				at = j
			}
		}
		switch {
		case at < 0:
			fail("%s() got an unexpected keyword argument '%s'", name, n)
		case bound[at] != nil:
			fail("%s() got multiple values for argument '%s'", name, n)
		}
		bound[at] = a.named[i]
	}
	for i, p := range params {
		if bound[i] == nil && !strings.HasSuffix(p, "=") {
			fail("%s() missing 1 required positional argument: '%s'", name, p)
		}
	}
	return bound
}
