package train

import (
	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/units"
)

// fragment is a contiguous run of a parameter's elements, in row-major order, as one process holds
// it.
type fragment struct {
	param *nn.Param
	start int // index of the first element in the parameter's local shard
	// tensor holds the elements: float32 if the optimizer works on master weights. It is
	// one-dimensional unless it is the whole parameter.
	tensor torch.Tensor
	copied bool // another process holds and writes the same fragment
}

// component is a checkpoint tensor inside a parameter: elements [start, start+count).
type component struct {
	name         string // Hugging Face's
	shape        []int
	start, count int
}

// componentsOf lists the components of each parameter and adapter of m.
func componentsOf(m model.Model) map[*nn.Param][]component {
	list := map[*nn.Param][]component{}
	nn.Walk(m, func(c nn.Component) {
		row := units.Elements(c.Param.Shape[1:])
		list[c.Param] = append(list[c.Param],
			component{c.Name, c.Shape(), c.Start * row, c.Rows * row})
	})
	for _, a := range lora.Adapters(m) {
		for _, t := range lora.Tensors(a) {
			p := t.Param
			list[p] = []component{{t.Name, p.Shape, 0, units.Elements(p.Shape)}}
		}
	}
	return list
}

// span locates elements in a checkpoint tensor: consecutive ones from start on or, if every is not
// 0, runs of `run` elements whose starts are `every` elements apart.
type span struct{ start, run, every int }

// read reads length elements of the checkpoint tensor name at the span.
func (s span) read(c *checkpoint.Checkpoint, name string, length int) (torch.Tensor, error) {
	if s.every == 0 {
		return c.Range(name, s.start, length)
	}
	first, rows := s.start/s.every*s.every, length/s.run
	all, err := c.Range(name, first, rows*s.every)
	if err != nil {
		return all, err
	}
	return all.View(rows, s.every).Narrow(1, s.start-first, s.run).Reshape(-1), nil
}

// spans calls f for each span that elements [from, to) of the fragment cover in the whole
// parameter.
func (f fragment) spans(from, to int, visit func(at span, from, to int)) {
	shard := f.param.Shard
	switch {
	case shard == nil:
		visit(span{start: f.start + from}, from, to)
	case shard.Dim == 0:
		row, held := units.Elements(f.param.Shape[1:]), 0
		for _, r := range shard.Own() {
			first, end := max(f.start+from, held), min(f.start+to, held+r.Count*row)
			if first < end {
				visit(span{start: r.First*row + first - held}, first-f.start, end-f.start)
			}
			held += r.Count * row
		}
	default: // columns: the rest of a row, whole rows, and the beginning of the last row
		r, width := shard.Own()[0], f.param.Shape[1]
		for first, end := f.start+from, f.start+to; first < end; {
			row, column := first/r.Count, first%r.Count
			run := min(r.Count-column, end-first)
			n := run
			if column == 0 && run == r.Count {
				n = (end - first) / run * run
			}
			visit(span{row*width + r.First + column, run, width}, first-f.start, first+n-f.start)
			first += n
		}
	}
}

// components calls visit for each span that elements [from, to) of the fragment cover in a
// component.
func (f fragment) components(
	list []component, from, to int, visit func(c component, at span, from, to int),
) {
	f.spans(from, to, func(at span, from, to int) {
		if at.every > 0 { // a parameter divided by columns
			row, rows := at.start/at.every, (to-from)/at.run
			for _, c := range list {
				top := c.start / at.every
				first, end := max(row, top), min(row+rows, top+c.count/at.every)
				if first < end {
					start := (first-top)*at.every + at.start%at.every
					visit(c, span{start, at.run, at.every}, from+(first-row)*at.run,
						from+(end-row)*at.run)
				}
			}
			return
		}
		for _, c := range list {
			first, end := max(at.start, c.start), min(at.start+to-from, c.start+c.count)
			if first < end {
				visit(c, span{start: first - c.start}, from+first-at.start, from+end-at.start)
			}
		}
	})
}

// writes reports whether this process writes the span that starts at an element of the fragment.
// Rows that are replicated in a group are written by its first process.
func (f fragment) writes(element int) bool {
	shard := f.param.Shard
	if f.copied {
		return false
	}
	if shard == nil || shard.Dim != 0 || shard.Group.Rank == 0 {
		return true
	}
	row := (f.start + element) / units.Elements(f.param.Shape[1:])
	for _, r := range shard.Own() {
		if row < r.Count {
			return !r.Replicated
		}
		row -= r.Count
	}
	return true
}

// wholeFragments lists the parameters of units that this process holds completely, the trained ones
// first.
func wholeFragments(list [][]*nn.Param) (fragments []fragment) {
	for _, trained := range []bool{true, false} {
		for _, unit := range list {
			for _, p := range unit {
				if p.RequiresGrad() == trained {
					fragments = append(fragments, fragment{param: p, tensor: p.Tensor})
				}
			}
		}
	}
	return fragments
}

// optimized returns the trained fragments, and as what the optimizer works on: each under its
// parameter's name.
func optimized(
	fragments []fragment, names map[*nn.Param]string, o Options,
) (trained []fragment, params []optim.Param) {
	for _, f := range fragments {
		if name, ok := names[f.param]; ok {
			trained = append(trained, f)
			params = append(params, optim.Param{
				Name: name, Tensor: f.tensor, NoDecay: !o.decays(name, f.param.Shape),
			})
		}
	}
	return trained, params
}

// matricesOf lists the rows of the matrices that each parameter of m's blocks holds, one below the
// other. Embedding, head, vectors and convolutions hold none.
func matricesOf(m model.Model) map[*nn.Param][]int {
	list := map[*nn.Param][]int{}
	for _, block := range m.Blocks() {
		nn.Linears(block, func(_ []string, l *nn.Linear) { list[l.Weight] = l.Rows })
	}
	for _, a := range lora.Adapters(m) {
		list[a.A], list[a.B] = a.A.Shape[:1], a.B.Shape[:1]
	}
	return list
}

// reducedAs is the dtype in which p's gradients are summed over processes: float32 if wide is set,
// else p's own.
func reducedAs(p *nn.Param, wide bool) torch.DType {
	if wide {
		return torch.Float32
	}
	return p.DType()
}

// gradientOf is p's gradient, or zeros if no token reached p.
func gradientOf(p *nn.Param) torch.Tensor {
	if g := p.Grad(); g.Defined() {
		return g
	}
	return torch.Zeros(p.Tensor.Shape(), p.DType(), p.Device())
}
