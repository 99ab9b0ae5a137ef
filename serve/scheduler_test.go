package serve

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"conquer/bamba"
	_ "conquer/families"
	"conquer/generate"
	"conquer/llama"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// models are small random models with the vocabulary of text/tokenizer/testdata/smollm.
var models = map[string]func(model.Config) (model.Model, error){
	"llama": func(more model.Config) (model.Model, error) {
		return llama.New(config(model.Config{"model_type": "llama"}, more))
	},
	"sliding window": func(more model.Config) (model.Model, error) {
		return llama.New(config(model.Config{"model_type": "mistral", "sliding_window": 24.0},
			more))
	},
	"mixture of experts": func(more model.Config) (model.Model, error) {
		return model.New(config(model.Config{"model_type": "mixtral", "num_local_experts": 5.0,
			"num_experts_per_tok": 4.0, "architectures": []any{"MixtralForCausalLM"}}, more))
	},
	"dynamic rotary": func(more model.Config) (model.Model, error) {
		return llama.New(config(model.Config{"model_type": "llama",
			"rope_scaling": map[string]any{"type": "dynamic", "factor": 4.0}},
			model.Config{"max_position_embeddings": 128.0}))
	},
	"bamba": func(more model.Config) (model.Model, error) {
		return bamba.New(config(model.Config{
			"model_type": "bamba", "mamba_d_head": 16.0, "mamba_n_heads": 6.0,
			"mamba_d_state": 16.0, "mamba_n_groups": 1.0, "mamba_expand": 2.0, "mamba_d_conv": 4.0,
			"mamba_chunk_size": 32.0, "attn_layer_indices": []any{1.0}, "num_hidden_layers": 3.0,
			"attn_rotary_emb": 8.0, "mamba_conv_bias": true, "mamba_proj_bias": false,
		}, more))
	},
}

func config(own, more model.Config) model.Config {
	c := model.Config{
		"vocab_size": 700.0, "hidden_size": 48.0, "intermediate_size": 100.0,
		"num_hidden_layers": 2.0, "num_attention_heads": 6.0, "num_key_value_heads": 2.0,
		"max_position_embeddings": 512.0, "initializer_range": 0.4, "rms_norm_eps": 1e-5,
	}
	for _, fields := range []model.Config{own, more} {
		for k, v := range fields {
			c[k] = v
		}
	}
	return c
}

func tiny(t testing.TB, name string, more model.Config) model.Model {
	t.Helper()
	m, err := models[name](more)
	if err != nil {
		t.Fatal(err)
	}
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

// start starts a scheduler and stops it after the test.
func start(t testing.TB, m model.Model, l Limits, queue int) *scheduler {
	t.Helper()
	l, err := Fit(m, 0, l)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newScheduler(m, l, queue, newMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.shutdown(context.Background()) })
	return s
}

