// Package nn holds the layers that architectures are made of. A layer declares its weights in
// struct tags. [Walk] finds them, with their names in Hugging Face checkpoints, for loading,
// saving, counting and training.
package nn

import (
	"slices"

	"conquer/torch"
)

// Param is a parameter: one tensor that is stored and trained. Shape is declared when the layer is
// made; the tensor exists once it is loaded or initialized. A fused parameter is several components
// (see [Component]), one below the other: component i has Rows[i] rows.
type Param struct {
	torch.Tensor
	Shape []int
	Rows  []int
	// Stack, if not 0, is the number of matrices of which checkpoints hold the parameter's one
	// component as a stack of three dimensions: [Stack, rows, columns].
	Stack int
	// Fill is the initial value of a fresh parameter.
	Fill Fill
	// Draw, if not nil, overwrites a fresh float32 tensor with the layer's own distribution.
	Draw func(t torch.Tensor)
	// Shard, if not nil, says which rows or columns the tensor holds under tensor parallelism.
	// Shape and Rows describe the whole parameter.
	Shard *Shard
	// Deferred, if not nil, reads the values into a Param of the same shape; see [Param.Defer].
	Deferred func(into *Param) error
}

// Fill is how a fresh parameter is initialized.
type Fill int

const (
	Normal Fill = iota // draws with the architecture's initializer range
	Ones
	Zeros
)

func newParam(fill Fill, rows []int, rest ...int) *Param {
	total := 0
	for _, r := range rows {
		total += r
	}
	return &Param{Shape: append([]int{total}, rest...), Rows: rows, Fill: fill}
}

// RowsOf returns n rows from first on, without their gradient: a view, or the values of a weight in
// blocks ([torch.Blocks]) as float32.
func (p *Param) RowsOf(first, n int) torch.Tensor {
	if p.Tensor.InBlocks() {
		return p.Tensor.UnpackRows(first, n, torch.Float32)
	}
	return p.Tensor.Detach().Narrow(0, first, n)
}

// NewParam declares a parameter of one component.
func NewParam(fill Fill, shape ...int) *Param {
	return &Param{Shape: shape, Rows: shape[:1], Fill: fill}
}

// Linear is y = x Wᵀ + b, plus low-rank adapters if it has any. Fused layers, such as q, k and v,
// are one Linear, whose output holds the components side by side.
type Linear struct {
	Weight *Param `weight:"weight"` // [sum of Rows, D]
	Bias   *Param `weight:"bias"`   // [sum of Rows], or nil
	Rows   []int
	LoRA   []*LoRA // one for each component, nil for one without; empty without adapters
	// Mixed, if not empty, is used instead of LoRA: the adapters of ranges of x's first dimension.
	// Other rows have none. It is for passes without gradients.
	Mixed []MixedRows
	// Experts, if not 0, is the number of experts of a mixture, equally many components of each. A
	// token passes through TopK of them.
	Experts, TopK int
	// Observe, if not nil, is called with the inputs [..., D] of every pass, after the
	// normalization. Those of experts are [N, D], in groups. It sees no gradient.
	Observe func(x torch.Tensor, groups torch.Groups)
}

// Share is the part of the layer's weight that a token is multiplied by: TopK/Experts, or 1.
func (l *Linear) Share() float64 {
	if l.Experts == 0 {
		return 1
	}
	return float64(l.TopK) / float64(l.Experts)
}

// NewLinear declares a linear layer of the given input width, with components of the given output
// widths.
func NewLinear(in int, bias bool, rows ...int) *Linear {
	l := &Linear{Weight: newParam(Normal, rows, in), Rows: rows}
	if bias {
		l.Bias = newParam(Zeros, rows)
	}
	return l
}

// Forward maps x [..., D] to [..., N]. A process that holds rows of the weight computes those of
// the N outputs; one that holds columns takes those of the D inputs.
func (l *Linear) Forward(x torch.Tensor) torch.Tensor {
	return l.Weight.collect(l.local(l.Weight.spread(x)))
}

