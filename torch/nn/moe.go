package nn

import (
	"fmt"
	"slices"
	"strings"

	"conquer/torch"
)

// Routing says how a mixture of experts chooses the experts of a token (Shazeer et al., arXiv
// 1701.06538). The zero value of an optional field means that the router lacks it.
type Routing struct {
	Experts int // E
	TopK    int // k, the experts of a token
	// Sigmoid makes the scores of the experts sigmoids of the router's logits, in place of a
	// softmax over all experts.
	Sigmoid bool
	// Renormalize makes the weights of a token's experts sum to 1.
	Renormalize bool
	Scale       float64 // multiplier of the weights; 0 means 1
	// Groups, if above 1, divides the experts into as many groups. A token's experts come from its
	// TopGroups best groups: those whose two best scores have the largest sums.
	Groups, TopGroups int
}

// Check reports sizes that contradict each other.
func (r Routing) Check() error {
	switch {
	case r.Experts < 1 || r.TopK < 1 || r.TopK > r.Experts:
		return fmt.Errorf("config.json: %d of %d experts for each token, expected 1 to all",
			r.TopK, r.Experts)
	case r.Groups <= 1:
		return nil
	case r.Experts%r.Groups != 0 || r.Experts/r.Groups < 2:
		return fmt.Errorf("config.json: %d groups of %d experts, expected at least two experts in "+
			"each, and equally many", r.Groups, r.Experts)
	case r.TopGroups < 1 || r.TopGroups > r.Groups || r.TopGroups*r.Experts/r.Groups < r.TopK:
		return fmt.Errorf("config.json: %d experts of a token from %d of %d groups, which hold %d "+
			"experts", r.TopK, r.TopGroups, r.Groups, r.TopGroups*r.Experts/max(r.Groups, 1))
	}
	return nil
}

// choose returns the k experts of each row of the router's logits [N,E], and their weights, from
// which gradients reach the logits: float32 and int64, [N,k]. bias (float32 [E], or no tensor) is
// added to the scores for the choice alone.
func (r Routing) choose(logits, bias torch.Tensor) (weights, experts torch.Tensor) {
	logits = logits.To(torch.Float32)
	var scores torch.Tensor
	if r.Sigmoid {
		scores = logits.Sigmoid()
	} else {
		scores = logits.Softmax(-1)
	}
	choice := scores
	if bias.Defined() {
		choice = scores.Add(bias.To(torch.Float32))
	}
	if r.Groups > 1 {
		choice = choice.MaskedFill(r.outside(choice), -1e30)
	}
	weights, experts = choice.TopK(r.TopK)
	if bias.Defined() || r.Groups > 1 {
		weights = scores.Gather(1, experts)
	}
	if r.Renormalize {
		weights = weights.Div(weights.SumDim(-1, true).AddScalar(1e-20))
	}
	if scaled(r.Scale) {
		weights = weights.MulScalar(r.Scale)
	}
	return weights, experts
}

// outside marks the experts outside of each row's best groups: bool [N,E].
func (r Routing) outside(scores torch.Tensor) torch.Tensor {
	n, size := scores.Size(0), r.Experts/r.Groups
	best, _ := scores.Detach().View(n, r.Groups, size).TopK(2)
	_, groups := best.SumDim(-1, false).TopK(r.TopGroups)
	inside := torch.Zeros([]int{n, r.Groups}, torch.Bool, scores.Device()).Mark(groups)
	no := torch.Zeros([]int{1}, torch.Bool, scores.Device())
	return inside.Equal(no).Unsqueeze(2).Expand(n, r.Groups, size).Reshape(n, r.Experts)
}

// Experts are E feed-forward layers out(activation(in(x))), of which each token passes through
// some. In is a fused layer: the rows of expert 0, then those of expert 1, and so on; so is Out.
type Experts struct {
	In  *Linear // [E·2F,D]: gate and up of each expert; without gates [E·F,D]
	Out *Linear // [E·D,F]
	// Activation maps In's result [N,2F], or [N,F] without gates, to [N,F].
	Activation func(torch.Tensor) torch.Tensor

	names  ExpertNames
	swiglu bool // the activation is SwiGLU
}

