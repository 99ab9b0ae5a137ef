package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"conquer/generate"
)

// replies continues prompts and prints the results in the order of the prompts.
type replies struct {
	*generateFlags
	*opened
	load    time.Duration
	prompts []*prompt
	printed int // number of prompts that are printed
}

// answer continues the prompts that have no error, batch by batch. It returns an error if another
// prompt has one.
func (r *replies) answer(ctx context.Context) error {
	var good []*prompt
	var ids [][]int32
	for _, p := range r.prompts {
		if p.err == nil {
			good, ids = append(good, p), append(ids, p.ids)
		}
	}
	samples := generate.Repeats(ids)
	for start := 0; start < len(good); start += r.batchSize {
		end := min(start+r.batchSize, len(good))
		r.options.Samples = samples[start:end]
		if err := r.batch(ctx, good[start:end], ids[start:end]); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(textOutput())
	if err := errors.Join(r.printFailed(out, nil), out.Flush()); err != nil {
		return err
	}
	return failures(r.prompts)
}

// batch continues some prompts and prints the results.
func (r *replies) batch(ctx context.Context, prompts []*prompt, ids [][]int32) error {
	var show func(int, string)
	out := bufio.NewWriter(textOutput())
	defer out.Flush()
	if r.single() {
		show = func(_ int, piece string) {
			out.WriteString(piece)
			out.Flush()
		}
	}
	results, stats, err := generate.Generate(ctx, r.model, r.opened.tokenizer, ids, r.options, show)
	if results == nil {
		return err
	}
	for i, result := range results {
		if p := prompts[i]; result.Err != nil {
			p.err = result.Err
			if r.world == nil || r.world.Rank == 0 {
				printFailures([]*prompt{p})
			}
			continue // printFailed prints it for --json
		}
		if err := r.print(out, prompts[i], result, stats); err != nil {
			return err
		}
	}
	out.Flush()
	r.printUnfusedReason("generate", stats)
	if !r.json && isTerminal(os.Stderr) {
		printStats(stats, r.load)
	}
	if unwritten := out.Flush(); err == nil {
		err = unwritten
	}
	return err
}

// single reports whether the only text is printed while it grows.
func (r *replies) single() bool { return !r.json && len(r.prompts) == 1 }

// print prints the failed prompts before p, then the result of p. stats are those of its batch.
func (r *replies) print(out *bufio.Writer, p *prompt, result generate.Result,
	stats generate.Stats) error {
	if err := r.printFailed(out, p); err != nil {
		return err
	}
	r.printed++
	switch {
	case r.json:
		return printJSON(out, generateOutput{
			Text:             result.Text,
			TokenIDs:         append([]int32{}, result.Tokens...),
			Prompt:           p.text,
			Line:             p.line,
			FinishReason:     string(result.Finish),
			Seed:             r.seed,
			RenderedPrompt:   p.rendered,
			PromptTokenIDs:   append([]int32{}, p.ids...),
			PromptTokens:     result.PromptTokens,
			NewTokens:        len(result.Tokens),
			FirstTokenMS:     milliseconds(stats.Prefill),
			PrefillPerSecond: roundThousandth(stats.PrefillRate()),
			DecodePerSecond:  roundThousandth(stats.DecodeRate()),
			LoadMS:           milliseconds(r.load),
			Logprobs:         logprobsOf(result.Logprobs),
			IgnoredSettings:  r.ignored,
		})
	case r.opened.tokenizer == nil:
		fmt.Fprintln(out, joinIDs(result.Tokens))
	case r.single():
		fmt.Fprintln(out)
	default:
		shown := strings.TrimSpace(p.text)
		if shown == "" {
			shown = joinIDs(p.ids)
		}
		fmt.Fprintf(out, "> %s\n%s\n\n", shown, result.Text)
	}
	return nil
}

// printFailed prints a JSON object for each failed prompt before next, or for all that are left if
// next is nil.
func (r *replies) printFailed(out *bufio.Writer, next *prompt) error {
	for ; r.printed < len(r.prompts) && r.prompts[r.printed] != next; r.printed++ {
		p := r.prompts[r.printed]
		if !r.json {
			continue
		}
		err := printJSON(out, generateOutput{TokenIDs: []int32{}, Prompt: p.text, Line: p.line,
			Error: fmt.Sprintf("%s: %v", p.name, p.err), FinishReason: "error", Seed: r.seed,
			RenderedPrompt: p.rendered, PromptTokenIDs: append([]int32{}, p.ids...),
			PromptTokens: len(p.ids)})
		if err != nil {
			return err
		}
	}
	return nil
}
