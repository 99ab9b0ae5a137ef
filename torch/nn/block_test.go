package nn

import (
	"testing"

	"conquer/torch"
)

// The kernel has further conditions, which package torch tests.
func TestBlockTail_SaysWhyItRunsUnfused(t *testing.T) {
	const width, inner = 32, 48
	for _, c := range []struct {
		rows  int
		mixed torch.DType
		spoil func(t *BlockTail, next *InputProjection)
		why   string
	}{
		{1, torch.BFloat16, nil, ""},
		{3, torch.BFloat16, nil, ""},
		{1, torch.Float32, nil, "it takes tensors of one dtype, not bfloat16 and float32"},
		{1, torch.BFloat16, func(t *BlockTail,
			_ *InputProjection) {
			t.MLP.(*SwiGLU).GateUp.LoRA = make([]*LoRA, 2)
		},
			"an adapter is not merged into the weights"},
		{1, torch.BFloat16, func(_ *BlockTail,
			next *InputProjection) {
			next.Linear.LoRA = make([]*LoRA, 1)
		}, "an adapter is not " +
			"merged into the weights"},
		{1, torch.BFloat16, func(t *BlockTail, _ *InputProjection) { t.Scale = 0.5 },
			"it has no residual multiplier"},
		{1, torch.BFloat16, func(t *BlockTail,
			_ *InputProjection) {
			t.Output.Weight.Shard = &Shard{}
		},
			"the weights are divided over processes"},
	} {
		tail := BlockTail{Output: NewLinear(width, false, width), MLPNorm: NewRMSNorm(width, 1e-5),
			MLP: NewSwiGLU(width, inner, false)}
		next := &InputProjection{Norm: NewRMSNorm(width, 1e-5), Linear: NewLinear(width, false, 40)}
		if c.spoil != nil {
			c.spoil(&tail, next)
		}
		err := torch.Run(func() error {
			x, mixed := torch.Zeros([]int{c.rows, 1, width}, torch.BFloat16, torch.CPU),
				torch.Zeros([]int{c.rows, 1, width}, c.mixed, torch.CPU)
			if why := tail.unfusedReason(x, mixed, next); why != "gradients are recorded" {
				t.Errorf("with gradients: %q", why)
			}
			torch.NoGrad(func() {
				if why := tail.unfusedReason(x, mixed, next); why != c.why {
					t.Errorf("%q, expected %q", why, c.why)
				}
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
