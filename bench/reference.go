package bench

import (
	"math"
)

// headScan is the reference for the timed code: the scan of one head of one sequence in
// float64, token by token, from its definition. x and dy are [L, P], dt (before its bias and
// softplus) is [L], b and c are [L, N].
type headScan struct {
	length, headDim, state int
	chunk, window          int
	x, dt, b, c, dy        []float64
	a, d, bias             float64
}

// segments calls f for each run of tokens [first, end) that is scanned from a zero state. Only
// the tokens from counted on give results. If state is carried across all chunks, there is one
// run; else there is one for each chunk, with the window of chunks before it.
func (s *headScan) segments(f func(first, counted, end int)) {
	if s.window < 0 {
		f(0, 0, s.length)
		return
	}
	for counted := 0; counted < s.length; counted += s.chunk {
		f(max(0, counted-s.window*s.chunk), counted, min(counted+s.chunk, s.length))
	}
}

// softplus returns the dt of the recurrence.
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

// sum is a sum of terms, with the sum of their squares. Its error is relative to the terms,
// which can be much larger than the sum: D·x and C·h may have opposite signs.
type sum struct{ value, squares float64 }

func (s *sum) add(term float64) { s.value, s.squares = s.value+term, s.squares+term*term }

// forward returns y [L,P]: y = C·h + D·x.
func (s *headScan) forward() []sum {
	y := make([]sum, s.length*s.headDim)
	h := make([]float64, s.headDim*s.state)
	s.segments(func(first, counted, end int) {
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

// statesEvery is the number of tokens between the states that gradients keeps.
const statesEvery = 64

// gradients goes backward through the recurrence. With g the gradient of h_t,
//
//	dC = Σ_p dy·h,  g += dy⊗C,  dB = dt·Σ_p x·g,  dx = dt·g·B + D·dy,
//	d(dt) = x·g·B + A·e^{dt·A}·⟨g, h_{t-1}⟩,
//	dA = dt·e^{dt·A}·⟨g, h_{t-1}⟩,  then g = e^{dt·A}·g for token t-1.
func (s *headScan) gradients() headGradients {
	P, N := s.headDim, s.state
	out := headGradients{
		x: make([]sum, s.length*P), dt: make([]sum, s.length),
		b: make([]sum, s.length*N), c: make([]sum, s.length*N),
	}
	s.segments(func(first, counted, end int) {
		h := make([]float64, P*N)
		var begins [][]float64 // the state before every statesEvery-th token
		for t := first; t < end; t++ {
			if (t-first)%statesEvery == 0 {
				begins = append(begins, append([]float64{}, h...))
			}
			s.advance(h, t)
		}
		g := make([]float64, P*N)
		states := make([][]float64, statesEvery+1)
		for i := len(begins) - 1; i >= 0; i-- {
			begin := first + i*statesEvery
			states[0] = begins[i]
			stop := min(begin+statesEvery, end)
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

// distance returns ‖got-want‖/‖want‖, or infinity if got holds a NaN.
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

// distanceOfSums returns ‖got-sums‖ over the norm of the terms of the sums.
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
