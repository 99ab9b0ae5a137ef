package bench

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"conquer/bamba"
	"conquer/torch"
)

// Passes are what [RunSSD] can measure: the scan forward and backward, its step over a single token, the causal
// convolution before it and the gated norm behind it.
var Passes = []string{"forward", "backward", "step", "conv", "norm"}

// SSDOptions say what [RunSSD] measures: every combination of the lists. Strategies and chunk sizes concern the passes
// forward and backward alone, lengths all but step.
type SSDOptions struct {
	Passes     []string
	Strategies []bamba.Chunking // their ChunkSize is not looked at
	ChunkSizes []int            // powers of two from 16 to 256, or bamba.Auto
	Lengths    []int
	Batches    []int
	Shape      ScanShape
	DType      torch.DType
	Device     torch.Device
	Repeats    int // timed runs of each, after a warm-up
	Ceilings   Ceilings
}

// ScanShape is a state-space layer: H heads of P dimensions with a state of N, in G groups.
type ScanShape struct{ Heads, HeadDim, State, Groups int }

// Check reports what is wrong with the options, if anything.
func (o SSDOptions) Check() error {
	s := o.Shape
	for _, pass := range o.Passes {
		if !slices.Contains(Passes, pass) {
			return fmt.Errorf("unknown pass %q: choose among %s", pass, strings.Join(Passes, ", "))
		}
	}
	for _, c := range o.Strategies {
		for _, size := range o.ChunkSizes {
			c.ChunkSize = size
			if err := c.Check(); err != nil {
				return err
			}
		}
	}
	switch {
	case s.State < 16 || s.State > 256:
		return fmt.Errorf("state is %d, expected 16 to 256", s.State)
	case s.HeadDim < 16 || s.HeadDim > 128:
		return fmt.Errorf("head_dim is %d, expected 16 to 128", s.HeadDim)
	case s.Groups < 1 || s.Heads < 1 || s.Heads%s.Groups != 0:
		return fmt.Errorf("%d groups do not divide %d heads", s.Groups, s.Heads)
	case o.Repeats < 1:
		return fmt.Errorf("repeats is %d, expected at least 1", o.Repeats)
	}
	return errors.Join(checkPositive("length", o.Lengths...), checkPositive("batch_size", o.Batches...))
}

// row is the work itself, without figures.
func (o SSDOptions) row(pass, strategy string, batch, length, chunk int) SSDRow {
	return SSDRow{
		Strategy: strategy, Pass: pass, Device: o.Device.String(), DType: o.DType.String(), Batch: batch, Length: length,
		Heads: o.Shape.Heads, HeadDim: o.Shape.HeadDim, State: o.Shape.State, Groups: o.Shape.Groups, ChunkSize: chunk,
		Repeats: o.Repeats,
	}
}

// plan lists the rows to measure.
func (o SSDOptions) plan() (rows []SSDRow, strategies []bamba.Chunking) {
	add := func(r SSDRow, c bamba.Chunking) { rows, strategies = append(rows, r), append(strategies, c) }
	for _, pass := range o.Passes {
		for _, batch := range o.Batches {
			if pass == "step" {
				add(o.row(pass, "kernel", batch, 1, 0), bamba.Chunking{})
				continue
			}
			for _, length := range o.Lengths {
				if pass == "conv" || pass == "norm" {
					add(o.row(pass, "kernel", batch, length, 0), bamba.Chunking{})
					continue
				}
				for _, size := range o.ChunkSizes {
					for _, c := range o.Strategies {
						c.ChunkSize = size
						add(o.row(pass, c.String(), batch, length, c.Size(o.Shape.HeadDim, o.Shape.State)), c)
					}
				}
			}
		}
	}
	return rows, strategies
}

// RunSSD measures the scan and what stands around it in a state-space layer, on inputs drawn for the run, and holds the
// results against a float64 recurrence. each gets every row as it is finished, with how many there will be. A row that
// failed, for want of memory for instance, says so and the run goes on.
func RunSSD(ctx context.Context, o SSDOptions, each func(row SSDRow, total int)) error {
	if err := o.Check(); err != nil {
		return err
	}
	rows, strategies := o.plan()
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	for i, row := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := torch.Run(func() (err error) {
			torch.ManualSeed(random.Int64())
			torch.NoGrad(func() {
				switch row.Pass {
				case "forward":
					err = o.forward(ctx, &row, strategies[i], random)
				case "backward":
					err = o.backward(ctx, &row, strategies[i], random)
				case "step":
					err = o.step(ctx, &row)
				case "conv":
					err = o.conv(ctx, &row)
				case "norm":
					err = o.norm(ctx, &row)
				}
			})
			return err
		})
		if err != nil {
			reason, isRow := oneLine(err)
			if !isRow {
				return err
			}
			row = o.row(row.Pass, row.Strategy, row.Batch, row.Length, row.ChunkSize)
			row.Failed = reason
		} else {
			o.rates(&row)
		}
		each(row, len(rows))
	}
	return nil
}

