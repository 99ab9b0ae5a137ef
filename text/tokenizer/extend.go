package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"conquer/internal/atomicfile"
)

// Extend returns a tokenizer with more tokens, as the method add_tokens of transformers makes them:
// they are matched in a text before it is divided. Tokens that exist are left out. ids are those of
// all the tokens. The result's files are written into the folder dir, which must exist as long as
// the result is used.
func (t *Tokenizer) Extend(dir string, tokens []string) (extended *Tokenizer, ids []int32,
	err error) {
	if err := t.Save(dir); err != nil {
		return nil, nil, err
	}
	path := filepath.Join(dir, "tokenizer.json")
	file, err := object(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errors.New("the tokenizer has no tokenizer.json, to which tokens could " +
			"be added: save it with transformers' AutoTokenizer first")
	} else if err != nil {
		return nil, nil, err
	}
	var added []json.RawMessage
	if text := file["added_tokens"]; text != nil {
		if err := json.Unmarshal(text, &added); err != nil {
			return nil, nil, fmt.Errorf("%s: added_tokens: %w", path, err)
		}
	}
	listed := map[string]json.RawMessage{}
	next := int32(t.VocabSize())
	var fresh []string
	for _, token := range tokens {
		if token == "" {
			return nil, nil, errors.New("an empty token cannot be added")
		}
		if _, ok := t.ID(token); ok || slices.Contains(fresh, token) {
			continue
		}
		fresh = append(fresh, token)
		text, err := json.Marshal(addedToken{ID: next, Content: token, Normalized: true})
		if err != nil {
			return nil, nil, err
		}
		added, listed[fmt.Sprint(next)] = append(added, text), text
		next++
	}
	if file["added_tokens"], err = json.Marshal(added); err != nil {
		return nil, nil, err
	}
	if err := writeObject(path, file); err != nil {
		return nil, nil, err
	}
	if err := extendConfig(filepath.Join(dir, "tokenizer_config.json"), listed); err != nil {
		return nil, nil, err
	}
	if extended, err = Open(dir); err != nil {
		return nil, nil, err
	}
	for _, token := range tokens {
		id, ok := extended.ID(token)
		if !ok {
			return nil, nil, fmt.Errorf("the token %.80q could not be added", token)
		}
		if slices.Contains(fresh, token) && t.Token(id) != "" {
			return nil, nil, fmt.Errorf("the new token %.80q would get the id %d of %.80q, "+
				"because the ids of tokenizer.json have gaps: number them from 0 without gaps",
				token, id, t.Token(id))
		}
		ids = append(ids, id)
	}
	extended.AddEOS(t.EOS()...)
	return extended, ids, nil
}

// extendConfig adds tokens to the list that a tokenizer_config.json may have.
func extendConfig(path string, tokens map[string]json.RawMessage) error {
	file, err := object(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && file["added_tokens_decoder"] == nil {
		return nil
	} else if err != nil {
		return err
	}
	list := map[string]map[string]any{}
	if err := json.Unmarshal(file["added_tokens_decoder"], &list); err != nil {
		return fmt.Errorf("%s: added_tokens_decoder: %w", path, err)
	}
	for id, text := range tokens {
		fields := map[string]any{}
		if err := json.Unmarshal(text, &fields); err != nil {
			return err
		}
		delete(fields, "id")
		list[id] = fields
	}
	if file["added_tokens_decoder"], err = json.Marshal(list); err != nil {
		return err
	}
	return writeObject(path, file)
}

// object reads a JSON object, whose values stay as they are.
func object(path string) (map[string]json.RawMessage, error) {
	text, err := readFile(path, maxFile)
	if err != nil {
		return nil, err
	}
	file := map[string]json.RawMessage{}
	if err := json.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("%s: expected a JSON object: %w", path, err)
	}
	return file, nil
}

func writeObject(path string, file map[string]json.RawMessage) error {
	text, err := json.MarshalIndent(file, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, append(text, '\n'))
}
