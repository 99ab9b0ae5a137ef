package grammar

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// letters is a vocabulary of single bytes and of some longer tokens.
func letters() (*Vocabulary, func(int32) []byte) {
	var tokens [][]byte
	for b := range 256 {
		tokens = append(tokens, []byte{byte(b)})
	}
	const longer = `"a ": {" "} }, true false null -1 10 ab abc äö \u00 \" [[ ]]`
	for _, text := range strings.Fields(longer) {
		tokens = append(tokens, []byte(text))
	}
	tokens = append(tokens, nil) // a special token
	bytes := func(id int32) []byte { return tokens[id] }
	return NewVocabulary(len(tokens), bytes), bytes
}

// accepts reports whether a mask lets a text through byte by byte, and end.
func accepts(t testing.TB, m *Mask, text string) bool {
	t.Helper()
	s := m.Start()
	for _, b := range []byte(text) {
		allowed, err := m.Allowed(s)
		if err != nil {
			t.Fatal(err)
		}
		next, err := m.Next(s, int32(b))
		if err != nil {
			t.Fatal(err)
		}
		if (next != nil) != (allowed[b/64]>>(b%64)&1 == 1) {
			t.Fatalf("%q: the mask and the step disagree on %q", text, b)
		}
		if s = next; s == nil {
			return false
		}
	}
	return s.Accepts()
}

