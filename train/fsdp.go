package train

import (
	"fmt"
	"math"
	"slices"

	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/train/internal/network"
)

// sharded implements the strategies fsdp and hsdp. The parameters of a unit are laid out in flat
// parameters, of which each process of the sharding group keeps an equal shard. Before a unit runs,
// the processes gather the whole; afterwards its memory is freed. Gradients are summed over the
// processes and scattered, so that each receives those of its shard.
//
//	gather(u, next)  waits for the parameters of u and starts to gather next, while u computes
//	release(u)       frees the gathered parameters of u
//	reduce(u)        starts to sum and scatter the gradients of u, after those of the previous unit
//
// Frozen weights in quantized blocks belong to no flat parameter: every process holds them whole.
//
// With hsdp, the gradients of a shard are then summed over the processes that hold the same shard
// in other groups.
type sharded struct {
	units    [][]*flatParameter
	shard    *dist.Group
	copies   *dist.Group // the processes that hold the same shards; nil for fsdp
	keep     bool        // keep gathered parameters from the forward to the backward pass
	wide     bool        // sum gradients in float32
	transfer []scatter   // in progress
}

// flatParameter holds the parameters of one unit that have one dtype and are all trained or all
// frozen.
type flatParameter struct {
	params []*nn.Param
	starts []int
	length int // of a shard; the whole is padded, so that the shards are equal

	// whole [processes · length] has the parameters as views. Its memory exists only while they are
	// gathered. shard is this process's part of it.
	whole, shard torch.Tensor
	// If the parameters are trained: what the optimizer works on, and the sum of its gradients in
	// the same dtype. master is a float32 copy of shard, or shard itself if that is float32, or
	// bfloat16 with stochastic rounding.
	master, gradient torch.Tensor
	separate         bool // master is a copy
	trained          bool
	gathered         bool
	gathering        *dist.Work
	views            []fragment
}

// scatter is a transfer of gradients to the processes that hold their shards.
type scatter struct {
	to         *flatParameter
	input, sum torch.Tensor // sum is this process's part of input
	work       *dist.Work
}

// newSharded returns the strategy of a process in a group that shards the units and a group that
// holds the same shards. A sharding group of one process needs no flat parameters, unless the
// optimizer's state is in host memory.
func newSharded(
	list [][]*nn.Param, shard, copies *dist.Group, o Options, wide bool,
) (strategy, error) {
	switch {
	case o.OffloadOptimizer:
	case shard.Size == 1 && copies != nil && copies.Size > 1:
		return &ddp{local: local{units: list}, group: copies, wide: wide}, nil
	case shard.Size == 1:
		return &local{units: list}, nil
	}
	s := &sharded{shard: shard, copies: copies, keep: o.KeepGathered, wide: wide}
	var err error
	torch.NoGrad(func() { err = s.fill(list, o) })
	if err != nil {
		s.free()
		return nil, err
	}
	return s, nil
}

