package dataset

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"conquer/text/tokenizer"
)

// record is one entry of a data file, not yet encoded.
type record struct {
	layout   Layout
	text     string              // of RawText
	lead     string              // what stands before text, where it is not the beginning
	open     bool                // text goes on in a further record
	input    string              // of Instruction
	messages []tokenizer.Message // of Instruction and Chat
	ids      []int32             // of Tokens
	pair     preference
}

func jsonProblem(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends inside a record")
	}
	return fmt.Errorf("not JSON: %w", err)
}

const knownLayouts = "known are instruction (instruction, input, output), chat (messages of role and content), text (text) and tokens (tokens)"

// layoutOf tells a record's layout from the fields it has. Where pairs are
// wanted, other fields may stand beside them.
func layoutOf(wanted Layout, has func(field string) bool) Layout {
	pair := has("chosen") && has("rejected")
	switch {
	case pair && wanted == Preference:
		return Preference
	case has("messages"):
		return Chat
	case has("instruction"):
		return Instruction
	case has("tokens"):
		return Tokens
	case has("text"):
		return RawText
	case pair:
		return Preference
	}
	return AnyLayout
}

// parseRecord reads one record and tells its layout from its fields.
func parseRecord(data []byte, layout Layout) (r record, err error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		if _, wrongType := errors.AsType[*json.UnmarshalTypeError](err); wrongType {
			return r, fmt.Errorf("expected an object, got %.40s", data)
		}
		return r, jsonProblem(err)
	}
	found := layoutOf(layout, func(name string) bool { _, ok := fields[name]; return ok })
	if found == AnyLayout {
		names := slices.Sorted(maps.Keys(fields))
		return r, fmt.Errorf("no known layout has the fields %q; %s", names, knownLayouts)
	}
	if found == Preference && layout != Preference {
		return r, errors.New("a pair of answers, chosen and rejected, which only preference tuning learns from (--objective dpo)")
	}
	if layout == Preference && found != Preference {
		return r, fmt.Errorf("a record of layout %s, expected a pair: prompt, chosen and rejected", found)
	}
	if layout != AnyLayout && layout != found {
		return r, fmt.Errorf("a record of layout %s, expected %s", found, layout)
	}
	r.layout = found
	text := func(name string, required bool) (s string) {
		raw, ok := fields[name]
		if !ok || string(raw) == "null" {
			if required && err == nil {
				err = fmt.Errorf("field %q is missing; expected for layout %s; %s", name, found, knownLayouts)
			}
			return ""
		}
		if e := json.Unmarshal(raw, &s); e != nil && err == nil {
			err = fmt.Errorf("field %q is %.40s, expected a string", name, raw)
		}
		return s
	}
	switch found {
	case Chat:
		if r.messages, err = parseMessages("messages", fields["messages"]); err == nil && !slices.ContainsFunc(r.messages, isAnswer) {
			err = fmt.Errorf("of %s none has the role %q, so there is nothing to learn", Count(len(r.messages), "message"), assistantRole)
		}
	case Preference:
		r.pair, err = parsePair(fields)
	case Instruction:
		question := text("instruction", true)
		if input := text("input", false); strings.TrimSpace(input) != "" {
			r.input = input
		}
		answer, system := text("output", true), text("system", false)
		if system != "" {
			r.messages = append(r.messages, tokenizer.Message{Role: "system", Content: system})
		}
		r.messages = append(r.messages, tokenizer.Message{Role: "user", Content: question}, tokenizer.Message{Role: "assistant", Content: answer})
	case Tokens:
		// Into pointers, for null is no token.
		var ids []*int32
		if json.Unmarshal(fields["tokens"], &ids) != nil || slices.Contains(ids, nil) {
			return r, fmt.Errorf("field \"tokens\" is %.40s, expected a list of token ids", fields["tokens"])
		}
		for _, id := range ids {
			r.ids = append(r.ids, *id)
		}
	case RawText:
		r.text = text("text", true)
	}
	return r, err
}

func isAnswer(m tokenizer.Message) bool { return m.Role == assistantRole }

func parseMessages(field string, raw json.RawMessage) ([]tokenizer.Message, error) {
	var list []struct {
		Role    *string
		Content *string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("field %q is %.60s, expected a list of {\"role\": string, \"content\": string}", field, raw)
	}
	messages := make([]tokenizer.Message, len(list))
	for i, m := range list {
		if m.Role == nil || m.Content == nil {
			return nil, fmt.Errorf("message %d lacks role or content, expected %q to be a list of {\"role\": string, \"content\": string}", i, field)
		}
		messages[i] = tokenizer.Message{Role: *m.Role, Content: *m.Content}
	}
	return messages, nil
}
