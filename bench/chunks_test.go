package bench

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	_ "conquer/bamba"
	"conquer/generate"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// small returns a random model that reads characters. Its weights are so large that strategies
// differ.
func small(t testing.TB, architecture string) statespace.Chunked {
	return smallOf(t, architecture, 256)
}

func smallOf(t testing.TB, architecture string, vocabulary float64) statespace.Chunked {
	t.Helper()
	config, err := model.Variant(architecture, "tiny")
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["initializer_range"] = vocabulary, 0.2
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	err = torch.Run(func() error {
		torch.ManualSeed(3)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Free(m) })
	return m.(statespace.Chunked)
}

func characters(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Open("char_tokenizer")
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func subject(t testing.TB, names ...string) Subject {
	s := Subject{Model: small(t, "bamba"), Tokenizer: characters(t), Strategies: strategies(t,
		names...), Prompts: []Prompt{
		{Prompt: strings.Repeat("the sea and the lamp ", 3), Answer: "a light", TokenLen: 63,
			NumChunks: 1},
		{Prompt: "short", Answer: "answers", TokenLen: 5, NumChunks: 1},
	}}
	for i := range s.Strategies {
		s.Strategies[i].ChunkSize = 16
	}
	return s
}

func TestRunChunks_TimesEveryPromptAndStrategy(t *testing.T) {
	for _, cached := range []bool{false, true} {
		o := ChunksOptions{Subject: subject(t, "default", "default-optimized", "windowed:1"),
			MaxNewTokens: 3, Repeats: 2}
		o.UseCache = cached
		live := torch.LiveTensors()
		var rows []ChunksRow
		err := RunChunks(context.Background(), o, func(row ChunksRow, total int) {
			if rows = append(rows, row); total != 6 {
				t.Errorf("%d rows to come", total)
			}
		})
		if err != nil || len(rows) != 6 {
			t.Fatalf("%d rows, %v", len(rows), err)
		}
		if now := torch.LiveTensors(); now > live+2 { // the model's rotary table
			t.Errorf("%d tensors were left behind", now-live)
		}
		for i, r := range rows {
			want := []string{"default eager", "default kernels", "windowed:1 eager"}[i%3]
			tokens := len(o.Tokenizer.Encode(o.Prompts[i/3].Prompt, true))
			if r.Strategy+" "+r.Compile != want || r.ID != i/3 || r.PromptTokens != tokens ||
				r.NumChunks != (tokens+15)/16 || r.Layers != 4 || r.UseCache != cached {
				t.Errorf("row %d: %+v", i, r)
			}
			if r.Failed != "" || !(0 < r.FirstTokenMS && r.FirstTokenMS < r.TotalMS &&
				0 < r.BetweenTokensMS) || r.PeakBytes <= 0 || r.CPUUtilization <= 0 {
				t.Errorf("row %d: %+v", i, r)
			}
			scan := slices.ContainsFunc(r.TopOperations,
				func(op Operation) bool { return op.Name == "conquer::ssd_scan" })
			if len(r.TopOperations) != 8 || r.Compile == Eager && scan {
				t.Errorf("row %d: its costliest operations are %v", i, r.TopOperations)
			}
		}
		// Without a cache the text is read anew for each token: about three times the work.
		more := []float64{2.5, 1}[map[bool]int{false: 0, true: 1}[cached]]
		_, once := passCost(o.Model, 63, 0)
		if f := float64(rows[0].Flops) / float64(once); f < more || f > more+1 {
			t.Errorf("cached %v: %d operations, %d for one pass", cached, rows[0].Flops, once)
		}
	}
}

// Most operations are those of the weights, which this test counts.
func TestPassCost_IsMostlyTwoOperationsAWeight(t *testing.T) {
	for _, architecture := range []string{"bamba", "mamba2"} {
		config, err := model.Variant(architecture, map[string]string{"bamba": "9b",
			"mamba2": "130m"}[architecture])
		if err != nil {
			t.Fatal(err)
		}
		config["num_hidden_layers"] = 10.0
		if architecture == "bamba" {
			config["attn_layer_indices"] = []any{9.0}
		}
		m, err := model.New(config)
		if err != nil {
			t.Fatal(err)
		}
		head := float64(m.Head().Shape[0] * m.Head().Shape[1])
		embeddings := head
		if model.Parameters(m) > 0 && architecture == "bamba" {
			embeddings *= 2 // its head is not tied
		}
		weights := float64(model.Parameters(m)) - embeddings
		err = torch.Run(func() error { // a dtype is all that the count wants of the weights
			m.Head().Tensor = torch.Zeros([]int{1}, torch.BFloat16, torch.CPU).Own()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		const length = 512
		bytes, flops := passCost(m.(statespace.Chunked), length, 0)
		m.Head().Tensor.Free()
		m.Head().Tensor = torch.Tensor{}
		if ratio := (float64(flops) - 2*head) / (2 * weights * length); ratio < 1 || ratio > 1.25 {
			t.Errorf("%s: %.3f times two operations a weight and token", architecture, ratio)
		}
		if ratio := float64(bytes) / (2 * (weights + head)); ratio < 1 || ratio > 4 {
			t.Errorf("%s: %.3f times the bytes of the weights", architecture, ratio)
		}
	}
}

func TestRunChunks_RowSaysThatTheCPUHasNoGraph(t *testing.T) {
	o := ChunksOptions{Subject: subject(t, "default", "default-optimized", "independent"),
		Compile: []string{Eager, Kernels, Graph, Both}, MaxNewTokens: 1, Repeats: 1}
	o.Prompts = o.Prompts[1:]
	var got []string
	err := RunChunks(context.Background(), o, func(row ChunksRow, total int) {
		if graph := row.Compile == Graph ||
			row.Compile == Both; graph != strings.Contains(row.Failed, "graph") ||
			graph != (row.TotalMS == 0) || row.BetweenTokensMS != 0 {
			t.Errorf("%+v", row)
		}
		got = append(got, row.Strategy+" "+row.Compile)
	})
	// default and default-optimized are one strategy here, in the same four ways.
	if want := "default eager,default kernels,default graph,default both,independent " +
		"eager,independent kernels,independent graph,independent both"; err != nil ||
		strings.Join(got, ",") != want {
		t.Errorf("%v %v", got, err)
	}
}

func TestRunChunks_RefusesLongPromptsFirst(t *testing.T) {
	s := subject(t, "default-optimized")
	s.Prompts = append(s.Prompts, Prompt{Prompt: strings.Repeat("x", s.Model.MaxLength()),
		Answer: "y", TokenLen: 1, NumChunks: 1})
	err := RunChunks(context.Background(), ChunksOptions{Subject: s, MaxNewTokens: 1, Repeats: 1},
		func(ChunksRow, int) { t.Error("a row was measured") })
	if err == nil || !strings.Contains(err.Error(), "prompt 2") {
		t.Error(err)
	}
	if err = RunAccuracy(context.Background(), s,
		func(AccuracyRow, int) { t.Error("a prompt was answered") }); err == nil ||
		!strings.Contains(err.Error(), "prompt 2") {
		t.Error(err)
	}
}

func TestRunChunks_DrawsPromptsWithoutATokenizer(t *testing.T) {
	o := ChunksOptions{Subject: subject(t, "independent-optimized"), MaxNewTokens: 1, Repeats: 1}
	o.Tokenizer = nil
	o.Prompts = []Prompt{{Prompt: "x", Answer: "y", TokenLen: 77, NumChunks: 1}}
	err := RunChunks(context.Background(), o, func(row ChunksRow, total int) {
		if row.PromptTokens != 77 || row.Failed != "" {
			t.Errorf("%+v", row)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func TestRunAccuracy_MatchesTheModelUnderEachStrategy(t *testing.T) {
	s := subject(t, "default-optimized", "independent", "windowed:1-optimized")
	s.UseCache = true
	rows := map[string]AccuracyRow{}
	if err := RunAccuracy(context.Background(), s,
		func(row AccuracyRow, total int) {
			rows[row.Strategy+string(rune('0'+row.ID))] = row
		}); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 6 {
		t.Fatalf("%d rows", len(rows))
	}
	for id, p := range s.Prompts {
		prompt, answer := s.Tokenizer.Encode(p.Prompt, true), s.Tokenizer.Encode(p.Answer, false)
		row := rows["default-optimized"+string(rune('0'+id))]
		scores, err := generate.Score(context.Background(), s.Model, append(slices.Clone(prompt),
			answer...))
		if err != nil {
			t.Fatal(err)
		}
		want := 0.0
		for _, nll := range scores.TokenNLL[len(prompt)-1:] {
			want += nll / float64(len(answer))
		}
		if math.Abs(row.NLL-want) > 1e-4*want ||
			math.Abs(row.Perplexity-math.Exp(row.NLL)) > 1e-9*row.Perplexity ||
			row.ReferenceTokens != len(answer) || row.PromptTokens != len(prompt) {
			t.Errorf("%+v, and the reference's mean is %g", row, want)
		}
		if n := len(s.Tokenizer.Encode(row.Prediction, false)); n > len(answer) {
			t.Errorf("the prediction has %d tokens, its reference %d", n, len(answer))
		}
	}
	// Strategies differ only beyond the first chunk.
	if a, b := rows["default-optimized1"], rows["independent1"]; math.Abs(a.NLL-b.NLL) > 1e-4 {
		t.Errorf("within a chunk: %g and %g", a.NLL, b.NLL)
	}
	if a, b := rows["default-optimized0"], rows["independent0"]; math.Abs(a.NLL-b.NLL) < 1e-4 {
		t.Errorf("over chunks: %g and %g", a.NLL, b.NLL)
	}
	s.Tokenizer = nil
	if err := RunAccuracy(context.Background(), s, nil); err == nil ||
		!strings.Contains(err.Error(), "--tokenizer") {
		t.Error(err)
	}
}

func TestReadPrompts_ErrorsNameEntryAndField(t *testing.T) {
	good := `{"prompt": "p", "answer": "a", "token_len": 3, "num_chunks": 1}`
	for text, words := range map[string]string{
		"":    "JSON list",
		"{}":  "JSON list",
		"[]":  "empty",
		"[1]": "JSON list",
		"[" + good + `, {"prompt":
			"p", "token_len": 3, "num_chunks": 1}]`: `entry 1 has no "answer"`,
		"[" + good + `, {"answer":
			"a", "token_len": 3, "num_chunks": 1}]`: `entry 1 has no "prompt"`,
		`[{"prompt":
			"p", "answer": "a", "num_chunks": 1}]`: `entry 0 has no "token_len"`,
		`[{"prompt":
			"p", "answer": "a", "token_len": 3}]`: `entry 0 has no "num_chunks"`,
		`[{"prompt": 3, "answer":
			"a", "token_len": 3, "num_chunks": 1}]`: `entry 0: "prompt" is not`,
		`[{"prompt":
			"p", "answer": "a", "token_len": "3", "num_chunks": 1}]`: `entry 0: "token_len" is not`,
		`{"prompt": "p"}`: "expected a JSON list of objects with prompt, answer, token_len and " +
			"num_chunks, found object (at byte 1)",
		`["p"]`: "found string (at byte 4)",
		`[{"prompt":
			"p", "answer": null, "token_len": 3, "num_chunks": 1}]`: `entry 0: "answer" is not`,
		`[{"prompt":
			"p", "answer": "", "token_len": 3, "num_chunks": 1}]`: "entry 0 has an empty",
		`[{"prompt": "p", "answer": "a", "token_len": 0, "num_chunks": 1}]`: "1 or more",
	} {
		if list, err := parsePrompts([]byte(text)); err == nil ||
			!strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, %v, want %q", text, list, err, words)
		}
	}
	if list, err := parsePrompts([]byte("[" + good + "]")); err != nil ||
		list[0] != (Prompt{"p", "a", 3, 1}) {
		t.Errorf("%v %v", list, err)
	}
}

func TestReadPrompts_ExampleFileIsConsistent(t *testing.T) {
	list, err := ReadPrompts("../examples/prompts/prompts.json")
	if err != nil {
		t.Fatal(err)
	}
	longest := 0
	for i, p := range list {
		longest = max(longest, p.TokenLen)
		brought, from, _ := strings.Cut(strings.TrimSuffix(p.Answer, "."), " from ")
		_, brought, _ = strings.Cut(brought, " brought ")
		if p.NumChunks != (p.TokenLen+255)/256 ||
			!strings.Contains(p.Prompt, "came in from "+from+" with "+brought) {
			t.Errorf("entry %d: %q does not answer its prompt", i, p.Answer)
		}
	}
	if len(list) != 16 || longest < 1900 || longest > 2048 {
		t.Errorf("%d prompts of at most %d tokens", len(list), longest)
	}
}

func FuzzReadPrompts(f *testing.F) {
	f.Add([]byte(`[{"prompt": "\u00e4\n", "answer": "b", "token_len": 1e3, "num_chunks": 4,` +
		` "more": [1]}]`))
	f.Add([]byte(`[{"prompt": "p", "answer": "a", "token_len": 3, "num_chunks": 1}, {}]`))
	f.Add([]byte(`[{"prompt": null}, null]`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parsePrompts(data)
		if (err == nil) != (len(list) > 0) {
			t.Fatalf("%d prompts and %v", len(list), err)
		}
		for _, p := range list {
			if p.Prompt == "" || p.Answer == "" || p.TokenLen < 1 || p.NumChunks < 1 {
				t.Fatalf("%+v was accepted", p)
			}
		}
	})
}