// ExpertNames are the names of an expert's weights, e.g. w1, w3 and w2. Gate is empty for experts
// without gates.
type ExpertNames struct {
	Gate, Up, Down string
	// Stacked says that checkpoints hold the weights of all experts in one tensor Up, the rows of
	// each expert's gate before those of up if there are gates, and one tensor Down.
	Stacked bool
}

// NewExperts declares the experts of a mixture, without biases and of inner width F. A nil
// activation is SwiGLU, which needs gates.
func NewExperts(r Routing, width, inner int, names ExpertNames,
	activation func(torch.Tensor) torch.Tensor) *Experts {
	swiglu := activation == nil
	rows := slices.Repeat([]int{inner}, r.Experts)
	if names.Stacked && swiglu {
		rows = slices.Repeat([]int{2 * inner}, r.Experts)
	} else if names.Gate != "" {
		rows = slices.Repeat(rows, 2)
	}
	if swiglu {
		activation = torch.SwiGLU
	}
	e := &Experts{Activation: activation, names: names, swiglu: swiglu,
		In:  NewLinear(width, false, rows...),
		Out: NewLinear(inner, false, slices.Repeat([]int{width}, r.Experts)...),
	}
	for _, l := range []*Linear{e.In, e.Out} {
		l.Experts, l.TopK = r.Experts, r.TopK
		if names.Stacked {
			l.Weight.Rows, l.Weight.Stack = l.Weight.Shape[:1], r.Experts
		}
	}
	return e
}

// Children names the weights of each expert as checkpoints do: 0.w1, 0.w3, 1.w1, ….
func (e *Experts) Children() []Child {
	if e.names.Stacked {
		return []Child{{e.names.Up, e.In}, {e.names.Down, e.Out}}
	}
	var in, out []string
	for i := range e.Out.Experts {
		if e.names.Gate != "" {
			in = append(in, fmt.Sprint(i, ".", e.names.Gate))
		}
		in = append(in, fmt.Sprint(i, ".", e.names.Up))
		out = append(out, fmt.Sprint(i, ".", e.names.Down))
	}
	return []Child{{strings.Join(in, "+"), e.In}, {strings.Join(out, "+"), e.Out}}
}

// forward maps rows x [N,D], which belong to experts, to [N,D]. Under tensor parallelism it is this
// process's term of a sum.
func (e *Experts) forward(x torch.Tensor, groups torch.Groups) torch.Tensor {
	return e.Out.grouped(e.Activation(e.In.grouped(x, groups)), groups)
}

// MoE is a mixture of experts in place of a feed-forward layer: the sum of a token's experts,
// weighted by the router, and of the shared layer, if there is one.
type MoE struct {
	Router  *Linear // [E,D]
	Bias    *Param  // [E], added to the scores for the choice of experts alone; nil for none
	Experts *Experts
	Shared  FeedForward // nil for none
	Routing Routing
	Names   MoENames
	Balance *Balance // records the shares of the experts; nil for none
}

// MoENames are the names of a mixture's parts in checkpoints.
type MoENames struct{ Router, Bias, Experts, Shared string }

// NewMoE declares a mixture without bias and shared layer.
func NewMoE(width int, routing Routing, experts *Experts, names MoENames) *MoE {
	return &MoE{Router: NewLinear(width, false, routing.Experts), Experts: experts,
		Routing: routing, Names: names}
}

// Children names the parts as checkpoints do.
func (m *MoE) Children() []Child {
	n := m.Names
	return []Child{{n.Router, m.Router}, {n.Bias, m.Bias}, {n.Experts, m.Experts},
		{n.Shared, m.Shared}}
}

