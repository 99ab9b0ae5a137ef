package dataset

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"conquer/text/tokenizer"
)

// preference is what is known of a record with two answers of which one is
// preferred: the conversation so far, and how each goes on.
type preference struct {
	prompt           []tokenizer.Message
	chosen, rejected []tokenizer.Message
}

// parsePair reads a preference record. prompt, chosen and rejected are strings
// (a user's turn, and the assistant's) or lists of messages; without a prompt
// chosen and rejected are whole conversations, which begin alike.
func parsePair(fields map[string]json.RawMessage) (p preference, err error) {
	turns := func(name, role string) (messages []tokenizer.Message, whole bool) {
		raw, ok := fields[name]
		if !ok || string(raw) == "null" || err != nil {
			return nil, false
		}
		var text string
		if json.Unmarshal(raw, &text) == nil {
			return []tokenizer.Message{{Role: role, Content: text}}, false
		}
		messages, err = parseMessages(name, raw)
		return messages, len(messages) > 0 && messages[0].Role != assistantRole
	}
	p.prompt, _ = turns("prompt", "user")
	var wholeA, wholeB bool
	p.chosen, wholeA = turns("chosen", assistantRole)
	p.rejected, wholeB = turns("rejected", assistantRole)
	if err != nil {
		return p, err
	}
	switch {
	case wholeA != wholeB:
		return p, errors.New("of chosen and rejected one begins with the prompt and the other does not")
	case wholeA:
		n := min(tokenizer.CommonPrefix(p.chosen, p.rejected), len(p.chosen)-1, len(p.rejected)-1)
		if n < 1 {
			return p, errors.New("chosen and rejected do not begin with the same message")
		}
		p.prompt, p.chosen, p.rejected = p.chosen[:n], p.chosen[n:], p.rejected[n:]
	case len(p.prompt) == 0:
		return p, errors.New("field \"prompt\" is missing, and chosen and rejected are no conversations that begin with one")
	}
	for name, answer := range map[string][]tokenizer.Message{"chosen": p.chosen, "rejected": p.rejected} {
		if n := len(answer); n == 0 || answer[n-1].Role != assistantRole {
			return p, fmt.Errorf("field %q does not end with a message of the role %q", name, assistantRole)
		}
	}
	var system string
	if raw, ok := fields["system"]; ok && json.Unmarshal(raw, &system) == nil && system != "" {
		p.prompt = slices.Insert(slices.Clone(p.prompt), 0, tokenizer.Message{Role: "system", Content: system})
	}
	return p, nil
}

// pairSample encodes both texts of a preference record, each cut at maxLength.
func pairSample(tok *tokenizer.Tokenizer, p *preference, maxLength int) (pair Sample, truncated bool, err error) {
	for _, answer := range [][]tokenizer.Message{p.chosen, p.rejected} {
		s, err := answerSample(tok, p.prompt, answer)
		if err != nil {
			return pair, false, err
		}
		if maxLength > 0 && len(s.IDs) > maxLength {
			s.IDs, s.Labels, truncated = s.IDs[:maxLength], s.Labels[:maxLength], true
		}
		if len(s.Labels) > 0 {
			s.Labels[0] = IgnoreLabel // nothing is in front of it
		}
		pair.Second = len(pair.IDs)
		pair.IDs, pair.Labels = append(pair.IDs, s.IDs...), append(pair.Labels, s.Labels...)
	}
	return pair, truncated, nil
}

// answerSample encodes a conversation with labels on the assistant's turns of
// its last part, the answer.
func answerSample(tok *tokenizer.Tokenizer, prompt, answer []tokenizer.Message) (Sample, error) {
	messages := slices.Concat(prompt, answer)
	if tok.ChatTemplate() == "" {
		if n := len(messages); len(answer) > 1 || messages[n-2].Role != "user" || n > 3 || n == 3 && messages[0].Role != "system" {
			return Sample{}, errNoTemplate
		}
		return alpacaSample(tok, messages, ""), nil
	}
	for _, first := range []int{len(prompt), len(messages) - 1} { // all of its turns, or where the template renders earlier ones otherwise the last
		s, missing, err := labelTurns(tok, messages, first)
		if err != nil || missing < 0 {
			return s, err
		}
	}
	last := messages[len(messages)-1].Content
	return Sample{}, fmt.Errorf("the chat template does not render the answer %.40q after its prompt", last)
}
