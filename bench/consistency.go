package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"conquer/generate"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/torch"
)

// ConsistencyOptions say what [RunConsistency] compares.
type ConsistencyOptions struct {
	Model   model.Model
	IDs     []int32 // the text's tokens, two or more
	Pieces  []int   // sizes of the pieces that a text is read in
	Decoded int     // tokens at the end of the text that are read one by one; 0: all but the first
	Batches []int   // numbers of rows, all with the text, that are decoded together
	Before  int     // tokens of padding and of packed samples before the text
	// For models with state-space layers: the dtypes of cached states, the chunk sizes and the
	// strategies to compare. Chunk sizes of strategies are not used.
	States     []torch.DType
	Chunks     []int
	Strategies []statespace.Chunking
	// Reference, if not nil, receives the hidden states of the float64 reference, [L,D], before the
	// head.
	Reference func(hidden torch.Tensor) error
}

// ConsistencyRow is one way to run a model over a text, compared position by position with the
// float64 reference of the same weights. Position t is the prediction after token t, from 0.
type ConsistencyRow struct {
	Program   string `json:"program"` // conquer, or the name and version of a peer
	Way       string `json:"way"`     // whole, cache, pieces, decode, padded, packed
	Piece     int    `json:"piece,omitempty"`
	Batch     int    `json:"batch,omitempty"`    // of decode: rows, all with the text
	Strategy  string `json:"strategy,omitempty"` // of chunking; "" without state-space layers
	ChunkSize int    `json:"chunk_size,omitempty"`
	Device    string `json:"device"`
	DType     string `json:"dtype"`
	State     string `json:"state_dtype,omitempty"` // of cached states
	Length    int    `json:"length"`                // tokens of the text
	// KL is the divergence of the way's distribution from the reference's, in nats: its mean over
	// positions, its largest value and where that is.
	KLMean  float64 `json:"kl_mean"`
	KLMax   float64 `json:"kl_max"`
	KLMaxAt int     `json:"kl_max_at"`
	// LogitMax is the largest difference of a logit, LogitMaxAt its position, and LogitScale the
	// standard deviation of the reference's logits, for comparison.
	LogitMax   float64 `json:"logit_max"`
	LogitMaxAt int     `json:"logit_max_at"`
	LogitScale float64 `json:"logit_scale"`
	// FirstDiffering is the first position with another argmax, -1 if there is none; Margin is by
	// how much the reference's argmax leads there, in logits. Differing counts such positions.
	FirstDiffering int     `json:"first_differing"`
	Margin         float64 `json:"margin,omitempty"`
	Differing      int     `json:"differing"`
	// Curve is the drift along the text.
	Curve  []ConsistencyPoint `json:"curve"`
	Failed string             `json:"failed,omitempty"` // the reason if the row has no figures
}

// ConsistencyPoint summarizes the positions after the previous point's, up to and with Position.
type ConsistencyPoint struct {
	Position int     `json:"position"`
	KL       float64 `json:"kl"`    // mean
	Logit    float64 `json:"logit"` // largest difference
}

// Check returns an error if the options are invalid.
func (o ConsistencyOptions) Check() error {
	chunked, ok := o.Model.(statespace.Chunked)
	switch {
	case len(o.IDs) < 2:
		return errors.New("the text has fewer than two tokens")
	case len(o.IDs)+o.Before > o.Model.MaxLength():
		return fmt.Errorf("the text has %d tokens, and the model's context of %d must hold %d more",
			len(o.IDs), o.Model.MaxLength(), o.Before)
	case o.Decoded < 0 || o.Decoded >= len(o.IDs):
		return fmt.Errorf("decode is %d, expected 0 (all) to %d, one less than the text's tokens",
			o.Decoded, len(o.IDs)-1)
	case o.Before < 1:
		return fmt.Errorf("padding is %d, expected 1 or more", o.Before)
	}
	for _, piece := range o.Pieces {
		if piece < 1 {
			return fmt.Errorf("a piece is %d tokens, expected 1 or more", piece)
		}
	}
	if err := checkPositive("batch_size", o.Batches...); err != nil || !ok {
		return cmp.Or(err, generate.CheckIDs(o.Model, o.IDs))
	}
	for _, c := range o.Strategies {
		if err := c.Check(); err != nil {
			return err
		}
	}
	c := chunked.Chunking()
	for _, c.ChunkSize = range o.Chunks {
		if err := c.Check(); err != nil {
			return err
		}
	}
	return generate.CheckIDs(o.Model, o.IDs)
}

