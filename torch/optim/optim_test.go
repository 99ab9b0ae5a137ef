package optim_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"conquer/torch"
	"conquer/torch/optim"
)

func run(t *testing.T, f func()) {
	t.Helper()
	before := torch.LiveTensors()
	if err := torch.Run(func() error { f(); return nil }); err != nil {
		t.Fatal(err)
	}
	if after := torch.LiveTensors(); after != before {
		t.Fatalf("%d tensors outlived their scope", after-before)
	}
}

// reference is AdamW in float64, as in its paper.
type reference struct{ weight, mean, square []float64 }

func (r *reference) step(gradient []float64, t int, rate, beta1, beta2, decay float64) {
	for i, g := range gradient {
		r.weight[i] -= rate * decay * r.weight[i]
		r.mean[i] = beta1*r.mean[i] + (1-beta1)*g
		r.square[i] = beta2*r.square[i] + (1-beta2)*g*g
		mean := r.mean[i] / (1 - math.Pow(beta1, float64(t)))
		square := r.square[i] / (1 - math.Pow(beta2, float64(t)))
		r.weight[i] -= rate * mean / (math.Sqrt(square) + 1e-8)
	}
}

// params returns a matrix and a vector of a dtype with arbitrary values, and their references.
func params(dtype torch.DType) ([]optim.Param, []*reference) {
	var list []optim.Param
	var refs []*reference
	for i, shape := range [][]int{{5, 7}, {9}} {
		p := torch.Randn(shape, torch.Float32, torch.CPU).To(dtype).RequireGrad(true)
		param := optim.Param{Name: fmt.Sprint("p", i), Tensor: p, NoDecay: len(shape) == 1}
		if len(shape) == 2 {
			param.Rows = []int{2, 3} // of Muon
		}
		list = append(list, param)
		n := p.Numel()
		refs = append(refs,
			&reference{torch.Values[float64](p.Detach()), make([]float64, n), make([]float64, n)})
	}
	return list, refs
}

// gradient sets a weight's gradient to pseudo-random values and returns them.
func gradient(p optim.Param, step int) []float64 {
	values := make([]float32, p.Numel())
	for i := range values {
		values[i] = float32(math.Sin(float64(3*i+7*step))) * float32(math.Exp(math.Cos(float64(i))))
	}
	g := torch.From(values, p.Shape()...).To(p.DType())
	p.SetGrad(g)
	return torch.Values[float64](g)
}

func TestAdamW_FollowsPaperAndDecay(t *testing.T) {
	run(t, func() {
		torch.ManualSeed(1)
		list, refs := params(torch.Float32)
		adam := optim.New(list, optim.Options{Beta1: 0.9, Beta2: 0.99, Decay: 0.1})
		defer adam.Free()
		for step := 1; step <= 50; step++ {
			torch.Scoped(func() {
				for i, p := range list {
					decay := 0.0
					if i == 0 {
						decay = 0.1
					}
					refs[i].step(gradient(p, step), step, 0.01, 0.9, 0.99, decay)
				}
				adam.Step(0.01, 1)
				adam.ClearGradients()
			})
		}
		for i, p := range list {
			for j, got := range torch.Values[float64](p.Detach()) {
				if want := refs[i].weight[j]; math.Abs(got-want) > 1e-5*(1+math.Abs(want)) {
					t.Fatalf("weight %d of %s is %v, want %v", j, p.Name, got, want)
				}
			}
		}
	})
}

// A thousand steps, each smaller than the distance between bfloat16 numbers, must add up.
func TestAdamW_MasterWeightsKeepSmallSteps(t *testing.T) {
	run(t, func() {
		p := optim.Param{
			Name:   "w",
			Tensor: torch.Ones([]int{4, 4}, torch.BFloat16, torch.CPU).RequireGrad(true),
		}
		adam := optim.New([]optim.Param{p}, optim.Options{Beta1: 0.9, Beta2: 0.999})
		defer adam.Free()
		for range 1000 {
			torch.Scoped(func() {
				p.SetGrad(torch.Ones([]int{4, 4}, torch.BFloat16, torch.CPU))
				adam.Step(1e-4, 1)
				adam.ClearGradients()
			})
		}
		if got := torch.Values[float64](p.Detach())[0]; math.Abs(got-0.9) > 0.005 {
			t.Errorf("1000 steps of 1e-4 took the weight from 1 to %v, want 0.9", got)
		}
	})
}

