package train

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/torch/optim"
)

// Machine is what a plan reckons with. Rates are what a long product or copy reaches, not what a data sheet says.
type Machine struct {
	GPUs     int     `json:"gpus"`          // all of them
	PerHost  int     `json:"gpus_per_host"` // that share the fast link
	Memory   float64 `json:"memory_gb"`     // of one, 1e9 bytes
	Rate     float64 `json:"tflops"`        // products, 1e12 operations a second
	Transfer float64 `json:"memory_gb_s"`   // its memory, 1e9 bytes a second
	Link     float64 `json:"link_gb_s"`     // between two of one host, each way
	Network  float64 `json:"network_gb_s"`  // between hosts, for one GPU's share, each way
	Host     float64 `json:"host_gb_s"`     // the host's memory, for one GPU's share, and the way to it
}

// Plan is what a step of training asks of each GPU under one strategy, predicted from bytes and operations. Memory is in
// bytes, time in seconds. Under mp, memory is that of the fullest GPU, computing that of the slowest.
type Plan struct {
	Strategy    string  `json:"strategy"`
	Weights     float64 `json:"weights"`
	Gradients   float64 `json:"gradients"`
	Optimizer   float64 `json:"optimizer"`
	Activations float64 `json:"activations"`
	// Buffers are what comes and goes: weights gathered for use, the loss's logits, gradients inside a block.
	Buffers float64 `json:"buffers"`
	// Peak is the most that is held at one moment. It is less than the sum of the parts: while gradients come, activations go.
	Peak float64 `json:"peak"`
	Fits bool    `json:"fits"`
	// Host is what is kept in the host's memory, with PlanOptions.OffloadOptimizer.
	Host float64 `json:"host,omitempty"`
	// Refused is why the model cannot be trained so; the other numbers are then 0.
	Refused string `json:"refused,omitempty"`

	Compute       float64 `json:"compute_s"`       // products, recomputing included, and the optimizer's traffic
	Communication float64 `json:"communication_s"` // if it overlapped with nothing
	Step          float64 `json:"step_s"`
	Tokens        float64 `json:"tokens_per_second"` // of all GPUs
}

// PlanOptions are what of a run a plan depends on.
type PlanOptions struct {
	BatchSize      int // rows of a GPU's forward pass; of a group's, where a group divides the layers
	SequenceLength int
	Accumulate     int
	DType          torch.DType
	Recompute      Recompute
	LoRA           *LoRA // nil to tune all weights
	HeadOnly       bool
	TensorSize     int    // how many GPUs divide the layers among them, with tp; 0 for those of a host
	Optimizer      string // as in Options
	Moments        string
	Stochastic     bool // bfloat16 weights are rounded at random, without originals: as in Options
	// OffloadOptimizer is as in Options: for fsdp and hsdp alone.
	OffloadOptimizer bool
}

// Strategies that a plan can be made for: each GPU holds everything; the same with gradients averaged; weights, gradients
// and optimizer sharded over all; sharded inside a host and repeated on each. Plans of GPUs that divide layers, and of GPUs with
// layers of their own, follow.
var planned = []string{None, DDP, FSDP, HSDP}

const offloadAlone = "the optimizer's state goes to the host's memory with fsdp or hsdp alone"

// sizes are counts of the elements of a model, or of a pipeline's stage.
type sizes struct {
	all, trained   float64 // weights
	block          float64 // weights of the largest block
	largest        float64 // of a block's weights
	embedding      float64 // weights of the embedding
	after          float64 // weights of final norm and head that are not the embedding's too
	head           float64 // trained weights of the head
	blocks, active int     // all, and those that a backward pass goes through
	products       float64 // weights that a token is multiplied by
	width          float64
	stream         float64 // of a token's hidden state between layers, what is held
	vocabulary     float64
	// activation is what one token leaves in one block for the backward pass, averaged over the blocks.
	activation float64
	cheap      float64 // the part of activation that is computed again with RecomputeSelective
	// working is the widest layer's input and output, for one token.
	working float64
	outputs float64 // of all of a block's layers, for one token
	flights float64 // micro-batches whose activations are held at a time
	divided bool    // all of these are of a process that holds a part of each layer
}

