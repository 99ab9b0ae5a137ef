package generate_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"conquer/generate"
	"conquer/llama"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/nn"
)

// tiny returns a random model with the vocabulary of text/tokenizer/testdata/smollm.
// more overrides fields of its config.
func tiny(t testing.TB, more model.Config) model.Model {
	t.Helper()
	config := model.Config{
		"model_type": "llama", "vocab_size": 700.0, "hidden_size": 48.0, "intermediate_size": 96.0,
		"num_hidden_layers":   2.0,
		"num_attention_heads": 6.0, "num_key_value_heads": 2.0, "max_position_embeddings": 96.0,
		"initializer_range": 0.4,
	}
	for k, v := range more {
		config[k] = v
	}
	m, err := llama.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return initialized(t, m)
}

// initialized gives m random weights and frees them after the test.
func initialized(t testing.TB, m model.Model) model.Model {
	t.Helper()
	if err := torch.Run(func() error {
		torch.ManualSeed(1)
		model.Initialize(m, torch.Float32, torch.CPU)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Free(m) })
	return m
}

func smollm(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Open("../text/tokenizer/testdata/smollm")
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func mustGenerate(t testing.TB, m model.Model, tok *tokenizer.Tokenizer, prompts [][]int32,
	o generate.Options,
) []generate.Result {
	t.Helper()
	results, _, err := generate.Generate(context.Background(), m, tok, prompts, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

var prompts = [][]int32{{5, 6, 7, 8, 9, 10, 11}, {300}, {20, 400, 3, 77}, {5, 6, 7}}

func TestGenerate_CacheDoesNotChangeTheResult(t *testing.T) {
	for name, config := range map[string]model.Config{
		"llama":   nil,
		"tied":    {"tie_word_embeddings": true},
		"mistral": {"model_type": "mistral", "sliding_window": 5.0},
		"qwen2":   {"model_type": "qwen2"},
	} {
		t.Run(name, func(t *testing.T) {
			m := tiny(t, config)
			o := generate.Options{MaxNewTokens: 24, IgnoreEOS: true}
			cached := mustGenerate(t, m, nil, prompts, o)
			o.NoCache = true
			for i, r := range mustGenerate(t, m, nil, prompts, o) {
				if !slices.Equal(r.Tokens, cached[i].Tokens) {
					t.Errorf("prompt %d: without a cache %v, with one %v", i, r.Tokens,
						cached[i].Tokens)
				}
			}
		})
	}
}

func TestGenerate_BatchGivesTheSameAsSinglePrompts(t *testing.T) {
	for name, config := range map[string]model.Config{"full": nil,
		"window": {"model_type": "mistral", "sliding_window": 4.0}} {
		m := tiny(t, config)
		for _, o := range []generate.Options{
			{MaxNewTokens: 24, IgnoreEOS: true},
			{MaxNewTokens: 24, IgnoreEOS: true, Temperature: 0.8, TopK: 40, Seed: 3},
			{MaxNewTokens: 24, IgnoreEOS: true, RepetitionPenalty: 1.3},
		} {
			batch := mustGenerate(t, m, nil, prompts, o)
			for i, p := range prompts {
				alone := mustGenerate(t, m, nil, [][]int32{p}, o)[0]
				if !slices.Equal(alone.Tokens, batch[i].Tokens) {
					t.Errorf("%s, prompt %d, %+v: alone %v, in a batch %v", name, i, o,
						alone.Tokens, batch[i].Tokens)
				}
			}
		}
	}
}

func TestGenerate_SeedDecidesTheText(t *testing.T) {
	m := tiny(t, nil)
	sample := func(seed uint64) []int32 {
		return mustGenerate(t, m, nil, prompts[:1], generate.Options{MaxNewTokens: 24,
			IgnoreEOS: true, Temperature: 1, Seed: seed})[0].Tokens
	}
	first := sample(7)
	torch.Run(func() error { torch.ManualSeed(99); return nil })
	if again := sample(7); !slices.Equal(first, again) {
		t.Errorf("seed 7 gave %v, then %v", first, again)
	}
	if slices.Equal(first, sample(8)) {
		t.Error("seeds 7 and 8 gave the same text")
	}
}

// However the prompts are divided into calls, with or without a cache, recorded or not, each prompt
// gets the same text, and equal prompts get different ones.
func TestGenerate_SamplesDoNotDependOnTheBatch(t *testing.T) {
	m := tiny(t, nil)
	all := slices.Concat(prompts, prompts[:1], prompts[2:], prompts[:1])
	o := generate.Options{MaxNewTokens: 24, IgnoreEOS: true, Temperature: 1, Seed: 5}
	want := mustGenerate(t, m, nil, all, o)
	for _, pair := range [][2]int{{0, 4}, {0, 7}, {4, 7}, {2, 5}, {3, 6}} {
		if slices.Equal(want[pair[0]].Tokens, want[pair[1]].Tokens) {
			t.Errorf("the equal prompts %v gave the same text", pair)
		}
	}
	samples := generate.Repeats(all)
	if fmt.Sprint(samples) != "[0 0 0 0 1 1 1 2]" {
		t.Fatalf("repeats %v", samples)
	}
	for _, size := range []int{1, 2, 3, 8} {
		for start := 0; start < len(all); start += size {
			end := min(start+size, len(all))
			for _, more := range []generate.Options{{}, {NoCache: true},
				{Compile: generate.CompileGraph}} {
				o := o
				o.NoCache, o.Compile = more.NoCache, more.Compile
				o.Samples = samples[start:end]
				for i, r := range mustGenerate(t, m, nil, all[start:end], o) {
					if !slices.Equal(r.Tokens, want[start+i].Tokens) {
						t.Errorf("prompt %d in a call of %d, %+v: %v, in one call %v", start+i,
							size, more, r.Tokens, want[start+i].Tokens)
					}
				}
			}
		}
	}
}

// The random numbers of one prompt say nothing about those of another. The mean product of two
// independent uniform numbers minus 1/2 is 0 with a deviation of 1/12/sqrt(n).
func TestGenerate_DifferentPromptsDrawIndependently(t *testing.T) {
	const n = 4000
	m := tiny(t, model.Config{"vocab_size": 64.0})
	if err := torch.Run(func() error { m.Head().Tensor.Zero(); return nil }); err != nil {
		t.Fatal(err)
	}
	o := generate.Options{MaxNewTokens: 40, IgnoreEOS: true, Temperature: 1, Seed: 3}
	sum, count := 0.0, 0
	for first := int32(0); count < n; first++ { // logits of zero: each token shows its number
		r := mustGenerate(t, m, nil, [][]int32{{first % 64, 1}, {first % 64, 2}}, o)
		for i := range r[0].Tokens {
			sum += (float64(r[0].Tokens[i])/63 - 0.5) * (float64(r[1].Tokens[i])/63 - 0.5)
			count++
		}
		o.Seed += uint64(first / 63)
	}
	if mean := sum / float64(count); math.Abs(mean) > 5/12./math.Sqrt(float64(count)) {
		t.Errorf("the mean product of %d pairs is %v", count, mean)
	}
}

func TestGenerate_LowestTemperatureIsGreedy(t *testing.T) {
	m := tiny(t, nil)
	for _, penalty := range []float64{1, 1.3} {
		o := generate.Options{MaxNewTokens: 12, IgnoreEOS: true, RepetitionPenalty: penalty}
		want := mustGenerate(t, m, nil, prompts, o)
		for _, temperature := range []float64{5e-324, 1e-45, 1e-39, 1e-31, 1e-20, 1e-6} {
			for _, compile := range []generate.Compile{"", generate.CompileGraph} {
				o.Temperature, o.Compile = temperature, compile
				for i, r := range mustGenerate(t, m, nil, prompts, o) {
					if !slices.Equal(r.Tokens, want[i].Tokens) {
						t.Errorf("temperature %v, %+v: %v, greedy %v", temperature, o, r.Tokens,
							want[i].Tokens)
					}
				}
			}
		}
	}
	for _, temperature := range []float64{1e39, math.MaxFloat64} {
		mustGenerate(t, m, nil, prompts, generate.Options{MaxNewTokens: 4,
			Temperature: temperature})
	}
}

func TestGenerate_StreamedPiecesAreWholeCharacters(t *testing.T) {
	m, tok := tiny(t, nil), smollm(t)
	prompt := tok.Encode("Grüße, 世界 🙂", false)
	for seed := range uint64(20) {
		var pieces []string
		o := generate.Options{MaxNewTokens: 40, Temperature: 2, Seed: seed, IgnoreEOS: true}
		results, _, err := generate.Generate(context.Background(), m, tok, [][]int32{prompt}, o,
			func(_ int, piece string) { pieces = append(pieces, piece) })
		if err != nil {
			t.Fatal(err)
		}
		for _, piece := range pieces {
			if !utf8.ValidString(piece) {
				t.Errorf("seed %d: the piece %q is not whole", seed, piece)
			}
		}
		want := tok.Decode(results[0].Tokens, true)
		if got := strings.Join(pieces, ""); got != want || results[0].Text != want {
			t.Errorf("seed %d: streamed %q, result %q, decoded %q", seed, got, results[0].Text,
				want)
		}
	}
}

func TestGenerate_TextEndsBeforeAStopString(t *testing.T) {
	m, tok := tiny(t, nil), smollm(t)
	prompt := tok.Encode("hello", false)
	o := generate.Options{MaxNewTokens: 40, IgnoreEOS: true}
	whole := mustGenerate(t, m, tok, [][]int32{prompt}, o)[0]
	runes := []rune(whole.Text)
	if len(runes) < 20 {
		t.Fatalf("the text %q is too short for this test", whole.Text)
	}
	for from := range len(runes) - 4 {
		stop := string(runes[from : from+4])
		o.Stop = []string{"never there", stop}
		shown := ""
		results, _, err := generate.Generate(context.Background(), m, tok, [][]int32{prompt}, o,
			func(_ int, piece string) { shown += piece })
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := strings.Cut(whole.Text, stop)
		if r := results[0]; r.Text != want || shown != want || r.Finish != generate.FinishStop {
			t.Errorf("stop %q: text %q, shown %q, finish %q; want %q", stop, r.Text, shown,
				r.Finish, want)
		}
		if n := len(results[0].Tokens); n > len(whole.Tokens) ||
			!slices.Equal(results[0].Tokens, whole.Tokens[:n]) {
			t.Errorf("stop %q changed the tokens", stop)
		}
	}
}

func TestGenerate_EOSEndsTheRowUnlessIgnored(t *testing.T) {
	m := tiny(t, nil)
	o := generate.Options{MaxNewTokens: 12, EOS: []int32{}}
	long := mustGenerate(t, m, nil, prompts[:1], o)[0]
	if long.Finish != generate.FinishLength || len(long.Tokens) != 12 {
		t.Fatalf("without end tokens: %+v", long)
	}
	o.EOS = long.Tokens[4:5]
	first := slices.Index(long.Tokens, long.Tokens[4])
	short := mustGenerate(t, m, nil, prompts[:1], o)[0]
	if short.Finish != generate.FinishEOS || !slices.Equal(short.Tokens, long.Tokens[:first+1]) {
		t.Errorf("got %+v, want the first %d of %v", short, first+1, long.Tokens)
	}
	o.IgnoreEOS = true
	if again := mustGenerate(t, m, nil, prompts[:1], o)[0]; !slices.Equal(again.Tokens,
		long.Tokens) {
		t.Errorf("ignoring the end: %v, want %v", again.Tokens, long.Tokens)
	}
}

func TestGenerate_CancelReturnsThePartialText(t *testing.T) {
	m, tok := tiny(t, nil), smollm(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	pieces := 0
	results, _, err := generate.Generate(ctx, m, tok, prompts[:1],
		generate.Options{MaxNewTokens: 80, IgnoreEOS: true}, func(int, string) {
			if pieces++; pieces == 3 {
				cancel()
			}
		})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	if r := results[0]; len(r.Tokens) < 3 || len(r.Tokens) == 80 ||
		r.Finish != generate.FinishInterrupted || r.Text != tok.Decode(r.Tokens, true) {
		t.Errorf("got %+v", r)
	}
}

func TestGenerate_EndsWithTheModelsContext(t *testing.T) {
	m := tiny(t, model.Config{"max_position_embeddings": 16.0})
	o := generate.Options{MaxNewTokens: 50, IgnoreEOS: true}
	for i, r := range mustGenerate(t, m, nil, prompts, o) {
		if want := 16 - len(prompts[i]); len(r.Tokens) != want ||
			r.Finish != generate.FinishContext {
			t.Errorf("prompt %d of %d: %d tokens, finish %s; want %d", i, len(prompts[i]),
				len(r.Tokens), r.Finish, want)
		}
	}
	_, _, err := generate.Generate(context.Background(), m, nil, [][]int32{make([]int32, 16)}, o,
		nil)
	if err == nil || !strings.Contains(err.Error(), "16") {
		t.Errorf("a prompt that fills the context: error %v", err)
	}
}

func TestGenerate_RefusesWrongInput(t *testing.T) {
	m := tiny(t, nil)
	for want, c := range map[string]struct {
		prompt []int32
		o      generate.Options
	}{
		"vocabulary":     {[]int32{1, 700}, generate.Options{MaxNewTokens: 1}},
		"no tokens":      {nil, generate.Options{MaxNewTokens: 1}},
		"max_new_tokens": {[]int32{1}, generate.Options{}},
		"temperature":    {[]int32{1}, generate.Options{MaxNewTokens: 1, Temperature: math.NaN()}},
		"top_p":          {[]int32{1}, generate.Options{MaxNewTokens: 1, TopP: 2}},
		"samples":        {[]int32{1}, generate.Options{MaxNewTokens: 1, Samples: []int{0, 1}}},
		"stop strings":   {[]int32{1}, generate.Options{MaxNewTokens: 1, Stop: []string{"x"}}},
	} {
		_, _, err := generate.Generate(context.Background(), m, nil, [][]int32{c.prompt}, c.o, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v", want, err)
		}
	}
}

func TestGenerate_NaNWeightsAreAnError(t *testing.T) {
	m := tiny(t, nil)
	torch.Run(func() error { m.Head().Copy(m.Head().MulScalar(math.NaN())); return nil })
	for _, o := range []generate.Options{{MaxNewTokens: 2}, {MaxNewTokens: 2, Temperature: 1},
		{MaxNewTokens: 2, RepetitionPenalty: 2}} {
		_, _, err := generate.Generate(context.Background(), m, nil, prompts[:1], o, nil)
		if err == nil || !strings.Contains(err.Error(), "not a number") {
			t.Errorf("%+v: error %v", o, err)
		}
	}
}

// The weights of one token are damaged: the prompt that has it fails, and the others continue as
// without it.
func TestGenerate_FailsOnlyTheRowWithNaN(t *testing.T) {
	const damaged = 699
	batch := [][]int32{prompts[0], {20, damaged, 3}, prompts[3]}
	for _, o := range []generate.Options{{MaxNewTokens: 4}, {MaxNewTokens: 4, Temperature: 1},
		{MaxNewTokens: 4, RepetitionPenalty: 2}, {MaxNewTokens: 4, NoCache: true}} {
		m := tiny(t, nil)
		o.IgnoreEOS, o.Samples = true, []int{0, 0, 0}
		want := mustGenerate(t, m, nil, batch, o)
		nn.Walk(m, func(c nn.Component) {
			if c.Name == "model.embed_tokens.weight" {
				torch.NoGrad(func() {
					torch.Scoped(func() {
						row := c.Param.Detach().Narrow(0, damaged, 1)
						row.Copy(row.MulScalar(math.NaN()))
					})
				})
			}
		})
		got := mustGenerate(t, m, nil, batch, o)
		for i, r := range got {
			if i == 1 {
				if r.Err == nil || r.Finish != generate.FinishError || len(r.Tokens) > 0 {
					t.Errorf("%+v: the row with NaN is %+v", o, r)
				}
			} else if r.Err != nil || !slices.Equal(r.Tokens, want[i].Tokens) {
				t.Errorf("%+v: row %d is %+v, want %+v", o, i, r, want[i])
			}
		}
	}
}

func TestGenerate_FreesAllTensors(t *testing.T) {
	m, tok := tiny(t, nil), smollm(t)
	o := generate.Options{MaxNewTokens: 6, IgnoreEOS: true, Temperature: 1, RepetitionPenalty: 1.1}
	mustGenerate(t, m, tok, prompts, o) // creates the rotary tables
	live := torch.LiveTensors()
	mustGenerate(t, m, tok, prompts, o)
	o.NoCache = true
	mustGenerate(t, m, tok, prompts, o)
	if _, err := generate.Score(context.Background(), m, prompts[0]); err != nil {
		t.Fatal(err)
	}
	s := generate.NewSession(m, tok)
	o.NoCache = false
	if _, _, err := s.Generate(context.Background(), prompts[0], o, nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if now := torch.LiveTensors(); now != live {
		t.Errorf("live tensors went from %d to %d", live, now)
	}
}

// nllOf is the float64 negative log-likelihood of each token of ids but the first.
func nllOf(t testing.TB, m model.Model, ids []int32) (list []float64) {
	t.Helper()
	if err := torch.Run(func() error {
		torch.NoGrad(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			logits := m.Head().Logits(model.Hidden(m, model.Sequence{IDs: input}).Squeeze(0))
			v := logits.Shape()[1]
			values := torch.Values[float64](logits)
			for i, id := range ids[1:] {
				row, sum := values[i*v:(i+1)*v], 0.0
				for _, x := range row {
					sum += math.Exp(x - row[id])
				}
				list = append(list, math.Log(sum))
			}
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// Each token is predicted once, by the first window that holds it, after at least window-stride
// tokens.
func TestScoreWindows_EachTokenIsPredictedOnce(t *testing.T) {
	ids := make([]int32, 203)
	for i := range ids {
		ids[i] = int32(i*i*7+i*3) % 700
	}
	for name, m := range map[string]model.Model{"llama": tiny(t, nil), "hybrid": hybrid(t)} {
		most := m.MaxLength()
		for _, w := range []generate.Windows{{}, {Size: 32, Stride: 1}, {Size: 32, Stride: 16},
			{Size: 40}, {Stride: 50}, {Size: 2, Stride: 1}, {Size: 64, Stride: 63}} {
			got, err := generate.ScoreWindows(context.Background(), m, ids, w)
			if err != nil {
				t.Fatal(err)
			}
			size, stride := w.Size, w.Stride
			if size == 0 {
				size = most
			}
			if stride == 0 {
				stride = size - 1
			}
			var want []float64
			for begin, previous := 0, 1; previous < len(ids); begin += stride {
				end := min(begin+size, len(ids))
				want = append(want, nllOf(t, m, ids[begin:end])[previous-begin-1:]...)
				previous = end
			}
			if len(got.TokenNLL) != len(ids)-1 || len(want) != len(ids)-1 {
				t.Fatalf("%s %+v: %d tokens, %d in the test", name, w, len(got.TokenNLL), len(want))
			}
			for i := range want {
				if math.Abs(got.TokenNLL[i]-want[i]) > 1e-4*math.Max(1, want[i]) {
					t.Fatalf("%s %+v: token %d: %v, want %v", name, w, i+1, got.TokenNLL[i],
						want[i])
				}
			}
		}
	}
	m := tiny(t, nil)
	for want, w := range map[string]generate.Windows{"window is 97": {Size: 97},
		"window is 1":  {Size: 1},
		"stride is 32": {Size: 32, Stride: 32}, "stride is -1": {Stride: -1}} {
		if _, err := generate.ScoreWindows(context.Background(), m, ids, w); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", w, err)
		}
	}
}

// A turn reads less than a piece of what the last one read, and the last answer. Its tokens and its
// log-probabilities are those of a session that reads everything, to the last bit, also after a
// change of an earlier turn.
func TestSession_KeepsWhatItRead(t *testing.T) {
	const piece = 128
	long := model.Config{"max_position_embeddings": 4096.0}
	for name, m := range map[string]model.Model{"llama": tiny(t, long), "hybrid": hybrid(t)} {
		s := generate.NewSession(m, nil)
		defer s.Close()
		o := generate.Options{MaxNewTokens: 10, IgnoreEOS: true, Logprobs: true, Samples: []int{0}}
		ask := func(s *generate.Session, text []int32) (generate.Result, int) {
			t.Helper()
			r, stats, err := s.Generate(context.Background(), text, o, nil)
			if err != nil {
				t.Fatal(err)
			}
			return r, stats.PromptTokens - stats.Reused
		}
		var last, text []int32
		for turn := range 7 {
			text = append(slices.Clone(text), last...)
			switch turn {
			case 4: // the last question changes
				text = append(slices.Clone(text[:len(text)-150]), 9, 8, 7)
			case 5: // nothing changes
				text = text[:len(text)-10]
			case 6: // all does
				text = append([]int32{5, 4}, text...)
			default:
				for i := range 170 { // in the end more than the cache's first capacity
					text = append(text, int32(i*7+turn)%512)
				}
			}
			before := text
			r, read := ask(s, text)
			fresh := generate.NewSession(m, nil)
			want, all := ask(fresh, text)
			fresh.Close()
			if fmt.Sprint(r) != fmt.Sprint(want) {
				t.Errorf("%s, turn %d: %v, expected %v", name, turn, r, want)
			}
			most := map[int]int{0: 170, 4: 200, 5: piece, 6: len(text)}[turn]
			if most == 0 {
				most = 170 + 10 + piece
			}
			if all != len(text) || read > most {
				t.Errorf("%s, turn %d of %d tokens: %d read, at most %d expected", name, turn,
					len(text), read, most)
			}
			last, text = r.Tokens, before
		}
	}
}

func TestScore_IsTheLogProbabilityOfTheTokens(t *testing.T) {
	m := tiny(t, model.Config{"max_position_embeddings": 5000.0})
	ids := make([]int32, 4500) // more than one chunk
	for i := range ids {
		ids[i] = int32(i*i+3*i) % 700
	}
	got, err := generate.Score(context.Background(), m, ids)
	if err != nil {
		t.Fatal(err)
	}
	if len(got.TokenNLL) != len(ids)-1 {
		t.Fatalf("%d values for %d tokens", len(got.TokenNLL), len(ids))
	}
	sum := 0.0
	err = torch.Run(func() error {
		torch.NoGrad(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			likely := model.Logits(m, model.Sequence{IDs: input}).LogSoftmax(-1).Squeeze(0)
			for i, nll := range got.TokenNLL {
				torch.Scoped(func() {
					if i%97 == 0 || i > 4400 {
						want := -torch.Item[float64](likely.Select(0, i).Select(0, int(ids[i+1])))
						if math.Abs(nll-want) > 1e-4*math.Max(1, want) {
							t.Errorf("token %d: %v, want %v", i+1, nll, want)
						}
					}
				})
				sum += nll
			}
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if mean := sum / float64(len(ids)-1); math.Abs(got.NLL-mean) > 1e-9 ||
		math.Abs(got.Perplexity-math.Exp(mean)) > 1e-6*got.Perplexity {
		t.Errorf("mean %v, perplexity %v; want %v and its exponential", got.NLL, got.Perplexity,
			mean)
	}
}

func TestScore_LongTextIsReadInWindows(t *testing.T) {
	m := tiny(t, model.Config{"max_position_embeddings": 32.0})
	ids := make([]int32, 80)
	for i := range ids {
		ids[i] = int32(i * 13 % 700)
	}
	got, err := generate.Score(context.Background(), m, ids)
	if err != nil {
		t.Fatal(err)
	}
	second, err := generate.Score(context.Background(), m, ids[31:63])
	if err != nil {
		t.Fatal(err)
	}
	if len(got.TokenNLL) != 79 || !slices.Equal(got.TokenNLL[31:62], second.TokenNLL) {
		t.Errorf("%d values; the second window gives %v by itself and %v here", len(got.TokenNLL),
			second.TokenNLL, got.TokenNLL[31:62])
	}
	if _, err := generate.Score(context.Background(), m, ids[:1]); err == nil {
		t.Error("one token was scored")
	}
}

// BenchmarkSampler measures the time outside the model, with the vocabulary of Llama 3.
func BenchmarkSampler(b *testing.B) {
	for _, o := range []generate.Options{
		{Temperature: 0}, {Temperature: 1}, {Temperature: 1, TopK: 50},
		{Temperature: 0.7, TopP: 0.9}, {Temperature: 1, MinP: 0.05},
		{Temperature: 0, RepetitionPenalty: 1.1},
	} {
		b.Run(fmt.Sprintf("T=%v,k=%d,p=%v,min=%v,rep=%v", o.Temperature, o.TopK, o.TopP, o.MinP,
			o.RepetitionPenalty), func(b *testing.B) {
			m := tiny(b, model.Config{"vocab_size": 128256.0, "hidden_size": 8.0,
				"intermediate_size": 8.0, "num_hidden_layers": 1.0,
				"num_attention_heads": 1.0, "num_key_value_heads": 1.0,
				"max_position_embeddings": 1e9, "initializer_range": 0.7})
			o.MaxNewTokens, o.IgnoreEOS = b.N+1, true
			b.ReportAllocs()
			_, _, err := generate.Generate(context.Background(), m, nil, [][]int32{{1}}, o, nil)
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
