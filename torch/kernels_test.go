package torch_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"conquer/torch"
)

// comparison holds a kernel and the same function in plain operations, of the same inputs.
type comparison struct {
	inputs        func(dtype torch.DType) []torch.Tensor
	kernel, plain func(in []torch.Tensor) torch.Tensor
}

// relative is the largest difference over the largest magnitude.
func relative(got, want torch.Tensor) float64 {
	got, want = got.To(torch.Float64), want.To(torch.Float64)
	scale := math.Max(torch.Item[float64](want.Abs().Max()), 1e-30)
	return torch.Item[float64](got.Sub(want).Abs().Max()) / scale
}

// compare checks the kernel against plain operations in float64: the result and every input's
// gradient.
func compare(t *testing.T, name string, f comparison) {
	t.Helper()
	compareChain(t, name, f, 1)
}

// compareChain is compare for a chain of operations, each of which rounds.
func compareChain(t *testing.T, name string, f comparison, roundings float64) {
	t.Helper()
	for _, c := range []struct {
		dtype     torch.DType
		tolerance float64
	}{{torch.Float64, 2e-5}, {torch.Float32, 2e-5}, {torch.BFloat16, 2e-2}, {torch.Float16, 4e-3}} {
		run(t, func() {
			dtype, tolerance := c.dtype, c.tolerance*roundings
			inputs := f.inputs(dtype)
			exact := make([]torch.Tensor, len(inputs))
			for i, in := range inputs {
				if in.DType() == dtype {
					in.RequireGrad(true)
				}
				exact[i] = in.Detach()
				if in.DType().Floating() {
					exact[i] = exact[i].To(torch.Float64).RequireGrad(true)
				}
			}
			got, want := f.kernel(inputs), f.plain(exact)
			if e := relative(got, want); !(e < tolerance) {
				t.Errorf("%s %v: forward differs by %.2g", name, dtype, e)
			}
			seed := torch.Randn(got.Shape(), dtype, torch.CPU)
			if len(got.Shape()) == 0 { // a loss, scaled so that float16 gradients do not underflow
				seed = seed.ZerosLike().AddScalar(64)
			}
			torch.Backward([]torch.Tensor{got}, []torch.Tensor{seed})
			torch.Backward([]torch.Tensor{want}, []torch.Tensor{seed.To(torch.Float64)})
			for i, in := range inputs {
				if in.DType() != dtype {
					continue
				}
				if e := relative(in.Grad(), exact[i].Grad()); !(e < tolerance) {
					t.Errorf("%s %v: gradient of input %d differs by %.2g", name, dtype, i, e)
				}
			}
			torch.NoGrad(func() { // without gradients another kernel may run
				if e := relative(f.kernel(inputs), want); !(e < tolerance) {
					t.Errorf("%s %v: without gradients it differs by %.2g", name, dtype, e)
				}
			})
		})
	}
}

