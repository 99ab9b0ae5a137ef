package bench

import (
	"context"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"conquer/model/statespace"
	"conquer/torch"
)

// inputs returns random inputs of a scan with the ranges of a real layer: time steps from 0.001
// to 1 and very different decays. Length 0 gives the inputs of a step.
func (o SSDOptions) inputs(batch, length int) torch.SSDInput {
	s, d := o.Shape, o.Device
	draw := func(shape ...int) torch.Tensor {
		return torch.Randn(shape, torch.Float32,
			d).To(o.DType)
	}
	lead := []int{batch, length}
	if length == 0 { // a single token
		lead = lead[:1]
	}
	with := func(rest ...int) []int { return append(slices.Clone(lead), rest...) }
	return torch.SSDInput{
		X: draw(with(s.Heads, s.HeadDim)...), DT: draw(with(s.Heads)...),
		B: draw(with(s.Groups, s.State)...), C: draw(with(s.Groups, s.State)...),
		A:      torch.Empty([]int{s.Heads}, torch.Float32, d).Uniform(-16, -1),
		D:      torch.Randn([]int{s.Heads}, torch.Float32, d),
		DTBias: torch.Empty([]int{s.Heads}, torch.Float32, d).Uniform(-5, -3), Softplus: true,
		DTMax: math.Inf(1),
	}
}

// head copies the first tokens of one head of one sequence to the host.
func (o SSDOptions) head(in torch.SSDInput, c statespace.Chunking, row, head int) *headScan {
	length := min(in.X.Size(1), checked)
	h := &headScan{
		length: length, headDim: o.Shape.HeadDim, state: o.Shape.State,
		chunk: c.Size(o.Shape.HeadDim, o.Shape.State), window: c.Reach(),
		a: torch.Values[float64](in.A)[head], d: torch.Values[float64](in.D)[head],
		bias: torch.Values[float64](in.DTBias)[head],
	}
	group := head / (o.Shape.Heads / o.Shape.Groups)
	h.x, h.dt = column(in.X, row, head, length), column(in.DT, row, head, length)
	h.b, h.c = column(in.B, row, group, length), column(in.C, row, group, length)
	return h
}

// column returns index i of the third dimension of t for the first tokens of a row.
func column(t torch.Tensor, row, i, length int) []float64 {
	return torch.Values[float64](t.Select(0, row).Narrow(0, 0, length).Select(1, i))
}

// forward measures the scan and checks one head of one sequence.
func (o SSDOptions) forward(ctx context.Context, r *SSDRow, c statespace.Chunking,
	random *rand.Rand,
) error {
	var in [sets]torch.SSDInput
	for i := range in {
		in[i] = o.inputs(r.Batch, r.Length)
	}
	scan := func(i int) { c.Scan(in[i%sets]) }
	if err := r.set(measure(ctx, o.Device, o.Repeats, scan)); err != nil {
		return err
	}
	row, head := random.IntN(r.Batch), random.IntN(o.Shape.Heads)
	r.PeakBytes = peak(o.Device, func() { c.Scan(in[0]) })
	torch.Scoped(func() {
		y, _ := c.Scan(in[0])
		got := column(y, row, head, min(r.Length, checked))
		if registered(c) {
			want, _ := o.wide(in[0], row, head).scan(c, torch.Tensor{})
			r.Error = distance(got, want)
			return
		}
		r.Error = distanceOfSums(got, o.head(in[0], c, row, head).forward()...)
	})
	return nil
}

// scanInputs are the inputs of a scan that have gradients.
func scanInputs(in torch.SSDInput) []torch.Tensor {
	return []torch.Tensor{in.X, in.DT, in.A, in.B, in.C, in.D, in.DTBias}
}

// backward measures the backward pass of the scan and checks the gradients of one head.
func (o SSDOptions) backward(ctx context.Context, r *SSDRow, c statespace.Chunking,
	random *rand.Rand,
) error {
	in := o.inputs(r.Batch, r.Length)
	for _, leaf := range scanInputs(in) {
		leaf.RequireGrad(true)
	}
	once := func() (took float64) {
		torch.Scoped(func() {
			dy := torch.Randn(in.X.Shape(), torch.Float32, o.Device).To(o.DType)
			took = o.backwardOnce(c, in, dy)
		})
		return took
	}
	took := 0.0
	for range warmUps {
		took = once()
	}
	err := r.set(sampled(ctx, o.Device, o.Repeats, took, func(calls int) (sum float64) {
		for range calls {
			sum += once()
		}
		return sum
	}))
	if err != nil {
		return err
	}
	o.checkGradients(r, c, in, random.IntN(r.Batch), random.IntN(o.Shape.Heads))
	for _, leaf := range scanInputs(in) {
		leaf.ClearGrad()
	}
	return nil
}

