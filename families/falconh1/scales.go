package falconh1

import (
	"conquer/model/statespace"
	"conquer/torch"
)

// multipliers are the fixed factors of a model, after the names in config.json.
type multipliers struct {
	SSMIn, SSMOut             float64
	SSM                       [5]float64 // of the gate, x, B, C and dt
	AttentionIn, AttentionOut float64
	Gate, Down                float64
}

// scales are the multipliers of a model with tables of those that differ by row. A table is made
// when it is first used on a device, as the rotary table is.
type scales struct {
	multipliers
	ssmTable, gateTable torch.Tensor // [2HP+2GN+H] and [2F]
}

// ssm is the table for the result of the state-space layer's input projection, like x; no tensor if
// all multipliers are 1.
func (s *scales) ssm(x torch.Tensor, m *statespace.Mixer) torch.Tensor {
	if s.SSM == [5]float64{1, 1, 1, 1, 1} {
		return torch.Tensor{}
	}
	heads, headDim, groups, state := m.Sizes()
	sizes := [5]int{heads * headDim, heads * headDim, groups * state, groups * state, heads}
	return table(&s.ssmTable, x, sizes[:], s.SSM[:])
}

// gate is the table for gate and up, which lie side by side in x.
func (s *scales) gate(x torch.Tensor) torch.Tensor {
	inner := x.Size(-1) / 2
	return table(&s.gateTable, x, []int{inner, inner}, []float64{s.Gate, 1})
}

// table returns *t, made of sizes[i] times values[i] in the dtype of like and on its device.
func table(t *torch.Tensor, like torch.Tensor, sizes []int, values []float64) torch.Tensor {
	if t.Defined() && t.DType() == like.DType() && t.Device() == like.Device() &&
		t.Size(0) == like.Size(-1) {
		return *t
	}
	t.Free()
	torch.NoGrad(func() {
		torch.Scoped(func() {
			var parts []torch.Tensor
			for i, n := range sizes {
				parts = append(parts, torch.Full([]int{n}, values[i], like.DType(), like.Device()))
			}
			*t = torch.Cat(0, parts...).Own()
		})
	})
	return *t
}

// free frees the tables.
func (s *scales) free() {
	s.ssmTable.Free()
	s.gateTable.Free()
}
