package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// inTokenizer makes the build function of a model whose tokenizer.json has these values.
func inTokenizer(values map[string]any) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		changeJSON(t, filepath.Join(dir, "tokenizer.json"), values)
		return dir
	}
}

// withTemplate makes the build function of a model with a chat template.
func withTemplate(template string) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		put(t, filepath.Join(dir, "chat_template.jinja"), template)
		return dir
	}
}

// stages are n copies of a stage of a tokenizer.
func stages(kind, list string, n int, stage map[string]any) map[string]any {
	var all []any
	for range n {
		all = append(all, stage)
	}
	return map[string]any{"type": kind, list: all}
}

// double doubles each e of a text.
var double = map[string]any{"type": "Replace", "pattern": map[string]any{"String": "e"},
	"content": "ee"}

// hostileText are tokenizers and chat templates that multiply text, or take long.
var hostileText = []hostileModel{
	{name: "tokenizer: a normalizer doubles 40 times",
		want: "normalizer and pre_tokenizer: the stages can make a text more than 128 times longer",
		build: inTokenizer(map[string]any{
			"normalizer": stages("Sequence", "normalizers", 40, double)})},
	{name: "tokenizer: a decoder doubles 40 times",
		want: "decoder: the stages can make a text more than 128 times longer",
		build: inTokenizer(map[string]any{
			"decoder": stages("Sequence", "decoders", 40, double)})},
	{name: "tokenizer: a pattern of a million repeats",
		want: "tokenizer.json",
		build: inTokenizer(map[string]any{"pre_tokenizer": map[string]any{"type": "Split",
			"pattern":  map[string]any{"Regex": "(?:a{1,1000}){1,1000}b"},
			"behavior": "Isolated", "invert": false}})},
	{name: "tokenizer: a token with the id 2^40",
		want: "cannot unmarshal number 1099511627776",
		build: inTokenizer(map[string]any{"added_tokens": []any{map[string]any{"id": 1 << 40,
			"content": "<x>", "special": true, "single_word": false, "lstrip": false,
			"rstrip": false, "normalized": false}}})},
	{name: "template: loops in loops",
		want: "exceeds its limit of 5000000 steps", args: []string{"--chat", "--prompt", "hello"},
		build: withTemplate(strings.Repeat("{% for i in range(1000) %}", 6) + "x" +
			strings.Repeat("{% endfor %}", 6))},
	{name: "template: a text that doubles",
		want: "exceeds its limit of 16777216 bytes",
		args: []string{"--chat", "--prompt", "hello"},
		build: withTemplate("{% set n = namespace(s='x') %}{% for i in range(60) %}" +
			"{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}")},
	{name: "template: a width of 10^9",
		want: "exceeds its limit of 16777216 bytes", args: []string{"--chat", "--prompt", "hello"},
		build: withTemplate(fmt.Sprintf("{{ '%%%dd' | format(1) }}", 1_000_000_000))},
}
