package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every command that prints a result fails if it cannot.
func TestRun_FailsIfNothingCanBePrinted(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	defer full.Close()
	dir := writeModel(t, 704, true)
	data := filepath.Join(t.TempDir(), "a.jsonl")
	put(t, data, `{"text":"a text"}`)
	for _, line := range []string{"help", "help train", "--version", "version", "bench --help",
		"completion bash", "plan --architecture llama --variant 7b", "info --device",
		"plan --architecture llama --variant 7b --json", "info --model_path " + dir,
		"generate --device cpu --max_new_tokens 2 --prompt a --model_path " + dir,
		"score --device cpu --text hello,there --model_path " + dir,
		"data --tokenizer char_tokenizer --data_path " + data} {
		args := strings.Fields(line)
		stdout := os.Stdout
		os.Stdout = full
		var stderr strings.Builder
		code := run(args, full, &stderr)
		os.Stdout = stdout
		if code != 1 || strings.Count(stderr.String(), "\n") != 1 ||
			!strings.Contains(stderr.String(), "no space left") {
			t.Errorf("%s: exit %d\n%s", line, code, stderr.String())
		}
	}
}
