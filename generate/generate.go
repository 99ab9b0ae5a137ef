// Package generate makes text with a causal language model, and measures how well the model predicts a given one.
//
// [Generate] continues a batch of prompts; a [Session] continues one conversation turn after turn and keeps what the model
// remembers of it; [Score] is the likelihood of a text.
//
// A batch of prompts of unequal length is padded on the left in the cache and each row sees its own tokens alone, so a
// prompt gives the same tokens in a batch as by itself. Sampling draws from a stream of its own that depends on
// Options.Seed and nothing else: the same seed gives the same text, on any device that computes the same logits.
//
// The functions of this package are the boundary between mathematics and programs: they return libtorch's failures as
// errors (see [conquer/torch.Run]).
package generate

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
)

// Options say how tokens are chosen and when to stop. The order and meaning of the filters are those of transformers:
// repetition penalty, temperature, top-k, top-p, min-p.
type Options struct {
	// MaxNewTokens is the most tokens made for a prompt. Fewer are made where the model's context ends first.
	MaxNewTokens int
	// Temperature divides the logits before sampling; 0 takes the most likely token each time.
	Temperature float64
	// TopK keeps the k most likely tokens (and those as likely as the k-th); 0 keeps all.
	TopK int
	// TopP keeps the most likely tokens whose probabilities sum to TopP; 0 or 1 keeps all.
	TopP float64
	// MinP keeps the tokens at least MinP times as likely as the likeliest; 0 keeps all.
	MinP float64
	// RepetitionPenalty divides the positive logits, and multiplies the negative ones, of tokens in the prompt or the text so
	// far (Keskar et al., arXiv 1909.05858); 0 or 1 changes nothing.
	RepetitionPenalty float64
	// Seed begins the stream that sampling draws from. Equal prompts in a batch draw from different streams of it.
	Seed uint64
	// Stop lists texts that end a row; the row's text ends before the first of them. They need a tokenizer.
	Stop []string
	// EOS lists the tokens that end a row; nil for those that the tokenizer and the model's config name.
	EOS []int32
	// IgnoreEOS goes on after them.
	IgnoreEOS bool
	// NoCache recomputes every token from the beginning at each step. The result is the same; it is there to check that.
	NoCache bool
	// Compile says how steps are launched; "" is CompileGraph on a GPU and CompileNone on the CPU. It changes the speed, and
	// nothing of the result but for the rounding of logits.
	Compile Compile
	// Group is the processes that have divided the model among them, nil for none. All of them make the same calls; the
	// tokens are those that the first one chooses, and its context is the one that counts. Steps are not recorded.
	Group *dist.Group
}

// Finish is why a row ended.
type Finish string

const (
	FinishEOS         Finish = "eos"         // a token that ends a text or a turn
	FinishStop        Finish = "stop"        // one of Options.Stop
	FinishLength      Finish = "length"      // Options.MaxNewTokens were made
	FinishContext     Finish = "context"     // the model's context is full
	FinishInterrupted Finish = "interrupted" // the context.Context was cancelled
)

// Result is what one prompt gave.
type Result struct {
	Tokens       []int32 // the new tokens, the one that ended the row included
	Text         string  // their text without special tokens; "" without a tokenizer
	Finish       Finish
	PromptTokens int
}

// Stats say how long a call took. Prefill is from the call to the first new token.
type Stats struct {
	PromptTokens, Reused int // Reused were remembered from an earlier turn
	NewTokens            int
	Prefill, Decode      time.Duration
	// Steps is how long each decoding step took, the first of which is launched operation by operation and the second
	// recorded where steps are recorded.
	Steps []time.Duration
	// On a GPU: whether the blocks' ends were the one kernel that is made for a single row, and why not where they were not.
	// Both are empty where no step read a single token from a cache, and for models whose blocks have no feed-forward layer.
	Fused   bool
	Unfused string
	decoded int // new tokens but for the first of each prompt
}

// fusion takes from a cache what is known of its steps. The CPU has kernels of its own, which serve whatever comes.
func (s *Stats) fusion(m model.Model, c *model.Cache) {
	if model.Device(m).IsCUDA() {
		s.Fused, s.Unfused = c.Fused && c.UnfusedReason == "", c.UnfusedReason
	}
}

// PrefillRate is how many tokens of the prompts were read in a second.
func (s Stats) PrefillRate() float64 { return rate(s.PromptTokens-s.Reused, s.Prefill) }

// DecodeRate is how many tokens a second were made after the first of each prompt; 0 when there were none.
func (s Stats) DecodeRate() float64 { return rate(s.decoded, s.Decode) }

