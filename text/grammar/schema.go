package grammar

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// JSONSchema compiles a JSON schema (draft 2020-12). Every text of the grammar satisfies it, with
// the properties of an object in the order of the schema and without others than those that it
// names. Keywords that cannot be enforced are refused by name; those that only describe are
// ignored, format among them.
func JSONSchema(schema []byte) (*Grammar, error) {
	if len(schema) > 1<<20 {
		return nil, errTooLarge
	}
	c := &schemaCompiler{root: schema, rules: map[string]expr{}}
	c.addJSON()
	e, err := c.reference("#")
	if err != nil {
		return nil, err
	}
	return compile(e, c.rules)
}

// JSONObject compiles any JSON object.
func JSONObject() (*Grammar, error) { return JSONSchema([]byte(`{"type": "object"}`)) }

type schemaCompiler struct {
	root  json.RawMessage
	name  string // sets the names of this schema's rules apart from those of others
	rules map[string]expr
	depth int
}

// plain are the characters that a JSON string may hold as they are.
var plain = class{0x20, 0x21, 0x23, 0x5B, 0x5D, utf8.MaxRune}

var (
	digit = class{'0', '9'}
	hex   = class{'0', '9', 'a', 'f', 'A', 'F'}
	// character is one character of a string: surrogates are not written as escapes.
	character = alt{plain, cat{literal(`\`), class{'"', '"', '\\', '\\', '/', '/', 'b', 'b', 'f',
		'f', 'n', 'n', 'r', 'r', 't', 't'}}, cat{literal(`\u`), alt{
		cat{class{'0', '9', 'a', 'c', 'e', 'f', 'A', 'C', 'E', 'F'}, repeat{hex, 3, 3}},
		cat{class{'d', 'd', 'D', 'D'}, class{'0', '7'}, repeat{hex, 2, 2}}}}}
	// Space is bounded, or a model may write nothing else.
	space   = alt{literal(""), literal(" "), cat{literal("\n"), repeat{literal(" "), 0, 20}}}
	comma   = cat{literal(","), space}
	colon   = cat{literal(":"), alt{literal(""), literal(" ")}}
	integer = cat{alt{literal(""), literal("-")}, alt{literal("0"), cat{class{'1', '9'},
		repeat{digit, 0, 14}}}}
	fraction = cat{literal("."), repeat{digit, 1, 15}}
	exponent = cat{class{'e', 'e', 'E', 'E'}, alt{literal(""), literal("+"), literal("-")},
		repeat{digit, 1, 2}}
	number = cat{integer, alt{literal(""), fraction}, alt{literal(""), exponent}}
)

func quoted(inner expr) expr { return cat{literal(`"`), inner, literal(`"`)} }

// addJSON adds the rules of any value.
func (c *schemaCompiler) addJSON() {
	text := quoted(repeat{of: character, most: -1})
	value := rule{"value"}
	c.rules["value"] = alt{text, number, literal("true"), literal("false"), literal("null"),
		rule{"object"}, list(value, 0, -1)}
	c.rules["object"] = enclosed("{", cat{text, colon, value}, 0, -1, "}")
}

// list is a JSON array of least to most values.
func list(of expr, least, most int) expr { return enclosed("[", of, least, most, "]") }

// enclosed is least to most parts between brackets, with commas between them.
func enclosed(open string, part expr, least, most int, closing string) expr {
	empty := cat{literal(open), literal(closing)}
	if most == 0 {
		return empty
	}
	more := most - 1
	if most < 0 {
		more = -1
	}
	some := cat{literal(open), space, part, repeat{cat{comma, part}, max(0, least-1), more}, space,
		literal(closing)}
	if least > 0 {
		return some
	}
	return alt{empty, some}
}

// reference returns the rule of a part of the schema, such as #/$defs/item.
func (c *schemaCompiler) reference(pointer string) (expr, error) {
	name := c.name + "ref " + pointer
	if _, known := c.rules[name]; known {
		return rule{name}, nil
	}
	rest, local := strings.CutPrefix(pointer, "#")
	if !local {
		return nil, fmt.Errorf("$ref %.80q leads out of the schema", pointer)
	}
	at := c.root
	for _, part := range strings.Split(rest, "/")[1:] {
		part = strings.NewReplacer("~1", "/", "~0", "~", "%25", "%").Replace(part)
		var object map[string]json.RawMessage
		if json.Unmarshal(at, &object) != nil || object[part] == nil {
			return nil, fmt.Errorf("$ref %.80q leads nowhere", pointer)
		}
		at = object[part]
	}
	c.rules[name] = class{} // known from here on
	e, err := c.schema(at)
	c.rules[name] = e
	return rule{name}, err
}

// schema compiles a schema or a part of one.
func (c *schemaCompiler) schema(text json.RawMessage) (expr, error) {
	if c.depth++; c.depth > 200 {
		return nil, errTooLarge
	}
	defer func() { c.depth-- }()
	switch string(bytes.TrimSpace(text)) {
	case "true":
		return rule{"value"}, nil
	case "false":
		return class{}, nil
	}
	s, err := newFields(text)
	if err != nil {
		return nil, err
	}
	e, err := c.kinds(s)
	if err == nil {
		err = s.unused()
	}
	return e, err
}

// kinds compiles a schema by the keyword that decides its kind.
func (c *schemaCompiler) kinds(s *fields) (expr, error) {
	if value, ok := s.take("const"); ok {
		return s.values([]json.RawMessage{value})
	}
	if values, ok := s.take("enum"); ok {
		var all []json.RawMessage
		if json.Unmarshal(values, &all) != nil || len(all) == 0 {
			return nil, errors.New("enum is not a list of values")
		}
		return s.values(all)
	}
	if ref, ok := s.take("$ref"); ok {
		var pointer string
		if json.Unmarshal(ref, &pointer) != nil {
			return nil, errors.New("$ref is not a text")
		}
		return c.reference(pointer)
	}
	for _, name := range []string{"anyOf", "oneOf", "allOf"} {
		if parts, ok := s.take(name); ok {
			return c.combined(name, parts)
		}
	}
	types, err := s.types()
	if err != nil {
		return nil, err
	}
	var all alt
	for _, name := range types {
		e, err := c.typed(name, s)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

func (c *schemaCompiler) combined(name string, parts json.RawMessage) (expr, error) {
	var all []json.RawMessage
	if json.Unmarshal(parts, &all) != nil || len(all) == 0 {
		return nil, fmt.Errorf("%s is not a list of schemas", name)
	}
	if len(all) > 1 && name == "allOf" {
		return nil, errors.New("allOf with several schemas is not supported: join them")
	}
	if len(all) > 1 && name == "oneOf" && !disjoint(all) {
		return nil, errors.New("oneOf is supported for schemas of different types only: use anyOf")
	}
	return alternatives(all, c.schema)
}

// disjoint reports whether schemas have one type each, and all another.
func disjoint(all []json.RawMessage) bool {
	seen := map[string]bool{}
	for _, part := range all {
		var s struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(part, &s) != nil || s.Type == "" || seen[s.Type] {
			return false
		}
		seen[s.Type] = true
	}
	return !(seen["integer"] && seen["number"])
}

func alternatives(all []json.RawMessage, each func(json.RawMessage) (expr, error)) (expr, error) {
	var list alt
	for _, part := range all {
		e, err := each(part)
		if err != nil {
			return nil, err
		}
		list = append(list, e)
	}
	return list, nil
}

// values is the set of those values, without spaces, that have a type of the schema.
func (s *fields) values(all []json.RawMessage) (expr, error) {
	types, err := s.types()
	list := alt{class{}}
	for _, value := range all {
		var compact bytes.Buffer
		if err := json.Compact(&compact, value); err != nil {
			return nil, err
		}
		text := compact.String()
		of := map[byte]string{'"': "string", '{': "object", '[': "array", 't': "boolean",
			'f': "boolean", 'n': "null"}[text[0]]
		if of == "" && (slices.Contains(types, "number") ||
			slices.Contains(types, "integer") && !strings.ContainsAny(text, ".eE")) ||
			slices.Contains(types, of) {
			list = append(list, literal(text))
		}
	}
	return list, err
}

// typed compiles the keywords of one type.
func (c *schemaCompiler) typed(name string, s *fields) (expr, error) {
	switch name {
	case "null":
		return literal("null"), nil
	case "boolean":
		return alt{literal("true"), literal("false")}, nil
	case "string":
		return c.text(s)
	case "integer", "number":
		return numeric(name == "integer", s)
	case "array":
		return c.array(s)
	case "object":
		return c.object(s)
	}
	return nil, fmt.Errorf("type %.40q is unknown", name)
}

func (c *schemaCompiler) text(s *fields) (expr, error) {
	least, most, err := s.counts("minLength", "maxLength")
	if err != nil {
		return nil, err
	}
	if value, ok := s.take("pattern"); ok {
		var pattern string
		if json.Unmarshal(value, &pattern) != nil {
			return nil, errors.New("pattern is not a text")
		}
		if least > 0 || most >= 0 {
			return nil, errors.New("pattern beside minLength or maxLength is not supported: " +
				"write the length into the pattern")
		}
		inner, err := parseRegexp(pattern, plain, true)
		return quoted(inner), err
	}
	return quoted(repeat{of: character, least: least, most: most}), nil
}

func (c *schemaCompiler) array(s *fields) (expr, error) {
	least, most, err := s.counts("minItems", "maxItems")
	if err != nil {
		return nil, err
	}
	if unique, ok := s.take("uniqueItems"); ok && string(bytes.TrimSpace(unique)) != "false" {
		return nil, errors.New("uniqueItems is not supported")
	}
	var of expr = rule{"value"}
	if items, ok := s.take("items"); ok {
		if of, err = c.named(items); err != nil {
			return nil, err
		}
		if string(bytes.TrimSpace(items)) == "false" {
			if least > 0 {
				return class{}, nil
			}
			return literal("[]"), nil
		}
	}
	return list(of, least, most), nil
}

// named compiles a schema as a rule, so that its program is not repeated.
func (c *schemaCompiler) named(text json.RawMessage) (expr, error) {
	e, err := c.schema(text)
	if _, is := e.(rule); is || err != nil {
		return e, err
	}
	name := fmt.Sprint("part ", len(c.rules))
	c.rules[name] = e
	return rule{name}, nil
}

func (c *schemaCompiler) object(s *fields) (expr, error) {
	properties, err := s.properties()
	if err != nil {
		return nil, err
	}
	var required []string
	if list, ok := s.take("required"); ok && json.Unmarshal(list, &required) != nil {
		return nil, errors.New("required is not a list of names")
	}
	others, given := s.take("additionalProperties")
	closed := string(bytes.TrimSpace(others)) == "false"
	if !given {
		others = json.RawMessage("true")
	}
	for _, name := range required {
		if slices.ContainsFunc(properties, func(p property) bool { return p.name == name }) {
			continue
		}
		if closed {
			return nil, fmt.Errorf("the property %.80q is required but not allowed", name)
		}
		properties = append(properties, property{name, others})
	}
	if len(properties) == 0 {
		if closed {
			return literal("{}"), nil
		}
		of, err := c.named(others)
		text := quoted(repeat{of: character, most: -1})
		return enclosed("{", cat{text, colon, of}, 0, -1, "}"), err
	}
	return c.members(properties, required)
}

// members is an object with properties in their order, of which some may be missing. The rule of a
// place i is what may follow from the i-th on, with or without properties before.
func (c *schemaCompiler) members(properties []property, required []string) (expr, error) {
	id := len(c.rules)
	name := func(i int, some bool) string { return fmt.Sprint("members ", id, " ", i, " ", some) }
	c.rules[name(0, false)] = class{}
	n := len(properties)
	c.rules[name(n, false)], c.rules[name(n, true)] = literal("}"), cat{space, literal("}")}
	for i, p := range properties {
		of, err := c.named(p.schema)
		if err != nil {
			return nil, fmt.Errorf("property %.80q: %w", p.name, err)
		}
		var key bytes.Buffer
		encoder := json.NewEncoder(&key)
		encoder.SetEscapeHTML(false)
		encoder.Encode(p.name)
		member := cat{literal(bytes.TrimSpace(key.Bytes())), colon, of, rule{name(i+1, true)}}
		for _, some := range []bool{false, true} {
			var e expr = cat{space, member}
			if some {
				e = cat{comma, member}
			}
			if !slices.Contains(required, p.name) {
				e = alt{e, rule{name(i+1, some)}}
			}
			c.rules[name(i, some)] = e
		}
	}
	return cat{literal("{"), rule{name(0, false)}}, nil
}
