package jinja

import (
	"fmt"
	"html"
	"math"
	"math/big"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

type filter = func(r *renderer, v value, a args) value

// filters are Jinja's filters, with transformers' tojson. A nil filter is refused by Compile.
var filters map[string]filter

// unsupportedFilters exist in Jinja but not here.
var unsupportedFilters = []string{"filesizeformat", "pprint", "random", "urlize", "wordwrap",
	"xmlattr"}

func init() {
	filters = map[string]filter{
		"abs": filterAbs, "attr": filterAttr, "batch": filterBatch,
		"capitalize": onText(capitalize), "center": filterCenter, "count": filterLength,
		"d": filterDefault, "default": filterDefault,
		"dictsort": filterDictsort, "e": filterEscape, "escape": filterEscape, "first": filterFirst,
		"float": filterFloat, "forceescape": filterForceEscape, "format": filterFormat,
		"groupby": filterGroupby, "indent": filterIndent, "int": filterInt, "items": filterItems,
		"join": filterJoin, "last": filterLast, "length": filterLength, "list": filterList,
		"lower": onText(lower), "map": filterMap, "max": filterMax, "min": filterMin,
		"reject": selector(false, false), "rejectattr": selector(false, true),
		"replace": filterReplace,
		"reverse": filterReverse, "round": filterRound, "safe": filterSafe,
		"select": selector(true, false), "selectattr": selector(true, true), "slice": filterSlice,
		"sort": filterSort, "string": filterString, "striptags": filterStriptags, "sum": filterSum,
		"title": filterTitle, "tojson": filterToJSON, "trim": filterTrim,
		"truncate": filterTruncate, "unique": filterUnique, "upper": onText(upper),
		"urlencode": filterURLEncode, "wordcount": filterWordcount,
	}
}

// onText makes a filter of a function of the value's text.
func onText(f func(string) string) filter {
	return func(r *renderer, v value, a args) value {
		a.bind("filter")
		s := r.str(v)
		r.grow(len(s))
		if _, ok := v.(markup); ok {
			return markup(f(s))
		}
		return f(s)
	}
}

func filterAbs(_ *renderer, v value, a args) value {
	a.bind("abs")
	if u, ok := v.(*undefined); ok {
		u.fail()
	}
	n, ok := number(v)
	if !ok {
		fail("bad operand type for abs(): '%s'", typeName(v))
	}
	if f, ok := n.(float64); ok {
		return math.Abs(f)
	}
	return normalize(new(big.Int).Abs(bigOf(n)))
}

func filterAttr(r *renderer, v value, a args) value {
	b := a.bind("attr", "name")
	name := r.str(b[0])
	switch o := v.(type) {
	case *Dict, string, markup, *list, tuple, int, float64, bool, *big.Int, *rangeObject:
		if m := method(o, name); m != nil {
			return m
		}
		return &undefined{name: name, object: v}
	}
	return r.attribute(v, name)
}

func filterBatch(r *renderer, v value, a args) value {
	b := a.bind("batch", "linecount", "fill_with=")
	n := intArg(args{positional: b}, 0, 0)
	var batches []value
	var current []value
	for _, item := range r.collect(v) {
		if len(current) == n {
			batches = append(batches, &list{current})
			current = nil
		}
		current = append(current, item)
	}
	if len(current) > 0 {
		if _, isNone := b[1].(none); b[1] != nil && !isNone {
			r.elements(n)
			for len(current) < n {
				current = append(current, b[1])
			}
		}
		batches = append(batches, &list{current})
	}
	return generate("generator", batches)
}

// generate returns an iterator over items.
func generate(kind string, items []value) *generator {
	i := 0
	return &generator{kind, func() (value, bool) {
		if i >= len(items) {
			return nil, false
		}
		i++
		return items[i-1], true
	}}
}

func filterCenter(r *renderer, v value, a args) value {
	b := a.bind("center", "width=")
	width := 80
	if b[0] != nil {
		width = intArg(args{positional: b}, 0, 80)
	}
	s := r.pad(r.str(v), "center", width, " ")
	if _, ok := v.(markup); ok {
		return markup(s)
	}
	return s
}

func filterDefault(_ *renderer, v value, a args) value {
	b := a.bind("default", "default_value=", "boolean=")
	if b[0] == nil {
		b[0] = ""
	}
	_, missing := v.(*undefined)
	if missing || b[1] != nil && truth(b[1]) && !truth(v) {
		return b[0]
	}
	return v
}

// caseless lowers text unless the filter is case sensitive.
func caseless(v value, sensitive value) value {
	if sensitive != nil && truth(sensitive) {
		return v
	}
	if s, ok := text(v); ok {
		return lower(s)
	}
	return v
}

func filterDictsort(r *renderer, v value, a args) value {
	b := a.bind("dictsort", "case_sensitive=", "by=", "reverse=")
	at := 0
	if b[1] != nil {
		switch r.str(b[1]) {
		case "key":
		case "value":
			at = 1
		default:
			fail("You can only sort by either \"key\" or \"value\"")
		}
	}
	d, ok := v.(*Dict)
	if !ok {
		if u, undef := v.(*undefined); undef {
			u.fail()
		}
		fail("'%s object' has no attribute 'items'", typeName(v))
	}
	items := d.view(r, "items").items
	r.sort(items, func(item value) value { return caseless(item.(tuple)[at], b[0]) }, b[2])
	return &list{items}
}

// sort sorts items in place, stably, by a key.
func (r *renderer) sort(items []value, key func(value) value, reverse value) {
	type keyed struct{ key, item value }
	pairs := make([]keyed, len(items))
	for i, item := range items {
		pairs[i] = keyed{key(item), item}
	}
	descending := reverse != nil && truth(reverse)
	if len(pairs) == 2 || len(pairs) > 2 {
		slices.SortStableFunc(pairs, func(a, b keyed) int {
			order, ordered := r.compare(a.key, b.key, "<")
			if !ordered {
				return 0
			}
			if descending {
				return -order
			}
			return order
		})
	}
	for i := range pairs {
		items[i] = pairs[i].item
	}
}

func escapeHTML(s string) string {
	return strings.NewReplacer(
		"&", "&amp;", ">", "&gt;", "<", "&lt;", "'", "&#39;", "\"", "&#34;",
	).Replace(s)
}

func escapeValue(r *renderer, v value) value {
	switch v := v.(type) {
	case markup, int, float64, bool, *big.Int:
		return v
	case tuple:
		escaped := make(tuple, len(v))
		for i := range v {
			escaped[i] = escapeValue(r, v[i])
		}
		return escaped
	case *Dict:
		escaped := NewDict()
		for _, e := range v.entries {
			escaped.set(e.key, escapeValue(r, e.value))
		}
		return escaped
	}
	return escapeHTML(r.str(v))
}

func filterEscape(r *renderer, v value, a args) value {
	a.bind("escape")
	if m, ok := v.(markup); ok {
		return m
	}
	s := r.str(v)
	r.grow(len(s) * 6)
	return markup(escapeHTML(s))
}

func filterForceEscape(r *renderer, v value, a args) value {
	a.bind("forceescape")
	return markup(escapeHTML(r.str(v)))
}

func filterSafe(r *renderer, v value, a args) value {
	a.bind("safe")
	return markup(r.str(v))
}

func filterString(r *renderer, v value, a args) value {
	a.bind("string")
	if m, ok := v.(markup); ok {
		return m
	}
	return r.str(v)
}

func filterFirst(r *renderer, v value, a args) value {
	a.bind("first")
	if first, ok := r.iterate(v)(); ok {
		return first
	}
	return &undefined{hint: "No first item, sequence was empty."}
}

func filterLast(r *renderer, v value, a args) value {
	a.bind("last")
	if g, ok := v.(*generator); ok {
		fail("'%s' object is not reversible", g.kind)
	}
	items := r.collect(v)
	if len(items) == 0 {
		return &undefined{hint: "No last item, sequence was empty."}
	}
	return items[len(items)-1]
}

func filterFloat(_ *renderer, v value, a args) value {
	b := a.bind("float", "default=")
	if b[0] == nil {
		b[0] = 0.0
	}
	if u, ok := v.(*undefined); ok {
		u.fail()
	}
	if n, ok := number(v); ok {
		return floatOf(n)
	}
	if s, ok := text(v); ok {
		if f, ok := parseFloat(s); ok {
			return f
		}
	}
	return b[0]
}

// parseFloat is Python's float(s).
func parseFloat(s string) (float64, bool) {
	s = strings.TrimFunc(s, isSpace)
	plain := strings.ToLower(strings.TrimLeft(s, "+-"))
	switch plain {
	case "inf", "infinity", "nan":
		if len(s)-len(plain) > 1 {
			return 0, false
		}
		f, err := strconv.ParseFloat(s, 64)
		if plain == "nan" {
			return math.NaN(), true
		}
		return f, err == nil
	}
	if plain == "" || strings.ContainsAny(plain, "xpi") || !validUnderscores(s) {
		return 0, false
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	if err != nil && !math.IsInf(f, 0) {
		return 0, false
	}
	return f, true
}

// validUnderscores reports whether each underscore stands between two digits.
func validUnderscores(s string) bool {
	for i := range len(s) {
		if s[i] == '_' && (i == 0 || i == len(s)-1 || !isAlnum(s[i-1]) || !isAlnum(s[i+1])) {
			return false
		}
	}
	return true
}

func isAlnum(c byte) bool { return decimal(c) || c|0x20 >= 'a' && c|0x20 <= 'z' }

func filterInt(_ *renderer, v value, a args) value {
	b := a.bind("int", "default=", "base=")
	if b[0] == nil {
		b[0] = 0
	}
	base := 10
	if b[1] != nil {
		base = intArg(args{positional: b}, 1, 10)
	}
	if u, ok := v.(*undefined); ok {
		u.fail()
	}
	if n, ok := number(v); ok {
		f, isFloat := n.(float64)
		switch {
		case !isFloat:
			return n
		case math.IsNaN(f):
			return b[0]
		}
		return truncate(f)
	}
	s, ok := text(v)
	if !ok {
		return b[0]
	}
	if n, ok := parseInt(s, base); ok {
		return normalize(n)
	}
	if f, ok := parseFloat(s); ok && !math.IsNaN(f) && !math.IsInf(f, 0) {
		return truncate(f)
	}
	return b[0]
}

// parseInt is Python's int(s, base).
func parseInt(s string, base int) (*big.Int, bool) {
	if base != 0 && (base < 2 || base > 36) {
		fail("int() base must be >= 2 and <= 36, or 0")
	}
	s = strings.TrimFunc(s, isSpace)
	if len(s) > 4300 {
		return nil, false
	}
	sign, digits := "", s
	if s != "" && (s[0] == '+' || s[0] == '-') {
		sign, digits = s[:1], s[1:]
	}
	if len(digits) > 1 && digits[0] == '0' {
		of := map[byte]int{'x': 16, 'o': 8, 'b': 2}[digits[1]|0x20]
		if of != 0 && (base == of || base == 0) {
			base, digits = of, strings.TrimPrefix(digits[2:], "_")
		}
	}
	if base == 0 {
		base = 10
		if len(digits) > 1 && digits[0] == '0' && strings.Trim(digits, "0_") != "" {
			return nil, false
		}
	}
	if digits == "" || strings.ContainsAny(digits, "+-") || !validUnderscores(digits) {
		return nil, false
	}
	var ascii strings.Builder
	for _, c := range strings.ReplaceAll(digits, "_", "") {
		if c >= utf8.RuneSelf && unicode.Is(unicode.Nd, c) {
			zero := c
			for unicode.Is(unicode.Nd, zero-1) && (c-zero) < 9 {
				zero--
			}
			c = '0' + (c-zero)%10
		}
		ascii.WriteRune(c)
	}
	return new(big.Int).SetString(sign+ascii.String(), base)
}

func filterFormat(r *renderer, v value, a args) value {
	if len(a.positional) > 0 && len(a.names) > 0 {
		fail("can't handle positional and keyword arguments at the same time")
	}
	var values value = tuple(a.positional)
	if len(a.names) > 0 {
		values = dictOf(r, "format", a)
	}
	if m, ok := v.(markup); ok {
		return markup(r.percent(string(m), escapeValue(r, values)))
	}
	return r.percent(r.str(v), values)
}

// getter returns a function that follows an attribute such as "function.name" or 0.
func (r *renderer) getter(attribute, otherwise value) func(value) value {
	parts := attributeParts(attribute)
	return func(v value) value {
		for _, part := range parts {
			v = r.item(v, part)
			if _, missing := v.(*undefined); missing && otherwise != nil {
				if _, isNone := otherwise.(none); !isNone {
					v = otherwise
				}
			}
		}
		return v
	}
}

func attributeParts(attribute value) []value {
	switch a := attribute.(type) {
	case nil, none:
		return nil
	default:
		s, ok := text(a)
		if !ok {
			return []value{a}
		}
		var parts []value
		for part := range strings.SplitSeq(s, ".") {
			if n, err := strconv.Atoi(part); err == nil && all(unicode.IsDigit)(part) {
				parts = append(parts, n)
			} else {
				parts = append(parts, part)
			}
		}
		return parts
	}
}

// group is an element of groupby: a tuple of the key and the items, with names.
type group struct {
	key   value
	items *list
}

func (g *group) pair() tuple { return tuple{g.key, g.items} }

func filterGroupby(r *renderer, v value, a args) value {
	b := a.bind("groupby", "attribute", "default=", "case_sensitive=")
	get := r.getter(b[0], b[1])
	items := r.collect(v)
	key := func(item value) value { return caseless(get(item), b[2]) }
	r.sort(items, key, nil)
	var groups []value
	for i := 0; i < len(items); {
		g := &group{key: get(items[i]), items: &list{}}
		k := key(items[i])
		for i < len(items) && r.equal(key(items[i]), k) {
			g.items.items = append(g.items.items, items[i])
			i++
		}
		groups = append(groups, g)
	}
	return &list{groups}
}

func filterIndent(r *renderer, v value, a args) value {
	b := a.bind("indent", "width=", "first=", "blank=")
	indent := "    "
	if b[0] != nil {
		if s, ok := text(b[0]); ok {
			indent = s
		} else {
			n := max(0, intArg(args{positional: b}, 0, 4))
			r.grow(n)
			indent = strings.Repeat(" ", n)
		}
	}
	s, ok := text(v)
	if !ok {
		if u, undef := v.(*undefined); undef {
			u.fail()
		}
		fail("unsupported operand type(s) for +=: '%s' and 'str'", typeName(v))
	}
	lines := splitLines(s+"\n", false, func(s string) value { return s }).items
	r.grow(len(s) + len(lines)*len(indent))
	var out strings.Builder
	for i, line := range lines {
		text := line.(string)
		if i > 0 {
			out.WriteByte('\n')
		}
		first := b[1] != nil && truth(b[1])
		blank := b[2] != nil && truth(b[2])
		if i == 0 && first || i > 0 && (text != "" || blank) {
			out.WriteString(indent)
		}
		out.WriteString(text)
	}
	if _, ok := v.(markup); ok {
		return markup(out.String())
	}
	return out.String()
}

func filterItems(r *renderer, v value, a args) value {
	a.bind("items")
	switch d := v.(type) {
	case *undefined:
		return generate("generator", nil)
	case *Dict:
		return generate("generator", d.view(r, "items").items)
	}
	return &generator{"generator", func() (value, bool) {
		fail("Can only get item pairs from a mapping.")
		return nil, false
	}}
}

func filterJoin(r *renderer, v value, a args) value {
	b := a.bind("join", "d=", "attribute=")
	separator := ""
	if b[0] != nil {
		separator = r.str(b[0])
	}
	get := r.getter(b[1], nil)
	var out strings.Builder
	it := r.iterate(v)
	for i := 0; ; i++ {
		item, ok := it()
		if !ok {
			return out.String()
		}
		part := r.str(get(item))
		if i > 0 {
			out.WriteString(separator)
		}
		r.grow(out.Len() + len(part))
		out.WriteString(part)
	}
}

func filterLength(r *renderer, v value, a args) value {
	a.bind("length")
	return r.length(v)
}

func filterList(r *renderer, v value, a args) value {
	a.bind("list")
	return &list{r.collect(v)}
}

// lazily maps an iterable; keep may leave items out.
func (r *renderer) lazily(v value, prepare func() func(value) (value, bool)) value {
	if !truth(v) {
		return generate("generator", nil)
	}
	var it iterator
	var f func(value) (value, bool)
	return &generator{"generator", func() (value, bool) {
		if it == nil {
			f = prepare()
			it = r.iterate(v)
		}
		for {
			item, ok := it()
			if !ok {
				return nil, false
			}
			r.step()
			if out, keep := f(item); keep {
				return out, true
			}
		}
	}}
}

func filterMap(r *renderer, v value, a args) value {
	return r.lazily(v, func() func(value) (value, bool) {
		if len(a.positional) == 0 {
			named := map[string]value{}
			for i, n := range a.names {
				named[n] = a.named[i]
			}
			attribute, ok := named["attribute"]
			if !ok {
				fail("map requires a filter argument")
			}
			otherwise := named["default"]
			delete(named, "attribute")
			delete(named, "default")
			for n := range named {
				fail("Unexpected keyword argument '%s'", n)
			}
			get := r.getter(attribute, otherwise)
			return func(v value) (value, bool) { return get(v), true }
		}
		name := r.str(a.positional[0])
		f, rest := filters[name], args{a.positional[1:], a.names, a.named}
		if f == nil {
			fail("No filter named '%s'.", name)
		}
		return func(v value) (value, bool) { return f(r, v, rest), true }
	})
}

// selector makes select, reject, selectattr or rejectattr.
func selector(keep, attribute bool) filter {
	return func(r *renderer, v value, a args) value {
		return r.lazily(v, func() func(value) (value, bool) {
			get := func(v value) value { return v }
			rest := a.positional
			if attribute {
				if len(rest) == 0 {
					fail("Missing parameter for attribute name")
				}
				get, rest = r.getter(rest[0], nil), rest[1:]
			}
			holds := func(v value) bool { return truth(v) }
			if len(rest) > 0 {
				name := r.str(rest[0])
				test := tests[name]
				if test == nil {
					fail("No test named '%s'.", name)
				}
				given := args{rest[1:], a.names, a.named}
				holds = func(v value) bool { return test(r, v, given) }
			}
			return func(v value) (value, bool) { return v, holds(get(v)) == keep }
		})
	}
}

func filterMax(r *renderer, v value, a args) value { return extreme(r, v, a, "max") }
func filterMin(r *renderer, v value, a args) value { return extreme(r, v, a, "min") }

func extreme(r *renderer, v value, a args, name string) value {
	b := a.bind(name, "case_sensitive=", "attribute=")
	get := r.getter(b[1], nil)
	it := r.iterate(v)
	best, ok := it()
	if !ok {
		return &undefined{hint: "No aggregated item, sequence was empty."}
	}
	bestKey := caseless(get(best), b[0])
	for {
		item, ok := it()
		if !ok {
			return best
		}
		key := caseless(get(item), b[0])
		order, ordered := r.compare(key, bestKey, map[string]string{"max": ">", "min": "<"}[name])
		if ordered && (name == "max" && order > 0 || name == "min" && order < 0) {
			best, bestKey = item, key
		}
	}
}

func filterReplace(r *renderer, v value, a args) value {
	b := a.bind("replace", "old", "new", "count=")
	n := -1
	if _, isNone := b[2].(none); b[2] != nil && !isNone {
		n = intArg(args{positional: b}, 2, -1)
	}
	return r.replace(r.str(v), r.str(b[0]), r.str(b[1]), n)
}

func filterReverse(r *renderer, v value, a args) value {
	a.bind("reverse")
	if s, ok := text(v); ok {
		runes := []rune(s)
		r.grow(len(s))
		slices.Reverse(runes)
		if _, ok := v.(markup); ok {
			return markup(runes)
		}
		return string(runes)
	}
	switch v.(type) {
	case none, bool, int, float64, *big.Int, *function, *closure:
		fail("argument must be iterable")
	}
	items := r.collect(v)
	slices.Reverse(items)
	switch v.(type) {
	case *generator:
		return &list{items}
	case *list:
		return generate("list_reverseiterator", items)
	case *Dict, *view:
		return generate("dict_reversekeyiterator", items)
	case *rangeObject:
		return generate("range_iterator", items)
	}
	return generate("reversed", items)
}

func filterRound(_ *renderer, v value, a args) value {
	b := a.bind("round", "precision=", "method=")
	digits := 0
	if b[0] != nil {
		digits = intArg(args{positional: b}, 0, 0)
	}
	method := "common"
	if b[1] != nil {
		method, _ = text(b[1])
	}
	if method != "common" && method != "ceil" && method != "floor" {
		fail("method must be common, ceil or floor")
	}
	if u, ok := v.(*undefined); ok {
		u.fail()
	}
	n, ok := number(v)
	if !ok {
		fail("type %s doesn't define __round__ method", typeName(v))
	}
	if method == "common" {
		if f, ok := n.(float64); ok {
			return roundHalfEven(f, digits)
		}
		return roundInteger(bigOf(n), digits)
	}
	unit := math.Pow(10, float64(digits))
	scaled := floatOf(n) * unit
	if math.IsNaN(scaled) || math.IsInf(scaled, 0) {
		fail("cannot convert float to integer")
	}
	if method == "ceil" {
		return math.Ceil(scaled) / unit
	}
	return math.Floor(scaled) / unit
}

func roundInteger(n *big.Int, digits int) value {
	if digits >= 0 {
		return normalize(n)
	}
	if -digits > n.BitLen() { // 10**-digits is larger than twice n
		return 0
	}
	unit := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(-digits)), nil)
	q, rest := new(big.Int).DivMod(n, unit, new(big.Int))
	switch twice := new(big.Int).Lsh(rest, 1).Cmp(unit); {
	case twice > 0, twice == 0 && q.Bit(0) == 1:
		q.Add(q, big.NewInt(1))
	}
	return normalize(q.Mul(q, unit))
}

