package model

import (
	"conquer/torch"
	"conquer/torch/nn"
)

// BlockSource is a source that holds quantized matrices, such as a checkpoint.
type BlockSource interface {
	TensorSource
	// Blocks returns a matrix in its blocks, as parts below each other; none if it is not
	// quantized.
	Blocks(name string) ([]torch.BlockPart, error)
}

// InBlocks presents source to [Load] so that quantized matrices of linear layers and embeddings
// stay in their blocks ([torch.Blocks]); on a GPU they take the form of its kernels
// ([torch.Tensor.BlocksOn]). On the CPU, Load then takes [torch.Float32]. It takes no [nn.Shard].
func InBlocks(source BlockSource) TensorSource { return inBlocks{source} }

type inBlocks struct{ BlockSource }

// HasExperts reports whether m has layers of experts, which use weights in blocks on the CPU alone.
func HasExperts(m Model) (found bool) {
	nn.Linears(m, func(_ []string, l *nn.Linear) { found = found || l.Experts > 0 })
	return found
}

// blockable lists the weights that layers can use in blocks.
func blockable(m Model) map[*nn.Param]bool {
	params := map[*nn.Param]bool{}
	nn.Layers(m, func(_ string, layer any) {
		switch l := layer.(type) {
		case *nn.Linear:
			params[l.Weight] = true
		case *nn.Embedding:
			params[l.Weight] = true
		}
	})
	return params
}

// keep fills the parameters of m that source holds in blocks and returns them. A parameter of
// several components is one weight of several parts.
func (source inBlocks) keep(m Model, dtype torch.DType, device torch.Device,
) (kept map[*nn.Param]bool, err error) {
	kept = map[*nn.Param]bool{}
	components := map[*nn.Param][]nn.Component{}
	nn.Walk(m, func(c nn.Component) { components[c.Param] = append(components[c.Param], c) })
	for param := range blockable(m) {
		torch.Scoped(func() {
			var parts []torch.BlockPart
			if parts, err = source.parts(components[param]); len(parts) > 0 {
				weight := torch.Blocks(param.Shape[1], parts...)
				if device.IsCUDA() {
					weight = weight.BlocksOn(device, dtype)
				}
				param.Tensor = weight.Own()
				kept[param] = true
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return kept, nil
}

// parts returns the components of a parameter in blocks, or none if no component is quantized. A
// component that is not quantized becomes float32 beside others that are.
func (source inBlocks) parts(components []nn.Component) (parts []torch.BlockPart, err error) {
	own, quantized := make([][]torch.BlockPart, len(components)), false
	for i, c := range components {
		if own[i], err = source.Blocks(c.Name); err != nil {
			return nil, err
		}
		quantized = quantized || len(own[i]) > 0
	}
	if !quantized {
		return nil, nil
	}
	for i, c := range components {
		if len(own[i]) == 0 {
			t, err := source.TensorAs(c.Name, torch.Float32)
			if err != nil {
				return nil, err
			}
			t = t.View(c.Rows, c.Param.Shape[1])
			own[i] = []torch.BlockPart{{Kind: torch.FloatRows, Data: t}}
		}
		parts = append(parts, own[i]...)
	}
	return parts, nil
}
