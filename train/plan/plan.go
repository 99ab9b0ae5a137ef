// Package plan predicts the memory and the time of a training step from sizes, without weights and
// without a GPU.
package plan

import (
	"fmt"
	"math"
	"slices"

	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/optim"
	"conquer/train"
	"conquer/train/internal/units"
)

// Machine describes the hardware of a run. Rates are what a long GEMM or copy sustains, not data
// sheet values.
type Machine struct {
	GPUs     int     `json:"gpus"`          // in total
	PerHost  int     `json:"gpus_per_host"` // connected by the fast link
	Memory   float64 `json:"memory_gb"`     // of one GPU, in 1e9 bytes
	Rate     float64 `json:"tflops"`        // of GEMMs, in 1e12 operations per second
	Transfer float64 `json:"memory_gb_s"`   // of GPU memory, in 1e9 bytes per second
	Link     float64 `json:"link_gb_s"`     // between two GPUs of a host, each way
	Network  float64 `json:"network_gb_s"`  // between hosts, per GPU, each way
	Host     float64 `json:"host_gb_s"`     // of host memory and the bus to it, per GPU
}

// check returns an error if the machine is not possible.
func (m Machine) check() error {
	switch {
	case m.GPUs < 1:
		return fmt.Errorf("%d GPUs: a plan needs at least 1", m.GPUs)
	case m.PerHost < 1:
		return fmt.Errorf("%d GPUs per host: expected at least 1", m.PerHost)
	case m.GPUs > m.PerHost && m.GPUs%m.PerHost != 0:
		return fmt.Errorf("%d GPUs do not fill hosts of %d", m.GPUs, m.PerHost)
	}
	for name, rate := range map[string]float64{
		"memory_gb": m.Memory, "tflops": m.Rate, "memory_gb_s": m.Transfer,
		"link_gb_s": m.Link, "network_gb_s": m.Network, "host_gb_s": m.Host,
	} {
		const least, most = 1e-6, 1e12 // beyond them, times are not finite
		if !(rate >= least && rate <= most) {
			return fmt.Errorf("%s is %v, expected a number from %g to %g", name, rate, least, most)
		}
	}
	return nil
}

// Plan predicts what a training step needs of each GPU under one strategy. Memory is in bytes, time
// in seconds. Under pipeline parallelism, memory is of the fullest GPU and compute time of the
// slowest.
type Plan struct {
	Strategy    string  `json:"strategy"`
	Weights     float64 `json:"weights"`
	Gradients   float64 `json:"gradients"`
	Optimizer   float64 `json:"optimizer"`
	Activations float64 `json:"activations"`
	// Buffers are temporary: gathered weights, the loss's logits, gradients inside a block.
	Buffers float64 `json:"buffers"`
	// Peak is the most memory in use at one moment. It is less than the sum of the parts, because
	// activations are freed while gradients are created.
	Peak float64 `json:"peak"`
	Fits bool    `json:"fits"`
	// Host is kept in host memory, with [Options].OffloadOptimizer.
	Host float64 `json:"host,omitempty"`
	// Refused says why the model cannot be trained with this strategy. The numbers are then 0.
	Refused string `json:"refused,omitempty"`

	// Compute is the time of GEMMs, including recomputation, and of the optimizer's memory traffic.
	Compute       float64 `json:"compute_s"`
	Communication float64 `json:"communication_s"` // without overlap
	Step          float64 `json:"step_s"`
	Tokens        float64 `json:"tokens_per_second"` // of all GPUs
}

// Options are the options of a run that a plan depends on. Fields without a comment are as in
// [train.Options].
type Options struct {
	BatchSize      int // rows of a forward pass of one GPU, or of one tensor-parallel group
	SequenceLength int
	Accumulate     int
	DType          torch.DType // of the weights
	Recompute      train.Recompute
	LoRA           *lora.Config // nil trains all weights
	HeadOnly       bool
	TensorSize     int // GPUs that divide each layer, with tp; 0 for those of a host
	// ContextSize is the number of GPUs that each row is cut over; 0 means 1.
	ContextSize int
	Optimizer   string
	Moments     string
	Stochastic  bool
	// OffloadOptimizer is supported by fsdp and hsdp only.
	OffloadOptimizer bool
	// CPU says that the run has no GPU: a layer of 16-bit weights then keeps its input in float32
	// for each adapter.
	CPU bool
	// Quantized are the frozen weights that stay quantized beside an adapter. Every GPU holds all
	// of them, except under tp and pp, which convert them to DType.
	Quantized Quantized
}