func filterSlice(r *renderer, v value, a args) value {
	b := a.bind("slice", "slices", "fill_with=")
	n := intArg(args{positional: b}, 0, 0)
	items := r.collect(v)
	if n == 0 {
		fail("integer division or modulo by zero")
	}
	if n < 0 {
		return generate("generator", nil)
	}
	r.elements(n)
	per, extra, offset := len(items)/n, len(items)%n, 0
	var parts []value
	for i := range n {
		start := offset + i*per
		if i < extra {
			offset++
		}
		part := append([]value{}, items[start:offset+(i+1)*per]...)
		if _, isNone := b[1].(none); b[1] != nil && !isNone && i >= extra {
			part = append(part, b[1])
		}
		parts = append(parts, &list{part})
	}
	return generate("generator", parts)
}

func filterSort(r *renderer, v value, a args) value {
	b := a.bind("sort", "reverse=", "case_sensitive=", "attribute=")
	items := r.collect(v)
	attributes := []value{b[2]}
	if s, ok := text(b[2]); ok {
		attributes = attributes[:0]
		for name := range strings.SplitSeq(s, ",") {
			attributes = append(attributes, name)
		}
	}
	key := func(item value) value {
		l := &list{}
		for _, attribute := range attributes {
			l.items = append(l.items, caseless(r.getter(attribute, nil)(item), b[1]))
		}
		return l
	}
	r.sort(items, key, b[0])
	return &list{items}
}

