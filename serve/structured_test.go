package serve

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"conquer/text/grammar"
)

const person = `{"type": "object", "properties": {"name": {"type": "string", "maxLength": 12},
	"age": {"type": "integer", "minimum": 0, "maximum": 150}, "tags": {"type": "array",
	"items": {"enum": ["a", "b"]}, "maxItems": 3}}, "required": ["name", "age", "tags"],
	"additionalProperties": false}`

// A random model, which writes nonsense otherwise, keeps to what a request asks for.
func TestStructured_AnswersHaveTheirForm(t *testing.T) {
	_, h := serving(t, nil)
	isPerson := func(text string) error {
		var p struct {
			Name *string   `json:"name"`
			Age  *int      `json:"age"`
			Tags *[]string `json:"tags"`
		}
		d := json.NewDecoder(strings.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err != nil {
			return err
		}
		if p.Name == nil || p.Age == nil || p.Tags == nil || len([]rune(*p.Name)) > 12 ||
			*p.Age < 0 || *p.Age > 150 || len(*p.Tags) > 3 {
			return fmt.Errorf("wrong members")
		}
		return nil
	}
	matches := func(pattern string) func(string) error {
		return func(text string) error {
			if !regexp.MustCompile("^(?:" + pattern + ")$").MatchString(text) {
				return fmt.Errorf("no match of %s", pattern)
			}
			return nil
		}
	}
	for _, c := range []struct {
		fields string
		check  func(text string) error
	}{
		{`"response_format": {"type": "json_schema", "json_schema": {"name": "p", "strict": true,
			"schema": ` + person + `}}`, isPerson},
		{`"structured_outputs": {"json": ` + person + `}`, isPerson},
		{`"structured_outputs": {"regex": "[a-z]{3}-\\d{4}"}`, matches(`[a-z]{3}-\d{4}`)},
		{`"structured_outputs": {"choice": ["positive", "negative", "neutral"]}`,
			matches("positive|negative|neutral")},
	} {
		for _, sampling := range []string{`"temperature": 0`, `"temperature": 1.5, "seed": 3`} {
			body := `{%s, ` + c.fields + `, ` + sampling + `, "n": 4, "max_tokens": 200}`
			_, answer := post(t, h.URL+"/v1/completions", fmt.Sprintf(body, `"prompt": "hello"`))
			_, chat := post(t, h.URL+"/v1/chat/completions", fmt.Sprintf(body,
				`"logprobs": true, "messages": [{"role": "user", "content": "hi"}]`))
			for i := range 4 {
				choice := at(t, answer, fmt.Sprint("choices.", i))
				text := at(t, choice, "text").(string)
				if err := c.check(text); err != nil || at(t, choice, "finish_reason") != "stop" {
					t.Errorf("%s: %q, %v: %v", c.fields, text, at(t, choice, "finish_reason"), err)
				}
				text = at(t, chat, fmt.Sprint("choices.", i, ".message.content")).(string)
				if err := c.check(text); err != nil {
					t.Errorf("%s, chat: %q: %v", c.fields, text, err)
				}
			}
		}
	}
	_, object := post(t, h.URL+"/v1/chat/completions", `{"response_format": {"type": "json_object"},
		"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20}`)
	if text := at(t, object, "choices.0.message.content").(string); !strings.HasPrefix(text, "{") {
		t.Errorf("an object is %q", text)
	}
}

func TestStructured_RefusesWhatItCannotEnforce(t *testing.T) {
	_, h := serving(t, nil)
	for _, c := range []struct{ fields, says string }{
		{`"response_format": {"type": "xml"}`, "json_schema"},
		{`"response_format": {"type": "json_schema"}`, "json_schema.schema"},
		{`"structured_outputs": {}`, "needs json"},
		{`"structured_outputs": {"regex": "("}`, "regular expression"},
		{`"structured_outputs": {"regex": "a", "choice": ["b"]}`, "one form"},
		{`"structured_outputs": {"json": {"multipleOf": 3, "type": "integer"}}`, "multipleOf"},
		{`"structured_outputs": {"choice": []}`, "no choices"},
		{`"structured_outputs": {"choice": ["a"]}, "ignore_eos": true`, "ignore_eos"},
		{`"structured_outputs": {"grammar": "root ::= x"}`, "grammar"},
		{`"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}`,
			"one form"},
	} {
		status, answer := post(t, h.URL+"/v1/completions", `{"prompt": "a", `+c.fields+`}`)
		message, _ := at(t, answer, "error.message").(string)
		if status != http.StatusBadRequest || !strings.Contains(message, c.says) {
			t.Errorf("%s: %d %v", c.fields, status, answer)
		}
	}
}

// The cost of a token's mask: of a schema that was not used before, and later.
func BenchmarkStructured_Mask(b *testing.B) {
	tok := smollm(b)
	g := newGrammars(tok, 704, nil)
	text := tok.Encode(`{"name": "hello there", "age": 42, "tags": ["a", "b"]}`, false)
	for _, first := range []bool{true, false} {
		b.Run(map[bool]string{true: "first", false: "later"}[first], func(b *testing.B) {
			tokens := 0
			for b.Loop() {
				if first {
					g.kept, g.order = map[[32]byte]*grammar.Mask{}, nil
				}
				mask, err := g.schema([]byte(person))
				if err != nil {
					b.Fatal(err)
				}
				s := mask.Start()
				for _, id := range text {
					allowed, err := mask.Allowed(s)
					if err != nil || !slices.ContainsFunc(allowed, func(w uint64) bool {
						return w != 0
					}) {
						b.Fatal(err)
					}
					if s, err = mask.Next(s, id); s == nil || err != nil {
						b.Fatal(id, err)
					}
					tokens++
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(tokens)/1e3, "µs/token")
		})
	}
}
