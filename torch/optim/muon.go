package optim

import (
	"math"

	"conquer/torch"
)

// The coefficients of Muon's polynomial, and how often it is applied (Jordan et al.,
// https://kellerjordan.github.io/posts/muon).
var newtonSchulz = [3]float64{3.4445, -4.7750, 2.0315}

const newtonSchulzSteps = 5

// orthogonal returns a bfloat16 matrix with about the singular vectors of g and singular values
// near 1.
func orthogonal(g torch.Tensor) torch.Tensor {
	a, b, c := newtonSchulz[0], newtonSchulz[1], newtonSchulz[2]
	tall := g.Size(0) > g.Size(1)
	if tall {
		g = g.Transpose(0, 1)
	}
	x := g.To(torch.BFloat16)
	norm := max(torch.GlobalNorm([]torch.Tensor{x}), 1e-7)
	x = x.MulScalar(1 / norm)
	for range newtonSchulzSteps {
		gram := x.Matmul(x.Transpose(0, 1))
		polynomial := gram.MulScalar(b).Add(gram.Matmul(gram).MulScalar(c))
		x = x.MulScalar(a).Add(polynomial.Matmul(x))
	}
	if tall {
		x = x.Transpose(0, 1)
	}
	return x
}

// muonStep is a step over one weight that holds matrices.
type muonStep struct {
	weight, master, gradient, mean torch.Tensor // master is the weight itself if that is float32
	rows                           []int
	decay                          float64
}

// apply takes the step: the weight moves by the orthogonalized sum of momentum and gradient of each
// matrix. An element of the update has a root mean square of 0.2, which AdamW's has too, so that
// both take the same rate (Liu et al., arXiv 2502.16982).
func (s muonStep) apply(rate, scale, momentum float64) {
	g := s.gradient.To(torch.Float32).MulScalar(scale)
	s.mean.Copy(s.mean.MulScalar(momentum).Add(g.MulScalar(1 - momentum)))
	g = g.MulScalar(1 - momentum).Add(s.mean.MulScalar(momentum))
	s.master.Copy(s.master.MulScalar(1 - rate*s.decay))
	first := 0
	for _, rows := range s.rows {
		torch.Scoped(func() {
			update := orthogonal(g.Narrow(0, first, rows)).To(torch.Float32)
			larger := float64(max(rows, g.Size(1)))
			s.master.Narrow(0, first, rows).AddTo(update.MulScalar(-0.2 * rate * math.Sqrt(larger)))
		})
		first += rows
	}
	if s.weight.DType() != torch.Float32 {
		s.weight.Copy(s.master)
	}
}
