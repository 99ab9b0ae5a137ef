package model

import (
	"slices"

	"conquer/checkpoint"
	"conquer/torch"
	"conquer/torch/nn"
)

// Grow returns the model of m's config with more rows in its embedding and head, without weights,
// and the weights of source for it. A new row is the mean of the others. (transformers adds noise
// to it, whose covariance is 1e-9 times that of the rows.)
func Grow(m Model, source BlockSource, rows int) (Model, BlockSource, error) {
	g := grown{BlockSource: source, rows: rows}
	nn.Walk(m, func(c nn.Component) {
		if slices.Equal(c.Param.Shape, m.Head().Shape) {
			g.names = append(g.names, c.Name)
		}
	})
	config := m.Config().Clone()
	config["vocab_size"] = float64(rows)
	larger, err := New(config)
	return larger, g, err
}

// grown is a source whose tensors of the given names have more rows.
type grown struct {
	BlockSource
	names []string
	rows  int
}

func (g grown) Info(name string) (checkpoint.Info, bool) {
	info, ok := g.BlockSource.Info(name)
	if ok && slices.Contains(g.names, name) {
		info.Shape = append([]int{g.rows}, info.Shape[1:]...)
	}
	return info, ok
}

func (g grown) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	t, err := g.BlockSource.TensorAs(name, dtype)
	if err != nil || !slices.Contains(g.names, name) {
		return t, err
	}
	n := t.Size(0)
	mean := t.To(torch.Float32).SumDim(0, true).MulScalar(1 / float64(n)).To(dtype)
	return torch.Cat(0, t, mean.Expand(g.rows-n, t.Size(1))), nil
}

// Blocks has none of the tensors that get more rows.
func (g grown) Blocks(name string) ([]torch.BlockPart, error) {
	if slices.Contains(g.names, name) {
		return nil, nil
	}
	return g.BlockSource.Blocks(name)
}
