package main

import (
	"math"
	"path/filepath"
	"strings"
	"testing"
)

// Commands compute on the blocks of a GGUF file: results are near those of the converted weights,
// but not the same, because activations are rounded to 8 bits.
func TestBlocks_EveryCommandComputesOnThem(t *testing.T) {
	dir := writeModel(t, 704, true)
	for _, kind := range []string{"q8_0", "q4_0"} {
		path := filepath.Join(t.TempDir(), kind+".gguf")
		succeed(t, "export", "--model_path", dir, "--output_path", path, "--dtype", kind)
		score := func(more ...string) float64 {
			return decode[scoreOutput](t, succeed(t, append([]string{"score", "--model_path", path,
				"--text", strings.Repeat("hello there ", 20), "--device", "cpu", "--json"},
				more...)...)).NLL
		}
		blocks, converted := score(), score("--dtype", "float32")
		if off := math.Abs(blocks/converted - 1); off == 0 || off > 0.01 {
			t.Errorf("%s: %g in blocks, %g converted", kind, blocks, converted)
		}
		succeed(t, "generate", "--model_path", path, "--prompt", "hello", "--max_new_tokens", "4",
			"--device", "cpu")
		if out, stderr, code := invoke(t, "hello\n", "chat", "--model_path", path,
			"--max_new_tokens", "2", "--device", "cpu"); code != 0 {
			t.Errorf("exit %d: %s%s", code, out, stderr)
		}
		succeed(t, "bench", "inference", "--model_path", path, "--seq_len", "9", "--batch_size",
			"3", "--max_new_tokens", "3", "--repeat", "1", "--device", "cpu", "--json",
			"--skip_compile_runs")
	}
}

// An adapter on blocks learns what it learns on the converted weights, and stays beside them.
func TestBlocks_LoRATrainsBesideThem(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	path := filepath.Join(work, "q.gguf")
	succeed(t, "export", "--model_path", dir, "--output_path", path, "--dtype", "q4_0")
	for name, more := range map[string][]string{"lora": nil, "dora": {"--lora_dora"},
		"recompute": {"--recompute", "block"}} {
		scores := map[string]float64{}
		for _, dtype := range []string{"", "float32"} {
			as := []string(nil)
			if dtype != "" {
				as = []string{"--dtype", dtype}
			}
			adapter := filepath.Join(work, name+dtype)
			stderr, code := tune(t, path, adapter, append(append([]string{"--lora_rank", "4",
				"--seed", "3"}, as...), more...)...)
			if code != 0 || strings.Contains(stderr, "converted") {
				t.Fatalf("%s %s: exit %d: %s", name, dtype, code, stderr)
			}
			for _, in := range []string{"", "float32"} {
				var at []string
				if in != "" {
					at = []string{"--dtype", in}
				}
				scores[dtype+"/"+in] = decode[scoreOutput](t, succeed(t, append([]string{"score",
					"--model_path", adapter, "--text", "hello there", "--device", "cpu", "--json"},
					at...)...)).NLL
			}
		}
		want := scores["float32/float32"]
		for how, nll := range scores {
			if math.Abs(nll/want-1) > 0.01 {
				t.Errorf("%s: %s scores %g, expected near %g", name, how, nll, want)
			}
		}
		merged := filepath.Join(work, name+"-merged")
		succeed(t, "export", "--model_path", filepath.Join(work, name), "--output_path", merged)
		if nll := decode[scoreOutput](t, succeed(t, "score", "--model_path", merged, "--text",
			"hello there", "--device", "cpu", "--json")).NLL; math.Abs(nll/want-1) > 0.01 {
			t.Errorf("%s: merged it scores %g, expected near %g", name, nll, want)
		}
	}
}

func TestBlocks_ConversionsAreAnnounced(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	path := filepath.Join(work, "q.gguf")
	succeed(t, "export", "--model_path", dir, "--output_path", path, "--dtype", "q8_0")
	for name, more := range map[string][]string{"training changes them": nil,
		"training changes some of them": {"--lora_rank", "2", "--lora_tokens", "1"},
		"PiSSA":                         {"--lora_rank", "2", "--lora_init", "pissa"}} {
		stderr, code := tune(t, path, filepath.Join(work, "out"+name), more...)
		if code != 0 || !strings.Contains(stderr, "Q8_0 weights") ||
			!strings.Contains(stderr, "converted to float32") || !strings.Contains(stderr, name) {
			t.Errorf("%s: exit %d: %s", name, code, stderr)
		}
	}
	for _, rank := range []string{"0", "2"} {
		_, stderr, code := invoke(t, "", "bench", "train", "--model_path", path, "--device", "cpu",
			"--steps", "1", "--batch_size", "1", "--sequence_length", "9", "--lora_rank", rank,
			"--json")
		if converted := strings.Contains(stderr, "training changes them"); code != 0 ||
			converted != (rank == "0") {
			t.Errorf("bench train, rank %s: exit %d: %s", rank, code, stderr)
		}
	}
}
