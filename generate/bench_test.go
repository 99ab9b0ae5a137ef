package generate_test

import (
	"context"
	"math/rand/v2"
	"os"
	"testing"

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