// Forward maps x, normalized by norm, to the layer's output: all [..., D].
func (m *MoE) Forward(norm *RMSNorm, x torch.Tensor) torch.Tensor {
	in := m.Experts.In.Weight
	var h torch.Tensor
	if y := m.decode(norm, x); y.Defined() {
		return y
	}
	if in.tokens() { // each process normalizes its own tokens
		h = in.spread(norm.Forward(x))
	} else {
		h = norm.Forward(in.spread(x))
	}
	y := m.Experts.Out.Weight.collect(m.routed(h.View(-1, h.Size(-1))).View(h.Shape()...))
	if m.Shared != nil {
		y = y.Add(m.Shared.Forward(norm, x))
	}
	return y
}

// ForwardAdd is x + Forward(norm, x).
func (m *MoE) ForwardAdd(norm *RMSNorm, x torch.Tensor) torch.Tensor {
	return x.Add(m.Forward(norm, x))
}

// decode is Forward of a single token on the CPU, in few operations: a step reads the weights of k
// experts, which takes little longer than launching an operation. It returns no tensor where it
// does not apply.
func (m *MoE) decode(norm *RMSNorm, x torch.Tensor) torch.Tensor {
	e, width := m.Experts, x.Size(-1)
	if x.Numel() != width || x.Device().IsCUDA() || torch.GradEnabled() || !e.swiglu ||
		!e.In.plain() || !e.Out.plain() {
		return torch.Tensor{}
	}
	return torch.Scoped1(func() torch.Tensor {
		weights, experts := m.choose(norm.Forward(x).View(1, width))
		inner := e.Out.Weight.Shape[1]
		var all []torch.Tensor
		for _, i := range torch.Values[int64](experts) {
			in := e.In.Weight.WeightRows(int(i)*2*inner, 2*inner)
			out := e.Out.Weight.WeightRows(int(i)*width, width)
			h := torch.NormLinearSwiGLU(x, norm.Weight.Tensor, norm.Eps, in, torch.Tensor{})
			all = append(all, torch.Linear(h, out, torch.Tensor{}).View(1, width))
		}
		y := torch.Cat(0, all...).To(torch.Float32)
		y = weights.Matmul(y).To(x.DType()).View(x.Shape()...)
		if m.Shared != nil {
			y = y.Add(m.Shared.Forward(norm, x))
		}
		return y
	})
}

// choose returns the experts of each row of h [N,D] and their weights; see [Routing.choose].
func (m *MoE) choose(h torch.Tensor) (weights, experts torch.Tensor) {
	var bias torch.Tensor
	if m.Bias != nil {
		bias = m.Bias.Tensor
	}
	logits := m.Router.local(h)
	weights, experts = m.Routing.choose(logits, bias)
	if m.Balance != nil && m.Balance.On {
		m.Balance.add(m, logits, experts)
	}
	return weights, experts
}

// routed sends each row of h [N,D] through its experts.
func (m *MoE) routed(h torch.Tensor) torch.Tensor {
	return torch.Scoped1(func() torch.Tensor {
		weights, experts := m.choose(h)
		k, n, width := m.Routing.TopK, h.Size(0), h.Size(1)
		groups, order, place := torch.Group(experts.View(-1), m.Routing.Experts)
		// Row i of the groups is token order[i]/k.
		rows := h
		if k > 1 {
			rows = h.Unsqueeze(1).Expand(n, k, width).Reshape(n*k, width)
		}
		y := m.Experts.forward(rows.IndexSelect(0, order), groups)
		y = y.IndexSelect(0, place).View(n, k, width)
		return weights.Unsqueeze(1).Matmul(y.To(torch.Float32)).Squeeze(1).To(h.DType())
	})
}

// Divide shares the inner width of every expert. Every process holds the router.
func (m *MoE) Divide(d Divider) error {
	e := m.Experts
	inner := e.Out.Weight.Shape[1]
	if inner < d.Size() {
		return TooManyProcesses(fmt.Sprintf("experts of width %d", inner), d, inner)
	}
	spans := make([]Span, e.In.Weight.Shape[0]/inner)
	for i := range spans {
		spans[i] = Span{i * inner, inner, 1}
	}
	d.Outputs(e.In, spans...)
	d.Inputs(e.Out, Span{0, inner, 1})
	d.Outputs(m.Router, Span{0, m.Routing.Experts, 0})
	return nil
}
