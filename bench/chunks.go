package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"conquer/generate"
	"conquer/model"
	"conquer/model/statespace"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/nn"
)

// Ways to run a model that [RunChunks] compares: the scan in libtorch's operations (Eager,
// Graph) or in kernels (Kernels, Both), launched one by one (Eager, Kernels) or replayed from
// a CUDA graph (Graph, Both).
const (
	Eager   = "eager"
	Kernels = "kernels"
	Graph   = "graph"
	Both    = "both"
)

// Subject is the model that a benchmark runs over prompts.
type Subject struct {
	Model statespace.Chunked
	// Tokenizer may be nil for [RunChunks]. Then a prompt is Prompt.TokenLen random tokens.
	Tokenizer *tokenizer.Tokenizer
	Prompts   []Prompt
	// Strategies holds the chunking strategies with their chunk sizes. If
	// ChunksOptions.Compile is set, it decides whether kernels run, not -optimized.
	Strategies []statespace.Chunking
	UseCache   bool
	Seed       int64 // of random prompts
}

// ChunksOptions say what [RunChunks] measures.
type ChunksOptions struct {
	Subject
	// Compile lists ways to run. If it is empty, each strategy runs as Eager, or as Kernels if
	// it is -optimized.
	Compile      []string
	MaxNewTokens int
	Repeats      int // timed runs of each row, after a warm-up run
}

// Check returns an error if the options are invalid.
func (o ChunksOptions) Check() error {
	for _, c := range o.Compile {
		if !slices.Contains([]string{Eager, Kernels, Graph, Both}, c) {
			return fmt.Errorf("unknown way to compile %q: choose among %s, %s, %s, %s",
				c, Eager, Kernels, Graph, Both)
		}
	}
	return errors.Join(checkPositive("max_new_tokens", o.MaxNewTokens),
		checkPositive("repeats", o.Repeats))
}

// variants lists each strategy with each of its ways to run, without duplicates.
func (o ChunksOptions) variants() (list []statespace.Chunking, compile []string) {
	for _, c := range o.Strategies {
		ways := o.Compile
		if len(ways) == 0 {
			ways = []string{Eager}
			if c.Optimized {
				ways = []string{Kernels}
			}
		}
		for _, way := range ways {
			c.Optimized = way == Kernels || way == Both
			known := false
			for i := range list {
				known = known || list[i] == c && compile[i] == way
			}
			if !known {
				list, compile = append(list, c), append(compile, way)
			}
		}
	}
	return list, compile
}

// encode returns the tokens of a prompt.
func (s Subject) encode(p Prompt, random *rand.Rand) []int32 {
	if s.Tokenizer != nil {
		return s.Tokenizer.Encode(p.Prompt, true)
	}
	ids := make([]int32, p.TokenLen)
	for i := range ids {
		ids[i] = int32(random.IntN(s.Model.Head().Shape[0]))
	}
	return ids
}

// RunChunks times generation after each prompt with each strategy. It calls each with every
// row when it is finished and with the total number of rows. If a row fails, it holds the
// reason, and the run continues.
func RunChunks(ctx context.Context, o ChunksOptions, each func(row ChunksRow, total int)) error {
	if err := o.Check(); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(uint64(o.Seed), 0))
	prompts := make([][]int32, len(o.Prompts))
	for id, p := range o.Prompts {
		prompts[id] = o.encode(p, random)
		if n := len(prompts[id]) + o.MaxNewTokens; n > o.Model.MaxLength() {
			return fmt.Errorf(
				"prompt %d and its new tokens have %d tokens, the model's context is %d",
				id, n, o.Model.MaxLength())
		}
	}
	list, compile := o.variants()
	before := o.Model.Chunking()
	defer o.Model.SetChunking(before)
	for id, ids := range prompts {
		for i, c := range list {
			if err := o.Model.SetChunking(c); err != nil {
				return err
			}
			row, err := o.row(ctx, id, ids, compile[i])
			if err != nil {
				reason, isRow := oneLine(err)
				if !isRow {
					return fmt.Errorf("prompt %d: %w", id, err)
				}
				row.Failed = reason
			}
			each(row, len(prompts)*len(list))
		}
	}
	return nil
}

// run holds the times of one generation in milliseconds.
type run struct{ total, first, between float64 }

