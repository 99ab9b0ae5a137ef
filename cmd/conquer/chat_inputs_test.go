package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/text/tokenizer"
)

func TestGenerate_GivesToolsAndVariablesToTheTemplate(t *testing.T) {
	dir := writeModel(t, 704, true)
	const template = "{% if tools %}{{ tools | tojson }}{% endif %}{% for d in documents or [] %}" +
		"{{ d.title }}{% endfor %}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor " +
		"%}" +
		"{% if add_generation_prompt %}<assistant>{% endif %}{% if enable_thinking is false %}" +
		"<think></think>{% endif %}"
	if err := os.WriteFile(filepath.Join(dir, "chat_template.jinja"), []byte(template),
		0o666); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	tools, lines := filepath.Join(folder, "tools.json"), filepath.Join(folder, "p.jsonl")
	for name, text := range map[string]string{tools: `[{"name": "f"}]`,
		lines: `{"prompt":"a","tools":[{"name":"g"}]}` + "\n" + `{"messages":[{"role":"user",` +
			`"content":[{"type":"text","text":"b"}]}],` +
			`"chat_template_kwargs":{"enable_thinking":true}}` +
			"\n" + `{"messages":[{"role":"user"}]}`} {
		if err := os.WriteFile(name, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"generate", "--model_path", dir, "--chat", "--json", "--max_new_tokens", "2"}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	check := func(printed string, want ...string) {
		t.Helper()
		list := outputs(t, printed)
		for i, w := range want {
			if list[i].RenderedPrompt != w ||
				!slices.Equal(list[i].PromptTokenIDs, tok.Encode(w, false)) ||
				list[i].PromptTokens != len(list[i].PromptTokenIDs) {
				t.Errorf("prompt %d is %q, %v, want %q", i, list[i].RenderedPrompt,
					list[i].PromptTokenIDs, w)
			}
		}
	}
	check(succeed(t, append(args, "--prompt", "q", "--tools", tools, "--documents",
		`[{"title": "T"}]`, "--chat_template_kwargs", `{"enable_thinking": false}`)...),
		`[{"name": "f"}]T<user>q<assistant><think></think>`)
	stdout, stderr, code := invoke(t, "", append(args, "--prompts_file", lines, "--tools", tools,
		"--chat_template_kwargs", `{"enable_thinking":false}`)...)
	check(stdout, `[{"name": "g"}]<user>a<assistant><think></think>`,
		`[{"name": "f"}]<user>b<assistant>`)
	if code != 1 || !strings.Contains(stderr, "p.jsonl:3: expected a JSON string, or an object "+
		"with "+
		"the field \"prompt\" or \"messages\": content is missing") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	for _, c := range []struct{ flag, value, want string }{
		{"--tools", "{}", "--tools is {}, expected a list of objects"},
		{"--tools", "[", `--tools: "[" is not JSON`},
		{"--chat_template_kwargs", `{"messages":1}`, "chat_template_kwargs cannot set messages"},
	} {
		_, stderr, code := invoke(t, "", append(args, "--prompt", "q", c.flag, c.value)...)
		if code != 2 || !strings.Contains(stderr, c.want) {
			t.Errorf("%s %s: exit code %d: %s", c.flag, c.value, code, stderr)
		}
	}
	_, stderr, code = invoke(t, "", "generate", "--model_path", dir, "--prompt", "q", "--tools",
		tools)
	if code != 2 || !strings.Contains(stderr, "need --chat") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
