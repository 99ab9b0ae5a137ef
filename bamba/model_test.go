package bamba_test

import (
	"math"
	"strings"
	"testing"

	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
	"conquer/torch/nn"
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

// small makes a variant with fresh weights and a vocabulary of 50.
func small(t *testing.T, architecture string, dtype torch.DType) statespace.Chunked {
	t.Helper()
	config, err := model.Variant(architecture, "tiny")
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["initializer_range"] = 50.0, 0.1
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	model.Initialize(m, dtype, torch.CPU)
	return m.(statespace.Chunked)
}

func TestVariants_HaveTheSizesOfTheirNames(t *testing.T) {
	for _, v := range []struct {
		architecture, variant string
		millions              float64
	}{{"bamba", "9b", 9780}, {"mamba2", "130m", 129}, {"mamba2", "2.7b", 2700}} {
		config, err := model.Variant(v.architecture, v.variant)
		if err != nil {
			t.Fatal(err)
		}
		m, err := model.New(config)
		if err != nil {
			t.Fatal(err)
		}
		if n := float64(model.Parameters(m)) / 1e6; math.Abs(n-v.millions) > 0.01*v.millions {
			t.Errorf("%s %s has %.0f million weights, want about %.0f", v.architecture, v.variant,
				n, v.millions)
		}
	}
}

// The reference and the kernels give the same gradients, every weight gets one, and the loss
// changes along the gradient by its square.
func TestModel_GradientsOfKernelsAndReferenceAgree(t *testing.T) {
	for _, architecture := range []string{"bamba", "mamba2"} {
		t.Run(architecture, func(t *testing.T) {
			run(t, func() {
				m := small(t, architecture, torch.Float32)
				defer model.Free(m)
				ids := torch.RandInt(50, []int{2, 41}, torch.CPU)
				segments := make([]int64, 2*40)
				for i := range segments {
					segments[i] = int64(1 + i%40/17)
				}
				loss := func() torch.Tensor {
					hidden := model.Hidden(m, model.Sequence{IDs: ids.Narrow(1, 0, 40),
						Segments: torch.From(segments, 2, 40)})
					loss, _ := torch.HeadCrossEntropy(hidden.Reshape(80, 64), m.Head().Tensor,
						ids.Narrow(1, 1, 40).Reshape(80), torch.Loss{})
					return loss
				}
				gradients := func(optimized bool) map[string][]float64 {
					if err := m.SetChunking(statespace.Chunking{Strategy: statespace.Default,
						Optimized: optimized}); err != nil {
						t.Fatal(err)
					}
					all := map[string][]float64{}
					for _, p := range nn.Params(m) {
						p.Tensor.ClearGrad()
						p.Tensor.RequireGrad(true)
					}
					torch.Scoped(func() { loss().Backward() })
					nn.Walk(m, func(p nn.Component) {
						all[p.Name] = torch.Values[float64](p.Param.Tensor.Grad().Narrow(0,
							p.Start, p.Rows))
					})
					return all
				}
				plain, optimized := gradients(false), gradients(true)
				for name, want := range plain {
					var difference, size float64
					for i := range want {
						difference, size = math.Hypot(difference, want[i]-optimized[name][i]),
							math.Hypot(size, want[i])
					}
					if size == 0 || !(difference <= 1e-4*size) {
						t.Errorf("%s: gradients of norm %.2g differ by %.2g", name, size,
							difference)
					}
				}
				torch.NoGrad(func() {
					const step = 2e-3
					expected := 0.0
					move := func(by float64) float64 {
						for _, p := range nn.Params(m) {
							p.Tensor.AddTo(p.Tensor.Grad().MulScalar(by))
						}
						return torch.Item[float64](loss())
					}
					for _, g := range optimized {
						for _, v := range g {
							expected += v * v
						}
					}
					up, down := move(step), move(-2*step)
					slope := (up - down) / (2 * step)
					if !(math.Abs(slope-expected) < 0.01*expected) {
						t.Errorf("the loss changes by %g along the gradient, whose square is %g",
							slope, expected)
					}
				})
				for _, p := range nn.Params(m) {
					p.Tensor.ClearGrad()
				}
			})
		})
	}
}

// The strategies differ only where they should: not within the first chunk, and then depending on
// how far state is carried.
func TestModel_RunsByTheChosenStrategy(t *testing.T) {
	run(t, func() {
		m := small(t, "mamba2", torch.Float32)
		defer model.Free(m)
		ids := torch.RandInt(50, []int{1, 60}, torch.CPU)
		logits := func(name string) []float64 {
			c, err := statespace.ParseChunking(name)
			if err != nil {
				t.Fatal(err)
			}
			c.ChunkSize = 16
			if err := m.SetChunking(c); err != nil {
				t.Fatal(err)
			}
			var got []float64
			torch.NoGrad(func() {
				got = torch.Values[float64](model.Logits(m,
					model.Sequence{IDs: ids}))
			})
			return got
		}
		differs := func(a, b string) int { // the first token at which they do
			x, y := logits(a), logits(b)
			for i := range x {
				if math.Abs(x[i]-y[i]) > 1e-5 {
					return i / 50
				}
			}
			return -1
		}
		for _, pair := range []struct {
			a, b  string
			first int
		}{
			{"default", "default-optimized", -1}, {"independent", "independent-optimized", -1},
			{"windowed:1", "windowed:1-optimized", -1}, {"windowed:3", "default-optimized", -1},
			{"windowed:0", "independent", -1},
			{"default", "independent-optimized", 16}, {"windowed:1", "default", 32},
			{"windowed:2-optimized", "default", 48},
		} {
			if first := differs(pair.a, pair.b); first != pair.first {
				t.Errorf("%s and %s differ first at token %d, want %d", pair.a, pair.b, first,
					pair.first)
			}
		}
		if err := m.SetChunking(statespace.Chunking{Strategy: "sideways"}); err == nil {
			t.Error("an unknown strategy was accepted")
		}
		if err := m.SetChunking(statespace.Chunking{Strategy: statespace.Default,
			ChunkSize: 48}); err == nil {
			t.Error("a chunk size of 48 was accepted")
		}
	})
}

// A cache that restarts at its first column remembers nothing. The bfloat16 models keep float32
// states.
func TestCache_RestartForgetsEverything(t *testing.T) {
	for _, architecture := range []string{"bamba", "mamba2"} {
		run(t, func() {
			m := small(t, architecture, torch.BFloat16)
			defer model.Free(m)
			torch.NoGrad(func() {
				cache := m.NewCache(2, 8, torch.BFloat16, torch.CPU)
				defer cache.Free()
				ids := torch.RandInt(50, []int{2, 4}, torch.CPU)
				read := func() (got []float64) {
					for _, part := range [][2]int{{0, 1}, {1, 3}} {
						x := model.Logits(m, model.Sequence{IDs: ids.Narrow(1, part[0], part[1]),
							Cache: cache})
						got = append(got, torch.Values[float64](x)...)
					}
					return got
				}
				first := read()
				cache.Length = 0
				for i, v := range read() {
					if v != first[i] {
						t.Fatalf("%s: logit %d is %g, at first %g", architecture, i, v, first[i])
					}
				}
			})
		})
	}
}

func TestNew_RefusesConfigsByField(t *testing.T) {
	for _, c := range []struct {
		architecture, field string
		value               any
		words               string
	}{
		{"bamba", "mamba_d_state", 8.0, "16 to 256"},
		{"bamba", "mamba_d_conv", 5.0, "2 to 4"},
		{"bamba", "mamba_n_heads", 3.0, "mamba_n_heads"},
		{"bamba", "mamba_n_groups", 3.0, "do not divide"},
		{"bamba", "mamba_d_head", "wide", "a positive whole number"},
		{"bamba", "attn_layer_indices", []any{9.0}, "from 0 to 3"},
		{"bamba", "attn_layer_indices", 1.0, "a list"},
		{"bamba", "num_key_value_heads", 3.0, "does not divide"},
		{"bamba", "hidden_act", "gelu", "silu"},
		{"bamba", "time_step_limit", []any{1.0}, "two numbers"},
		{"bamba", "time_step_limit", []any{0.5, 0.1}, "above"},
		{"bamba", "time_step_limit", []any{0.0, "much"}, "a number"},
		{"mamba2", "time_step_limit", []any{0.0, map[string]any{"__float__": "NaN"}},
			`holds {"__float__":"NaN"}, expected a number`},
		{"bamba", "rope_scaling", map[string]any{"rope_type": "su"}, `"su"`},
		{"mamba2", "state_size", 512.0, "16 to 256"},
		{"mamba2", "head_dim", nil, "head_dim"},
		{"mamba2", "num_heads", 4.5, "whole number"},
	} {
		config, err := model.Variant(c.architecture, "tiny")
		if err != nil {
			t.Fatal(err)
		}
		config[c.field] = c.value
		if _, err := model.New(config); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s with %s %v: %v, want an error with %q", c.architecture, c.field, c.value,
				err, c.words)
		}
	}
}
