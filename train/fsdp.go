package train

import (
	"fmt"
	"math"
	"slices"

	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// sharded is the strategies fsdp and hsdp. The weights of a unit lie one behind the other in a flat buffer, of which each
// rank of the shard group keeps an equal part. Before a unit runs, the ranks put the parts together; behind it, the memory of
// the whole goes back. Gradients go the other way: summed over the ranks, each rank receives those of its part.
//
//	use(u, next)   wait for the weights of u; begin to gather those of next, which come while u computes
//	leave(u)       the memory of u's weights goes back
//	reduce(u)      u's gradients, flat, begin to be summed and scattered, once those of the unit before are
//
// With hsdp, the parts' gradients are then summed over the ranks of the other groups that hold the same part.
type sharded struct {
	units    [][]*flat
	shard    *dist.Group
	copies   *dist.Group // the ranks that hold the same parts; nil for fsdp
	keep     bool        // keep gathered weights from the forward pass to the backward pass
	wide     bool        // sum gradients in float32
	underway []scatter
}

// flat is the weights of one unit that have one dtype and are all trained or all frozen.
type flat struct {
	params []*nn.Param
	starts []int
	length int // of a rank's part; the whole is a little longer than the weights, so that the parts are equal

	// whole [ranks · length] is what the weights are views of; its memory is there while they are used. part is this rank's
	// part of it.
	whole, part torch.Tensor
	// Where they are trained: what is optimized and the sum of its gradients, in the same dtype. That is the float32 original of
	// part, apart from it, or part itself: of float32, and of bfloat16 that is rounded at random.
	original, gradient torch.Tensor
	apart              bool
	trained, there     bool
	gather             *dist.Work
	views              []piece
}

// scatter is gradients on their way to the ranks that hold their weights.
type scatter struct {
	to         *flat
	input, sum torch.Tensor // sum is this rank's part of input
	work       *dist.Work
}

// sharded reports whether weights are moved to where a strategy keeps them.
func (o Options) sharded() bool {
	return o.TensorSize > 0 || o.OffloadOptimizer || o.processes() > 1 && o.Distributed == PP || o.Distributed == FSDP && o.processes() > 1 || o.Distributed == HSDP && o.ShardSize > 1
}

// newSharded is the strategy of a rank among those that shard the units and those that hold the same parts. One rank alone
// shares nothing with any: it has no buffers then, unless the optimizer's state is to be elsewhere.
func newSharded(units [][]*nn.Param, shard, copies *dist.Group, o Options, wide bool) (strategy, error) {
	switch {
	case o.OffloadOptimizer:
	case shard.Size == 1 && copies != nil && copies.Size > 1:
		return &ddp{local: local{units: units}, group: copies, wide: wide}, nil
	case shard.Size == 1:
		return &local{units: units}, nil
	}
	s := &sharded{shard: shard, copies: copies, keep: o.KeepGathered, wide: wide}
	var err error
	torch.NoGrad(func() { err = s.fill(units, o) })
	if err != nil {
		s.free()
		return nil, err
	}
	return s, nil
}

func (s *sharded) fill(units [][]*nn.Param, o Options) error {
	for u, unit := range units {
		s.units = append(s.units, nil)
		for _, group := range alike(unit) {
			f, err := newFlat(group, s.shard, o)
			s.units[u] = append(s.units[u], f)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// alike groups weights that one buffer can hold.
func alike(params []*nn.Param) (groups [][]*nn.Param) {
	type kind struct {
		dtype   torch.DType
		trained bool
		shared  bool // with processes that divide the layers, whose buffers must be like this one's
	}
	at := map[kind]int{}
	for _, p := range params {
		k := kind{p.DType(), p.RequiresGrad(), p.Shard.Replicated()}
		i, ok := at[k]
		if !ok {
			i = len(groups)
			at[k] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], p)
	}
	return groups
}

// newFlat moves weights, one after the other, into a buffer and keeps this rank's part of it; where the options say so, what the
// optimizer works on in the host's memory.
func newFlat(params []*nn.Param, group *dist.Group, o Options) (f *flat, err error) {
	f = &flat{params: params, trained: params[0].RequiresGrad()}
	total := 0
	for _, p := range params {
		f.starts = append(f.starts, total)
		total += p.Numel()
	}
	const multiple = 16 // so that parts begin where vector loads like it
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
		f.part = f.whole.Narrow(0, group.Rank*f.length, f.length).Clone().Own()
		dist.Resize(f.whole, 0)
		if !f.trained {
			return
		}
		if o.OffloadOptimizer {
			device = torch.CPU
		}
		random := o.Stochastic && dtype == torch.BFloat16
		if f.apart = o.OffloadOptimizer || dtype != torch.Float32 && !random; f.apart {
			f.original = f.part.To(torch.Float32).ToDevice(device).Clone().Own()
		} else {
			f.original = f.part.Detach().Own()
		}
		f.gradient = torch.Zeros([]int{f.length}, f.original.DType(), device).Own()
	})
	if err != nil {
		return f, err
	}
	// The weights' stretches that lie in this rank's part.
	first, end := group.Rank*f.length, (group.Rank+1)*f.length
	for i, p := range params {
		from, to := max(first, f.starts[i]), min(end, f.starts[i]+p.Numel())
		if from >= to {
			continue
		}
		source := f.part
		if f.trained {
			source = f.original
		}
		torch.Scoped(func() {
			f.views = append(f.views, piece{param: p, start: from - f.starts[i], tensor: source.Narrow(0, from-first, to-from).Own()})
		})
	}
	return f, nil
}

// name is what a trace calls a unit.
func (s *sharded) name(u int) string {
	switch u {
	case 0:
		return "embedding"
	case len(s.units) - 1:
		return "head"
	}
	return fmt.Sprintf("block %d", u-1)
}

// fetch begins to gather a unit's weights, unless they are there or coming.
func (s *sharded) fetch(u int) {
	for _, f := range s.units[u] {
		if f.there || f.gather != nil {
			continue
		}
		dist.Resize(f.whole, f.whole.Numel()*f.whole.DType().Size())
		torch.Span(func() { f.gather = s.shard.AllGather(f.whole, f.part) }, "gather %s", s.name(u))
	}
}

func (s *sharded) use(u, next int) {
	s.fetch(u)
	for _, f := range s.units[u] {
		if f.gather != nil {
			f.gather.Wait()
			f.gather, f.there = nil, true
		}
	}
	if next >= 0 {
		s.fetch(next)
	}
}

func (s *sharded) leave(u int, again bool) {
	if s.keep && again {
		return
	}
	for _, f := range s.units[u] {
		if f.there {
			dist.Resize(f.whole, 0)
			f.there = false
		}
	}
}

func (s *sharded) reduce(u int, last bool) {
	s.settle() // one unit at a time is on its way
	for _, f := range s.units[u] {
		if !f.trained {
			continue
		}
		next := scatter{to: f}
		torch.NoGrad(func() {
			torch.Scoped(func() {
				next.input = torch.Zeros([]int{s.shard.Size * f.length}, reducedAs(f.params[0], s.wide), f.whole.Device()).Own()
				for i, p := range f.params {
					if g := p.Grad(); g.Defined() {
						next.input.Narrow(0, f.starts[i], p.Numel()).Copy(g.Reshape(-1))
						p.ClearGrad()
					}
				}
				next.sum = next.input.Narrow(0, s.shard.Rank*f.length, f.length).Own()
			})
		})
		torch.Span(func() { next.work = s.shard.ReduceScatter(next.sum, next.input, dist.Sum) }, "sum gradients of %s", s.name(u))
		s.underway = append(s.underway, next)
	}
}

// settle waits for the gradients that are under way and adds them up.
func (s *sharded) settle() {
	for i := range s.underway {
		g := &s.underway[i]
		g.work.Wait()
		if s.copies != nil {
			s.copies.AllReduce(g.sum, dist.Sum).Wait()
		}
		torch.NoGrad(func() { torch.Scoped(func() { g.to.gradient.AddTo(g.sum.ToDevice(g.to.gradient.Device())) }) })
		g.input.Free()
		g.sum.Free()
	}
	s.underway = nil
}

// finish hands the gradients to the pieces that are optimized.
func (s *sharded) finish() {
	s.settle()
	for _, unit := range s.units {
		for _, f := range unit {
			first := s.shard.Rank * f.length
			for _, v := range f.views {
				if f.trained {
					at := f.starts[slices.Index(f.params, v.param)] + v.start - first
					torch.Scoped(func() { v.tensor.SetGrad(f.gradient.Narrow(0, at, v.tensor.Numel())) })
				}
			}
		}
	}
}

// agree sums over the whole run. Ranks that hold the same part bring the same norm.
func (s *sharded) agree(sums []float64, norm float64) ([]float64, float64) {
	all := s.shard.Sums(append(sums, norm*norm)...)
	sums, norm = all[:len(sums)], math.Sqrt(all[len(sums)])
	if s.copies != nil {
		sums = s.copies.Sums(sums...)
	}
	return sums, norm
}

func (s *sharded) updated() {
	torch.NoGrad(func() {
		for _, unit := range s.units {
			for _, f := range unit {
				if !f.trained {
					continue
				}
				torch.Scoped(func() {
					f.gradient.Zero()
					if f.apart {
						f.part.Copy(f.original)
					}
				})
			}
		}
	})
}

func (s *sharded) whole(keep bool) {
	for u := range s.units {
		if s.use(u, -1); !keep {
			s.leave(u, false)
		}
	}
}

func (s *sharded) part() {
	for u := range s.units {
		s.leave(u, false)
	}
}

func (s *sharded) pieces() (list []piece) {
	for _, trained := range []bool{true, false} {
		for _, unit := range s.units {
			for _, f := range unit {
				if f.trained == trained {
					list = append(list, f.views...)
				}
			}
		}
	}
	return list
}

func (s *sharded) replicas() (int, int) {
	if s.copies == nil {
		return 1, 0
	}
	return s.copies.Size, s.copies.Rank
}

func (s *sharded) free() {
	for i := range s.underway { // of a step that failed
		s.underway[i].work.Forget()
		s.underway[i].input.Free()
		s.underway[i].sum.Free()
	}
	for _, unit := range s.units {
		for _, f := range unit {
			f.gather.Forget()
			for i := range f.views {
				f.views[i].tensor.Free()
			}
			f.whole.Free()
			f.part.Free()
			f.original.Free()
			f.gradient.Free()
		}
	}
	s.units = nil
}