func mask(t testing.TB, g *Grammar, err error) *Mask {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	v, bytes := letters()
	m, err := NewMask(g, v, bytes)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// random draws a text of a grammar, token by token, and returns false if it becomes long.
func random(t testing.TB, m *Mask, r *rand.Rand) (string, bool) {
	t.Helper()
	s, text := m.Start(), ""
	for range 400 {
		allowed, err := m.Allowed(s)
		if err != nil {
			t.Fatal(err)
		}
		var ids []int32
		for id := range int32(m.vocabulary.size) {
			if allowed[id/64]>>(id%64)&1 == 1 {
				ids = append(ids, id)
			}
		}
		if s.Accepts() && (len(ids) == 0 || r.IntN(3) == 0) {
			return text, true
		}
		if len(ids) == 0 {
			t.Fatalf("nothing may follow %q", text)
		}
		id := ids[r.IntN(len(ids))]
		for _, closing := range `"}]` { // end what is open, as a model would
			if c := int32(closing); allowed[c/64]>>(c%64)&1 == 1 && r.IntN(3) == 0 {
				id = c
			}
		}
		text += string(m.bytes(id))
		if s, err = m.Next(s, id); err != nil || s == nil {
			t.Fatalf("an allowed token was refused after %q: %v", text, err)
		}
	}
	return text, false
}

// Regular expressions allow the texts that Go's package matches.
func TestRegexp_AllowsWhatMatches(t *testing.T) {
	texts := []string{"", "a", "b", "ab", "abc", "aab", "ba", "äö", "ß", "aé", "1", "12", "007",
		"2024-01-31", "x\ny", "A", "aB", "日本", "😀", "a😀", "\u007f", "\u0080", "\u07ff", "\uffff",
		"aaaa", "aaaaa", "-5", "a.b", "foo@bar.de"}
	for _, pattern := range []string{"", "a*", "(a|b)+c?", "[^a]*", ".", ".+", `(?s).+`, `\d{2,3}`,
		`(?i)ab`, `[à-ü]+`, `[\x{80}-\x{10ffff}]+`, `a{4,}`, `^ab?$`, `\w+@\w+\.[a-z]{2,}`,
		`\d{4}-\d{2}-\d{2}`, `[^\x00-\x7f]`, `-?(0|[1-9]\d*)`, `\p{Han}+`, `(a|)(b|)`, `[^b]|ba`} {
		g, err := Regexp(pattern)
		m := mask(t, g, err)
		whole := regexp.MustCompile(`^(?:` + pattern + `)$`)
		for _, text := range texts {
			if got, want := accepts(t, m, text), whole.MatchString(text); got != want {
				t.Errorf("%q of %q: %v, expected %v", text, pattern, got, want)
			}
		}
		r := rand.New(rand.NewPCG(1, 2))
		for range 20 {
			if text, ended := random(t, m, r); ended && !whole.MatchString(text) {
				t.Errorf("%q does not match %q", text, pattern)
			}
		}
	}
	for _, pattern := range []string{"(", `a\b`, "a$b", `[^\x00-\x{10FFFF}]`,
		strings.Repeat("(a{0,100}", 4) + strings.Repeat("){0,100}", 3) + "){0,9}"} {
		if g, err := Regexp(pattern); err == nil {
			t.Errorf("%.60q was accepted: %d instructions", pattern, len(g.program))
		}
	}
}

func TestChoice_AllowsOneOfThem(t *testing.T) {
	g, err := Choice([]string{"yes", "no", "nothing", "ä"})
	m := mask(t, g, err)
	for text, want := range map[string]bool{"yes": true, "no": true, "nothing": true, "ä": true,
		"": false, "n": false, "noth": false, "yesno": false} {
		if accepts(t, m, text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}

func TestSchema_AllowsExamples(t *testing.T) {
	for _, c := range []struct{ schema, yes, no string }{
		{`{"type": "integer"}`, "0|-7|123", "1.0|01|+1|-|a"},
		{`{"type": "number"}`, "0|-7.25|1e5|1.5E-3", ".5|1.|NaN|--1"},
		{`{"type": "integer", "minimum": -15, "maximum": 203}`, "-15|-9|0|7|99|203|199",
			"-16|204|1000|-0|-20"},
		{`{"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12}`, "10|11", "9|12|1"},
		{`{"type": "number", "minimum": 0, "maximum": 1}`, "0|1|0.5|0.001", "-0.5|1.5|1.0001|-1"},
		{`{"type": "number", "minimum": -2.5, "exclusiveMaximum": 0}`, "-1.5|-2|-1|-0.25",
			"0|-2.7|-3|0.5"},
		{`{"type": "string", "minLength": 2, "maxLength": 3}`, `"ab"|"äöü"|"a\n"|"\u00e4b"`,
			`"a"|"abcd"|"a` + "\n" + `"|"\ud800b"`},
		{`{"type": "string", "pattern": "^[a-c]+$"}`, `"a"|"abc"`, `""|"d"|"ad"`},
		{`{"type": "string", "pattern": "b"}`, `"b"|"abc"|"xxb"`, `"a"|""`},
		{`{"enum": ["a", 1, null, {"b": [true]}]}`, `"a"|1|null|{"b":[true]}`, `"b"|2|{}`},
		{`{"type": "string", "enum": ["a", 1]}`, `"a"`, `1`},
		{`{"const": "x\"y"}`, `"x\"y"`, `"x"`},
		{`{"type": ["integer", "null", "number"], "maximum": 3}`, `3|null|2.5`, `4|"a"`},
		{`{"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 2}`,
			"[1]|[1, 2]|[1,2]", "[]|[1,2,3]|[1,]|[true]"},
		{`{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"},
			"c": {"type": "null"}}, "required": ["b"], "additionalProperties": false}`,
			`{"b": ""}|{"a":1, "b":"x"}|{"b":"","c":null}|{"a": 1,"b":"", "c":null}`,
			`{}|{"a":1}|{"b":"",}|{"c":null,"b":""}|{"b":"","d":1}`},
		{`{"type": "object", "additionalProperties": {"type": "integer"}}`, `{}|{"x": 1,"y":2}`,
			`{"x": "a"}`},
		{`{"$defs": {"tree": {"type": "object", "properties": {"kids": {"type": "array", "items":
			{"$ref": "#/$defs/tree"}}}, "required": ["kids"]}}, "$ref": "#/$defs/tree"}`,
			`{"kids": []}|{"kids": [{"kids":[]},{"kids": [{"kids": []}]}]}`, `{}|{"kids": [1]}`},
		{`{"anyOf": [{"type": "integer"}, {"type": "boolean"}]}`, `1|true`, `"a"`},
		{`{}`, `1|"a"|[1,{"a":[]}]|{"a":{"b":[null,true]}}`, `{a:1}|[1 2]`},
		{`{"type": "object"}`, `{"a":{"b":[null,true]}}`, `[]|1`},
	} {
		g, err := JSONSchema([]byte(c.schema))
		if err != nil {
			t.Errorf("%s: %v", c.schema, err)
			continue
		}
		m := mask(t, g, nil)
		for text := range strings.SplitSeq(c.yes, "|") {
			if !accepts(t, m, text) {
				t.Errorf("%s refuses %s", c.schema, text)
			}
		}
		for text := range strings.SplitSeq(c.no, "|") {
			if accepts(t, m, text) {
				t.Errorf("%s allows %s", c.schema, text)
			}
		}
	}
}

func TestSchema_RefusesWhatItCannotEnforce(t *testing.T) {
	for schema, says := range map[string]string{
		`{"type": "array", "uniqueItems": true}`:                                    "uniqueItems",
		`{"type": "object", "patternProperties": {}}`:                               "patternProp",
		`{"type": "integer", "multipleOf": 2}`:                                      "multipleOf",
		`{"not": {}}`:                                                               "not",
		`{"oneOf": [{"type": "integer"}, {"type": "number"}]}`:                      "oneOf",
		`{"allOf": [{"type": "string"}, {"minLength": 2}]}`:                         "allOf",
		`{"$ref": "#/$defs/none"}`:                                                  "nowhere",
		`{"$ref": "http://example.org/x"}`:                                          "out of",
		`{"$ref": "#"}`:                                                             "no text",
		`{"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}`: "no text",
		`{"type": "array", "items": {"type": "string"}, "minItems": 1000000000}`:    "minItems",
		`{"type": "string", "minLength": 150000}`:                                   "too large",
		`{"type": "integer", "minimum": 5, "maximum": 4}`:                           "no text",
		`{"type": "object", "required": ["a"], "additionalProperties": false}`:      "not allowed",
		`[1]`: "schema",
		strings.Repeat(`{"items":`, 300) + "{}" + strings.Repeat("}", 300): "too large",
	} {
		_, err := JSONSchema([]byte(schema))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.80s: %v", schema, err)
		}
	}
}

// Whatever is compiled, a token costs a bounded time.
func TestMask_BoundsTheWorkOfHostileGrammars(t *testing.T) {
	for _, pattern := range []string{`(a?){200}b`, `(.*a.{0,200}){20}`, `(a|aa|aaa)*b`,
		`((a*)*)*c`, strings.Repeat("(a|b)?", 1500)} {
		g, err := Regexp(pattern)
		if err != nil {
			continue
		}
		m := mask(t, g, nil)
		began := time.Now()
		s := m.Start()
		for range 50 {
			if _, err = m.Allowed(s); err != nil {
				break
			}
			if s, err = m.Next(s, 'a'); err != nil || s == nil {
				break
			}
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("%.30q took %v", pattern, d)
		}
	}
	g, err := JSONObject()
	m := mask(t, g, err)
	deep := m.Start()
	for range 500 {
		for _, b := range []byte(`{"a":`) {
			if deep != nil {
				deep, _ = m.Next(deep, int32(b))
			}
		}
	}
	if deep != nil {
		t.Error("objects nest without end")
	}
	if len(m.stacks) > 10*maxDepth {
		t.Errorf("%d stacks", len(m.stacks))
	}
}

// Every text that a random schema allows is valid, as another library judges. GENERATIONS is the
// number of texts.
func TestSchema_RandomTextsAreValid(t *testing.T) {
	r, want := rand.New(rand.NewPCG(7, 8)), 600
	if text := os.Getenv("GENERATIONS"); text != "" {
		want, _ = strconv.Atoi(text)
	}
	for ended := 0; ended < want; {
		text, _ := json.Marshal(randomSchema(r, 3))
		parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		c := jsonschema.NewCompiler()
		if err := c.AddResource("schema.json", parsed); err != nil {
			t.Fatal(err)
		}
		validator, err := c.Compile("schema.json")
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		g, err := JSONSchema(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		m := mask(t, g, nil)
		for range 3 {
			made, ok := random(t, m, r)
			if !ok {
				continue
			}
			ended++
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(made))
			if err != nil || !utf8.ValidString(made) {
				t.Fatalf("%s allows %q: %v", text, made, err)
			}
			if err := validator.Validate(value); err != nil {
				t.Fatalf("%s allows %s: %v", text, made, err)
			}
		}
	}
}

func randomSchema(r *rand.Rand, depth int) map[string]any {
	n := 7
	if depth == 0 {
		n = 5
	}
	switch r.IntN(n) {
	case 0:
		if r.IntN(3) == 0 {
			return map[string]any{"type": []any{"integer", "null", "string"}, "maxLength": 4,
				"exclusiveMinimum": r.IntN(20) - 10}
		}
		low := r.IntN(2000) - 1000
		return map[string]any{"type": "integer", "minimum": low, "maximum": low + r.IntN(500)}
	case 1:
		low := float64(r.IntN(2000)-1000) / 4
		return map[string]any{"type": "number", "minimum": low, "exclusiveMaximum": low + 2 +
			float64(r.IntN(50))/4}
	case 2:
		least := r.IntN(4)
		if patterns := []string{"^a+$", "b", "^[^x]{2}", `^\d+-\d$`, "(ab|c)$"}; least == 0 {
			return map[string]any{"type": "string", "pattern": patterns[r.IntN(len(patterns))]}
		}
		return map[string]any{"type": "string", "minLength": least, "maxLength": least + r.IntN(6)}
	case 3:
		return map[string]any{"enum": []any{"a", float64(r.IntN(9)), nil, true}}
	case 4:
		return map[string]any{"anyOf": []any{map[string]any{"type": "boolean"},
			map[string]any{"const": "x"}}}
	case 5:
		least := r.IntN(3)
		return map[string]any{"type": "array", "items": randomSchema(r, depth-1),
			"minItems": least, "maxItems": least + r.IntN(3)}
	}
	properties, required := map[string]any{}, []any{}
	for i := range r.IntN(4) {
		name := fmt.Sprint("p", i)
		properties[name] = randomSchema(r, depth-1)
		if r.IntN(2) == 0 {
			required = append(required, name)
		}
	}
	return map[string]any{"type": "object", "properties": properties, "required": required,
		"additionalProperties": false}
}

// A grammar is made of foreign bytes.
func FuzzJSONSchema_IsBounded(f *testing.F) {
	for _, s := range []string{`{"type":"object","properties":{"a":{"$ref":"#"}}}`,
		`{"type":"string","pattern":"(a|b)*c"}`, `{"type":"number","minimum":-1.5}`,
		`{"enum":[1,"a"]}`,
		`{"type":"array","items":{"type":["null","integer"]},"maxItems":3}`} {
		f.Add([]byte(s))
	}
	v, bytes := letters()
	f.Fuzz(func(t *testing.T, schema []byte) {
		g, err := JSONSchema(schema)
		if err != nil {
			return
		}
		m, err := NewMask(g, v, bytes)
		if err != nil {
			return
		}
		r, s := rand.New(rand.NewPCG(1, 1)), m.Start()
		for range 10 {
			allowed, err := m.Allowed(s)
			if err != nil {
				return
			}
			var ids []int32
			for id := range int32(v.size) {
				if allowed[id/64]>>(id%64)&1 == 1 {
					ids = append(ids, id)
				}
			}
			if len(ids) == 0 {
				if !s.Accepts() {
					t.Fatalf("%q: nothing may follow", schema)
				}
				return
			}
			if s, err = m.Next(s, ids[r.IntN(len(ids))]); err != nil {
				return
			}
		}
	})
}
