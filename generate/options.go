package generate

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"conquer/model"
	"conquer/text/grammar"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
)

// Options say how tokens are chosen and when to stop. The filters have the order and
// the meaning of transformers': repetition penalty, the other penalties and biases, rules,
// temperature, top-k, top-p, min-p.
type Options struct {
	// MaxNewTokens limits the tokens made for a prompt. The model's context may end
	// first.
	MaxNewTokens int
	// Temperature divides the logits before sampling; 0, or less than 1e-30, takes the most likely
	// token.
	Temperature float64
	// TopK keeps the k most likely tokens and those as likely as the k-th; 0 keeps all.
	TopK int
	// TopP keeps the most likely tokens whose probabilities sum to TopP; 0 or 1 keeps
	// all.
	TopP float64
	// MinP keeps the tokens at least MinP times as likely as the most likely one; 0
	// keeps all.
	MinP float64
	// RepetitionPenalty applies to tokens of the prompt and of the text so far: it
	// divides their positive logits and multiplies their negative ones (Keskar et al.,
	// arXiv 1909.05858). 0 or 1 changes nothing.
	RepetitionPenalty float64
	// PresencePenalty is subtracted from the logits of the tokens that the new text holds, and
	// FrequencyPenalty as often as it holds them.
	PresencePenalty, FrequencyPenalty float64
	// LogitBias is added to the logits of tokens, by id.
	LogitBias map[int32]float64
	Rules     Rules // tokens that may not be chosen
	// Grammar is what the new text must belong to; nil for any text. A token of EOS is chosen only
	// where the text may end.
	Grammar *grammar.Mask
	// Logprobs asks for Result.Logprobs, with the TopLogprobs most likely tokens in each place.
	Logprobs    bool
	TopLogprobs int
	// Seed is the seed of sampling. The random numbers of a row depend on Seed, on the tokens of
	// its prompt and on its number in Samples, but not on the other rows.
	Seed uint64
	// Samples numbers each prompt, so that equal prompts get different texts. nil means
	// [Repeats], which is enough if one call holds all prompts of a seed.
	Samples []int
	// Stop lists strings that end a row. The text of the row ends before the string.
	// They need a tokenizer.
	Stop []string
	// EOS lists the tokens that end a row; nil means those of the function [EOS].
	EOS []int32
	// Show lists special tokens whose text is part of Result.Text, which leaves out the others.
	Show []int32
	// IgnoreEOS continues after the tokens in EOS.
	IgnoreEOS bool
	// NoCache recomputes all tokens in each step. The result is the same; it exists to
	// check the cache.
	NoCache bool
	// PrefillPiece reads prompts in passes of at most this many tokens, so that the memory of a
	// pass does not grow with the prompt; 0 reads a prompt in one pass. It needs the cache.
	PrefillPiece int
	// Compile says how steps are launched; "" means CompileGraph on a GPU and
	// CompileNone on the CPU. It changes the speed and the rounding of logits.
	Compile Compile
	// Group is the processes that the model is divided over, nil for one process. All
	// of them make the same calls. The first process chooses the tokens, and only its
	// context is observed. Steps are not recorded.
	Group *dist.Group
}

// Finish is the reason why a row ended.
type Finish string

const (
	FinishEOS         Finish = "eos"         // a token that ends a text or a turn
	FinishStop        Finish = "stop"        // one of Options.Stop
	FinishLength      Finish = "length"      // Options.MaxNewTokens were made
	FinishContext     Finish = "context"     // the model's context is full
	FinishInterrupted Finish = "interrupted" // the context.Context was cancelled
	FinishError       Finish = "error"       // see Result.Err
)

// Result is the continuation of one prompt.
type Result struct {
	Tokens       []int32 // the new tokens, with the one that ended the row
	Text         string  // their text without special tokens; "" without a tokenizer
	Finish       Finish
	PromptTokens int
	// Logprobs has an element for each of Tokens, if Options.Logprobs asks for it.
	Logprobs []TokenLogprob
	// Err says why the row failed, while other rows of the batch did not. If all fail, the call
	// does.
	Err error
}

// Stats are the token counts and times of a call. Prefill is the time from the call
// to the first new token.
type Stats struct {
	PromptTokens, Reused int // Reused were in the cache from an earlier turn
	NewTokens            int
	Prefill, Decode      time.Duration
	// Steps is the time of each decoding step. With CompileGraph the first step runs
	// operation by operation and the second is recorded.
	Steps []time.Duration
	// On a GPU, Fused reports that every step's block tails ran as the fused kernel for
	// one row, and UnfusedReason why they did not. Both are empty on the CPU, if no step
	// read a single token from a cache, and for models without feed-forward layers.
	Fused         bool
	UnfusedReason string
	decoded       int // new tokens without the first of each prompt
}

