package plan

import (
	"math"
	"slices"

	"conquer/lora"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train"
	"conquer/train/internal/units"
)

// sizes counts the elements of a model, of a pipeline stage, or of one process's shard of either.
type sizes struct {
	joined         float64 // bytes that attention layers gather from the parts of a row
	mask           float64 // bytes of their mask
	all, trained   float64 // weights
	block          float64 // weights of the largest block
	largest        float64 // weight of a block
	embedding      float64
	after          float64 // weights of the final norm and of a head that is not the embedding
	head           float64 // trained weights of the head
	saved          float64 // weights that are trained beside an adapter
	blocks, active int     // blocks, and those that a backward pass goes through
	gemm           float64 // weights that a token is multiplied by: of a mixture, its experts'
	width          float64
	stream         float64 // per token: hidden state between blocks, as this process holds it
	vocabulary     float64 // 0 if another stage has the head
	activation     float64 // per token: kept by a block for its backward pass, mean over the blocks
	cheap          float64 // the part of activation that train.RecomputeSelective computes again
	widest         float64 // per token: input and output of the widest linear layer
	outputs        float64 // per token: outputs of all linear layers of a block
	inFlight       float64 // micro-batches whose activations are held at a time
	divided        bool    // the process holds a shard of each layer
	matrices       float64 // weights of the blocks' linear layers
	orthogonal     float64 // operations in which Muon orthogonalizes their updates
}

// measure counts what a process holds that has the blocks from low up to, and without, high. The
// first blocks come with the embedding, the last ones with the head.
func measure(m model.Model, o Options, low, high int) sizes {
	blocks, list := m.Blocks()[low:high], units.Of(m)
	last := high == len(m.Blocks())
	s := sizes{
		blocks:   len(blocks),
		active:   len(blocks),
		width:    float64(m.Head().Shape[1]),
		inFlight: 1,
	}
	s.stream = s.width
	if part := m.Head().Shard; part != nil {
		s.divided = true
		s.stream /= float64(part.Group.Size)
	}
	inBlocks := 0.0
	inside := map[*nn.Linear]bool{}
	for _, block := range blocks {
		inBlocks += s.addBlock(block, inside)
	}
	head := 0.0
	if low == 0 || last && units.Tied(m) {
		s.embedding = elements(list[0]...)
	}
	if last {
		s.after, s.vocabulary = elements(list[len(list)-1]...), float64(m.Head().Local()[0])
		head = elements(m.Head().Param)
	}
	s.all = s.embedding + inBlocks + s.after
	s.gemm += inBlocks + head
	switch {
	case o.HeadOnly:
		s.trained, s.head, s.active = head, head, 0
	case o.LoRA != nil:
		s.trained = adapterElements(m, *o.LoRA, inside)
		s.active = min(s.active, max(0, high-firstAdapted(m, *o.LoRA)))
		for _, w := range o.LoRA.Weights(m) {
			switch isHead := w.Param == m.Head().Param; {
			case isHead && last && !units.Tied(m):
				s.saved, s.head = s.saved+head, head
			case !isHead && low == 0, isHead && (low == 0 || last):
				s.saved, s.active = s.saved+elements(w.Param), s.blocks
				if isHead && last {
					s.head = head
				}
			default:
				s.active = s.blocks
			}
		}
		s.trained += s.saved
		if o.LoRA.DoRA { // what is scaled is kept
			for _, l := range lora.Layers(m) {
				if inside[l.Linear] && o.LoRA.Adapts(l) {
					s.activation += float64(l.Linear.Rows[l.Index]) / float64(s.blocks)
				}
			}
		}
		if copies := o.CPU && o.DType != torch.Float32; copies {
			for _, l := range lora.Layers(m) {
				if inside[l.Linear] && o.LoRA.Adapts(l) {
					in := float64(l.Linear.Weight.Local()[1])
					s.activation += in * 4 / float64(o.DType.Size()) / float64(s.blocks)
				}
			}
		}
	default:
		s.trained, s.head = s.all, head
	}
	return s
}

