package train

import (
	"fmt"
	"slices"
	"strings"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
	"conquer/torch/optim"
	"conquer/train/internal/units"
)

// The strategies by which the processes of a run share its work. Each takes its own rows of every batch; what a step does to
// the weights does not depend on the strategy.
const (
	None = "none" // one process
	DDP  = "ddp"  // every process holds all weights; gradients are summed
	FSDP = "fsdp" // every process holds an equal part of each weight, its gradient and its optimizer state
	HSDP = "hsdp" // fsdp within groups of processes (a host), ddp across
)

// Strategies lists them.
var Strategies = []string{None, DDP, FSDP, HSDP, TP, PP}

// StrategyName returns the name of a strategy that has a second name: mp is pp. It returns every other name unchanged.
func StrategyName(name string) string {
	if name == "mp" {
		return PP
	}
	return name
}

// strategy is how a process's weights and gradients become those of the run. The network calls it unit by unit (see
// units.Of), in an order that is the same on every rank; model files know nothing of it.
type strategy interface {
	// use makes the weights of unit u whole, and begins to fetch those of next, the unit that follows (-1: none does).
	use(u, next int)
	// leave lets go of the weights of unit u; again: the same pass will use them once more, going backward.
	leave(u int, again bool)
	// reduce is told that the gradients of unit u are complete: for this pass, or, where last, for the step.
	reduce(u int, last bool)
	// finish waits until the gradients of what this rank optimizes are those of the run.
	finish()
	// agree makes this rank's part of a step's loss, and of what else is summed, and its gradients' norm those of the run.
	agree(sums []float64, norm float64) ([]float64, float64)
	// updated is told that the optimizer has changed the weights, or a checkpoint has.
	updated()
	// whole gives all weights to the ranks that are to keep them, and where that is easier to others; part takes away again what
	// is not this rank's.
	whole(keep bool)
	part()
	// pieces lists the parts of weights that this rank holds, the trained ones first.
	pieces() []piece
	// replicas is how many ranks hold the same pieces as this one, which of these it is.
	replicas() (count, index int)
	free()
}

// piece is a stretch of a weight's elements, in row-major order, as a rank holds it.
type piece struct {
	param *nn.Param
	start int // the first element's place in the weight
	// tensor holds them: float32 where the optimizer works on a float32 original, flat but for a whole weight.
	tensor torch.Tensor
	copied bool // another rank, which holds them too, writes them
}

// newStrategy chooses the strategy that the options name, for a model whose trained weights are known by now.
func newStrategy(m model.Model, o Options) (strategy, error) {
	list := units.Of(m)
	wide := o.ReduceDType != "same"
	if o.TensorSize > 0 {
		return newTensorParallel(m, o, wide)
	}
	switch o.Distributed {
	case DDP:
		return &ddp{local: local{units: list}, group: o.World.All, wide: wide}, nil
	case FSDP:
		return newSharded(list, o.World.All, nil, o, wide)
	case HSDP:
		mesh, err := o.World.NewMesh(o.ShardSize)
		if err != nil {
			return nil, err
		}
		return newSharded(list, mesh.Row, mesh.Column, o, wide)
	case PP:
		if o.processes() > 1 {
			return newPipeline(m, o)
		}
	}
	return &local{units: list}, nil
}

// CheckPlace reports the first option that a run of the place's processes has no room for; New checks as well.
func (o Options) CheckPlace(place dist.Place) error {
	if place.Size > 1 || o.Distributed != "" && o.Distributed != None {
		o.World = &dist.World{Place: place}
	}
	return o.complete().checkDistributed()
}

// checkDistributed reports a strategy that the world has no place for.
func (o Options) checkDistributed() error {
	switch {
	case !slices.Contains(Strategies, o.Distributed):
		return fmt.Errorf("unknown strategy %q: choose one of %s", o.Distributed, strings.Join(Strategies, ", "))
	case o.Distributed != None && o.World == nil:
		return fmt.Errorf("strategy %s is for the processes of a run, and there is no run to take part in", o.Distributed)
	case o.Distributed == None && o.World != nil && o.World.Size > 1:
		return fmt.Errorf("%d processes without a strategy would each tune a model of their own: choose ddp, fsdp, hsdp, tp or pp", o.World.Size)
	case o.Distributed == HSDP && (o.ShardSize < 1 || o.World.Size%o.ShardSize != 0):
		return fmt.Errorf("hsdp with groups of %d: that does not divide the %d processes", o.ShardSize, o.World.Size)
	case o.TensorSize < 0 || o.World != nil && o.World.Size%o.tensorSize() != 0:
		return fmt.Errorf("layers divided over %d: that does not divide the %d processes", o.TensorSize, o.World.Size)
	case o.TensorSize > 0 && (o.Distributed == None || o.Distributed == HSDP || o.Distributed == PP):
		return fmt.Errorf("layers are divided over processes with tp, ddp or fsdp, not with %s", o.Distributed)
	case o.OffloadOptimizer && o.Distributed != FSDP && o.Distributed != HSDP:
		return fmt.Errorf("the optimizer's state goes to the host's memory with fsdp or hsdp, not with %s", o.Distributed)
	case o.ReduceDType != "" && o.ReduceDType != "float32" && o.ReduceDType != "same":
		return fmt.Errorf("gradients cannot be summed in %q: choose float32 or same, the weights' own", o.ReduceDType)
	case o.ReduceDType == "same" && o.Distributed != DDP && o.Distributed != FSDP && o.Distributed != HSDP:
		return fmt.Errorf("gradients are summed in the weights' own dtype with ddp, fsdp or hsdp, not with %s", o.Distributed)
	case o.CheckpointFormat != "" && o.CheckpointFormat != FormatHF && o.CheckpointFormat != FormatNative:
		return fmt.Errorf("unknown checkpoint format %q: choose %s or %s", o.CheckpointFormat, FormatHF, FormatNative)
	case o.CheckpointFormat == FormatHF && o.OffloadOptimizer:
		return fmt.Errorf("with the optimizer's state in the host's memory, checkpoints have the format %s", FormatNative)
	case o.CheckpointFormat == FormatHF && o.World != nil && o.World.Size > 1:
		return fmt.Errorf("checkpoints of %d processes are written by all of them, in the format %s", o.World.Size, FormatNative)
	}
	return nil
}

