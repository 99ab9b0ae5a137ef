package jinja

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// parseJSON reads a JSON value as Python's json does: objects keep their order, a number without a
// fraction or exponent is an int.
func parseJSON(data []byte) (value, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := readJSON(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("unexpected text after the JSON value")
	}
	return v, nil
}

const maxJSONDepth = 1000

func readJSON(d *json.Decoder, depth int) (value, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("JSON is nested more than %d levels deep", maxJSONDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t := t.(type) {
	case nil:
		return none{}, nil
	case json.Number:
		return fromNumber(string(t))
	case json.Delim:
		if t == '[' {
			l := &list{items: []value{}}
			for d.More() {
				item, err := readJSON(d, depth+1)
				if err != nil {
					return nil, err
				}
				l.items = append(l.items, item)
			}
			_, err = d.Token()
			return l, err
		}
		object := NewDict()
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return nil, err
			}
			v, err := readJSON(d, depth+1)
			if err != nil {
				return nil, err
			}
			object.set(key.(string), v)
		}
		_, err = d.Token()
		return object, err
	}
	return t, nil // bool or string
}

func fromNumber(text string) (value, error) {
	if strings.ContainsAny(text, ".eE") {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil && !math.IsInf(f, 0) {
			return nil, err
		}
		return f, nil
	}
	if i, err := strconv.Atoi(text); err == nil {
		return i, nil
	}
	n, ok := new(big.Int).SetString(text, 10)
	if !ok || n.BitLen() > maxBits {
		return nil, fmt.Errorf("%.40s is not a number", text)
	}
	return n, nil
}

// fromGo converts a Go value to a template's value.
func fromGo(v any) (value, error) { return fromGoAt(v, 0) }

func fromGoAt(v any, depth int) (value, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("the value is nested more than %d levels deep", maxJSONDepth)
	}
	switch v := v.(type) {
	case nil:
		return none{}, nil
	case bool, int, string, float64, *Dict:
		return v, nil
	case json.Number:
		return fromNumber(string(v))
	case json.RawMessage:
		return parseJSON(v)
	case []any:
		l := &list{make([]value, len(v))}
		for i, item := range v {
			converted, err := fromGoAt(item, depth+1)
			if err != nil {
				return nil, err
			}
			l.items[i] = converted
		}
		return l, nil
	}
	rv := reflect.ValueOf(v)
	switch rv.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return int(rv.Int()), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return normalize(new(big.Int).SetUint64(rv.Uint())), nil
	case reflect.Float32, reflect.Float64:
		return rv.Float(), nil
	case reflect.Bool:
		return rv.Bool(), nil
	case reflect.String:
		return rv.String(), nil
	case reflect.Slice, reflect.Array:
		l := &list{make([]value, rv.Len())}
		for i := range l.items {
			converted, err := fromGoAt(rv.Index(i).Interface(), depth+1)
			if err != nil {
				return nil, err
			}
			l.items[i] = converted
		}
		return l, nil
	case reflect.Map:
		if rv.Type().Key().Kind() != reflect.String {
			break
		}
		keys := rv.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int {
			return strings.Compare(a.String(), b.String())
		})
		d := NewDict()
		for _, key := range keys {
			converted, err := fromGoAt(rv.MapIndex(key).Interface(), depth+1)
			if err != nil {
				return nil, err
			}
			d.set(key.String(), converted)
		}
		return d, nil
	case reflect.Pointer, reflect.Interface:
		if rv.IsNil() {
			return none{}, nil
		}
		return fromGoAt(rv.Elem().Interface(), depth+1)
	}
	return nil, fmt.Errorf("a %T cannot be given to a template", v)
}

// encoder writes values as Python's json.dumps.
type encoder struct {
	r              *renderer
	b              strings.Builder
	ascii, sorted  bool
	indent         string
	pretty         bool
	item, keyValue string // separators
}

// filterToJSON is transformers' filter tojson.
func filterToJSON(r *renderer, v value, a args) value {
	b := a.bind("tojson", "ensure_ascii=", "indent=", "separators=", "sort_keys=")
	e := &encoder{r: r, item: ", ", keyValue: ": "}
	e.ascii = b[0] != nil && truth(b[0])
	e.sorted = b[3] != nil && truth(b[3])
	switch indent := b[1].(type) {
	case nil, none:
	default:
		e.pretty, e.item = true, ","
		if s, ok := text(indent); ok {
			e.indent = s
		} else {
			n := max(0, intArg(args{positional: b}, 1, 0))
			r.grow(n)
			e.indent = strings.Repeat(" ", n)
		}
	}
	if _, isNone := b[2].(none); b[2] != nil && !isNone {
		pair := r.collect(b[2])
		if len(pair) != 2 {
			fail("separators must be a pair")
		}
		item, okItem := text(pair[0])
		keyValue, okKey := text(pair[1])
		if !okItem || !okKey {
			fail("separators must be strings")
		}
		e.item, e.keyValue = item, keyValue
	}
	e.write(v, 0)
	return e.b.String()
}

