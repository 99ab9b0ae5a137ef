package statespace

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"conquer/torch"
)

// problem is one random scan in float64, in the tensors' memory order.
type problem struct {
	batch, length, heads, headDim, groups, state int
	chunk, window                                int
	x, dt, a, b, c, d, z, bias, initial          []float64
	segments                                     []int32 // nil for none
	dtMin, dtMax                                 float64
}

func (p *problem) String() string {
	return fmt.Sprintf("B%d L%d H%d P%d G%d N%d chunk %d window %d "+
		"segments %v initial %v D %v z %v", p.batch, p.length,
		p.heads, p.headDim, p.groups, p.state, p.chunk, p.window, p.segments != nil,
		p.initial != nil, p.d != nil, p.z != nil)
}

// fields lists the floating-point inputs with their shapes. An absent input has no values.
func (p *problem) fields() []field {
	tokens := []int{p.batch, p.length}
	with := func(rest ...int) []int { return append(append([]int{}, tokens...), rest...) }
	return []field{
		{"x", &p.x, with(p.heads, p.headDim)}, {"dt", &p.dt, with(p.heads)},
		{"A", &p.a, []int{p.heads}},
		{"B", &p.b, with(p.groups, p.state)}, {"C", &p.c, with(p.groups, p.state)},
		{"D", &p.d, []int{p.heads}},
		{"z", &p.z, with(p.heads, p.headDim)}, {"dt_bias", &p.bias, []int{p.heads}},
		{"initial", &p.initial, []int{p.batch, p.heads, p.headDim, p.state}},
	}
}

type field struct {
	name   string
	values *[]float64
	shape  []int
}

// newProblem draws a scan. Each optional input is absent with probability one half.
func newProblem(r *rand.Rand, length int) *problem {
	p := &problem{
		batch: 1 + r.IntN(3), length: length, headDim: []int{16, 24, 48}[r.IntN(3)],
		groups: 1 + r.IntN(2), state: []int{16, 32, 40}[r.IntN(3)], chunk: 16 << r.IntN(3),
		window: r.IntN(4) - 1,
		dtMin:  0, dtMax: math.Inf(1),
	}
	p.heads = p.groups * (1 + r.IntN(4))
	if r.IntN(2) == 0 {
		p.dtMin, p.dtMax = 0.02, 0.6
	}
	for _, f := range p.fields() {
		if optional := f.name == "D" || f.name == "z" || f.name == "dt_bias" ||
			f.name == "initial"; optional && r.IntN(2) == 0 {
			continue
		}
		n := 1
		for _, size := range f.shape {
			n *= size
		}
		values := make([]float64, n)
		for i := range values {
			// float32 holds these exactly, so rounding the inputs adds no error.
			values[i] = float64(float32(r.NormFloat64()))
			if f.name == "A" {
				values[i] = -float64(float32(math.Exp(r.NormFloat64())))
			}
			if f.name == "dt" {
				values[i] = float64(float32(r.NormFloat64() - 2))
			}
		}
		*f.values = values
	}
	if r.IntN(2) == 0 {
		p.segments = make([]int32, p.batch*p.length)
		for i := range p.segments {
			if i%p.length == 0 {
				p.segments[i] = int32(r.IntN(2))
			} else if p.segments[i] = p.segments[i-1]; r.IntN(12) == 0 {
				p.segments[i] = 1 - p.segments[i] // a number may recur: only the change counts
			}
		}
	}
	return p
}

