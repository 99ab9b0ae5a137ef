package jinja

import (
	"fmt"
	"html"
	"math"
	"math/big"
	"regexp"
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
		s = r.made(f(s))
		if _, ok := v.(markup); ok {
			return markup(s)
		}
		return s
	}
}

// given makes a filter of one of [Settings].
func given(name string, f func(string, []string) (string, error)) filter {
	return func(r *renderer, v value, a args) value {
		if len(a.names) > 0 {
			fail("filter '%s': write the argument %s without its name", name, a.names[0])
		}
		arguments := make([]string, len(a.positional))
		for i, argument := range a.positional {
			arguments[i] = r.str(argument)
		}
		s := r.str(v)
		r.reads(len(s))
		s, err := f(s, arguments)
		if err != nil {
			fail("filter '%s': %v", name, err)
		}
		return r.made(s)
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
func (r *renderer) caseless(v value, sensitive value) value {
	if sensitive != nil && truth(sensitive) {
		return v
	}
	if s, ok := text(v); ok {
		r.reads(4 * len(s))
		return lower(s)
	}
	return v
}

// escaped is escapeHTML of a text whose size counts.
func (r *renderer) escaped(s string) string {
	r.reads(len(s))
	grown := len(s)
	for i := range len(s) {
		switch s[i] {
		case '&', '\'', '"':
			grown += 4
		case '<', '>':
			grown += 3
		}
	}
	r.grow(grown)
	return escapeHTML(s)
}

func escapeHTML(s string) string {
	return strings.NewReplacer(
		"&", "&amp;", ">", "&gt;", "<", "&lt;", "'", "&#39;", "\"", "&#34;",
	).Replace(s)
}

func escapeValue(r *renderer, v value) value { return escapeValueAt(r, v, 0) }

func escapeValueAt(r *renderer, v value, depth int) value {
	r.nested(depth)
	switch v := v.(type) {
	case markup, int, float64, bool, *big.Int:
		return v
	case tuple:
		escaped := make(tuple, len(v))
		for i := range v {
			escaped[i] = escapeValueAt(r, v[i], depth+1)
		}
		return escaped
	case *Dict:
		escaped := NewDict()
		for _, e := range v.entries {
			escaped.set(e.key, escapeValueAt(r, e.value, depth+1))
		}
		return escaped
	}
	return r.escaped(r.str(v))
}

func filterEscape(r *renderer, v value, a args) value {
	a.bind("escape")
	if m, ok := v.(markup); ok {
		return m
	}
	return markup(r.escaped(r.str(v)))
}

func filterForceEscape(r *renderer, v value, a args) value {
	a.bind("forceescape")
	return markup(r.escaped(r.str(v)))
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

func filterFloat(r *renderer, v value, a args) value {
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
		r.reads(4 * len(s))
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

func filterInt(r *renderer, v value, a args) value {
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
	r.reads(4 * len(s))
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
	lines := splitLines(r, s+"\n", false, func(s string) value { return s }).items
	r.size(len(lines))
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

func filterReplace(r *renderer, v value, a args) value {
	b := a.bind("replace", "old", "new", "count=")
	n := -1
	if _, isNone := b[2].(none); b[2] != nil && !isNone {
		n = intArg(args{positional: b}, 2, -1)
	}
	return r.replace(r.shown(v), r.str(b[0]), r.shown(b[1]), n)
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

var (
	htmlComment = regexp.MustCompile(`(?s)<!--.*?-->`)
	htmlTag     = regexp.MustCompile(`(?s)<.*?>`)
)

func filterStriptags(r *renderer, v value, a args) value {
	a.bind("striptags")
	s := r.str(v)
	r.work(len(s)) // the regular expressions take some 100 ns a byte
	s = htmlTag.ReplaceAllString(htmlComment.ReplaceAllString(s, ""), "")
	return html.UnescapeString(strings.Join(strings.FieldsFunc(s, isSpace), " "))
}

func filterTitle(r *renderer, v value, a args) value {
	a.bind("title")
	s := r.str(v)
	r.reads(8 * len(s))
	return r.made(titleFilter(s))
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
	room := length - r.length(end)
	if room < 0 {
		fail("expected length >= %d, got %d", r.length(end), length)
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
	return r.made(s + end)
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
		key, item := r.str(p[0]), r.str(p[1])
		r.grow(3*(len(key)+len(item)) + 1)
		parts = append(parts, quoteURL(key, true)+"="+quoteURL(item, true))
	}
	return r.made(strings.Join(parts, "&"))
}

func filterWordcount(r *renderer, v value, a args) value {
	a.bind("wordcount")
	n, inside := 0, false
	s := r.str(v)
	r.reads(4 * len(s))
	for _, c := range s {
		word := c == '_' || unicode.IsLetter(c) || unicode.IsNumber(c)
		if word && !inside {
			n++
		}
		inside = word
	}
	return n
}
