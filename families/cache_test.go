package families_test

import (
	"strings"
	"testing"

	"conquer/model"
	"conquer/torch"
)

// A cache in 8 bits takes 34 bytes for 32 numbers, and changes logits little, in a prompt that is
// read in pieces and in steps.
func TestCache_In8BitsChangesLittle(t *testing.T) {
	inTorch(t, func() {
		m, err := model.New(model.Config{"model_type": "llama", "hidden_size": 128.0,
			"intermediate_size": 160.0, "num_hidden_layers": 3.0, "num_attention_heads": 4.0,
			"num_key_value_heads": 2.0, "vocab_size": 96.0, "max_position_embeddings": 64.0,
			"rms_norm_eps": 1e-5, "initializer_range": 0.1, "hidden_act": "silu"})
		if err != nil {
			t.Fatal(err)
		}
		torch.ManualSeed(5)
		model.Initialize(m, torch.Float32, torch.CPU)
		defer model.Free(m)
		ids := []int64{1, 5, 60, 7, 33, 9, 2, 2, 80, 4, 21, 13, 64, 90, 6, 11}
		var logits [2][]torch.Tensor
		var bytes [2]int64
		for i, form := range []string{model.CacheAsModel, model.CacheQ8} {
			if err := model.SetCache(m, form); err != nil || model.CacheForm(m) != form {
				t.Fatal(err, model.CacheForm(m))
			}
			torch.NoGrad(func() {
				cache := m.NewCache(1, 20, torch.Float32, torch.CPU)
				defer cache.Free()
				bytes[i] = cache.Bytes()
				for _, piece := range [][]int64{ids[:6], ids[6:15], ids[15:]} {
					input := torch.From(piece, 1, len(piece))
					logits[i] = append(logits[i], model.LastLogits(m,
						model.Sequence{IDs: input, Cache: cache}))
				}
			})
		}
		if bytes[1]*128 != bytes[0]*34 {
			t.Errorf("%d bytes in 8 bits, %d in float32", bytes[1], bytes[0])
		}
		for i, want := range logits[0] {
			off := torch.Item[float64](logits[1][i].Sub(want).Abs().Max())
			if most := torch.Item[float64](want.Abs().Max()); !(off < 0.05*most) || off == 0 {
				t.Errorf("piece %d: off by %g of %g", i, off, most)
			}
		}
	})
}

func TestCache_FormsThatCannotBeAreRefused(t *testing.T) {
	inTorch(t, func() {
		m := open(t, "../llama/testdata/llama")
		defer model.Free(m)
		for form, want := range map[string]string{"q4_0": "q8_0", model.CacheQ8: "blocks of 32"} {
			if err := model.SetCache(m, form); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, expected %q", form, err, want)
			}
		}
	})
}