func TestKernels_AgreeWithFloat64Reference(t *testing.T) {
	seed := rand.Uint64()
	if given := os.Getenv("CONQUER_TEST_SEED"); given != "" {
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("CONQUER_TEST_SEED=%d draws the same again", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	run(t, func() { torch.ManualSeed(int64(seed >> 1)) })
	dims := func(choices ...int) int { return choices[random.IntN(len(choices))] }
	for range 6 {
		batch, length, width := dims(1, 2, 3), dims(1, 2, 7, 33), dims(16, 24, 64, 65, 200)
		shape := fmt.Sprintf("B%d L%d D%d", batch, length, width)
		randn := func(dtype torch.DType, shape ...int) torch.Tensor {
			return torch.Randn(shape, dtype, torch.CPU)
		}

		compare(t, "linear "+shape, comparison{
			func(d torch.DType) []torch.Tensor {
				return []torch.Tensor{
					randn(d, batch, length, width),
					randn(d, 48, width),
					randn(d, 48),
				}
			},
			func(in []torch.Tensor) torch.Tensor { return torch.Linear(in[0], in[1], in[2]) },
			func(in []torch.Tensor) torch.Tensor {
				return in[0].Matmul(in[1].Transpose(0, 1)).Add(in[2])
			},
		})
		var ids torch.Tensor
		compare(t, "embedding "+shape, comparison{
			func(d torch.DType) []torch.Tensor {
				ids = torch.RandInt(20, []int{batch, length}, torch.CPU)
				weight := randn(d, 20, width)
				if random.IntN(2) == 0 { // as a tied head leaves it
					weight.RequireGrad(true).SetGrad(weight.ZerosLike())
				}
				return []torch.Tensor{weight}
			},
			func(in []torch.Tensor) torch.Tensor { return torch.Embedding(in[0], ids) },
			func(in []torch.Tensor) torch.Tensor {
				return in[0].IndexSelect(0, ids.View(-1)).View(batch, length, width)
			},
		})
		compare(t, "rms_norm "+shape, comparison{
			func(d torch.DType) []torch.Tensor {
				return []torch.Tensor{randn(d, batch, length, width), randn(d, width)}
			},
			func(in []torch.Tensor) torch.Tensor { return torch.RMSNorm(in[0], in[1], 1e-5) },
			func(in []torch.Tensor) torch.Tensor {
				mean := in[0].PowScalar(2).SumDim(-1, true).MulScalar(1 / float64(width))
				return in[0].Mul(mean.AddScalar(1e-5).Rsqrt()).Mul(in[1])
			},
		})
		compareChain(t, "block tail "+shape, comparison{
			func(d torch.DType) []torch.Tensor {
				root := 1 / math.Sqrt(float64(width))
				return []torch.Tensor{
					randn(d, batch, length, width),
					randn(d, batch, length, 40),
					randn(d, 40),
					randn(d, width, 40).MulScalar(0.16),
					randn(d, width),
					randn(d, 112, width).MulScalar(root),
					randn(d, width, 56).MulScalar(0.13),
					randn(d, width),
					randn(d, 24, width).MulScalar(root),
					randn(d, 24),
				}
			},
			func(in []torch.Tensor) torch.Tensor {
				y, next, _ := torch.BlockTail(
					in[0],
					in[1],
					torch.Tail{
						Norm:     in[2],
						Output:   in[3],
						MLPNorm:  in[4],
						GateUp:   in[5],
						Down:     in[6],
						NextNorm: in[7],
						Next:     in[8],
						NextBias: in[9],
						Eps:      1e-5,
						MLPEps:   1e-5,
						NextEps:  1e-5,
					},
				)
				return torch.Cat(-1, y, next)
			},
			func(in []torch.Tensor) torch.Tensor {
				norm := func(x, weight torch.Tensor) torch.Tensor {
					mean := x.PowScalar(2).SumDim(-1, true).MulScalar(1 / float64(x.Size(-1)))
					return x.Mul(mean.AddScalar(1e-5).Rsqrt()).Mul(weight)
				}
				linear := func(x, weight torch.Tensor) torch.Tensor {
					return x.Matmul(weight.Transpose(0, 1))
				}
				z := in[0].Add(linear(norm(in[1], in[2]), in[3]))
				parts := linear(norm(z, in[4]), in[5]).Split(-1, 56, 56)
				y := z.Add(linear(parts[0].Silu().Mul(parts[1]), in[6]))
				return torch.Cat(-1, y, linear(norm(y, in[7]), in[8]).Add(in[9]))
			},
		}, 3)
		compare(t, "swiglu "+shape, comparison{
			func(d torch.DType) []torch.Tensor {
				return []torch.Tensor{randn(d, batch, length, 2*width)}
			},
			func(in []torch.Tensor) torch.Tensor { return torch.SwiGLU(in[0]) },
			func(in []torch.Tensor) torch.Tensor {
				return in[0].Narrow(-1, 0, width).Silu().Mul(in[0].Narrow(-1, width, width))
			},
		})
		heads, keys, span, causal := dims(1, 2), dims(1, 3), dims(30, 70, 150), random.IntN(2) == 0
		wide := 16 * dims(1, 2, 3)
		var mask torch.Tensor
		compare(
			t,
			fmt.Sprintf("attention of %d heads to %d, B%d L%d P%d", heads*keys, keys, batch, span,
				wide),
			comparison{
				func(d torch.DType) []torch.Tensor {
					mask = torch.Tensor{}
					if random.IntN(2) == 0 {
						mask = torch.RandInt(4, []int{batch, 1, span, span}, torch.CPU).
							LessEqual(torch.Zeros([]int{1}, torch.Int64, torch.CPU))
					}
					strided := func(n int) torch.Tensor {
						return randn(d, batch, span, n, wide).Transpose(1, 2).Detach()
					}
					return []torch.Tensor{strided(heads * keys), strided(keys), strided(keys)}
				},
				func(in []torch.Tensor) torch.Tensor {
					return torch.Attention(in[0], in[1], in[2], mask, causal, 0)
				},
				func(in []torch.Tensor) torch.Tensor {
					q := in[0].Reshape(batch, keys, heads*span, wide)
					scores := q.Matmul(in[1].Transpose(2, 3)).
						MulScalar(1/math.Sqrt(float64(wide))).
						View(batch, keys, heads, span, span)
					places := torch.Arange(0, span, torch.Int64, torch.CPU)
					seen := torch.Ones([]int{1, 1, span, span}, torch.Float64, torch.CPU)
					if causal {
						seen = seen.Mul(
							places.View(1, span).LessEqual(places.View(span, 1)).To(torch.Float64))
					}
					if mask.Defined() {
						seen = seen.Mul(mask.To(torch.Float64))
					}
					weights := scores.Exp().Mul(seen.Unsqueeze(1))
					total := weights.SumDim(-1, true)
					weights = weights.Div(
						total.Add(total.LessEqual(total.ZerosLike()).To(torch.Float64)),
					) // zero for a row that sees no key
					return weights.View(batch, keys, heads*span, span).
						Matmul(in[2]).
						View(batch, keys*heads, span, wide)
				},
			},
		)
		loss := torch.Loss{Divisor: float64(dims(0, 100))}
		if random.IntN(2) == 0 {
			loss.LabelSmoothing, loss.ZLoss = random.Float64(), random.Float64()
		}
		var weights []float32
		if random.IntN(2) == 0 {
			// Values of one sign, since the relative error of a cancelling sum is unbounded.
			for range batch * length {
				weights = append(weights, float32(0.1+random.ExpFloat64()))
			}
		}
		var labels torch.Tensor
		compare(t, "head cross-entropy "+shape, comparison{
			func(d torch.DType) []torch.Tensor {
				list := make([]int64, batch*length)
				for i := range list {
					if list[i] = int64(random.IntN(300)); i > 0 && random.IntN(4) == 0 {
						list[i] = -100
					}
				}
				labels = torch.From(list, len(list))
				// Logits of about 1, as in a model; in bfloat16, logits of 40 have an error of a
				// tenth.
				return []torch.Tensor{
					randn(d, batch*length, width),
					randn(d, 300, width).MulScalar(1 / math.Sqrt(float64(width))),
				}
			},
			func(in []torch.Tensor) torch.Tensor {
				o := loss
				if weights != nil {
					o.Weights = torch.From(weights, len(weights))
				}
				total, _ := torch.HeadCrossEntropy(in[0], in[1], labels, o)
				return total.To(in[0].DType())
			},
			func(in []torch.Tensor) torch.Tensor {
				logits := in[0].Matmul(in[1].Transpose(0, 1))
				likely := logits.LogSoftmax(-1).
					Gather(-1, labels.Clamp(0, 300).Unsqueeze(-1)).
					Squeeze(-1)
				even := logits.LogSoftmax(-1).SumDim(-1, false).MulScalar(1. / 300)
				z := logits.Exp().SumDim(-1, false).Log().PowScalar(2)
				counted := labels.ZerosLike().LessEqual(labels).To(torch.Float64)
				by := loss.Divisor
				if by == 0 {
					by = torch.Item[float64](counted.Sum())
				}
				each := likely.MulScalar(loss.LabelSmoothing - 1).
					Sub(even.MulScalar(loss.LabelSmoothing)).
					Add(z.MulScalar(loss.ZLoss))
				if weights != nil {
					each = each.Mul(torch.From(weights, len(weights)).To(torch.Float64))
				}
				return each.Mul(counted).Sum().MulScalar(1 / by)
			},
		})
		heads, keyHeads, dim := 6, dims(1, 2, 3, 6), dims(8, 64)
		half := dims(dim/2, dim/4)
		var angles torch.Tensor
		compare(
			t,
			fmt.Sprintf("rotary %s H%d K%d P%d R%d", shape, heads, keyHeads, dim, 2*half),
			comparison{
				func(d torch.DType) []torch.Tensor {
					angles = randn(torch.Float32, dims(1, batch), length, half)
					return []torch.Tensor{randn(d, batch, length, (heads+2*keyHeads)*dim)}
				},
				func(in []torch.Tensor) torch.Tensor {
					q, k, v := torch.RotaryQKV(in[0], heads, keyHeads, angles.Cos(), angles.Sin())
					return torch.Cat(1, q, k, v)
				},
				func(in []torch.Tensor) torch.Tensor {
					exact := angles.To(torch.Float64).Unsqueeze(2)
					parts := in[0].View(batch, length, heads+2*keyHeads, dim).
						Split(2, heads+keyHeads, keyHeads)
					a, b := parts[0].Narrow(-1, 0, half), parts[0].Narrow(-1, half, half)
					turned := torch.Cat(-1, a.Mul(exact.Cos()).Sub(b.Mul(exact.Sin())),
						b.Mul(exact.Cos()).Add(a.Mul(exact.Sin())),
						parts[0].Narrow(-1, 2*half, dim-2*half))
					return torch.Cat(2, turned, parts[1]).Transpose(1, 2)
				},
			},
		)
	}
}

func TestDropCheap_RestoresResults(t *testing.T) {
	before := torch.LiveTensors()
	err := torch.Run(func() error {
		x, norm, w := torch.Randn([]int{40, 64}, torch.Float32, torch.CPU).
			RequireGrad(true),
			torch.Ones([]int{64}, torch.Float32, torch.CPU).
				RequireGrad(true),
			torch.Randn([]int{96, 64}, torch.Float32, torch.CPU).
				RequireGrad(true)
		forward := func() torch.Tensor {
			return torch.Linear(torch.SwiGLU(torch.NormLinear(x, norm, 1e-5, w, torch.Tensor{})),
				w.Narrow(0, 0, 48).Transpose(0, 1).Contiguous(), torch.Tensor{})
		}
		gradients := func(y torch.Tensor) (list []float32) {
			torch.Backward([]torch.Tensor{y}, []torch.Tensor{y.Detach()})
			for _, p := range []torch.Tensor{x, norm, w} {
				list = append(list, torch.Values[float32](p.Grad())...)
				p.ClearGrad()
			}
			return list
		}
		want := gradients(forward())
		y, dropped := torch.DropCheap(forward)
		dropped.Restore()
		dropped.Restore() // does nothing
		if got := gradients(y); !slices.Equal(got, want) {
			t.Error("other gradients")
		}
		dropped.Free()
		// f's result stays, even if it is cheap to compute.
		plain := torch.Values[float32](torch.RMSNorm(x, norm, 1e-5).Detach())
		z, dropped := torch.DropCheap(func() torch.Tensor { return torch.RMSNorm(x, norm, 1e-5) })
		if !slices.Equal(torch.Values[float32](z.Detach()), plain) {
			t.Error("the result is another one")
		}
		dropped.Free()
		// A panic in f leaves no state behind.
		if err := torch.Run(
			func() error {
				torch.DropCheap(func() torch.Tensor { return torch.RMSNorm(x, w, 1e-5) })
				return nil
			},
		); err == nil {
			t.Error("a weight of two dimensions was taken")
		}
		_, dropped = torch.DropCheap(forward)
		dropped.Free() // without a backward pass
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if after := torch.LiveTensors(); after != before {
		t.Errorf("%d tensors before, %d after", before, after)
	}
}

// The reasons are the conditions of the kernel in order; the CPU is the last.
func TestBlockTail_ReportsUnfusedReason(t *testing.T) {
	type shape struct {
		rows, from, width, inner, ahead int
		dtype                           torch.DType
		change                          func(t *torch.Tail)
		why                             string
	}
	bias := func(n int) torch.Tensor { return torch.Zeros([]int{n}, torch.BFloat16, torch.CPU) }
	without := func(t *torch.Tail) { t.Next, t.NextNorm = torch.Tensor{}, torch.Tensor{} }
	transposed := func(t *torch.Tail) {
		t.Down = t.Down.Transpose(0, 1).Contiguous().Transpose(0, 1)
	}
	const (
		accepted = "the tensors' device has no kernel for it"
		biases   = "it takes no biases except the input projection's"
		multiple = "it takes widths that are multiples of 16, not "
		BFloat16 = torch.BFloat16
	)
	for _, s := range []shape{
		{1, 32, 48, 80, 112, BFloat16, nil, accepted},
		{1, 8192, 16, 16, 0, torch.Float16, without, accepted},
		{1, 32, 48, 80, 112, BFloat16, func(t *torch.Tail) { t.NextBias = bias(112) }, accepted},
		{2, 32, 48, 80, 112, BFloat16, nil, accepted},
		{1, 32, 48, 80, 112, torch.Float32, nil, "it takes bfloat16 and float16, not float32"},
		{1, 32, 48, 80, 112, BFloat16, func(t *torch.Tail) { t.OutputBias = bias(48) }, biases},
		{1, 32, 48, 80, 112, BFloat16, func(t *torch.Tail) { t.DownBias = bias(48) }, biases},
		{1, 16, 8208, 16400, 16, BFloat16, nil, accepted},
		{1, 32, 48, 72, 112, BFloat16, nil, multiple + "48 with 32, 72 and 112"},
		{1, 32, 48, 80, 100, BFloat16, nil, multiple + "48 with 32, 80 and 100"},
		{1, 32, 48, 80, 112, BFloat16, transposed,
			"it takes contiguous tensors of one dtype on one device"},
	} {
		run(t, func() {
			randn := func(shape ...int) torch.Tensor {
				return torch.Randn(shape, s.dtype, torch.CPU)
			}
			tail := torch.Tail{
				Output:  randn(s.width, s.from),
				MLPNorm: randn(s.width),
				GateUp:  randn(2*s.inner, s.width),
				Down:    randn(s.width, s.inner),
				Eps:     1e-5,
				MLPEps:  1e-5,
			}
			if s.ahead > 0 {
				tail.NextNorm, tail.Next = randn(s.width), randn(s.ahead, s.width)
				tail.NextEps = 1e-5
			}
			if s.change != nil {
				s.change(&tail)
			}
			torch.NoGrad(func() {
				if _, _, why := torch.BlockTail(
					randn(s.rows, 1, s.width),
					randn(s.rows, 1, s.from),
					tail,
				); why != s.why {
					t.Errorf("%+v: %q", s, why)
				}
			})
			tail.Down.RequireGrad(true)
			if _, _, why := torch.BlockTail(randn(1, 1, s.width), randn(1, 1, s.from),
				tail); s.why == accepted &&
				why != "gradients are recorded" {
				t.Errorf("with a gradient: %q", why)
			}
		})
	}
}

// A cache in 8 bits holds levels of the keys and values of a cache of floats, and attention to it
// is that to its values.
func TestCache_In8Bits(t *testing.T) {
	inTorch(t, func() {
		const batch, heads, keyHeads, width, capacity = 3, 4, 2, 64, 200
		const all = (heads + 2*keyHeads) * width
		r := rand.New(rand.NewPCG(rand.Uint64(), 9))
		table := func(length int) (cos, sin torch.Tensor) {
			angle := torch.From(normal(r, length*width/2), 1, length, width/2)
			return angle.Cos(), angle.Sin()
		}
		qkv := func(length int) torch.Tensor {
			return torch.From(normal(r, batch*length*all), batch, length, all)
		}
		empty := func(width int, dtype torch.DType) torch.Tensor {
			return torch.Zeros([]int{batch, keyHeads, capacity, width}, dtype, torch.CPU)
		}
		keys, values := empty(width/32*34, torch.Uint8), empty(width/32*34, torch.Uint8)
		exactKeys, exactValues := empty(width, torch.Float32), empty(width, torch.Float32)
		const first = 170
		columns := make([]int64, first)
		for i := range columns {
			columns[i] = int64(i)
		}
		at := torch.From(columns, 1, first)
		x := qkv(first)
		cos, sin := table(first)
		q := torch.RotaryQKVCache(x, heads, cos, sin, at, keys, values)
		want := torch.RotaryQKVCache(x, heads, cos, sin, at, exactKeys, exactValues)
		if !slices.Equal(torch.Values[float32](q), torch.Values[float32](want)) {
			t.Error("the queries differ")
		}
		for i, pair := range [][2]torch.Tensor{{keys, exactKeys}, {values, exactValues}} {
			got := torch.Values[float32](torch.UnpackCache(pair[0], torch.Float32))
			for block := 0; block < len(got); block += 32 {
				exact := torch.Values[float32](pair[1])[block : block+32]
				most := float32(0)
				for _, v := range exact {
					most = max(most, float32(math.Abs(float64(v))))
				}
				for k, v := range exact {
					limit := 0.51*float64(most)/127 + float64(most)/2000
					if math.Abs(float64(got[block+k]-v)) > limit {
						t.Fatalf("cache %d, number %d: %g became %g", i, block+k, v, got[block+k])
					}
				}
			}
		}
		x = qkv(1)
		cos, sin = table(1)
		lengths := torch.From([]int64{first + 1, 7, 130}, batch)
		y := torch.DecodeAttention(x, heads, cos, sin, keys, values, torch.Tensor{}, lengths, 0)
		q, _, _ = torch.RotaryQKV(x, heads, keyHeads, cos, sin)
		wide := []torch.Tensor{torch.UnpackCache(keys, torch.Float32),
			torch.UnpackCache(values, torch.Float32)}
		for b, n := range torch.Values[int64](lengths) {
			one := func(c torch.Tensor) torch.Tensor {
				return c.Narrow(0, b, 1).Narrow(2, 0, int(n))
			}
			want := torch.Attention(q.Narrow(0, b, 1), one(wide[0]), one(wide[1]), torch.Tensor{},
				false, 0)
			got := y.Narrow(0, b, 1).Reshape(-1).Sub(want.Reshape(-1))
			if off := torch.Item[float64](got.Abs().Max()); off > 1e-5 {
				t.Errorf("sequence %d: off by %g", b, off)
			}
		}
	})
}