// newTask makes a task of a prompt.
func newTask(t testing.TB, s *scheduler, ctx context.Context, prompt []int32,
	o generate.Options) *task {
	t.Helper()
	row, err := generate.NewRow(s.model, nil, prompt, o, 0, s.reader.cache.Capacity, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &task{ctx: ctx, prompt: prompt, row: row, answer: newAnswer()}
}

// randomPrompt draws a prompt of up to most tokens.
func randomPrompt(r *rand.Rand, most int) []int32 {
	prompt := make([]int32, 1+r.IntN(most))
	for i := range prompt {
		prompt[i] = int32(r.IntN(700))
	}
	return prompt
}

// Requests of all lengths come, go and break off. What each of them is answered has the same
// tokens, and the same bits in every log-probability, as when it is the only one.
func TestScheduler_CompanyDoesNotChangeAnAnswer(t *testing.T) {
	for name := range models {
		t.Run(name, func(t *testing.T) {
			m := tiny(t, name, nil)
			s := start(t, m, Limits{Sequences: 20, Length: 400, Piece: 32}, 1000)
			r := rand.New(rand.NewPCG(1, 2))
			const n = 24
			type request struct {
				prompt []int32
				o      generate.Options
			}
			requests := make([]request, n)
			want := make([]generate.Result, n)
			for i := range requests {
				o := generate.Options{MaxNewTokens: 1 + r.IntN(40), IgnoreEOS: true}
				if i%3 > 0 {
					o.Logprobs, o.TopLogprobs = true, 2
				}
				if i%5 == 0 {
					o.Temperature, o.Seed = 0.8, uint64(i)
				}
				requests[i] = request{randomPrompt(r, 300), o}
				alone := newTask(t, s, t.Context(), requests[i].prompt, o)
				if err := s.submit(alone); err != nil {
					t.Fatal(err)
				}
				if _, err := alone.answer.whole(t.Context()); err != nil {
					t.Fatal(err)
				}
				want[i] = alone.row.Result()
			}
			var all sync.WaitGroup
			for i, q := range requests {
				time.Sleep(time.Duration(r.IntN(3)) * time.Millisecond)
				if i%4 == 0 { // one that breaks off
					ctx, cancel := context.WithCancel(t.Context())
					broken := newTask(t, s, ctx, q.prompt, q.o)
					if err := s.submit(broken); err != nil {
						t.Fatal(err)
					}
					time.AfterFunc(time.Duration(r.IntN(50))*time.Millisecond, cancel)
				}
				together := newTask(t, s, t.Context(), q.prompt, q.o)
				if err := s.submit(together); err != nil {
					t.Fatal(err)
				}
				all.Go(func() {
					if _, err := together.answer.whole(t.Context()); err != nil {
						t.Error(err)
					}
					if got := together.row.Result(); fmt.Sprint(got) != fmt.Sprint(want[i]) {
						t.Errorf("request %d (%d tokens): %v in company, %v alone", i,
							len(q.prompt), got, want[i])
					}
				})
			}
			all.Wait()
		})
	}
}

// The scheduler gives the tokens that generate gives.
func TestScheduler_AnswersAsGenerate(t *testing.T) {
	for name := range models {
		m := tiny(t, name, nil)
		s := start(t, m, Limits{Sequences: 3, Length: 200, Piece: 32}, 10)
		r := rand.New(rand.NewPCG(3, 4))
		for range 6 {
			prompt := randomPrompt(r, 100)
			o := generate.Options{MaxNewTokens: 20, IgnoreEOS: true}
			want, _, err := generate.Generate(t.Context(), m, nil, [][]int32{prompt}, o, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := newTask(t, s, t.Context(), prompt, o)
			if err := s.submit(got); err != nil {
				t.Fatal(err)
			}
			if _, err := got.answer.whole(t.Context()); err != nil {
				t.Fatal(err)
			}
			if tokens := got.row.Result().Tokens; !slices.Equal(tokens, want[0].Tokens) {
				t.Errorf("%s, %d tokens: %v, expected %v", name, len(prompt), tokens,
					want[0].Tokens)
			}
		}
	}
}

func TestScheduler_RefusesWhatDoesNotFitTheQueue(t *testing.T) {
	s := start(t, tiny(t, "llama", nil), Limits{Sequences: 1, Length: 500, Piece: 32}, 2)
	o := generate.Options{MaxNewTokens: 400, IgnoreEOS: true}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	refused := 0
	var tasks []*task
	for range 8 {
		task := newTask(t, s, ctx, []int32{1, 2, 3}, o)
		if err := s.submit(task); err == errQueueFull {
			refused++
		} else {
			tasks = append(tasks, task)
		}
	}
	if refused < 4 {
		t.Errorf("%d of 8 were refused with a queue of 2", refused)
	}
	cancel()
	for _, task := range tasks {
		if _, err := task.answer.whole(t.Context()); err != context.Canceled {
			t.Errorf("a cancelled task ended with %v", err)
		}
	}
}

// A failed pass ends the requests that it concerns, not the server.
func TestScheduler_SurvivesAFailedPass(t *testing.T) {
	m := tiny(t, "llama", nil)
	s := start(t, m, Limits{Sequences: 2, Length: 100, Piece: 32}, 10)
	o := generate.Options{MaxNewTokens: 5, IgnoreEOS: true}
	bad := newTask(t, s, t.Context(), []int32{1, 2, 3}, o)
	bad.prompt = []int32{1, 2, 100000} // no row of the embedding
	if err := s.submit(bad); err != nil {
		t.Fatal(err)
	}
	if _, err := bad.answer.whole(t.Context()); err == nil {
		t.Error("a token outside the vocabulary was read")
	}
	good := newTask(t, s, t.Context(), []int32{1, 2, 3}, o)
	if err := s.submit(good); err != nil {
		t.Fatal(err)
	}
	if _, err := good.answer.whole(t.Context()); err != nil || len(good.row.Result().Tokens) != 5 {
		t.Errorf("after a failure: %v, %v", good.row.Result(), err)
	}
}

func TestScheduler_FreesAllTensors(t *testing.T) {
	m := tiny(t, "bamba", nil)
	if _, err := generate.Score(t.Context(), m, []int32{1, 2}); err != nil { // makes tables
		t.Fatal(err)
	}
	before := torch.LiveTensors()
	s := start(t, m, Limits{Sequences: 3, Length: 100, Piece: 32}, 10)
	task := newTask(t, s, t.Context(), []int32{1, 2, 3}, generate.Options{MaxNewTokens: 5})
	if err := s.submit(task); err != nil {
		t.Fatal(err)
	}
	if err := s.shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := task.row.Result(); len(got.Tokens) == 0 || got.Finish == generate.FinishInterrupted {
		t.Errorf("the request was not finished before the stop: %v", got)
	}
	if err := s.submit(task); err != errStopping {
		t.Errorf("a stopped scheduler said %v", err)
	}
	if n := torch.LiveTensors(); n != before {
		t.Errorf("%d tensors are left over", n-before)
	}
}

func TestFit_ShrinksWhatWasNotChosen(t *testing.T) {
	m := tiny(t, "bamba", model.Config{"max_position_embeddings": 100000.0})
	all, err := Fit(m, 0, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if all.Sequences != 16 || all.Length != 100000 || all.PerToken != 2*2*8*4 {
		t.Errorf("without a limit: %+v", all)
	}
	memory := int64(17)*(all.PerSequence+5000*all.PerToken) + 100
	if l, err := Fit(m, memory, Limits{Prefixes: -1}); err != nil || l.Length != 5000/256*256 ||
		l.Sequences != 16 || l.Bytes > memory {
		t.Errorf("with memory for 5000 tokens each: %+v, %v", l, err)
	}
	memory = 4 * (all.PerSequence + shortest*all.PerToken) * 4 / 3
	if l, err := Fit(m, memory, Limits{}); err != nil || l.Length != shortest ||
		l.Sequences != 3 || l.Bytes+l.Prefixes > memory {
		t.Errorf("with memory for 3 short sequences: %+v, %v", l, err)
	}
	if _, err := Fit(m, memory, Limits{Sequences: 16, Length: 50000}); err == nil {
		t.Error("limits that do not fit were accepted")
	}
	if _, err := Fit(m, 0, Limits{Length: 100001}); err == nil {
		t.Error("a length above the model's context was accepted")
	}
}

// Requests that share beginnings start from what is kept of them. Their answers, log-probabilities
// included, have the same bits as without that, also when only some of it fits the memory.
func TestPrefixes_ChangeNoAnswer(t *testing.T) {
	for name := range models {
		t.Run(name, func(t *testing.T) {
			m := tiny(t, name, nil)
			r := rand.New(rand.NewPCG(5, 6))
			var prompts [][]int32
			stem := randomPrompt(r, 400)[:0]
			for len(stem) < 200 {
				stem = append(stem, randomPrompt(r, 100)...)
			}
			for range 12 { // conversations that fork at any token
				prompt := append(slices.Clone(stem[:r.IntN(200)]), randomPrompt(r, 120)...)
				prompts = append(prompts, prompt, append(slices.Clone(prompt),
					randomPrompt(r, 60)...))
			}
			o := generate.Options{MaxNewTokens: 4, IgnoreEOS: true, Logprobs: true}
			answers := func(memory int64) (list []string, reused int, peak int64) {
				l := Limits{Sequences: 4, Length: 400, Piece: 32, Prefixes: memory}
				s := start(t, m, l, 100)
				for _, prompt := range prompts {
					task := newTask(t, s, t.Context(), prompt, o)
					if err := s.submit(task); err != nil {
						t.Fatal(err)
					}
					if _, err := task.answer.whole(t.Context()); err != nil {
						t.Fatal(err)
					}
					list = append(list, fmt.Sprint(task.row.Result()))
					reused += task.reused
					peak = max(peak, s.reader.prefixes.bytes)
				}
				if err := s.shutdown(t.Context()); err != nil {
					t.Fatal(err)
				}
				return list, reused, peak
			}
			if name == "dynamic rotary" { // the whole prompt decides how its first tokens are read
				if _, reused, _ := answers(1 << 30); reused != 0 {
					t.Errorf("reused %d tokens", reused)
				}
				return
			}
			want, none, _ := answers(-1)
			all, most, bytes := answers(1 << 30)
			some, fewer, bounded := answers(bytes / 4)
			if !slices.Equal(all, want) || !slices.Equal(some, want) {
				t.Error("an answer differs from one that was read afresh")
			}
			if none != 0 || most < 1000 || fewer == 0 || fewer >= most || bounded > bytes/4 {
				t.Errorf("reused %d, %d and %d tokens, %d of %d bytes", none, most, fewer, bounded,
					bytes/4)
			}
		})
	}
}
