package toolcall

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"conquer/text/tokenizer"
)

// turns is a template whose calls are written by call, list them, and separate them by between.
func turns(tools, open, call, between, end string) string {
	return "{%- if tools %}" + tools + "{{ tools | tojson }}\n{% endif %}" +
		"{%- for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}" +
		"{%- if m.tool_calls %}" + open + "{%- for c in m.tool_calls %}" + call +
		"{%- if not loop.last %}" + between + "{% endif %}{%- endfor %}" + end + "{%- endif %}" +
		"<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
}

const named = `{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}`

// templates write calls in the known forms.
var templates = map[string]string{
	"tags": turns("", "{{ '<tool_call>\\n' }}", named,
		"{{ '\\n</tool_call>\\n<tool_call>\\n' }}", "{{ '\\n</tool_call>' }}"),
	"thinking tags": "{% set x = '</think>' %}" + turns("", "{{ '<think>\\n\\n</think>\\n\\n"+
		"<tool_call>\\n' }}", named, "{{ '\\n</tool_call>\\n<tool_call>\\n' }}",
		"{{ '\\n</tool_call>' }}"),
	"bare": turns("", "{%- if m.tool_calls | length != 1 %}{{ raise_exception('one call only') }}"+
		"{% endif %}", strings.Replace(named, "arguments\"", "parameters\"", 1), "", ""),
	"list": turns("", "[TOOL_CALLS] [", named, ", ", "]"),
	"names": turns("", "", "[TOOL_CALLS]{{ c.function.name }}[ARGS]"+
		"{{ c.function.arguments | tojson }}", "", ""),
	"sections": turns("", "<|calls|>", "<|call|>function<|sep|>{{ c.function.name }}"+
		"{{ '\\n```json\\n' }}{{ c.function.arguments | tojson }}{{ '\\n```' }}<|end|>",
		"{{ '\\n' }}", "<|all|>"),
	"told": turns("Answer with <|tool_call|> and a list of calls.", "", "", "", ""),
	"told tags": strings.ReplaceAll(turns("Answer within <tool_call> and </tool_call>.",
		"", "", "", ""), "tools", "xml_tools"),
}

// open returns a tokenizer with a chat template.
func open(t testing.TB, template string) *tokenizer.Tokenizer {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../tokenizer/testdata/smollm")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "chat_template.jinja"), []byte(template),
		0o644); err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func detect(t testing.TB, name string) *Format {
	t.Helper()
	f, err := Detect(open(t, templates[name]))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return f
}

func TestDetect_ReadsTheFormOffTheTemplate(t *testing.T) {
	hermes := Format{Before: "<tool_call>\n", Between: "\n</tool_call>\n<tool_call>\n",
		After: "\n</tool_call>", Arguments: "arguments", Variable: "tools"}
	thinking, told := hermes, hermes
	thinking.Think, told.Variable = [2]string{"<think>", "</think>"}, "xml_tools"
	for name, want := range map[string]Format{
		"tags": hermes, "thinking tags": thinking, "told tags": told,
		"bare": {Single: true, Arguments: "parameters", Variable: "tools"},
		"list": {Before: "[TOOL_CALLS] [", Between: ", ", After: "]", Arguments: "arguments",
			Variable: "tools"},
		"names": {Before: "[TOOL_CALLS]", Between: "[TOOL_CALLS]", Separator: "[ARGS]",
			Variable: "tools"},
		"sections": {Before: "<|calls|><|call|>function<|sep|>",
			Between: "\n```<|end|>\n<|call|>function<|sep|>", After: "\n```<|end|><|all|>",
			Separator: "\n```json\n", Variable: "tools"},
		"told": {Before: "<|tool_call|>[", Between: ", ", After: "]", Arguments: "arguments",
			Variable: "tools"},
	} {
		if got := detect(t, name); *got != want {
			t.Errorf("%s:\n%+v, expected\n%+v", name, *got, want)
		}
	}
	for template, want := range map[string]error{
		"{% for m in messages %}{{ m.content }}{% endfor %}": ErrNotShown,
		turns("", "<call>", "{{ c.function.name }}: {{ c.function.arguments.items() | list }}", "",
			"</call>"): ErrUnknown,
	} {
		if _, err := Detect(open(t, template)); !errors.Is(err, want) {
			t.Errorf("%v, expected %v", err, want)
		}
	}
}

