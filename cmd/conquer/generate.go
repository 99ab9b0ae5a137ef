package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"conquer/generate"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch/dist"
)

var generateCommand = command{
	name:    "generate",
	summary: "Continue a text, or answer a question, with a model.",
	example: `# continue a text
conquer generate --model_path smollm2-135m --prompt "Once upon a time" --max_new_tokens 40
# ask a chat model and sample the answer
conquer generate --model_path smollm2-135m --chat --prompt "Why is the sky blue?" \
  --temperature 0.7 --top_p 0.9 --seed 1
# for programs: one JSON object per prompt
conquer generate --model_path my-model --prompts_file questions.txt --chat --json
# a model too large for one GPU: two GPUs hold half of every layer each
conquer generate --nproc 2 --model_path llama-3.1-8b --prompt "Once upon a time"`,
	config: true,
	setup:  setupGenerate,
}

// generateOutput is the JSON object of one prompt. A prompt that failed has Error, and
// FinishReason is "error".
type generateOutput struct {
	Text         string  `json:"text"`
	TokenIDs     []int32 `json:"token_ids"`
	Prompt       string  `json:"prompt,omitempty"`
	Line         int     `json:"line,omitempty"` // of --prompts_file, from 1
	Error        string  `json:"error,omitempty"`
	FinishReason string  `json:"finish_reason"`
	Seed         int64   `json:"seed"`
	// RenderedPrompt is the text of PromptTokenIDs; with --chat the template wrote it.
	RenderedPrompt   string  `json:"rendered_prompt,omitempty"`
	PromptTokenIDs   []int32 `json:"prompt_token_ids"`
	PromptTokens     int     `json:"prompt_tokens"`
	NewTokens        int     `json:"new_tokens"`
	FirstTokenMS     float64 `json:"first_token_ms"`
	PrefillPerSecond float64 `json:"prefill_tokens_per_second"`
	DecodePerSecond  float64 `json:"decode_tokens_per_second"`
	LoadMS           float64 `json:"load_ms"`
	// Logprobs has an element for each of TokenIDs, with --logprobs.
	Logprobs []tokenLogprob `json:"logprobs,omitempty"`
	// IgnoredSettings are fields of generation_config.json that change texts in transformers.
	IgnoredSettings []string `json:"ignored_settings,omitempty"`
}

// tokenLogprob is a token with its log-probability in nats, as the model gives it.
type tokenLogprob struct {
	ID      int32          `json:"id"`
	Logprob float64        `json:"logprob"`
	Top     []tokenLogprob `json:"top,omitempty"`
}

// logprobsOf converts log-probabilities. JSON cannot hold the logarithm of 0.
func logprobsOf(list []generate.TokenLogprob) []tokenLogprob {
	var out []tokenLogprob
	for _, t := range list {
		out = append(out, tokenLogprob{ID: t.ID, Logprob: max(t.Logprob, -9999),
			Top: logprobsOf(t.Top)})
	}
	return out
}

type generateFlags struct {
	modelFlags
	samplingFlags
	processFlags
	prompts     []string
	promptsFile string
	tokenIDs    []string
	chat        bool
	system      string
	chatInputs
	useCache  bool
	batchSize int
	json      bool
	logprobs  int
	profileFlag
}

func setupGenerate(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f generateFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q: a prompt is given with --prompt", args[0])
		}
		place, err := dist.FromEnvironment()
		if err != nil {
			return err
		}
		prompts, err := f.check(ctx, max(f.processes, place.Size))
		if err != nil {
			return err
		}
		if f.processes > 1 && place.Size == 1 {
			return f.launch(ctx, 0)
		}
		return f.run(ctx, flags, place, prompts)
	}
}