// local is Forward of this process's shard.
func (l *Linear) local(x torch.Tensor) torch.Tensor {
	if l.Observe != nil {
		l.Observe(x, torch.Groups{})
	}
	if len(l.Mixed) > 0 {
		return l.mixed(x)
	}
	if len(l.LoRA) == 0 {
		return torch.Linear(x, l.Weight.Tensor, l.bias())
	}
	if x.Device().IsCUDA() && !l.drops() && !l.scaled() {
		return l.adapted(x)
	}
	return torch.Scoped1(func() torch.Tensor { // frees the parts here, not at the end of the block
		parts := torch.Linear(x, l.Weight.Tensor, l.bias()).Split(-1, l.localRows()...)
		for i, adapter := range l.LoRA {
			switch {
			case adapter == nil:
			case adapter.M != nil:
				weight, bias := l.component(i)
				parts[i] = adapter.rescale(x, parts[i], weight, bias)
			default:
				parts[i] = parts[i].Add(adapter.Forward(x))
			}
		}
		return torch.Cat(-1, parts...)
	})
}

// mixed is local with other adapters for each range of rows. A row's result does not depend on the
// other ranges.
func (l *Linear) mixed(x torch.Tensor) torch.Tensor {
	return torch.Scoped1(func() torch.Tensor {
		y := torch.Linear(x, l.Weight.Tensor, l.bias())
		for _, r := range l.Mixed {
			in := x.Narrow(0, r.First, r.Count)
			parts := y.Narrow(0, r.First, r.Count).Split(-1, l.localRows()...)
			for i, adapter := range r.LoRA {
				switch {
				case adapter == nil:
				case adapter.M != nil:
					weight, bias := l.component(i)
					parts[i].Copy(adapter.rescale(in, parts[i], weight, bias))
				default:
					parts[i].AddTo(adapter.Forward(in))
				}
			}
		}
		return y
	})
}

func (l *Linear) hasAdapters() bool { return len(l.LoRA) > 0 || len(l.Mixed) > 0 }

// drops reports whether an adapter applies dropout in this pass.
func (l *Linear) drops() bool {
	return torch.GradEnabled() && slices.ContainsFunc(l.LoRA,
		func(a *LoRA) bool { return a != nil && a.Dropout > 0 })
}

// scaled reports whether an adapter also scales the layer's rows (DoRA).
func (l *Linear) scaled() bool {
	return slices.ContainsFunc(l.LoRA, func(a *LoRA) bool { return a != nil && a.M != nil })
}

// component returns the rows of the weight and of the bias, if there is one, of component i.
func (l *Linear) component(i int) (weight, bias torch.Tensor) {
	first := 0
	for _, rows := range l.Rows[:i] {
		first += rows
	}
	if l.Bias != nil {
		bias = l.Bias.Tensor.Narrow(0, first, l.Rows[i])
	}
	return l.Weight.RowsOf(first, l.Rows[i]), bias
}

// adapted is local with all adapters in two GEMMs, in x's dtype: one with their A below each other,
// and one with their B, each in its component's rows and its A's columns, which adds to the
// weight's output in place.
func (l *Linear) adapted(x torch.Tensor) torch.Tensor {
	return torch.Scoped1(func() torch.Tensor {
		rows, ranks := l.localRows(), 0
		var down, up []torch.Tensor
		for _, a := range l.LoRA {
			if a != nil {
				down = append(down, a.A.To(x.DType()))
				ranks += a.A.Shape[0]
			}
		}
		before := 0
		for i, a := range l.LoRA {
			if a == nil {
				up = append(up, torch.Zeros([]int{rows[i], ranks}, x.DType(), x.Device()))
				continue
			}
			rank := a.A.Shape[0]
			b := a.B.To(x.DType()).MulScalar(a.Scale)
			if rank < ranks {
				zeros := func(n int) torch.Tensor {
					return torch.Zeros([]int{rows[i], n},
						x.DType(), x.Device())
				}
				b = torch.Cat(1, zeros(before), b, zeros(ranks-before-rank))
			}
			up = append(up, b)
			before += rank
		}
		shape := x.Shape()
		flat := x.Reshape(-1, shape[len(shape)-1])
		y := torch.Linear(flat, l.Weight.Tensor, l.bias())
		// Not torch.Linear: its kernel may start before the concatenated weight is complete.
		low := flat.Matmul(torch.Cat(0, down...).Transpose(0, 1))
		y.AddMatmul(low, torch.Cat(0, up...).Transpose(0, 1))
		shape[len(shape)-1] = y.Size(1)
		return y.View(shape...)
	})
}

// ForwardNormed is Forward of x normalized by n.
func (l *Linear) ForwardNormed(n *RMSNorm, x torch.Tensor) torch.Tensor {
	if l.Weight.tokens() { // each process normalizes its own tokens
		return l.Forward(n.Forward(x))
	}
	x = l.Weight.spread(x)
	if l.hasAdapters() || l.Observe != nil {
		return l.local(n.Forward(x))
	}
	return torch.NormLinear(x, n.Weight.Tensor, n.Eps, l.Weight.Tensor, l.bias())
}