func TestOptimizer_ContinuesExactlyFromSavedState(t *testing.T) {
	for _, options := range []optim.Options{
		{}, {Moments: optim.BFloat16}, {Moments: optim.Int8},
		{Stochastic: true}, {Stochastic: true, Moments: optim.Int8}, {Method: optim.Lion},
		{Method: optim.Muon},
	} {
		for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
			goesOn(t, dtype, options)
		}
	}
}

func goesOn(t *testing.T, dtype torch.DType, options optim.Options) {
	options.Beta1, options.Beta2, options.Decay = 0.9, 0.999, 0.01
	run(t, func() {
		torch.ManualSeed(2)
		list, _ := params(dtype)
		first := optim.New(list, options)
		defer first.Free()
		steps := func(a *optim.Optimizer, list []optim.Param, from, to int) {
			for step := from; step < to; step++ {
				torch.Scoped(func() {
					for _, p := range list {
						gradient(p, step)
					}
					a.Step(0.003, 1)
					a.ClearGradients()
				})
			}
		}
		steps(first, list, 0, 5)
		saved := map[string]torch.Tensor{}
		for _, s := range first.State() {
			saved[s.Name] = s.Tensor.Clone()
		}
		var copies []optim.Param
		for _, p := range list {
			copies = append(
				copies,
				optim.Param{
					Name:    p.Name,
					Rows:    p.Rows,
					NoDecay: p.NoDecay,
					Tensor:  p.Detach().Clone().RequireGrad(true),
				},
			)
		}
		steps(first, list, 5, 10)
		second := optim.New(copies, options)
		defer second.Free()
		if err := second.Restore(
			5,
			func(name string) (torch.Tensor, error) { return saved[name], nil },
		); err != nil {
			t.Fatal(err)
		}
		steps(second, copies, 5, 10)
		if second.Steps() != first.Steps() {
			t.Errorf("%d steps taken, want %d", second.Steps(), first.Steps())
		}
		for i := range list {
			a, b := torch.Values[float32](list[i].Detach()), torch.Values[float32](
				copies[i].Detach())
			for j := range a {
				if a[j] != b[j] {
					t.Fatalf("%v %+v: weight %d is %v after a restore, want %v", dtype, options, j,
						b[j], a[j])
				}
			}
		}
	})
}

func TestFactor_ScalesAllGradientsAlike(t *testing.T) {
	run(t, func() {
		grads := []torch.Tensor{torch.From([]float32{3, 0}, 2), torch.From([]float32{0, 4}, 2, 1)}
		if norm := optim.Norm(grads); norm != 5 {
			t.Errorf("norm %v, want 5", norm)
		}
		if f := optim.Factor(5, 10); f != 1 {
			t.Errorf("a norm within the limit is scaled by %v", f)
		}
		if f := optim.Factor(5, 1); math.Abs(5*f-1) > 1e-6 {
			t.Errorf("a norm of 5 becomes %v, want 1", 5*f)
		}
		bad := []torch.Tensor{
			torch.From([]float32{float32(math.Inf(1))}, 1),
			torch.From([]float32{1}, 1),
		}
		if norm := optim.Norm(bad); optim.Finite(norm) {
			t.Errorf("norm %v of an infinite gradient", norm)
		}

		// A step with a scale equals a step with scaled gradients.
		var ends [2][]float32
		for i, scale := range []float64{0.25, 1} {
			torch.ManualSeed(3)
			list, _ := params(torch.Float32)
			adam := optim.New(list, optim.Options{Beta1: 0.9, Beta2: 0.999, Decay: 0.1})
			for step := range 3 {
				for _, p := range list {
					gradient(p, step)
					if scale == 1 {
						p.SetGrad(p.Grad().MulScalar(0.25))
					}
				}
				adam.Step(0.01, scale)
			}
			ends[i] = torch.Values[float32](list[0].Detach())
			adam.Free()
		}
		for j := range ends[0] {
			if ends[0][j] != ends[1][j] {
				t.Fatalf("weight %d: %v and %v", j, ends[0][j], ends[1][j])
			}
		}
	})
}

// The norm of many elements, of every dtype, against a sum in float64.
func TestNorm_CoversAllElements(t *testing.T) {
	run(t, func() {
		for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16, torch.Float16} {
			var grads []torch.Tensor
			want := 0.0
			for _, n := range []int{1, 17, 100_003} {
				g := torch.Randn([]int{n}, torch.Float32, torch.CPU).To(dtype)
				for _, v := range torch.Values[float64](g) {
					want += v * v
				}
				grads = append(grads, g)
			}
			if got := optim.Norm(grads); math.Abs(got/math.Sqrt(want)-1) > 1e-5 {
				t.Errorf("%v: norm %v, want %v", dtype, got, math.Sqrt(want))
			}
		}
	})
}