var (
	htmlComment = regexp.MustCompile(`(?s)<!--.*?-->`)
	htmlTag     = regexp.MustCompile(`(?s)<.*?>`)
)

func filterStriptags(r *renderer, v value, a args) value {
	a.bind("striptags")
	s := r.str(v)
	r.grow(len(s))
	s = htmlTag.ReplaceAllString(htmlComment.ReplaceAllString(s, ""), "")
	return html.UnescapeString(strings.Join(strings.FieldsFunc(s, isSpace), " "))
}

func filterSum(r *renderer, v value, a args) value {
	b := a.bind("sum", "attribute=", "start=")
	total := b[1]
	if total == nil {
		total = 0
	}
	if _, ok := text(total); ok {
		fail("sum() can't sum strings [use ''.join(seq) instead]")
	}
	get := r.getter(b[0], nil)
	it := r.iterate(v)
	for {
		item, ok := it()
		if !ok {
			return total
		}
		total = r.arithmetic('+', total, get(item))
	}
}

func filterTitle(r *renderer, v value, a args) value {
	a.bind("title")
	s := r.str(v)
	r.grow(len(s))
	return titleFilter(s)
}

// titleFilter is the filter title, whose words begin after white space, hyphens and open brackets.
func titleFilter(s string) string {
	var b strings.Builder
	boundary := true
	for _, c := range s {
		separator := isSpace(c) || strings.ContainsRune("-({[<", c)
		switch {
		case separator:
			b.WriteRune(c)
		case boundary:
			b.WriteString(upper(string(c)))
		default:
			b.WriteString(lower(string(c)))
		}
		boundary = separator
	}
	return b.String()
}