// ForwardAdd is residual [..., N] plus Forward.
func (l *Linear) ForwardAdd(x, residual torch.Tensor) torch.Tensor {
	if !l.plain() {
		return residual.Add(l.Forward(x))
	}
	return torch.LinearAdd(x, l.Weight.Tensor, l.bias(), residual)
}

func (l *Linear) bias() (bias torch.Tensor) {
	// If the processes' outputs are summed, rank 0 alone adds the bias.
	if l.Bias != nil && (l.Weight.Shard == nil || l.Weight.Shard.Dim == 0 ||
		l.Weight.Shard.Group.Rank == 0) {
		bias = l.Bias.Tensor
	}
	return bias
}

// Embedding maps ids (int64) to rows of its weight.
type Embedding struct {
	Weight *Param `weight:"weight"` // [V, D]
}

// NewEmbedding declares an embedding of vocabulary rows.
func NewEmbedding(vocabulary, width int) *Embedding {
	return &Embedding{Weight: NewParam(Normal, vocabulary, width)}
}

// Forward maps ids [...] to [..., D].
func (e *Embedding) Forward(ids torch.Tensor) torch.Tensor {
	if e.Weight.Shard != nil {
		return e.Weight.lookup(ids)
	}
	return torch.Embedding(e.Weight.Tensor, ids)
}

// RMSNorm is root-mean-square normalization with a weight.
type RMSNorm struct {
	Weight *Param `weight:"weight"` // [D]
	Eps    float64
}

// NewRMSNorm declares a normalization over a last dimension of the given width.
func NewRMSNorm(width int, eps float64) *RMSNorm {
	return &RMSNorm{Weight: NewParam(Ones, width), Eps: eps}
}

// Forward normalizes x [..., D].
func (n *RMSNorm) Forward(x torch.Tensor) torch.Tensor {
	return torch.RMSNorm(x, n.Weight.Tensor, n.Eps)
}

// SwiGLU is the feed-forward layer down(silu(gate(x)) · up(x)), gate and up fused.
type SwiGLU struct {
	GateUp *Linear // gate_proj and up_proj, unless NewFusedSwiGLU named them
	Down   *Linear // down_proj

	gateUpName, downName string
}

// NewSwiGLU declares a feed-forward layer of the given widths.
func NewSwiGLU(width, inner int, bias bool) *SwiGLU {
	return &SwiGLU{GateUp: NewLinear(width, bias, inner, inner),
		Down: NewLinear(inner, bias, width), gateUpName: "gate_proj+up_proj", downName: "down_proj"}
}

// NewFusedSwiGLU is NewSwiGLU for checkpoints that hold gate and up in one tensor, gate first.
// gateUp and down are the names of the two layers there.
func NewFusedSwiGLU(width, inner int, gateUp, down string) *SwiGLU {
	return &SwiGLU{GateUp: NewLinear(width, false, 2*inner), Down: NewLinear(inner, false, width),
		gateUpName: gateUp, downName: down}
}

// Children names the two linear layers as checkpoints do.
func (m *SwiGLU) Children() []Child {
	return []Child{{Name: m.gateUpName, Layer: m.GateUp}, {Name: m.downName, Layer: m.Down}}
}

// Forward maps x, normalized by n, to the layer's output: all [..., D].
func (m *SwiGLU) Forward(n *RMSNorm, x torch.Tensor) torch.Tensor {
	return m.Down.Forward(m.inner(n, x))
}

// ForwardAdd is x + Forward(n, x).
func (m *SwiGLU) ForwardAdd(n *RMSNorm, x torch.Tensor) torch.Tensor {
	return m.Down.ForwardAdd(m.inner(n, x), x)
}

// inner is silu(gate(n(x))) · up(n(x)): [..., F].
func (m *SwiGLU) inner(n *RMSNorm, x torch.Tensor) torch.Tensor {
	w := m.GateUp.Weight
	if m.GateUp.hasAdapters() || m.GateUp.Observe != nil || w.tokens() {
		return torch.SwiGLU(m.GateUp.ForwardNormed(n, x))
	}
	return torch.NormLinearSwiGLU(w.spread(x), n.Weight.Tensor, n.Eps, w.Tensor, m.GateUp.bias())
}
