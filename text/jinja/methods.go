package jinja

import (
	"math/big"
	"strings"
	"unicode"
	"unicode/utf8"
)

// method returns an attribute of a Python value, bound to it; nil if the type has none of that
// name. The sandbox hides names that begin with an underscore and methods that modify their object.
func method(object value, name string) value {
	if strings.HasPrefix(name, "_") {
		switch object.(type) {
		case string, markup, *list, tuple, *Dict, int, float64, bool, none, *rangeObject, *big.Int,
			*view:
			if knownDunder(name) {
				return unsafe(object, name)
			}
		}
		return nil
	}
	switch o := object.(type) {
	case string:
		return textMethod(o, o, name)
	case markup:
		return textMethod(string(o), o, name)
	case *Dict:
		return dictMethod(o, name)
	case *list:
		switch name {
		case "append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort":
			return unsafe(object, name)
		case "copy":
			return bound(name, func(r *renderer, a args) value {
				a.count(name, 0, 0)
				return &list{r.collect(o)}
			})
		}
		return sequenceMethod(o.items, "list", name)
	case tuple:
		return sequenceMethod(o, "tuple", name)
	case *rangeObject:
		switch name {
		case "start":
			return o.start
		case "stop":
			return o.stop
		case "step":
			return o.step
		}
	case int, bool, *big.Int:
		return integerMethod(object, name)
	case float64:
		switch name {
		case "real":
			return o
		case "imag":
			return 0.0
		case "is_integer":
			return bound(name, func(r *renderer, a args) value {
				a.count(name, 0, 0)
				return o == float64(int64(o))
			})
		}
	case *cycler:
		return o.attribute(name)
	case *group:
		switch name {
		case "grouper":
			return o.key
		case "list":
			return o.items
		}
		return sequenceMethod(o.pair(), "tuple", name)
	}
	return nil
}

func bound(name string, f func(r *renderer, a args) value) value { return &function{name, f} }

// knownDunder reports whether Python objects have the attribute, which the sandbox then refuses.
func knownDunder(name string) bool {
	return strings.HasPrefix(name, "__") && strings.HasSuffix(name, "__") && len(name) > 4
}

// unsafe is what the sandbox gives for an attribute that templates may not use: undefined, with a
// failure once it is used.
func unsafe(object value, name string) value {
	return &undefined{name: name, object: object,
		hint: "access to attribute '" + name + "' of '" + typeName(object) + "' object is unsafe."}
}

// unsupportedMethods exist in Python but not here. Calling one is refused by Compile.
var unsupportedMethods = map[string]bool{"encode": true, "translate": true, "maketrans": true,
	"format_map": true, "fromkeys": true, "to_bytes": true, "from_bytes": true,
	"as_integer_ratio": true, "hex": true, "fromhex": true}

func integerMethod(o value, name string) value {
	n, _ := number(o)
	switch name {
	case "real", "numerator":
		return n
	case "imag":
		return 0
	case "denominator":
		return 1
	case "bit_length":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 0, 0)
			return bigOf(n).BitLen()
		})
	case "conjugate":
		return bound(name, func(r *renderer, a args) value { return n })
	}
	return nil
}

func sequenceMethod(items []value, kind, name string) value {
	switch name {
	case "count":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 1)
			n := 0
			for _, item := range items {
				if r.equal(item, a.positional[0]) {
					n++
				}
			}
			return n
		})
	case "index":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 3)
			start, end := searchRange(a.positional[1:], len(items))
			for i := start; i < end; i++ {
				if r.equal(items[i], a.positional[0]) {
					return i
				}
			}
			fail("%s is not in %s", r.repr(a.positional[0]), kind)
			return nil
		})
	}
	return nil
}