// Plans predicts what tuning m, a model whose weights need not exist, takes on each GPU, for every strategy that the
// machine's GPUs allow.
//
// What a block leaves for its backward pass is counted from its layers: the input of every product, the output of those that
// do not go straight into the residual stream (what follows them needs it), the two normalizations' inputs, and in a
// state-space layer what the convolution and the scan give.
func Plans(m model.Model, o PlanOptions, machine Machine) ([]Plan, error) {
	run := Options{Steps: 1, Rate: 1, BatchSize: o.BatchSize, SequenceLength: o.SequenceLength, Accumulate: o.Accumulate, Recompute: o.Recompute,
		LoRA: o.LoRA, HeadOnly: o.HeadOnly, Optimizer: o.Optimizer, Moments: o.Moments, Stochastic: o.Stochastic,
		OffloadOptimizer: o.OffloadOptimizer}
	if err := run.Check(); err != nil {
		return nil, err
	}
	switch {
	case o.Recompute.check() != nil:
		return nil, o.Recompute.check()
	case o.TensorSize < 0 || o.TensorSize > 0 && (machine.GPUs%o.TensorSize != 0 || machine.PerHost%o.TensorSize != 0):
		return nil, fmt.Errorf("layers divided over %d GPUs: that does not divide %d, or hosts of %d", o.TensorSize, machine.GPUs, machine.PerHost)
	case machine.GPUs < 1:
		return nil, fmt.Errorf("%d GPUs: a plan needs at least 1", machine.GPUs)
	case machine.PerHost < 1:
		return nil, fmt.Errorf("%d GPUs per host: expected at least 1", machine.PerHost)
	case machine.GPUs > machine.PerHost && machine.GPUs%machine.PerHost != 0:
		return nil, fmt.Errorf("%d GPUs do not fill hosts of %d", machine.GPUs, machine.PerHost)
	}
	for name, rate := range map[string]float64{"memory_gb": machine.Memory, "tflops": machine.Rate,
		"memory_gb_s": machine.Transfer, "link_gb_s": machine.Link, "network_gb_s": machine.Network, "host_gb_s": machine.Host} {
		if !(rate > 0) {
			return nil, fmt.Errorf("%s is %v, expected a positive number", name, rate)
		}
	}
	s := measure(m, o, 0, len(m.Blocks()))
	var plans []Plan
	for _, strategy := range planned {
		switch alone := machine.GPUs == 1; {
		case strategy == None && !alone, strategy == DDP && alone,
			strategy == FSDP && alone && !o.OffloadOptimizer,    // the same as none
			strategy == HSDP && machine.GPUs <= machine.PerHost: // the same as fsdp
		default:
			plans = append(plans, s.plan(strategy, o, machine))
		}
	}
	plans = append(plans, dividedPlans(m, o, machine)...)
	switch {
	case machine.GPUs == 1:
	case o.Stochastic && isTied(m): // see newPipeline
		plans = append(plans, Plan{Strategy: MP, Refused: "the first and the last GPU would round the embedding, which is the head too, each at random"})
	default:
		plans = append(plans, pipelinePlan(m, o, machine))
	}
	return plans, nil
}