// backwardOnce computes the gradients for dy and returns the milliseconds of the backward pass.
func (o SSDOptions) backwardOnce(c statespace.Chunking, in torch.SSDInput, dy torch.Tensor) (
	took float64,
) {
	leaves := scanInputs(in)
	for _, leaf := range leaves {
		leaf.ClearGrad()
	}
	torch.WithGrad(func() {
		y, _ := c.Scan(in)
		o.Device.Synchronize()
		began := time.Now()
		torch.Backward([]torch.Tensor{y}, []torch.Tensor{dy}, leaves...)
		o.Device.Synchronize()
		took = milliseconds(time.Since(began))
	})
	return took
}

// checkGradients sets the error and the peak memory of a backward pass. With dy zero for all
// other heads, the gradients are those of one head.
func (o SSDOptions) checkGradients(r *SSDRow, c statespace.Chunking, in torch.SSDInput,
	row, head int) {
	length, group := min(r.Length, checked), head/(o.Shape.Heads/o.Shape.Groups)
	dy := torch.Zeros(in.X.Shape(), o.DType, o.Device)
	alone := dy.Select(0, row).Narrow(0, 0, length).Select(1, head)
	alone.Copy(torch.Randn(alone.Shape(), torch.Float32, o.Device))
	r.PeakBytes = peak(o.Device, func() { o.backwardOnce(c, in, dy) })
	at := func(leaf torch.Tensor) []float64 { return torch.Values[float64](leaf.Grad())[head:] }
	if registered(c) {
		_, want := o.wide(in, row, head).scan(c, alone)
		for i, got := range [][]float64{column(in.X.Grad(), row, head, length),
			column(in.DT.Grad(), row, head, length), at(in.A)[:1],
			column(in.B.Grad(), row, group, length), column(in.C.Grad(), row, group, length),
			at(in.D)[:1], at(in.DTBias)[:1]} {
			r.Error = max(r.Error, distance(got, want[i]))
		}
		return
	}
	scan := o.head(in, c, row, head)
	scan.dy = torch.Values[float64](alone)
	want := scan.gradients()
	r.Error = max(
		distanceOfSums(column(in.X.Grad(), row, head, length), want.x...),
		distanceOfSums(column(in.DT.Grad(), row, head, length), want.dt...),
		distanceOfSums(column(in.B.Grad(), row, group, length), want.b...),
		distanceOfSums(column(in.C.Grad(), row, group, length), want.c...),
		distanceOfSums(at(in.A), want.a), distanceOfSums(at(in.D), want.d),
		distanceOfSums(at(in.DTBias), want.bias))
}

// step measures the update of the state by one token.
func (o SSDOptions) step(ctx context.Context, r *SSDRow) error {
	s := o.Shape
	var in [sets]torch.SSDInput
	var states [sets]torch.Tensor
	for i := range in {
		in[i] = o.inputs(r.Batch, 0)
		states[i] = torch.Randn([]int{r.Batch, s.Heads, s.HeadDim, s.State}, torch.Float32,
			o.Device)
	}
	step := func(i int) { torch.SSDStep(states[i%sets], in[i%sets]) }
	if err := r.set(measure(ctx, o.Device, o.Repeats, step)); err != nil {
		return err
	}
	state, first := states[0], in[0]
	r.PeakBytes = peak(o.Device, func() { torch.SSDStep(state, first) })
	torch.Scoped(func() {
		before := state.To(torch.Float64)
		y := torch.SSDStep(state, first)
		// h = e^{dt·A}·h + dt·x⊗B, y = C·h + D·x in float64.
		wide := func(t torch.Tensor) torch.Tensor { return t.To(torch.Float64) }
		perHead := func(t torch.Tensor) torch.Tensor { // [B, G, N] to [B, H, 1, N]
			t = wide(t).Unsqueeze(2).Expand(r.Batch, s.Groups, s.Heads/s.Groups, s.State)
			return t.Reshape(r.Batch, s.Heads, 1, s.State)
		}
		dt := wide(first.DT).Add(wide(first.DTBias)).Softplus()
		x := wide(first.X).Unsqueeze(3) // [B, H, P, 1]
		decay := dt.Mul(wide(first.A)).Exp().View(r.Batch, s.Heads, 1, 1)
		after := before.Mul(decay).Add(x.Mul(dt.View(r.Batch, s.Heads, 1, 1)).Mul(perHead(first.B)))
		want := after.Mul(perHead(first.C)).SumDim(3,
			false).Add(wide(first.X).Mul(wide(first.D).View(1, s.Heads, 1)))
		r.Error = max(distance(torch.Values[float64](y), torch.Values[float64](want)),
			distance(torch.Values[float64](state), torch.Values[float64](after)))
	})
	return nil
}