// recurrence runs the scan token by token from its definition: for each token it recomputes the
// state that the token's chunk sees, from the first token within reach. It returns y [B,L,H,P] and
// the final state [B,H,P,N].
func (p *problem) recurrence() (y, final []float64) {
	P, N := p.headDim, p.state
	y, final = make([]float64, len(p.x)), make([]float64, p.batch*p.heads*P*N)
	h := make([]float64, P*N)
	for b := range p.batch {
		for head := range p.heads {
			g := head / (p.heads / p.groups)
			step := func(t int) { // h = e^{dt·A}·h + dt·B⊗x
				if t > 0 && p.segments != nil &&
					p.segments[b*p.length+t] != p.segments[b*p.length+t-1] {
					clear(h)
				}
				dt := p.dt[(b*p.length+t)*p.heads+head]
				if p.bias != nil {
					dt += p.bias[head]
				}
				dt = min(max(math.Log1p(math.Exp(dt)), p.dtMin), p.dtMax)
				decay := math.Exp(dt * p.a[head])
				for i := range P {
					dtx := dt * p.x[((b*p.length+t)*p.heads+head)*P+i]
					for n := range N {
						h[i*N+n] = decay*h[i*N+n] + dtx*p.b[((b*p.length+t)*p.groups+g)*N+n]
					}
				}
			}
			for begin := 0; begin < p.length; begin += p.chunk {
				first := 0 // the first token within this chunk's reach
				if p.window >= 0 {
					first = max(0, begin-p.window*p.chunk)
				}
				clear(h)
				if p.initial != nil && (p.window < 0 || begin/p.chunk < p.window) {
					copy(h, p.initial[(b*p.heads+head)*P*N:])
				}
				for t := first; t < min(begin+p.chunk, p.length); t++ {
					step(t)
					if t < begin {
						continue
					}
					for i := range P {
						at := ((b*p.length+t)*p.heads+head)*P + i
						for n := range N {
							y[at] += p.c[((b*p.length+t)*p.groups+g)*N+n] * h[i*N+n]
						}
						if p.d != nil {
							y[at] += p.d[head] * p.x[at]
						}
						if p.z != nil {
							y[at] *= p.z[at] / (1 + math.Exp(-p.z[at]))
						}
					}
				}
			}
			copy(final[(b*p.heads+head)*P*N:], h)
		}
	}
	return y, final
}

// input makes leaf tensors of the problem, by name. dtype is that of x, dt, B, C and z; the others
// are at least float32. In float64 the heads' parameters A, D and dt_bias get a leaf for each
// token, [B,L,H], which the reference accepts, too.
func (p *problem) input(dtype torch.DType) (torch.SSDInput, map[string]torch.Tensor) {
	leaves := map[string]torch.Tensor{}
	for _, f := range p.fields() {
		if *f.values == nil {
			continue
		}
		t := torch.From(*f.values, f.shape...)
		switch f.name {
		case "A", "D", "dt_bias", "initial":
			if dtype != torch.Float64 {
				t = t.To(torch.Float32)
			} else if f.name != "initial" {
				t = t.Expand(p.batch, p.length, p.heads).Clone()
			}
		default:
			t = t.To(dtype)
		}
		leaves[f.name] = t.Detach().RequireGrad(true)
	}
	in := torch.SSDInput{
		X: leaves["x"], DT: leaves["dt"], A: leaves["A"], B: leaves["B"], C: leaves["C"],
		D: leaves["D"], Z: leaves["z"],
		DTBias: leaves["dt_bias"], Softplus: true, DTMin: p.dtMin, DTMax: p.dtMax,
		InitialState: leaves["initial"],
	}
	if p.segments != nil {
		in.Segments = torch.From(p.segments, p.batch, p.length)
	}
	return in, leaves
}

// result holds y, the final state, and the gradient of each input by name.
type result map[string][]float64

// seeds are the gradients of y and of the final state.
type seeds struct{ y, final []float64 }

func newSeeds(r *rand.Rand, p *problem, dtype torch.DType) seeds {
	s := seeds{make([]float64, len(p.x)), make([]float64, p.batch*p.heads*p.headDim*p.state)}
	for _, values := range [][]float64{s.y, s.final} {
		for i := range values {
			values[i] = float64(float32(r.NormFloat64()))
		}
	}
	s.y = rounded(s.y, dtype)
	return s
}

// rounded rounds values to dtype.
func rounded(values []float64, dtype torch.DType) (held []float64) {
	torch.Scoped(func() { held = torch.Values[float64](torch.From(values, len(values)).To(dtype)) })
	return held
}