// measure counts what a process with the blocks from low to below high has of m: the first ones come with the embedding, the
// last ones with the head.
func measure(m model.Model, o PlanOptions, low, high int) sizes {
	blocks, units := m.Blocks()[low:high], unitsOf(m)
	last := high == len(m.Blocks())
	s := sizes{blocks: len(blocks), width: float64(m.Head().Shape[1]), flights: 1, divided: m.Head().Shard != nil}
	s.stream = s.width
	if part := m.Head().Shard; part != nil {
		s.stream /= float64(part.Group.Size)
	}
	count := func(root any) (n float64) {
		for _, p := range nn.Params(root) {
			n += elements(p)
		}
		return n
	}
	s.active = s.blocks
	inBlocks := 0.0
	inside := map[*nn.Linear]bool{}
	for _, block := range blocks {
		n := count(block)
		inBlocks += n
		s.block = math.Max(s.block, n)
		left, cheap := activation(block, s.width, s.stream)
		s.activation, s.cheap = s.activation+left/float64(s.blocks), s.cheap+cheap/float64(s.blocks)
		nn.Linears(block, func(_ []string, l *nn.Linear) {
			out, in := float64(l.Weight.Local()[0]), float64(l.Weight.Local()[1])
			s.outputs += out / float64(s.blocks)
			s.working, s.largest = math.Max(s.working, out+in), math.Max(s.largest, out*in)
			inside[l] = true
		})
	}
	sum := func(unit []*nn.Param) (n float64) {
		for _, p := range unit {
			n += elements(p)
		}
		return n
	}
	head := 0.0
	if low == 0 || last && isTied(m) {
		s.embedding = sum(units[0])
	}
	if last {
		s.after, s.vocabulary, head = sum(units[len(units)-1]), float64(m.Head().Local()[0]), elements(m.Head())
	}
	s.all, s.products = s.embedding+inBlocks+s.after, inBlocks+head
	switch {
	case o.HeadOnly:
		s.trained, s.head, s.active = head, head, 0
	case o.LoRA != nil:
		for _, p := range parts(m) {
			if inside[p.layer] && o.LoRA.adapts(p) {
				whole, local := p.layer.Weight.Shape, p.layer.Weight.Local()
				s.trained += float64(o.LoRA.Rank * (p.layer.Rows[p.index]*local[0]/whole[0] + local[1]))
			}
		}
	default:
		s.trained, s.head = s.all, head
	}
	return s
}

func elements(p *nn.Param) float64 {
	return float64(elementsOf(p.Local()))
}

// activation counts the elements that one token leaves in a block, and among them those that a normalization, SwiGLU or a
// convolution made: the input of every product but the one behind attention, and but for what came from other processes.
func activation(block model.Block, width, stream float64) (n, cheap float64) {
	n = 2 * stream // the normalizations' inputs
	nn.Linears(block, func(names []string, l *nn.Linear) {
		local := l.Weight.Local()
		n += float64(local[1])
		gathered := l.Weight.Shard != nil && l.Weight.Shard.Dim == 0
		if !gathered && !strings.HasSuffix(names[0], "o_proj") {
			cheap += float64(local[1])
		}
		if float64(l.Weight.Shape[0]) != width {
			n += float64(local[0])
		}
	})
	nn.Walk(block, func(p nn.Component) {
		if len(p.Param.Shape) == 3 { // a convolution [channels, 1, taps]: what it gives, and what the scan makes of it
			n += float64(p.Param.Local()[0])
			cheap += float64(p.Param.Local()[0])
		}
		if len(p.Param.Shape) == 1 && p.Start == 0 && float64(p.Param.Shape[0]) != width && p.Name == "mamba.norm.weight" {
			n += float64(p.Param.Local()[0])
		}
	})
	return n, cheap
}

// shardedBuffers is the most that a sharded process holds besides its parts and the activations of a whole forward pass: of
// the weights, those that are gathered; of the gradients, those that no other process has been given yet, as they are and as
// they are sent.
func (s sizes) shardedBuffers(activations, one, logits, unrecorded, backward, w, trainedSize float64) float64 {
	share := math.Min(1, s.trained/s.all)
	block, head := s.block*w, s.after*w
	blockGradient, blockSent := s.block*share*trainedSize, s.block*share*4
	headGradient, headSent := s.head*w, s.head*4
	waits := 0.0 // for the embedding's gradient
	if s.after == 0 {
		head, waits, headSent = s.embedding*w, headGradient, 0
	}
	passing := 0.0
	if s.active > 0 {
		passing = math.Min(activations, one)
	}
	moments := []float64{
		2*block + unrecorded,                                                           // forward
		block + head + headGradient + logits,                                           // the loss
		block + headGradient + headSent,                                                // its gradient is sent
		2*block + waits + headSent + backward + blockGradient,                          // the last block goes backward
		block + waits + blockGradient + blockSent,                                      // its gradient is sent
		block + waits + blockSent + backward + blockGradient - (activations - passing), // the first block
	}
	if s.trained == s.all { // last of all, the embedding's
		moments = append(moments, s.embedding*(w+4)-activations)
	}
	return slices.Max(moments)
}

