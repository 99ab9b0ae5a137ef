package dataset

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"conquer/text/tokenizer"
)

const assistantRole = "assistant"

// The prompts that Stanford's Alpaca was tuned with.
const (
	alpacaPrompt = "Below is an instruction that describes a task. " +
		"Write a response that appropriately completes the request.\n\n" +
		"### Instruction:\n%s\n\n### Response:\n"
	alpacaInputPrompt = "Below is an instruction that describes a task, " +
		"paired with an input that provides further context. " +
		"Write a response that appropriately completes the request.\n\n" +
		"### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n"
)

var errNoTemplate = errors.New("a chat needs a tokenizer with a chat template, " +
	"and this one has none: give the tokenizer of a chat model with --tokenizer, or data of " +
	"another layout")

// InstructionPrompt returns the prompt of an instruction as training renders it:
// with the chat template of tok, or with Alpaca's prompt if tok has none.
// addSpecial is the argument to give to Encode for this prompt.
func InstructionPrompt(tok *tokenizer.Tokenizer, instruction, input string) (
	prompt string, addSpecial bool, err error,
) {
	switch {
	case tok.ChatTemplate() != "":
		user := tokenizer.Message{Role: "user", Content: joinInput(instruction, input)}
		prompt, err = tok.Chat([]tokenizer.Message{user}, true)
		return prompt, false, err
	case input != "":
		return fmt.Sprintf(alpacaInputPrompt, instruction, input), true, nil
	default:
		return fmt.Sprintf(alpacaPrompt, instruction), true, nil
	}
}

func joinInput(instruction, input string) string {
	if input == "" {
		return instruction
	}
	return instruction + "\n\n" + input
}

// encode makes samples of a record and labels the tokens that have loss. Samples
// longer than opts.MaxLength are cut and counted.
func (r *record) encode(tok *tokenizer.Tokenizer, opts Options) (e encoded, err error) {
	var s Sample
	template := tok.ChatTemplate() != ""
	switch {
	case r.layout == RawText:
		e.samples = splitText(textIDs(tok, r), opts.MaxLength)
		return e, nil
	case r.layout == Tokens:
		e.samples, err = tokenSamples(tok, r.ids, opts.MaxLength)
		return e, err
	case r.layout == Preference || r.unpaired:
		return pairSample(tok, r, opts)
	case r.messages == nil: // strings of Completion or Rated
		s = promptSample(tok, r.prompt, r.completion)
	case r.layout == Instruction && !template:
		s = alpacaSample(tok, r.messages, r.input)
	case !template:
		return e, errNoTemplate
	default:
		messages := r.messages
		if r.layout == Instruction {
			messages = slices.Clone(messages)
			user := &messages[len(messages)-2]
			user.Content = joinInput(user.Content, r.input)
		}
		learn := func(i int) bool {
			return i >= r.given && isAnswer(messages[i]) && (r.silent == nil || !r.silent[i])
		}
		if opts.LastAnswer {
			last := len(messages) - 1
			for last > 0 && !isAnswer(messages[last]) {
				last--
			}
			every := learn
			learn = func(i int) bool { return i == last && every(i) }
		}
		s, e.omitted, err = chatSample(tok, r.conversation(messages, opts), opts.prompts, learn)
	}
	e.truncated = s.truncate(opts.MaxLength)
	s.Rating = r.rating
	e.samples = []Sample{s}
	return e, err
}

// conversation is what the chat template renders.
func (r *record) conversation(messages []tokenizer.Message,
	opts Options) tokenizer.Conversation {
	return tokenizer.Conversation{Messages: messages, ChatInputs: r.inputs.Over(opts.Inputs)}
}

// truncate cuts a sample of one text at maxLength tokens, unless that is 0. It
// returns 1 if it cut, else 0.
func (s *Sample) truncate(maxLength int) int {
	if maxLength <= 0 || len(s.IDs) <= maxLength {
		return 0
	}
	s.IDs, s.Labels = s.IDs[:maxLength], s.Labels[:maxLength]
	return 1
}

// textIDs encodes a text or one block of a text. The first block starts with the
// tokens that begin a text, the last block ends with the end-of-text token. Each
// block but the first starts with the last token of the previous block.
func textIDs(tok *tokenizer.Tokenizer, r *record) []int32 {
	var ids []int32
	switch first := r.lead == ""; {
	case r.open && first:
		ids = tok.EncodeStart(r.text)
	case r.open:
		ids = tok.Encode(r.text, false)
	default:
		ids = withEOS(tok, tok.Encode(r.text, first))
	}
	if before := tok.Encode(r.lead, false); r.lead != "" && len(before) > 0 {
		ids = slices.Insert(ids, 0, before[len(before)-1])
	}
	return ids
}

