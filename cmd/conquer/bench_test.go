package main

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"conquer/bench"
	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// readRows reads the rows that a benchmark wrote.
func readRows[Row any](t *testing.T, dir, kind string) []Row {
	t.Helper()
	r, err := bench.Read(filepath.Join(dir, kind+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if r.Machine.Cores < 1 || r.Machine.CPU == "" || r.Versions.Go == "" || r.Command == "" ||
		r.Time.IsZero() {
		t.Errorf("%s: %+v", kind, r)
	}
	if data, err := os.ReadFile(filepath.Join(dir, kind+".csv")); err != nil ||
		strings.Count(string(data), "\n") <= 1 {
		t.Errorf("%s.csv: %v %s", kind, err, data)
	}
	return r.Rows.([]Row)
}

func TestBenchSSD_PrintsTheWrittenRows(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "results")
	args := []string{"bench", "ssd", "--length", "40", "--heads", "2", "--head_dim", "16",
		"--state", "16", "--repeats", "2", "--device", "cpu", "--chunking",
		"default,windowed:1-optimized", "--chunk_size", "16", "--output_path", dir}
	table := succeed(t, args...)
	rows := readRows[bench.SSDRow](t, dir, "ssd")
	if len(rows) != 2*2+3 || strings.Count(table, "\n") != len(rows)+4 ||
		!strings.Contains(table, "windowed:1-optimized") {
		t.Errorf("%d rows, and the table\n%s", len(rows), table)
	}
	again := decode[bench.Results](t, succeed(t, append(args, "--json", "--pass", "forward")...))
	if now := readRows[bench.SSDRow](t, dir, "ssd"); len(now) != 2 ||
		len(again.Rows.([]any)) != 2 || again.Machine.Ceilings.ReadGBPerS <= 0 ||
		again.Machine.Ceilings.F32GFlopPerS <= 0 || again.Machine.Ceilings.BF16GFlopPerS <= 0 {
		t.Errorf("%d rows, printed %+v", len(now), again)
	}
}

// writePrompts writes a prompts file of two short entries.
func writePrompts(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "prompts.json")
	text := `[{"prompt": "the sea is calm and the lamp is lit, what",
  "answer": "is seen", "token_len": 41, "num_chunks": 1},
		{"prompt": "fog", "answer": " again", "token_len": 3, "num_chunks": 1}]`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestBenchChunks_TimesStoredAndRandomWeights(t *testing.T) {
	prompts, dir := writePrompts(t), t.TempDir()
	args := []string{"bench", "chunks", "--prompts", prompts, "--variant", "bytes", "--repeats",
		"1", "--max_new_tokens", "2", "--device", "cpu", "--chunking",
		"default,independent-optimized", "--chunk_size", "16", "--output_path", dir}
	table, complaints, code := invoke(t, "", args...)
	if code != 0 || !strings.Contains(complaints, "random (no --model_path)") ||
		!strings.Contains(complaints, "no --tokenizer") || strings.Count(complaints, "\n") != 2 {
		t.Fatalf("exit %d: %s", code, complaints)
	}
	rows := readRows[bench.ChunksRow](t, dir, "chunks")
	if len(rows) != 4 || strings.Count(table, "\n") != 6 {
		t.Fatalf("%d rows, and the table\n%s", len(rows), table)
	}
	for i, r := range rows {
		if want := []int{41, 3}[i/2]; r.PromptTokens != want || r.ChunkSize != 16 ||
			r.Layers != 2 || r.UseCache || r.TotalMS <= 0 {
			t.Errorf("%+v", r)
		}
	}
	// A stored model, cut to its first layer. Modes that the CPU cannot record print one line.
	model := writeBamba(t)
	table, complaints, code = invoke(t, "", "bench", "chunks", "--prompts", prompts, "--model_path",
		model, "--tokenizer", "char_tokenizer", "--layers", "1", "--repeats", "1", "--chunking",
		"default", "--compile", "eager,kernels,graph,both", "--use_cache", "--device", "cpu",
		"--output_path", dir, "--max_new_tokens", "1")
	if code != 0 || strings.Count(complaints, "\n") != 2 ||
		strings.Count(complaints, "graphs are for GPUs") != 2 ||
		!strings.Contains(table, "kernels") {
		t.Fatalf("exit %d: %s", code, complaints)
	}
	if rows = readRows[bench.ChunksRow](t, dir, "chunks"); len(rows) != 8 || rows[0].Layers != 1 ||
		!rows[0].UseCache || rows[1].TotalMS <= 0 || rows[2].Failed == "" {
		t.Errorf("%+v", rows)
	}
}

// Random weights, prompts and inputs come from --seed, which the results name.
func TestBench_SeedDecidesRandomWeights(t *testing.T) {
	prompts := writePrompts(t)
	run := func(seed string) (rows []bench.AccuracyRow, said string) {
		dir := t.TempDir()
		stdout, stderr, code := invoke(t, "", "bench", "accuracy", "--variant", "bytes", "--layers",
			"1", "--tokenizer", "char_tokenizer", "--prompts", prompts, "--seed", seed, "--device",
			"cpu", "--chunking", "default-optimized", "--output_path", dir)
		r, err := bench.Read(filepath.Join(dir, "accuracy.json"))
		if code != 0 || err != nil || r.Weights != "random, seed "+seed ||
			!strings.Contains(stdout, "(weights: random, seed "+seed+")") ||
			!strings.Contains(stderr, "seed "+seed) {
			t.Fatalf("exit %d, %v, %+v\n%s%s", code, err, r, stdout, stderr)
		}
		return r.Rows.([]bench.AccuracyRow), stdout
	}
	first, _ := run("1")
	again, _ := run("1")
	other, _ := run("2")
	for i := range first {
		if first[i] != again[i] || first[i].NLL == other[i].NLL {
			t.Errorf("seed 1: %+v and %+v, seed 2: %+v", first[i], again[i], other[i])
		}
	}
	row := decode[bench.InferenceRow](t, func() string {
		stdout, _, _ := invoke(t, "", "bench", "inference", "--architecture", "bamba", "--variant",
			"tiny", "--device", "cpu", "--seq_len", "4", "--max_new_tokens", "2", "--repeat", "1",
			"--skip_nokvcache_runs", "--seed", "6", "--json")
		return stdout
	}())
	if row.Weights != "random, seed 6" {
		t.Errorf("%+v", row)
	}
}

func TestBench_KeepsFinishedRowsWhenInterrupted(t *testing.T) {
	dir := t.TempDir()
	f := benchFlags{output: dir}
	r, err := f.begin(bench.SSD, torch.CPU, false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	rows := []bench.SSDRow{}
	strategies, err := parseStrategies([]string{"default", "independent"})
	if err != nil {
		t.Fatal(err)
	}
	o := bench.SSDOptions{
		Passes:     []string{"forward", "norm"},
		Strategies: strategies,
		ChunkSizes: []int{16},
		Lengths:    []int{8},
		Batches:    []int{1},
		Shape: bench.ScanShape{
			Heads:   1,
			HeadDim: 16,
			State:   16,
			Groups:  1,
		},
		DType:   torch.Float32,
		Device:  torch.CPU,
		Repeats: 1,
	}
	err = bench.RunSSD(ctx, o, func(row bench.SSDRow, _ int) {
		if rows = append(rows, row); len(rows) == 2 {
			stop() // like Ctrl-C
		}
	})
	r.Rows = rows
	if err = f.finish(r, len(rows), err, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	if got := readRows[bench.SSDRow](t, dir, "ssd"); len(got) != 2 ||
		got[1].Strategy != "independent" {
		t.Errorf("%+v", got)
	}
}

// An unwritable folder is refused before the benchmark. If it becomes unwritable during the
// benchmark, the measured rows are still printed.
func TestBench_ReportsUnwritableResults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	f := benchFlags{output: filepath.Join(file, "results"), json: true}
	if _, err := f.begin(bench.SSD, torch.CPU, false); err == nil ||
		!strings.Contains(err.Error(), "--output_path: "+file+" is a file") {
		t.Errorf("begins with %v", err)
	}
	f.output = t.TempDir()
	r, err := f.begin(bench.SSD, torch.CPU, false)
	if err != nil {
		t.Fatal(err)
	}
	f.output = file // as if the file had appeared during the benchmark
	r.Rows = []bench.SSDRow{{Strategy: "default", MedianMS: 1.25}}
	output := os.Stdout
	defer func() { os.Stdout = output }()
	if os.Stdout, err = os.Create(filepath.Join(t.TempDir(), "printed")); err != nil {
		t.Fatal(err)
	}
	err = f.finish(r, 1, nil, nil)
	if printed, _ := os.ReadFile(os.Stdout.Name()); err == nil ||
		!strings.Contains(string(printed), `"median_ms":1.25`) {
		t.Errorf("ended with %v and printed %s", err, printed)
	}
}

// writeBamba writes a small random Bamba over characters, without a tokenizer.
func writeBamba(t *testing.T) string {
	t.Helper()
	config, err := model.Variant("bamba", "tiny")
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["initializer_range"] = 256.0, 0.3
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	err = torch.Run(func() error {
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "bamba")
	text, _ := json.Marshal(config)
	if err := checkpoint.Save(dir, model.Weights(m), checkpoint.Options{Config: text}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBenchGPTScore_ReadsAccuracyPredictions(t *testing.T) {
	prompts, dir := writePrompts(t), t.TempDir()
	stale := filepath.Join(dir, bench.PredictionsName("independent"))
	os.WriteFile(stale, []byte("of an earlier run"), 0o666)
	table := succeed(t, "bench", "accuracy", "--prompts", prompts, "--model_path", writeBamba(t),
		"--tokenizer", "char_tokenizer", "--device", "cpu", "--chunking",
		"default-optimized,windowed:1", "--chunk_size", "16", "--output_path", dir)
	rows := readRows[bench.AccuracyRow](t, dir, "accuracy")
	if len(rows) != 4 || !strings.Contains(table, "accuracy_windowed_1.tsv") {
		t.Fatalf("%d rows, and the table\n%s", len(rows), table)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Errorf("%s is left of an earlier run", stale)
	}
	var files []string
	for _, strategy := range []string{"default-optimized", "windowed:1"} {
		path := filepath.Join(dir, bench.PredictionsName(strategy))
		list, err := bench.ReadPredictions(path)
		if err != nil || len(list) != 2 || list[1].Prompt != "fog" ||
			list[1].Reference != " again" {
			t.Errorf("%s: %+v %v", path, list, err)
		}
		files = append(files, path)
	}
	args := append([]string{"bench", "gptscore", "--model_path", writeModel(t, 704, true),
		"--device", "cpu", "--aspect", "none,fluency", "--output_path", dir}, files...)
	succeed(t, args...)
	scores := readRows[bench.GPTScoreRow](t, dir, "gptscore")
	if len(scores) != 2*2*2 || scores[7].Strategy != "windowed:1" ||
		scores[7].Aspect != "fluency" || !(scores[7].Average < 0) {
		t.Errorf("%+v", scores)
	}
}

func TestBench_HelpListsSubcommands(t *testing.T) {
	help := succeed(t, "bench", "--help")
	if !reflect.DeepEqual(help, succeed(t, "help", "bench")) {
		t.Error("`bench --help` and `help bench` differ")
	}
	for _, part := range benchCommand.subcommands {
		own := succeed(t, append(strings.Fields(part.name), "--help")...)
		if !strings.Contains(help, part.name) || !strings.Contains(own, "Examples:") ||
			!strings.Contains(own, "conquer "+part.name) ||
			own != succeed(t, append([]string{"help"}, strings.Fields(part.name)...)...) {
			t.Errorf("%s: %s", part.name, own)
		}
	}
}

func TestBench_BadInputGetsOneLineAndExitCode(t *testing.T) {
	prompts, llama, bare := writePrompts(t), writeModel(t, 704, true), writeModel(t, 50, false)
	folder := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	missing := write("missing.json",
		`[{"prompt": "p", "answer": "a", "token_len": 1, "num_chunks": 1},
  {"prompt": "p", "token_len": 1, "num_chunks": 1}]`)
	good, malformed := write("good.tsv", "1\tp\ta\tb\n"), write("bad.tsv", "1\tp\ta\tb\n2\tp\ta\n")
	chunks := func(more ...string) []string {
		return append([]string{"chunks", "--variant", "bytes", "--device", "cpu"}, more...)
	}
	for name, c := range map[string]struct {
		args []string
		code int
		want string
	}{
		"missing subcommand": {[]string{}, 2, "ssd"},
		"unknown subcommand": {[]string{"sdd"}, 2, `"bench ssd"`},
		"unknown strategy":   {[]string{"ssd", "--chunking", "sideways"}, 2, "sideways"},
		"repeated strategy": {[]string{"ssd", "--chunking", "default,independent,default"}, 2,
			"twice"},
		"window without k": {[]string{"ssd", "--chunking", "windowed"}, 2,
			"windowed:k"},
		"chunk size not a power of two": {[]string{"ssd", "--chunk_size", "48"}, 2, "power of two"},
		"N out of range":                {[]string{"ssd", "--state", "512"}, 2, "16 to 256"},
		"groups do not divide heads":    {[]string{"ssd", "--groups", "3"}, 2, "divide"},
		"unknown pass":                  {[]string{"ssd", "--pass", "sideways"}, 2, "sideways"},
		"zero length":                   {[]string{"ssd", "--length", "0"}, 2, "length"},
		"length not a number":           {[]string{"ssd", "--length", "long"}, 2, "length"},
		"fractional length": {[]string{"ssd", "--length", "1,2.5"}, 2,
			`"--length" flag: expected integers`},
		"zero steps": {[]string{"train", "--model_path", llama, "--steps", "0"}, 2,
			"at least 1 step"},
		"missing --prompts":      {chunks(), 2, "--prompts"},
		"prompt without a field": {chunks("--prompts", missing), 1, `entry 1 has no "answer"`},
		"missing prompts file":   {chunks("--prompts", "/nowhere.json"), 1, "/nowhere.json"},
		"missing model":          {[]string{"chunks", "--prompts", prompts}, 2, "--variant"},
		"unknown variant": {[]string{"chunks", "--prompts", prompts, "--variant", "huge"}, 2,
			"huge"},
		"model without chunks": {[]string{"chunks", "--prompts", prompts, "--model_path", llama}, 1,
			"llama"},
		"chunk size 100": {chunks("--prompts", prompts, "--chunk_size", "100"), 2,
			"power of two"},
		"too many layers":   {chunks("--prompts", prompts, "--layers", "3"), 2, "has 2"},
		"unknown --compile": {chunks("--prompts", prompts, "--compile", "jit"), 2, "jit"},
		"zero new tokens": {chunks("--prompts", prompts, "--max_new_tokens", "0"), 2,
			"max_new_tokens"},
		"no tokenizer for answers": {[]string{"accuracy", "--prompts", prompts, "--model_path",
			writeBamba(t), "--device", "cpu"}, 1, "needs a tokenizer"},
		"missing predictions": {[]string{"gptscore", "--model_path", llama}, 2, "predictions"},
		"malformed line": {[]string{"gptscore", "--model_path", llama, good, malformed}, 1,
			"bad.tsv:2"},
		"unknown aspect": {[]string{"gptscore", "--model_path", llama, "--aspect", "beauty", good},
			2, "beauty"},
		"no tokenizer for scores": {[]string{"gptscore", "--model_path", bare, "--device", "cpu",
			good}, 1, "no tokenizer"},
		"negative threads": {[]string{"ssd", "--threads", "-1"}, 2, "--threads"},
		"unknown dtype":    {[]string{"ssd", "--dtype", "int8"}, 2, "--dtype"},
	} {
		stdout, stderr, code := invoke(t, "", append([]string{"bench"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) ||
			strings.Count(stderr, "\n") != 1 || stdout != "" {
			t.Errorf("%s: exit %d, want %d and one line with %q\nstdout: %s\nstderr: %s", name,
				code, c.code, c.want, stdout, stderr)
		}
	}
}

func TestBenchInference_ReportsFusedLayers(t *testing.T) {
	for _, c := range []struct {
		row  bench.InferenceRow
		want string
	}{
		{bench.InferenceRow{}, ""}, // the CPU prints nothing
		{bench.InferenceRow{Fused: true}, "  layers       fused: "},
		{bench.InferenceRow{UnfusedReason: "it takes up to 64 rows, not 65"},
			"  layers       not fused: it takes up to 64 rows, not 65\n"},
	} {
		var text strings.Builder
		printInference(&text, c.row)
		if said := strings.Contains(text.String(), "layers"); said != (c.want != "") ||
			!strings.Contains(text.String(), c.want) {
			t.Errorf("%+v:\n%s", c.row, text.String())
		}
	}
}

func TestBenchConsistency_ComparesStoredAndRandomWeights(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.txt")
	os.WriteFile(text, []byte(strings.Repeat("the sea is calm and the lamp is lit ", 9)), 0o666)
	reference := filepath.Join(dir, "reference")
	args := []string{"bench", "consistency", "--model_path", writeBamba(t), "--tokenizer",
		"char_tokenizer", "--text_file", text, "--length", "90", "--pieces", "1,40", "--chunk_size",
		"16", "--device", "cpu", "--output_path", dir}
	table := succeed(t, append(args, "--reference_path", reference, "--decode", "20")...)
	rows := readRows[bench.ConsistencyRow](t, dir, bench.Consistency)
	ways := map[string]int{}
	for _, r := range rows {
		ways[r.Way]++
		same := strings.HasPrefix(r.Strategy, "default") && (r.State == "" || r.State == "float32")
		if r.Failed != "" || r.Length != 90 || same && !(r.LogitMax < 1e-4*r.LogitScale) {
			t.Errorf("%+v", r)
		}
	}
	if ways["pieces"] != 2*2 || ways["decode"] != 4 || ways["padded"] != 1 ||
		ways["packed"] != 1 || strings.Count(table, "\n") != len(rows)+2 {
		t.Errorf("the ways %v, and the table\n%s", ways, table)
	}
	stored, err := checkpoint.Open(reference)
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()
	if names := stored.Names(); len(names) != 2 {
		t.Errorf("the reference holds %v", names)
	}
	stdout, stderr, code := invoke(t, "", "bench", "consistency", "--architecture", "llama",
		"--variant", "micro", "--length", "12", "--dtype", "float32,bfloat16", "--device", "cpu",
		"--output_path", dir, "--json")
	if code != 0 || strings.Count(stderr, "random (no --model_path)") != 2 ||
		len(decode[bench.Results](t, stdout).Rows.([]any)) != 2*10 {
		t.Errorf("exit %d\n%s%s", code, stdout, stderr)
	}
	for want, wrong := range map[string][]string{
		"give --model_path": {"--length", "9"}, "--length is 1": {"--variant", "tiny", "--length",
			"1"},
		"decode is 12":  {"--variant", "tiny", "--length", "12", "--decode", "12"},
		"unknown dtype": {"--variant", "tiny", "--state_dtype", "int8"},
		"a piece is 0":  {"--variant", "tiny", "--pieces", "0", "--length", "12"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"bench", "consistency", "--device", "cpu",
			"--output_path", dir}, wrong...)...)
		if code != 2 || !strings.Contains(stderr, want) {
			t.Errorf("%v: exit %d, %s", wrong, code, stderr)
		}
	}
}
