package serve

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/text/tokenizer"
)

// toolTemplate writes calls within tags, and reasoning.
const toolTemplate = `{%- if tools %}<|im_start|>system
{{ tools | tojson }}<|im_end|>
{% endif %}{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or '' }}{%- for c in m.tool_calls or [] %}{{ '<tool_call>\n' }}` +
	`{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}` +
	`{{ '\n</tool_call>' }}{%- if not loop.last %}{{ '\n' }}{% endif %}{%- endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}`

// withTemplate is smollm with a chat template and with special tokens.
func withTemplate(t testing.TB, template string, special ...string) *tokenizer.Tokenizer {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../text/tokenizer/testdata/smollm")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "chat_template.jinja"), []byte(template),
		0o644); err != nil {
		t.Fatal(err)
	}
	if len(special) > 0 {
		path := filepath.Join(dir, "tokenizer_config.json")
		config := map[string]any{}
		data, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(data, &config)
		}
		if err != nil {
			t.Fatal(err)
		}
		config["additional_special_tokens"] = special
		data, _ = json.Marshal(config)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

const weatherTools = `"tools": [
	{"type": "function", "function": {"name": "weather", "description": "The weather.",
	"parameters": {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]},
	"days": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["city", "days"]}}},
	{"type": "function", "function": {"name": "now"}}]`

// A model with random weights calls the tool that it must call, with arguments that fit the schema.
func TestTools_ForcedCallsFitTheSchema(t *testing.T) {
	for _, tok := range []*tokenizer.Tokenizer{withTemplate(t, toolTemplate),
		withTemplate(t, toolTemplate, "<tool_call>", "</tool_call>")} {
		_, h := servingWith(t, tok, 500, nil)
		for _, c := range []struct {
			choice string
			names  []string
		}{
			{`{"type": "function", "function": {"name": "weather"}}`, []string{"weather"}},
			{`"required", "parallel_tool_calls": false`, []string{"weather", "now"}},
		} {
			body := `{"messages": [{"role": "user", "content": "hi"}], ` + weatherTools +
				`, "n": 4, "seed": 5, "max_tokens": 160, "tool_choice": ` + c.choice
			status, answer := post(t, h.URL+"/v1/chat/completions", body+"}")
			if status != 200 {
				t.Fatalf("%s: %v", c.choice, answer)
			}
			for i := range 4 {
				choice := at(t, answer, fmt.Sprint("choices.", i))
				calls, _ := at(t, choice, "message.tool_calls").([]any)
				if len(calls) != 1 || at(t, choice, "finish_reason") != "tool_calls" ||
					at(t, choice, "message.content") != nil {
					t.Errorf("%s: %v", c.choice, choice)
					continue
				}
				name := at(t, calls[0], "function.name").(string)
				text := at(t, calls[0], "function.arguments").(string)
				var arguments struct {
					City string
					Days int
				}
				err := json.Unmarshal([]byte(text), &arguments)
				if err != nil || !slices.Contains(c.names, name) || name == "weather" &&
					(arguments.City != "Rome" && arguments.City != "Oslo" || arguments.Days < 1 ||
						arguments.Days > 9) || len(at(t, calls[0], "id").(string)) != 9 {
					t.Errorf("%s: %v", c.choice, calls[0])
				}
			}
			compareStream(t, h.URL, body, answer)
		}
	}
}

// compareStream asks for the same as a stream and joins its pieces.
func compareStream(t *testing.T, url, body string, whole map[string]any) {
	t.Helper()
	type call struct{ name, arguments string }
	calls := map[float64][]call{}
	reasons := map[float64]any{}
	for _, data := range streamed(t, url+"/v1/chat/completions", body+`, "stream": true}`) {
		if data == "[DONE]" {
			continue
		}
		var chunk map[string]any
		if err := json.Unmarshal([]byte(data), &chunk); err != nil {
			t.Fatal(err)
		}
		choice := at(t, chunk, "choices.0").(map[string]any)
		i := choice["index"].(float64)
		if choice["finish_reason"] != nil {
			reasons[i] = choice["finish_reason"]
		}
		list, _ := at(t, choice, "delta.tool_calls").([]any)
		for _, c := range list {
			if name, ok := at(t, c, "function").(map[string]any)["name"]; ok {
				calls[i] = append(calls[i], call{name: name.(string)})
			}
			n := int(at(t, c, "index").(float64))
			calls[i][n].arguments += at(t, c, "function.arguments").(string)
		}
	}
	for i := range 4 {
		choice := at(t, whole, fmt.Sprint("choices.", i))
		want := call{at(t, choice, "message.tool_calls.0.function.name").(string),
			at(t, choice, "message.tool_calls.0.function.arguments").(string)}
		if got := calls[float64(i)]; len(got) != 1 || got[0] != want ||
			reasons[float64(i)] != "tool_calls" {
			t.Errorf("streamed %v, whole %v", got, want)
		}
	}
}