// Operations are those of the products with m's weights, for one token of a step of training as o has it: two a weight
// forward, as many for the gradient that goes on, and again for the weights' own where those are trained, or for what runs
// twice. An embedding's rows are looked up and not counted, unless the head shares them. Attention's products over the
// sequence, and a scan's, are left out: for Llama-2-7B the former are 2 % of these per 1,000 tokens of a row.
func Operations(m model.Model, o PlanOptions) float64 {
	return measure(m, o, 0, len(m.Blocks())).operations(o.Recompute)
}

func (s sizes) operations(r Recompute) float64 {
	passes := 1 + float64(s.active)/math.Max(1, float64(s.blocks)) + math.Min(1, s.trained/s.all)
	if r == RecomputeBlock {
		passes++
	}
	return passes * 2 * s.products
}

func (s sizes) plan(strategy string, o PlanOptions, c Machine) Plan {
	if o.OffloadOptimizer && strategy != FSDP && strategy != HSDP {
		return Plan{Strategy: strategy, Refused: offloadAlone}
	}
	w, tokens := float64(o.DType.Size()), float64(o.BatchSize*o.SequenceLength)
	n, inHost := float64(c.GPUs), float64(min(c.GPUs, c.PerHost))
	hosts := n / inHost
	shards := 1.0 // over how many GPUs the state is divided
	switch strategy {
	case FSDP:
		shards = n
	case HSDP:
		shards = inHost
	}
	p := Plan{Strategy: strategy}
	trainedSize := w
	if o.LoRA != nil {
		trainedSize = 4 // adapters are float32 whatever the weights are
	}
	p.Weights = s.all * w / shards
	if o.LoRA != nil {
		p.Weights += s.trained * trainedSize / shards
	}
	p.Gradients = s.trained * trainedSize / shards
	random := o.Stochastic && o.DType == torch.BFloat16 && o.LoRA == nil
	moments, stepped := o.Moments, 12.0 // stepped: bytes a weight that a step reads and writes besides the averages
	if random {
		moments, stepped = optim.BFloat16, 6
	}
	averages := optim.AverageBytes(o.Optimizer, moments, s.trained)
	p.Optimizer = averages / shards
	if trainedSize < 4 && !random {
		p.Optimizer += s.trained * 4 / shards // the float32 originals
	}
	switch sharded := strategy == FSDP || strategy == HSDP; {
	case sharded && random: // added up in the weights' dtype, whatever each sum travels in
	case sharded, strategy == DDP:
		p.Gradients = s.trained * 4 / shards // summed in float32
	}
	if o.OffloadOptimizer {
		p.Host = (8*s.trained + averages) / shards
		p.Gradients, p.Optimizer = 0, 0
	}
	blockwise := tokens * s.activation * w
	flight := blockwise * float64(s.active) // a micro-batch's activations
	again := 0.0                            // of a block's activations, what its backward pass begins with making
	switch o.Recompute {
	case RecomputeBlock:
		flight, again = tokens*s.stream*w*float64(s.active), blockwise
	case RecomputeSelective:
		again = tokens * s.cheap * w
		flight -= again * float64(s.active)
	}
	p.Activations = flight * s.flights
	// What comes and goes: the loss's logits; a block that runs again, or without recording, while it runs; the gradients
	// inside a block; a block in use and the next one on its way.
	logits := math.Min(min(tokens, 1024)*s.vocabulary*w, math.Max(64<<20, 64*s.vocabulary*w)) + 4*tokens*s.width*w
	if s.divided { // in float32, twice
		logits = 2*math.Min(min(tokens, 1024)*s.vocabulary*4, math.Max(64<<20, 64*s.vocabulary*4)) + 4*tokens*s.width*w
	}
	if s.vocabulary == 0 { // another stage has the head
		logits = 0
	}
	unrecorded, backward := 0.0, 0.0
	if s.active < s.blocks {
		unrecorded = blockwise + tokens*s.outputs*w
	}
	if s.active > 0 {
		backward = 1.5 * tokens * s.working * w
	}
	if o.LoRA != nil { // the parts of a layer, their additions, and the sums
		backward *= 2
	}
	// The moments that may be the fullest: the loss, the first block of the backward pass, and the last one, by when gradients
	// have come and activations gone. A later forward pass of the same step meets all gradients.
	headGradient, blockGradient := s.head*w, s.block*trainedSize*math.Min(1, s.trained/s.all)
	early := math.Max(logits, math.Max(unrecorded, again+backward+blockGradient))
	late := p.Gradients + math.Min(blockwise, p.Activations+again) + backward
	fullest := math.Max(p.Activations+headGradient+early, late)
	if strategy == DDP { // a bucket fills while the gradients of the next are there
		late += math.Min(bucketBytes/4+s.block, s.trained) * trainedSize
		fullest = math.Max(fullest, late)
	}
	if o.Accumulate > 1 {
		// A weight's new gradient is whole before it is added to what has come.
		later := s.trained*trainedSize + math.Max(logits+headGradient, again+backward+s.largest*trainedSize*math.Min(1, s.trained/s.all))
		if float64(o.Accumulate) > s.flights {
			fullest = math.Max(late, p.Activations+later)
		} else { // all are on their way before the first gradients come
			fullest = math.Max(fullest, p.Activations-flight+later)
		}
	}
	p.Buffers = early
	if strategy == FSDP || strategy == HSDP {
		one := blockwise
		if o.Recompute == RecomputeSelective {
			one -= again
		}
		p.Buffers = s.shardedBuffers(p.Activations, one, logits, unrecorded, again+backward, w, trainedSize)
		fullest = p.Gradients + p.Activations + p.Buffers
	}
	p.Peak = p.Weights + p.Optimizer + fullest
	p.Fits = p.Peak <= c.Memory*1e9

	micro := float64(max(1, o.Accumulate))
	p.Compute = micro * s.operations(o.Recompute) * tokens / (c.Rate * 1e12)
	if !o.OffloadOptimizer {
		p.Compute += (stepped*s.trained + 2*averages) / shards / (c.Transfer * 1e9)
	}
	if o.Recompute == RecomputeSelective { // each is written, from as much or twice as much
		p.Compute += micro * 3 * again * float64(s.active) / (c.Transfer * 1e9)
	}
	inside, between := c.Link*1e9, c.Network*1e9
	slowest := inside
	if hosts > 1 {
		slowest = between
	}
	share := func(k float64) float64 { return (k - 1) / k }
	switch strategy {
	case "ddp":
		p.Communication = 2 * share(n) * s.trained * w / slowest
	case "fsdp": // gathered twice, gradients scattered once, each micro-batch
		p.Communication = micro * share(n) * (2*s.all + s.trained) * w / slowest
	case "hsdp":
		p.Communication = micro*share(inHost)*(2*s.all+s.trained)*w/inside + 2*share(hosts)*s.trained/inHost*w/between
	}
	p.Step = math.Max(p.Compute, p.Communication)
	if o.OffloadOptimizer { // gradients go there and weights come back; nothing overlaps it
		p.Step += ((micro*4+w+12)*s.trained + 2*averages) / shards / (c.Host * 1e9)
	}
	p.Tokens = micro * tokens * n / p.Step
	return p
}
