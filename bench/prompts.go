package bench

import (
	"encoding/json"
	"errors"
	"fmt"

	"conquer/text/dataset"
)

// Prompt is one entry of a prompts file.
type Prompt struct {
	Prompt, Answer string
	TokenLen       int // tokens of the prompt, with the tokenizer that the file was made with
	NumChunks      int // chunks of the prompt
}

// ReadPrompts reads a prompts file: a JSON list of objects with prompt, answer, token_len and
// num_chunks.
func ReadPrompts(path string) ([]Prompt, error) {
	data, err := dataset.ReadFile(path)
	if err != nil {
		return nil, err
	}
	prompts, err := parsePrompts(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return prompts, nil
}

// parsePrompts parses a prompts file. An error names the entry.
func parsePrompts(data []byte) ([]Prompt, error) {
	var entries []map[string]json.RawMessage
	if err := json.Unmarshal(data, &entries); err != nil {
		const want = "expected a JSON list of objects with prompt, answer, token_len and num_chunks"
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) {
			return nil, fmt.Errorf("%s, found %s (at byte %d)", want, kind.Value, kind.Offset)
		}
		return nil, fmt.Errorf("%s: %w", want, err)
	}
	if len(entries) == 0 {
		return nil, errors.New("the list of prompts is empty")
	}
	prompts := make([]Prompt, len(entries))
	for i, entry := range entries {
		p := &prompts[i]
		for _, field := range []struct {
			name, want string
			value      any
		}{
			{"prompt", "a text", &p.Prompt}, {"answer", "a text", &p.Answer},
			{"token_len", "a number of tokens", &p.TokenLen}, {"num_chunks", "a number of chunks",
				&p.NumChunks},
		} {
			text, ok := entry[field.name]
			if !ok {
				return nil, fmt.Errorf("entry %d has no %q: expected %s", i, field.name, field.want)
			}
			if err := json.Unmarshal(text, field.value); err != nil || string(text) == "null" {
				return nil, fmt.Errorf("entry %d: %q is not %s", i, field.name, field.want)
			}
		}
		switch {
		case p.Prompt == "" || p.Answer == "":
			return nil, fmt.Errorf("entry %d has an empty prompt or answer", i)
		case p.TokenLen < 1 || p.NumChunks < 1 || p.TokenLen > 1<<24:
			return nil, fmt.Errorf("entry %d: token_len %d and num_chunks %d: expected 1 or more",
				i, p.TokenLen, p.NumChunks)
		}
	}
	return prompts, nil
}