// tokenSamples makes samples of a document that is already encoded.
func tokenSamples(tok *tokenizer.Tokenizer, ids []int32, maxLength int) ([]Sample, error) {
	for i, id := range ids {
		if id < 0 || int(id) >= tok.VocabSize() {
			return nil, fmt.Errorf("token %d is %d, the tokenizer's vocabulary has %d: "+
				"the data was made with another tokenizer", i+1, id, tok.VocabSize())
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	return splitText(withEOS(tok, ids), maxLength), nil
}

// splitText splits the tokens of a text into samples of maxLength, all labeled.
// Each sample starts with the last token of the previous one. The first label of
// a sample has no loss, so every token of the text is learned once.
func splitText(ids []int32, maxLength int) (samples []Sample) {
	if maxLength <= 0 {
		maxLength = len(ids)
	}
	for start := 0; ; start += max(maxLength-1, 1) {
		chunk := ids[start:min(start+maxLength, len(ids))]
		samples = append(samples, Sample{IDs: chunk, Labels: chunk, Continues: start > 0})
		if start+maxLength >= len(ids) {
			return samples
		}
	}
}

// withEOS appends the end-of-text token unless ids end with one.
func withEOS(tok *tokenizer.Tokenizer, ids []int32) []int32 {
	eos := tok.EOS()
	if len(eos) > 0 && (len(ids) == 0 || !tok.IsEOS(ids[len(ids)-1])) {
		ids = append(ids, eos[0])
	}
	return ids
}

// ignored returns n labels without loss.
func ignored(n int) []int32 {
	return slices.Repeat([]int32{IgnoreLabel}, n)
}

// alpacaSample encodes an optional system message, a question and its answer
// without a chat template. The answer is labeled.
func alpacaSample(tok *tokenizer.Tokenizer, messages []tokenizer.Message, input string) Sample {
	n := len(messages)
	prompt, _, _ := InstructionPrompt(tok, messages[n-2].Content, input) // only a template can fail
	if n > 2 {
		prompt = messages[0].Content + "\n\n" + prompt
	}
	return promptSample(tok, prompt, messages[n-1].Content)
}

// promptSample encodes a prompt and the text that follows it, and labels the
// tokens of the latter and the end-of-text token.
func promptSample(tok *tokenizer.Tokenizer, prompt, answer string) Sample {
	prompt = strings.ToValidUTF8(prompt, "\uFFFD")
	ids, at := tok.EncodeAt(prompt+answer, true, []int{len(prompt)})
	ids = withEOS(tok, ids)
	s := Sample{IDs: ids, Labels: ignored(len(ids))}
	copy(s.Labels[at[0]:], ids[at[0]:])
	return s
}

// chatSample renders a conversation and labels the turns that learn selects.
// left counts what the template does not render of them.
func chatSample(tok *tokenizer.Tokenizer, c tokenizer.Conversation, prompts *promptCache,
	learn func(i int) bool,
) (s Sample, left omitted, err error) {
	trace, err := tok.Trace(c, false)
	if err != nil {
		return s, left, err
	}
	turns := &turns{tok: tok, conversation: c, trace: trace, prompts: prompts}
	ranges, unrendered, err := turns.learned(learn)
	if err != nil {
		return s, left, err
	}
	left = omitted{answers: unrendered, reasoning: turns.withoutReasoning(learn)}
	s = Sample{IDs: turns.ids, Labels: ignored(len(turns.ids))}
	for _, r := range ranges {
		copy(s.Labels[r.from:r.to], s.IDs[r.from:r.to])
	}
	return s, left, nil
}

// pairSample encodes both texts of a preference record, each cut at the maximum
// length. truncated is 1 if either was cut, else 0.
func pairSample(tok *tokenizer.Tokenizer, r *record, opts Options) (e encoded, err error) {
	var pair Sample
	for _, answer := range [][]tokenizer.Message{r.pair.chosen, r.pair.rejected} {
		s, err := r.answerSample(tok, answer, opts)
		if err != nil {
			return e, err
		}
		e.truncated = max(e.truncated, s.truncate(opts.MaxLength))
		if len(s.Labels) > 0 {
			s.Labels[0] = IgnoreLabel // no token precedes it
		}
		pair.Second = len(pair.IDs)
		pair.IDs, pair.Labels = append(pair.IDs, s.IDs...), append(pair.Labels, s.Labels...)
	}
	e.samples = []Sample{pair}
	if r.unpaired {
		e.samples = pair.rated()
	}
	return e, nil
}

// answerSample encodes the prompt of a pair and an answer, and labels the
// assistant's turns in the answer. The template must render the last one.
func (r *record) answerSample(tok *tokenizer.Tokenizer, answer []tokenizer.Message,
	opts Options) (Sample, error) {
	given := len(r.pair.prompt)
	messages := slices.Concat(r.pair.prompt, answer)
	n := len(messages)
	if tok.ChatTemplate() == "" {
		if len(answer) > 1 || messages[n-2].Role != "user" || n > 3 || n == 3 &&
			messages[0].Role != "system" {
			return Sample{}, errNoTemplate
		}
		return alpacaSample(tok, messages, ""), nil
	}
	c := r.conversation(messages, opts)
	s, left, err := chatSample(tok, c, opts.prompts, func(i int) bool {
		return i >= given && isAnswer(messages[i])
	})
	if err == nil && left.answers > 0 {
		err = fmt.Errorf("the chat template does not render the answer %.40q",
			messages[n-1].Content)
	}
	return s, err
}