// RunConsistency measures how far ways to run a model over one text agree: with the text whole, in
// pieces, token by token, padded and packed, with each dtype of the cached states, chunk size and
// strategy. It calls each with every row and with the total number of rows. A row that fails holds
// the reason, and the run continues.
func RunConsistency(ctx context.Context, o ConsistencyOptions,
	each func(row ConsistencyRow, total int)) error {
	if err := o.Check(); err != nil {
		return err
	}
	reference, err := newWide(o.Model)
	if err != nil {
		return err
	}
	if chunked, ok := o.Model.(statespace.Chunked); ok {
		before := chunked.Chunking()
		defer chunked.SetChunking(before)
	}
	return torch.Run(func() (err error) {
		torch.NoGrad(func() {
			var c comparison
			var hidden torch.Tensor
			if hidden, err = reference.hidden(ctx, o.IDs); err != nil {
				return
			}
			if o.Reference != nil {
				if err = o.Reference(hidden); err != nil {
					return
				}
			}
			c = newComparison(o.Model, hidden)
			ways := o.ways()
			for _, w := range ways {
				row := o.row(w)
				failed := torch.Run(func() error {
					hidden, err := o.run(ctx, w)
					if err == nil {
						c.fill(&row, hidden)
					}
					return err
				})
				if failed != nil {
					reason, isRow := oneLine(failed)
					if !isRow {
						err = failed
						return
					}
					row = o.row(w)
					row.Failed = reason
				}
				each(row, len(ways))
			}
		})
		return err
	})
}

var minusInfinity = math.Inf(-1)

func sqrt(n int) float64 { return math.Sqrt(float64(n)) }

// comparedRows is the number of positions whose logits are in memory at once.
const comparedRows = 128

// comparison compares hidden states with those of the reference.
type comparison struct {
	model     model.Model
	reference torch.Tensor // [L,D], float64
	head      torch.Tensor // [V,D], float64
	scale     float64      // of the logits
}

func newComparison(m model.Model, reference torch.Tensor) comparison {
	c := comparison{model: m, reference: reference, head: wide(m.Head().Tensor), scale: 1}
	if s := m.Head().Scale; s != 0 {
		c.scale = s
	}
	return c
}

// fill compares the hidden states [L,D] of a way, from which the model's own head makes logits.
func (c comparison) fill(row *ConsistencyRow, hidden torch.Tensor) {
	length := hidden.Size(0)
	kl, logit := make([]float64, 0, length), make([]float64, 0, length)
	row.FirstDiffering = -1
	var squares, sums, count float64
	for start := 0; start < length; start += comparedRows {
		torch.Scoped(func() {
			rows := min(comparedRows, length-start)
			want := c.reference.Narrow(0, start, rows).Matmul(c.head.Transpose(0, 1)).MulScalar(
				c.scale)
			got := wide(c.model.Head().Logits(hidden.Narrow(0, start, rows)))
			p, q := want.LogSoftmax(-1), got.LogSoftmax(-1)
			kl = append(kl, torch.Values[float64](p.Exp().Mul(p.Sub(q)).SumDim(-1, false))...)
			most, _ := got.Sub(want).Abs().MaxDim(-1, false)
			logit = append(logit, torch.Values[float64](most)...)
			sums += torch.Values[float64](want.Sum())[0]
			squares += torch.Values[float64](want.PowScalar(2).Sum())[0]
			count += float64(want.Numel())
			best, tokens := want.TopK(2)
			first := torch.Values[int64](tokens.Select(1, 0).Contiguous())
			margin := torch.Values[float64](best.Select(1, 0).Sub(best.Select(1, 1)))
			for i, token := range torch.Values[int64](got.Argmax(-1)) {
				if token == first[i] {
					continue
				}
				if row.Differing++; row.FirstDiffering < 0 {
					row.FirstDiffering, row.Margin = start+i, margin[i]
				}
			}
		})
	}
	mean := sums / count
	row.LogitScale = math.Sqrt(max(squares/count-mean*mean, 0))
	row.summarize(kl, logit)
}

// summarize sets the figures of all positions and the curve.
func (r *ConsistencyRow) summarize(kl, logit []float64) {
	for t := range kl {
		if math.IsNaN(kl[t]) || math.IsInf(logit[t], 0) || math.IsNaN(logit[t]) {
			r.Failed = fmt.Sprintf("the logits at position %d are not numbers", t)
			return
		}
		kl[t] = max(kl[t], 0) // below 0 by rounding alone
		r.KLMean += kl[t] / float64(len(kl))
		if kl[t] > r.KLMax {
			r.KLMax, r.KLMaxAt = kl[t], t
		}
		if logit[t] > r.LogitMax {
			r.LogitMax, r.LogitMaxAt = logit[t], t
		}
	}
	for start := 0; start < len(kl); {
		end := min(max(start+1, int(float64(start)*math.Sqrt2+0.5)), len(kl))
		point := ConsistencyPoint{Position: end - 1, Logit: slices.Max(logit[start:end])}
		for _, v := range kl[start:end] {
			point.KL += v / float64(end-start)
		}
		r.Curve = append(r.Curve, point)
		start = end
	}
}
