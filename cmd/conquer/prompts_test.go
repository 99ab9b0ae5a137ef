package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// outputs decodes one JSON object a line.
func outputs(t testing.TB, printed string) (list []generateOutput) {
	t.Helper()
	for line := range strings.Lines(printed) {
		list = append(list, decode[generateOutput](t, line))
	}
	return list
}

func TestGenerate_BatchSizeDoesNotChangeSamples(t *testing.T) {
	dir := writeModel(t, 704, true)
	args := []string{"generate", "--model_path", dir, "--temperature", "1", "--seed", "5",
		"--max_new_tokens", "16", "--json"}
	for _, ids := range []string{"5,6,7,8", "5,6,7,8", "9,1", "5,6,7,8", "5,6,7,8", "9,1"} {
		args = append(args, "--token_ids", ids)
	}
	var first []generateOutput
	for _, size := range []string{"1", "2", "3", "4", "8"} {
		got := outputs(t, succeed(t, append(args, "--batch_size", size)...))
		if first == nil {
			first = got
		}
		for i := range first {
			if !slices.Equal(got[i].TokenIDs, first[i].TokenIDs) {
				t.Errorf("batches of %s, prompt %d: %v, alone %v", size, i, got[i].TokenIDs,
					first[i].TokenIDs)
			}
			for j := range i {
				if slices.Equal(first[i].TokenIDs, first[j].TokenIDs) {
					t.Errorf("prompts %d and %d gave the same text", i, j)
				}
			}
		}
	}
}

// A prompt that cannot be continued fails alone, and is named by its file and line.
func TestGenerate_PromptsFailAlone(t *testing.T) {
	dir := writeModel(t, 704, true)
	long := strings.Repeat("to and fro ", 200)
	texts := []string{"one", "", "two", long, "three\xff", "four", "five"}
	plain := strings.Join(texts, "\r\n")
	objects := "\ufeff\"one\"\n\n{\"prompt\": \"two\"}\n{\"prompt\": \"" + long +
		"\"}\n{\"prompt\": 3}\n\"four\"\n\"five\"\n"
	for name, content := range map[string]string{"p.txt": plain, "p.jsonl": objects} {
		path := filepath.Join(t.TempDir(), name)
		os.WriteFile(path, []byte(content), 0o644)
		for _, size := range []string{"1", "2", "8"} {
			stdout, stderr, code := invoke(t, "", "generate", "--model_path", dir, "--prompts_file",
				path, "--max_new_tokens", "4", "--json", "--batch_size", size)
			got := outputs(t, stdout)
			if code != 1 || len(got) != 6 ||
				!strings.HasSuffix(stderr, "conquer generate: 2 of 6 prompts failed\n") {
				t.Fatalf("%s: exit %d, %d rows: %s", name, code, len(got), stderr)
			}
			for i, line := range []int{1, 3, 4, 5, 6, 7} {
				where := fmt.Sprintf("%s:%d: ", path, line)
				wrong := line == 4 || line == 5
				if got[i].Line != line || strings.HasPrefix(got[i].Error, where) != wrong ||
					strings.Contains(stderr, where) != wrong ||
					wrong != (got[i].FinishReason == "error") || wrong == (got[i].NewTokens > 0) {
					t.Errorf("%s, row %d: %+v\n%s", name, i, got[i], stderr)
				}
			}
			if !strings.Contains(got[2].Error, "the context only 256") {
				t.Errorf("%s: %q", name, got[2].Error)
			}
			alone := decode[generateOutput](t, succeed(t, "generate", "--model_path", dir,
				"--prompt", "five", "--max_new_tokens", "4", "--json"))
			if !slices.Equal(alone.TokenIDs, got[5].TokenIDs) {
				t.Errorf("%s: the last prompt gave %v, alone %v", name, got[5].TokenIDs,
					alone.TokenIDs)
			}
		}
	}
	// Ids outside the vocabulary, as text.
	stdout, stderr, code := invoke(t, "", "generate", "--model_path", dir, "--token_ids", "5",
		"--token_ids", "6,704", "--token_ids", "7", "--max_new_tokens", "2")
	if code != 1 || strings.Count(stdout, "> ") != 2 ||
		!strings.Contains(stderr, "--token_ids 2: token 2 is 704") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
}

// A file is read from standard input with the same result, also with a byte order mark.
func TestGenerate_ReadsStandardInput(t *testing.T) {
	dir := writeModel(t, 704, true)
	tail := []string{"--model_path", dir, "--max_new_tokens", "4", "--json"}
	want := outputs(t, succeed(t, append([]string{"generate", "--prompt", "one", "--prompt",
		"two"}, tail...)...))
	for name, input := range map[string]string{"text": "one\ntwo\n", "marked": "\ufeffone\r\ntwo",
		"objects": "{\"prompt\": \"one\"}\n\"two\"\n"} {
		stdout, stderr, code := invoke(t, input, append([]string{"generate", "--prompts_file",
			"-"}, tail...)...)
		got := outputs(t, stdout)
		if code != 0 || len(got) != 2 || got[0].Prompt != "one" || got[1].Line != 2 ||
			!slices.Equal(got[0].TokenIDs, want[0].TokenIDs) ||
			!slices.Equal(got[1].TokenIDs, want[1].TokenIDs) {
			t.Errorf("%s: exit %d, %+v %s", name, code, got, stderr)
		}
	}
	text := "some words, and more of them"
	score := decode[scoreOutput](t, succeed(t, "score", "--model_path", dir, "--text", text,
		"--json"))
	stdout, stderr, code := invoke(t, "\ufeff"+text, "score", "--model_path", dir, "--text_file",
		"-", "--json")
	if code != 0 || decode[scoreOutput](t, stdout).NLL != score.NLL {
		t.Errorf("exit %d: %s %s", code, stdout, stderr)
	}
	_, stderr, code = invoke(t, "\xff\xfeo\x00n\x00", "score", "--model_path", dir, "--text_file",
		"-")
	if code != 1 || !strings.Contains(stderr, "UTF-16") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}
