package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"conquer/internal/pyjson"
	"conquer/internal/wrongfile"
)

// companions are the files of a folder that belong to a tokenizer.
var companions = []string{
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
	"chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
}

// folderInfo holds the settings in the small files beside a tokenizer.
type folderInfo struct {
	bos, eos, unk, pad string
	bosID, padID       *int32
	eosIDs             []int32
	addBOS, addEOS     *bool
	legacyOff          bool // for a tokenizer.model, see setSentencePiece
	template           string
}

// nameOrToken is a token in a configuration: a string, or an object with the
// field content.
type nameOrToken string

func (n *nameOrToken) UnmarshalJSON(data []byte) error {
	if json.Unmarshal(data, (*string)(n)) == nil {
		return nil
	}
	var token struct {
		Content string `json:"content"`
	}
	err := json.Unmarshal(data, &token)
	*n = nameOrToken(token.Content)
	return err
}

// idOrIDs is one id or a list of ids.
type idOrIDs []int32

func (l *idOrIDs) UnmarshalJSON(data []byte) error {
	var one *int32
	if json.Unmarshal(data, &one) == nil {
		if one != nil {
			*l = idOrIDs{*one}
		}
		return nil
	}
	return json.Unmarshal(data, (*[]int32)(l))
}

// readFolder reads the files that name the special tokens. Each file is optional,
// but one that exists must be valid.
func readFolder(folder string) (*folderInfo, error) {
	about := new(folderInfo)
	for _, read := range []func(folder string) error{
		about.readTokens, about.readTemplate, about.readIDs,
	} {
		if err := read(folder); err != nil {
			return nil, err
		}
	}
	return about, nil
}

// readTokens reads special_tokens_map.json and tokenizer_config.json.
func (about *folderInfo) readTokens(folder string) error {
	for _, name := range []string{"special_tokens_map.json", "tokenizer_config.json"} {
		var c struct {
			BOS      nameOrToken     `json:"bos_token"`
			EOS      nameOrToken     `json:"eos_token"`
			Unk      nameOrToken     `json:"unk_token"`
			Pad      nameOrToken     `json:"pad_token"`
			AddBOS   *bool           `json:"add_bos_token"`
			AddEOS   *bool           `json:"add_eos_token"`
			Legacy   *bool           `json:"legacy"`
			Template json.RawMessage `json:"chat_template"`
		}
		path := filepath.Join(folder, name)
		if err := readJSON(path, &c); err != nil {
			return err
		}
		for _, f := range []struct {
			to   *string
			from nameOrToken
		}{{&about.bos, c.BOS}, {&about.eos, c.EOS}, {&about.unk, c.Unk}, {&about.pad, c.Pad}} {
			if f.from != "" {
				*f.to = string(f.from)
			}
		}
		if name == "tokenizer_config.json" {
			about.addBOS, about.addEOS = c.AddBOS, c.AddEOS
			about.legacyOff = c.Legacy != nil && !*c.Legacy
			var err error
			if about.template, err = parseTemplate(c.Template); err != nil {
				return fmt.Errorf("%s: chat_template: %w", path, err)
			}
		}
	}
	return nil
}

// readTemplate reads the files that hold only a chat template.
func (about *folderInfo) readTemplate(folder string) error {
	var c struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if err := readJSON(filepath.Join(folder, "chat_template.json"), &c); err != nil {
		return err
	}
	if template, err := parseTemplate(c.Template); err == nil && template != "" {
		about.template = template
	}
	if data, err := os.ReadFile(filepath.Join(folder, "chat_template.jinja")); err == nil {
		about.template = string(data)
	}
	return nil
}

// readIDs reads the ids of special tokens in generation_config.json and
// config.json.
func (about *folderInfo) readIDs(folder string) error {
	for _, name := range []string{"generation_config.json", "config.json"} {
		var c struct {
			BOS idOrIDs `json:"bos_token_id"`
			EOS idOrIDs `json:"eos_token_id"`
			Pad idOrIDs `json:"pad_token_id"`
		}
		if err := readJSON(filepath.Join(folder, name), &c); err != nil {
			return err
		}
		about.eosIDs = append(about.eosIDs, c.EOS...)
		if about.bosID == nil && len(c.BOS) > 0 {
			about.bosID = &c.BOS[0]
		}
		if about.padID == nil && len(c.Pad) > 0 {
			about.padID = &c.Pad[0]
		}
	}
	return nil
}

// readJSON reads a file, if it exists, into a value.
func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = wrongfile.Explain(data, wrongfile.JSON, json.Unmarshal(pyjson.Standard(data), into))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// parseTemplate reads a chat template: a string, or a list of named templates of
// which the one named "default" is used.
func parseTemplate(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return one, nil
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(raw, &named); err != nil {
		return "", fmt.Errorf("expected a string or a list of {name, template}: %w", err)
	}
	for _, n := range named {
		if n.Name == "default" {
			return n.Template, nil
		}
	}
	return "", nil
}

// apply sets the special tokens and the chat template of t.
func (about *folderInfo) apply(t *Tokenizer) {
	t.template.source = about.template
	set := func(to *int32, name string, id *int32) {
		if known, ok := t.ids[name]; ok && name != "" {
			*to = known
		} else if id != nil && t.valid(*id) {
			*to = *id
		}
	}
	set(&t.bos, about.bos, about.bosID)
	set(&t.pad, about.pad, about.padID)
	set(&t.unk, about.unk, nil)
	if id, ok := t.ids[about.eos]; ok && about.eos != "" {
		t.addEOS(id)
	}
	for _, id := range about.eosIDs {
		t.addEOS(id)
	}
}

// valid reports whether id is a token.
func (t *Tokenizer) valid(id int32) bool {
	return id >= 0 && int(id) < len(t.tokens) && t.tokens[id] != ""
}

func (t *Tokenizer) addEOS(id int32) {
	if t.valid(id) && !slices.Contains(t.eos, id) {
		t.eos = append(t.eos, id)
	}
}