func (f *generateFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	f.declareAdapter(flags)
	f.declareCache(flags)
	f.declareExpected(flags)
	group(flags, "Model")
	flags.StringArrayVar(&f.prompts, "prompt", nil, "the `text` to continue; may be repeated")
	flags.StringVar(&f.promptsFile, "prompts_file", "",
		"`file` with one prompt per line, or - for standard input; the lines of a .jsonl file "+
			"are strings or objects with the field prompt, or with --chat messages; an object may "+
			"have tools, documents and chat_template_kwargs; a prompt that fails does not stop "+
			"the others")
	flags.StringArrayVar(&f.tokenIDs, "token_ids", nil,
		"a prompt as token `ids`, such as 1,2,3; no tokenizer is needed; may be repeated")
	flags.BoolVar(&f.chat, "chat", false,
		"send each prompt as a user's message through the chat template")
	flags.StringVar(&f.system, "system", "", "with --chat: the system message (`instructions`)")
	f.chatInputs.declare(flags)
	flags.IntVar(&f.batchSize, "batch_size", 8, "number of prompts processed together")
	group(flags, "Prompts")
	f.samplingFlags.declare(flags, 128, 0, 1)
	group(flags, "Sampling")
	flags.BoolVar(&f.json, "json", false,
		"print a JSON object for each prompt, with text, token_ids, rendered_prompt, "+
			"prompt_token_ids and timings")
	group(flags, "Output")
	flags.IntVar(&f.logprobs, "logprobs", -1,
		"with --json: the log-probability of each new token, and this `number` of the most likely "+
			"ones in its place; -1: none")
	group(flags, "Output")
	f.declareProcesses(flags)
	group(flags, "Several processes")
	flags.BoolVar(&f.useCache, "use_cache", true,
		"cache keys, values and states; =false recomputes all tokens at each step")
	flags.IntVar(&f.options.PrefillPiece, "prefill_pieces", 0,
		"read prompts in passes of this many `tokens`, so that the memory of a pass does not grow "+
			"with the prompt (default: in one pass)")
	f.declareCompile(flags)
	f.declareProfile(flags)
	group(flags, "Speed and memory")
}

// check reads the flags and the prompts for a run of that many processes.
func (f *generateFlags) check(ctx context.Context, processes int) ([]*prompt, error) {
	if err := f.checkProcesses(); err != nil {
		return nil, err
	}
	if err := f.read(); err != nil {
		return nil, err
	}
	if err := f.checkProfile(); err != nil {
		return nil, err
	}
	f.options.NoCache = !f.useCache
	f.options.Logprobs, f.options.TopLogprobs = f.logprobs >= 0, max(0, f.logprobs)
	switch texts := len(f.prompts) > 0 || f.promptsFile != ""; {
	case f.logprobs < -1 || f.logprobs > generate.MaxTopLogprobs:
		return nil, usagef("--logprobs is %d, expected -1 to %d", f.logprobs,
			generate.MaxTopLogprobs)
	case f.logprobs >= 0 && !f.json:
		return nil, usagef("--logprobs needs --json")
	case f.batchSize < 1:
		return nil, usagef("--batch_size is %d, expected 1 or more", f.batchSize)
	case !texts && len(f.tokenIDs) == 0:
		return nil, usagef("no prompt: give --prompt, --prompts_file or --token_ids")
	case texts && len(f.tokenIDs) > 0:
		return nil, usagef("give either --token_ids or --prompt and --prompts_file, not both")
	case !texts && f.chat:
		return nil, usagef("--chat needs a text prompt, not --token_ids")
	case f.system != "" && !f.chat:
		return nil, usagef("--system needs --chat")
	case f.given() && !f.chat:
		return nil, usagef("--tools, --documents and --chat_template_kwargs need --chat")
	case processes > 1 && f.options.Compile == generate.CompileGraph:
		return nil, usagef("--compile %s works in one process only: leave it out with several",
			generate.CompileGraph)
	}
	if err := f.readInputs(ctx); err != nil {
		return nil, err
	}
	if err := checkStdin("prompts_file", f.promptsFile, processes); err != nil {
		return nil, err
	}
	return f.readPrompts(ctx)
}

func (f *generateFlags) run(ctx context.Context, flags *pflag.FlagSet, place dist.Place,
	prompts []*prompt) (err error) {
	if place.Size > 1 {
		if f.world, err = f.join(place, &f.modelFlags); err != nil {
			return err
		}
		defer f.world.Leave()
		f.options.Group = f.world.All
		if place.Rank > 0 {
			f.profile, f.reasonPrinted = "", true
		}
	}
	began := time.Now()
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	load := time.Since(began)
	if err := f.configure(o, flags, "generate"); err != nil {
		return err
	}
	if err := f.encodeAll(o, prompts); err != nil {
		return err
	}
	f.advise(o, prompts)
	if place.Rank == 0 {
		f.printIgnored("generate")
		printFailures(prompts)
	}
	r := replies{generateFlags: f, opened: o, load: load, prompts: prompts}
	return f.profiled(func() error { return r.answer(ctx) })
}

