// Package units divides a model into the units that training gathers, runs and reduces together:
// unit 0 is the embedding, unit i+1 is block i, and the last unit is what follows the blocks (final
// norm and head).
package units

import (
	"fmt"
	"slices"

	"conquer/model"
	"conquer/torch/nn"
)

// Of divides m's parameters, and the adapters on them, into units. If the head shares the
// embedding's weights, every parameter outside the blocks is in unit 0 and the last unit is empty.
func Of(m model.Model) [][]*nn.Param {
	blocks, tied := m.Blocks(), Tied(m)
	list := make([][]*nn.Param, len(blocks)+2)
	inside := map[*nn.Param]bool{}
	for i, b := range blocks {
		list[i+1] = Block(b)
		for _, p := range list[i+1] {
			inside[p] = true
		}
	}
	for _, p := range nn.Params(m) {
		switch {
		case inside[p]:
		case tied, p != m.Head().Param && slices.Equal(p.Shape, m.Head().Shape):
			list[0] = append(list[0], p)
		default:
			list[len(blocks)+1] = append(list[len(blocks)+1], p)
		}
	}
	return list
}

// Block lists the parameters of a block, and the adapters on them.
func Block(b model.Block) []*nn.Param {
	params := nn.Params(b)
	nn.Linears(b, func(_ []string, l *nn.Linear) {
		for _, a := range l.LoRA {
			if a != nil {
				params = append(params, a.Params()...)
			}
		}
	})
	return params
}

// Tied reports whether m's head shares the embedding's weights.
func Tied(m model.Model) bool {
	head, tied := m.Head().Param, true
	nn.Walk(m, func(c nn.Component) {
		tied = tied && !(c.Param == head && c.Name == "lm_head.weight")
	})
	return tied
}

// Head returns the index of the unit that holds the head's weights.
func Head(m model.Model) int {
	if Tied(m) {
		return 0
	}
	return len(m.Blocks()) + 1
}

// Stages divides the blocks over n pipeline stages, balancing the number of weights. head is the
// number of elements of the head, which the last stage computes. Stage s has the blocks from
// first[s] up to, and without, first[s+1].
func Stages(list [][]*nn.Param, head, n int) (first []int, err error) {
	count := len(list) - 2
	if count < n {
		return nil, fmt.Errorf("pp: a model of %d layers cannot be divided over %d processes",
			count, n)
	}
	weights, total := make([]int, count), head
	for i := range weights {
		for _, p := range list[i+1] {
			weights[i] += Elements(p.Shape)
		}
		total += weights[i]
	}
	first = []int{0}
	before := 0
	for i, w := range weights {
		next := len(first)
		if next < n && i > first[next-1] && ((before+w/2)*n >= total*next || count-i == n-next) {
			first = append(first, i)
		}
		before += w
	}
	return append(first, count), nil
}

// Elements returns the number of elements of a tensor of the given shape.
func Elements(shape []int) int {
	n := 1
	for _, size := range shape {
		n *= size
	}
	return n
}
