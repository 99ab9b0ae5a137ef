package jinja

import (
	"math/big"
)

type test = func(r *renderer, v value, a args) bool

// tests are Jinja's tests, the operands of is.
var tests map[string]test

func init() {
	comparison := func(op string) test {
		return func(r *renderer, v value, a args) bool {
			return r.holds(op, v, a.bind(op, "other")[0])
		}
	}
	plain := func(f func(v value) bool) test {
		return func(_ *renderer, v value, a args) bool {
			a.bind("test")
			return f(v)
		}
	}
	remainder := func(r *renderer, v value, by value) value { return r.arithmetic('%', v, by) }
	tests = map[string]test{
		"odd": func(r *renderer, v value, a args) bool {
			a.bind("odd")
			return r.equal(remainder(r, v, 2), 1)
		},
		"even": func(r *renderer, v value, a args) bool {
			a.bind("even")
			return r.equal(remainder(r, v, 2), 0)
		},
		"divisibleby": func(r *renderer, v value, a args) bool {
			return r.equal(remainder(r, v, a.bind("divisibleby", "num")[0]), 0)
		},
		"defined":   plain(func(v value) bool { _, missing := v.(*undefined); return !missing }),
		"undefined": plain(func(v value) bool { _, missing := v.(*undefined); return missing }),
		"none":      plain(func(v value) bool { _, ok := v.(none); return ok }),
		"boolean":   plain(func(v value) bool { _, ok := v.(bool); return ok }),
		"true":      plain(func(v value) bool { return v == true }),
		"false":     plain(func(v value) bool { return v == false }),
		"integer": plain(func(v value) bool {
			switch v.(type) {
			case int, *big.Int:
				return true
			}
			return false
		}),
		"float":  plain(func(v value) bool { _, ok := v.(float64); return ok }),
		"number": plain(func(v value) bool { _, ok := number(v); return ok }),
		"string": plain(func(v value) bool { _, ok := text(v); return ok }),
		"mapping": plain(func(v value) bool {
			_, ok := v.(*Dict)
			return ok
		}),
		"sequence": plain(func(v value) bool {
			switch v.(type) {
			case string, markup, *list, tuple, *Dict, *rangeObject, *undefined, *group:
				return true
			}
			return false
		}),
		"iterable": plain(func(v value) bool {
			switch v.(type) {
			case string, markup, *list, tuple, *Dict, *rangeObject, *view, *generator, *undefined,
				*group, *loop:
				return true
			}
			return false
		}),
		"callable": plain(func(v value) bool {
			switch v.(type) {
			case *function, callable, *undefined:
				return true
			}
			return false
		}),
		"lower": func(r *renderer, v value, a args) bool {
			a.bind("lower")
			s := r.str(v)
			return hasCase(s) && s == lowerSimple(s)
		},
		"upper": func(r *renderer, v value, a args) bool {
			a.bind("upper")
			s := r.str(v)
			return hasCase(s) && s == upperSimple(s)
		},
		"escaped": plain(func(v value) bool { _, ok := v.(markup); return ok }),
		"sameas": func(r *renderer, v value, a args) bool {
			return same(v, a.bind("sameas", "other")[0])
		},
		"filter": func(r *renderer, v value, a args) bool {
			a.bind("filter")
			name, _ := text(v)
			return filters[name] != nil
		},
		"test": func(r *renderer, v value, a args) bool {
			a.bind("test")
			name, _ := text(v)
			return tests[name] != nil
		},
		"in": func(r *renderer, v value, a args) bool {
			return r.contains(a.bind("in", "seq")[0], v)
		},
	}
	for op, names := range map[string][]string{
		"==": {"eq", "equalto", "=="}, "!=": {"ne", "!="}, ">": {"gt", "greaterthan", ">"},
		">=": {"ge", ">="}, "<": {"lt", "lessthan", "<"}, "<=": {"le", "<="},
	} {
		for _, name := range names {
			tests[name] = comparison(op)
		}
	}
}

// same approximates Python's a is b: objects by identity, other values by type and value.
func same(a, b value) bool {
	if typeName(a) != typeName(b) {
		return false
	}
	switch x := a.(type) {
	case *big.Int:
		y, ok := b.(*big.Int)
		return ok && x.Cmp(y) == 0
	case tuple:
		y := b.(tuple)
		return len(x) == 0 && len(y) == 0 || len(x) == len(y) && len(x) > 0 && &x[0] == &y[0]
	}
	return a == b
}