// Quantized counts quantized weights.
type Quantized struct {
	Numbers float64 // how many weights they are
	Bytes   float64 // their size on a GPU
}

// run returns the options of a training run with o.
func (o Options) run() train.Options {
	adapter := o.LoRA
	if adapter != nil && adapter.Alpha == 0 { // a plan does not depend on the scale
		scaled := *adapter
		scaled.Alpha = 1
		adapter = &scaled
	}
	return train.Options{
		Steps: 1, Rate: 1, BatchSize: o.BatchSize, SequenceLength: o.SequenceLength,
		Accumulate: o.Accumulate, Recompute: o.Recompute, LoRA: adapter, HeadOnly: o.HeadOnly,
		Optimizer: o.Optimizer, Moments: o.Moments, Stochastic: o.Stochastic,
		OffloadOptimizer: o.OffloadOptimizer,
	}
}

// micro is the number of micro-batches of a step.
func (o Options) micro() int { return max(1, o.Accumulate) }

// tokens is the number of tokens of a micro-batch.
func (o Options) tokens() float64 {
	return float64(o.BatchSize*o.SequenceLength) / float64(max(1, o.ContextSize))
}

// hidden is the size in bytes of the hidden states of a micro-batch, [B,L,D].
func (o Options) hidden(
	width float64,
) float64 {
	return o.tokens() * width * float64(o.DType.Size())
}

// stochastic reports whether weights are rounded stochastically, without master weights.
func (o Options) stochastic() bool {
	return o.Stochastic && o.DType == torch.BFloat16 && o.LoRA == nil
}

const offloadRefused = "the optimizer's state can be kept in host memory with fsdp and hsdp only"

// Predict returns a plan for each strategy that the machine allows: none or ddp, fsdp, hsdp, tensor
// parallelism, and pipeline parallelism. m needs no weights.
func Predict(m model.Model, o Options, machine Machine) ([]Plan, error) {
	if err := o.run().Check(); err != nil {
		return nil, err
	}
	if o.LoRA != nil {
		if err := o.LoRA.CheckModel(m); err != nil {
			return nil, err
		}
	}
	if size := o.TensorSize; size < 0 ||
		size > 0 && (machine.GPUs%size != 0 || machine.PerHost%size != 0) {
		return nil, fmt.Errorf(
			"layers divided over %d GPUs: this does not divide %d GPUs, or hosts of %d", size,
			machine.GPUs, machine.PerHost)
	}
	if err := machine.check(); err != nil {
		return nil, err
	}
	if o.ContextSize < 0 || o.ContextSize > 1 && o.TensorSize > 1 {
		return nil, fmt.Errorf("rows cut over %d GPUs: expected 1 or more, and no layers divided "+
			"over GPUs", o.ContextSize)
	}
	s := measure(m, o, 0, len(m.Blocks()))
	var plans []Plan
	if o.ContextSize > 1 {
		return s.contextPlans(m, o, machine)
	}
	for _, strategy := range dataParallel(o, machine) {
		plans = append(plans, s.plan(strategy, o, machine))
	}
	plans = append(plans, tensorParallelPlans(m, o, machine)...)
	switch {
	case machine.GPUs == 1:
	case o.Stochastic && units.Tied(m): // train refuses it too
		plans = append(
			plans,
			Plan{Strategy: train.PP, Refused: "the first and the last GPU would round " +
				"the embedding, which is also the head, with different random numbers"},
		)
	default:
		plans = append(plans, pipelinePlan(m, o, machine))
	}
	for i, p := range plans { // train refuses it too
		whole := slices.Contains([]string{train.None, train.DDP, train.PP}, p.Strategy)
		if !whole && o.Optimizer == optim.Muon {
			plans[i] = Plan{Strategy: p.Strategy, Refused: "Muon needs whole matrices"}
		}
	}
	return plans, nil
}

