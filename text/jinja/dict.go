package jinja

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// Dict is Python's dict: a mapping that keeps the order in which keys were first set. Its zero
// value is empty and ready to use.
type Dict struct {
	entries []entry
	index   map[any]int // nil while there are few entries
}

type entry struct{ key, value value }

// NewDict returns an empty dict.
func NewDict() *Dict { return &Dict{} }

// Set sets a key to a Go value of the kinds that [Template.Render] takes.
func (d *Dict) Set(key string, v any) error {
	converted, err := fromGo(v)
	if err != nil {
		return err
	}
	d.set(key, converted)
	return nil
}

// Len is the number of keys.
func (d *Dict) Len() int { return len(d.entries) }

// few is how many entries are searched without an index.
const few = 8

func (d *Dict) set(key, v value) {
	if i := d.at(key); i >= 0 {
		d.entries[i].value = v
		return
	}
	d.entries = append(d.entries, entry{key, v})
	switch {
	case d.index != nil:
		d.index[hashOf(key)] = len(d.entries) - 1
	case len(d.entries) > few:
		d.index = make(map[any]int, 2*few)
		for i, e := range d.entries {
			d.index[hashOf(e.key)] = i
		}
	}
}

func (d *Dict) find(key value) (value, bool) {
	if i := d.at(key); i >= 0 {
		return d.entries[i].value, true
	}
	return nil, false
}

func (d *Dict) at(key value) int {
	if d.index == nil {
		if s, ok := key.(string); ok {
			for i := range d.entries {
				if k, ok := d.entries[i].key.(string); ok && k == s {
					return i
				}
			}
			return -1
		}
	}
	h := hashOf(key)
	if d.index != nil {
		if i, ok := d.index[h]; ok {
			return i
		}
		return -1
	}
	for i := range d.entries {
		if hashOf(d.entries[i].key) == h {
			return i
		}
	}
	return -1
}

func (d *Dict) clone() *Dict {
	c := NewDict()
	for _, e := range d.entries {
		c.set(e.key, e.value)
	}
	return c
}

// hashOf maps a key to a comparable Go value such that equal keys map to equal values.
func hashOf(key value) any {
	switch k := key.(type) {
	case markup:
		return string(k)
	case bool:
		if k {
			return 1
		}
		return 0
	case float64:
		if k == math.Trunc(k) && math.Abs(k) < 1<<62 {
			return int(k)
		}
		return k
	case *big.Int:
		return "\x00int" + string(rune('0'+k.Sign()+1)) + string(k.Bytes())
	case tuple:
		var joined [8]any
		if len(k) <= len(joined) {
			for i, item := range k {
				joined[i] = hashOf(item)
			}
			return struct {
				n     int
				items [8]any
			}{len(k), joined}
		}
		var text strings.Builder
		text.WriteString("\x00tuple")
		for _, item := range k {
			h := hashOf(item)
			fmt.Fprintf(&text, "%T:%v,", h, h)
		}
		return text.String()
	}
	return key
}

// hashable fails for values that cannot be a key.
func (r *renderer) hashable(v value) value { return r.hashableAt(v, 0) }

func (r *renderer) hashableAt(v value, depth int) value {
	r.nested(depth)
	switch v := v.(type) {
	case *list, *Dict, *view:
		fail("unhashable type: '%s'", typeName(v))
	case string:
		r.reads(len(v))
	case markup:
		r.reads(len(v))
	case tuple:
		for _, item := range v {
			r.hashableAt(item, depth+1)
		}
	}
	return v
}