// searchRange reads the optional start and end of index, find and count.
func searchRange(given []value, n int) (start, end int) {
	read := func(i, otherwise int) int {
		if i >= len(given) {
			return otherwise
		}
		if _, ok := given[i].(none); ok {
			return otherwise
		}
		v, ok := number(given[i])
		k, whole := v.(int)
		if !ok || !whole {
			fail("slice indices must be integers or None or have an __index__ method")
		}
		if k < 0 {
			k = max(0, k+n)
		}
		return min(k, n)
	}
	return read(0, 0), read(1, n)
}

func dictMethod(d *Dict, name string) value {
	switch name {
	case "get":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 2)
			if v, found := d.find(r.hashable(a.positional[0])); found {
				return v
			}
			if len(a.positional) == 2 {
				return a.positional[1]
			}
			return none{}
		})
	case "items", "keys", "values":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 0, 0)
			return d.view(r, name)
		})
	case "copy":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 0, 0)
			r.elements(4 * d.Len())
			return d.clone()
		})
	case "clear", "pop", "popitem", "setdefault", "update":
		return unsafe(d, name)
	}
	return nil
}

func (d *Dict) view(r *renderer, kind string) *view {
	perEntry := 1
	if kind == "items" {
		perEntry = 4 // a tuple of two
	}
	r.elements(perEntry * d.Len())
	v := &view{kind: kind, items: make([]value, len(d.entries))}
	for i, e := range d.entries {
		switch kind {
		case "keys":
			v.items[i] = e.key
		case "values":
			v.items[i] = e.value
		default:
			v.items[i] = tuple{e.key, e.value}
		}
	}
	return v
}

// stringArg returns argument i of a string method.
func stringArg(a args, method string, i int) string {
	s, ok := text(a.positional[i])
	if !ok {
		if u, undef := a.positional[i].(*undefined); undef {
			u.fail()
		}
		fail("%s() argument %d must be str, not %s", method, i+1, typeName(a.positional[i]))
	}
	return s
}

func intArg(a args, i, otherwise int) int {
	if i >= len(a.positional) {
		return otherwise
	}
	if u, ok := a.positional[i].(*undefined); ok {
		u.fail()
	}
	v, ok := number(a.positional[i])
	n, whole := v.(int)
	if !ok || !whole {
		fail("'%s' object cannot be interpreted as an integer", typeName(a.positional[i]))
	}
	return n
}

