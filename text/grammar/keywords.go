package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
)

// keywords that change nothing that is enforced.
var described = []string{"$schema", "$id", "$comment", "$defs", "definitions", "title",
	"description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
	"format", "contentEncoding", "contentMediaType", "discriminator"}

// property is a member of properties.
type property struct {
	name   string
	schema json.RawMessage
}

// fields are the keywords of a schema that were not used so far.
type fields struct{ left map[string]json.RawMessage }

func newFields(text json.RawMessage) (*fields, error) {
	var left map[string]json.RawMessage
	if err := json.Unmarshal(text, &left); err != nil || left == nil {
		return nil, fmt.Errorf("%.60q is not a schema: expected an object, true or false", text)
	}
	for _, name := range described {
		delete(left, name)
	}
	return &fields{left}, nil
}

func (s *fields) take(name string) (json.RawMessage, bool) {
	value, ok := s.left[name]
	delete(s.left, name)
	return value, ok
}

// unused returns an error for a keyword that was not used.
func (s *fields) unused() error {
	for _, name := range slices.Sorted(maps.Keys(s.left)) {
		return fmt.Errorf("the keyword %.40q is not supported here", name)
	}
	return nil
}

// keywordTypes are the types that keywords suggest if a schema does not name its own.
var keywordTypes = map[string]string{"properties": "object", "required": "object",
	"additionalProperties": "object", "items": "array", "minItems": "array", "maxItems": "array",
	"minLength": "string", "maxLength": "string", "pattern": "string", "minimum": "number",
	"maximum": "number", "exclusiveMinimum": "number",
	"exclusiveMaximum": "number"}

// types returns the types that a value may have.
func (s *fields) types() ([]string, error) {
	value, ok := s.take("type")
	var one string
	var list []string
	switch {
	case ok && json.Unmarshal(value, &one) == nil:
		return []string{one}, nil
	case ok && json.Unmarshal(value, &list) == nil && len(list) > 0:
		slices.Sort(list)
		list = slices.Compact(list)
		if slices.Contains(list, "number") { // among which integers are
			list = slices.DeleteFunc(list, func(t string) bool { return t == "integer" })
		}
		return list, nil
	case ok:
		return nil, errors.New("type is neither a text nor a list of texts")
	}
	for _, name := range slices.Sorted(maps.Keys(s.left)) {
		if t := keywordTypes[name]; t != "" {
			return []string{t}, nil
		}
	}
	return []string{"null", "boolean", "string", "number", "array", "object"}, nil
}

// counts takes two keywords that are whole numbers; most is -1 without a limit.
func (s *fields) counts(lower, upper string) (least, most int, err error) {
	most = -1
	for name, to := range map[string]*int{lower: &least, upper: &most} {
		if value, ok := s.take(name); ok {
			var n float64
			if json.Unmarshal(value, &n) != nil || n < 0 || n != math.Trunc(n) || n > maxProgram {
				return 0, 0, fmt.Errorf("%s is %.40s, expected a whole number up to %d", name,
					value, maxProgram)
			}
			*to = int(n)
		}
	}
	if most >= 0 && least > most {
		return 0, 0, fmt.Errorf("%s is more than %s", lower, upper)
	}
	return least, most, nil
}

// properties returns the members of properties in their order.
func (s *fields) properties() (list []property, err error) {
	object, ok := s.take("properties")
	if !ok {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("properties is not an object")
	}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		p := property{name: name.(string)}
		if err := d.Decode(&p.schema); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(list, func(q property) bool { return q.name == p.name }) {
			return nil, fmt.Errorf("the property %.80q is there twice", p.name)
		}
		list = append(list, p)
	}
	return list, nil
}
