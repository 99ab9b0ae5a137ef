package generate

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// generation is the state of one call.
type generation struct {
	model   model.Model
	options Options
	rows    []*Row
	next    []int32 // token just chosen for each row
	stop    bool    // the first process of the group was cancelled
	stats   Stats
}

// begin checks the arguments of a call and makes its state.
func begin(m model.Model, tok *tokenizer.Tokenizer, prompts [][]int32, o Options,
	onText func(int, string),
) (*generation, error) {
	if err := o.check(tok, len(prompts)); err != nil {
		return nil, err
	}
	if err := o.checkVocabulary(vocabulary(m)); err != nil {
		return nil, err
	}
	if o.EOS == nil {
		o.EOS = EOS(m, tok)
	}
	g := &generation{model: m, options: o, next: make([]int32, len(prompts))}
	samples := o.Samples
	if samples == nil {
		samples = Repeats(prompts)
	}
	for i, prompt := range prompts {
		if err := CheckPrompt(m, prompt); err != nil {
			if len(prompts) > 1 {
				err = fmt.Errorf("prompt %d: %w", i+1, err)
			}
			return nil, err
		}
		r := newRow(m, tok, prompt, o, samples[i])
		if r.stream != nil && onText != nil {
			r.stream.emit = func(piece string) { onText(i, piece) }
		}
		g.rows = append(g.rows, r)
		g.stats.PromptTokens += len(prompt)
	}
	return g, nil
}

// longest returns the length of the longest prompt.
func (g *generation) longest() int {
	n := 0
	for _, r := range g.rows {
		n = max(n, r.prompt)
	}
	return n
}

// capacity returns the columns of cache that the batch can need. The last new token
// is not read again.
func (g *generation) capacity() int {
	most := 0
	for _, r := range g.rows {
		most = max(most, r.most)
	}
	return g.longest() + most - 1
}

// starts returns the first column of each left-padded row, or nil if no row is
// padded.
func (g *generation) starts() []int {
	starts := make([]int, len(g.rows))
	padded := false
	for i, r := range g.rows {
		starts[i] = g.longest() - r.prompt
		padded = padded || starts[i] > 0
	}
	if !padded {
		return nil
	}
	return starts
}

// loop chooses tokens until every row has ended. logits computes the next logits
// [B, V] from the tokens in the rows.
func (g *generation) loop(ctx context.Context, logits func() torch.Tensor) (err error) {
	began := time.Now()
	for step := 0; ; step++ {
		if err = g.ended(ctx); err != nil {
			break
		}
		torch.Scoped(func() { g.choose(logits()) })
		g.agree(ctx)
		g.clock(&began, step)
		tokens := make([]int64, len(g.next))
		for i, id := range g.next {
			tokens[i] = int64(id)
		}
		if going, err := g.take(tokens, step); err != nil || !going {
			return err
		}
	}
	return g.interrupt(err)
}

// agree sends the tokens of the first process, and whether it was cancelled, to all
// processes of the group.
func (g *generation) agree(ctx context.Context) {
	if g.options.Group == nil {
		return
	}
	torch.Scoped(func() {
		told := make([]int64, len(g.next)+1)
		for i, id := range g.next {
			told[i] = int64(id)
		}
		if ctx.Err() != nil {
			told[len(g.next)] = 1
		}
		t := torch.From(told, len(told)).ToDevice(model.Device(g.model))
		g.options.Group.Broadcast(t, 0).Wait()
		told = torch.Values[int64](t)
		for i := range g.next {
			g.next[i] = int32(told[i])
		}
		g.stop = told[len(g.next)] != 0
	})
}

// ended returns the error of the context, of the first process if there are several.
func (g *generation) ended(ctx context.Context) error {
	if g.options.Group == nil {
		return ctx.Err()
	}
	if g.stop {
		return context.Canceled
	}
	return nil
}

func (g *generation) results() []Result {
	results := make([]Result, len(g.rows))
	for i, r := range g.rows {
		results[i] = r.Result()
	}
	return results
}

