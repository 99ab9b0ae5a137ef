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

// reference is AdamW in float64, as the paper writes it.
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

// params makes a matrix and a vector of a dtype with arbitrary values, and their references.
func params(dtype torch.DType) ([]optim.Param, []*reference) {
	var list []optim.Param
	var refs []*reference
	for i, shape := range [][]int{{5, 7}, {9}} {
		p := torch.Randn(shape, torch.Float32, torch.CPU).To(dtype).RequireGrad(true)
		list = append(list, optim.Param{Name: fmt.Sprint("p", i), Tensor: p})
		n := p.Numel()
		refs = append(refs, &reference{torch.Values[float64](p.Detach()), make([]float64, n), make([]float64, n)})
	}
	return list, refs
}

// gradient gives a weight a gradient of pseudo-random values and returns them.
func gradient(p optim.Param, step int) []float64 {
	values := make([]float32, p.Numel())
	for i := range values {
		values[i] = float32(math.Sin(float64(3*i+7*step))) * float32(math.Exp(math.Cos(float64(i))))
	}
	g := torch.From(values, p.Shape()...).To(p.DType())
	p.SetGrad(g)
	return torch.Values[float64](g)
}

func TestAdamWFollowsThePaperAndDecaysMatricesOnly(t *testing.T) {
	run(t, func() {
		torch.ManualSeed(1)
		list, refs := params(torch.Float32)
		adam := optim.NewAdamW(list, optim.AdamWOptions{Beta1: 0.9, Beta2: 0.99, Decay: 0.1})
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

// A thousand steps that are each smaller than the distance between bfloat16 numbers must add up.
func TestStepsTooSmallForBFloat16AreNotLost(t *testing.T) {
	run(t, func() {
		p := optim.Param{Name: "w", Tensor: torch.Ones([]int{4, 4}, torch.BFloat16, torch.CPU).RequireGrad(true)}
		adam := optim.NewAdamW([]optim.Param{p}, optim.AdamWOptions{Beta1: 0.9, Beta2: 0.999})
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

func TestAnOptimizerGoesOnExactlyFromASavedState(t *testing.T) {
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		run(t, func() {
			torch.ManualSeed(2)
			list, _ := params(dtype)
			options := optim.AdamWOptions{Beta1: 0.9, Beta2: 0.999, Decay: 0.01}
			first := optim.NewAdamW(list, options)
			defer first.Free()
			steps := func(a *optim.AdamW, list []optim.Param, from, to int) {
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
				copies = append(copies, optim.Param{Name: p.Name, Tensor: p.Detach().Clone().RequireGrad(true)})
			}
			steps(first, list, 5, 10)
			second := optim.NewAdamW(copies, options)
			defer second.Free()
			if err := second.Restore(5, func(name string) (torch.Tensor, error) { return saved[name], nil }); err != nil {
				t.Fatal(err)
			}
			steps(second, copies, 5, 10)
			if second.Taken() != first.Taken() {
				t.Errorf("%d steps taken, want %d", second.Taken(), first.Taken())
			}
			for i := range list {
				a, b := torch.Values[float32](list[i].Detach()), torch.Values[float32](copies[i].Detach())
				for j := range a {
					if a[j] != b[j] {
						t.Fatalf("%v: weight %d is %v after a restore, want %v", dtype, j, b[j], a[j])
					}
				}
			}
		})
	}
}

func TestClippingScalesAllGradientsByOneFactor(t *testing.T) {
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
		bad := []torch.Tensor{torch.From([]float32{float32(math.Inf(1))}, 1), torch.From([]float32{1}, 1)}
		if norm := optim.Norm(bad); optim.Finite(norm) {
			t.Errorf("norm %v of an infinite gradient", norm)
		}

		// A step with a factor is the step with gradients that were scaled before.
		var ends [2][]float32
		for i, scale := range []float64{0.25, 1} {
			torch.ManualSeed(3)
			list, _ := params(torch.Float32)
			adam := optim.NewAdamW(list, optim.AdamWOptions{Beta1: 0.9, Beta2: 0.999, Decay: 0.1})
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
func TestTheNormIsThatOfAllElements(t *testing.T) {
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

func TestSchedulesRiseThenFallAsTheirKindSays(t *testing.T) {
	for kind, want := range map[string]map[int]float64{
		optim.Constant: {0: 0.1, 9: 1, 10: 1, 60: 1, 110: 1},
		optim.Linear:   {0: 0.1, 4: 0.5, 9: 1, 10: 1, 60: 0.6, 110: 0.2, 500: 0.2},
		optim.Cosine:   {0: 0.1, 9: 1, 10: 1, 60: 0.6, 35: 0.2 + 0.8*(1+math.Sqrt2/2)/2, 110: 0.2, 500: 0.2},
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

func TestASenselessScheduleIsRefused(t *testing.T) {
	for want, s := range map[string]optim.Schedule{
		"cosine":   {Kind: "cosin", Peak: 1},
		"positive": {Kind: optim.Linear},
		"between":  {Kind: optim.Linear, Peak: 1, Min: 2},
		"negative": {Kind: optim.Linear, Peak: 1, Warmup: -2},
	} {
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v gave %v, want an error about %q", s, err, want)
		}
	}
}

// Steps far smaller than the distance between neighbouring bfloat16 numbers must add up, on average, without originals.
func TestRoundingAtRandomKeepsWhatRoundingWouldLose(t *testing.T) {
	run(t, func() {
		torch.ManualSeed(3)
		const n, steps, rate = 1 << 14, 60, 1e-4
		p := torch.Ones([]int{n}, torch.BFloat16, torch.CPU).RequireGrad(true)
		adam := optim.NewAdamW([]optim.Param{{Name: "p", Tensor: p}}, optim.AdamWOptions{Beta1: 0.9, Beta2: 0.99, Stochastic: true})
		defer adam.Free()
		for range steps {
			p.SetGrad(torch.Full([]int{n}, 0.5, torch.BFloat16, torch.CPU))
			adam.Step(rate, 1)
		}
		mean := torch.Item[float64](p.Detach().To(torch.Float32).Mean())
		if want := 1 - steps*rate; math.Abs(mean-want) > 0.03*steps*rate {
			t.Errorf("the mean is %.6f after %d steps of %g, expected %.6f", mean, steps, rate, want)
		}
		for _, s := range adam.State() {
			if s.DType() != torch.BFloat16 || strings.HasSuffix(s.Name, ".original") {
				t.Errorf("the state holds %s, %v", s.Name, s.Tensor)
			}
		}
	})
}
