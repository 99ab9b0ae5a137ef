package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestTrain_CharacterModelFromScratch(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "poem.txt")
	if err := os.WriteFile(data, []byte(strings.Repeat("round and round the tower the gulls go "+
		"round\n", 60)), 0o666); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "model")
	stdout, stderr, code := invoke(t, "", "train", "--architecture", "bamba", "--variant", "bytes",
		"--tokenizer", "char_tokenizer", "--data_path", data, "--validation_path", data,
		"--output_path", out, "--pack", "--sequence_length", "128", "--batch_size", "2", "--steps",
		"30", "--learning_rate", "0.01", "--checkpoint_steps", "0", "--validate_steps", "30")
	if code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	losses := regexp.MustCompile(`validation loss (\d+\.\d+)`).FindAllStringSubmatch(stderr, -1)
	if len(losses) != 2 || losses[0][1] < "5" || losses[1][1] > "3" { // ln 256 = 5.5
		t.Errorf("the losses before and after are %v\n%s", losses, stderr)
	}
	// The printed command runs unchanged.
	_, suggestion, _ := strings.Cut(stdout, "try:\n  conquer ")
	if !strings.HasPrefix(suggestion, "generate --model_path "+out+" ") ||
		strings.Contains(suggestion, "--chat") {
		t.Errorf("suggests %q", suggestion)
	}
	if text := succeed(t, "generate", "--model_path", out, "--prompt", "round and ",
		"--max_new_tokens", "8", "--ignore_eos"); len(text) < 8 {
		t.Errorf("continues with %q", text)
	}
	score := decode[scoreOutput](t,
		succeed(t, "score", "--model_path", out, "--text", "round the tower", "--json"))
	if score.Tokens != len("round the tower") || !(score.Perplexity > 1 && score.Perplexity < 100) {
		t.Errorf("scores %+v", score)
	}
}