// textMethod returns a method of the string s; self is s or its Markup.
func textMethod(s string, self value, name string) value {
	_, marked := self.(markup)
	wrap := func(s string) value {
		if marked {
			return markup(s)
		}
		return s
	}
	simple := func(f func(string) string) value {
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 0, 0)
			r.grow(len(s))
			return wrap(r.made(f(s)))
		})
	}
	ask := func(f func(string) bool) value {
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 0, 0)
			r.grow(len(s))
			return f(s)
		})
	}
	switch name {
	case "upper":
		return simple(upper)
	case "lower":
		return simple(lower)
	case "capitalize":
		return simple(capitalize)
	case "title":
		return simple(titleMethod)
	case "swapcase":
		return simple(swapcase)
	case "casefold":
		return simple(casefold)
	case "strip", "lstrip", "rstrip":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 0, 1)
			r.grow(len(s))
			return wrap(strip(s, name, a))
		})
	case "split", "rsplit":
		return bound(name, func(r *renderer, a args) value {
			return splitMethod(r, s, name, a, wrap)
		})
	case "splitlines":
		return bound(name, func(r *renderer, a args) value {
			b := a.bind(name, "keepends=")
			return splitLines(r, s, b[0] != nil && truth(b[0]), wrap)
		})
	case "partition", "rpartition":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 1)
			sep := stringArg(a, name, 0)
			if sep == "" {
				fail("empty separator")
			}
			r.grow(len(s))
			at := strings.Index(s, sep)
			if name == "rpartition" {
				at = strings.LastIndex(s, sep)
			}
			switch {
			case at >= 0:
				return tuple{wrap(s[:at]), wrap(sep), wrap(s[at+len(sep):])}
			case name == "partition":
				return tuple{wrap(s), wrap(""), wrap("")}
			}
			return tuple{wrap(""), wrap(""), wrap(s)}
		})
	case "startswith", "endswith":
		return bound(name, func(r *renderer, a args) value { return affix(r, s, name, a) })
	case "removeprefix", "removesuffix":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 1)
			r.reads(len(s))
			if name == "removeprefix" {
				return wrap(strings.TrimPrefix(s, stringArg(a, name, 0)))
			}
			return wrap(strings.TrimSuffix(s, stringArg(a, name, 0)))
		})
	case "replace":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 2, 3)
			return wrap(r.replace(s, stringArg(a, name, 0), stringArg(a, name, 1),
				intArg(a, 2, -1)))
		})
	case "join":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 1)
			b := &output{r: r}
			for i, item := range r.collect(a.positional[0]) {
				part, ok := text(item)
				if !ok {
					fail("sequence item %d: expected str instance, %s found", i, typeName(item))
				}
				if _, safe := item.(markup); marked && !safe {
					part = r.escaped(part)
				}
				if i > 0 {
					b.write(s)
				}
				b.write(part)
			}
			return wrap(b.String())
		})
	case "find", "rfind", "index", "rindex", "count":
		return bound(name, func(r *renderer, a args) value { return search(r, s, name, a) })
	case "format":
		return bound(name, func(r *renderer, a args) value { return wrap(r.braces(s, a)) })
	case "zfill":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 1)
			width := intArg(a, 0, 0)
			missing := width - r.length(s)
			if missing <= 0 {
				return wrap(s)
			}
			r.grow(missing + len(s))
			sign := ""
			rest := s
			if strings.HasPrefix(s, "+") || strings.HasPrefix(s, "-") {
				sign, rest = s[:1], s[1:]
			}
			return wrap(sign + strings.Repeat("0", missing) + rest)
		})
	case "center", "ljust", "rjust":
		return bound(name, func(r *renderer, a args) value {
			a.count(name, 1, 2)
			fill := " "
			if len(a.positional) == 2 {
				fill = stringArg(a, name, 1)
				if utf8.RuneCountInString(fill) != 1 {
					fail("The fill character must be exactly one character long")
				}
			}
			return wrap(r.pad(s, name, intArg(a, 0, 0), fill))
		})
	case "expandtabs":
		return bound(name, func(r *renderer, a args) value {
			b := a.bind(name, "tabsize=")
			size := 8
			if b[0] != nil {
				size = intArg(args{positional: b}, 0, 8)
			}
			return wrap(expandTabs(r, s, size))
		})
	case "isdigit":
		return ask(all(func(c rune) bool { return unicode.Is(unicode.Nd, c) || isDigitNo(c) }))
	case "isdecimal":
		return ask(all(func(c rune) bool { return unicode.Is(unicode.Nd, c) }))
	case "isnumeric":
		return ask(all(func(c rune) bool { return unicode.IsNumber(c) }))
	case "isalpha":
		return ask(all(unicode.IsLetter))
	case "isalnum":
		return ask(all(func(c rune) bool { return unicode.IsLetter(c) || unicode.IsNumber(c) }))
	case "isspace":
		return ask(all(isSpace))
	case "isascii":
		return ask(isASCII)
	case "isprintable":
		return ask(func(s string) bool {
			return strings.IndexFunc(s,
				func(c rune) bool { return !printable(c) }) < 0
		})
	case "isidentifier":
		return ask(isIdentifier)
	case "isupper":
		return ask(func(s string) bool { return hasCase(s) && s == upperSimple(s) })
	case "islower":
		return ask(func(s string) bool { return hasCase(s) && s == lowerSimple(s) })
	case "istitle":
		return ask(isTitle)
	case "encode", "translate", "maketrans", "format_map":
		return bound(name, func(*renderer, args) value {
			fail("the method '%s' is not supported in chat templates", name)
			return nil
		})
	}
	return nil
}