func rate(n int, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// check reports the first option that makes no sense.
func (o Options) check(tok *tokenizer.Tokenizer) error {
	switch {
	case o.MaxNewTokens < 1:
		return fmt.Errorf("max_new_tokens is %d, expected at least 1", o.MaxNewTokens)
	case o.Temperature < 0 || math.IsNaN(o.Temperature) || math.IsInf(o.Temperature, 0):
		return fmt.Errorf("temperature is %v, expected 0 or more", o.Temperature)
	case o.TopK < 0:
		return fmt.Errorf("top_k is %d, expected 0 (all) or more", o.TopK)
	case !(o.TopP >= 0 && o.TopP <= 1):
		return fmt.Errorf("top_p is %v, expected a number from 0 to 1", o.TopP)
	case !(o.MinP >= 0 && o.MinP <= 1):
		return fmt.Errorf("min_p is %v, expected a number from 0 to 1", o.MinP)
	case !(o.RepetitionPenalty >= 0) || math.IsInf(o.RepetitionPenalty, 0):
		return fmt.Errorf("repetition_penalty is %v, expected a positive number", o.RepetitionPenalty)
	case len(o.Stop) > 0 && tok == nil:
		return errors.New("stop strings need a tokenizer, and there is none")
	case slices.Contains(o.Stop, ""):
		return errors.New("a stop string is empty")
	case o.Group != nil && o.Compile == CompileGraph:
		return fmt.Errorf("a step of a model that %d processes have divided cannot be recorded: choose %s", o.Group.Size, CompileNone)
	}
	return nil
}

// Generate continues each prompt, a list of token ids. tok turns tokens into text and may be nil; onText, if not nil, is
// called with each piece of a row's text as soon as it is certain: never part of a character, never part of a stop string.
//
// When ctx is cancelled, Generate returns what was made until then together with ctx's error.
func Generate(ctx context.Context, m model.Model, tok *tokenizer.Tokenizer, prompts [][]int32, o Options,
	onText func(row int, piece string)) ([]Result, Stats, error) {
	g, err := begin(m, tok, prompts, o, onText)
	if err != nil || len(prompts) == 0 {
		return nil, Stats{}, err
	}
	err = torch.Run(func() (err error) {
		torch.NoGrad(func() {
			if o.NoCache {
				err = g.loop(ctx, g.whole)
				return
			}
			cache := m.NewCache(len(g.rows), g.capacity(), model.DType(m), model.Device(m))
			defer cache.Free()
			defer g.stats.fusion(m, cache)
			cache.Starts = g.starts()
			logits := func() torch.Tensor { return g.cached(cache, 0) }
			if !o.compiled(model.Device(m)) {
				err = g.loop(ctx, logits)
				return
			}
			d := newDecoder(m, cache, len(g.rows), o)
			defer d.free()
			err = g.decode(ctx, d, logits)
		})
		return err
	})
	if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil, g.stats, err
	}
	return g.results(), g.stats, err
}

// generation is one call's state.
type generation struct {
	model   model.Model
	options Options
	eos     []int32
	rows    []*row
	next    []int32 // the token just chosen for each row
	stop    bool    // what the first of several processes said
	stats   Stats
}

// row is one prompt on its way.
type row struct {
	ids    []int32 // the prompt, then what was made
	prompt int
	most   int // new tokens
	full   bool
	finish Finish
	sampler
	stream *stream // nil without a tokenizer
}

func begin(m model.Model, tok *tokenizer.Tokenizer, prompts [][]int32, o Options, onText func(int, string)) (*generation, error) {
	if err := o.check(tok); err != nil {
		return nil, err
	}
	g := &generation{model: m, options: o, eos: o.EOS, next: make([]int32, len(prompts))}
	if g.eos == nil {
		g.eos = EOS(m, tok)
	}
	for i, prompt := range prompts {
		name := "the prompt"
		if len(prompts) > 1 {
			name = fmt.Sprintf("prompt %d", i+1)
		}
		if err := CheckIDs(m, prompt); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		room := m.MaxLength() - len(prompt)
		if room < 1 {
			return nil, fmt.Errorf("%s has %d tokens; the model's context is %d, with at least one to be made: shorten it", name, len(prompt), m.MaxLength())
		}
		repeats := uint64(0)
		for _, earlier := range prompts[:i] {
			if slices.Equal(earlier, prompt) {
				repeats++
			}
		}
		r := &row{ids: slices.Clone(prompt), prompt: len(prompt), most: min(o.MaxNewTokens, room), full: room < o.MaxNewTokens}
		r.sampler = newSampler(o, repeats, vocabulary(m), prompt)
		if tok != nil {
			r.stream = &stream{decoder: tok.Decoder(true), stops: o.Stop}
			if onText != nil {
				r.stream.emit = func(piece string) { onText(i, piece) }
			}
		}
		g.rows = append(g.rows, r)
		g.stats.PromptTokens += len(prompt)
	}
	return g, nil
}

