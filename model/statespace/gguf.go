package statespace

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/torch"
)

// GGUFNames adds GGUF's names of a mixer's tensors to n. prefix is the mixer's name in a block with
// a dot behind it, such as "mamba.".
func GGUFNames(n checkpoint.Names, prefix string) checkpoint.Names {
	n.Block, n.Exact = maps.Clone(n.Block), maps.Clone(n.Exact)
	if n.Exact == nil {
		n.Exact = map[string]string{}
	}
	for foreign, name := range map[string]string{"ssm_in": "in_proj", "ssm_conv1d": "conv1d",
		"ssm_norm": "norm", "ssm_out": "out_proj"} {
		n.Block[foreign] = prefix + name
	}
	for foreign, name := range map[string]string{"ssm_a": "A_log", "ssm_d": "D",
		"ssm_dt.bias": "dt_bias"} {
		n.Exact[foreign] = prefix + name
	}
	return n
}

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
				switch len(shape) {
				case 1: // one group
					return shape
				case 2:
					return []int{shape[0] * shape[1]}
				}
				return nil
			}}, true
	}
	return nil, false
}

// SetGGUF writes the keys of the layer's sizes. layers are the numbers of the state-space layers,
// and bias is the name of InBias and OutBias in config.json. It fails for what GGUF cannot hold.
func (c MixerConfig) SetGGUF(g *checkpoint.GGUFModel, layers []int, bias string) error {
	switch {
	case c.InBias || c.OutBias:
		return fmt.Errorf("config.json: %s has no form in GGUF", bias)
	case c.DTMin > 0 || !math.IsInf(c.DTMax, 1):
		return fmt.Errorf("config.json: time_step_limit has no form in GGUF")
	}
	inner := c.Heads * c.HeadDim
	for _, pair := range []struct {
		key string
		n   int
	}{
		{"ssm.conv_kernel", c.Taps}, {"ssm.inner_size", inner}, {"ssm.state_size", c.State},
		{"ssm.group_count", c.Groups}, {"ssm.time_step_rank", c.Heads},
	} {
		g.Set(pair.key, uint32(pair.n))
	}
	if !c.ConvBias { // llama.cpp demands one
		if g.Tensors == nil {
			g.Tensors = map[string][]float32{}
		}
		for _, i := range layers {
			g.Tensors[fmt.Sprintf("blk.%d.ssm_conv1d.bias", i)] = make([]float32,
				inner+2*c.Groups*c.State)
		}
	}
	return nil
}

// FromGGUF reads the sizes that SetGGUF writes: all fields but Width and Eps. Problems are kept in
// g.
func FromGGUF(g *checkpoint.GGUFFile) MixerConfig {
	inner, heads := g.Int("ssm.inner_size", 0), g.Int("ssm.time_step_rank", 0)
	if inner%max(heads, 1) != 0 {
		g.Fail("%s.ssm.inner_size is %d, expected a multiple of the %d heads", g.Architecture,
			inner, heads)
	}
	return MixerConfig{Heads: heads, HeadDim: inner / max(heads, 1),
		Groups: g.Int("ssm.group_count", 1), State: g.Int("ssm.state_size", 0),
		Taps: g.Int("ssm.conv_kernel", 0), ConvBias: true, DTMax: math.Inf(1)}
}