func TestSchedule_WarmsUpThenFalls(t *testing.T) {
	for kind, want := range map[string]map[int]float64{
		optim.Constant: {0: 0, 9: 0.9, 10: 1, 60: 1, 110: 1},
		optim.Linear:   {0: 0, 5: 0.5, 9: 0.9, 10: 1, 60: 0.6, 110: 0.2, 500: 0.2},
		optim.Cosine: {0: 0, 9: 0.9, 10: 1, 60: 0.6, 35: 0.2 + 0.8*(1+math.Sqrt2/2)/2,
			110: 0.2, 500: 0.2},
		// It falls over the last 11 steps.
		optim.WSD: {0: 0, 10: 1, 99: 1, 101: 0.2 + 0.4*(1+math.Cos(math.Pi*2/11)), 110: 0.2,
			500: 0.2},
		optim.Restarts: {0: 0, 10: 1, 35: 0.6, 59: 0.2 + 0.4*(1+math.Cos(math.Pi*49/50)), 60: 1,
			85: 0.6, 110: 0.2, 500: 0.2},
	} {
		s := optim.Schedule{Kind: kind, Peak: 1, Min: 0.2, Warmup: 10, Steps: 110}
		for step, rate := range want {
			if got := s.Rate(step); math.Abs(got-rate) > 1e-12 {
				t.Errorf("%s: the rate of step %d is %v, want %v", kind, step, got, rate)
			}
		}
	}
	if rate := (optim.Schedule{Kind: optim.Cosine, Peak: 1, Steps: 1}).Rate(0); rate != 1 {
		t.Errorf("a run of one step learns at %v, want 1", rate)
	}
}

func TestSchedule_RejectsInvalidValues(t *testing.T) {
	for want, s := range map[string]optim.Schedule{
		"cosine":                          {Kind: "cosin", Peak: 1},
		"--learning_rate is 0":            {Kind: optim.Linear},
		"expected 0 to --learning_rate":   {Kind: optim.Linear, Peak: 1, Min: 2},
		"--warmup_steps is -2":            {Kind: optim.Linear, Peak: 1, Warmup: -2},
		"--schedule wsd, not cosine":      {Kind: optim.Cosine, Peak: 1, Decay: 3},
		"--schedule restarts, not cosine": {Kind: optim.Cosine, Peak: 1, Cycles: 2},
	} {
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v gave %v, want an error about %q", s, err, want)
		}
	}
}

// Steps far smaller than the distance between neighbouring bfloat16 numbers must add up on average,
// without master weights.
func TestAdamW_StochasticRoundingKeepsSmallSteps(t *testing.T) {
	run(t, func() {
		torch.ManualSeed(3)
		const n, steps, rate = 1 << 14, 60, 1e-4
		p := torch.Ones([]int{n}, torch.BFloat16, torch.CPU).RequireGrad(true)
		adam := optim.New([]optim.Param{{Name: "p", Tensor: p}},
			optim.Options{Beta1: 0.9, Beta2: 0.99, Stochastic: true})
		defer adam.Free()
		for range steps {
			p.SetGrad(torch.Full([]int{n}, 0.5, torch.BFloat16, torch.CPU))
			adam.Step(rate, 1)
		}
		mean := torch.Item[float64](p.Detach().To(torch.Float32).Mean())
		if want := 1 - steps*rate; math.Abs(mean-want) > 0.03*steps*rate {
			t.Errorf("the mean is %.6f after %d steps of %g, expected %.6f", mean, steps, rate,
				want)
		}
		for _, s := range adam.State() {
			if s.DType() != torch.BFloat16 || strings.HasSuffix(s.Name, ".original") {
				t.Errorf("the state holds %s, %v", s.Name, s.Tensor)
			}
		}
	})
}