// dataParallel lists the strategies without divided layers that differ from each other on the
// machine.
func dataParallel(o Options, machine Machine) (list []string) {
	if machine.GPUs == 1 {
		if list = []string{train.None}; o.OffloadOptimizer {
			list = append(list, train.FSDP)
		}
		return list
	}
	list = []string{train.DDP, train.FSDP}
	if machine.GPUs > machine.PerHost {
		list = append(list, train.HSDP)
	}
	return list
}

// prediction is a plan in the making, with the quantities that its parts share.
type prediction struct {
	Plan
	s       sizes
	o       Options
	machine Machine

	gpus, inHost, hosts float64
	shards              float64 // GPUs that the state is divided over
	weight, trained     float64 // bytes of an element of a frozen and of a trained parameter
	moments             float64 // bytes of AdamW's moments before sharding
}

// plan predicts a step under a strategy that does not divide layers further than s has them.
func (s sizes) plan(strategy string, o Options, machine Machine) Plan {
	if o.OffloadOptimizer && strategy != train.FSDP && strategy != train.HSDP {
		return Plan{Strategy: strategy, Refused: offloadRefused}
	}
	p := prediction{Plan: Plan{Strategy: strategy}, s: s, o: o, machine: machine, shards: 1}
	p.gpus, p.inHost = float64(machine.GPUs), float64(min(machine.GPUs, machine.PerHost))
	p.hosts = p.gpus / p.inHost
	switch strategy {
	case train.FSDP:
		p.shards = p.gpus
	case train.HSDP:
		p.shards = p.inHost
	}
	p.weight = float64(o.DType.Size())
	if p.trained = p.weight; o.LoRA != nil {
		p.trained = 4 // adapters are float32
	}
	p.state()
	p.memory()
	p.time()
	return p.Plan
}

// sharded reports whether the state is divided over GPUs.
func (p *prediction) sharded() bool {
	return p.Strategy == train.FSDP || p.Strategy == train.HSDP
}

// quantized are the weights that the GPU holds quantized.
func (p *prediction) quantized() Quantized {
	if p.o.LoRA == nil || p.s.divided {
		return Quantized{}
	}
	return p.o.Quantized
}

// share is the fraction of the weights that is trained.
func (p *prediction) share() float64 { return math.Min(1, p.s.trained/p.s.all) }

// state predicts what is held between two steps.
func (p *prediction) state() {
	n, random := p.s.trained, p.o.stochastic()
	p.Weights = (p.s.all-p.quantized().Numbers)*p.weight/p.shards + p.quantized().Bytes
	if p.o.LoRA != nil {
		p.Weights += (n - p.s.saved) * p.trained / p.shards
	}
	p.Gradients = n * p.trained / p.shards
	moments := p.o.Moments
	if random && moments != optim.Int8 {
		moments = optim.BFloat16
	}
	p.moments = optim.MomentBytes(p.o.Optimizer, moments, n)
	if p.o.Optimizer == optim.Muon && p.o.LoRA == nil {
		p.moments = optim.MomentBytes(optim.Muon, moments, p.s.matrices) +
			optim.MomentBytes(optim.AdamW, moments, n-p.s.matrices)
	}
	p.Optimizer = p.moments / p.shards
	if p.trained < 4 && !random {
		p.Optimizer += n * 4 / p.shards // master weights
	}
	if p.trained > p.weight { // weights of 16 bits beside an adapter
		p.Gradients -= p.s.saved * (p.trained - p.weight) / p.shards
		p.Optimizer += p.s.saved * 4 / p.shards
	}
	switch {
	case p.sharded() && random: // summed in the weights' dtype, whatever the dtype of the transfers
		p.Gradients = n * 2 / p.shards
	case p.sharded(), p.Strategy == train.DDP:
		p.Gradients = n * 4 / p.shards // summed in float32
	}
	if p.o.OffloadOptimizer {
		p.Host = (8*n + p.moments) / p.shards
		p.Gradients, p.Optimizer = 0, 0
	}
}

