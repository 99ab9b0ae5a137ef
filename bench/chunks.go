package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"conquer/bamba"
	"conquer/generate"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// The ways to run a model that [RunChunks] compares: the plain page of the scan or the kernels, each operation launched by
// itself or all of a step replayed from a CUDA graph.
const (
	Eager   = "eager"
	Kernels = "kernels"
	Graph   = "graph"
	Both    = "both"
)

// Subject is the model that a benchmark runs over prompts.
type Subject struct {
	Model     bamba.Chunked
	Tokenizer *tokenizer.Tokenizer // may be nil for [RunChunks]: then tokens are drawn, as many as the prompt's entry says
	Prompts   []Prompt
	// Strategies with their chunk sizes. Where Compile is given, it decides which code runs, not their -optimized.
	Strategies []bamba.Chunking
	UseCache   bool
}

// ChunksOptions say what [RunChunks] measures.
type ChunksOptions struct {
	Subject
	Compile      []string // empty: eager or kernels, as each strategy's name says
	MaxNewTokens int
	Repeats      int // timed runs of each row, after a warm-up
}

// Check reports what is wrong with the options, if anything.
func (o ChunksOptions) Check() error {
	for _, c := range o.Compile {
		if !slices.Contains([]string{Eager, Kernels, Graph, Both}, c) {
			return fmt.Errorf("unknown way to compile %q: choose among %s, %s, %s, %s", c, Eager, Kernels, Graph, Both)
		}
	}
	return errors.Join(checkPositive("max_new_tokens", o.MaxNewTokens), checkPositive("repeats", o.Repeats))
}

// variants are the strategies in every way that they are to be run, without repetition.
func (o ChunksOptions) variants() (list []bamba.Chunking, compile []string) {
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

// encode gives the prompt's tokens.
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

// RunChunks times generation after each prompt by each strategy. each gets every row as it is finished, with how many there
// will be; a row that failed says why and the run goes on.
func RunChunks(ctx context.Context, o ChunksOptions, each func(row ChunksRow, total int)) error {
	if err := o.Check(); err != nil {
		return err
	}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	prompts := make([][]int32, len(o.Prompts))
	for id, p := range o.Prompts {
		prompts[id] = o.encode(p, random)
		if n := len(prompts[id]) + o.MaxNewTokens; n > o.Model.MaxLength() {
			return fmt.Errorf("prompt %d and its new tokens come to %d, the model's context is %d", id, n, o.Model.MaxLength())
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

// run is one generation.
type run struct{ total, first, between float64 } // milliseconds

func (o ChunksOptions) row(ctx context.Context, id int, ids []int32, compile string) (ChunksRow, error) {
	device, chunking := model.Device(o.Model), o.Model.Chunking()
	r := ChunksRow{
		ID: id, PromptTokens: len(ids), Strategy: baseName(chunking), Compile: compile, ChunkSize: chunkSize(o.Model),
		Layers: len(o.Model.Blocks()), UseCache: o.UseCache, Device: device.String(), DType: model.DType(o.Model).String(),
		NewTokens: o.MaxNewTokens, Repeats: o.Repeats, TopOperations: []Operation{},
	}
	r.NumChunks = (len(ids) + r.ChunkSize - 1) / r.ChunkSize
	recorded := compile == Graph || compile == Both
	if recorded && !device.IsCUDA() {
		r.Failed = "there is no graph on the CPU: it records launches, and the CPU has none to save"
		return r, nil
	}
	once := func() (run, error) { return o.generate(ctx, ids, recorded) }
	release := func() {}
	defer func() { release() }()
	var runs []run
	var failed error
	warm := func() { _, failed = once() }
	if recorded && !o.UseCache {
		// What a recording holds it holds from then on: its peak is that of being made.
		warm = func() {
			var g *recording
			if g, failed = record(o.Model, ids, o.MaxNewTokens); failed == nil {
				once = g.run
				release = g.free
				_, failed = once()
			}
		}
	}
	err := torch.Run(func() error {
		r.PeakBytes = peak(device, warm)
		if failed == nil && !recorded { // without what a first run loads
			r.PeakBytes = peak(device, warm)
		}
		return failed
	})
	if err != nil {
		return r, err
	}
	u := watch(device)
	for range o.Repeats {
		var one run
		if one, failed = once(); failed != nil {
			break
		}
		runs = append(runs, one)
	}
	r.CPUUtilization, r.GPUUtilization = u.stop()
	if failed != nil {
		return r, failed
	}
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
	r.TokensPerS = fraction(1000*float64(o.MaxNewTokens), r.TotalMS)
	r.BytesMoved, r.Flops = generationCost(o.Model, len(ids), o.MaxNewTokens, o.UseCache)
	r.GBPerS, r.GFlopPerS = fraction(float64(r.BytesMoved)/1e6, r.TotalMS), fraction(float64(r.Flops)/1e6, r.TotalMS)
	r.TopOperations, err = o.operations(ctx, ids)
	return r, err
}

// generate makes the tokens once.
func (o ChunksOptions) generate(ctx context.Context, ids []int32, recorded bool) (run, error) {
	options := generate.Options{MaxNewTokens: o.MaxNewTokens, IgnoreEOS: true, NoCache: !o.UseCache, Compile: generate.CompileNone}
	if recorded {
		options.Compile = generate.CompileGraph
	}
	began := time.Now()
	_, stats, err := generate.Generate(ctx, o.Model, nil, [][]int32{ids}, options, nil)
	total := milliseconds(time.Since(began)) // the last token has been read on the host: the device is done
	return newRun(total, milliseconds(stats.Prefill), o.MaxNewTokens), err
}

func newRun(total, first float64, tokens int) run {
	r := run{total: total, first: first}
	if tokens > 1 {
		r.between = (total - first) / float64(tokens-1)
	}
	return r
}

// operations are the costliest of one generation, launched one by one and each waited for.
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
			list = append(list, Operation{strings.TrimPrefix(op.Name, "aten::"), milliseconds(op.Time), float64(op.Time) / float64(sum)})
		}
		return err
	})
	return list, err
}