func filterTrim(r *renderer, v value, a args) value {
	b := a.bind("trim", "chars=")
	s := r.str(v)
	r.grow(len(s))
	given := args{}
	if b[0] != nil {
		given.positional = b
	}
	s = strip(s, "strip", given)
	if _, ok := v.(markup); ok {
		return markup(s)
	}
	return s
}

func filterTruncate(r *renderer, v value, a args) value {
	b := a.bind("truncate", "length=", "killwords=", "end=", "leeway=")
	length, end, leeway := 255, "...", 5
	if b[0] != nil {
		length = intArg(args{positional: b}, 0, 255)
	}
	if b[2] != nil {
		end = r.str(b[2])
	}
	if _, isNone := b[3].(none); b[3] != nil && !isNone {
		leeway = intArg(args{positional: b}, 3, 5)
	}
	room := length - utf8.RuneCountInString(end)
	if room < 0 {
		fail("expected length >= %d, got %d", utf8.RuneCountInString(end), length)
	}
	if leeway < 0 {
		fail("expected leeway >= 0, got %d", leeway)
	}
	if r.length(v) <= length+leeway {
		return v
	}
	s, ok := text(v)
	if !ok {
		fail("can only concatenate %s (not \"str\") to %s", typeName(v), typeName(v))
	}
	s = cutRunes(s, room)
	if b[1] == nil || !truth(b[1]) {
		if at := strings.LastIndexByte(s, ' '); at >= 0 {
			s = s[:at]
		}
	}
	return s + end
}