// An answer is divided into its parts, also where special tokens mark them.
func TestTools_AnswersAreDivided(t *testing.T) {
	template := "{% set x = '</think>' %}" + toolTemplate
	marks := []string{"<think>", "</think>", "<tool_call>", "</tool_call>"}
	for _, special := range [][]string{nil, marks} {
		_, h := servingWith(t, withTemplate(t, template, special...), 500, nil)
		text := `<think>\nI look.\n</think>\n\nWait.\n<tool_call>\n{"name": "now", ` +
			`"arguments": {}}\n</tool_call>`
		pattern, _ := json.Marshal(text)
		body := `{"messages": [{"role": "user", "content": "hi"}], ` + weatherTools +
			`, "max_tokens": 160, "structured_outputs": {"choice": [` +
			strings.ReplaceAll(string(pattern), `\\n`, `\n`) + `]}`
		status, answer := post(t, h.URL+"/v1/chat/completions", body+"}")
		if status != 200 {
			t.Fatal(answer)
		}
		message := at(t, answer, "choices.0.message")
		if special == nil && (at(t, message, "reasoning_content") != "I look." ||
			at(t, message, "content") != "Wait." ||
			at(t, message, "tool_calls.0.function.name") != "now") {
			t.Errorf("%v", message)
		}
		_, none := post(t, h.URL+"/v1/chat/completions", body+`, "tool_choice": "none"}`)
		content, _ := at(t, none, "choices.0.message.content").(string)
		if special == nil && !strings.Contains(content, "<tool_call>") {
			t.Errorf("no calls are wanted: %v", none)
		}
	}
}

// The next turn, with the call and its result, is rendered and answered.
func TestTools_ConversationsGoOn(t *testing.T) {
	_, h := servingWith(t, withTemplate(t, toolTemplate), 500, nil)
	status, answer := post(t, h.URL+"/v1/chat/completions", `{"max_tokens": 4,
		"tools": [{"type": "function", "function": {"name": "weather"}}],
		"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": null,
		"tool_calls": [{"id": "abcdefghi", "type": "function", "function": {"name": "weather",
		"arguments": "{\"city\": \"Rome\", \"days\": 2}"}}]}, {"role": "tool",
		"tool_call_id": "abcdefghi", "content": "sunny"}]}`)
	if status != 200 || at(t, answer, "usage.completion_tokens") == 0.0 {
		t.Errorf("%v", answer)
	}
}

func TestTools_RefusesWhatCannotBe(t *testing.T) {
	_, h := servingWith(t, withTemplate(t, toolTemplate), 500, nil)
	_, without := serving(t, nil)
	for _, c := range []struct{ url, fields, says string }{
		{h.URL, `"tools": [{"type": "custom", "custom": {"name": "a"}}]`, "function"},
		{h.URL, `"tools": [{"type": "function", "function": {"name": "a b"}}]`, "a b"},
		{h.URL, `"tools": 1`, "list"},
		{h.URL, `"tool_choice": "required"`, "needs tools"},
		{h.URL, weatherTools + `, "tool_choice": "any"`, "any"},
		{h.URL, weatherTools + `, "tool_choice": {"type": "function", "function": {"name": "x"}}`,
			"does not have"},
		{h.URL, weatherTools + `, "tool_choice": "required", "response_format":
			{"type": "json_object"}`, "one form"},
		{h.URL, weatherTools + `, "tool_choice": "required", "ignore_eos": true`, "ignore_eos"},
		{h.URL, `"tool_choice": "required", "tools": [{"type": "function", "function":
			{"name": "f", "parameters": {"not": {}}}}]`, "not"},
		{without.URL, weatherTools, "does not show tools"},
	} {
		status, answer := post(t, c.url+"/v1/chat/completions",
			`{"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, `+c.fields+`}`)
		if message := fmt.Sprint(at(t, answer, "error.message")); status != 400 ||
			!strings.Contains(message, c.says) {
			t.Errorf("%s: %d %s", c.fields, status, message)
		}
	}
}
