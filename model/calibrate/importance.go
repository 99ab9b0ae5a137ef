// Package calibrate measures what passes through a model's linear layers, to quantize their weights
// where that matters least.
package calibrate

import (
	"context"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// Importance runs rows of token ids through m and returns the squares of the inputs of each linear
// layer and of the head, summed over tokens, by the Hugging Face name of the weight. progress, if
// not nil, is called with the number of tokens that are done.
func Importance(ctx context.Context, m model.Model, rows [][]int32, progress func(tokens int)) (
	checkpoint.Importance, error) {
	found := checkpoint.Importance{}
	watched := observe(m, func(names []string, l *nn.Linear, x torch.Tensor, groups torch.Groups) {
		for i, part := range split(x, groups) {
			if part.Size(0) == 0 {
				continue
			}
			squares := torch.Values[float32](part.Mul(part).SumDim(0, false))
			for _, name := range namesOf(names, l, i) {
				found.Add(name.tensor, name.matrix, name.matrices, squares, part.Size(0))
			}
		}
	})
	defer watched()
	head := headName(m)
	err := forward(ctx, m, rows, progress, func(hidden torch.Tensor) {
		x := hidden.View(-1, hidden.Size(-1)).To(torch.Float32)
		found.Add(head, 0, 1, torch.Values[float32](x.Mul(x).SumDim(0, false)), x.Size(0))
	})
	return found, err
}

// observe calls see with each linear layer's inputs, until the function it returns is called.
func observe(m model.Model, see func(names []string, l *nn.Linear, x torch.Tensor,
	groups torch.Groups)) (end func()) {
	names := map[*nn.Param][]string{}
	nn.Walk(m, func(c nn.Component) { names[c.Param] = append(names[c.Param], c.Name) })
	var all []*nn.Linear
	nn.Layers(m, func(_ string, layer any) {
		l, ok := layer.(*nn.Linear)
		if !ok {
			return
		}
		all = append(all, l)
		l.Observe = func(x torch.Tensor, groups torch.Groups) {
			torch.Scoped(func() { see(names[l.Weight], l, x.Detach(), groups) })
		}
	})
	return func() {
		for _, l := range all {
			l.Observe = nil
		}
	}
}

// split gives the inputs [N, D] as float32: of a layer of experts those of each, or all.
func split(x torch.Tensor, groups torch.Groups) []torch.Tensor {
	x = x.Reshape(-1, x.Size(-1)).To(torch.Float32)
	if groups.Count == 0 {
		return []torch.Tensor{x}
	}
	sizes := groups.Sizes()
	if sizes == nil {
		sizes = make([]int, groups.Count)
		for _, expert := range torch.Values[int64](groups.Index) {
			sizes[expert]++
		}
	}
	return x.Split(0, sizes...)
}

// place is a matrix of a checkpoint's tensor, which holds a number of them.
type place struct {
	tensor           string
	matrix, matrices int
}

// namesOf lists the matrices that are multiplied by part i of a layer's inputs. Only the weights of
// experts have several parts.
func namesOf(names []string, l *nn.Linear, i int) (places []place) {
	switch {
	case l.Weight.Stack > 0:
		return []place{{names[0], i, l.Weight.Stack}}
	case l.Experts > 0:
		each := len(names) / l.Experts
		names = names[i*each : (i+1)*each]
	}
	for _, name := range names {
		places = append(places, place{name, 0, 1})
	}
	return places
}

// headName is the name of the weight that m's head uses.
func headName(m model.Model) (name string) {
	nn.Walk(m, func(c nn.Component) {
		if c.Param == m.Head().Param {
			name = c.Name
		}
	})
	return name
}

// forward runs rows through m, and calls end with the hidden states before the head.
func forward(ctx context.Context, m model.Model, rows [][]int32, progress func(tokens int),
	end func(hidden torch.Tensor)) error {
	done := 0
	return torch.Run(func() (err error) {
		torch.NoGrad(func() {
			for _, row := range rows {
				if err = ctx.Err(); err != nil {
					return
				}
				torch.Scoped(func() {
					ids := make([]int64, len(row))
					for i, id := range row {
						ids[i] = int64(id)
					}
					input := torch.From(ids, 1, len(ids)).ToDevice(model.Device(m))
					end(model.Hidden(m, model.Sequence{IDs: input}))
				})
				if done += len(row); progress != nil {
					progress(done)
				}
			}
		})
		return err
	})
}
