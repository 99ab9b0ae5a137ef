package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tune trains two steps on three short chats and returns what the program printed.
func tune(t testing.TB, base, out string, more ...string) (stderr string, code int) {
	t.Helper()
	data := filepath.Join(filepath.Dir(base), "chats.jsonl")
	chat := `{"messages":[{"role":"user","content":"hello"},` +
		`{"role":"assistant","content":"there"}]}`
	if err := os.WriteFile(data, []byte(strings.Repeat(chat+"\n", 3)), 0o666); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = invoke(t, "", append([]string{"train", "--model_path", base, "--data_path",
		data, "--output_path", out, "--steps", "2", "--batch_size", "2", "--learning_rate", "0.05",
		"--device", "cpu", "--checkpoint_steps", "0"}, more...)...)
	return stderr, code
}

// mustTune is tune that must succeed.
func mustTune(t testing.TB, base, out string, more ...string) {
	t.Helper()
	if stderr, code := tune(t, base, out, more...); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
}

// Every command takes an adapter as a model: it opens the base that the adapter names.
func TestAdapter_AsModelOpensItsBase(t *testing.T) {
	base := writeModel(t, 704, true)
	adapter := filepath.Join(t.TempDir(), "adapter")
	mustTune(t, base, adapter, "--lora_rank", "4")
	score := func(args ...string) float64 {
		return decode[scoreOutput](t, succeed(t, append([]string{"score", "--text", "hello there",
			"--json"}, args...)...)).NLL
	}
	want := score("--model_path", base, "--adapter_path", adapter)
	if got := score("--model_path", adapter); got != want || got == score("--model_path", base) {
		t.Errorf("the adapter as a model gives %g, want %g", got, want)
	}
	merged := filepath.Join(t.TempDir(), "merged")
	succeed(t, "export", "--model_path", adapter, "--output_path", merged)
	if got := score("--model_path", merged); got-want > 1e-5 || want-got > 1e-5 {
		t.Errorf("the exported model gives %g, want %g", got, want)
	}
	if info := decode[modelInfo](t, succeed(t, "info", "--json", adapter)); info.Path != base ||
		info.Adapter != adapter || info.Problem != "" {
		t.Errorf("%+v", info)
	}
	succeed(t, "generate", "--model_path", adapter, "--prompt", "hello", "--max_new_tokens", "2")
	if out, stderr, code := invoke(t, "hello\n", "chat", "--model_path", adapter,
		"--max_new_tokens", "2"); code != 0 {
		t.Errorf("exit %d: %s%s", code, out, stderr)
	}
	if _, stderr, code := invoke(t, "", "score", "--model_path", adapter, "--adapter_path", adapter,
		"--text", "x"); code != 1 || !strings.Contains(stderr, "give the base model with "+
		"--model_path, or merge "+adapter) {
		t.Errorf("an adapter of an adapter: exit %d\n%s", code, stderr)
	}
	// A config beside the adapter makes no model of it; weights do, and then it is not clear what
	// is meant.
	config, _ := os.ReadFile(filepath.Join(base, "config.json"))
	os.WriteFile(filepath.Join(adapter, "config.json"), config, 0o666)
	if got := score("--model_path", adapter); got != want {
		t.Errorf("with a config beside it, the adapter gives %g, want %g", got, want)
	}
	both := filepath.Join(adapter, "model.safetensors")
	os.WriteFile(both, []byte("x"), 0o666)
	if _, stderr, code := invoke(t, "", "score", "--model_path", adapter, "--text",
		"x"); code != 1 || !strings.Contains(stderr, "holds a model and a LoRA adapter") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	os.Remove(both)
	// What cannot be opened is named with what to pass.
	rename := func(base any) {
		text, err := os.ReadFile(filepath.Join(adapter, "adapter_config.json"))
		config := map[string]any{}
		if err == nil {
			err = json.Unmarshal(text, &config)
		}
		config["base_model_name_or_path"] = base
		if text, _ = json.Marshal(config); err == nil {
			err = os.WriteFile(filepath.Join(adapter, "adapter_config.json"), text, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, base := range []any{nil, "gone", "/no/such/folder"} {
		rename(base)
		if _, stderr, code := invoke(t, "", "score", "--model_path", adapter, "--text",
			"x"); code != 1 || !strings.Contains(stderr, "--adapter_path "+adapter) {
			t.Errorf("base %v: exit %d: %s", base, code, stderr)
		}
	}
	// Paths are relative to the adapter; names are looked up in the cache of Hugging Face.
	if err := os.Rename(base, filepath.Join(adapter, "base")); err != nil {
		t.Fatal(err)
	}
	rename("base")
	if got := score("--model_path", adapter); got != want {
		t.Errorf("a relative base gives %g, want %g", got, want)
	}
	commit := strings.Repeat("a", 40)
	cache := filepath.Join(t.TempDir(), "hub")
	t.Setenv("HF_HUB_CACHE", cache)
	repo := filepath.Join(cache, "models--org--name")
	for _, dir := range []string{"snapshots", "refs"} {
		if err := os.MkdirAll(filepath.Join(repo, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(repo, "refs", "main"), []byte(commit), 0o666)
	if err := os.Rename(filepath.Join(adapter, "base"),
		filepath.Join(repo, "snapshots", commit)); err != nil {
		t.Fatal(err)
	}
	rename("org/name")
	if got := score("--model_path", adapter); got != want {
		t.Errorf("a base in the cache gives %g, want %g", got, want)
	}
	// The adapter of a base on the Hub names it as before, not the folder of the cache.
	further := filepath.Join(t.TempDir(), "further")
	mustTune(t, adapter, further)
	if text := string(mustRead(t, filepath.Join(further,
		"adapter_config.json"))); !strings.Contains(text, `"base_model_name_or_path": "org/name"`) {
		t.Error(text)
	}
}

// An adapter is trained further by its own name or beside its base, with its own ranks and scales.
func TestTrain_GoesOnFromAnAdapter(t *testing.T) {
	base, dir := writeModel(t, 704, true), t.TempDir()
	first := filepath.Join(dir, "first")
	mustTune(t, base, first, "--lora_rank", "4", "--lora_rslora", "--lora_layers", "1",
		"--lora_rank_pattern", "q_proj=2")
	files := func(name string) (config map[string]any, weights string) {
		text, err := os.ReadFile(filepath.Join(dir, name, "adapter_model.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		config = decode[map[string]any](t, string(mustRead(t, filepath.Join(dir, name,
			"adapter_config.json"))))
		return config, string(text)
	}
	mustTune(t, base, filepath.Join(dir, "second"), "--adapter_path", first)
	mustTune(t, first, filepath.Join(dir, "third"))
	before, start := files("first")
	beside, weights := files("second")
	named, same := files("third")
	if weights == start || weights != same {
		t.Error("the adapter was not trained further, or in two ways")
	}
	if fmt.Sprint(beside) != fmt.Sprint(named) || named["base_model_name_or_path"] != base {
		t.Errorf("%v and %v", beside, named)
	}
	for _, field := range []string{"r", "lora_alpha", "use_rslora", "rank_pattern"} {
		if fmt.Sprint(named[field]) != fmt.Sprint(before[field]) {
			t.Errorf("%s is %v, and was %v", field, named[field], before[field])
		}
	}
	loss := func(name string) float64 {
		return decode[scoreOutput](t, succeed(t, "score", "--text", "hello there", "--json",
			"--model_path", filepath.Join(dir, name))).NLL
	}
	if loss("second") >= loss("first") {
		t.Errorf("the loss went from %g to %g", loss("first"), loss("second"))
	}
	mustTune(t, first, filepath.Join(dir, "merged"), "--merge", "--lora_dropout", "0.1")
	for want, args := range map[string][]string{
		"--lora_rank describes a new adapter": {"--adapter_path", first, "--lora_rank", "4"},
		"is not an adapter folder":            {"--adapter_path", base},
		"choose one":                          {"--adapter_path", first, "--head_only"},
	} {
		if stderr, code := tune(t, base, filepath.Join(dir, "none"), args...); code == 0 ||
			!strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
	if stderr, code := tune(t, base, first, "--adapter_path", first, "--overwrite"); code != 1 ||
		!strings.Contains(stderr, "is also --adapter_path") {
		t.Errorf("exit %d: %s", code, stderr)
	}
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestBaseName_ExistsForTheNextReader(t *testing.T) {
	dir := writeModel(t, 704, false)
	t.Chdir(filepath.Dir(dir))
	for path, want := range map[string]string{
		"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct", "hf://org/name": "org/name",
		"hf://org/name@main": "org/name", "hf://org/name@v1": "org/name@v1",
		"model": dir, "./model/": dir, "model/model.safetensors": dir,
	} {
		if got := baseName(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