// CheckIDs reports token ids that m does not have, or that there are none.
func CheckIDs(m model.Model, ids []int32) error {
	if len(ids) == 0 {
		return errors.New("there are no tokens")
	}
	for i, id := range ids {
		if id < 0 || int(id) >= vocabulary(m) {
			return fmt.Errorf("token %d is %d, but the model's vocabulary has the ids 0 to %d", i+1, id, vocabulary(m)-1)
		}
	}
	return nil
}

func vocabulary(m model.Model) int { return m.Head().Shape[0] }

// EOS lists the tokens that end a text: those that the tokenizer, which may be nil, and the model's config name.
func EOS(m model.Model, tok *tokenizer.Tokenizer) []int32 {
	var ids []int32
	if tok != nil {
		ids = tok.EOS()
	}
	add := func(v any) {
		if n, ok := v.(float64); ok && n >= 0 && n < math.MaxInt32 && !slices.Contains(ids, int32(n)) {
			ids = append(ids, int32(n))
		}
	}
	switch v := m.Config()["eos_token_id"].(type) {
	case []any:
		for _, id := range v {
			add(id)
		}
	default:
		add(v)
	}
	return ids
}

// longest is the length of the longest prompt.
func (g *generation) longest() int {
	n := 0
	for _, r := range g.rows {
		n = max(n, r.prompt)
	}
	return n
}

// capacity is how many columns of cache the batch can come to need. The last token made is not read again.
func (g *generation) capacity() int {
	most := 0
	for _, r := range g.rows {
		most = max(most, r.most)
	}
	return g.longest() + most - 1
}

// starts are the first columns of left-padded rows; nil when none is padded.
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

// loop chooses tokens until every row has ended. logits computes the next ones, [B,V], from what the rows hold.
func (g *generation) loop(ctx context.Context, logits func() torch.Tensor) (err error) {
	began := time.Now()
	for step := 0; ; step++ {
		if err = g.ended(ctx); err != nil {
			break
		}
		torch.Scoped(func() { err = g.choose(logits()) })
		if err != nil {
			return err
		}
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

// agree makes the first process's tokens those of all that run the model together, and tells them whether it is to stop.
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

// ended is why no further token is made: the context's error, here or in the process that speaks for all.
func (g *generation) ended(ctx context.Context) error {
	if g.options.Group == nil {
		return ctx.Err()
	}
	if g.stop {
		return context.Canceled
	}
	return nil
}

// accept adds a token to the row and ends the row where that is due.
func (r *row) accept(id int32, eos bool) {
	r.ids = append(r.ids, id)
	r.sampler.saw(id)
	stopped := r.stream != nil && r.stream.next(id)
	switch made := len(r.ids) - r.prompt; {
	case stopped:
		r.end(FinishStop)
	case eos:
		r.end(FinishEOS)
	case made == r.most && r.full:
		r.end(FinishContext)
	case made == r.most:
		r.end(FinishLength)
	}
}

func (r *row) end(why Finish) {
	r.finish = why
	if r.stream != nil && why != FinishStop && r.stream.flush() {
		r.finish = FinishStop
	}
}

func (g *generation) results() []Result {
	results := make([]Result, len(g.rows))
	for i, r := range g.rows {
		results[i] = Result{Tokens: r.ids[r.prompt:], Finish: r.finish, PromptTokens: r.prompt}
		if r.stream != nil {
			results[i].Text = r.stream.text.String()
		}
	}
	return results
}

// cached computes the next logits with a cache that holds all but the newest tokens. kept of the (only) prompt's tokens
// were there from the beginning.
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
		return model.LastLogits(g.model, model.Sequence{IDs: input.To(torch.Int64).ToDevice(device), Cache: cache})
	}
	input := torch.From(g.next, len(g.rows), 1).To(torch.Int64).ToDevice(device)
	return model.LastLogits(g.model, model.Sequence{IDs: input, Cache: cache})
}

// whole computes the next logits from all tokens. Rows are padded on the right, where a causal model does not look.
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

// choose picks a token for each row from logits [B,V].
func (g *generation) choose(logits torch.Tensor) error {
	if g.options.plain() {
		values, indices := logits.MaxDim(-1, false)
		for i, v := range torch.Values[float32](values) {
			if math.IsNaN(float64(v)) && g.rows[i].finish == "" {
				return errNotANumber
			}
		}
		for i, id := range torch.Values[int64](indices) {
			g.next[i] = int32(id)
		}
		return nil
	}
	logits = logits.To(torch.Float32).ToDevice(torch.CPU).Contiguous()
	for i, r := range g.rows {
		if r.finish != "" {
			g.next[i] = 0
			continue
		}
		var err error
		if g.next[i], err = r.sampler.choose(logits.Select(0, i)); err != nil {
			return err
		}
	}
	return nil
}
