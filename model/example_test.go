package model_test

import (
	"fmt"

	_ "conquer/families" // the families that model.Open knows
	"conquer/llama"
	"conquer/model"
	"conquer/torch"
)

// Open a model and predict the token that follows a prompt.
func ExampleOpen() {
	m, err := model.Open("../llama/testdata/llama", torch.Float32, torch.CPU)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer model.Free(m)
	err = torch.Run(func() error {
		torch.NoGrad(func() {
			ids := torch.From([]int64{1, 2, 3}, 1, 3)
			logits := model.LastLogits(m, model.Sequence{IDs: ids}) // [1,V]
			fmt.Println(m.Architecture(), logits.Shape())
		})
		return nil
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output: llama [1 96]
}

// Register a family of one's own: Llama whose queries and keys are normalized, with a window in
// every second layer. Its config.json names the model type "example".
func ExampleRegister() {
	family := llama.Family{
		ModelType: "example", Class: "ExampleForCausalLM",
		Decoder: func(r *model.Reader) *llama.Decoder {
			d := llama.Read(r, "example")
			d.Attention.QKNorm = true
			window := r.Int("sliding_window")
			d.Layer = func(i int, c *model.AttentionConfig) {
				if i%2 == 1 {
					c.Window = window
				}
			}
			return d
		},
	}
	small := llama.Sizes{Vocabulary: 100, Width: 32, Inner: 64, Layers: 4, Heads: 4, KeyHeads: 2,
		Positions: 512}
	model.Register(model.Architecture{
		Name: "example", ModelTypes: []string{family.ModelType}, New: family.New,
		Variants: map[string]model.Config{
			"small": family.Variant(small, model.Config{"sliding_window": 16.0}),
		},
	})

	config, err := model.Variant("example", "small")
	if err != nil {
		fmt.Println(err)
		return
	}
	m, err := model.New(config)
	if err != nil {
		fmt.Println(err)
		return
	}
	for i, block := range m.Blocks() {
		c := block.(*llama.Block).Attention.Config()
		fmt.Printf("layer %d: window %d\n", i, c.Window)
	}
	// Output:
	// layer 0: window 0
	// layer 1: window 16
	// layer 2: window 0
	// layer 3: window 16
}
