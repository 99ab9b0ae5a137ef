package bench

import (
	"strings"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch/nn"
)

// scanCost counts the least bytes that a pass moves (each input is read once, each result
// written once) and the operations of its algorithm (a multiplication and an addition are
// two). Q is the chunk size or the length, whichever is smaller; e is the bytes of an
// element, T = B·L the tokens.
//
//	forward   bytes  e·T·(2HP + H + 2GN) + 4·BHPN    x, dt, B, C read; y, float32 state written
//	          flops  T·(4HPN + QHP + QGN)            states made and read; causal half of
//	                                                 C·Bᵀ and of its GEMM with x
//	backward  bytes  e·T·(3HP + 2H + 4GN)            x, dt, B, C, dy read; dx, ddt, dB, dC
//	                                                 written
//	          flops  T·(10HPN + 2QHP + 3QGN)         two passes over the states, dx, dB, dC;
//	                                                 in chunks dy·xᵀ, dx, C·Bᵀ, dB, dC
//	step      bytes  8·BHPN + e·B·(2HP + H + 2GN)    float32 state read and written
//	          flops  B·5HPN                          decay, dt·B⊗x added, times C
//	conv      bytes  e·2T(HP + 2GN)                  four taps
//	          flops  2·4·T(HP + 2GN)
//	norm      bytes  e·3T·HP                         x·silu(z), sum of squares, two scalings
//	          flops  9·T·HP
//
// With the strategy independent, the scan makes and reads no states, so the terms with HPN are
// absent. A kernel may choose other blocks and do more or less than the count.
func scanCost(pass string, s ScanShape, batch, length, chunk, element int, independent bool) (
	bytes, flops int64,
) {
	B, T, e, Q := int64(batch), int64(batch*length), int64(element), int64(min(chunk, length))
	HP, GN := int64(s.Heads*s.HeadDim), int64(s.Groups*s.State)
	H, HPN := int64(s.Heads), int64(s.Heads*s.HeadDim*s.State)
	states := HPN
	if independent {
		states = 0
	}
	switch pass {
	case "forward":
		return e*T*(2*HP+H+2*GN) + 4*B*HPN, T * (4*states + Q*HP + Q*GN)
	case "backward":
		return e * T * (3*HP + 2*H + 4*GN), T * (10*states + 2*Q*HP + 3*Q*GN)
	case "step":
		return 8*B*HPN + e*B*(2*HP+H+2*GN), B * 5 * HPN
	case "conv":
		return e * 2 * T * (HP + 2*GN), 2 * taps * T * (HP + 2*GN)
	default:
		return e * 3 * T * HP, 9 * T * HP
	}
}

// passCost counts the least bytes that one pass over length tokens of one sequence moves, and
// its operations, after before tokens in a cache. Every weight is read once, every layer's
// input is read and its output written once. A multiplication and an addition are two
// operations. The head is computed for the last token only, as in generation. e is the bytes
// of an element, L the length.
//
//	linear layer, weight [N, D]        weight + e·L·(D+N) bytes, 2·L·D·N operations
//	state-space layer                  its scan, convolution and gated norm as in scanCost
//	attention, H query, K key heads    e·(L·(2H+2K)P + before·2KP) bytes,
//	                                   4·HP·(pairs of tokens that attend) operations
//	norm, sum, SwiGLU                  e·2·L·D, e·3·L·D, e·3·L·F bytes
func passCost(m statespace.Chunked, length, before int) (bytes, flops int64) {
	e, L := int64(model.DType(m).Size()), int64(length)
	chunking := m.Chunking()
	independent := chunking.Strategy == statespace.Independent
	width := int64(m.Head().Shape[1])
	linear := func(l *nn.Linear) {
		rows, depth := int64(l.Weight.Shape[0]), int64(l.Weight.Shape[1])
		bytes += e * (rows*depth + L*(rows+depth))
		flops += 2 * L * rows * depth
	}
	mixer := func(x *statespace.Mixer) {
		var s ScanShape
		s.Heads, s.HeadDim, s.Groups, s.State = x.Sizes()
		passes := []string{"forward", "conv", "norm"}
		if before > 0 && length == 1 {
			passes[0] = "step"
		}
		for _, pass := range passes {
			b, f := scanCost(pass, s, 1, length, chunking.Size(s.HeadDim, s.State), int(e),
				independent)
			bytes, flops = bytes+b, flops+f
		}
	}
	attention := func(a *model.Attention) {
		queries := int64(a.Output.Weight.Shape[1])              // HP
		keysAndValues := int64(a.QKV.Weight.Shape[0]) - queries // 2KP
		bytes += e * (L*(2*queries+keysAndValues) + int64(before)*keysAndValues)
		flops += 4 * queries * (L*int64(before) + L*(L+1)/2)
	}
	norm, sum := 2*e*L*width, 3*e*L*width
	for _, block := range m.Blocks() {
		nn.Layers(block, func(_ string, layer any) {
			switch l := layer.(type) {
			case *statespace.Mixer:
				mixer(l)
			case *model.Attention:
				attention(l)
			case *nn.Linear:
				linear(l)
			case *nn.SwiGLU:
				bytes += e * 3 * L * int64(l.Down.Weight.Shape[1])
			case *nn.RMSNorm: // before a mixer or a feed-forward layer, which is added to its input
				bytes += norm + sum
			}
		})
	}
	vocabulary := int64(m.Head().Shape[0])
	// embedding rows, final norm, head
	bytes += 2*e*L*width + norm + e*(vocabulary*width+width+vocabulary)
	flops += 2 * vocabulary * width
	return bytes, flops
}

// generationCost sums the passes that make the given number of tokens after a prompt.
func generationCost(m statespace.Chunked, prompt, made int, cached bool) (bytes, flops int64) {
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

// baseName returns the name of a strategy without -optimized.
func baseName(c statespace.Chunking) string { return strings.TrimSuffix(c.String(), "-optimized") }
