package generate

import (
	"context"
	"time"

	"conquer/model"
	"conquer/torch"
)

// decoder runs decoding steps over one cache and chooses the tokens on the device.
type decoder struct {
	model    model.Model
	cache    *model.Cache
	sampling torch.Sampling
	capture  *torch.Capture

	next     torch.Tensor // int64 [B, 1]: token just chosen, input of the next step
	chosen   torch.Tensor // int64 [B]: the same for the host, -1 if the logits were NaN
	position torch.Tensor // int64 [1]: column of next in the cache
	uniform  torch.Tensor // float64 [S, B]: random numbers of each step; undefined if greedy
	taken    torch.Tensor // int64 [1]: row of uniform for the next choice
	seen     torch.Tensor // bool [B, V]: tokens so far; undefined without a penalty
}

func newDecoder(m model.Model, cache *model.Cache, rows int, o Options) *decoder {
	d := &decoder{model: m, cache: cache, sampling: o.sampling()}
	device := model.Device(m)
	torch.Scoped(func() {
		d.next = torch.Zeros([]int{rows, 1}, torch.Int64, device).Own()
		d.chosen = torch.Zeros([]int{rows}, torch.Int64, device).Own()
		d.position = torch.Zeros([]int{1}, torch.Int64, device).Own()
		d.taken = torch.Zeros([]int{1}, torch.Int64, device).Own()
		if d.sampling.Temperature > 0 {
			d.uniform = torch.Zeros([]int{cache.Capacity + 1, rows}, torch.Float64, device).Own()
		}
		if d.sampling.RepetitionPenalty != 1 {
			d.seen = torch.Zeros([]int{rows, vocabulary(m)}, torch.Bool, device).Own()
		}
	})
	d.capture = torch.NewCapture(device, d.step)
	return d
}

// sampling returns the options that a step depends on.
func (o Options) sampling() torch.Sampling {
	s := torch.Sampling{Temperature: o.Temperature, TopK: o.TopK, TopP: o.TopP, MinP: o.MinP,
		RepetitionPenalty: o.RepetitionPenalty}
	if s.RepetitionPenalty == 0 {
		s.RepetitionPenalty = 1
	}
	if o.mostLikely() {
		s.Temperature, s.TopK, s.TopP, s.MinP = 0, 0, 0, 0
	}
	return s
}

// free frees the decoder but not the cache.
func (d *decoder) free() {
	if d == nil {
		return
	}
	d.capture.Free()
	for _, t := range []*torch.Tensor{&d.next, &d.chosen, &d.position, &d.uniform, &d.taken,
		&d.seen} {
		t.Free()
	}
}

// begin chooses the first tokens from the logits [B, V] of the prompts, which are in
// the cache.
func (d *decoder) begin(g *generation, logits torch.Tensor) {
	device := model.Device(d.model)
	d.position.Copy(torch.From([]int64{int64(d.cache.Length)}, 1).ToDevice(device))
	d.taken.Zero()
	if d.uniform.Defined() {
		most := 0
		for _, r := range g.rows {
			most = max(most, r.most)
		}
		draws := make([]float64, most*len(g.rows))
		for i, r := range g.rows {
			for step := range r.most {
				draws[step*len(g.rows)+i] = r.sampler.random.Float64()
			}
		}
		d.uniform.Narrow(0, 0, most).Copy(torch.From(draws, most, len(g.rows)).ToDevice(device))
	}
	if d.seen.Defined() {
		marks := make([]uint8, len(g.rows)*vocabulary(d.model))
		for i, r := range g.rows {
			for _, id := range r.ids {
				marks[i*vocabulary(d.model)+int(id)] = 1
			}
		}
		d.seen.Copy(torch.From(marks, len(g.rows), vocabulary(d.model)).ToDevice(device))
	}
	d.choose(logits)
}

// step reads the token just chosen and chooses the next one. The capture records it.
func (d *decoder) step() {
	logits := model.LastLogits(d.model, model.Sequence{IDs: d.next, Cache: d.cache})
	d.position.AddTo(torch.Ones([]int{1}, torch.Int64, d.position.Device()))
	d.choose(logits)
}

// choose picks a token for each row from logits [B, V].
func (d *decoder) choose(logits torch.Tensor) {
	var uniform torch.Tensor
	if d.uniform.Defined() {
		uniform = d.uniform.IndexSelect(0, d.taken).Squeeze(0)
		d.taken.AddTo(torch.Ones([]int{1}, torch.Int64, d.taken.Device()))
	}
	chosen := torch.Choose(logits, d.seen, uniform, d.sampling)
	d.chosen.Copy(chosen)
	// The embedding has no row -1. The host ends the text when it reads -1.
	d.next.Copy(chosen.Clamp(0, 1<<31).Unsqueeze(1))
	if d.seen.Defined() {
		d.seen.Mark(d.next)
	}
}

// advance launches one step. The caller fetches the token.
func (d *decoder) advance() {
	length := d.cache.Length
	d.cache.Position = d.position
	defer func() { d.cache.Position = torch.Tensor{} }()
	d.capture.Run()
	d.cache.Length = length + 1 // a replay does not run the code that counts
}

// decode is loop with a decoder. It launches a step before it reads the token of the
// previous one. prompts computes the logits of the prompts.
func (g *generation) decode(ctx context.Context, d *decoder,
	prompts func() torch.Tensor,
) (err error) {
	began := time.Now()
	if err = ctx.Err(); err != nil {
		return g.interrupt(err)
	}
	torch.Scoped(func() { d.begin(g, prompts()) })
	most := 0
	for _, r := range g.rows {
		most = max(most, r.most)
	}
	pending := torch.StartFetch[int64](d.chosen)
	defer func() { pending.Drop() }()
	for step := 0; ; step++ {
		// The first token is read at once. After it, the next step is launched before the
		// token of the last one is read.
		var following *torch.Fetch[int64]
		if step > 0 && step+1 < most && ctx.Err() == nil {
			d.advance()
			following = torch.StartFetch[int64](d.chosen)
		}
		tokens := pending.Values()
		pending = following
		g.clock(&began, step)
		going, err := g.take(tokens, step)
		if err != nil || !going {
			return err
		}
		if err := ctx.Err(); err != nil {
			return g.interrupt(err)
		}
		if pending == nil {
			d.advance()
			pending = torch.StartFetch[int64](d.chosen)
		}
	}
}