// recording is generation without a cache from recorded passes, one for each length.
type recording struct {
	device torch.Device
	ids    torch.Tensor // int64 [1, prompt + new tokens]
	passes []*torch.Capture
}

// record prepares the passes after a prompt: the i'th reads the prompt and i tokens, and writes the next one behind them.
func record(m bamba.Chunked, prompt []int32, count int) (*recording, error) {
	g := &recording{device: model.Device(m)}
	err := torch.Run(func() error {
		torch.NoGrad(func() {
			room := make([]int32, len(prompt)+count)
			copy(room, prompt)
			g.ids = torch.From(room, 1, len(room)).To(torch.Int64).ToDevice(g.device).Own()
			for i := range count {
				length := len(prompt) + i
				pass := torch.NewCapture(g.device, func() {
					logits := model.LastLogits(m, model.Sequence{IDs: g.ids.Narrow(1, 0, length)})
					g.ids.Narrow(1, length, 1).Copy(logits.Argmax(-1).Unsqueeze(1))
				})
				g.passes = append(g.passes, pass)
				for !pass.Recorded() {
					pass.Run()
				}
			}
		})
		return nil
	})
	if err != nil {
		g.free()
		return nil, err
	}
	return g, nil
}

// run replays all passes, waiting for each token as one who reads along does.
func (g *recording) run() (t run, err error) {
	err = torch.Run(func() error {
		began := time.Now()
		first := 0.0
		for i, pass := range g.passes {
			pass.Run()
			g.device.Synchronize()
			if i == 0 {
				first = milliseconds(time.Since(began))
			}
		}
		t = newRun(milliseconds(time.Since(began)), first, len(g.passes))
		return nil
	})
	return t, err
}

func (g *recording) free() {
	for _, pass := range g.passes {
		pass.Free()
	}
	g.ids.Free()
}

// chunkSize is the size that the model's current chunking comes to.
func chunkSize(m bamba.Chunked) int {
	for _, block := range m.Blocks() {
		var mixer *bamba.Mixer
		switch b := block.(type) {
		case *bamba.Block:
			mixer = b.Mixer
		case *bamba.Mamba2Block:
			mixer = b.Mixer
		}
		if mixer != nil {
			_, headDim, _, state := mixer.Sizes()
			return m.Chunking().Size(headDim, state)
		}
	}
	return m.Chunking().ChunkSize
}