// local is the strategy none: the weights are all here, and so are the gradients.
type local struct{ units [][]*nn.Param }

func (l *local) use(int, int)                                            {}
func (l *local) leave(int, bool)                                         {}
func (l *local) reduce(int, bool)                                        {}
func (l *local) finish()                                                 {}
func (l *local) agree(sums []float64, norm float64) ([]float64, float64) { return sums, norm }
func (l *local) updated()                                                {}
func (l *local) whole(bool)                                              {}
func (l *local) part()                                                   {}
func (l *local) replicas() (int, int)                                    { return 1, 0 }
func (l *local) free()                                                   {}

func (l *local) pieces() (list []piece) {
	for _, trained := range []bool{true, false} {
		for _, unit := range l.units {
			for _, p := range unit {
				if p.RequiresGrad() == trained {
					list = append(list, piece{param: p, tensor: p.Tensor})
				}
			}
		}
	}
	return list
}

// BucketBytes is how many bytes of gradients ddp sums at once: enough to make starting worth while, few enough that the
// sum runs beside the rest of the backward pass.
const BucketBytes = 25 << 20

// ddp is local, but for the gradients: as soon as those of some blocks are complete, a bucket of them is on its way around
// while the blocks below go backward.
type ddp struct {
	local
	group *dist.Group
	wide  bool // sum in float32

	filling []*nn.Param // with gradients that are not under way yet
	bytes   int
	buckets []bucket
}

// bucket is gradients on their way, one behind the other.
type bucket struct {
	params []*nn.Param
	sum    torch.Tensor
	work   *dist.Work
}

func (d *ddp) reduce(u int, last bool) {
	if !last {
		return // the passes of a step add up here first
	}
	for _, p := range d.units[u] {
		if p.RequiresGrad() {
			d.filling = append(d.filling, p)
			d.bytes += p.Numel() * 4
		}
	}
	if d.bytes >= BucketBytes {
		d.send()
	}
}

// send puts the gradients of the filling bucket into one tensor per dtype, and that on its way.
func (d *ddp) send() {
	byType := map[torch.DType][]*nn.Param{}
	var order []torch.DType
	for _, p := range d.filling {
		dtype := reducedAs(p, d.wide)
		if byType[dtype] == nil {
			order = append(order, dtype)
		}
		byType[dtype] = append(byType[dtype], p)
	}
	d.filling, d.bytes = nil, 0
	for _, dtype := range order {
		b := bucket{params: byType[dtype]}
		total := 0
		for _, p := range b.params {
			total += p.Numel()
		}
		torch.NoGrad(func() {
			torch.Scoped(func() {
				b.sum = torch.Empty([]int{total}, dtype, b.params[0].Device()).Own()
				at := 0
				for _, p := range b.params {
					b.sum.Narrow(0, at, p.Numel()).Copy(gradientOf(p).Reshape(-1))
					p.ClearGrad() // it is in the bucket now
					at += p.Numel()
				}
			})
		})
		b.work = d.group.AllReduce(b.sum, dist.Sum)
		d.buckets = append(d.buckets, b)
	}
}

func (d *ddp) finish() {
	d.send()
	for i := range d.buckets {
		b := &d.buckets[i]
		b.work.Wait()
		torch.Scoped(func() {
			at := 0
			for _, p := range b.params {
				n := p.Numel()
				p.SetGrad(b.sum.Narrow(0, at, n).View(p.Tensor.Shape()...))
				at += n
			}
		})
		b.sum.Free()
	}
	d.buckets = nil
}

func (d *ddp) agree(sums []float64, norm float64) ([]float64, float64) {
	return d.group.Sums(sums...), norm
}
func (d *ddp) replicas() (int, int) { return d.group.Size, d.group.Rank }

func (d *ddp) free() {
	for i := range d.buckets { // of a step that failed
		d.buckets[i].work.Forget()
		d.buckets[i].sum.Free()
	}
}

// reducedAs is the dtype in which p's gradients are summed.
func reducedAs(p *nn.Param, wide bool) torch.DType {
	if wide {
		return torch.Float32
	}
	return p.DType()
}

// gradientOf is p's gradient, zeros where no token reached it.
func gradientOf(p *nn.Param) torch.Tensor {
	if g := p.Grad(); g.Defined() {
		return g
	}
	return torch.Zeros(p.Tensor.Shape(), p.DType(), p.Device())
}

// parameters names the optimizer's share of the weights: the trained pieces, each under its weight's name.
func parameters(s strategy, names map[*nn.Param]string, o Options) (list []optim.Param, held []piece) {
	for _, p := range s.pieces() {
		if name, ok := names[p.param]; ok {
			list = append(list, optim.Param{Name: name, Tensor: p.tensor, NoDecay: o.spares(name, p.param.Shape)})
			held = append(held, p)
		}
	}
	return list, held
}
