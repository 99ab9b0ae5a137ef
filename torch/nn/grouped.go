package nn

import "conquer/torch"

// grouped is local of a layer of experts: x [N,D], whose rows belong to experts, gives [N,R], with
// R the local rows of one expert.
func (l *Linear) grouped(x torch.Tensor, groups torch.Groups) torch.Tensor {
	if l.Observe != nil {
		l.Observe(x, groups)
	}
	y := torch.GroupedLinear(x, l.Weight.Tensor, groups)
	if len(l.LoRA) == 0 {
		return y
	}
	parts := len(l.Rows) / l.Experts
	rows := l.localRows()[:parts]
	results := y.Split(-1, rows...)
	for part := range results {
		a := expertAdapters{groups: groups, rows: rows[part], in: x.Size(1)}
		for i := part; i < len(l.LoRA); i += parts {
			a.list = append(a.list, l.LoRA[i])
		}
		results[part] = a.forward(l, part, x, results[part])
	}
	return torch.Cat(-1, results...)
}

// expertAdapters are the adapters of one component of each expert, such as all gates; nil for an
// expert without one.
type expertAdapters struct {
	list     []*LoRA
	groups   torch.Groups
	rows, in int // of the component, local
}

// forward adds the adapters to y [N,R], the result of component part of l for x [N,D].
func (e expertAdapters) forward(l *Linear, part int, x, y torch.Tensor) torch.Tensor {
	var one *LoRA // options are those of all
	rank := 0
	for _, a := range e.list {
		if a != nil {
			one, rank = a, max(rank, a.A.Shape[0])
		}
	}
	if one == nil {
		return y
	}
	if sizes := e.groups.Sizes(); sizes != nil && !torch.GradEnabled() {
		return e.used(l, part, sizes, x, y)
	}
	dropped := one.drop(x)
	wide := dropped.To(one.A.DType())
	low := torch.GroupedLinear(torch.GroupedLinear(wide, e.down(rank, one), e.groups), e.up(rank,
		one), e.groups).To(x.DType())
	if one.M == nil {
		return y.Add(low)
	}
	gain := e.gain(l, part).To(y.DType())
	if one.Dropout > 0 && torch.GradEnabled() {
		base := torch.GroupedLinear(dropped, l.Weight.Tensor, e.groups)
		base = base.Narrow(1, part*e.rows, e.rows)
		return y.Add(base.Mul(gain.AddScalar(-1))).Add(low.Mul(gain))
	}
	return y.Add(low).Mul(gain)
}

// used is forward without gradients: it reads the adapters of experts that have rows.
func (e expertAdapters) used(l *Linear, part int, sizes []int, x, y torch.Tensor) torch.Tensor {
	var results []torch.Tensor
	start := 0
	for i, n := range sizes {
		if n == 0 {
			continue
		}
		in, out := x.Narrow(0, start, n), y.Narrow(0, start, n)
		start += n
		if a := e.list[i]; a != nil && a.M != nil {
			weight, _ := l.component(i*len(l.Rows)/l.Experts + part)
			out = a.rescale(in, out, weight, torch.Tensor{})
		} else if a != nil {
			out = out.Add(a.Forward(in))
		}
		results = append(results, out)
	}
	return torch.Cat(0, results...)
}

// down is A of every expert, zeros where there is none or its rank is smaller: [E·rank,D].
func (e expertAdapters) down(rank int, like *LoRA) torch.Tensor {
	var all []torch.Tensor
	for _, a := range e.list {
		missing := rank
		if a != nil {
			all = append(all, a.A.Tensor)
			missing -= a.A.Shape[0]
		}
		if missing > 0 {
			all = append(all, torch.Zeros([]int{missing, e.in}, like.A.DType(), like.A.Device()))
		}
	}
	return torch.Cat(0, all...)
}

// up is the scaled B of every expert: [E·R,rank].
func (e expertAdapters) up(rank int, like *LoRA) torch.Tensor {
	var all []torch.Tensor
	for _, a := range e.list {
		if a == nil {
			all = append(all, torch.Zeros([]int{e.rows, rank}, like.B.DType(), like.B.Device()))
			continue
		}
		b := a.B.MulScalar(a.Scale)
		if n := rank - a.B.Shape[1]; n > 0 {
			b = torch.Cat(1, b, torch.Zeros([]int{e.rows, n}, b.DType(), b.Device()))
		}
		all = append(all, b)
	}
	return torch.Cat(0, all...)
}

// gain is, for each row, DoRA's factors of its expert's outputs: [N,R]. The lengths of a weight's
// rows are constants for the gradient.
func (e expertAdapters) gain(l *Linear, part int) torch.Tensor {
	var all []torch.Tensor
	for i, a := range e.list {
		if a == nil {
			all = append(all, torch.Ones([]int{e.rows}, torch.Float32, l.Weight.Device()))
			continue
		}
		weight, _ := l.component(i*len(l.Rows)/l.Experts + part)
		var length torch.Tensor
		torch.NoGrad(func() {
			length = torch.Scoped1(func() torch.Tensor { return lengths(a.sum(weight)) })
		})
		all = append(all, a.M.Div(length))
	}
	return torch.Stack(0, all...).IndexSelect(0, e.groups.Index)
}