// run scans and, if seeds are given, computes the gradients.
func (p *problem) run(dtype torch.DType, scan func(in torch.SSDInput) (y, final torch.Tensor),
	s *seeds) result {
	got := result{}
	torch.Scoped(func() {
		in, leaves := p.input(dtype)
		y, final := scan(in)
		got["y"], got["final"] = torch.Values[float64](y), torch.Values[float64](final)
		if s == nil {
			return
		}
		torch.Backward([]torch.Tensor{y, final}, []torch.Tensor{
			torch.From(s.y, y.Shape()...).To(y.DType()),
			torch.From(s.final, final.Shape()...).To(final.DType())})
		for name, leaf := range leaves {
			grad := leaf.Grad()
			if !grad.Defined() {
				grad = leaf.ZerosLike()
			}
			if dtype == torch.Float64 && (name == "A" || name == "D" || name == "dt_bias") {
				got["terms d"+name] = torch.Values[float64](grad)
				grad = grad.SumDim(0, false).SumDim(0, false)
			}
			got["d"+name] = torch.Values[float64](grad)
		}
	})
	return got
}

func (p *problem) plain(in torch.SSDInput) (y,
	final torch.Tensor) {
	return SSD(in, p.chunk, p.window)
}
func (p *problem) kernel(in torch.SSDInput) (y, final torch.Tensor) {
	return torch.SSDScan(in, p.chunk, p.window)
}

// relative is |got - want| / |want| in the 2-norm.
func relative(got, want []float64) float64 { return relativeTo(got, want, norm(want)) }

func relativeTo(got, want []float64, scale float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	difference := make([]float64, len(want))
	for i := range want {
		difference[i] = got[i] - want[i]
	}
	if scale == 0 {
		return norm(difference)
	}
	return norm(difference) / scale
}

func norm(v []float64) (n float64) {
	for _, x := range v {
		n = math.Hypot(n, x)
	}
	return n
}