// Lion in float64, as in algorithm 2 of its paper.
func TestLion_FollowsPaper(t *testing.T) {
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		run(t, func() {
			torch.ManualSeed(5)
			list, refs := params(dtype)
			lion := optim.New(list,
				optim.Options{Method: optim.Lion, Beta1: 0.9, Beta2: 0.99, Decay: 0.1})
			defer lion.Free()
			const rate = 1e-3
			for step := 1; step <= 50; step++ {
				torch.Scoped(func() {
					for i, p := range list {
						r, decay := refs[i], []float64{0.1, 0}[i]
						for j, g := range gradient(p, step) {
							c := 0.9*r.mean[j] + 0.1*g
							sign := 0.0
							if c != 0 {
								sign = math.Copysign(1, c)
							}
							r.weight[j] -= rate * (sign + decay*r.weight[j])
							r.mean[j] = 0.99*r.mean[j] + 0.01*g
						}
					}
					lion.Step(rate, 1)
					lion.ClearGradients()
				})
			}
			for i, p := range list {
				got := lion.Master(i)
				if dtype == torch.Float32 {
					got = p.Detach()
				}
				for j, v := range torch.Values[float64](got) {
					if want := refs[i].weight[j]; math.Abs(v-want) > 1e-5*(1+math.Abs(want)) {
						t.Fatalf("%v: weight %d of %s is %v, want %v", dtype, j, p.Name, v, want)
					}
				}
				for j, v := range torch.Values[float64](lion.Moments(i)[0].Tensor) {
					if want := refs[i].mean[j]; math.Abs(v-want) > 1e-5*(1+math.Abs(want)) {
						t.Fatalf("%v: mean %d of %s is %v, want %v", dtype, j, p.Name, v, want)
					}
				}
			}
		})
	}
}

// An 8-bit value is within half of an eighth of its octave, unless it is tiny compared with its
// block's largest. Unpacked values pack to the same codes, also with other block borders.
func TestPackMoment_IsCloseAndRoundTrips(t *testing.T) {
	run(t, func() {
		for _, squares := range []bool{false, true} {
			const n = 3*torch.MomentBlock + 77
			x := torch.Randn([]int{n}, torch.Float32, torch.CPU)
			x = x.Mul(torch.Randn([]int{n}, torch.Float32, torch.CPU).MulScalar(2).Exp())
			x.Narrow(0, 0, 2).Zero()
			if squares {
				x = x.Mul(x)
			}
			pack := func(x torch.Tensor) torch.Tensor {
				codes := torch.Zeros(x.Shape(), torch.Uint8, torch.CPU)
				exponents := torch.Zeros(
					[]int{2, (x.Numel() + torch.MomentBlock - 1) / torch.MomentBlock}, torch.Uint8,
					torch.CPU)
				torch.PackMoment(x, codes, exponents, squares)
				return torch.UnpackMoment(codes, exponents, squares)
			}
			once := pack(x)
			want, got := torch.Values[float64](x), torch.Values[float64](once)
			tiny := torch.Item[float64](
				x.Abs().Max()) / (1 << 14) // of a mean; squares have twice the octaves
			if squares {
				tiny /= 1 << 16
			}
			for i := range want {
				if !(math.Abs(got[i]-want[i]) <= max(math.Abs(want[i])/16, tiny)) ||
					squares && want[i] > 0 && got[i] == 0 {
					t.Errorf("squares %v: %v became %v", squares, want[i], got[i])
				}
			}
			part := func(first, count int) torch.Tensor {
				return pack(once.Narrow(0, first, count).Contiguous())
			}
			for what, again := range map[string]torch.Tensor{
				"again":           pack(once),
				"in other blocks": torch.Cat(0, part(0, 100), part(100, n-100)),
			} {
				for i, v := range torch.Values[float64](again) {
					if v != got[i] && (what == "again" || math.Abs(got[i]) > tiny) {
						t.Fatalf("squares %v: %v became %v when packed %s", squares, got[i], v,
							what)
					}
				}
			}
		}
	})
}