func (s *sharded) fill(list [][]*nn.Param, o Options) error {
	for u, unit := range list {
		s.units = append(s.units, nil)
		for _, group := range groupByKind(unit) {
			f, err := newFlatParameter(group, s.shard, o)
			s.units[u] = append(s.units[u], f)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// groupByKind groups the parameters that one flat parameter can hold.
func groupByKind(params []*nn.Param) (groups [][]*nn.Param) {
	type kind struct {
		dtype      torch.DType
		trained    bool
		replicated bool // in a tensor-parallel group: its processes need equal flat parameters
	}
	index := map[kind]int{}
	for _, p := range params {
		if p.InBlocks() {
			continue
		}
		k := kind{p.DType(), p.RequiresGrad(), p.Shard.Replicated()}
		i, ok := index[k]
		if !ok {
			i = len(groups)
			index[k] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], p)
	}
	return groups
}

// newFlatParameter moves parameters into a flat parameter and keeps this process's shard of it.
func newFlatParameter(
	params []*nn.Param, group *dist.Group, o Options,
) (f *flatParameter, err error) {
	f = &flatParameter{params: params, trained: params[0].RequiresGrad()}
	total := 0
	for _, p := range params {
		f.starts = append(f.starts, total)
		total += p.Numel()
	}
	const multiple = 16 // aligns shards for vector loads
	f.length = (total + group.Size*multiple - 1) / (group.Size * multiple) * multiple
	dtype, device := params[0].DType(), params[0].Device()
	torch.Scoped(func() {
		f.whole = torch.Zeros([]int{group.Size * f.length}, dtype, device).Own()
		for i, p := range params {
			view := f.whole.Narrow(0, f.starts[i], p.Numel()).View(p.Local()...)
			if err = p.Move(view); err != nil {
				return
			}
		}
		f.shard = f.whole.Narrow(0, group.Rank*f.length, f.length).Clone().Own()
		dist.Resize(f.whole, 0)
		if f.trained {
			f.addMaster(o)
		}
	})
	if err == nil {
		f.addViews(group)
	}
	return f, err
}

// addMaster allocates what the optimizer works on.
func (f *flatParameter) addMaster(o Options) {
	dtype, device := f.shard.DType(), f.shard.Device()
	if o.OffloadOptimizer {
		device = torch.CPU
	}
	stochastic := o.Stochastic && dtype == torch.BFloat16
	if f.separate = o.OffloadOptimizer || dtype != torch.Float32 && !stochastic; f.separate {
		f.master = f.shard.To(torch.Float32).ToDevice(device).Clone().Own()
	} else {
		f.master = f.shard.Detach().Own()
	}
	f.gradient = torch.Zeros([]int{f.length}, f.master.DType(), device).Own()
}

// addViews adds a fragment for each parameter that this process's shard contains a part of.
func (f *flatParameter) addViews(group *dist.Group) {
	first, end := group.Rank*f.length, (group.Rank+1)*f.length
	source := f.shard
	if f.trained {
		source = f.master
	}
	for i, p := range f.params {
		from, to := max(first, f.starts[i]), min(end, f.starts[i]+p.Numel())
		if from >= to {
			continue
		}
		torch.Scoped(func() {
			f.views = append(f.views, fragment{
				param:  p,
				start:  from - f.starts[i],
				tensor: source.Narrow(0, from-first, to-from).Own(),
			})
		})
	}
}

// name is a unit's name in a trace.
func (s *sharded) name(u int) string {
	switch u {
	case 0:
		return "embedding"
	case len(s.units) - 1:
		return "head"
	}
	return fmt.Sprintf("block %d", u-1)
}

// startGather starts to gather a unit, unless it is gathered already.
func (s *sharded) startGather(u int) {
	for _, f := range s.units[u] {
		if f.gathered || f.gathering != nil {
			continue
		}
		dist.Resize(f.whole, f.whole.Numel()*f.whole.DType().Size())
		torch.Span(func() { f.gathering = s.shard.AllGather(f.whole, f.shard) }, "gather %s",
			s.name(u))
	}
}

func (s *sharded) Gather(u, next int) {
	s.startGather(u)
	for _, f := range s.units[u] {
		if f.gathering != nil {
			f.gathering.Wait()
			f.gathering, f.gathered = nil, true
		}
	}
	if next >= 0 {
		s.startGather(next)
	}
}

func (s *sharded) Release(u int, again bool) {
	if s.keep && again {
		return
	}
	for _, f := range s.units[u] {
		if f.gathered {
			dist.Resize(f.whole, 0)
			f.gathered = false
		}
	}
}

func (s *sharded) Reduce(u int, last bool) {
	s.finishTransfer() // one unit at a time
	for _, f := range s.units[u] {
		if !f.trained {
			continue
		}
		t := scatter{to: f}
		torch.NoGrad(func() {
			torch.Scoped(func() {
				dtype := reducedAs(f.params[0], s.wide)
				t.input = torch.Zeros([]int{s.shard.Size * f.length}, dtype, f.whole.Device()).Own()
				for i, p := range f.params {
					if g := p.Grad(); g.Defined() {
						t.input.Narrow(0, f.starts[i], p.Numel()).Copy(g.Reshape(-1))
						p.ClearGrad()
					}
				}
				t.sum = t.input.Narrow(0, s.shard.Rank*f.length, f.length).Own()
			})
		})
		torch.Span(func() { t.work = s.shard.ReduceScatter(t.sum, t.input, dist.Sum) },
			"sum gradients of %s", s.name(u))
		s.transfer = append(s.transfer, t)
	}
}

// finishTransfer waits for the gradients in transfer and adds them to the sums.
func (s *sharded) finishTransfer() {
	for i := range s.transfer {
		t := &s.transfer[i]
		t.work.Wait()
		if s.copies != nil {
			s.copies.AllReduce(t.sum, dist.Sum).Wait()
		}
		torch.NoGrad(func() {
			torch.Scoped(func() { t.to.gradient.AddTo(t.sum.ToDevice(t.to.gradient.Device())) })
		})
		t.input.Free()
		t.sum.Free()
	}
	s.transfer = nil
}

// each calls visit for every flat parameter.
func (s *sharded) each(visit func(*flatParameter)) {
	for _, unit := range s.units {
		for _, f := range unit {
			visit(f)
		}
	}
}

func (s *sharded) finishReduce() {
	s.finishTransfer()
	s.each(func(f *flatParameter) {
		if !f.trained {
			return
		}
		first := s.shard.Rank * f.length
		for _, v := range f.views {
			at := f.starts[slices.Index(f.params, v.param)] + v.start - first
			torch.Scoped(func() { v.tensor.SetGrad(f.gradient.Narrow(0, at, v.tensor.Numel())) })
		}
	})
}

func (s *sharded) step(
	n *network.Network, batches []network.MakeBatch, divisor float64, r *network.Results,
) {
	n.Step(batches, divisor, r)
}

func (s *sharded) infer(n *network.Network, mb network.MicroBatch, head func(torch.Tensor)) {
	n.Infer(mb, head)
}

// combine sums over the run. Processes that hold the same shard have the same norm.
func (s *sharded) combine(sums []float64, norm float64) ([]float64, float64) {
	all := s.shard.Sums(append(sums, norm*norm)...)
	sums, norm = all[:len(sums)], math.Sqrt(all[len(sums)])
	if s.copies != nil {
		sums = s.copies.Sums(sums...)
	}
	return sums, norm
}

func (s *sharded) updated() {
	torch.NoGrad(func() {
		s.each(func(f *flatParameter) {
			if !f.trained {
				return
			}
			torch.Scoped(func() {
				f.gradient.Zero()
				if f.separate {
					f.shard.Copy(f.master)
				}
			})
		})
	})
}

func (s *sharded) gatherAll(keep bool) {
	for u := range s.units {
		if s.Gather(u, -1); !keep {
			s.Release(u, false)
		}
	}
}

func (s *sharded) releaseAll() {
	for u := range s.units {
		s.Release(u, false)
	}
}

func (s *sharded) fragments() (list []fragment) {
	for _, trained := range []bool{true, false} {
		s.each(func(f *flatParameter) {
			if f.trained == trained {
				list = append(list, f.views...)
			}
		})
	}
	return list
}

func (s *sharded) replicas() (int, int) {
	if s.copies == nil {
		return 1, 0
	}
	return s.copies.Size, s.copies.Rank
}

func (s *sharded) stages() int  { return 1 }
func (s *sharded) single() bool { return false }

func (s *sharded) free() {
	for i := range s.transfer { // of a step that failed
		s.transfer[i].work.Forget()
		s.transfer[i].input.Free()
		s.transfer[i].sum.Free()
	}
	s.each(func(f *flatParameter) {
		f.gathering.Forget()
		for i := range f.views {
			f.views[i].tensor.Free()
		}
		f.whole.Free()
		f.shard.Free()
		f.master.Free()
		f.gradient.Free()
	})
	s.units = nil
}