// joined writes deltas as one text.
func joined(deltas []Delta) string {
	var parts [3]strings.Builder
	for _, d := range deltas {
		parts[0].WriteString(d.Reasoning)
		parts[1].WriteString(d.Content)
		if c := d.Call; c != nil && c.Name != "" {
			fmt.Fprintf(&parts[2], "|%d %s", c.Index, c.Name)
		} else if c != nil {
			parts[2].WriteString(c.Arguments)
		}
	}
	return parts[0].String() + "/" + parts[1].String() + "/" + parts[2].String()
}

func TestParser_FindsReasoningContentAndCalls(t *testing.T) {
	const two = `{"name": "f", "arguments": {"a": [1, "}]"]}}`
	for _, c := range []struct{ format, text, want string }{
		{"tags", "Hello  there.\n", "/Hello  there.\n/"},
		{"tags", "Well.\n\n<tool_call>\n" + two + "\n</tool_call>", `/Well./|0 f{"a": [1, "}]"]}`},
		{"tags", "<tool_call>" + two + "</tool_call> <tool_call>\n" +
			`{"arguments": {}, "name": "g"}</tool_call>` + "\nDone.",
			`/Done./|0 f{"a": [1, "}]"]}|1 g{}`},
		{"tags", `<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}`, `//|0 f{"a": 1}`},
		{"tags", "<tool_call>" + two + "\n</tool", `//|0 f{"a": [1, "}]"]}`},
		{"tags", "a <tool_call> b", "/a <tool_call> b/"},
		{"tags", `<tool_call>{"name": "f", "arguments": {"a": "é`, `//|0 f{"a": "é`},
		{"tags", `<tool_call>{"nothing": 1}</tool_call>`,
			`/<tool_call>{"nothing": 1}</tool_call>/`},
		{"tags", "a < b <tool", "/a < b <tool/"},
		{"thinking tags", "<think>\nHm, a < b.\n</think>\n\nYes.", "Hm, a < b./Yes./"},
		{"thinking tags", "<think>\n\n</think>\n\n<tool_call>\n" + two + "\n</tool_call>",
			`//|0 f{"a": [1, "}]"]}`},
		{"thinking tags", "<think> never ends", "never ends//"},
		{"thinking tags", "<thin", "/<thin/"},
		{"bare", `{"name": "f", "parameters": {"x": null}}`, `//|0 f{"x": null}`},
		{"bare", ` {"type": "function", "name": "g", "parameters": {}}; {"name": "f",` +
			` "parameters": {"a": -1.5e3}}`, `//|0 g{}|1 f{"a": -1.5e3}`},
		{"bare", `{"name": "Ann", "age": 3}`, `/{"name": "Ann", "age": 3}/`},
		{"bare", `I say {"name": "f", "parameters": {}}`,
			`/I say {"name": "f", "parameters": {}}/`},
		{"list", "[TOOL_CALLS] [" + two + `, {"name": "g", "arguments": {}, "id": "abc"}]`,
			`//|0 f{"a": [1, "}]"]}|1 g{}`},
		{"list", "[TOOL_CALLS]" + two, `//|0 f{"a": [1, "}]"]}`},
		{"names", `Sure. [TOOL_CALLS]f[ARGS]{"a": {"b": "[ARGS]"}}[TOOL_CALLS]g[ARGS]{}`,
			`/Sure./|0 f{"a": {"b": "[ARGS]"}}|1 g{}`},
		{"sections", "<|calls|><|call|>function<|sep|>f\n```json\n{\"a\": 1}\n```<|end|>\n" +
			"<|call|>function<|sep|>g\n```json\n{}\n```<|end|><|all|>", `//|0 f{"a": 1}|1 g{}`},
		{"told", `<|tool_call|>[` + two + `]`, `//|0 f{"a": [1, "}]"]}`},
	} {
		f := detect(t, c.format)
		whole := f.Parser("", []string{"f", "g"}, 0)
		if got := joined(append(whole.Next(c.text), whole.End()...)); got != c.want {
			t.Errorf("%s, %q:\n%s, expected\n%s", c.format, c.text, got, c.want)
		}
		pieces := f.Parser("", []string{"f", "g"}, 0)
		var all []Delta
		for _, r := range c.text {
			all = append(all, pieces.Next(string(r))...)
		}
		if got := joined(append(all, pieces.End()...)); got != c.want {
			t.Errorf("%s, %q in pieces:\n%s, expected\n%s", c.format, c.text, got, c.want)
		}
	}
	f := detect(t, "thinking tags")
	begun := f.Parser("assistant\n<think>\n", nil, 0)
	got := joined(append(begun.Next("so</think>\n<tool_call>"), begun.End()...))
	if got != "so/<tool_call>/" {
		t.Errorf("reasoning that the prompt began: %s", got)
	}
	one := f.Parser("", []string{"f"}, 1)
	text := "<tool_call>" + two + "</tool_call>"
	if got := joined(append(one.Next(text+text), one.End()...)); got != `//|0 f{"a": [1, "}]"]}` {
		t.Errorf("at most one call: %s", got)
	}
}

