package jinja

// This file has the filters of sequences and mappings.

import (
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// group is an element of groupby: a tuple of the key and the items, with names.
type group struct {
	key   value
	items *list
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
		r.step()
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
	r.sort(items, func(item value) value { return r.caseless(item.(tuple)[at], b[0]) }, b[2])
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

func (g *group) pair() tuple { return tuple{g.key, g.items} }

func filterGroupby(r *renderer, v value, a args) value {
	b := a.bind("groupby", "attribute", "default=", "case_sensitive=")
	get := r.getter(b[0], b[1])
	items := r.collect(v)
	key := func(item value) value { return r.caseless(get(item), b[2]) }
	r.sort(items, key, nil)
	var groups []value
	for i := 0; i < len(items); {
		r.work(4)
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
	out := &output{r: r}
	it := r.iterate(v)
	for i := 0; ; i++ {
		item, ok := it()
		if !ok {
			return out.String()
		}
		part := r.shown(get(item))
		if i > 0 {
			out.write(separator)
		}
		out.write(part)
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
	if !r.truth(v) {
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
			f = r.given[name]
		}
		if f == nil {
			fail("No filter named '%s'.", name)
		}
		return func(v value) (value, bool) {
			return r.derived(f(r, v, rest), v, rest.positional...), true
		}
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
			holds := r.truth
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
	bestKey := r.caseless(get(best), b[0])
	for {
		item, ok := it()
		if !ok {
			return best
		}
		key := r.caseless(get(item), b[0])
		order, ordered := r.compare(key, bestKey, map[string]string{"max": ">", "min": "<"}[name])
		if ordered && (name == "max" && order > 0 || name == "min" && order < 0) {
			best, bestKey = item, key
		}
	}
}

func filterReverse(r *renderer, v value, a args) value {
	a.bind("reverse")
	if s, ok := text(v); ok {
		r.grow(len(s))
		runes := []rune(s)
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
		r.work(2 * len(attributes))
		l := &list{}
		for _, attribute := range attributes {
			l.items = append(l.items, r.caseless(r.getter(attribute, nil)(item), b[1]))
		}
		return l
	}
	r.sort(items, key, b[0])
	return &list{items}
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
			key := r.hashable(r.caseless(get(item), b[0]))
			if _, found := seen.find(key); !found {
				seen.set(key, true)
				return item, true
			}
		}
	}}
}
