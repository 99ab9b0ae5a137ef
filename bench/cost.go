package bench

import (
	"strings"

	"conquer/bamba"
	"conquer/model"
	"conquer/torch/nn"
)

// passCost counts the bytes that one pass over `length` tokens of one sequence must at least move, and its operations, after
// `before` tokens that a cache holds. Every weight is read once, every layer's input read and its output written once; a
// multiplication and an addition are two operations. The head is computed for the last token alone, as generation does.
//
//	a product with a weight [N,D]        weight + e·L·(D+N) bytes, 2·L·D·N operations
//	a state-space layer                  its scan, convolution and gated norm as in scanCost
//	attention of H heads, K for keys     e·(L·(2H+2K)P + before·2KP) bytes, 4·HP·(pairs of tokens that see one another)
//	each norm and each sum               e·2·L·D and e·3·L·D bytes; SwiGLU e·3·L·F
func passCost(m bamba.Chunked, length, before int) (bytes, flops int64) {
	e, L := int64(model.DType(m).Size()), int64(length)
	chunking := m.Chunking()
	independent := chunking.Strategy == bamba.Independent
	width := int64(m.Head().Shape[1])
	product := func(l *nn.Linear) {
		rows, depth := int64(l.Weight.Shape[0]), int64(l.Weight.Shape[1])
		bytes += e * (rows*depth + L*(rows+depth))
		flops += 2 * L * rows * depth
	}
	mixer := func(x *bamba.Mixer) {
		product(x.In)
		product(x.Out)
		var s ScanShape
		s.Heads, s.HeadDim, s.Groups, s.State = x.Sizes()
		passes := []string{"forward", "conv", "norm"}
		if before > 0 && length == 1 {
			passes[0] = "step"
		}
		for _, pass := range passes {
			b, f := scanCost(pass, s, 1, length, chunking.Size(s.HeadDim, s.State), int(e), independent)
			bytes, flops = bytes+b, flops+f
		}
	}
	attention := func(a *model.Attention) {
		product(a.QKV)
		product(a.Output)
		queries := int64(a.Output.Weight.Shape[1])              // HP
		keysAndValues := int64(a.QKV.Weight.Shape[0]) - queries // 2KP
		bytes += e * (L*(2*queries+keysAndValues) + int64(before)*keysAndValues)
		flops += 4 * queries * (L*int64(before) + L*(L+1)/2)
	}
	norm, sum := 2*e*L*width, 3*e*L*width
	for _, block := range m.Blocks() {
		switch b := block.(type) {
		case *bamba.Block:
			bytes += 2*norm + 2*sum
			if b.Mixer != nil {
				mixer(b.Mixer)
			} else {
				attention(b.Attention)
			}
			gateUp, down := b.MLP.GateUp, b.MLP.Down
			product(gateUp)
			product(down)
			bytes += e * 3 * L * int64(down.Weight.Shape[1])
		case *bamba.Mamba2Block:
			bytes += norm + sum
			mixer(b.Mixer)
		}
	}
	vocabulary := int64(m.Head().Shape[0])
	bytes += 2*e*L*width + norm + e*(vocabulary*width+width+vocabulary) // the embedding's rows, the last norm, the head
	flops += 2 * vocabulary * width
	return bytes, flops
}

// generationCost adds up the passes that make `made` tokens after a prompt.
func generationCost(m bamba.Chunked, prompt, made int, cached bool) (bytes, flops int64) {
	for i := range made {
		length, before := prompt+i, 0
		if cached && i > 0 {
			length, before = 1, prompt+i-1
		}
		b, f := passCost(m, length, before)
		bytes, flops = bytes+b, flops+f
	}
	return bytes, flops
}

// baseName is a strategy without -optimized.
func baseName(c bamba.Chunking) string { return strings.TrimSuffix(c.String(), "-optimized") }
