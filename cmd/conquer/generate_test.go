package main

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// invoke runs the program with input on stdin. It returns its stdout, stderr and exit code.
func invoke(t testing.TB, input string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	dir := t.TempDir()
	files := make([]*os.File, 3)
	for i, name := range []string{"in", "out", "err"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	io.WriteString(files[0], input)
	files[0].Seek(0, io.SeekStart)
	stdin, out, err := os.Stdin, os.Stdout, os.Stderr
	os.Stdin, os.Stdout, os.Stderr = files[0], files[1], files[2]
	defer func() { os.Stdin, os.Stdout, os.Stderr = stdin, out, err }()
	code = run(args, os.Stdout, os.Stderr)
	printed, _ := os.ReadFile(files[1].Name())
	complained, _ := os.ReadFile(files[2].Name())
	return string(printed), string(complained), code
}

// succeed runs the program. The test fails unless the exit code is 0 and stderr is empty.
func succeed(t testing.TB, args ...string) string {
	t.Helper()
	stdout, stderr, code := invoke(t, "", args...)
	if code != 0 || stderr != "" {
		t.Fatalf("conquer %s: exit %d\n%s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// decode reads one JSON object from the output of succeed.
func decode[T any](t testing.TB, printed string) T {
	t.Helper()
	var v T
	d := json.NewDecoder(strings.NewReader(printed))
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, printed)
	}
	if d.More() {
		t.Fatalf("more than one object in %s", printed)
	}
	return v
}

// writeModel writes a random model of the given vocabulary with the tokenizer of
// text/tokenizer/testdata/smollm, which has 700 tokens, or without one.
func writeModel(t testing.TB, vocabulary int, withTokenizer bool) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "model")
	config := model.Config{
		"architectures":           []any{"LlamaForCausalLM"},
		"model_type":              "llama",
		"vocab_size":              float64(vocabulary),
		"hidden_size":             32.0,
		"intermediate_size":       48.0,
		"num_hidden_layers":       2.0,
		"num_attention_heads":     4.0,
		"num_key_value_heads":     2.0,
		"max_position_embeddings": 256.0,
		"initializer_range":       0.4,
		"hidden_act":              "silu",
		"rms_norm_eps":            1e-5,
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	err = torch.Run(func() error {
		torch.ManualSeed(2)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(config)
	options := checkpoint.Options{
		Config:           text,
		GenerationConfig: []byte(`{"_from_model_config": true}`),
	}
	if withTokenizer {
		options.TokenizerFrom = "../../text/tokenizer/testdata/smollm"
	}
	if err := checkpoint.Save(dir, model.Weights(m), options); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestGenerate_PrintsOneObjectWithTextAndIDs(t *testing.T) {
	dir := writeModel(t, 704, true)
	args := []string{"generate", "--model_path", dir, "--prompt", "hello there", "--max_new_tokens",
		"12", "--temperature", "0", "--json", "--ignore_eos"}
	got := decode[generateOutput](t, succeed(t, args...))
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.TokenIDs) != 12 || got.Text != tok.Decode(got.TokenIDs, true) ||
		got.PromptTokens != len(tok.Encode("hello there", true)) {
		t.Errorf("got %+v", got)
	}
	// A dash replaces an underscore. The result is the same without the cache and with token ids.
	again := decode[generateOutput](t,
		succeed(t, "generate", "--model-path", dir, "--token-ids",
			joinIDs(tok.Encode("hello there", true)), "--max-new-tokens", "12", "--json",
			"--ignore-eos", "--use-cache=false"))
	if !slices.Equal(again.TokenIDs, got.TokenIDs) {
		t.Errorf("from ids %v, from text %v", again.TokenIDs, got.TokenIDs)
	}
}

func TestGenerate_StreamsPlainText(t *testing.T) {
	dir := writeModel(t, 704, true)
	args := []string{"generate", "--model_path", dir, "--prompt", "hello", "--max_new_tokens", "10",
		"--ignore_eos"}
	want := decode[generateOutput](t, succeed(t, append(args, "--json")...)).Text
	if got := succeed(t, args...); got != want+"\n" {
		t.Errorf("printed %q, want %q", got, want)
	}
	// With several prompts, each is printed, as text or as token ids.
	if got := succeed(t, "generate", "--model_path", dir, "--token_ids", "5,6", "--token_ids", "7",
		"--max_new_tokens", "3"); !strings.HasPrefix(got, "> 5,6\n") ||
		!strings.Contains(got, "\n\n> 7\n") {
		t.Errorf("printed %q", got)
	}
}

func TestGenerate_ReadsPromptsFromFiles(t *testing.T) {
	dir := writeModel(t, 704, true)
	folder := t.TempDir()
	plain, lines := filepath.Join(folder, "p.txt"), filepath.Join(folder, "p.jsonl")
	os.WriteFile(plain, []byte("one\n\ntwo three\r\n"), 0o644)
	os.WriteFile(lines, []byte("\"one\"\n{\"prompt\": \"two three\"}\n"), 0o644)
	var outputs []string
	for _, args := range [][]string{{"--prompts_file", plain},
		{"--prompts_file", lines, "--batch_size", "1"},
		{"--prompt", "one", "--prompt", "two three"}} {
		printed := succeed(t, append([]string{"generate", "--model_path", dir, "--max_new_tokens",
			"6", "--json"}, args...)...)
		texts := ""
		for line := range strings.Lines(printed) {
			o := decode[generateOutput](t, line)
			texts += o.Prompt + ":" + joinIDs(o.TokenIDs) + ";"
		}
		outputs = append(outputs, texts)
	}
	if outputs[0] != outputs[1] || outputs[0] != outputs[2] || strings.Count(outputs[0], ";") != 2 {
		t.Errorf("outputs differ: %q", outputs)
	}
	// The lines of a JSON list are no prompts.
	list := filepath.Join(folder, "p.json")
	os.WriteFile(list, []byte("[\n  \"one\",\n  \"two\"\n]\n"), 0o644)
	if _, stderr, code := invoke(t, "", "generate", "--model_path", dir, "--prompts_file",
		list); code != 1 || !strings.Contains(stderr, list+" is a JSON list, expected one prompt") {
		t.Errorf("a JSON list as --prompts_file: exit %d\n%s", code, stderr)
	}
}

func TestGenerate_ModelWithoutTokenizerTakesIDs(t *testing.T) {
	dir := writeModel(t, 50, false)
	if got := succeed(t, "generate", "--model_path", dir, "--token_ids", "1,2,3",
		"--max_new_tokens", "5"); strings.Count(got, ",") != 4 {
		t.Errorf("printed %q", got)
	}
	got := decode[generateOutput](t,
		succeed(t, "generate", "--model_path", dir, "--token_ids", "1,2,3", "--max_new_tokens", "5",
			"--json"))
	if len(got.TokenIDs) != 5 || got.Text != "" {
		t.Errorf("got %+v", got)
	}
	scores := decode[scoreOutput](t,
		succeed(t, "score", "--model_path", dir, "--token_ids", "1,2,3", "--json"))
	if scores.Tokens != 2 || len(scores.TokenNLL) != 2 {
		t.Errorf("got %+v", scores)
	}
}

func TestScore_PrintsMeanAndEachToken(t *testing.T) {
	dir := writeModel(t, 704, true)
	file := filepath.Join(t.TempDir(), "text")
	os.WriteFile(file, []byte("some words, and more of them"), 0o644)
	got := decode[scoreOutput](t,
		succeed(t, "score", "--model_path", dir, "--text_file", file, "--json"))
	sum := 0.0
	for _, v := range got.TokenNLL {
		sum += v
	}
	if got.Tokens != len(got.TokenNLL) || math.Abs(got.NLL-sum/float64(got.Tokens)) > 1e-9 ||
		math.Abs(got.Perplexity/math.Exp(got.NLL)-1) > 1e-9 {
		t.Errorf("got %+v", got)
	}
	if same := decode[scoreOutput](t,
		succeed(t, "score", "--model_path", dir, "--text", "some words, and more of them",
			"--json")); same.NLL != got.NLL {
		t.Errorf("the same text scores %v and %v", got.NLL, same.NLL)
	}
}

func TestChat_AnswersEachLineAndRemembers(t *testing.T) {
	dir := writeModel(t, 704, true)
	args := []string{"chat", "--model_path", dir, "--max_new_tokens", "8", "--temperature", "0"}
	stdout, stderr, code := invoke(t, "hello\n/reset\nhello\nagain\n/exit\nnever\n", args...)
	if code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := ""
	var messages []tokenizer.Message
	for _, question := range []string{"hello", "", "hello", "again"} {
		if question == "" {
			messages = nil
			continue
		}
		messages = append(messages, tokenizer.Message{Role: "user", Content: question})
		prompt, err := tok.Chat(messages, true)
		if err != nil {
			t.Fatal(err)
		}
		answer := decode[generateOutput](t,
			succeed(t, "generate", "--model_path", dir, "--max_new_tokens", "8", "--json",
				"--token_ids", joinIDs(tok.Encode(prompt, false)))).Text
		want += answer + "\n"
		messages = append(messages, tokenizer.Message{Role: "assistant", Content: answer})
	}
	if stdout != want {
		t.Errorf("printed %q, want %q", stdout, want)
	}
}

func TestExport_KeepsEveryBitAndTokenizer(t *testing.T) {
	dir := writeModel(t, 704, true)
	first, second := filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")
	succeed(t, "export", "--model_path", dir, "--output_path", first, "--shard_size", "40KB")
	succeed(t, "export", "--model_path", first, "--output_path", second)
	for _, name := range []string{"model.safetensors", "config.json", "tokenizer.json",
		"tokenizer_config.json", "generation_config.json"} {
		a, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(second, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "model.safetensors" && !sameTensors(t, dir, second) {
			t.Error("the weights differ")
		}
		if name != "model.safetensors" && name != "config.json" && !bytes.Equal(a, b) {
			t.Errorf("%s differs", name)
		}
	}
	if shards, _ := filepath.Glob(filepath.Join(first,
		"model-*-of-*.safetensors")); len(shards) < 3 {
		t.Errorf("shards of 40 KB: %v", shards)
	}
	half := filepath.Join(t.TempDir(), "half")
	succeed(t, "export", "--model_path", dir, "--output_path", half, "--dtype", "bfloat16")
	info := decode[modelInfo](t, succeed(t, "info", "--model_path", half, "--json"))
	if len(info.Types) != 1 || info.Types["BF16"] != info.Parameters {
		t.Errorf("exported as bfloat16: %v", info.Types)
	}
}

func sameTensors(t *testing.T, a, b string) (same bool) {
	first, err := checkpoint.Open(a)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := checkpoint.Open(b)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	same = len(first.Names()) == len(second.Names())
	err = torch.Run(func() error {
		for _, name := range first.Names() {
			x, err := first.Tensor(name)
			if err != nil {
				return err
			}
			y, err := second.Tensor(name)
			if err != nil {
				return err
			}
			same = same && x.DType() == y.DType() &&
				bytes.Equal(x.Contiguous().Data(), y.Contiguous().Data())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return same
}

func TestInfo_DescribesModelAndMachine(t *testing.T) {
	dir := writeModel(t, 704, true)
	info := decode[modelInfo](t, succeed(t, "info", "--model_path", dir, "--tensors", "--json"))
	if info.Architecture != "llama" || info.VocabularySize != 704 || info.ContextLength != 256 ||
		info.Problem != "" || info.Tokenizer == nil || info.Tokenizer.Tokens != 700 ||
		!info.Tokenizer.ChatTemplate || len(info.Tensors) != 21 {
		t.Errorf("got %+v", info)
	}
	if plain := succeed(t, "info", "--model_path", dir, "--tensors"); !strings.Contains(plain,
		"model.layers.1.self_attn.q_proj.weight") {
		t.Errorf("printed %s", plain)
	}
	machine := decode[machineInfo](t, succeed(t, "info", "--device", "--json"))
	if machine.Cores < 1 || machine.Threads < 1 || machine.Processor == "" ||
		(len(machine.GPUs) == 0) != (machine.NoGPU != "") {
		t.Errorf("got %+v", machine)
	}
}

func TestHelp_ShowsExamples(t *testing.T) {
	for _, name := range []string{"generate", "chat", "score", "eval", "probe", "serve", "data",
		"info", "export", "plan", "completion"} {
		if help := succeed(t, name, "--help"); !strings.Contains(help, "Examples:\n") ||
			!strings.Contains(help, "conquer "+name) {
			t.Errorf("%s: %s", name, help)
		}
	}
}

func TestProgram_BadInputGetsOneLineAndExitCode(t *testing.T) {
	good, bare, small := writeModel(t, 704, true), writeModel(t, 50, false), writeModel(t, 60, true)
	folder := t.TempDir()
	full := filepath.Join(folder, "full")
	os.Mkdir(full, 0o755)
	os.WriteFile(filepath.Join(full, "precious"), nil, 0o644)
	broken := filepath.Join(folder, "broken")
	os.Mkdir(broken, 0o755)
	os.WriteFile(filepath.Join(broken, "model.safetensors"),
		[]byte("\xff\xff\xff\xff\xff\xff\xff\x7f{"), 0o644)
	os.WriteFile(filepath.Join(broken, "config.json"), []byte("{}"), 0o644)
	// config.json does not match the weights.
	changed := func(key string, value any) string {
		config := map[string]any{}
		whole, _ := os.ReadFile(filepath.Join(bare, "config.json"))
		weights, _ := os.ReadFile(filepath.Join(bare, "model.safetensors"))
		if err := json.Unmarshal(whole, &config); err != nil {
			t.Fatal(err)
		}
		config[key] = value
		dir := filepath.Join(t.TempDir(), "changed")
		os.Mkdir(dir, 0o755)
		whole, _ = json.Marshal(config)
		os.WriteFile(filepath.Join(dir, "config.json"), whole, 0o644)
		os.WriteFile(filepath.Join(dir, "model.safetensors"), weights, 0o644)
		return dir
	}
	empty := filepath.Join(folder, "empty.txt")
	os.WriteFile(empty, nil, 0o644)
	generate := func(model string, more ...string) []string {
		return append([]string{"generate", "--model_path", model}, more...)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"missing model": {[]string{"generate", "--prompt", "x"}, 2, "--model_path"},
		"unknown model": {generate("/nowhere/at/all", "--prompt", "x"), 1, "/nowhere/at/all"},
		"broken file":   {generate(broken, "--prompt", "x"), 1, "model.safetensors"},
		"config has more layers": {generate(changed("num_hidden_layers", 9), "--token_ids", "1"), 1,
			"num_hidden_layers is 9, but the weights have no layer 8"},
		"unlimited layers": {generate(changed("num_hidden_layers", 1e18), "--token_ids", "1"), 1,
			"the weights have no layer 1000000000000000000"},
		"heads not a number": {generate(changed("num_attention_heads", "four"), "--token_ids", "1"),
			1, `is "four", expected`},
		"empty text": {[]string{"score", "--model_path", good, "--text_file", empty}, 1, "two"},
		"plan with LoRA and head_only": {[]string{"plan", "--architecture", "llama", "--variant",
			"7b", "--lora_rank", "4", "--head_only"}, 2, "choose one"},
		"plan with zero accumulation": {[]string{"plan", "--architecture", "llama", "--variant",
			"7b", "--accumulate", "-5"}, 2, "--accumulate is -5, expected 1"},
		"plan with zero GPUs per host": {[]string{"plan", "--architecture", "llama", "--variant",
			"7b", "--gpus_per_host", "0"}, 2, "0 GPUs per host"},
		"negative temperature, two processes": {generate(good, "--prompt", "x", "--nproc", "2",
			"--temperature", "-1"), 2, "--temperature"},
		"recording in two processes": {generate(good, "--prompt", "x", "--nproc", "2", "--compile",
			"graph"), 2, "--compile graph works in one process"},
		"missing prompt": {generate(good), 2, "--prompt"},
		"prompt and token ids": {generate(good, "--prompt", "x", "--token_ids", "1"), 2,
			"--token_ids"},
		"unknown flag": {generate(good, "--promt", "x"), 2, "did you mean --prompt?"},
		"value after boolean flag": {generate(good, "--prompt", "x", "--use_cache", "false"), 2,
			"--flag=false"},
		"flag prefix": {generate(good, "--max", "3"), 2, "did you mean --max_new_tokens?"},
		"flag without similar name": {generate(good, "--colour", "x"), 2,
			"unknown flag: --colour; `conquer"},
		"unknown dtype":  {generate(good, "--prompt", "x", "--dtype", "int3"), 2, "--dtype"},
		"unknown device": {generate(good, "--prompt", "x", "--device", "tpu"), 2, "--device"},
		"missing device": {generate(good, "--prompt", "x", "--device", "cuda:977"), 1, "--device"},
		"negative temperature": {generate(good, "--prompt", "x", "--temperature", "-1"), 2,
			"--temperature"},
		"empty stop": {generate(good, "--prompt", "x", "--stop", ""), 2, "--stop is empty"},
		"top_p 2":    {generate(good, "--prompt", "x", "--top_p", "2"), 2, "--top_p"},
		"zero new tokens": {generate(good, "--prompt", "x", "--max_new_tokens", "0"), 2,
			"--max_new_tokens"},
		"new tokens not a number": {generate(good, "--prompt", "x", "--max_new_tokens", "many"), 2,
			"max_new_tokens"},
		"token id not a number":  {generate(good, "--token_ids", "1,two"), 2, `"two"`},
		"token id out of range":  {generate(bare, "--token_ids", "1,50"), 1, "0 to 49"},
		"vocabulary mismatch":    {generate(small, "--prompt", "x"), 1, "700 tokens"},
		"missing tokenizer":      {generate(bare, "--prompt", "x"), 1, "--tokenizer"},
		"chat without tokenizer": {[]string{"chat", "--model_path", bare}, 1, "--tokenizer"},
		"prompt beyond the context": {generate(bare, "--token_ids", strings.Repeat("1,", 256)+"1"),
			1, "256"},
		"missing prompts file": {generate(good, "--prompts_file", "/nowhere.txt"), 1,
			"/nowhere.txt"},
		"stdin for two processes": {generate(good, "--prompts_file", "-", "--nproc", "2"), 2,
			"one process only"},
		"stop text without tokenizer": {generate(bare, "--token_ids", "1", "--stop", "x"), 1,
			"tokenizer"},
		"missing text": {[]string{"score", "--model_path", good}, 2, "--text_file"},
		"missing text file": {[]string{"score", "--model_path", good, "--text_file", "/nowhere"}, 1,
			"/nowhere"},
		"stride of a window": {[]string{"score", "--model_path", bare, "--token_ids", "1,2",
			"--window", "8", "--stride", "8"}, 2, "stride is 8"},
		"window beyond the context": {[]string{"score", "--model_path", bare, "--token_ids", "1,2",
			"--window", "1000"}, 2, "window is 1000"},
		"single token":   {[]string{"score", "--model_path", bare, "--token_ids", "1"}, 1, "two"},
		"missing output": {[]string{"export", "--model_path", good}, 2, "--output_path"},
		"output folder not empty": {[]string{"export", "--model_path", good, "--output_path", full},
			1, "--overwrite"},
		"unknown format": {[]string{"export", "--model_path", good, "--output_path", folder + "/x",
			"--format", "onnx"}, 2, "onnx"},
		"bad shard size": {[]string{"export", "--model_path", good, "--output_path", folder + "/x",
			"--shard_size", "big"}, 2, "--shard_size"},
		"version with argument": {[]string{"version", "of", "what"}, 2, `"of"`},
		"unknown shell":         {[]string{"completion", "csh"}, 2, "csh"},
		"plan without model":    {[]string{"plan"}, 2, "--architecture"},
		"plan with partial hosts": {[]string{"plan", "--architecture", "llama", "--variant", "7b",
			"--gpus", "12"}, 2, "hosts of 8"},
		"info without model": {[]string{"info", "--model_path", "/nowhere"}, 1, "/nowhere"},
	} {
		stdout, stderr, code := invoke(t, "", c.args...)
		if code != c.code || !strings.Contains(stderr, c.want) ||
			strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("%s: exit %d, want %d and one line with %q\nstdout: %s\nstderr: %s", name,
				code, c.code, c.want, stdout, stderr)
		}
	}
}