// row measures one prompt with the model's current strategy.
func (o ChunksOptions) row(ctx context.Context, id int, ids []int32, compile string) (
	ChunksRow, error,
) {
	device, chunking := model.Device(o.Model), o.Model.Chunking()
	r := ChunksRow{
		ID: id, PromptTokens: len(ids), Strategy: baseName(chunking), Compile: compile,
		ChunkSize: chunkSize(o.Model), Layers: len(o.Model.Blocks()), UseCache: o.UseCache,
		Device: device.String(), DType: model.DType(o.Model).String(),
		NewTokens: o.MaxNewTokens, Repeats: o.Repeats, TopOperations: []Operation{},
	}
	r.NumChunks = (len(ids) + r.ChunkSize - 1) / r.ChunkSize
	if recorded := compile == Graph || compile == Both; recorded && !device.IsCUDA() {
		r.Failed = "graphs are for GPUs: on the CPU there are no launches to record"
		return r, nil
	}
	once, release, err := o.warm(ctx, &r, ids)
	defer release()
	if err != nil {
		return r, err
	}
	runs := make([]run, 0, o.Repeats)
	u := watch(device)
	for range o.Repeats {
		one, failed := once()
		if failed != nil {
			err = failed
			break
		}
		runs = append(runs, one)
	}
	r.CPUUtilization, r.GPUUtilization = u.stop()
	if err != nil {
		return r, err
	}
	r.set(runs)
	r.BytesMoved, r.Flops = generationCost(o.Model, len(ids), o.MaxNewTokens, o.UseCache)
	r.GBPerS = fraction(float64(r.BytesMoved)/1e6, r.TotalMS)
	r.GFlopPerS = fraction(float64(r.Flops)/1e6, r.TotalMS)
	r.TopOperations, err = o.operations(ctx, ids)
	return r, err
}

// warm runs the generation of a row for the first time, sets its peak memory, and returns the
// function that runs it again. The caller calls release when it is done.
func (o ChunksOptions) warm(ctx context.Context, r *ChunksRow, ids []int32) (
	once func() (run, error), release func(), err error,
) {
	recorded := r.Compile == Graph || r.Compile == Both
	once = func() (run, error) { return o.generate(ctx, ids, recorded) }
	release = func() {}
	var failed error
	first := func() { _, failed = once() }
	if recorded && !o.UseCache {
		// A recording keeps its memory, so its peak is that of recording.
		first = func() {
			var g *recording
			if g, failed = record(o.Model, ids, o.MaxNewTokens); failed == nil {
				once, release = g.run, g.free
				_, failed = once()
			}
		}
	}
	device := model.Device(o.Model)
	err = torch.Run(func() error {
		r.PeakBytes = peak(device, first)
		if failed == nil && !recorded { // again, without what the first run loads
			r.PeakBytes = peak(device, first)
		}
		return failed
	})
	return once, release, err
}

// set fills the times of a row.
func (r *ChunksRow) set(runs []run) {
	pick := func(part func(run) float64) timing {
		samples := make([]float64, len(runs))
		for i := range runs {
			samples[i] = part(runs[i])
		}
		return timingOf(samples)
	}
	total := pick(func(t run) float64 { return t.total })
	r.TotalMS, r.LowMS, r.HighMS = total.median, total.low, total.high
	r.FirstTokenMS = pick(func(t run) float64 { return t.first }).median
	r.BetweenTokensMS = pick(func(t run) float64 { return t.between }).median
	r.TokensPerS = fraction(1000*float64(r.NewTokens), r.TotalMS)
}

// generate generates the tokens once. The host has read the last token when it returns, so
// the device is done.
func (o ChunksOptions) generate(ctx context.Context, ids []int32, recorded bool) (run, error) {
	options := generate.Options{MaxNewTokens: o.MaxNewTokens, IgnoreEOS: true, NoCache: !o.UseCache,
		Compile: generate.CompileNone}
	if recorded {
		options.Compile = generate.CompileGraph
	}
	began := time.Now()
	_, stats, err := generate.Generate(ctx, o.Model, nil, [][]int32{ids}, options, nil)
	total := milliseconds(time.Since(began))
	return newRun(total, milliseconds(stats.Prefill), o.MaxNewTokens), err
}

func newRun(total, first float64, tokens int) run {
	r := run{total: total, first: first}
	if tokens > 1 {
		r.between = (total - first) / float64(tokens-1)
	}
	return r
}

// operations returns the most expensive operations of one generation, which are launched and
// awaited one by one.
func (o ChunksOptions) operations(ctx context.Context, ids []int32) ([]Operation, error) {
	const most = 8
	list := []Operation{}
	err := torch.Run(func() (err error) {
		all := torch.Profile(model.Device(o.Model), func() { _, err = o.generate(ctx, ids, false) })
		var sum time.Duration
		for _, op := range all {
			sum += op.Time
		}
		for _, op := range all[:min(most, len(all))] {
			list = append(list, Operation{strings.TrimPrefix(op.Name, "aten::"),
				milliseconds(op.Time), float64(op.Time) / float64(sum)})
		}
		return err
	})
	return list, err
}

// chunkSize returns the chunk size of the model's current strategy in tokens.
func chunkSize(m statespace.Chunked) int {
	size := m.Chunking().ChunkSize
	nn.Layers(m, func(_ string, layer any) {
		if mixer, ok := layer.(*statespace.Mixer); ok {
			_, headDim, _, state := mixer.Sizes()
			size = m.Chunking().Size(headDim, state)
		}
	})
	return size
}
