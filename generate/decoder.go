package generate

import (
	"context"
	"fmt"
	"slices"
	"time"

	"conquer/model"
	"conquer/torch"
)

// Compile says how a decoding step is launched.
type Compile string

const (
	// CompileNone launches every operation by itself and chooses each token on the host.
	CompileNone Compile = "none"
	// CompileGraph records a step once and replays it. The token is chosen on the device and is the next step's input there;
	// the host reads it while the next step runs already.
	CompileGraph Compile = "graph"
)

// compiled resolves the default: recorded steps on a GPU, where it has the model to itself.
func (o Options) compiled(device torch.Device) bool {
	return o.Compile == CompileGraph || o.Compile == "" && device.IsCUDA() && o.Group == nil
}

// decoder takes decoding steps over one cache without the host in between.
type decoder struct {
	model    model.Model
	cache    *model.Cache
	sampling torch.Sampling
	capture  *torch.Capture

	next     torch.Tensor // int64 [B,1]: the token just chosen, the next step's input
	chosen   torch.Tensor // int64 [B]: the same as it is handed to the host, -1 where the logits were no numbers
	position torch.Tensor // int64 [1]: the column that next goes to
	uniform  torch.Tensor // float64 [S,B]: what each step's draw comes from; no tensor for greedy decoding
	taken    torch.Tensor // int64 [1]: the row of uniform that the next choice uses
	seen     torch.Tensor // bool [B,V], for a repetition penalty
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

// sampling is what of the options a step depends on.
func (o Options) sampling() torch.Sampling {
	s := torch.Sampling{Temperature: o.Temperature, TopK: o.TopK, TopP: o.TopP, MinP: o.MinP, RepetitionPenalty: o.RepetitionPenalty}
	if s.RepetitionPenalty == 0 {
		s.RepetitionPenalty = 1
	}
	if s.Temperature == 0 {
		s.TopK, s.TopP, s.MinP = 0, 0, 0
	}
	return s
}

// free frees the decoder, not the cache.
func (d *decoder) free() {
	if d == nil {
		return
	}
	d.capture.Free()
	for _, t := range []*torch.Tensor{&d.next, &d.chosen, &d.position, &d.uniform, &d.taken, &d.seen} {
		t.Free()
	}
}

// begin chooses the first tokens from the logits [B,V] of the prompts, which the cache has read.
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

// step reads the token just chosen and chooses the next one. It is what the capture records.
func (d *decoder) step() {
	logits := model.LastLogits(d.model, model.Sequence{IDs: d.next, Cache: d.cache})
	d.position.AddTo(torch.Ones([]int{1}, torch.Int64, d.position.Device()))
	d.choose(logits)
}

func (d *decoder) choose(logits torch.Tensor) {
	var uniform torch.Tensor
	if d.uniform.Defined() {
		uniform = d.uniform.IndexSelect(0, d.taken).Squeeze(0)
		d.taken.AddTo(torch.Ones([]int{1}, torch.Int64, d.taken.Device()))
	}
	chosen := torch.Choose(logits, d.seen, uniform, d.sampling)
	d.chosen.Copy(chosen)
	// The next step must not look up a row that is not there; the host ends the text when it sees -1.
	d.next.Copy(chosen.Clamp(0, 1<<31).Unsqueeze(1))
	if d.seen.Defined() {
		d.seen.Mark(d.next)
	}
}

// advance takes one step; the token comes with fetch.
func (d *decoder) advance() {
	length := d.cache.Length
	d.cache.Position = d.position
	defer func() { d.cache.Position = torch.Tensor{} }()
	d.capture.Run()
	d.cache.Length = length + 1 // a replay does not pass through the code that counts
}

// decode is loop with a decoder: it launches a step before it looks at what the last one gave. prompts computes the logits
// after the prompts.
func (g *generation) decode(ctx context.Context, d *decoder, prompts func() torch.Tensor) (err error) {
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
		// The first token is what someone waits for; after it, the next step is on its way before the last one is looked at.
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

// clock adds the time since `began` to the prompts' or the tokens' share.
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

// take gives each row that has not ended its token, and reports whether one goes on.
func (g *generation) take(tokens []int64, step int) (going bool, err error) {
	for i, r := range g.rows {
		if r.finish != "" {
			continue
		}
		if tokens[i] < 0 {
			return false, errNotANumber
		}
		g.next[i] = int32(tokens[i])
		g.stats.NewTokens++
		if step > 0 {
			g.stats.decoded++
		}
		if r.accept(g.next[i], !g.options.IgnoreEOS && slices.Contains(g.eos, g.next[i])); r.finish == "" {
			going = true
		}
	}
	return going, nil
}

func (g *generation) interrupt(err error) error {
	for _, r := range g.rows {
		if r.finish == "" {
			r.end(FinishInterrupted)
		}
	}
	return err
}

// ParseCompile reads a Compile by its name; "" is the default.
func ParseCompile(name string) (Compile, error) {
	switch c := Compile(name); c {
	case "", CompileNone, CompileGraph:
		return c, nil
	}
	return "", fmt.Errorf("unknown way to compile %q: use %s or %s", name, CompileNone, CompileGraph)
}