// fresh returns a generator seeded by the clock, and logs the seed.
func fresh(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// problems are random scans of one token, exactly one chunk, one token more or less, and lengths
// between.
func problems(r *rand.Rand) (list []*problem) {
	for _, length := range []int{1, 2, 15, 16, 17, 31, 33, 64, 65} {
		list = append(list, newProblem(r, length))
	}
	for range 14 {
		list = append(list, newProblem(r, 1+r.IntN(150)))
	}
	return list
}

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

func TestSSD_EqualsTheRecurrence(t *testing.T) {
	r := fresh(t)
	worst := 0.0
	run(t, func() {
		for _, p := range problems(r) {
			y, final := p.recurrence()
			got := p.run(torch.Float64, p.plain, nil)
			if e := max(relative(got["y"], y), relative(got["final"], final)); !(e < 1e-12) {
				t.Errorf("%v: relative error %.1e", p, e)
			} else {
				worst = max(worst, e)
			}
		}
	})
	t.Logf("worst relative error in float64: %.1e", worst)
}

// The reference's float64 gradients are compared with the recurrence: along a random direction, the
// change of <y, seed> is the inner product of the gradient and the direction.
func TestSSD_GradientsEqualTheRecurrences(t *testing.T) {
	r := fresh(t)
	const h = 1e-5
	run(t, func() {
		for _, length := range []int{1, 20, 50} {
			p := newProblem(r, length)
			p.dtMin, p.dtMax = 0, math.Inf(1) // a clamp has no derivative at its edge
			s := newSeeds(r, p, torch.Float64)
			got := p.run(torch.Float64, p.plain, &s)
			for _, f := range p.fields() {
				if *f.values == nil {
					continue
				}
				original, along := *f.values, 0.0
				direction, moved := make([]float64, len(original)), make([]float64, len(original))
				for i := range direction {
					direction[i] = r.NormFloat64() * math.Abs(original[i])
					along += direction[i] * got["d"+f.name][i]
				}
				at := func(step float64) (sum float64) {
					for i := range moved {
						moved[i] = original[i] + step*direction[i]
					}
					*f.values = moved
					y, final := p.recurrence()
					*f.values = original
					for i, v := range y {
						sum += v * s.y[i]
					}
					for i, v := range final {
						sum += v * s.final[i]
					}
					return sum
				}
				slope := (at(h) - at(-h)) / (2 * h)
				if e := math.Abs(slope-along) / (1e-3 + math.Abs(slope)); e > 1e-5 {
					t.Errorf("%v: d%s along a direction is %g, the recurrence's slope %g", p,
						f.name, along, slope)
				}
			}
		}
	})
}

// The kernels and the reference, in both precisions, are compared with the reference in float64 on
// the same rounded inputs. The gradients of A, D and dt_bias are sums over all tokens and may
// cancel, so they are compared with the size of their terms as well. Other gradients are sums, too:
// one comparison in a hundred may exceed the bound, and none five times the bound.
func TestSSDScan_KernelsAndReferenceAgreeWithGradients(t *testing.T) {
	for _, precision := range []struct {
		dtype torch.DType
		bound float64
	}{{torch.Float32, 1e-5}, {torch.BFloat16, 1e-2}} {
		t.Run(precision.dtype.String(), func(t *testing.T) {
			r := fresh(t)
			worst := map[string]float64{}
			compared, exceeded := 0, 0
			run(t, func() {
				for _, p := range problems(r) {
					p.round(precision.dtype)
					s := newSeeds(r, p, precision.dtype)
					want := p.run(torch.Float64, p.plain, &s)
					for face, scan := range map[string]func(torch.SSDInput) (y,
						final torch.Tensor){"plain": p.plain, "kernel": p.kernel} {
						got := p.run(precision.dtype, scan, &s)
						for name := range got {
							e := relativeTo(got[name], want[name], max(norm(want[name]),
								norm(want["terms "+name])))
							worst[face+" "+name] = max(worst[face+" "+name], e)
							compared++
							if !(e < precision.bound) {
								exceeded++
								t.Logf("%v: %s of the %s face has relative error %.1e", p, name,
									face, e)
							}
							if !(e < 5*precision.bound) {
								t.Fail()
							}
						}
					}
				}
			})
			if exceeded*100 > compared {
				t.Errorf("%d of %d comparisons exceed %.0e", exceeded, compared, precision.bound)
			}
			for name, e := range worst {
				t.Logf("%-14s %.1e", name, e)
			}
		})
	}
}

// round rounds the inputs that are stored as dtype.
func (p *problem) round(dtype torch.DType) {
	for _, values := range []*[]float64{&p.x, &p.dt, &p.b, &p.c, &p.z} {
		if *values != nil {
			*values = rounded(*values, dtype)
		}
	}
}

// Two parts of a sequence, the second starting from the first's final state, equal the whole
// sequence.
func TestSSDScan_FinalStateContinuesTheScan(t *testing.T) {
	r := fresh(t)
	run(t, func() {
		for range 6 {
			p := newProblem(r, 2+r.IntN(100))
			p.window, p.segments = -1, nil
			cut := 1 + r.IntN(p.length-1)
			in, _ := p.input(torch.Float32)
			for _, optimized := range []bool{false, true} {
				c := Chunking{Strategy: Default, ChunkSize: p.chunk, Optimized: optimized}
				whole, end := c.Scan(in)
				part := func(start, length int, state torch.Tensor) (y, final torch.Tensor) {
					part := in
					part.InitialState = state
					for _, t := range []*torch.Tensor{&part.X, &part.DT, &part.B, &part.C,
						&part.Z} {
						if t.Defined() {
							*t = t.Narrow(1, start, length)
						}
					}
					return c.Scan(part)
				}
				y1, middle := part(0, cut, in.InitialState)
				y2, final := part(cut, p.length-cut, middle)
				e := max(relative(torch.Values[float64](torch.Cat(1, y1, y2)),
					torch.Values[float64](whole)),
					relative(torch.Values[float64](final), torch.Values[float64](end)))
				if !(e < 1e-5) {
					t.Errorf("%v cut at %d, optimized %v: relative difference %.1e", p, cut,
						optimized, e)
				}
			}
		}
	})
}

// SSDStep, token by token, equals the scan.
func TestSSDStep_StepsEqualTheScan(t *testing.T) {
	r := fresh(t)
	run(t, func() {
		p := newProblem(r, 21)
		p.window, p.segments = -1, nil
		in, _ := p.input(torch.Float32)
		want, end := SSD(in, p.chunk, -1)
		torch.NoGrad(func() {
			state := torch.Zeros([]int{p.batch, p.heads, p.headDim, p.state}, torch.Float32,
				torch.CPU)
			if in.InitialState.Defined() {
				state.Copy(in.InitialState)
			}
			var ys []torch.Tensor
			for i := range p.length {
				token := in
				if i%2 == 1 {
					token.A, token.ALog = torch.Tensor{}, in.A.Neg().Log()
				}
				for _, t := range []*torch.Tensor{&token.X, &token.DT, &token.B, &token.C,
					&token.Z} {
					if t.Defined() {
						*t = t.Select(1, i)
					}
				}
				ys = append(ys, torch.SSDStep(state, token))
			}
			e := max(relative(torch.Values[float64](torch.Stack(1, ys...)),
				torch.Values[float64](want)),
				relative(torch.Values[float64](state), torch.Values[float64](end)))
			if !(e < 1e-5) {
				t.Errorf("%v: relative difference %.1e", p, e)
			}
		})
	})
}

func TestChunking_StrategiesAreOneFamily(t *testing.T) {
	r := fresh(t)
	run(t, func() {
		p := newProblem(r, 100)
		in, _ := p.input(torch.Float32)
		scan := func(name string) []float64 {
			c, err := ParseChunking(name)
			if err != nil {
				t.Fatal(err)
			}
			c.ChunkSize = 16
			y, _ := c.Scan(in)
			return torch.Values[float64](y)
		}
		for _, same := range [][2]string{
			{"default", "default-optimized"}, {"independent", "independent-optimized"},
			{"windowed:2", "windowed:2-optimized"},
			{"windowed:0", "independent"}, {"windowed:9", "default"},
		} {
			if e := relative(scan(same[0]), scan(same[1])); !(e < 1e-5) {
				t.Errorf("%v: %s and %s differ by %.1e", p, same[0], same[1], e)
			}
		}
	})
}

func TestParseChunking_ReadsNames(t *testing.T) {
	for _, name := range []string{"default", "default-optimized", "independent",
		"independent-optimized", "windowed:0", "windowed:12-optimized"} {
		c, err := ParseChunking(name)
		if err != nil || c.String() != name || c.Check() != nil {
			t.Errorf("%q came back as %q, %v", name, c.String(), err)
		}
	}
	for _, name := range []string{"", "optimized", "windowed", "windowed:", "windowed:-1",
		"windowed:x", "windowed-optimized:2", "independent:1", "default:", "Default"} {
		if c, err := ParseChunking(name); err == nil {
			t.Errorf("%q was read as %+v", name, c)
		}
	}
	for text, want := range map[string]int{"16": 16, "256": 256, "auto": Auto} {
		if size, err := ParseChunkSize(text); err != nil || size != want {
			t.Errorf("chunk size %q came back as %d, %v", text, size, err)
		}
	}
	for _, text := range []string{"", "8", "512", "48", "-1", "0", "x"} {
		if size, err := ParseChunkSize(text); err == nil {
			t.Errorf("chunk size %q was read as %d", text, size)
		}
	}
	if err := (Chunking{Strategy: Default, ChunkSize: 100}).Check(); err == nil {
		t.Error("a chunk size of 100 was accepted")
	}
}

func BenchmarkScan(b *testing.B) {
	for _, name := range []string{"default", "default-optimized", "independent-optimized"} {
		b.Run(name, func(b *testing.B) {
			c, err := ParseChunking(name)
			if err != nil {
				b.Fatal(err)
			}
			c.ChunkSize = 256
			err = torch.Run(func() error {
				draw := func(shape ...int) torch.Tensor {
					return torch.Randn(shape, torch.Float32,
						torch.CPU)
				}
				const length, heads = 2048, 32
				in := torch.SSDInput{
					X: draw(1, length, heads, 64), DT: draw(1, length, heads),
					A: draw(heads).Exp().Neg(), B: draw(1, length, 1, 128),
					C: draw(1, length, 1, 128), D: draw(heads), Softplus: true, DTMax: math.Inf(1),
				}
				for b.Loop() {
					torch.Scoped(func() { c.Scan(in) })
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
		})
	}
}
