package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writeWithTokenizer makes a model whose tokenizer has no gaps, and as many tokens as the model has
// rows.
func writeWithTokenizer(t testing.TB) string {
	t.Helper()
	base := writeModel(t, 700, true)
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json"} {
		text := mustRead(t, filepath.Join("../../text/tokenizer/testdata/llama3", name))
		if err := os.WriteFile(filepath.Join(base, name), text, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return base
}

// Added tokens get rows, which are trained in a whole model, beside an adapter as rows, or with
// whole embeddings. The result has the tokens too.
func TestTrain_AddsTokens(t *testing.T) {
	base, dir := writeWithTokenizer(t), t.TempDir()
	list := filepath.Join(dir, "tokens.txt")
	if err := os.WriteFile(list, []byte("<lamp>\n\nfog horn\r\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	nll := func(args ...string) float64 {
		return decode[scoreOutput](t, succeed(t, append([]string{"score", "--json", "--token_ids",
			"5,700,9,701,7"}, args...)...)).NLL
	}
	for name, args := range map[string][]string{
		"full":      {"--add_tokens", "<lamp>,fog horn"},
		"rows":      {"--add_tokens", list, "--lora_rank", "2"},
		"more-rows": {"--add_tokens", list, "--lora_rank", "2", "--lora_tokens", "5"},
		"embeddings": {"--add_tokens", list, "--lora_rank", "2", "--lora_save",
			"embed_tokens,lm_head"},
	} {
		out, merged := filepath.Join(dir, name), filepath.Join(dir, name+"-merged")
		mustTune(t, base, out, args...)
		want := nll("--model_path", out)
		succeed(t, "export", "--model_path", out, "--output_path", merged)
		if got := nll("--model_path", merged); got-want > 1e-5 || want-got > 1e-5 {
			t.Errorf("%s: the export gives %g, want %g", name, got, want)
		}
		config := string(mustRead(t, filepath.Join(merged, "config.json")))
		if !strings.Contains(config, `"vocab_size": 702`) {
			t.Errorf("%s: %s", name, config)
		}
		for _, folder := range []string{out, merged} {
			text := succeed(t, "score", "--json", "--text", "a<lamp>", "--model_path", folder)
			if n := decode[scoreOutput](t, text).Tokens; n != 2 { // after the begin of the text
				t.Errorf("%s: a<lamp> is %d tokens", folder, n)
			}
		}
	}
	for want, args := range map[string][]string{
		"name both":         {"--add_tokens", list, "--lora_rank", "2", "--lora_save", "lm_head"},
		"is empty":          {"--add_tokens", ""},
		"is neither an id":  {"--lora_rank", "2", "--lora_tokens", "<lamp>"},
		"there is no token": {"--lora_rank", "2", "--lora_tokens", "700"},
		"trained further":   {"--add_tokens", "x", "--adapter_path", filepath.Join(dir, "rows")},
	} {
		if stderr, code := tune(t, base, filepath.Join(dir, "none"), args...); code == 0 ||
			!strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
}
