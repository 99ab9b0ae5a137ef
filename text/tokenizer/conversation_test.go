package tokenizer

import (
	"encoding/json"
	"strings"
	"testing"
)

func withTemplate(t *testing.T, template string) *Tokenizer {
	t.Helper()
	tok, err := Open(CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	tok.template.source = template
	return tok
}

func parseMessages(t *testing.T, list string) (messages []Message) {
	t.Helper()
	if err := json.Unmarshal([]byte(list), &messages); err != nil {
		t.Fatal(err)
	}
	return messages
}

func TestMessage_ReadsWhatOpenAIWrites(t *testing.T) {
	const list = `[{"role":"user","content":[{"type":"text","text":"a "},{"text":"b","type":null}]},
		{"content":null,"role":"assistant","refusal":null,"tool_calls":[{"id":"1","type":"function",
		"function":{"name":"f","arguments":"{\"x\": 1}"}}]},
		{"role":"tool","content":"2","tool_call_id":"1"},
		{"role":"assistant","reasoning_content":"r","content":"c","tool_calls":[]}]`
	messages := parseMessages(t, list)
	if m := messages[0]; m.Content != "a b" || m.Parts == "" || m.Fields != "" {
		t.Errorf("%+v", m)
	}
	if m := messages[1]; !m.Null || m.Fields != `{"tool_calls":[{"id":"1","type":"function",`+
		`"function":{"name":"f","arguments":"{\"x\": 1}"}}]}` &&
		!strings.Contains(m.Fields, `"name":"f"`) {
		t.Errorf("%+v", m)
	}
	if m := messages[3]; m.Fields != `{"reasoning_content":"r"}` || m.Content != "c" {
		t.Errorf("%+v", m)
	}
	written, err := json.Marshal(messages)
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range parseMessages(t, string(written)) {
		if m != messages[i] {
			t.Errorf("message %d becomes %+v, was %+v", i, m, messages[i])
		}
	}
	for text, want := range map[string]string{
		`{"role":"user"}`:                                     "content is missing",
		`{"role":"assistant","content":null}`:                 "content is missing",
		`{"content":"x"}`:                                     "role is missing",
		`{"role":1,"content":"x"}`:                            "role is 1",
		`{"role":"user","content":3}`:                         "content is 3",
		`{"role":"user","content":[{"type":"image_url"}]}`:    "part 0 of content is",
		`{"role":"assistant","content":"","tool_calls":{}}`:   "tool_calls is {}",
		`{"role":"assistant","content":"","tool_calls":[{}]}`: "tool call 0 is {}",
		`[]`: "cannot unmarshal array",
	} {
		var m Message
		if err := json.Unmarshal([]byte(text), &m); err == nil ||
			!strings.Contains(err.Error(), want) && text != "[]" {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// A template gets arguments as text or as an object, and content as text or as parts, as it needs.
func TestRender_GivesMessagesInTheFormThatTheTemplateUses(t *testing.T) {
	const call = `[{"role":"assistant","content":null,"tool_calls":[{"type":"function",` +
		`"function":` +
		`{"name":"f","arguments":"{\"x\":1}"}}]}]`
	const parts = `[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text",` +
		`"text":"b"}]}]`
	for _, c := range []struct{ template, messages, want string }{
		{"{% for m in messages %}{{ m.tool_calls[0].function.arguments }}{% endfor %}", call,
			`{"x":1}`},
		{"{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor " +
			"%}", call,
			`{"x": 1}`},
		{"{% for m in messages %}{{ m.tool_calls[0].function | tojson }}{% endfor %}", call,
			`{"name": "f", "arguments": {"x": 1}}`},
		{"{% for k, v in messages[0].tool_calls[0].function.arguments.items() %}{{ k }}={{ v }}" +
			"{% endfor %}", call, "x=1"},
		{"{{ '<' + messages[0].content + '>' }}", call, "<>"},
		{"{% if messages[0].content is none %}none{% endif %}", call, "none"},
		{"{{ messages[0].content }}", parts, "ab"},
		{"{% for p in messages[0].content %}[{{ p.text }}]{% endfor %}", parts, "[a][b]"},
		{"{% for p in messages[0].content %}{{ p['text'] + '.' }}{% endfor %}", parts, "a.b."},
	} {
		got, err := withTemplate(t, c.template).Render(
			Conversation{Messages: parseMessages(t, c.messages)}, false)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.template, got, err, c.want)
		}
	}
}

func TestRender_GivesToolsDocumentsAndKwargs(t *testing.T) {
	tok := withTemplate(t, "{{ tools | tojson }}{{ documents[0].title }}"+
		"{% if enable_thinking is defined and enable_thinking is false %}off{% endif %}{{ "+
		"bos_token }}")
	c := Conversation{Messages: []Message{{Role: "user", Content: "x"}}}
	c.Tools = json.RawMessage(`[{"z":1,"a":null}]`)
	c.ChatInputs = c.ChatInputs.Over(ChatInputs{Tools: json.RawMessage(`[]`),
		Documents: json.RawMessage(`[{"title":"T"}]`),
		Kwargs:    json.RawMessage(`{"enable_thinking":false,"bos_token":"B"}`)})
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	if got, err := tok.Render(c, true); err != nil || got != `[{"z": 1, "a": null}]ToffB` {
		t.Errorf("%q, %v", got, err)
	}
	for want, inputs := range map[string]ChatInputs{
		"tools is {}":                                {Tools: json.RawMessage(`{}`)},
		"documents is [1]":                           {Documents: json.RawMessage(`[1]`)},
		"chat_template_kwargs: expected":             {Kwargs: json.RawMessage(`[]`)},
		"chat_template_kwargs cannot set messages":   {Kwargs: json.RawMessage(`{"messages":[]}`)},
		"tools is [null], expected a list of object": {Tools: json.RawMessage(`[null]`)},
	} {
		if err := inputs.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// A conversation with tools takes the template that is named for it, as in transformers.
func TestRender_ToolsHaveTheirOwnTemplate(t *testing.T) {
	tok := withTemplate(t, "")
	tok.setTemplates(map[string]string{"default": "plain", "tool_use": "{{ tools[0].name }}"})
	c := Conversation{Messages: []Message{{Role: "user", Content: "a"}}}
	if text, err := tok.Render(c, true); text != "plain" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	c.Tools = json.RawMessage(`[{"name": "f"}]`)
	if text, err := tok.Render(c, true); text != "f" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}