func systemMessage(system string) []tokenizer.Message {
	if system == "" {
		return nil
	}
	return []tokenizer.Message{{Role: "system", Content: system}}
}

// checkChat returns an error if the model cannot chat.
func checkChat(o *opened) error {
	switch {
	case o.tokenizer == nil:
		return o.noTokenizer("a chat needs one: give it with --tokenizer")
	case o.tokenizer.ChatTemplate() == "":
		return fmt.Errorf("%s has no chat template: use `conquer generate --prompt`, or a model "+
			"tuned on chats", o.path)
	}
	return nil
}

// encodeChat renders a conversation up to the start of the assistant's turn and encodes the text.
func encodeChat(o *opened, c tokenizer.Conversation) (rendered string, ids []int32, err error) {
	if err := checkChat(o); err != nil {
		return "", nil, err
	}
	if rendered, err = o.tokenizer.Render(c, true); err != nil {
		return "", nil, fmt.Errorf("%s: %w", o.path, err)
	}
	return rendered, o.tokenizer.Encode(rendered, false), nil
}

// advise prints hints: a short context, or a chat model used without --chat.
func (f *generateFlags) advise(o *opened, prompts []*prompt) {
	longest := 0
	for _, p := range prompts {
		if p.err == nil {
			longest = max(longest, len(p.ids))
		}
	}
	if room := o.model.MaxLength() - longest; longest > 0 && room < f.options.MaxNewTokens {
		note("conquer generate: the model's context of %d leaves room for %s "+
			"after a prompt of %d, not %d\n", o.model.MaxLength(), dataset.Count(room, "new token"),
			longest, f.options.MaxNewTokens)
	}
	if o.unusable != nil {
		note("conquer generate: the answer is printed as token ids: "+
			"%v\n", o.unusable)
	}
	if !f.json && !f.chat && isTerminal(os.Stderr) && o.tokenizer != nil &&
		o.tokenizer.ChatTemplate() != "" {
		note("(this is a chat model; use --chat to ask it a question)\n")
	}
}

func printStats(s generate.Stats, load time.Duration) {
	line := fmt.Sprintf("%s at %.0f tok/s, %d new",
		dataset.Count(s.PromptTokens-s.Reused, "prompt token"), s.PrefillRate(), s.NewTokens)
	if s.DecodeRate() > 0 {
		line += fmt.Sprintf(" at %.1f tok/s", s.DecodeRate())
	}
	if load > 0 {
		line += fmt.Sprintf(", first after %.2f s", (load + s.Prefill).Seconds())
	}
	note("(%s)\n", line)
}

// parseIDs reads lists such as 1,2,3.
func parseIDs(lists []string) ([][]int32, error) {
	var all [][]int32
	for _, list := range lists {
		var ids []int32
		for field := range strings.SplitSeq(list, ",") {
			id, err := strconv.ParseInt(strings.TrimSpace(field), 10, 32)
			if err != nil || id < 0 {
				return nil, usagef("--token_ids: %q is not a token id, expected a list such as "+
					"1,2,3", field)
			}
			ids = append(ids, int32(id))
		}
		all = append(all, ids)
	}
	return all, nil
}

func joinIDs(ids []int32) string {
	fields := make([]string, len(ids))
	for i, id := range ids {
		fields[i] = strconv.Itoa(int(id))
	}
	return strings.Join(fields, ",")
}

// printJSON prints one value on one line. It does not escape < and >, but what a terminal obeys.
func printJSON(w io.Writer, value any) error {
	var text strings.Builder
	e := json.NewEncoder(&text)
	e.SetEscapeHTML(false)
	if err := e.Encode(value); err != nil {
		return err
	}
	var b strings.Builder
	for _, r := range text.String() {
		if obeyed(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

func milliseconds(d time.Duration) float64 {
	return roundThousandth(float64(d.Microseconds()) / 1000)
}

func roundThousandth(v float64) float64 { return math.Round(v*1000) / 1000 }