// conv measures the causal convolution.
func (o SSDOptions) conv(ctx context.Context, r *SSDRow) error {
	channels := o.Shape.Heads*o.Shape.HeadDim + 2*o.Shape.Groups*o.Shape.State
	draw := func(shape ...int) torch.Tensor {
		return torch.Randn(shape, torch.Float32,
			o.Device).To(o.DType)
	}
	weight, bias := draw(channels, taps), draw(channels)
	var x [sets]torch.Tensor
	for i := range x {
		x[i] = draw(r.Batch, r.Length, channels)
	}
	conv := func(x torch.Tensor) torch.Tensor {
		y, _ := torch.CausalConv1D(x, weight, bias, torch.Tensor{}, torch.Tensor{}, true)
		return y
	}
	call := func(i int) { conv(x[i%sets]) }
	if err := r.set(measure(ctx, o.Device, o.Repeats, call)); err != nil {
		return err
	}
	r.PeakBytes = peak(o.Device, func() { conv(x[0]) })
	torch.Scoped(func() {
		length := min(r.Length, checked)
		y := conv(x[0]).Select(0, 0).Narrow(0, 0, length)
		wide := torch.Cat(0, torch.Zeros([]int{taps - 1, channels}, torch.Float64, o.Device),
			x[0].Select(0, 0).Narrow(0, 0, length).To(torch.Float64))
		want := bias.To(torch.Float64)
		for k := range taps {
			want = want.Add(wide.Narrow(0, k, length).Mul(weight.Select(1, k).To(torch.Float64)))
		}
		r.Error = distance(torch.Values[float64](y), torch.Values[float64](want.Silu()))
	})
	return nil
}

// norm measures the gated norm.
func (o SSDOptions) norm(ctx context.Context, r *SSDRow) error {
	const eps = 1e-5
	width := o.Shape.Heads * o.Shape.HeadDim
	draw := func(shape ...int) torch.Tensor {
		return torch.Randn(shape, torch.Float32,
			o.Device).To(o.DType)
	}
	weight := draw(width)
	var x, z [sets]torch.Tensor
	for i := range x {
		x[i], z[i] = draw(r.Batch, r.Length, width), draw(r.Batch, r.Length, width)
	}
	norm := func(i int) torch.Tensor {
		return torch.GatedRMSNorm(x[i%sets], z[i%sets], weight, eps,
			0)
	}
	if err := r.set(measure(ctx, o.Device, o.Repeats, func(i int) { norm(i) })); err != nil {
		return err
	}
	r.PeakBytes = peak(o.Device, func() { norm(0) })
	torch.Scoped(func() {
		length := min(r.Length, checked)
		wide := func(t torch.Tensor) torch.Tensor {
			return t.Select(0, 0).Narrow(0, 0,
				length).To(torch.Float64)
		}
		y := norm(0).Select(0, 0).Narrow(0, 0, length)
		gated := wide(x[0]).Mul(wide(z[0]).Silu())
		scale := gated.PowScalar(2).SumDim(1, true).MulScalar(1 / float64(width)).AddScalar(
			eps).Rsqrt()
		r.Error = distance(torch.Values[float64](y),
			torch.Values[float64](gated.Mul(scale).Mul(weight.To(torch.Float64))))
	})
	return nil
}