// shellWords splits a command as a shell does.
func shellWords(t *testing.T, command string) []string {
	t.Helper()
	out, err := exec.Command("sh", "-c", "set -- "+command+"\nprintf '%s\\0' \"$@\"").Output()
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

// A new model takes its vocabulary from the tokenizer. The command that the run suggests fits what
// was trained, and runs.
func TestTrain_NewModelFitsTheTokenizerAndTheSuggestionRuns(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data.jsonl")
	if err := os.WriteFile(data, []byte(`{"instruction":"What's up?","output":"the tower"}`+"\n"),
		0o666); err != nil {
		t.Fatal(err)
	}
	chatty := writeModel(t, 704, true)
	for _, c := range []struct {
		tokenizer  string
		vocabulary float64
		more       []string
		suggests   string // after the path
	}{
		{"char_tokenizer", 256, nil, "--temperature 0.7 --prompt 'The '"},
		{"char_tokenizer", 256, []string{"--ask", "What's up?"},
			"--prompt 'Below is an instruction that describes a task. Write a response that " +
				"appropriately completes the request.\n\n### Instruction:\nWhat'\\''s up?\n\n" +
				"### Response:\n'"},
		{chatty, 704, []string{"--ask", "What's up?"}, "--chat --prompt 'What'\\''s up?'"},
	} {
		out := filepath.Join(t.TempDir(), "a model")
		stdout, stderr, code := invoke(t, "", append([]string{"train", "--architecture", "smollm3",
			"--variant", "tiny", "--tokenizer", c.tokenizer, "--data_path", data, "--output_path",
			out, "--steps", "1", "--batch_size", "1", "--checkpoint_steps", "0"}, c.more...)...)
		if code != 0 {
			t.Fatalf("%s: exit %d\n%s", c.tokenizer, code, stderr)
		}
		text, err := os.ReadFile(filepath.Join(out, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if config := decode[map[string]any](t, string(text)); config["vocab_size"] != c.vocabulary {
			t.Errorf("%s: vocab_size %v, expected %v", c.tokenizer, config["vocab_size"],
				c.vocabulary)
		}
		_, suggestion, _ := strings.Cut(stdout, "try:\n  conquer ")
		want := "generate --model_path '" + out + "' " + c.suggests + "\n"
		if suggestion != want {
			t.Errorf("%s: suggests %q, expected %q", c.tokenizer, suggestion, want)
		}
		succeed(t, append(shellWords(t, strings.TrimSpace(suggestion)), "--max_new_tokens", "2")...)
	}
}

func TestTrain_PreferencesAreLearnedAndBadRecordsNamed(t *testing.T) {
	dir := t.TempDir()
	pairs := filepath.Join(dir, "pairs.jsonl")
	var lines strings.Builder
	for i := range 8 {
		fmt.Fprintf(&lines, `{"prompt":"%d","chosen":"aaa","rejected":"bbbb"}`+"\n", i)
	}
	if err := os.WriteFile(pairs, []byte(lines.String()), 0o666); err != nil {
		t.Fatal(err)
	}
	args := func(data, out string, more ...string) []string {
		return append([]string{"train", "--architecture", "bamba", "--variant", "bytes",
			"--tokenizer", "char_tokenizer", "--data_path", data, "--output_path",
			filepath.Join(dir, out), "--batch_size", "4", "--steps", "4", "--learning_rate", "1e-3",
			"--checkpoint_steps", "3"}, more...)
	}
	if _, stderr, code := invoke(t, "",
		args(pairs, "out", "--objective", "dpo", "--validation_path", pairs)...); code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	metrics, err := os.ReadFile(filepath.Join(dir, "out", "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	pattern := `"validation_loss":([0-9.]+).*"reward_margin":([-0-9.e]+),"accuracy":([0-9.]+)}`
	validations := regexp.MustCompile(pattern).FindAllStringSubmatch(string(metrics), -1)
	if len(validations) < 2 || !strings.HasPrefix(validations[0][1], "0.69") ||
		validations[len(validations)-1][1] > "0.6" || validations[len(validations)-1][3] != "1" {
		t.Errorf("the validations are %v of\n%s", validations, metrics)
	}
	if _, err := os.Stat(filepath.Join(dir, "out", "checkpoints", "reference.json")); err != nil {
		t.Error(err)
	}
	// The same records, as answers with labels.
	if _, stderr, code := invoke(t, "",
		args(pairs, "labelled", "--objective", "kto", "--validation_path", pairs)...); code != 0 {
		t.Fatalf("exit %d\n%s", code, stderr)
	}
	if metrics, err = os.ReadFile(filepath.Join(dir, "labelled", "metrics.jsonl")); err != nil {
		t.Fatal(err)
	}
	pattern = `"validation_loss":([0-9.]+).*"accuracy":([0-9.]+),"kl":([0-9.e-]+)}`
	validations = regexp.MustCompile(pattern).FindAllStringSubmatch(string(metrics), -1)
	if len(validations) < 2 || validations[0][1] != "0.5" || validations[0][3] != "0" ||
		validations[len(validations)-1][1] > "0.48" || validations[len(validations)-1][2] != "1" {
		t.Errorf("the validations are %v of\n%s", validations, metrics)
	}
	for name, c := range map[string]struct {
		line, want string
		more       []string
		code       int
	}{
		"record without a label": {`{"prompt":"x","completion":"y"}`,
			":9: a record of layout completion, expected a rated answer",
			[]string{"--objective", "kto"}, 1},
		"margin of dpo": {"", "--gamma 0.5 is for the objective simpo only",
			[]string{"--objective", "dpo", "--gamma", "0.5"}, 2},
		"no weight": {"", "--desirable_weight is 0, expected a number above 0",
			[]string{"--objective", "kto", "--desirable_weight", "0"}, 2},
		"no likelihood": {"", "--sft_weight is 0, expected 1 for --objective orpo",
			[]string{"--objective", "orpo", "--sft_weight", "0"}, 2},
		"bad": {`{"prompt":"x","chosen":3,"rejected":"y"}`, `:9: field "chosen" is 3`,
			[]string{"--objective", "dpo"}, 1},
		"record without a pair": {`{"text":"x"}`, ":9: a record of layout text, expected a pair",
			[]string{"--objective", "dpo"}, 1},
		"pair without dpo": {"", ":1: the record is a pair of answers", nil, 1},
		"unknown":          {"", "unknown objective", []string{"--objective", "ppo"}, 2},
		"negative": {"", "it must be positive", []string{"--objective", "dpo", "--beta", "-1"},
			2},
	} {
		path := filepath.Join(dir, "bad.jsonl")
		if err := os.WriteFile(path, []byte(lines.String()+c.line), 0o666); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := invoke(t, "", args(path, "none", c.more...)...)
		if code != c.code || !strings.Contains(stderr, c.want) ||
			strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
			t.Errorf("%s: exit %d\n%s", name, code, stderr)
		}
	}
}

func TestTrain_FlagsChooseOptimizerAndCompile(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "poem.txt")
	if err := os.WriteFile(data, []byte(strings.Repeat("round and round the tower the gulls go "+
		"round\n", 30)), 0o666); err != nil {
		t.Fatal(err)
	}
	args := func(out string, more ...string) []string {
		return append([]string{"train", "--architecture", "bamba", "--variant", "bytes",
			"--tokenizer", "char_tokenizer", "--data_path", data, "--output_path",
			filepath.Join(dir, out), "--pack", "--sequence_length", "64", "--batch_size", "2",
			"--steps", "3"}, more...)
	}
	for name, more := range map[string][]string{
		"lion": {"--optimizer", "lion", "--no_decay", "norm,bias,embedding", "--weight_decay",
			"0.1"},
		"int8": {"--moments", "int8", "--checkpoint_steps", "2",
			"--save_format", "native"},
		"bfloat16": {"--moments", "bfloat16", "--no-decay", "none"},
		"spare":    {"--recompute", "selective", "--compile", "none"},
		"recorded": {"--recompute", "selective", "--compile", "graph"},
	} {
		if _, stderr, code := invoke(t, "", args(name, more...)...); code != 0 {
			t.Errorf("%s: exit %d\n%s", name, code, stderr)
		}
	}
	plain, recorded := lossesIn(t, filepath.Join(dir, "spare")), lossesIn(t,
		filepath.Join(dir, "recorded"))
	for i := range 3 {
		if math.Abs(plain[i]-recorded[i]) > 1e-4*plain[i] {
			t.Errorf("losses %v, and %v with passes to be recorded", plain, recorded)
		}
	}
	for want, more := range map[string][]string{
		`unknown value "some": choose none, selective or block`: {"--recompute", "some"},
		`--compile: unknown value "jit"`:                        {"--compile", "jit"},
		"--compile graph works in one process only": {"--compile", "graph", "--nproc", "2",
			"--distributed", "ddp"},
		`unknown optimizer "sgd"`:               {"--optimizer", "sgd"},
		`unknown dtype "int4"`:                  {"--moments", "int4"},
		"--moments int8 is for adamw only":      {"--optimizer", "lion", "--moments", "int8"},
		`unknown kind "head": choose from norm`: {"--no_decay", "head"},
		"--label_smoothing is 2":                {"--label_smoothing", "2"},
	} {
		_, stderr, code := invoke(t, "", args("none", more...)...)
		if code != 2 || !strings.Contains(stderr, want) ||
			strings.Count(strings.TrimSpace(stderr), "\n") > 0 {
			t.Errorf("%v: exit %d\n%s", more, code, stderr)
		}
	}
}

// Flags that do not fit the model are reported before the data is read.
func TestTrain_ComparesFlagsWithTheModelBeforeTheData(t *testing.T) {
	base := writeModel(t, 704, true)
	data := filepath.Join(t.TempDir(), "data.jsonl")
	if err := os.WriteFile(data, []byte("{\n"), 0o644); err != nil { // reading it would fail
		t.Fatal(err)
	}
	for want, more := range map[string][]string{
		`LoRA target "qproj" names no layer`:   {"--lora_rank", "2", "--lora_targets", "qproj"},
		"--lora_tokens: there is no token 704": {"--lora_rank", "2", "--lora_tokens", "704"},
		`--lora_rank_pattern: "foo" matches none of the adapted layers, such as model.layers.0.`: {
			"--lora_rank", "2", "--lora_rank_pattern", "foo=3"},
		"give --dtype bfloat16": {"--stochastic_rounding"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"train", "--model_path", base,
			"--data_path", data, "--output_path", filepath.Join(t.TempDir(), "out"), "--device",
			"cpu"}, more...)...)
		if code != 1 || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d\n%s", more, code, stderr)
		}
	}
}

