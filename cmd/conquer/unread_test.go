package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What another program does not load is said when it is written, with what to do.
func TestExport_SaysWhatVLLMDoesNotLoad(t *testing.T) {
	for folder, said := range map[string]bool{"bamba/testdata/hybrid": true,
		"families/granitehybrid/testdata/plain": false} {
		_, stderr, code := invoke(t, "", "export", "--model_path", "../../"+folder,
			"--output_path", filepath.Join(t.TempDir(), "m"))
		if code != 0 || said != (strings.Contains(stderr, "vLLM has no Bamba") &&
			strings.Contains(stderr, "--format gguf")) {
			t.Errorf("%s: exit %d: %s", folder, code, stderr)
		}
	}
}

func TestTrain_SaysWhichAdaptersPEFTDoesNotLoad(t *testing.T) {
	work := t.TempDir()
	data, model := filepath.Join(work, "data.txt"), filepath.Join(work, "model")
	text := strings.Repeat("some words that are read again and again\n", 40)
	if err := os.WriteFile(data, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"train", "--data_path", data, "--sequence_length", "32", "--steps", "1"}
	invoke(t, "", append(args, "--architecture", "mamba2", "--variant", "tiny", "--tokenizer",
		"char_tokenizer", "--output_path", model)...)
	for targets, said := range map[string]bool{"all-linear": false, "all-linear,out_proj": true} {
		_, stderr, code := invoke(t, "", append(args, "--model_path", model, "--lora_rank", "2",
			"--lora_targets", targets, "--output_path", filepath.Join(t.TempDir(), "adapter"))...)
		if code != 0 || said != (strings.Contains(stderr, "no adapter on out_proj") &&
			strings.Contains(stderr, "conquer export --model_path")) {
			t.Errorf("%s: exit %d: %s", targets, code, stderr)
		}
	}
}