func (e *encoder) newline(depth int) {
	e.r.reads(len(e.item) + len(e.keyValue))
	if e.pretty {
		e.r.reads(depth * len(e.indent))
		e.b.WriteByte('\n')
		for range depth {
			e.b.WriteString(e.indent)
		}
	}
}

func (e *encoder) write(v value, depth int) {
	e.r.nested(depth)
	if e.b.Len() > e.r.limits.Bytes {
		failLimit("bytes", e.r.limits.Bytes)
	}
	switch v := v.(type) {
	case none, bool, int, *big.Int, float64:
		e.r.reads(bigBits(v) / 3)
		e.b.WriteString(jsonScalar(v))
	case string:
		e.quote(v)
		e.r.encodes(v)
	case markup:
		e.quote(string(v))
	case *list:
		e.array(v.items, depth)
	case tuple:
		e.array(v, depth)
	case *group:
		e.array([]value{v.key, v.items}, depth)
	case *Dict:
		e.object(v, depth)
	default:
		fail("Object of type %s is not JSON serializable", typeName(v))
	}
}

func jsonScalar(v value) string {
	switch v := v.(type) {
	case none:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case int:
		return strconv.Itoa(v)
	case *big.Int:
		return v.String()
	case float64:
		switch {
		case math.IsInf(v, 1):
			return "Infinity"
		case math.IsInf(v, -1):
			return "-Infinity"
		case math.IsNaN(v):
			return "NaN"
		}
		return formatFloat(v)
	}
	return ""
}

func (e *encoder) array(items []value, depth int) {
	if len(items) == 0 {
		e.b.WriteString("[]")
		return
	}
	e.b.WriteByte('[')
	for i, item := range items {
		if i > 0 {
			e.b.WriteString(e.item)
		}
		e.newline(depth + 1)
		e.write(item, depth+1)
	}
	e.newline(depth)
	e.b.WriteByte(']')
}

func (e *encoder) object(d *Dict, depth int) {
	if d.Len() == 0 {
		e.b.WriteString("{}")
		return
	}
	entries := d.entries
	if e.sorted {
		entries = slices.Clone(entries)
		slices.SortStableFunc(entries, func(a, b entry) int {
			order, _ := e.r.compare(a.key, b.key, "<")
			return order
		})
	}
	e.b.WriteByte('{')
	for i, entry := range entries {
		if i > 0 {
			e.b.WriteString(e.item)
		}
		e.newline(depth + 1)
		switch key := entry.key.(type) {
		case none, bool, int, *big.Int, float64:
			e.quote(jsonScalar(key))
		default:
			s, ok := text(key)
			if !ok {
				fail("keys must be str, int, float, bool or None, not %s", typeName(key))
			}
			e.quote(s)
		}
		e.b.WriteString(e.keyValue)
		e.write(entry.value, depth+1)
	}
	e.newline(depth)
	e.b.WriteByte('}')
}

// quote writes a JSON string.
func (e *encoder) quote(s string) {
	const digits = "0123456789abcdef"
	e.r.grow(len(s))
	e.b.WriteByte('"')
	start := 0
	flush := func(i int) { e.b.WriteString(s[start:i]) }
	unicodeEscape := func(c rune) {
		e.b.WriteString("\\u")
		for shift := 12; shift >= 0; shift -= 4 {
			e.b.WriteByte(digits[c>>shift&15])
		}
	}
	for i := 0; i < len(s); {
		c, size := utf8.DecodeRuneInString(s[i:])
		var short string
		switch c {
		case '"':
			short = "\\\""
		case '\\':
			short = "\\\\"
		case '\n':
			short = "\\n"
		case '\r':
			short = "\\r"
		case '\t':
			short = "\\t"
		case '\b':
			short = "\\b"
		case '\f':
			short = "\\f"
		}
		switch {
		case short != "":
			flush(i)
			e.b.WriteString(short)
			start = i + size
		case c < ' ' || e.ascii && (c >= 0x7f):
			flush(i)
			if c > 0xffff {
				c -= 0x10000
				unicodeEscape(0xd800 + c>>10)
				unicodeEscape(0xdc00 + c&0x3ff)
			} else {
				unicodeEscape(c)
			}
			start = i + size
		}
		i += size
	}
	flush(len(s))
	e.b.WriteByte('"')
}