// addBlock adds a block to s and its linear layers to inside, and returns the number of its
// weights.
func (s *sizes) addBlock(block model.Block, inside map[*nn.Linear]bool) float64 {
	n, share := elements(nn.Params(block)...), float64(s.blocks)
	s.block = math.Max(s.block, n)
	kept, cheap := activation(block, s.width, s.stream)
	s.activation, s.cheap = s.activation+kept/share, s.cheap+cheap/share
	nn.Linears(block, func(_ []string, l *nn.Linear) {
		out, in := float64(l.Weight.Local()[0]), float64(l.Weight.Local()[1])
		used := out * l.Share()
		s.gemm -= (out - used) * in
		s.outputs += used / share
		s.matrices += out * in
		for _, rows := range l.Rows { // see optim.Muon: three products of matrices, five times
			small, large := min(float64(rows), in), max(float64(rows), in)
			s.orthogonal += 5 * (4*small*small*large + 2*small*small*small)
		}
		s.widest = math.Max(s.widest, used+in*float64(max(1, l.TopK)))
		s.largest = math.Max(s.largest, out*in)
		inside[l] = true
	})
	return n
}

// adapterElements counts the elements of the adapters that c adds to the linear layers in inside.
func adapterElements(m model.Model, c lora.Config, inside map[*nn.Linear]bool) (n float64) {
	for _, l := range lora.Layers(m) {
		if inside[l.Linear] && c.Adapts(l) {
			whole, local := l.Linear.Weight.Shape, l.Linear.Weight.Local()
			rows := l.Linear.Rows[l.Index] * local[0] / whole[0]
			n += float64(c.RankOf(l) * (rows + local[1]))
			if c.DoRA {
				n += float64(rows)
			}
		}
	}
	return n
}

// firstAdapted returns the number of the first block that c adapts, where a backward pass ends.
func firstAdapted(m model.Model, c lora.Config) int {
	adapted := map[*nn.Linear]bool{}
	for _, l := range lora.Layers(m) {
		adapted[l.Linear] = adapted[l.Linear] || c.Adapts(l)
	}
	return slices.IndexFunc(m.Blocks(), func(block model.Block) (found bool) {
		nn.Linears(block, func(_ []string, l *nn.Linear) { found = found || adapted[l] })
		return found
	})
}

// elements counts the elements of parameters as this process holds them.
func elements(params ...*nn.Param) (n float64) {
	for _, p := range params {
		n += float64(units.Elements(p.Local()))
	}
	return n
}

// activation counts the elements that a token leaves in a block for the backward pass, and those
// among them that selective recomputation computes again. It counts the inputs of both norms, the
// input of every linear layer, the output of those that are not added to the residual stream, and
// what layers say of themselves (see [nn.Activated]). Inputs are computed again unless they were
// gathered from other processes.
func activation(block model.Block, width, stream float64) (n, cheap float64) {
	n = 2 * stream
	nn.Layers(block, func(_ string, layer any) {
		if l, ok := layer.(*nn.Linear); ok {
			out, in := float64(l.Weight.Local()[0])*l.Share(), float64(l.Weight.Local()[1])
			in *= float64(max(1, l.TopK)) // a row for each of the token's experts
			n += in
			if gathered := l.Weight.Shard != nil && l.Weight.Shard.Dim == 0; !gathered {
				cheap += in
			}
			if float64(l.Weight.Shape[0]) != width {
				n += out
			}
		}
		if l, ok := layer.(nn.Activated); ok {
			a := l.Activations()
			n, cheap = n+a.Kept, cheap+a.Recomputable
		}
	})
	return n, cheap
}

// Operations returns the number of floating-point operations of a training step per token, counting
// only the GEMMs with m's weights: two operations per weight in the forward pass, two for the
// gradient of the input, two for the gradient of a trained weight, and two if the block runs again.
// Embedding lookups, attention over the sequence and scans are left out; for Llama-2-7B, attention
// adds 2 % per 1,000 tokens of context.
func Operations(m model.Model, o Options) float64 {
	return measure(m, o, 0, len(m.Blocks())).operations(o.Recompute)
}

func (s sizes) operations(r train.Recompute) float64 {
	passes := 1 + float64(s.active)/math.Max(1, float64(s.blocks)) + math.Min(1, s.trained/s.all)
	if r == train.RecomputeBlock {
		passes++
	}
	return passes * 2 * s.gemm
}
