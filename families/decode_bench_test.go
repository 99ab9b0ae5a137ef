package families_test

import (
	"context"
	"testing"

	"conquer/generate"
	"conquer/model"
	"conquer/torch"
)

// BenchmarkDecode times a token of a mixture, 4 of whose 32 experts of width 512 each token passes
// through, and of a dense model with as many active weights.
func BenchmarkDecode(b *testing.B) {
	base := model.Config{"hidden_act": "silu", "vocab_size": 4096.0, "hidden_size": 1024.0,
		"num_hidden_layers": 8.0, "num_attention_heads": 16.0, "num_key_value_heads": 8.0,
		"head_dim": 64.0, "max_position_embeddings": 4096.0, "rms_norm_eps": 1e-6,
		"tie_word_embeddings": false, "initializer_range": 0.02, "use_sliding_window": false,
		"intermediate_size": 2048.0}
	for name, config := range map[string]model.Config{
		"dense": base.Or(model.Config{"model_type": "qwen3"}),
		"mixture": base.Or(model.Config{"model_type": "qwen3_moe", "num_experts": 32.0,
			"moe_intermediate_size": 512.0, "num_experts_per_tok": 4.0, "norm_topk_prob": true}),
	} {
		b.Run(name, func(b *testing.B) {
			torch.SetThreads(2)
			defer torch.SetThreads(1)
			m, err := model.New(config)
			if err != nil {
				b.Fatal(err)
			}
			defer model.Free(m)
			if err := torch.Run(func() error {
				model.Initialize(m, torch.BFloat16, torch.CPU)
				prompt := [][]int32{{1, 2, 3, 4, 5, 6, 7, 8}}
				o := generate.Options{MaxNewTokens: b.N + 1, IgnoreEOS: true}
				if b.N > 4000 {
					o.MaxNewTokens = 4000
				}
				b.ResetTimer()
				_, _, err := generate.Generate(context.Background(), m, nil, prompt, o, nil)
				return err
			}); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(model.Active(m))/1e6, "million_active")
		})
	}
}
