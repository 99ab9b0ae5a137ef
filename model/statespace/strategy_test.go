package statespace

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"conquer/torch"
)

// carried is the strategy default, written as a strategy of one's own, with the carried state
// multiplied by factor at every border.
type carried struct{ factor float64 }

func (c carried) Starts(chunks Chunks) torch.Tensor {
	var starts []torch.Tensor
	state := chunks.Initial
	for k := range chunks.Len() {
		state = state.MulScalar(c.factor)
		starts = append(starts, state)
		state = chunks.End(k, state)
	}
	return torch.Stack(1, starts...)
}

// wrong returns states of another shape.
type wrong struct{}

func (wrong) Starts(c Chunks) torch.Tensor { return c.Initial }

func init() {
	RegisterStrategy("carried", func(argument string) (Strategy, error) {
		factor, err := strconv.ParseFloat(argument, 64)
		if err != nil || !(factor >= 0) {
			return nil, errors.New("expected carried:f with a factor of 0 or more")
		}
		return carried{factor}, nil
	})
	RegisterStrategy("wrong", func(string) (Strategy, error) { return wrong{}, nil })
}

// faded is the recurrence of carried in float64, token by token: [B,L,H,P] without a gate.
func (p *problem) faded(factor float64) (y []float64) {
	P, N := p.headDim, p.state
	y = make([]float64, len(p.x))
	for b := range p.batch {
		for head := range p.heads {
			h := make([]float64, P*N)
			if p.initial != nil {
				copy(h, p.initial[(b*p.heads+head)*P*N:])
			}
			group := head / (p.heads / p.groups)
			for t := range p.length {
				at := b*p.length + t
				if t > 0 && p.segments != nil && p.segments[at] != p.segments[at-1] {
					clear(h)
				}
				dt := p.dt[at*p.heads+head]
				if p.bias != nil {
					dt += p.bias[head]
				}
				dt = min(max(math.Log1p(math.Exp(dt)), p.dtMin), p.dtMax)
				for i := range P {
					x := p.x[(at*p.heads+head)*P+i]
					var sum float64
					for n := range N {
						s := &h[i*N+n]
						if t%p.chunk == 0 {
							*s *= factor
						}
						*s = *s*math.Exp(dt*p.a[head]) + dt*x*p.b[(at*p.groups+group)*N+n]
						sum += *s * p.c[(at*p.groups+group)*N+n]
					}
					if p.d != nil {
						sum += p.d[head] * x
					}
					if p.z != nil {
						z := p.z[(at*p.heads+head)*P+i]
						sum *= z / (1 + math.Exp(-z))
					}
					y[(at*p.heads+head)*P+i] = sum
				}
			}
		}
	}
	return y
}

func TestRegisterStrategy_ScansLikeTheRecurrence(t *testing.T) {
	r := fresh(t)
	run(t, func() {
		for range 12 {
			p := newProblem(r, 1+r.IntN(140))
			in, _ := p.input(torch.Float32)
			want := p.faded(0.5)
			for _, name := range []string{"carried:0.5", "carried:0.5-optimized"} {
				c, err := ParseChunking(name)
				if err != nil {
					t.Fatal(err)
				}
				c.ChunkSize = p.chunk
				y, _ := c.Scan(in)
				if e := relative(torch.Values[float64](y), want); !(e < 1e-5) {
					t.Errorf("%v: %s differs by %.1e", p, name, e)
				}
			}
		}
	})
}

// With the factor 1 outputs, final states and all gradients are those of the strategy default.
func TestRegisterStrategy_GradientsAreThoseOfTheScan(t *testing.T) {
	r := fresh(t)
	run(t, func() {
		for range 6 {
			p := newProblem(r, 1+r.IntN(140))
			scan := func(name string) (list [][]float64) {
				in, leaves := p.input(torch.Float32)
				c, err := ParseChunking(name)
				if err != nil {
					t.Fatal(err)
				}
				c.ChunkSize = p.chunk
				torch.WithGrad(func() {
					y, final := c.Scan(in)
					list = append(list, torch.Values[float64](y.Detach()),
						torch.Values[float64](final.Detach()))
					weight := torch.Arange(0, y.Numel(), torch.Float32, torch.CPU).Sin()
					y.Mul(weight.View(y.Shape()...)).Sum().Add(final.Sum()).Backward()
				})
				for _, f := range p.fields() {
					if leaf := leaves[f.name]; leaf.Defined() {
						list = append(list, torch.Values[float64](leaf.Grad()))
					}
				}
				return list
			}
			want := scan("default")
			for _, name := range []string{"carried:1", "carried:1-optimized"} {
				for i, got := range scan(name) {
					if e := relative(got, want[i]); !(e < 2e-5) {
						t.Errorf("%v: result %d of %s differs by %.1e", p, i, name, e)
					}
				}
			}
		}
	})
}

func TestRegisterStrategy_NamesAndErrors(t *testing.T) {
	for _, name := range []string{"carried:0.25", "carried:1e-3-optimized", "wrong"} {
		c, err := ParseChunking(name)
		if err != nil || c.String() != name || c.Check() != nil {
			t.Errorf("%q came back as %q, %v", name, c.String(), err)
		}
	}
	for name, want := range map[string]string{
		"carried": "expected carried:f", "carried:x": "expected carried:f", "wrong:": "colon",
		"carried:0_5": "may hold", "absent": "default, independent, windowed:k, carried or wrong",
	} {
		if _, err := ParseChunking(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, expected %q", name, err, want)
		}
	}
	for _, name := range []string{"carried", "default", "Upper", "with-dash", ""} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was registered", name)
				}
			}()
			RegisterStrategy(name, nil)
		}()
	}
	err := torch.Run(func() error {
		p := newProblem(fresh(t), 40)
		in, _ := p.input(torch.Float32)
		c, _ := ParseChunking("wrong")
		c.ChunkSize = 16
		c.Scan(in)
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "strategy wrong returned states of shape") {
		t.Errorf("states of another shape: %v", err)
	}
}