// working holds the sizes in bytes of what a forward and a backward pass create.
type working struct {
	block      float64 // activations of one block
	flight     float64 // activations that a micro-batch keeps
	again      float64 // activations that a block recomputes at the start of its backward pass
	logits     float64 // of the loss
	unrecorded float64 // of a block that runs without recording gradients
	backward   float64 // gradients inside a block
}

func (p *prediction) working() (w working) {
	tokens, active := p.o.tokens(), float64(p.s.active)
	w.block = tokens * p.s.activation * p.weight
	w.block += (p.s.joined + p.s.mask) / math.Max(1, active)
	w.flight = w.block * active
	switch p.o.Recompute {
	case train.RecomputeBlock:
		w.flight, w.again = tokens*p.s.stream*p.weight*active, w.block
	case train.RecomputeSelective:
		w.again = tokens * p.s.cheap * p.weight
		w.flight -= w.again * active
	}
	slice := func(size float64) float64 { // of the vocabulary
		return math.Min(min(tokens, 1024)*p.s.vocabulary*size,
			math.Max(64<<20, 64*p.s.vocabulary*size))
	}
	switch {
	case p.s.vocabulary == 0: // another stage has the head
	case p.s.divided: // in float32, twice
		w.logits = 2*slice(4) + 4*tokens*p.s.width*p.weight
	default:
		w.logits = slice(p.weight) + 4*tokens*p.s.width*p.weight
	}
	if p.s.active < p.s.blocks {
		w.unrecorded = w.block + tokens*p.s.outputs*p.weight
	}
	if p.s.active > 0 {
		w.backward = 1.5 * tokens * p.s.widest * p.weight
	}
	if p.o.LoRA != nil { // the components of a layer, the adapters' outputs, and their sums
		w.backward *= 2
		if p.o.LoRA.DoRA { // the sum of a weight and its adapter, and its squares
			w.backward += 8 * p.s.largest
		}
	}
	return w
}

// memory predicts the peak. The fullest moment is the loss, or the first block of the backward
// pass, or the last one, when all gradients exist and activations are gone. A later forward pass of
// the same step meets all gradients.
func (p *prediction) memory() {
	w, micro := p.working(), float64(p.o.micro())
	p.Activations = w.flight * p.s.inFlight
	headGradient, blockGradient := p.s.head*p.weight, p.s.block*p.trained*p.share()
	early := math.Max(w.logits, math.Max(w.unrecorded, w.again+w.backward+blockGradient))
	if q := p.quantized(); q.Numbers > 0 { // of which one at a time is unpacked
		early += math.Min(p.s.largest*p.weight, unpacked)
	}
	late := p.Gradients + math.Min(w.block, p.Activations+w.again) + w.backward
	fullest := math.Max(p.Activations+headGradient+early, late)
	if p.Strategy == train.DDP { // a bucket fills while the next block's gradients exist
		late += math.Min(train.BucketBytes/4+p.s.block, p.s.trained) * p.trained
		fullest = math.Max(fullest, late)
	}
	if p.o.Accumulate > 1 {
		// A weight's new gradient is complete before it is added to the accumulated one.
		later := p.s.trained*p.trained +
			math.Max(w.logits+headGradient, w.again+w.backward+p.s.largest*p.trained*p.share())
		if micro > p.s.inFlight {
			fullest = math.Max(late, p.Activations+later)
		} else { // every micro-batch is in flight before the first gradients exist
			fullest = math.Max(fullest, p.Activations-w.flight+later)
		}
	}
	p.Buffers = early
	if p.sharded() {
		p.Buffers = p.shardedBuffers(w)
		fullest = p.Gradients + p.Activations + p.Buffers
	}
	p.Peak = p.Weights + p.Optimizer + fullest
	p.Fits = p.Peak <= p.machine.Memory*1e9
}

