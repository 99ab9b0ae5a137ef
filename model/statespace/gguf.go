package statespace

import (
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/torch"
)

// MixerGGUF gives the form of a state-space layer's tensor in GGUF, by its Hugging Face name, for a
// layer with the given number of groups.
func MixerGGUF(name string, groups int) (*checkpoint.Transform, bool) {
	column := func(shape []int) []int { return append(slices.Clone(shape), 1) } // [H] to [H,1]
	flat := func(shape []int) []int {
		if len(shape) != 2 || shape[1] != 1 {
			return nil
		}
		return shape[:1]
	}
	switch {
	case strings.HasSuffix(name, ".A_log"):
		return &checkpoint.Transform{Shape: column, Back: flat,
			To:   func(t torch.Tensor) torch.Tensor { return t.Exp().Neg() },
			From: func(t torch.Tensor) torch.Tensor { return t.Neg().Log() }}, true
	case strings.HasSuffix(name, ".D"):
		return &checkpoint.Transform{Shape: column, Back: flat}, true
	case strings.HasSuffix(name, ".conv1d.weight"):
		return &checkpoint.Transform{
			Shape: func(shape []int) []int { return []int{shape[0], shape[2]} },
			Back: func(shape []int) []int {
				if len(shape) != 2 {
					return nil
				}
				return []int{shape[0], 1, shape[1]}
			}}, true
	case strings.HasSuffix(name, ".mixer.norm.weight"),
		strings.HasSuffix(name, ".mamba.norm.weight"):
		return &checkpoint.Transform{
			Shape: func(shape []int) []int { return []int{groups, shape[0] / groups} },
			Back: func(shape []int) []int {
				if len(shape) != 2 {
					return nil
				}
				return []int{shape[0] * shape[1]}
			}}, true
	}
	return nil, false
}