// Arguments are told while they are written.
func TestParser_StreamsArguments(t *testing.T) {
	p := detect(t, "tags").Parser("", []string{"f"}, 0)
	p.Next(`<tool_call>{"name": "f", "argum`)
	if got := joined(p.Next(`ents": {"text": "so far`)); got != `//{"text": "so far` {
		t.Error(got)
	}
}

func TestGrammar_AllowsWhatTheParserFinds(t *testing.T) {
	schema := json.RawMessage(`{"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}},
		"required": ["a"], "$defs": {"n": {"type": "integer"}}}`)
	tools := []Tool{{"f", schema}, {"g", nil}}
	for name := range templates {
		f := detect(t, name)
		if _, err := f.Grammar("", tools, true); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err := detect(t, "tags").Grammar("", []Tool{{"f", json.RawMessage(`{"not": {}}`)}}, false)
	if err == nil || !strings.Contains(err.Error(), `"f"`) {
		t.Errorf("a schema that cannot be enforced: %v", err)
	}
}

// However a text is cut into pieces, the parts are the same, and no piece is half a character.
func FuzzParser_PiecesDoNotMatter(f *testing.F) {
	formats := []*Format{detect(f, "tags"), detect(f, "thinking tags"), detect(f, "bare"),
		detect(f, "list"), detect(f, "names"), detect(f, "sections")}
	for _, text := range []string{"<tool_call>{\"name\": \"f\", \"arguments\": {\"é\": \"\\\"}\"}}",
		"<think> a</think> [TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]", `{"name":"f","parameters":{}};{`,
		`[TOOL_CALLS] [{"name": "f", "arguments": 1}]x`} {
		f.Add(text, uint8(1))
	}
	f.Fuzz(func(t *testing.T, text string, step uint8) {
		if !utf8.ValidString(text) {
			return
		}
		for _, format := range formats {
			whole := format.Parser("", []string{"f"}, 0)
			want := joined(append(whole.Next(text), whole.End()...))
			pieces := format.Parser("", []string{"f"}, 0)
			var all []Delta
			for rest := []rune(text); len(rest) > 0; {
				n := min(len(rest), int(step)%5+1)
				all = append(all, pieces.Next(string(rest[:n]))...)
				rest = rest[n:]
			}
			all = append(all, pieces.End()...)
			if got := joined(all); got != want {
				t.Errorf("%q: %q in pieces, %q whole", text, got, want)
			}
			for _, d := range all {
				if !utf8.ValidString(d.Content + d.Reasoning) {
					t.Errorf("%q: half a character", text)
				}
			}
		}
	})
}
