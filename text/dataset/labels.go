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
	"and this one has none")

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

// samples encodes a record and labels the tokens that have loss. Samples longer
// than maxLength are cut and counted in truncated.
func (r *record) samples(tok *tokenizer.Tokenizer, maxLength int) (
	samples []Sample, truncated int, err error,
) {
	switch {
	case r.layout == Preference:
		pair, cut, err := pairSample(tok, &r.pair, maxLength)
		if err != nil {
			return nil, 0, err
		}
		return []Sample{pair}, cut, nil
	case r.layout == RawText:
		return splitText(textIDs(tok, r), maxLength), 0, nil
	case r.layout == Tokens:
		samples, err = tokenSamples(tok, r.ids, maxLength)
		return samples, 0, err
	case r.layout == Instruction && tok.ChatTemplate() == "":
		samples = []Sample{alpacaSample(tok, r.messages, r.input)}
	case r.layout == Instruction:
		messages := slices.Clone(r.messages)
		user := &messages[len(messages)-2]
		user.Content = joinInput(user.Content, r.input)
		samples, err = chatSamples(tok, messages)
	case tok.ChatTemplate() == "":
		return nil, 0, errNoTemplate
	default:
		samples, err = chatSamples(tok, r.messages)
	}
	for i := range samples {
		truncated += samples[i].truncate(maxLength)
	}
	return samples, truncated, err
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
		samples = append(samples, Sample{IDs: chunk, Labels: chunk})
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
	ids := withEOS(tok, tok.Encode(prompt+messages[n-1].Content, true))
	s := Sample{IDs: ids, Labels: ignored(len(ids))}
	start := tokenizer.CommonPrefix(tok.Encode(prompt, true), ids)
	copy(s.Labels[start:], ids[start:])
	return s
}

// chatSamples renders a conversation and labels the assistant's turns.
//
// Some templates render a turn differently once others follow it: they drop its
// reasoning, for example. Then each turn becomes a sample of its own, rendered
// as the last turn of its conversation.
func chatSamples(tok *tokenizer.Tokenizer, messages []tokenizer.Message) ([]Sample, error) {
	s, missing, err := labelTurns(tok, messages, 0)
	if err != nil || missing < 0 {
		return []Sample{s}, err
	}
	var samples []Sample
	for i, m := range messages {
		if m.Role != assistantRole {
			continue
		}
		s, missing, err := labelTurns(tok, messages[:i+1], i)
		if err != nil {
			return nil, err
		}
		if missing >= 0 {
			return nil, fmt.Errorf(
				"the chat template does not render message %d, %.40q, after its prompt", i,
				m.Content)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// labelTurns renders a conversation and labels the assistant's turns from
// message first on. A turn's labels start where the prompt for the turn ends and
// stop where the turn ends. The ids are those of the whole text, as a model sees
// them when the conversation is encoded; a token that spans the start of an
// answer belongs to the answer. missing is the index of the first turn whose
// content is not in the text as written, or -1.
func labelTurns(tok *tokenizer.Tokenizer, messages []tokenizer.Message, first int) (
	s Sample, missing int, err error,
) {
	whole, err := tok.Chat(messages, false)
	if err != nil {
		return s, -1, err
	}
	ids := tok.Encode(whole, false)
	s = Sample{IDs: ids, Labels: ignored(len(ids))}
	for i := first; i < len(messages); i++ {
		if messages[i].Role != assistantRole {
			continue
		}
		start, end, err := turnBounds(tok, messages, i, whole)
		if err != nil {
			return s, -1, err
		}
		if !strings.Contains(whole[start:end], strings.TrimSpace(messages[i].Content)) {
			return s, i, nil
		}
		from := tokenizer.CommonPrefix(tok.Encode(whole[:start], false), ids)
		to := max(from, tokenizer.CommonPrefix(tok.Encode(whole[:end], false), ids))
		// A model stops at the token that ends a turn, so what the template puts
		// behind that token has no loss.
		for j := to; j > from; j-- {
			if tok.IsEOS(ids[j-1]) {
				to = j
				break
			}
		}
		copy(s.Labels[from:to], ids[from:to])
	}
	return s, -1, nil
}

// turnBounds returns the bytes [start, end) of the rendered conversation whole
// that message i adds after the prompt for it.
func turnBounds(tok *tokenizer.Tokenizer, messages []tokenizer.Message, i int, whole string) (
	start, end int, err error,
) {
	before, err := tok.Chat(messages[:i], true)
	if err != nil {
		return 0, 0, err
	}
	until := whole
	if i+1 < len(messages) {
		if until, err = tok.Chat(messages[:i+1], false); err != nil {
			return 0, 0, err
		}
	}
	start = tokenizer.CommonPrefix([]byte(before), []byte(whole))
	return start, max(start, tokenizer.CommonPrefix([]byte(until), []byte(whole))), nil
}

// pairSample encodes both texts of a preference record, each cut at maxLength
// unless that is 0. truncated is 1 if either was cut, else 0.
func pairSample(tok *tokenizer.Tokenizer, p *preference, maxLength int) (
	pair Sample, truncated int, err error,
) {
	for _, answer := range [][]tokenizer.Message{p.chosen, p.rejected} {
		s, err := answerSample(tok, p.prompt, answer)
		if err != nil {
			return pair, 0, err
		}
		truncated = max(truncated, s.truncate(maxLength))
		if len(s.Labels) > 0 {
			s.Labels[0] = IgnoreLabel // no token precedes it
		}
		pair.Second = len(pair.IDs)
		pair.IDs, pair.Labels = append(pair.IDs, s.IDs...), append(pair.Labels, s.Labels...)
	}
	return pair, truncated, nil
}

// answerSample encodes a prompt and an answer, and labels the assistant's turns
// in the answer. If the template renders earlier turns differently once others
// follow, only the last turn is labeled.
func answerSample(tok *tokenizer.Tokenizer, prompt, answer []tokenizer.Message) (Sample, error) {
	messages := slices.Concat(prompt, answer)
	n := len(messages)
	if tok.ChatTemplate() == "" {
		if len(answer) > 1 || messages[n-2].Role != "user" || n > 3 || n == 3 &&
			messages[0].Role != "system" {
			return Sample{}, errNoTemplate
		}
		return alpacaSample(tok, messages, ""), nil
	}
	for _, first := range []int{len(prompt), n - 1} {
		s, missing, err := labelTurns(tok, messages, first)
		if err != nil || missing < 0 {
			return s, err
		}
	}
	return Sample{}, fmt.Errorf(
		"the chat template does not render the answer %.40q after its prompt",
		messages[n-1].Content)
}
