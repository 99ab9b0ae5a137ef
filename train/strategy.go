package train

import (
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/internal/network"
)

// strategy turns the parameters and gradients of one process into those of the run. Its embedded
// methods Gather, Release and Reduce are called by the network, unit by unit. Models know nothing
// of it.
type strategy interface {
	network.Strategy
	// finishReduce waits until the gradients of this process's fragments are those of the run.
	finishReduce()

	// step runs the micro-batches of a step forward and backward, and adds their numbers to r.
	step(n *network.Network, batches []network.MakeBatch, divisor float64, r *network.Results)
	// infer runs a micro-batch forward without gradients, and calls head with the last hidden
	// states [B,L,D] on the process that holds the head.
	infer(n *network.Network, mb network.MicroBatch, head func(hidden torch.Tensor))
	// combine turns this process's part of sums, and the norm of its gradients, into those of the
	// run.
	combine(sums []float64, norm float64) ([]float64, float64)
	// updated is called after the optimizer or a checkpoint changed the fragments.
	updated()

	// gatherAll makes all parameters complete: on every process that sets keep, which one process
	// at least does.
	gatherAll(keep bool)
	// releaseAll undoes gatherAll.
	releaseAll()
	// fragments lists what this process holds of the parameters, the trained ones first.
	fragments() []fragment
	// replicas is the number of processes that hold the same fragments, and the index of this one
	// among them.
	replicas() (count, index int)
	// stages is the number of pipeline stages, 1 without a pipeline.
	stages() int
	// single reports whether this process holds all parameters, unsharded, and no other process
	// takes part.
	single() bool
	free()
}

// local is the strategy of one process: it holds all parameters and their gradients.
type local struct{ units [][]*nn.Param }

func (l *local) Gather(int, int)   {}
func (l *local) Release(int, bool) {}
func (l *local) Reduce(int, bool)  {}
func (l *local) finishReduce()     {}
func (l *local) updated()          {}
func (l *local) gatherAll(bool)    {}
func (l *local) releaseAll()       {}
func (l *local) free()             {}

func (l *local) step(
	n *network.Network, batches []network.MakeBatch, divisor float64, r *network.Results,
) {
	n.Step(batches, divisor, r)
}

func (l *local) infer(n *network.Network, mb network.MicroBatch, head func(torch.Tensor)) {
	n.Infer(mb, head)
}

func (l *local) combine(sums []float64, norm float64) ([]float64, float64) { return sums, norm }

func (l *local) fragments() []fragment { return wholeFragments(l.units) }
func (l *local) replicas() (int, int)  { return 1, 0 }
func (l *local) stages() int           { return 1 }
func (l *local) single() bool          { return true }
