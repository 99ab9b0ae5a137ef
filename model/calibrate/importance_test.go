package calibrate

import (
	"context"
	"math"
	"strings"
	"testing"

	_ "conquer/families"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

var base = model.Config{"hidden_act": "silu", "vocab_size": 96.0, "hidden_size": 32.0,
	"num_hidden_layers": 2.0, "num_attention_heads": 4.0, "num_key_value_heads": 2.0,
	"head_dim": 8.0, "max_position_embeddings": 64.0, "rms_norm_eps": 1e-6,
	"tie_word_embeddings": false, "initializer_range": 0.5, "use_sliding_window": false,
	"intermediate_size": 64.0}

// Every linear weight is seen by each token, or by those of its expert, and the inputs of the first
// layer and of the head are those that plain operations give.
func TestImportance_SeesTheInputsOfEveryLayer(t *testing.T) {
	rows := [][]int32{{5, 6, 7, 8, 9, 10, 11}, {1, 2, 3}, {44}}
	for name, config := range map[string]model.Config{
		"llama": base.Or(model.Config{"model_type": "llama"}),
		"mixture": base.Or(model.Config{"model_type": "qwen3_moe", "num_experts": 8.0,
			"moe_intermediate_size": 32.0, "num_experts_per_tok": 2.0, "norm_topk_prob": true}),
	} {
		m, err := model.New(config)
		if err != nil {
			t.Fatal(err)
		}
		defer model.Free(m)
		torch.Run(func() error {
			model.Initialize(m, torch.Float32, torch.CPU)
			return nil
		})
		if _, err := Importance(context.Background(), m, rows, nil); err != nil {
			t.Fatal(err)
		}
		live := torch.LiveTensors() // with the rotary table, which stays
		found, err := Importance(context.Background(), m, rows, nil)
		if err != nil {
			t.Fatal(err)
		}
		if left := torch.LiveTensors() - live; left > 0 {
			t.Errorf("%s: %d tensors are left", name, left)
		}
		routed := 0
		nn.Walk(m, func(c nn.Component) {
			shape := c.Shape()
			if len(shape) < 2 || strings.Contains(c.Name, "embed") {
				return
			}
			in, ok := found[c.Name]
			if !ok && strings.Contains(c.Name, "experts") {
				return // of an expert that no token was sent to
			}
			if !ok || len(in.Squares) != shape[1] {
				t.Errorf("%s: %s has %d inputs, expected %d", name, c.Name, len(in.Squares),
					shape[1])
				return
			}
			if strings.Contains(c.Name, "experts") {
				routed += int(in.Counts[0])
			} else if in.Counts[0] != 11 {
				t.Errorf("%s: %s saw %g tokens, expected 11", name, c.Name, in.Counts[0])
			}
		})
		if want := 2 * 3 * 2 * 11; name == "mixture" && routed != want { // layers, weights, experts
			t.Errorf("experts saw %d tokens, expected %d", routed, want)
		}
		torch.Run(func() error {
			torch.NoGrad(func() {
				want, last := make([]float64, 32), make([]float64, 32)
				for _, row := range rows {
					ids := make([]int64, len(row))
					for i, id := range row {
						ids[i] = int64(id)
					}
					input := torch.From(ids, 1, len(ids))
					add(want, m.Blocks()[0].InputProjection().Norm.Forward(m.Embed(input)))
					add(last, model.Hidden(m, model.Sequence{IDs: input}))
				}
				for of, want := range map[string][]float64{
					"model.layers.0.self_attn.v_proj.weight": want, "lm_head.weight": last} {
					for i, x := range found[of].Squares {
						if math.Abs(float64(x)-want[i]) > 1e-4*want[i] {
							t.Fatalf("%s: input %d of %s is %g, expected %g", name, i, of, x,
								want[i])
						}
					}
				}
			})
			return nil
		})
	}
}

// add adds the squares of each column of x [1, L, D].
func add(sums []float64, x torch.Tensor) {
	for i, v := range torch.Values[float64](x) {
		sums[i%len(sums)] += v * v
	}
}