func filterUnique(r *renderer, v value, a args) value {
	b := a.bind("unique", "case_sensitive=", "attribute=")
	get := r.getter(b[1], nil)
	seen := NewDict()
	it := r.iterate(v)
	return &generator{"generator", func() (value, bool) {
		for {
			item, ok := it()
			if !ok {
				return nil, false
			}
			r.step()
			key := hashable(caseless(get(item), b[0]))
			if _, found := seen.find(key); !found {
				seen.set(key, true)
				return item, true
			}
		}
	}}
}

func quoteURL(s string, query bool) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case isAlnum(c) || strings.IndexByte("_.-~", c) >= 0 || c == '/' && !query:
			b.WriteByte(c)
		case c == ' ' && query:
			b.WriteByte('+')
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func filterURLEncode(r *renderer, v value, a args) value {
	a.bind("urlencode")
	var pairs []value
	switch o := v.(type) {
	case *Dict:
		pairs = o.view(r, "items").items
	case *list, tuple, *view, *generator, *rangeObject, *undefined:
		pairs = r.collect(o)
	default:
		s := r.str(v)
		r.grow(3 * len(s))
		return quoteURL(s, false)
	}
	var parts []string
	for _, pair := range pairs {
		p := r.collect(pair)
		if len(p) != 2 {
			fail("not enough values to unpack (expected 2, got %d)", len(p))
		}
		parts = append(parts, quoteURL(r.str(p[0]), true)+"="+quoteURL(r.str(p[1]), true))
	}
	return strings.Join(parts, "&")
}

func filterWordcount(r *renderer, v value, a args) value {
	a.bind("wordcount")
	n, inside := 0, false
	for _, c := range r.str(v) {
		word := c == '_' || unicode.IsLetter(c) || unicode.IsNumber(c)
		if word && !inside {
			n++
		}
		inside = word
	}
	return n
}
