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
	alpacaPrompt = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n" +
		"### Instruction:\n%s\n\n### Response:\n"
	alpacaInputPrompt = "Below is an instruction that describes a task, paired with an input that provides further context. " +
		"Write a response that appropriately completes the request.\n\n### Instruction:\n%s\n\n### Input:\n%s\n\n### Response:\n"
)

// InstructionPrompt returns the prompt of an instruction as training renders it:
// with the chat template of tok, or with Alpaca's prompt if it has none.
// addSpecial is the argument to give to Encode for this prompt.
func InstructionPrompt(tok *tokenizer.Tokenizer, instruction, input string) (prompt string, addSpecial bool, err error) {
	if tok.ChatTemplate() == "" {
		if input == "" {
			return fmt.Sprintf(alpacaPrompt, instruction), true, nil
		}
		return fmt.Sprintf(alpacaInputPrompt, instruction, input), true, nil
	}
	prompt, err = tok.Chat([]tokenizer.Message{{Role: "user", Content: joinInput(instruction, input)}}, true)
	return prompt, false, err
}

func joinInput(instruction, input string) string {
	if input == "" {
		return instruction
	}
	return instruction + "\n\n" + input
}

// samples encodes a record of any layout but Preference.
func (r *record) samples(tok *tokenizer.Tokenizer, maxLength int) ([]Sample, error) {
	switch {
	case r.layout == RawText:
		return cut(rawIDs(tok, r), maxLength), nil
	case r.layout == Tokens:
		for i, id := range r.ids {
			if id < 0 || int(id) >= tok.VocabSize() {
				return nil, fmt.Errorf("token %d is %d, the tokenizer's vocabulary has %d: the data was not made with it", i+1, id, tok.VocabSize())
			}
		}
		if len(r.ids) == 0 {
			return nil, nil
		}
		return cut(withEOS(tok, r.ids), maxLength), nil
	case r.layout == Instruction && tok.ChatTemplate() == "":
		return []Sample{alpacaSample(tok, r.messages, r.input)}, nil
	case r.layout == Instruction:
		messages := slices.Clone(r.messages)
		user := &messages[len(messages)-2]
		user.Content = joinInput(user.Content, r.input)
		return chatSamples(tok, messages)
	case tok.ChatTemplate() == "":
		return nil, errNoTemplate
	}
	return chatSamples(tok, r.messages)
}

var errNoTemplate = errors.New("a chat needs a tokenizer with a chat template, and this one has none")

// rawIDs encodes a text, or a part of one: what begins it goes before the
// first part, what ends it after the last, and every other part begins with the
// last token of the one before.
func rawIDs(tok *tokenizer.Tokenizer, r *record) []int32 {
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

// cut makes samples of maxLength of a text's tokens. Each begins with the last
// token of the one before, whose own first label bears no loss, so every token
// of the text is learned once.
func cut(ids []int32, maxLength int) (samples []Sample) {
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

func withEOS(tok *tokenizer.Tokenizer, ids []int32) []int32 {
	if eos := tok.EOS(); len(eos) > 0 && (len(ids) == 0 || !tok.IsEOS(ids[len(ids)-1])) {
		ids = append(ids, eos[0])
	}
	return ids
}

// alpacaSample encodes a question and its answer, with a system's message in
// front or without.
func alpacaSample(tok *tokenizer.Tokenizer, messages []tokenizer.Message, input string) Sample {
	n := len(messages)
	prompt, _, _ := InstructionPrompt(tok, messages[n-2].Content, input) // fails with a template only
	if n > 2 {
		prompt = messages[0].Content + "\n\n" + prompt
	}
	ids := withEOS(tok, tok.Encode(prompt+messages[n-1].Content, true))
	s := Sample{IDs: ids, Labels: ignored(len(ids))}
	start := tokenizer.CommonPrefix(tok.Encode(prompt, true), ids)
	copy(s.Labels[start:], ids[start:])
	return s
}

func ignored(n int) []int32 {
	return slices.Repeat([]int32{IgnoreLabel}, n)
}

// chatSamples renders a conversation and labels the assistant's turns.
//
// Some templates render a turn differently once others follow it (they drop
// its reasoning, say). Then each turn becomes a sample of its own, rendered as
// the last of its conversation.
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
			return nil, fmt.Errorf("the chat template does not render message %d, %.40q, after its prompt", i, m.Content)
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// labelTurns labels the assistant's turns from message first on: from where the
// prompt for a turn ends to where the turn does. The ids are those of the whole
// text, so they are what the model meets when the same conversation is encoded;
// a token that reaches over the border belongs to the answer. missing is the
// first turn that is not found whole in the text, or -1.
func labelTurns(tok *tokenizer.Tokenizer, messages []tokenizer.Message, first int) (s Sample, missing int, err error) {
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
		before, err := tok.Chat(messages[:i], true)
		if err != nil {
			return s, -1, err
		}
		until := whole
		if i+1 < len(messages) {
			if until, err = tok.Chat(messages[:i+1], false); err != nil {
				return s, -1, err
			}
		}
		start := tokenizer.CommonPrefix([]byte(before), []byte(whole))
		end := max(start, tokenizer.CommonPrefix([]byte(until), []byte(whole)))
		if !strings.Contains(whole[start:end], strings.TrimSpace(messages[i].Content)) {
			return s, i, nil
		}
		from := tokenizer.CommonPrefix(tok.Encode(whole[:start], false), ids)
		to := max(from, tokenizer.CommonPrefix(tok.Encode(whole[:end], false), ids))
		// What a template puts behind the token that ends a turn is never generated.
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
