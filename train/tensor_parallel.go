package train

import (
	"fmt"
	"math"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/parallel"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/optim"
	"conquer/train/internal/units"
)

// TP is the strategy by which the processes of a group divide each layer among them, see package parallel, and take the same
// rows of a batch. TensorSize of them are a group; other groups take other rows, and sum gradients as ddp does. With FSDP and
// a TensorSize, the processes that hold the same part of the layers in all groups shard that part.
const TP = "tp"

// tensorParallel is another strategy, over the groups, for layers that are divided within a group.
type tensorParallel struct {
	strategy
	division *parallel.Division
	group    *dist.Group
}

func newTensorParallel(m model.Model, o Options, wide bool) (strategy, error) {
	mesh, err := o.World.NewMesh(o.TensorSize)
	if err != nil {
		return nil, err
	}
	t := &tensorParallel{group: mesh.Row}
	if t.division, err = parallel.Divide(m, mesh.Row, o.World.Device()); err != nil {
		return nil, err
	}
	if err := o.CheckDivision(t.division); err != nil {
		return nil, err
	}
	t.division.DivideTokens()
	list := units.Of(m)
	switch {
	case o.Distributed == FSDP && !t.division.Even():
		return nil, fmt.Errorf("%d processes do not divide the state-space layers' heads equally, which fsdp needs: choose another --tp_size", o.TensorSize)
	case o.Distributed == FSDP:
		if t.strategy, err = newSharded(list, mesh.Column, nil, o, wide); err != nil {
			return nil, err
		}
	case mesh.Column.Size > 1:
		t.strategy = &ddp{local: local{units: list}, group: mesh.Column, wide: wide}
	default:
		t.strategy = &local{units: list}
	}
	return t, nil
}

// tensorSize is how many processes divide each layer among them, and take the same rows.
func (o Options) tensorSize() int { return max(1, o.TensorSize) }

// sameRows is how many processes take the same rows.
func (o Options) sameRows() int {
	if o.Distributed == PP {
		return o.processes()
	}
	return o.tensorSize()
}

// rowGroup is which rows of a step this process takes: the index'th of count parts.
func (o Options) rowGroup() (index, count int) {
	return o.rank() / o.sameRows(), o.processes() / o.sameRows()
}

// finish sums what the group's processes have of the gradients of weights that all of them hold. What each has alone is
// complete.
func (t *tensorParallel) finish() {
	t.strategy.finish()
	shared := t.sharedGradients()
	if len(shared) == 0 || t.group.Size == 1 {
		return
	}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			var flat []torch.Tensor
			for _, g := range shared {
				flat = append(flat, g.To(torch.Float32))
			}
			sum, at := torch.Cat(0, flat...), 0
			t.group.AllReduce(sum, dist.Sum).Wait()
			for _, g := range shared {
				g.Copy(sum.Narrow(0, at, g.Numel()))
				at += g.Numel()
			}
		})
	})
}

// sharedGradients are the gradients, flat, of what all processes of the group hold. They belong to the innermost scope.
func (t *tensorParallel) sharedGradients() (list []torch.Tensor) {
	for _, p := range t.pieces() {
		if !p.param.RequiresGrad() {
			break // the trained ones come first
		}
		at := 0
		for _, s := range p.param.Shard.Own() {
			n := s.Count * units.Elements(p.param.Shape[1:])
			first, end := max(at, p.start), min(at+n, p.start+p.tensor.Numel())
			if at += n; !s.Replicated || first >= end {
				continue
			}
			if !p.tensor.Grad().Defined() { // a bias that another process adds
				p.tensor.SetGrad(p.tensor.Detach().ZerosLike())
			}
			list = append(list, p.tensor.Grad().View(-1).Narrow(0, first-p.start, end-first))
		}
	}
	return list
}

// agree counts once what all processes of the group hold.
func (t *tensorParallel) agree(sums []float64, norm float64) ([]float64, float64) {
	shared := 0.0
	torch.Scoped(func() { shared = torch.GlobalNorm(t.sharedGradients()) })
	_, shared = t.strategy.agree([]float64{0}, shared)
	sums, norm = t.strategy.agree(sums, norm)
	squares := t.group.Sums(norm * norm)[0] - float64(t.group.Size-1)*shared*shared
	return sums, math.Sqrt(max(0, squares))
}

func (t *tensorParallel) whole(keep bool) {
	t.strategy.whole(true) // each one's part of the layers is asked for
	t.division.Gather(keep)
}

func (t *tensorParallel) part() {
	t.division.Release()
	t.strategy.part()
}

// places calls f for the stretches that elements [from, to) of the piece consist of, with where they lie in the whole weight.
func (p piece) places(from, to int, f func(at place, from, to int)) {
	part := p.param.Shard
	switch {
	case part == nil:
		f(place{start: p.start + from}, from, to)
	case part.Dim == 0:
		row, at := units.Elements(p.param.Shape[1:]), 0
		for _, s := range part.Own() {
			first, end := max(p.start+from, at), min(p.start+to, at+s.Count*row)
			if first < end {
				f(place{start: s.First*row + first - at}, first-p.start, end-p.start)
			}
			at += s.Count * row
		}
	default: // what is left of a row, whole rows, and what is there of the last one
		s, width := part.Own()[0], p.param.Shape[1]
		for first, end := p.start+from, p.start+to; first < end; {
			row, column := first/s.Count, first%s.Count
			run := min(s.Count-column, end-first)
			n := run
			if column == 0 && run == s.Count {
				n = (end - first) / run * run
			}
			f(place{row*width + s.First + column, run, width}, first-p.start, first+n-p.start)
			first += n
		}
	}
}

// mine reports whether this process is the one to write the stretch that begins with an element of the piece: of what all
// processes of a group hold, the first one writes.
func (p piece) mine(element int) bool {
	part := p.param.Shard
	if p.copied {
		return false
	}
	if part == nil || part.Dim != 0 || part.Group.Rank == 0 {
		return true
	}
	at := (p.start + element) / units.Elements(p.param.Shape[1:])
	for _, s := range part.Own() {
		if at < s.Count {
			return !s.Replicated
		}
		at -= s.Count
	}
	return true
}

// read gives the elements at the place of a tensor of a native checkpoint.
func (at place) read(c *checkpoint.Checkpoint, name string, length int) (torch.Tensor, error) {
	if at.every == 0 {
		return c.Range(name, at.start, length)
	}
	first, rows := at.start/at.every*at.every, length/at.run
	all, err := c.Range(name, first, rows*at.every)
	if err != nil {
		return all, err
	}
	return all.View(rows, at.every).Narrow(1, at.start-first, at.run).Reshape(-1), nil
}

// CheckDivision reports a division in which the copies that several processes hold of a parameter
// would diverge: 8-bit moments and stochastic rounding depend on an element's position and on its
// neighbours, which differ between the processes.
func (o Options) CheckDivision(d *parallel.Division) error {
	if d.Mixed() && (o.Moments == optim.Int8 || o.Stochastic && !d.Even()) {
		return fmt.Errorf("8-bit moments and stochastic rounding do not work for state-space layers " +
			"whose B and C are copied to every process: keep moments in float32 or bfloat16")
	}
	return nil
}
