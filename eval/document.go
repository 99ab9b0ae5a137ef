package eval

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

// document is one record of a data set: an object whose fields have an order.
type document struct {
	raw    json.RawMessage // the object, as templates get it
	fields map[string]any  // nil, bool, int, float64, string, []any or map[string]any
	where  string          // file and line or row
}

// newDocument reads a record.
func newDocument(raw json.RawMessage, where string) (document, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var fields map[string]any
	if err := d.Decode(&fields); err != nil {
		return document{}, fmt.Errorf("%s: %w", where, err)
	}
	for name, v := range fields {
		fields[name] = plain(v)
	}
	return document{raw, fields, where}, nil
}

// plain turns JSON's numbers into Go's, as Python does: whole ones into int.
func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := strconv.Atoi(v.String()); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = plain(v[k])
		}
	}
	return v
}

// with returns the document with more fields, which replace those of the same name.
func (d document) with(names []string, values []any) (document, error) {
	var b bytes.Buffer
	encode := json.NewEncoder(&b)
	encode.SetEscapeHTML(false)
	members := json.NewDecoder(bytes.NewReader(d.raw))
	members.UseNumber()
	if _, err := members.Token(); err != nil {
		return d, err
	}
	given := map[string]bool{}
	for _, name := range names {
		given[name] = true
	}
	b.WriteByte('{')
	write := func(name string, value any) error {
		if b.Len() > 1 {
			b.WriteByte(',')
		}
		if err := encode.Encode(name); err != nil {
			return err
		}
		b.WriteByte(':')
		return encode.Encode(value)
	}
	for members.More() {
		name, err := members.Token()
		if err != nil {
			return d, err
		}
		var value json.RawMessage
		if err := members.Decode(&value); err != nil {
			return d, err
		}
		if s := name.(string); !given[s] {
			if err := write(s, value); err != nil {
				return d, err
			}
		}
	}
	for i, name := range names {
		if err := write(name, values[i]); err != nil {
			return d, err
		}
	}
	b.WriteByte('}')
	return newDocument(b.Bytes(), d.where)
}

// complete gives every document the fields that any has: null where it is missing, as a table does.
func complete(documents []document) error {
	var names []string
	known := map[string]bool{}
	for _, d := range documents {
		for name := range d.fields {
			if !known[name] {
				known[name] = true
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	for i, d := range documents {
		var missing []string
		if len(d.fields) == len(names) {
			continue
		}
		for _, name := range names {
			if _, ok := d.fields[name]; !ok {
				missing = append(missing, name)
			}
		}
		var err error
		if documents[i], err = d.with(missing, make([]any, len(missing))); err != nil {
			return err
		}
	}
	return nil
}

// equal reports whether two documents have the same fields and values.
func (d document) equal(o document) bool {
	return bytes.Equal(d.raw, o.raw) || sameValue(d.fields, o.fields)
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for k := range a {
			other, ok := b[k]
			if !ok || !sameValue(a[k], other) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !sameValue(a[i], b[i]) {
				return false
			}
		}
		return true
	}
	switch b.(type) {
	case []any, map[string]any:
		return false
	}
	return a == b
}