// Over many steps with one gradient, stochastically rounded moments follow float32 moments without
// a bias.
func TestAdamW_SmallMomentsAreUnbiased(t *testing.T) {
	for _, moments := range []string{optim.BFloat16, optim.Int8} {
		run(t, func() {
			const n, steps = 1 << 14, 200
			g := torch.Randn([]int{n}, torch.Float32, torch.CPU).MulScalar(0.01).AddScalar(0.05)
			p := optim.Param{
				Name:   "p",
				Tensor: torch.Zeros([]int{n}, torch.Float32, torch.CPU).RequireGrad(true),
			}
			o := optim.New([]optim.Param{p},
				optim.Options{Moments: moments, Beta1: 0.9, Beta2: 0.999, Seed: 3})
			defer o.Free()
			for range steps {
				p.SetGrad(g)
				o.Step(1e-3, 1)
			}
			for i, a := range o.Moments(0) {
				beta, value := []float64{0.9, 0.999}[i], g
				if i == 1 {
					value = g.Mul(g)
				}
				want := torch.Item[float64](value.Mean()) * (1 - math.Pow(beta, steps))
				if got := torch.Item[float64](a.To(torch.Float32).Mean()); math.Abs(
					got-want,
				) > 0.01*want {
					t.Errorf("%s: the average %s is %v on average, want %v", moments, a.Name, got,
						want)
				}
			}
			// With a constant gradient, each step is the rate.
			if got := torch.Item[float64](p.Detach().Mean()); math.Abs(
				got+steps*1e-3,
			) > 0.02*steps*1e-3 {
				t.Errorf("%s: the weights went to %v, want %v", moments, got, -steps*1e-3)
			}
			bytes := 0
			for _, s := range o.State() {
				bytes += s.Bytes()
			}
			if want := optim.MomentBytes(optim.AdamW, moments, n); float64(bytes) != want ||
				want > 4*n {
				t.Errorf("%s: the state takes %d bytes, said to be %v", moments, bytes, want)
			}
		})
	}
}

// A square that is tiny compared with its block's largest must not become zero, or its weight would
// take a huge step.
func TestAdamW_OutlierInBlockKeepsNeighboursStable(t *testing.T) {
	run(t, func() {
		const n = 256
		values := make([]float32, n)
		for i := range values {
			values[i] = 1e-9
		}
		values[7] = 1e6
		g := torch.From(values, n)
		p := optim.Param{
			Name:   "p",
			Tensor: torch.Zeros([]int{n}, torch.Float32, torch.CPU).RequireGrad(true),
		}
		o := optim.New([]optim.Param{p},
			optim.Options{Moments: optim.Int8, Beta1: 0.9, Beta2: 0.999})
		defer o.Free()
		for range 20 {
			p.SetGrad(g)
			o.Step(1e-3, 1)
		}
		if most := torch.Item[float64](p.Detach().Abs().Max()); !(most < 20*1.2e-3) {
			t.Errorf("20 steps of 1e-3 led to %v", most)
		}
	})
}

// Muon's update of each matrix has nearly orthonormal rows and points along the gradient. A weight
// without matrices takes AdamW's step.
func TestMuon_OrthogonalizesMatrices(t *testing.T) {
	run(t, func() {
		torch.ManualSeed(7)
		list, refs := params(torch.Float32)
		muon := optim.New(list,
			optim.Options{Method: optim.Muon, Beta1: 0.9, Beta2: 0.99, Decay: 0.1})
		defer muon.Free()
		before := torch.Values[float64](list[0].Detach())
		const rate = 0.01
		g := gradient(list[0], 1)
		refs[1].step(gradient(list[1], 1), 1, rate, 0.9, 0.99, 0)
		muon.Step(rate, 1)
		after := torch.Values[float64](list[0].Detach())
		first := 0
		for _, rows := range list[0].Rows {
			const columns = 7
			update := make([][]float64, rows) // what is left of the step without decay, scaled
			for i := range update {
				for j := range columns {
					at := (first+i)*columns + j
					moved := before[at]*(1-rate*0.1) - after[at]
					moved /= 0.2 * rate * math.Sqrt(columns)
					update[i] = append(update[i], moved)
				}
			}
			dot := func(a, b []float64) (sum float64) {
				for k := range a {
					sum += a[k] * b[k]
				}
				return sum
			}
			for i := range rows { // its rows are nearly orthonormal
				for j := range rows {
					want := 0.0
					if i == j {
						want = 1
					}
					if got := dot(update[i], update[j]); math.Abs(got-want) > 0.6 {
						t.Errorf("rows %d and %d of a matrix of %d have the product %.3f", i, j,
							rows, got)
					}
				}
			}
			// The update of the first step points along the gradient.
			sum := 0.0
			for i := range rows {
				sum += dot(update[i], g[(first+i)*columns:(first+i+1)*columns])
			}
			if sum <= 0 {
				t.Errorf("the update of a matrix of %d rows opposes its gradient: %v", rows, sum)
			}
			first += rows
		}
		for j, got := range torch.Values[float64](list[1].Detach()) {
			if want := refs[1].weight[j]; math.Abs(got-want) > 1e-5*(1+math.Abs(want)) {
				t.Fatalf("element %d of the vector is %v, want %v", j, got, want)
			}
		}
	})
}