// cached computes the next logits with a cache that holds all tokens but the newest.
// kept is the number of tokens of the only prompt that it held at the beginning.
func (g *generation) cached(cache *model.Cache, kept int) torch.Tensor {
	device := model.Device(g.model)
	if cache.Length == kept {
		width := g.longest()
		ids := make([]int32, 0, len(g.rows)*width)
		for _, r := range g.rows {
			ids = append(ids, make([]int32, width-r.prompt)...)
			ids = append(ids, r.ids...)
		}
		input := torch.From(ids, len(g.rows), width).Narrow(1, kept, width-kept)
		return g.prefill(input.To(torch.Int64).ToDevice(device), cache)
	}
	input := torch.From(g.next, len(g.rows), 1).To(torch.Int64).ToDevice(device)
	return model.LastLogits(g.model, model.Sequence{IDs: input, Cache: cache})
}

// prefill reads input [B,L] in pieces and returns the logits after its last token.
func (g *generation) prefill(input torch.Tensor, cache *model.Cache) torch.Tensor {
	length, piece := input.Size(1), g.options.PrefillPiece
	if piece == 0 {
		piece = length
	}
	start := 0
	for ; length-start > piece; start += piece {
		torch.Scoped(func() {
			model.Hidden(g.model, model.Sequence{IDs: input.Narrow(1, start, piece), Cache: cache})
		})
	}
	return model.LastLogits(g.model, model.Sequence{IDs: input.Narrow(1, start, length-start),
		Cache: cache})
}

// whole computes the next logits from all tokens. Rows are padded on the right,
// which a causal model does not see.
func (g *generation) whole() torch.Tensor {
	width := 0
	for _, r := range g.rows {
		width = max(width, len(r.ids))
	}
	ids := make([]int32, len(g.rows)*width)
	for i, r := range g.rows {
		copy(ids[i*width:], r.ids)
	}
	input := torch.From(ids, len(g.rows), width).To(torch.Int64).ToDevice(model.Device(g.model))
	hidden := model.Hidden(g.model, model.Sequence{IDs: input})
	last := make([]torch.Tensor, len(g.rows))
	for i, r := range g.rows {
		last[i] = hidden.Select(0, i).Select(0, len(r.ids)-1)
	}
	return g.model.Head().Logits(torch.Stack(0, last...))
}

// failed is the token of a row that has none.
const failed = -1

// choose picks a token for each row from logits [B, V].
func (g *generation) choose(logits torch.Tensor) {
	if g.options.greedy() {
		values, indices := logits.MaxDim(-1, false)
		chosen := torch.Values[int64](indices)
		for i, v := range torch.Values[float32](values) {
			if g.next[i] = int32(chosen[i]); math.IsNaN(float64(v)) && g.rows[i].finish == "" {
				g.next[i] = failed
			}
		}
		return
	}
	logits = logits.To(torch.Float32).ToDevice(torch.CPU).Contiguous()
	for i, r := range g.rows {
		if g.next[i] = 0; r.finish != "" {
			continue
		}
		if id, err := r.pick(logits.Select(0, i)); err != nil {
			g.next[i], r.err = failed, err
		} else {
			g.next[i] = id
		}
	}
}

// clock adds the time since began to Prefill in step 0, else to Decode.
func (g *generation) clock(began *time.Time, step int) {
	now := time.Now()
	if step == 0 {
		g.stats.Prefill = now.Sub(*began)
	} else {
		g.stats.Decode += now.Sub(*began)
		g.stats.Steps = append(g.stats.Steps, now.Sub(*began))
	}
	*began = now
}

// take adds the chosen tokens to the rows that have not ended. going reports whether
// a row continues.
func (g *generation) take(tokens []int64, step int) (going bool, err error) {
	for i, r := range g.rows {
		if r.finish != "" {
			continue
		}
		if tokens[i] < 0 { // the row reads any token until the others have ended
			if g.next[i] = 0; r.err == nil {
				r.err = errNotANumber
			}
			r.finish = FinishError
			continue
		}
		g.next[i] = int32(tokens[i])
		g.stats.NewTokens++
		if step > 0 {
			g.stats.decoded++
		}
		r.accept(g.next[i])
		going = going || r.finish == ""
	}
	alive := func(r *Row) bool { return r.err == nil }
	if !slices.ContainsFunc(g.rows, alive) {
		return false, g.rows[0].err
	}
	return going, nil
}

// interrupt ends the open rows and returns err.
func (g *generation) interrupt(err error) error {
	for _, r := range g.rows {
		if r.finish == "" {
			r.end(FinishInterrupted)
		}
	}
	return err
}
