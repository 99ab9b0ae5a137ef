package bench

import (
	"context"
	"errors"
	"math"

	"conquer/generate"
	"conquer/model"
	"conquer/torch"
)

// QuantizationRow is a model in one mix of kinds, or the original.
type QuantizationRow struct {
	Kind       string `json:"kind"` // a name of quant.Mixes, or original
	Importance bool   `json:"importance"`
	Device     string `json:"device"`
	// Bytes is the size of the file, or of the original's weights.
	Bytes         int64   `json:"bytes"`
	BitsPerWeight float64 `json:"bits_per_weight"`
	Tokens        int     `json:"tokens"` // that are predicted
	Perplexity    float64 `json:"perplexity"`
	// KL is the divergence of the predictions from the original's in nats, the mean over tokens,
	// and KLError its standard error.
	KL      float64 `json:"kl"`
	KLError float64 `json:"kl_error"`
	// SameTop is the share of tokens whose most likely successor is the original's.
	SameTop    float64 `json:"same_top"`
	PromptPerS float64 `json:"prompt_tokens_per_s"`
	TokenMS    float64 `json:"token_ms"`   // a token after the prompt
	QuantizeS  float64 `json:"quantize_s"` // 0 for the original
}

// Divergence compares models with an original over windows of tokens. It keeps the original's
// hidden states and uses its head.
type Divergence struct {
	original model.Model
	windows  [][]int32
	hidden   []torch.Tensor // [L-1, D] each
}

// NewDivergence runs the original over windows of at least two tokens.
func NewDivergence(ctx context.Context, original model.Model, windows [][]int32) (*Divergence,
	error) {
	d := &Divergence{original: original, windows: windows}
	err := d.run(ctx, original, func(_ int, hidden torch.Tensor) {
		d.hidden = append(d.hidden, hidden.Own())
	})
	if err != nil {
		d.Free()
		return nil, err
	}
	return d, nil
}

// Free frees the hidden states.
func (d *Divergence) Free() {
	for _, h := range d.hidden {
		h.Free()
	}
	d.hidden = nil
}

// run calls each with the hidden states of each window but its last token: [L-1, D].
func (d *Divergence) run(ctx context.Context, m model.Model,
	each func(window int, hidden torch.Tensor)) error {
	for i, ids := range d.windows {
		if err := generate.CheckIDs(m, ids); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		err := torch.Run(func() error {
			torch.NoGrad(func() {
				torch.Scoped(func() {
					input := torch.From(ids[:len(ids)-1], 1, len(ids)-1).To(torch.Int64)
					each(i, model.Hidden(m, model.Sequence{
						IDs: input.ToDevice(model.Device(m))}).Squeeze(0))
				})
			})
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// divergenceRows is the number of positions whose logits are held at once.
const divergenceRows = 64

// Measure sets the row's figures of m's predictions.
func (d *Divergence) Measure(ctx context.Context, m model.Model, row *QuantizationRow) error {
	var kl []float64
	nll, same := 0.0, 0
	err := d.run(ctx, m, func(window int, hidden torch.Tensor) {
		for first := 0; first < hidden.Size(0); first += divergenceRows {
			torch.Scoped(func() {
				n := min(divergenceRows, hidden.Size(0)-first)
				p := predictions(d.original, d.hidden[window].Narrow(0, first, n))
				q := predictions(m, hidden.Narrow(0, first, n)).ToDevice(p.Device())
				kl = append(kl, torch.Values[float64](p.Exp().Mul(p.Sub(q)).SumDim(-1, false))...)
				best := torch.Values[int64](q.Argmax(-1))
				for i, token := range torch.Values[int64](p.Argmax(-1)) {
					if token == best[i] {
						same++
					}
				}
				next := torch.From(d.windows[window][first+1:first+1+n], n, 1).To(torch.Int64)
				for _, x := range torch.Values[float64](q.Gather(1, next.ToDevice(q.Device()))) {
					nll -= x
				}
			})
		}
	})
	if err != nil {
		return err
	}
	row.Tokens = len(kl)
	count := float64(len(kl))
	squares := 0.0
	for _, x := range kl {
		row.KL += x / count
		squares += x * x / count
	}
	row.KLError = math.Sqrt(max(squares-row.KL*row.KL, 0) / count)
	row.KL = max(row.KL, 0)
	row.Perplexity, row.SameTop = math.Exp(nll/count), float64(same)/count
	if math.IsNaN(row.KL) || math.IsNaN(nll) || math.IsInf(row.Perplexity, 0) {
		return errors.New("the model's probabilities are not numbers")
	}
	return nil
}

// predictions gives the logarithms of the probabilities of m's next tokens in float32: [L, V].
func predictions(m model.Model, hidden torch.Tensor) torch.Tensor {
	return m.Head().Logits(hidden).To(torch.Float32).LogSoftmax(-1)
}
