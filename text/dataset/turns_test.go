package dataset

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/text/tokenizer"
)

// withSpecial returns a tokenizer of characters and of the special tokens of several families. Its
// end-of-text token is </s>.
func withSpecial(t testing.TB, template string) *tokenizer.Tokenizer {
	t.Helper()
	dir := t.TempDir()
	if err := chars(t, "").Save(dir); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "tokenizer.json")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	var added []any
	for i, token := range []string{"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|end|>",
		"<|user|>",
		"<|assistant|>", "[INST]", "[/INST]", "[CALLS]"} {
		added = append(added, map[string]any{"id": 256 + i, "content": token, "special": true,
			"single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
	}
	file["added_tokens"] = added
	if data, err = json.Marshal(file); err != nil {
		t.Fatal(err)
	}
	const names = `{"bos_token":"<s>","eos_token":"</s>"}`
	for name, content := range map[string][]byte{name: data,
		filepath.Join(dir, "tokenizer_config.json"):   []byte(names),
		filepath.Join(dir, "special_tokens_map.json"): []byte(names),
		filepath.Join(dir, "chat_template.jinja"):     []byte(template)} {
		if err := os.WriteFile(name, content, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// Templates in the manner of several families.
const (
	imTemplate = "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>" +
		"system\nBe kind<|im_end|>\n{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + " +
		"'<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n" +
		"{% endif %}"
	instTemplate = "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% " +
		"set " +
		"rest = messages[1:] %}{% else %}{% set sys = none %}{% set rest = messages %}{% endif %}" +
		"{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ " +
		"raise_exception(" +
		"'roles must alternate') }}{% endif %}{% if loop.index0 == 0 and sys %}{% set c = sys + " +
		"' / '" +
		" + m.content %}{% else %}{% set c = m.content %}{% endif %}{% if m.role == 'user' %}{{ " +
		"bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}{{ ' ' + c.strip() + ' ' + " +
		"eos_token }}{% endif %}{% endfor %}"
	callsTemplate = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ " +
		"m.content }}[/INST]{% elif m.tool_calls %}[CALLS] [{% for c in m.tool_calls %}" +
		"{{ c.function | tojson }}{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}" +
		"{% elif m.role == 'tool' %}(tool: {{ m.content }}){% else %} {{ m.content }}{{ " +
		"eos_token }}" +
		"{% endif %}{% endfor %}"
	phiTemplate = "{% for m in messages %}{{ '<|' + m.role + '|>' + '\n' + m.content + '<|end|>" +
		"' + " +
		"'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}" +
		"{{ eos_token }}{% endif %}"
	thinkTemplate = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == " +
		"'user' " +
		"%}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{% set " +
		"c = " +
		"m.content or '' %}{% set r = m.reasoning_content or '' %}{% if not r and '</think>' in " +
		"c %}" +
		"{% set r = c.split('</think>')[0].split('<think>')[-1].strip('\n') %}{% set c = c.split(" +
		"'</think>')[-1].lstrip('\n') %}{% endif %}<|im_start|>{{ m.role }}\n{% if m.role == " +
		"'assistant' and loop.index0 > ns.last %}{{ '<think>\n' + r.strip('\n') + '\n</think>" +
		"\n\n' " +
		"}}{% endif %}{{ c }}{% if m.tool_calls %}{% for k in m.tool_calls %}\n<tool_call>\n{" +
		"\"name\": \"{{ k.function.name }}\", \"arguments\": {{ k.function.arguments | tojson }}" +
		"}\n" +
		"</tool_call>{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt " +
		"%}" +
		"<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}" +
		"<think>\n" +
		"\n</think>\n\n{% endif %}{% endif %}"
	indexTemplate = "{% for i in range(messages | length) %}<{{ messages[i].role }}>{{ " +
		"messages[i].content | trim }}{{ '</s>' if loop.last else '<|end|>' }}\n{% endfor %}"
	macroTemplate = "{% macro turn(m) %}<|im_start|>{{ m.role }}<|im_end|>{{ caller() }}<|end|>" +
		"{% endmacro %}{% for m in messages %}{% call turn(m) %}{{ m.content | upper }}{% " +
		"endcall %}" +
		"{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>{% endif %}"
	plainTemplate = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" +
		"{% if add_generation_prompt %}assistant: {% endif %}"
	markTemplate  = "{% for m in messages %}{{ m.role }}: {{ m.content }}((end))\n{% endfor %}"
	afterTemplate = "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}" +
		"{% if loop.last and add_generation_prompt %}<|assistant|>{% endif %}{% else %}" +
		"<|assistant|>{{ m.content }}{% if not loop.last %}{{ eos_token + bos_token }}{% endif %}" +
		"{% endif %}{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
	generationTemplate = "{% for m in messages %}{% if m.role == 'assistant' %}A: {% generation " +
		"%}" +
		"{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}Q: {{ m.content }}{% endif %}" +
		"{% endfor %}"
)

func TestLoad_LabelsAreTheAssistantsTextAndItsEndTokens(t *testing.T) {
	const (
		sys, ask, again = `{"role":"system","content":"s"}`, `{"role":"user","content":"q"}`,
			`{"role":"user","content":"one"}`
		one, two = `{"role":"assistant","content":" one "}`, `{"role":"assistant","content":"two"}`
		thought  = `{"role":"assistant","content":"<think>\nhm\n</think>\n\none"}`
		reason   = `{"role":"assistant","content":"two","reasoning_content":"hm"}`
		call     = `{"role":"assistant","content":null,"tool_calls":[{"type":"function",` +
			`"function":` +
			`{"name":"f","arguments":"{\"x\":1}"}}]}`
		result = `{"role":"tool","content":"7"}`
		empty  = `{"role":"assistant","content":""}`
	)
	for _, c := range []struct {
		name, template, record string
		messages               []string
		want                   string
	}{
		{"default system prompt", imTemplate, "", []string{ask, one}, " one <|im_end|>|"},
		{"assistant first", imTemplate, "", []string{one, ask, two}, " one <|im_end|>" +
			"|two<|im_end|>|"},
		{"assistant after system", imTemplate, "", []string{sys, one, again, two},
			" one <|im_end|>|two<|im_end|>|"},
		{"empty answer", imTemplate, "", []string{ask, empty, again, two}, "<|im_end|>" +
			"|two<|im_end|>|"},
		{"last alone", imTemplate, "", []string{ask, two}, "two<|im_end|>|"},
		{"inst", instTemplate, "", []string{sys, ask, one, again, two}, "one </s>|two </s>"},
		{"inst, empty answer", instTemplate, "", []string{ask, empty, again, two}, "</s>|two </s>"},
		{"mark, empty answer", markTemplate, "", []string{ask, empty, again, two}, "two((end))|"},
		{"calls", callsTemplate, "", []string{ask, call, result, two, again, one},
			`[CALLS] [{"name": "f", "arguments": {"x": 1}}]</s>|two</s>| one </s>`},
		{"phi", phiTemplate, "", []string{ask, one, again, two}, " one <|end|>|two<|end|>|"},
		{"thinking in the middle", thinkTemplate, "", []string{ask, thought, again, reason},
			"one<|im_end|>|<think>\nhm\n</think>\n\ntwo<|im_end|>|"},
		{"no thinking", thinkTemplate, `,"chat_template_kwargs":{"enable_thinking":false}`,
			[]string{ask, two}, "two<|im_end|>|"},
		{"thinking against the prompt", thinkTemplate,
			`,"chat_template_kwargs":{"enable_thinking":false}`, []string{ask, reason},
			"<think>\nhm\n</think>\n\ntwo<|im_end|>|"},
		{"empty thinking", thinkTemplate, "", []string{ask, two},
			"<think>\n\n</think>\n\ntwo<|im_end|>|"},
		{"calls as text", thinkTemplate, "", []string{ask, call, result, two, again, two},
			"<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call><|im_end|>|" +
				"two<|im_end|>|<think>\n\n</think>\n\ntwo<|im_end|>|"},
		{"index", indexTemplate, "", []string{ask, one, again, two}, "one<|end|>|two</s>|"},
		{"macro", macroTemplate, "", []string{ask, one, again, two}, " ONE <|end|>|TWO<|end|>"},
		{"plain", plainTemplate, "", []string{ask, one, again, two}, " one |two|"},
		{"mark", markTemplate, "", []string{ask, one, again, two}, " one ((end))|two((end))|"},
		{"after", afterTemplate, "", []string{ask, one, again, two}, " one </s>|two</s>"},
		{"generation", generationTemplate, "", []string{ask, one, again, two}, " one </s>|two</s>"},
	} {
		tok := withSpecial(t, c.template)
		path := writeTestFile(t, "a.jsonl", `{"messages":[`+strings.Join(c.messages, ",")+`]`+
			c.record+`}`)
		d, err := Load(path, tok, Options{})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		s, err := d.At(0)
		if err != nil || d.Len() != 1 {
			t.Fatal(err, d.Report)
		}
		if got := labeledText(tok, s); got != c.want {
			t.Errorf("%s: learns %q, want %q, of %q", c.name, got, c.want, tok.Decode(s.IDs, false))
		}
	}
}

// A space that the tokenizer puts in front of an answer is the answer's first token.
func TestLoad_SpacesBeforeAnswersHaveLoss(t *testing.T) {
	const record = `{"messages":[{"role":"user","content":"Q"},{"role":"assistant",` +
		`"content":"%"},{"role":"user","content":"Q"},{"role":"assistant","content":" %"}]}`
	for _, name := range []string{"llama2", "metaspace"} {
		for _, answer := range []string{"{{ m.content + eos_token }}",
			"{% generation %}{{ m.content + eos_token }}{% endgeneration %}"} {
			tok := withChatTemplate(t, "../tokenizer/testdata/"+name, "{% for m in messages %}"+
				"{% if m.role == 'user' %}{{ m.content + bos_token }}{% else %}"+answer+
				"{% endif %}{% endfor %}")
			d := mustLoad(t, writeTestFile(t, "a.jsonl", record), tok, Options{})
			learned := ""
			for _, id := range d.Samples[0].Labels {
				if id != IgnoreLabel {
					learned += tok.Token(id)
				}
			}
			want := "▁%</s>▁▁%</s>"
			if name == "metaspace" { // it adds no space to a space
				want = "▁%</s>▁%</s>"
			}
			if learned != want {
				t.Errorf("%s: %s learns %q, want %q", name, answer, learned, want)
			}
		}
	}
}

func TestLoad_LossOfSomeAnswersOnly(t *testing.T) {
	const chat = `{"messages":[{"role":"user","content":"q","weight":1},{"role":"assistant",` +
		`"content":"one"%s},{"role":"user","content":"r"},{"role":"assistant","content":"two"%s}]}`
	record := func(first, second string) string {
		return strings.Replace(strings.Replace(chat, "%s", first, 1), "%s", second, 1)
	}
	for _, template := range []string{imTemplate, generationTemplate} {
		tok := withSpecial(t, template)
		end := "<|im_end|>|"
		if template == generationTemplate {
			end = "</s>"
		}
		for _, c := range []struct {
			record string
			last   bool
			want   string
		}{
			{record(`,"train":false`, ""), false, "two" + end},
			{record(`,"weight":0`, `,"weight":1,"train":true`), false, "two" + end},
			{record("", `,"weight":0`), false, "one" + strings.TrimSuffix(end, "|") + "|"},
			{record("", ""), true, "two" + end},
			{strings.NewReplacer("role", "from", "content", "value", "user", "human", `"assistant"`,
				`"gpt"`, "messages", "conversations").Replace(record(`,"weight":0`, "")), false,
				"two" + end},
			{`{"prompt":[{"role":"user","content":"q"},{"role":"assistant","content":"one"},` +
				`{"role":"user","content":"r"}],"completion":[{"role":"assistant",` +
				`"content":"two"}]}`,
				false, "two" + end},
			{`{"prompt":[{"role":"user","content":"q"}],"completion":[{"role":"assistant",` +
				`"content":"one","weight":0},{"role":"user","content":"r"},` +
				`{"role":"assistant","content":"two"}]}`,
				false, "two" + end},
		} {
			d := mustLoad(t, writeTestFile(t, "a.jsonl", c.record), tok,
				Options{LastAnswer: c.last})
			if got := labeledText(tok, d.Samples[0]); got != c.want {
				t.Errorf("%s: learns %q, want %q", c.record, got, c.want)
			}
		}
	}
	tok := withSpecial(t, imTemplate)
	for record, want := range map[string]string{
		record(`,"weight":0.5`, ""): `a.jsonl:1: message 1: weight is 0.5, expected 0 ` +
			`or 1`,
		record(`,"train":"no"`, ""):          `message 1: train is "no", expected true or false`,
		record(`,"weight":0`, `,"weight":0`): `no sample to learn from`,
	} {
		_, err := Load(writeTestFile(t, "a.jsonl", record), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", record, err, want)
		}
	}
}

func TestLoad_RefusesAnswersThatCannotBeToldApart(t *testing.T) {
	const chat = `{"messages":[{"role":"user","content":"q"},{"role":"assistant",` +
		`"content":"one"},` +
		`{"role":"user","content":"r"},{"role":"assistant","content":"two"}]}`
	for template, want := range map[string]string{
		"{{ messages | tojson }}": "a.jsonl:1: message 1: the chat template mixes",
		"{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.content }}" +
			"{% endfor %}": `a.jsonl:1: message 1: the chat template renders its text "one" twice`,
		"{{ messages[1].content + messages[2].content + messages[1].content }}": "a.jsonl:1: " +
			"message 1: the chat template renders its text \"one\" around that of message 2",
		"{% generation %}{% for m in messages %}{{ m.content }}{% endfor %}{% endgeneration %}": "",
	} {
		_, err := Load(writeTestFile(t, "a.jsonl", chat), withSpecial(t, template), Options{})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", template, err, want)
		}
	}
}
