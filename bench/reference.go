package bench

import (
	"math"
)

// headScan is the scan of one head of one sequence in float64, token by token, from the definition alone: what the timed
// code is held against. x and dy are [L,P], dt (before its bias and softplus) [L], b and c [L,N].
type headScan struct {
	length, headDim, state int
	chunk, window          int
	x, dt, b, c, dy        []float64
	a, d, bias             float64
}

// stretches calls f for each run of tokens that is scanned from a zero state: tokens [first, end), of which those from
// `counted` on give results. Where state is carried across all chunks that is the whole sequence; else it is each chunk with
// what lies within its reach.
func (s *headScan) stretches(f func(first, counted, end int)) {
	if s.window < 0 {
		f(0, 0, s.length)
		return
	}
	for counted := 0; counted < s.length; counted += s.chunk {
		f(max(0, counted-s.window*s.chunk), counted, min(counted+s.chunk, s.length))
	}
}

// softplus is dt as the recurrence uses it.
func (s *headScan) softplus(t int) float64 { return math.Log1p(math.Exp(s.dt[t] + s.bias)) }

// advance moves the state h [P,N] over token t: h = e^{dt·A}·h + dt·x⊗B.
func (s *headScan) advance(h []float64, t int) {
	dt := s.softplus(t)
	decay, b := math.Exp(dt*s.a), s.b[t*s.state:(t+1)*s.state]
	for p := range s.headDim {
		dtx, row := dt*s.x[t*s.headDim+p], h[p*s.state:(p+1)*s.state]
		for n := range row {
			row[n] = decay*row[n] + dtx*b[n]
		}
	}
}

// sum is what terms add up to, which can be far smaller than they are and is as exact as they are: over a single token all of
// y is x times one number, D and what the state adds to it, which may be of opposite signs.
type sum struct{ value, squares float64 }

func (s *sum) add(term float64) { s.value, s.squares = s.value+term, s.squares+term*term }

// forward returns y [L,P]: y = C·h + D·x.
func (s *headScan) forward() []sum {
	y := make([]sum, s.length*s.headDim)
	h := make([]float64, s.headDim*s.state)
	s.stretches(func(first, counted, end int) {
		clear(h)
		for t := first; t < end; t++ {
			s.advance(h, t)
			if t < counted {
				continue
			}
			for p := range s.headDim {
				at := t*s.headDim + p
				y[at].add(s.d * s.x[at])
				for n := range s.state {
					y[at].add(h[p*s.state+n] * s.c[t*s.state+n])
				}
			}
		}
	})
	return y
}

// headGradients are the gradients of Σ dy·y.
type headGradients struct {
	x, dt, b, c []sum
	a, d, bias  sum
}

const kept = 64 // tokens between the states that gradients() holds on to

// gradients goes back through the recurrence. With g the gradient of h_t,
//
//	dC = Σ_p dy·h,  g += dy⊗C,  dB = dt·Σ_p x·g,  dx = dt·g·B + D·dy,  d(dt) = x·g·B + A·e^{dt·A}·⟨g, h_{t-1}⟩,
//	dA = dt·e^{dt·A}·⟨g, h_{t-1}⟩,  and then g = e^{dt·A}·g for the token before.
func (s *headScan) gradients() headGradients {
	P, N := s.headDim, s.state
	out := headGradients{x: make([]sum, s.length*P), dt: make([]sum, s.length), b: make([]sum, s.length*N), c: make([]sum, s.length*N)}
	s.stretches(func(first, counted, end int) {
		h := make([]float64, P*N)
		var begins [][]float64 // the state before every kept'th token
		for t := first; t < end; t++ {
			if (t-first)%kept == 0 {
				begins = append(begins, append([]float64{}, h...))
			}
			s.advance(h, t)
		}
		g := make([]float64, P*N)
		states := make([][]float64, kept+1)
		for i := len(begins) - 1; i >= 0; i-- {
			begin := first + i*kept
			states[0] = begins[i]
			stop := min(begin+kept, end)
			for t := begin; t < stop; t++ {
				states[t-begin+1] = append(states[t-begin+1][:0], states[t-begin]...)
				s.advance(states[t-begin+1], t)
			}
			for t := stop - 1; t >= begin; t-- {
				before, after := states[t-begin], states[t-begin+1]
				dt := s.softplus(t)
				decay, slope := math.Exp(dt*s.a), 1/(1+math.Exp(-s.dt[t]-s.bias)) // of softplus
				toDT := func(term float64) {
					out.dt[t].add(slope * term)
					out.bias.add(slope * term)
				}
				for p := range P {
					x, dy := s.x[t*P+p], 0.0
					if t >= counted {
						dy = s.dy[t*P+p]
						out.d.add(x * dy)
						out.x[t*P+p].add(s.d * dy)
					}
					for n := range N {
						at, b := p*N+n, s.b[t*N+n]
						out.c[t*N+n].add(dy * after[at])
						g[at] += dy * s.c[t*N+n]
						out.x[t*P+p].add(dt * g[at] * b)
						out.b[t*N+n].add(dt * x * g[at])
						toDT(x * g[at] * b)
						g[at] *= decay
						out.a.add(dt * g[at] * before[at])
						toDT(s.a * g[at] * before[at])
					}
				}
			}
		}
	})
	return out
}

// distance is ‖got-want‖/‖want‖; infinite where got holds something that is no number.
func distance(got, want []float64) float64 {
	var difference, size float64
	for i, w := range want {
		difference += (got[i] - w) * (got[i] - w)
		size += w * w
	}
	if math.IsNaN(difference) {
		return math.Inf(1)
	}
	if difference == 0 {
		return 0
	}
	return math.Sqrt(difference / size)
}

// distanceOfSums is ‖got - sums‖ beside the norm of the sums' terms.
func distanceOfSums(got []float64, want ...sum) float64 {
	var difference, size float64
	for i, w := range want {
		difference += (got[i] - w.value) * (got[i] - w.value)
		size += w.squares
	}
	switch {
	case math.IsNaN(difference):
		return math.Inf(1)
	case difference == 0:
		return 0
	}
	return math.Sqrt(difference / size)
}
