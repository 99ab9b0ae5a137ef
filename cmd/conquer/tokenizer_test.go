package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A tokenizer with one token more than the model has rows is accepted, and the token refused.
func TestGenerate_TokenWithoutARow(t *testing.T) {
	dir := writeModel(t, 696, true)
	config := `{"extra_special_tokens":["<|last|>"],"tokenizer_class":"PreTrainedTokenizerFast"}`
	if err := os.WriteFile(filepath.Join(dir, "tokenizer_config.json"), []byte(config),
		0o666); err != nil {
		t.Fatal(err)
	}
	args := []string{"generate", "--model_path", dir, "--max_new_tokens", "2", "--prompt"}
	succeed(t, append(args, "Hello")...)
	if _, stderr, code := invoke(t, "", append(args, "<|last|>")...); code != 1 ||
		!strings.Contains(stderr, "696") {
		t.Errorf("exit %d, %s", code, stderr)
	}
}

// What needs no tokenizer works beside one that cannot be read.
func TestGenerate_UnreadableTokenizer(t *testing.T) {
	dir := writeModel(t, 704, true)
	broken := []byte(`{"model":{"type":"Nothing"}}`)
	if err := os.WriteFile(filepath.Join(dir, "tokenizer.json"), broken, 0o666); err != nil {
		t.Fatal(err)
	}
	args := []string{"generate", "--model_path", dir, "--max_new_tokens", "2"}
	stdout, stderr, code := invoke(t, "", append(args, "--token_ids", "5,6")...)
	if code != 0 || !strings.Contains(stderr, `type "Nothing"`) || !strings.Contains(stdout, ",") {
		t.Errorf("exit %d, %q, %s", code, stdout, stderr)
	}
	if _, stderr, code := invoke(t, "", append(args, "--prompt", "x")...); code != 1 ||
		!strings.Contains(stderr, `type "Nothing"`) {
		t.Errorf("exit %d, %s", code, stderr)
	}
	out := filepath.Join(t.TempDir(), "out")
	_, stderr, code = invoke(t, "", "export", "--model_path", dir, "--output_path", out)
	copied, err := os.ReadFile(filepath.Join(out, "tokenizer.json"))
	if code != 0 || err != nil || string(copied) != string(broken) {
		t.Errorf("exit %d, %s, %v", code, stderr, err)
	}
	file := filepath.Join(t.TempDir(), "out.gguf")
	_, stderr, code = invoke(t, "", "export", "--model_path", dir, "--output_path", file)
	if code != 0 || !strings.Contains(stderr, "only token ids") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	succeed(t, "generate", "--model_path", file, "--max_new_tokens", "2", "--token_ids", "5,6")
	succeed(t, "score", "--model_path", dir, "--token_ids", "5,6")
}