func strip(s, name string, a args) string {
	cut := isSpace
	if len(a.positional) == 1 {
		switch v := a.positional[0].(type) {
		case none:
		case *undefined:
			v.fail()
		default:
			set, ok := text(v)
			if !ok {
				fail("%s arg must be None or str", name)
			}
			cut = func(c rune) bool { return strings.ContainsRune(set, c) }
		}
	}
	if name != "rstrip" {
		s = strings.TrimLeftFunc(s, cut)
	}
	if name != "lstrip" {
		s = strings.TrimRightFunc(s, cut)
	}
	return s
}

func splitMethod(r *renderer, s, name string, a args, wrap func(string) value) value {
	b := a.bind(name, "sep=", "maxsplit=")
	most := -1
	if b[1] != nil {
		most = intArg(args{positional: b}, 1, -1)
	}
	var parts []string
	r.grow(len(s))
	_, isNone := b[0].(none)
	if b[0] == nil || isNone {
		parts = splitSpace(s, name == "rsplit", most)
	} else {
		sep := stringArg(args{positional: b}, name, 0)
		if sep == "" {
			fail("empty separator")
		}
		found := strings.Count(s, sep)
		if most >= 0 {
			found = min(found, most)
		}
		r.elements(2 * (found + 1))
		switch {
		case name == "split" || most < 0:
			parts = strings.SplitN(s, sep, found+1)
		default:
			for ; most > 0; most-- {
				at := strings.LastIndex(s, sep)
				if at < 0 {
					break
				}
				parts = append(parts, s[at+len(sep):])
				s = s[:at]
			}
			parts = append(parts, s)
			for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
				parts[i], parts[j] = parts[j], parts[i]
			}
		}
	}
	r.elements(2 * len(parts))
	l := &list{make([]value, len(parts))}
	for i, p := range parts {
		l.items[i] = wrap(p)
	}
	return l
}

// splitSpace splits at runs of white space, at most `most` times (-1: at all).
func splitSpace(s string, fromRight bool, most int) []string {
	if most < 0 {
		return strings.FieldsFunc(s, isSpace)
	}
	var parts []string
	if !fromRight {
		s = strings.TrimLeftFunc(s, isSpace)
		for s != "" {
			at := strings.IndexFunc(s, isSpace)
			if len(parts) == most || at < 0 {
				if at >= 0 {
					s = strings.TrimRightFunc(s, isSpace)
				}
				return append(parts, s)
			}
			parts = append(parts, s[:at])
			s = strings.TrimLeftFunc(s[at:], isSpace)
		}
		return parts
	}
	s = strings.TrimRightFunc(s, isSpace)
	for s != "" {
		at := strings.LastIndexFunc(s, isSpace)
		if len(parts) == most || at < 0 {
			parts = append(parts, strings.TrimLeftFunc(s, isSpace))
			break
		}
		_, size := utf8.DecodeRuneInString(s[at:])
		parts = append(parts, s[at+size:])
		s = strings.TrimRightFunc(s[:at], isSpace)
	}
	for i, j := 0, len(parts)-1; i < j; i, j = i+1, j-1 {
		parts[i], parts[j] = parts[j], parts[i]
	}
	return parts
}

// splitLines divides s into lines. Each counts as two elements, because its text is one too.
func splitLines(r *renderer, s string, keep bool, wrap func(string) value) *list {
	r.grow(len(s))
	l := &list{items: []value{}}
	for s != "" {
		r.size(len(l.items) * 32)
		r.step()
		end, next := len(s), len(s)
		for i, c := range s {
			switch c {
			case '\n', '\v', '\f', '\r', 0x1c, 0x1d, 0x1e, 0x85, 0x2028, 0x2029:
				end, next = i, i+utf8.RuneLen(c)
				if c == '\r' && strings.HasPrefix(s[next:], "\n") {
					next++
				}
			}
			if next < len(s) || end < len(s) {
				break
			}
		}
		line := s[:end]
		if keep {
			line = s[:next]
		}
		l.items = append(l.items, wrap(line))
		s = s[next:]
	}
	return l
}