// rates turns counts and times into rates.
func (o SSDOptions) rates(r *SSDRow) {
	r.Bytes, r.Flops = scanCost(r.Pass, o.Shape, r.Batch, r.Length, r.ChunkSize, o.DType.Size(), strings.HasPrefix(r.Strategy, bamba.Independent))
	if math.IsInf(r.Error, 0) || math.IsNaN(r.Error) {
		r.Error, r.Failed = 0, "the result holds something that is no number"
	}
	r.GBPerS = fraction(float64(r.Bytes)/1e6, r.MedianMS)
	r.GFlopPerS = fraction(float64(r.Flops)/1e6, r.MedianMS)
	r.OfBandwidth = fraction(r.GBPerS, o.Ceilings.ReadGBPerS)
	r.OfRate = fraction(r.GFlopPerS, o.Ceilings.rate(o.DType))
}

func (r *SSDRow) set(t timing, err error) error {
	r.MedianMS, r.LowMS, r.HighMS = t.median, t.low, t.high
	return err
}

// scanCost counts the bytes that a pass must at least move, each input read and each result written once, and the
// operations (a multiplication and an addition are two) of its algorithm, Q being the chunk size or the length where that is
// less. e is the bytes of an element, T = B·L the tokens.
//
//	forward   bytes  e·T·(2HP + H + 2GN) + 4·BHPN         x, dt, B, C read, y and the float32 state written
//	          flops  T·(4HPN + QHP + QGN)                 states made and read; the causal half of C·Bᵀ, and of it times x
//	backward  bytes  e·T·(3HP + 2H + 4GN)                 x, dt, B, C, dy read; dx, ddt, dB, dC written
//	          flops  T·(10HPN + 2QHP + 3QGN)              two walks of the states, dx, dB, dC; within chunks dy·xᵀ, dx, C·Bᵀ, dB, dC
//	step      bytes  8·BHPN + e·B·(2HP + H + 2GN)         the float32 state read and written
//	          flops  B·5HPN                               decay, dt·B⊗x added, times C
//	conv      bytes  e·2T(HP + 2GN)    flops 2·4·T(HP + 2GN)     four taps
//	norm      bytes  e·3T·HP           flops 9·T·HP              x·silu(z), the squares' sum, two scalings
//
// Under independent no state is made or read in the scan: the terms with HPN fall away. A kernel is free to choose blocks of
// its own under default, and to do more or less than the count.
func scanCost(pass string, s ScanShape, batch, length, chunk, element int, independent bool) (bytes, flops int64) {
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

const (
	taps = 4 // of the convolution
	sets = 3 // of inputs, which the calls take in turns
	// Tokens that are held against float64. What comes later does not reach back to them.
	checked = 4096
)

// inputs draws a scan's inputs as a layer has them: time steps of 0.001 to 1, decays over very different spans.
func (o SSDOptions) inputs(batch, length int) torch.SSDInput {
	s, d := o.Shape, o.Device
	draw := func(shape ...int) torch.Tensor { return torch.Randn(shape, torch.Float32, d).To(o.DType) }
	lead := []int{batch, length}
	if length == 0 { // a single token
		lead = lead[:1]
	}
	with := func(rest ...int) []int { return append(slices.Clone(lead), rest...) }
	return torch.SSDInput{
		X: draw(with(s.Heads, s.HeadDim)...), DT: draw(with(s.Heads)...), B: draw(with(s.Groups, s.State)...), C: draw(with(s.Groups, s.State)...),
		A:      torch.Empty([]int{s.Heads}, torch.Float32, d).Uniform(-16, -1),
		D:      torch.Randn([]int{s.Heads}, torch.Float32, d),
		DTBias: torch.Empty([]int{s.Heads}, torch.Float32, d).Uniform(-5, -3), Softplus: true, DTMax: math.Inf(1),
	}
}

// head copies one head of one sequence, its first tokens, to the host.
func (o SSDOptions) head(in torch.SSDInput, c bamba.Chunking, row, head int) *headScan {
	length := min(in.X.Size(1), checked)
	h := &headScan{
		length: length, headDim: o.Shape.HeadDim, state: o.Shape.State, chunk: c.Size(o.Shape.HeadDim, o.Shape.State), window: c.Reach(),
		a: torch.Values[float64](in.A)[head], d: torch.Values[float64](in.D)[head], bias: torch.Values[float64](in.DTBias)[head],
	}
	group := head / (o.Shape.Heads / o.Shape.Groups)
	h.x, h.dt = column(in.X, row, head, length), column(in.DT, row, head, length)
	h.b, h.c = column(in.B, row, group, length), column(in.C, row, group, length)
	return h
}

// column is what the first tokens of a row have at index i of t's third dimension.
func column(t torch.Tensor, row, i, length int) []float64 {
	return torch.Values[float64](t.Select(0, row).Narrow(0, 0, length).Select(1, i))
}

func (o SSDOptions) forward(ctx context.Context, r *SSDRow, c bamba.Chunking, random *rand.Rand) error {
	var in [sets]torch.SSDInput
	for i := range in {
		in[i] = o.inputs(r.Batch, r.Length)
	}
	if err := r.set(measure(ctx, o.Device, o.Repeats, func(i int) { c.Scan(in[i%sets]) })); err != nil {
		return err
	}
	row, head := random.IntN(r.Batch), random.IntN(o.Shape.Heads)
	r.PeakBytes = peak(o.Device, func() { c.Scan(in[0]) })
	torch.Scoped(func() {
		y, _ := c.Scan(in[0])
		want := o.head(in[0], c, row, head).forward()
		r.Error = distanceOfSums(column(y, row, head, min(r.Length, checked)), want...)
	})
	return nil
}

func (o SSDOptions) backward(ctx context.Context, r *SSDRow, c bamba.Chunking, random *rand.Rand) error {
	in := o.inputs(r.Batch, r.Length)
	leaves := []torch.Tensor{in.X, in.DT, in.A, in.B, in.C, in.D, in.DTBias}
	for _, leaf := range leaves {
		leaf.RequireGrad(true)
	}
	// run returns how long the backward of one forward took, in milliseconds.
	run := func(dy torch.Tensor) (took float64) {
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
	once := func() (took float64) {
		torch.Scoped(func() { took = run(torch.Randn(in.X.Shape(), torch.Float32, o.Device).To(o.DType)) })
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

	// One head's share of the gradients can be told apart where dy is zero for all others.
	row, head, length := random.IntN(r.Batch), random.IntN(o.Shape.Heads), min(r.Length, checked)
	group := head / (o.Shape.Heads / o.Shape.Groups)
	dy := torch.Zeros(in.X.Shape(), o.DType, o.Device)
	alone := dy.Select(0, row).Narrow(0, 0, length).Select(1, head)
	alone.Copy(torch.Randn(alone.Shape(), torch.Float32, o.Device))
	r.PeakBytes = peak(o.Device, func() { run(dy) })
	scan := o.head(in, c, row, head)
	scan.dy = torch.Values[float64](alone)
	want := scan.gradients()
	at := func(leaf torch.Tensor) []float64 { return torch.Values[float64](leaf.Grad())[head:] }
	r.Error = max(
		distanceOfSums(column(in.X.Grad(), row, head, length), want.x...), distanceOfSums(column(in.DT.Grad(), row, head, length), want.dt...),
		distanceOfSums(column(in.B.Grad(), row, group, length), want.b...), distanceOfSums(column(in.C.Grad(), row, group, length), want.c...),
		distanceOfSums(at(in.A), want.a), distanceOfSums(at(in.D), want.d), distanceOfSums(at(in.DTBias), want.bias))
	for _, leaf := range leaves {
		leaf.ClearGrad()
	}
	return nil
}

func (o SSDOptions) step(ctx context.Context, r *SSDRow) error {
	s := o.Shape
	var in [sets]torch.SSDInput
	var states [sets]torch.Tensor
	for i := range in {
		in[i] = o.inputs(r.Batch, 0)
		states[i] = torch.Randn([]int{r.Batch, s.Heads, s.HeadDim, s.State}, torch.Float32, o.Device)
	}
	if err := r.set(measure(ctx, o.Device, o.Repeats, func(i int) { torch.SSDStep(states[i%sets], in[i%sets]) })); err != nil {
		return err
	}
	state, first := states[0], in[0]
	r.PeakBytes = peak(o.Device, func() { torch.SSDStep(state, first) })
	torch.Scoped(func() {
		before := state.To(torch.Float64)
		y := torch.SSDStep(state, first)
		// h = e^{dt·A}·h + dt·x⊗B, y = C·h + D·x, all of it in float64.
		wide := func(t torch.Tensor) torch.Tensor { return t.To(torch.Float64) }
		perHead := func(t torch.Tensor) torch.Tensor { // [B,G,N] to [B,H,1,N]
			t = wide(t).Unsqueeze(2).Expand(r.Batch, s.Groups, s.Heads/s.Groups, s.State)
			return t.Reshape(r.Batch, s.Heads, 1, s.State)
		}
		dt := wide(first.DT).Add(wide(first.DTBias)).Softplus()
		x := wide(first.X).Unsqueeze(3) // [B,H,P,1]
		decay := dt.Mul(wide(first.A)).Exp().View(r.Batch, s.Heads, 1, 1)
		after := before.Mul(decay).Add(x.Mul(dt.View(r.Batch, s.Heads, 1, 1)).Mul(perHead(first.B)))
		want := after.Mul(perHead(first.C)).SumDim(3, false).Add(wide(first.X).Mul(wide(first.D).View(1, s.Heads, 1)))
		r.Error = max(distance(torch.Values[float64](y), torch.Values[float64](want)),
			distance(torch.Values[float64](state), torch.Values[float64](after)))
	})
	return nil
}

func (o SSDOptions) conv(ctx context.Context, r *SSDRow) error {
	channels := o.Shape.Heads*o.Shape.HeadDim + 2*o.Shape.Groups*o.Shape.State
	draw := func(shape ...int) torch.Tensor { return torch.Randn(shape, torch.Float32, o.Device).To(o.DType) }
	weight, bias := draw(channels, taps), draw(channels)
	var x [sets]torch.Tensor
	for i := range x {
		x[i] = draw(r.Batch, r.Length, channels)
	}
	conv := func(x torch.Tensor) torch.Tensor {
		y, _ := torch.CausalConv1D(x, weight, bias, torch.Tensor{}, torch.Tensor{}, true)
		return y
	}
	if err := r.set(measure(ctx, o.Device, o.Repeats, func(i int) { conv(x[i%sets]) })); err != nil {
		return err
	}
	r.PeakBytes = peak(o.Device, func() { conv(x[0]) })
	torch.Scoped(func() {
		length := min(r.Length, checked)
		y := conv(x[0]).Select(0, 0).Narrow(0, 0, length)
		wide := torch.Cat(0, torch.Zeros([]int{taps - 1, channels}, torch.Float64, o.Device), x[0].Select(0, 0).Narrow(0, 0, length).To(torch.Float64))
		want := bias.To(torch.Float64)
		for k := range taps {
			want = want.Add(wide.Narrow(0, k, length).Mul(weight.Select(1, k).To(torch.Float64)))
		}
		r.Error = distance(torch.Values[float64](y), torch.Values[float64](want.Silu()))
	})
	return nil
}

func (o SSDOptions) norm(ctx context.Context, r *SSDRow) error {
	const eps = 1e-5
	width := o.Shape.Heads * o.Shape.HeadDim
	draw := func(shape ...int) torch.Tensor { return torch.Randn(shape, torch.Float32, o.Device).To(o.DType) }
	weight := draw(width)
	var x, z [sets]torch.Tensor
	for i := range x {
		x[i], z[i] = draw(r.Batch, r.Length, width), draw(r.Batch, r.Length, width)
	}
	norm := func(i int) torch.Tensor { return torch.GatedRMSNorm(x[i%sets], z[i%sets], weight, eps, 0) }
	if err := r.set(measure(ctx, o.Device, o.Repeats, func(i int) { norm(i) })); err != nil {
		return err
	}
	r.PeakBytes = peak(o.Device, func() { norm(0) })
	torch.Scoped(func() {
		length := min(r.Length, checked)
		wide := func(t torch.Tensor) torch.Tensor { return t.Select(0, 0).Narrow(0, 0, length).To(torch.Float64) }
		y := norm(0).Select(0, 0).Narrow(0, 0, length)
		gated := wide(x[0]).Mul(wide(z[0]).Silu())
		scale := gated.PowScalar(2).SumDim(1, true).MulScalar(1 / float64(width)).AddScalar(eps).Rsqrt()
		r.Error = distance(torch.Values[float64](y), torch.Values[float64](gated.Mul(scale).Mul(weight.To(torch.Float64))))
	})
	return nil
}