// shardedBuffers is the most that a sharded process holds besides its shards and the activations of
// a forward pass: gathered weights, and gradients that are not reduced yet, both as computed and as
// sent.
func (p *prediction) shardedBuffers(w working) float64 {
	share, backward := p.share(), w.again+w.backward
	plain := 1 - p.quantized().Numbers/p.s.all // the part of the weights that is gathered
	block, head := p.s.block*p.weight*plain, p.s.after*p.weight*plain
	blockGradient, blockSent := p.s.block*share*p.trained, p.s.block*share*4
	headGradient, headSent := p.s.head*p.weight, p.s.head*4
	waiting := 0.0 // for the embedding's gradient
	if p.s.after == 0 {
		head, waiting, headSent = p.s.embedding*p.weight*plain, headGradient, 0
	}
	// Activations of a block, and of the block that runs backward.
	one, passing := w.block, 0.0
	if p.o.Recompute == train.RecomputeSelective {
		one -= w.again
	}
	if p.s.active > 0 {
		passing = math.Min(p.Activations, one)
	}
	last := waiting + headSent + backward + blockGradient // while the last block runs backward
	first := waiting + blockSent + backward + blockGradient - (p.Activations - passing)
	moments := []float64{
		2*block + w.unrecorded,                      // forward
		block + head + headGradient + w.logits,      // the loss
		block + headGradient + headSent,             // the head's gradient is sent
		2*block + last,                              // the last block
		block + waiting + blockGradient + blockSent, // its gradient is sent
		block + first,                               // the first block
	}
	if p.s.trained == p.s.all { // finally the embedding's gradient
		moments = append(moments, p.s.embedding*(p.weight+4)-p.Activations)
	}
	most := slices.Max(moments)
	if plain < 1 {
		most += math.Min(p.s.largest*p.weight, unpacked)
	}
	return most
}

// unpacked is the most that a GPU unpacks of a quantized weight at a time.
const unpacked = 256 << 20

// time predicts the seconds of a step.
func (p *prediction) time() {
	o, machine := p.o, p.machine
	micro, tokens, n := float64(o.micro()), o.tokens(), p.s.trained
	p.Compute = micro * p.s.operations(o.Recompute) * tokens / (machine.Rate * 1e12)
	traffic := 12.0 // bytes per weight that a step reads and writes besides the moments
	if o.stochastic() {
		traffic = 6
	}
	if !o.OffloadOptimizer {
		p.Compute += (traffic*n + 2*p.moments) / p.shards / (machine.Transfer * 1e9)
	}
	if o.Optimizer == optim.Muon && o.LoRA == nil { // adapters have small matrices
		p.Compute += p.s.orthogonal / (machine.Rate * 1e12)
	}
	if o.Recompute == train.RecomputeSelective {
		// Each result is written, from inputs of once or twice its size.
		again := tokens * p.s.cheap * p.weight
		p.Compute += micro * 3 * again * float64(p.s.active) / (machine.Transfer * 1e9)
	}
	p.Communication = p.communication() +
		micro*2*p.s.joined/(machine.Link*1e9) // gathered, and the gradients scattered
	p.Step = math.Max(p.Compute, p.Communication)
	if o.OffloadOptimizer { // gradients move to the host and weights back, without overlap
		p.Step += ((micro*4+p.weight+12)*n + 2*p.moments) / p.shards / (machine.Host * 1e9)
	}
	p.Tokens = micro * tokens * p.gpus / p.Step
}

// communication is the time of a step's transfers, in seconds.
func (p *prediction) communication() float64 {
	micro, all, n, w := float64(p.o.micro()), p.s.all, p.s.trained, p.weight
	inside, between := p.machine.Link*1e9, p.machine.Network*1e9
	slowest := inside
	if p.hosts > 1 {
		slowest = between
	}
	share := func(k float64) float64 { return (k - 1) / k }
	switch p.Strategy {
	case train.DDP:
		return 2 * share(p.gpus) * n * w / slowest
	case train.FSDP: // weights are gathered twice and gradients scattered once per micro-batch
		return micro * share(p.gpus) * (2*all + n) * w / slowest
	case train.HSDP:
		return micro*share(p.inHost)*(2*all+n)*w/inside + 2*share(p.hosts)*n/p.inHost*w/between
	}
	return 0
}
