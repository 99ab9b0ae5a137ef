package train

import (
	"fmt"
	"math"

	"conquer/model"
	"conquer/parallel"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/train/internal/units"
)

// tensorParallel divides each layer within a group of processes. Another strategy works over the
// groups.
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
		return nil, fmt.Errorf(
			"%d processes do not divide the heads of the state-space layers equally, "+
				"which fsdp needs: choose another --tp_size",
			o.TensorSize,
		)
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

// finishReduce also sums the gradients of rows that every process of the group holds. Gradients of
// divided rows are complete.
func (t *tensorParallel) finishReduce() {
	t.strategy.finishReduce()
	replicated := t.replicatedGradients()
	if len(replicated) == 0 || t.group.Size == 1 {
		return
	}
	torch.NoGrad(func() {
		torch.Scoped(func() {
			var wide []torch.Tensor
			for _, g := range replicated {
				wide = append(wide, g.To(torch.Float32))
			}
			sum, at := torch.Cat(0, wide...), 0
			t.group.AllReduce(sum, dist.Sum).Wait()
			for _, g := range replicated {
				g.Copy(sum.Narrow(0, at, g.Numel()))
				at += g.Numel()
			}
		})
	})
}

// replicatedGradients lists the gradients, one-dimensional, of rows that every process of the group
// holds. They belong to the innermost scope.
func (t *tensorParallel) replicatedGradients() (list []torch.Tensor) {
	for _, f := range t.fragments() {
		if !f.param.RequiresGrad() {
			break // trained fragments come first
		}
		held := 0
		for _, r := range f.param.Shard.Own() {
			n := r.Count * units.Elements(f.param.Shape[1:])
			first, end := max(held, f.start), min(held+n, f.start+f.tensor.Numel())
			if held += n; !r.Replicated || first >= end {
				continue
			}
			if !f.tensor.Grad().Defined() { // a bias that another process adds
				f.tensor.SetGrad(f.tensor.Detach().ZerosLike())
			}
			list = append(list, f.tensor.Grad().View(-1).Narrow(0, first-f.start, end-first))
		}
	}
	return list
}

// combine counts rows that every process of the group holds once.
func (t *tensorParallel) combine(sums []float64, norm float64) ([]float64, float64) {
	replicated := 0.0
	torch.Scoped(func() { replicated = torch.GlobalNorm(t.replicatedGradients()) })
	_, replicated = t.strategy.combine([]float64{0}, replicated)
	sums, norm = t.strategy.combine(sums, norm)
	squares := t.group.Sums(norm * norm)[0] - float64(t.group.Size-1)*replicated*replicated
	return sums, math.Sqrt(max(0, squares))
}

func (t *tensorParallel) gatherAll(keep bool) {
	t.strategy.gatherAll(true) // the division gathers from every process's shard
	t.division.Gather(keep)
}

func (t *tensorParallel) releaseAll() {
	t.division.Release()
	t.strategy.releaseAll()
}

func (t *tensorParallel) single() bool { return false }
