package bamba_test

import (
	"errors"
	"fmt"
	"strconv"

	"conquer/bamba"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// fade hands each chunk the state of the chunk before, multiplied by factor: what is k chunks old
// is left with factor to the power of k.
type fade struct{ factor float64 }

func (f fade) Starts(chunks bamba.Chunks) torch.Tensor {
	var starts []torch.Tensor
	state := chunks.Initial
	for k := range chunks.Len() {
		state = state.MulScalar(f.factor)
		starts = append(starts, state)
		state = chunks.End(k, state)
	}
	return torch.Stack(1, starts...)
}

// Add a strategy of one's own: an exponential fade of the carried state. In a program like
// cmd/conquer, call RegisterStrategy from an init function; then every command with --chunking
// takes fade:0.5, and fade:0.5-optimized for the kernels.
func ExampleRegisterStrategy() {
	bamba.RegisterStrategy("fade", func(argument string) (bamba.Strategy, error) {
		factor, err := strconv.ParseFloat(argument, 64)
		if err != nil || !(factor >= 0 && factor <= 1) {
			return nil, errors.New("expected fade:f with a factor from 0 to 1, such as fade:0.5")
		}
		return fade{factor}, nil
	})

	m, err := model.Open("testdata/hybrid", torch.Float32, torch.CPU)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer model.Free(m)
	logits := func(name string) torch.Tensor {
		chunking, err := statespace.ParseChunking(name)
		if err != nil {
			panic(&torch.Error{Message: err.Error()})
		}
		chunking.ChunkSize = 16
		if err := m.(statespace.Chunked).SetChunking(chunking); err != nil {
			panic(&torch.Error{Message: err.Error()})
		}
		ids := torch.Arange(0, 40, torch.Int64, torch.CPU).View(1, 40)
		return model.LastLogits(m, model.Sequence{IDs: ids})
	}
	err = torch.Run(func() error {
		torch.NoGrad(func() {
			whole := logits("default")
			for _, name := range []string{"fade:1-optimized", "fade:0.5-optimized"} {
				most := torch.Values[float64](logits(name).Sub(whole).Abs().Max())[0]
				fmt.Println(name, "equals default:", most < 1e-4)
			}
		})
		return nil
	})
	if err != nil {
		fmt.Println(err)
	}
	// Output:
	// fade:1-optimized equals default: true
	// fade:0.5-optimized equals default: false
}