func affix(r *renderer, s, name string, a args) value {
	a.count(name, 1, 3)
	if len(a.positional) > 1 {
		r.reads(4 * len(s))
	}
	if len(a.positional) > 1 {
		runes := []rune(s)
		start, end := searchRange(a.positional[1:], len(runes))
		if start > end {
			return false
		}
		s = string(runes[start:end])
	}
	has := strings.HasPrefix
	if name == "endswith" {
		has = strings.HasSuffix
	}
	if options, ok := a.positional[0].(tuple); ok {
		for _, option := range options {
			part, ok := text(option)
			if !ok {
				fail("tuple for %s must only contain str, not %s", name, typeName(option))
			}
			r.reads(min(len(s), len(part)))
			if has(s, part) {
				return true
			}
		}
		return false
	}
	part, ok := text(a.positional[0])
	if !ok {
		if u, undef := a.positional[0].(*undefined); undef {
			u.fail()
		}
		fail("%s first arg must be str or a tuple of str, not %s", name, typeName(a.positional[0]))
	}
	r.reads(min(len(s), len(part)))
	return has(s, part)
}

// replace is str.replace with a count; -1 replaces all.
func (r *renderer) replace(s, old, new string, n int) string {
	found := strings.Count(s, old)
	if n >= 0 {
		found = min(found, n)
	}
	if grown := len(new) - len(old); grown > 0 && found > r.limits.Bytes/grown {
		failLimit("bytes", r.limits.Bytes)
	}
	r.grow(len(s) + found*max(0, len(new)-len(old)))
	if r.trace == nil || old == "" {
		return strings.Replace(s, old, new, n)
	}
	out := &output{r: r}
	for ; found > 0; found-- {
		before, after, _ := strings.Cut(s, old)
		out.WriteString(before)
		out.WriteString(new)
		s = after
	}
	out.WriteString(s)
	return out.String()
}

func search(r *renderer, s, name string, a args) value {
	a.count(name, 1, 3)
	part := stringArg(a, name, 0)
	r.grow(len(s))
	offset := 0
	if len(a.positional) > 1 {
		runes := []rune(s)
		start, end := searchRange(a.positional[1:], len(runes))
		if start > end {
			if name == "count" {
				return 0
			}
			if name == "index" || name == "rindex" {
				fail("substring not found")
			}
			return -1
		}
		s, offset = string(runes[start:end]), start
	}
	if name == "count" {
		return strings.Count(s, part)
	}
	at := strings.Index(s, part)
	if name[0] == 'r' {
		at = strings.LastIndex(s, part)
	}
	if at < 0 {
		if name == "index" || name == "rindex" {
			fail("substring not found")
		}
		return -1
	}
	return offset + utf8.RuneCountInString(s[:at])
}

// pad fills s up to a width.
func (r *renderer) pad(s, how string, width int, fill string) string {
	missing := width - r.length(s)
	if missing <= 0 {
		return s
	}
	r.size(missing)
	r.grow(missing*len(fill) + len(s))
	left := 0
	switch how {
	case "rjust":
		left = missing
	case "center":
		left = missing/2 + missing&width&1
	}
	return strings.Repeat(fill, left) + s + strings.Repeat(fill, missing-left)
}

func expandTabs(r *renderer, s string, size int) string {
	r.reads(4 * len(s))
	var b strings.Builder
	column := 0
	for _, c := range s {
		switch c {
		case '\t':
			if size > 0 {
				n := size - column%size
				r.size(n)
				r.size(b.Len() + n)
				r.reads(n)
				b.WriteString(strings.Repeat(" ", n))
				column += n
			}
		case '\n', '\r':
			b.WriteRune(c)
			column = 0
		default:
			b.WriteRune(c)
			column++
		}
	}
	return b.String()
}
