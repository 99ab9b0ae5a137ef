package generate_test

import (
	"context"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"conquer/bamba"
	"conquer/generate"
	_ "conquer/llama"
	"conquer/model"
	"conquer/torch"
)

// BenchmarkGenerate reports the best rates of a warm model: prefill of 512 random tokens
// including the first new token, then 64 more tokens. CONQUER_BENCH_MODEL is the path of
// the checkpoint.
func BenchmarkGenerate(b *testing.B) {
	path := os.Getenv("CONQUER_BENCH_MODEL")
	if path == "" {
		b.Skip("CONQUER_BENCH_MODEL is not set")
	}
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		b.Run(dtype.String(), func(b *testing.B) {
			m, err := model.Open(path, dtype, torch.CPU)
			if err != nil {
				b.Fatal(err)
			}
			defer model.Free(m)
			vocabulary := m.Head().Shape[0]
			var prefill, decode float64
			once := func() {
				prompt := make([]int32, 512)
				for i := range prompt {
					prompt[i] = rand.Int32N(int32(vocabulary))
				}
				_, stats, err := generate.Generate(context.Background(), m, nil, [][]int32{prompt},
					generate.Options{MaxNewTokens: 65, IgnoreEOS: true}, nil)
				if err != nil {
					b.Fatal(err)
				}
				prefill, decode = max(prefill, stats.PrefillRate()), max(decode, stats.DecodeRate())
			}
			once()
			prefill, decode = 0, 0
			for b.Loop() {
				once()
			}
			b.ReportMetric(prefill, "prefill_tok/s")
			b.ReportMetric(decode, "decode_tok/s")
		})
	}
}

// BenchmarkSession_SecondTurn reports the time to the first new token of a chat of 4,096 tokens
// with a hybrid model, and of its second turn, which adds 20 tokens after an answer of 64.
func BenchmarkSession_SecondTurn(b *testing.B) {
	config, err := model.Variant("bamba", "small")
	if err != nil {
		b.Fatal(err)
	}
	config["max_position_embeddings"] = 8192.0
	m, err := bamba.New(config)
	if err != nil {
		b.Fatal(err)
	}
	initialized(b, m)
	text := make([]int32, 4096)
	for i := range text {
		text[i] = rand.Int32N(int32(m.Head().Shape[0]))
	}
	o := generate.Options{MaxNewTokens: 64, IgnoreEOS: true}
	for b.Loop() {
		s := generate.NewSession(m, nil)
		r, first, err := s.Generate(context.Background(), text, o, nil)
		if err != nil {
			b.Fatal(err)
		}
		_, second, err := s.Generate(context.Background(),
			slices.Concat(text, r.Tokens, text[:20]), o, nil)
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
		b.ReportMetric(first.Prefill.Seconds()*1e3, "first_ms")
		b.ReportMetric(second.Prefill.Seconds()*1e3, "second_ms")
		b.ReportMetric(float64(second.PromptTokens-second.Reused), "second_tokens")
	}
}