// Bad flags are reported before any process starts.
func TestTrain_BadInputGetsOneLineAndExitCode(t *testing.T) {
	folder, good := t.TempDir(), writeModel(t, 704, true)
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	data := write("data.jsonl", strings.Repeat(`{"instruction": "Why?", "output": "So."}`+"\n", 5))
	out, link := filepath.Join(folder, "out"), filepath.Join(folder, "link")
	if err := os.Symlink("nowhere", link); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"two processes without a strategy": {[]string{"--nproc", "2", "--distributed", "none"}, 2,
			"choose ddp"},
		"tp_size above processes": {[]string{"--nproc", "2", "--distributed", "tp", "--tp_size",
			"3"}, 2, "divide the 2 processes"},
		"hsdp_size above processes": {[]string{"--nproc", "2", "--distributed", "hsdp",
			"--hsdp_size", "3"}, 2, "divide the 2 processes"},
		"hsdp_size without hsdp": {[]string{"--nproc", "2", "--distributed", "fsdp", "--hsdp_size",
			"2"}, 2, "--distributed hsdp"},
		"keep_gathered without shards": {[]string{"--nproc", "2", "--keep_gathered"}, 2,
			"--keep_gathered"},
		"offload with pp": {[]string{"--nproc", "2", "--distributed", "pp", "--offload_optimizer"},
			2, "fsdp or hsdp"},
		"offload with one process":  {[]string{"--offload_optimizer"}, 2, "fsdp or hsdp"},
		"unknown checkpoint format": {[]string{"--save_format", "pt"}, 2, "hf or native"},
		"hf with two processes": {[]string{"--nproc", "2", "--save_format", "hf"}, 2,
			"native"},
		"reduce_dtype float8": {[]string{"--reduce_dtype", "float8"}, 2, "float32, or same"},
		"reduce_dtype with pp": {[]string{"--nproc", "2", "--distributed", "pp", "--reduce_dtype",
			"same"}, 2, "--distributed ddp, fsdp or hsdp"},
		"lora_targets without rank": {[]string{"--lora_targets", "q_proj"}, 2, "--lora_rank"},
		"early stop without validation": {[]string{"--early_stop", "3"}, 2,
			"--early_stop needs --validation_path"},
		"the best without validation": {[]string{"--keep_best"}, 2,
			"--keep_best needs --validation_path"},
		"zero validations": {[]string{"--early_stop", "0", "--validation_fraction", "1"}, 2,
			"--early_stop is 0"},
		"improvement of nothing": {[]string{"--min_improvement", "1"}, 2, "needs --early_stop"},
		"negative improvement": {[]string{"--early_stop", "2", "--min_improvement", "-1",
			"--validation_fraction", "1"}, 2, "neither can be negative"},
		"lora_rslora without rank": {[]string{"--lora_rslora"}, 2, "needs --lora_rank"},
		"pattern without rank": {[]string{"--lora_rank", "2", "--lora_rank_pattern", "q_proj"}, 2,
			"expected layers=number"},
		"rank pattern of 2.5": {[]string{"--lora_rank", "2", "--lora_rank_pattern",
			"q_proj=2.5"}, 2, "whole number"},
		"alpha pattern that is not a number": {[]string{"--lora_rank", "2", "--lora_alpha_pattern",
			"q_proj=x"}, 2, `"x" is not a number`},
		"pattern of Python": {[]string{"--lora_rank", "2", "--lora_rank_pattern", "q(?!x)=2"}, 2,
			"regular expression"},
		"lora_layers beyond the model": {[]string{"--lora_rank", "2", "--lora_layers", "99"}, 1,
			"no block 99"},
		"steps without a question": {[]string{"--ask_steps", "3"}, 2, "--ask_steps needs --ask"},
		"zero steps to a question": {[]string{"--ask", "x", "--ask_steps", "0"}, 2,
			"--ask_steps is 0"},
		"zero beta1":        {[]string{"--beta1", "0"}, 2, "--beta1 is 0"},
		"zero steps":        {[]string{"--steps", "0"}, 2, "--steps is 0, expected 1"},
		"zero epochs":       {[]string{"--epochs", "0"}, 2, "--epochs is 0, expected 1"},
		"zero accumulation": {[]string{"--accumulate", "0"}, 2, "--accumulate is 0"},
		"zero rank":         {[]string{"--lora_rank", "0"}, 2, "--lora_rank is 0"},
		"zero alpha": {[]string{"--lora_rank", "2", "--lora_alpha", "0"}, 2,
			"--lora_alpha is 0, expected a number above 0"},
		"negative warm-up":         {[]string{"--warmup_steps", "-7"}, 2, "--warmup_steps is -7"},
		"validations without data": {[]string{"--validate_steps", "3"}, 2, "--validation_path"},
		"stochastic rounding of float32": {[]string{"--stochastic_rounding", "--dtype", "float32"},
			1, "--dtype bfloat16"},
		"2^31 threads": {[]string{"--threads", "2147483648"}, 2,
			"--threads is 2147483648, expected 1 to 1024"},
		"2^62 processes": {[]string{"--nproc", "4611686018427387904"}, 2,
			"expected 1 to 1024 processes"},
		"2^31 samples": {[]string{"--batch_size", "2147483648"}, 2, "expected 1 to 1048576"},
		"2^63 passes":  {[]string{"--accumulate", "9223372036854775807"}, 2, "expected 1 to"},
		"2^63 epochs":  {[]string{"--epochs", "9223372036854775807"}, 2, "expected at most"},
		"endless validation": {[]string{"--validation_fraction", "Inf"}, 2,
			"--validation_fraction is +Inf"},
		"no validation": {[]string{"--validation_fraction", "0"}, 2, "is 0, expected a share"},
		"negative validation": {[]string{"--validation_fraction", "-1"}, 2,
			"is -1, expected a share"},
		"too much validation": {[]string{"--validation_fraction", "5"}, 1,
			"--validation_fraction: cannot hold out 5 of 5 records"},
		"negative threads":        {[]string{"--threads", "-3"}, 2, "--threads is -3"},
		"restarts without nproc":  {[]string{"--max_restarts", "2"}, 2, "--nproc"},
		"zero checkpoints kept":   {[]string{"--keep", "0"}, 2, "--keep"},
		"fractional sample count": {[]string{"--validation_fraction", "2.5"}, 2, "2.5"},
		"all samples held out":    {[]string{"--validation_fraction", "5"}, 1, "5 of 5 records"},
		"sequence too short for an answer": {[]string{"--sequence_length", "4"}, 1,
			"give a --sequence_length of more than 4"},
		"negative steps": {[]string{"--steps", "-3"}, 2, "--steps is -3"},
		"missing validation file": {[]string{"--validation_path", filepath.Join(folder, "nowhere")},
			1, "--validation_path: "},
		"file as output folder": {[]string{"--output_path", filepath.Join(data, "out")}, 1,
			"--output_path: " + data + " is a file"},
		"link to nothing as output folder": {[]string{"--output_path", link}, 1,
			"--output_path: " + link + " is a symbolic link to nowhere"},
		"file as checkpoint folder": {[]string{"--checkpoint_path", data}, 1,
			"--checkpoint_path: " + data + " is a file"},
		"profile in missing folder": {[]string{"--profile",
			filepath.Join(folder, "nowhere", "x.json")}, 2, "--profile: no folder"},
		"data behind a URL": {[]string{"--data_path", "https://example.org/a.json"}, 2,
			"download it"},
		"missing data": {[]string{"--data_path", filepath.Join(folder, "nowhere")}, 1, "nowhere"},
		"truncated record": {[]string{"--data_path",
			write("cut.jsonl", `{"text": "a"}`+"\n"+`{"text": `)}, 1, "cut.jsonl:2"},
		"unclosed array": {[]string{"--data_path", write("cut.json", `[{"text": "a"}`)}, 1,
			"cut.json"},
		"bad parquet file": {[]string{"--data_path", write("cut.parquet", "PAR1PAR1")}, 1,
			"cut.parquet"},
		"bad archive": {[]string{"--data_path", write("cut.tar.gz", "\x1f\x8b")}, 1, "cut.tar.gz"},
		"an unknown field": {[]string{"--data_path", write("odd.jsonl", `{"foo": 1}`)}, 1,
			"odd.jsonl:1"},
	} {
		_, stderr, code := invoke(t, "",
			append([]string{"train", "--model_path", good, "--data_path", data, "--output_path",
				out, "--device", "cpu"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, want %d and one line with %q\n%s", name, code, c.code, c.want,
				stderr)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a run that did not begin left a folder")
	}
	// Samples longer than the model's context are cut, with a message.
	if _, stderr, code := invoke(t, "", "train", "--model_path", good, "--data_path", data,
		"--output_path", out, "--device", "cpu", "--steps", "1", "--sequence_length",
		"1000"); code != 0 || !strings.Contains(stderr,
		"samples are cut to the model's context of 256") {
		t.Errorf("exit %d\n%s", code, stderr)
	}
}

func TestTrain_MapsColumnsAndSkipsBadRecords(t *testing.T) {
	data := filepath.Join(t.TempDir(), "data.jsonl")
	if err := os.WriteFile(data, []byte(`{"question":"What?","answer":"the tower"}
{"question":"What?","answer":
{"question":"\u001b]0;x","answer":7}
`), 0o666); err != nil {
		t.Fatal(err)
	}
	train := func(more ...string) (stdout, stderr string, code int) {
		args := append([]string{"train", "--architecture", "bamba", "--variant", "bytes",
			"--tokenizer", "char_tokenizer", "--data_path", data, "--steps", "1",
			"--batch_size", "1", "--output_path", filepath.Join(t.TempDir(), "out"),
			"--checkpoint_steps", "0"}, more...)
		return invoke(t, "", args...)
	}
	columns := "--columns=instruction=question,output=answer"
	stdout, stderr, code := train(columns, "--on_bad_record", "skip")
	if code != 0 || !strings.Contains(stdout, "from 1 record") ||
		!strings.Contains(stdout, "2 bad records skipped") ||
		!strings.Contains(stdout, "  skipped "+data+":2: ") ||
		!strings.Contains(stdout, "  skipped "+data+":3: ") {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	for _, c := range []struct {
		more []string
		code int
		want string
	}{
		{[]string{columns}, 1, data + ":2: "},
		{[]string{"--on_bad_record", "skip"}, 1, "3 bad records skipped"},
		{[]string{"--on_bad_record", "ignore"}, 2, "expected stop or skip"},
		{[]string{"--columns", "question=a"}, 2, "known are messages"},
	} {
		_, stderr, code := train(c.more...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: exit %d, %s", c.more, code, stderr)
		}
	}
}