// fusion copies how the steps over a cache ran. The CPU has no fused block tail to
// report.
func (s *Stats) fusion(m model.Model, c *model.Cache) {
	if model.Device(m).IsCUDA() {
		s.Fused, s.UnfusedReason = c.Fused && c.UnfusedReason == "", c.UnfusedReason
	}
}

// PrefillRate returns the prompt tokens read per second.
func (s Stats) PrefillRate() float64 { return rate(s.PromptTokens-s.Reused, s.Prefill) }

// DecodeRate returns the new tokens per second, without the first of each prompt; 0 if there were
// none.
func (s Stats) DecodeRate() float64 { return rate(s.decoded, s.Decode) }

func rate(n int, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

// check returns an error for the first invalid option.
func (o Options) check(tok *tokenizer.Tokenizer, prompts int) error {
	switch {
	case o.MaxNewTokens < 1:
		return fmt.Errorf("max_new_tokens is %d, expected at least 1", o.MaxNewTokens)
	case o.Temperature < 0 || math.IsNaN(o.Temperature) || math.IsInf(o.Temperature, 0):
		return fmt.Errorf("temperature is %v, expected 0 or more", o.Temperature)
	case o.PrefillPiece < 0 || o.PrefillPiece > 0 && o.NoCache:
		return fmt.Errorf("prefill_pieces is %d, expected 1 token or more, with a cache",
			o.PrefillPiece)
	case o.TopK < 0:
		return fmt.Errorf("top_k is %d, expected 0 (all) or more", o.TopK)
	case !(o.TopP >= 0 && o.TopP <= 1):
		return fmt.Errorf("top_p is %v, expected a number from 0 to 1", o.TopP)
	case !(o.MinP >= 0 && o.MinP <= 1):
		return fmt.Errorf("min_p is %v, expected a number from 0 to 1", o.MinP)
	case !(o.RepetitionPenalty >= 0) || math.IsInf(o.RepetitionPenalty, 0):
		return fmt.Errorf("repetition_penalty is %v, expected a positive number",
			o.RepetitionPenalty)
	case !(math.Abs(o.PresencePenalty) <= math.MaxFloat32):
		return fmt.Errorf("presence_penalty is %v, expected a number", o.PresencePenalty)
	case !(math.Abs(o.FrequencyPenalty) <= math.MaxFloat32):
		return fmt.Errorf("frequency_penalty is %v, expected a number", o.FrequencyPenalty)
	case o.TopLogprobs < 0 || o.TopLogprobs > MaxTopLogprobs:
		return fmt.Errorf("top_logprobs is %d, expected 0 to %d", o.TopLogprobs, MaxTopLogprobs)
	case o.Grammar != nil && o.IgnoreEOS:
		return errors.New("a grammar needs the tokens that end a text, which ignore_eos ignores")
	case o.Samples != nil && len(o.Samples) != prompts:
		return fmt.Errorf("samples has %d numbers, expected one for each of %d prompts",
			len(o.Samples), prompts)
	case len(o.Stop) > 0 && tok == nil:
		return errors.New("stop strings need a tokenizer, and there is none")
	case slices.Contains(o.Stop, ""):
		return errors.New("a stop string is empty")
	case o.Group != nil && o.Compile == CompileGraph:
		return fmt.Errorf("the steps of a model that is divided over %d processes "+
			"cannot be recorded: choose %s", o.Group.Size, CompileNone)
	}
	return nil
}

// Compile says how a decoding step is launched.
type Compile string

const (
	// CompileNone launches every operation separately and chooses tokens on the host.
	CompileNone Compile = "none"
	// CompileGraph records a step once and replays it. The token is chosen on the device,
	// where it is the input of the next step. The host reads it while that step runs.
	CompileGraph Compile = "graph"
)

// compiled reports whether steps are recorded. The default is yes on a GPU, unless
// the model is divided over processes.
func (o Options) compiled(device torch.Device) bool {
	return !o.needsHost() &&
		(o.Compile == CompileGraph || o.Compile == "" && device.IsCUDA() && o.Group == nil)
}

// needsHost reports whether tokens must be chosen on the host.
func (o Options) needsHost() bool {
	return !o.Rules.none() || o.PresencePenalty != 0 || o.FrequencyPenalty != 0 ||
		len(o.LogitBias) > 0 || o.Logprobs || o.Grammar != nil
}

// ParseCompile returns the Compile of a name; "" is the default.
func ParseCompile(name string) (Compile, error) {
	switch c := Compile(name); c {
	case "", CompileNone, CompileGraph:
		return c, nil
	}
	return "", fmt.Errorf("unknown way to compile %q: use %s or %s", name, CompileNone,
		CompileGraph)
}
