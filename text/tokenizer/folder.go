package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

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
	specialTokens
	bosID, padID   *int32
	eosIDs         []int32
	configured     bool // there is a tokenizer_config.json
	llamaClass     bool // its class is LlamaTokenizer, which has rules of its own
	addBOS, addEOS *bool
	legacy         *bool // for a tokenizer.model, see setSentencePiece
	templates      map[string]string
}

// IDs are the tokens that a field such as eos_token_id of generation_config.json names: in JSON one
// id, a list of ids, or null.
type IDs []int32

// MaxIDs is the largest length of such a list: its entries are compared with each new token. Lists
// in use have fewer than ten.
const MaxIDs = 1024

// UnmarshalJSON reads one id, a list of at most [MaxIDs] ids, or null.
func (l *IDs) UnmarshalJSON(data []byte) error {
	var one *int32
	if json.Unmarshal(data, &one) == nil {
		if one != nil {
			*l = IDs{*one}
		}
		return nil
	}
	err := json.Unmarshal(data, (*[]int32)(l))
	if err == nil && len(*l) > MaxIDs {
		err = fmt.Errorf("a list of %d token ids, expected at most %d", len(*l), MaxIDs)
	}
	return err
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

// readTokens reads tokenizer_config.json, special_tokens_map.json and
// added_tokens.json.
func (about *folderInfo) readTokens(folder string) error {
	path := filepath.Join(folder, "tokenizer_config.json")
	config, err := readFields(path)
	if err != nil {
		return err
	}
	about.configured = config != nil
	var c struct {
		Class    string          `json:"tokenizer_class"`
		AddBOS   *bool           `json:"add_bos_token"`
		AddEOS   *bool           `json:"add_eos_token"`
		Legacy   *bool           `json:"legacy"`
		Template json.RawMessage `json:"chat_template"`
	}
	if err := readJSON(path, &c); err != nil {
		return err
	}
	about.addBOS, about.addEOS, about.legacy = c.AddBOS, c.AddEOS, c.Legacy
	about.llamaClass = strings.TrimSuffix(c.Class, "Fast") == "LlamaTokenizer"
	if about.templates, err = parseTemplates(c.Template); err != nil {
		return fmt.Errorf("%s: chat_template: %w", path, err)
	}
	if err := about.specialTokens.setConfig(config); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if about.listed != nil {
		return nil // added_tokens_decoder replaces the older files
	}
	path = filepath.Join(folder, "special_tokens_map.json")
	special, err := readFields(path)
	if err != nil {
		return err
	}
	if err := about.setFields(special); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	var ids map[string]int32
	if err := readJSON(filepath.Join(folder, "added_tokens.json"), &ids); err != nil {
		return err
	}
	about.listIDs(ids)
	return nil
}

// readIDs reads the ids of special tokens in generation_config.json and
// config.json.
func (about *folderInfo) readIDs(folder string) error {
	for _, name := range []string{"generation_config.json", "config.json"} {
		var c struct {
			BOS IDs `json:"bos_token_id"`
			EOS IDs `json:"eos_token_id"`
			Pad IDs `json:"pad_token_id"`
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
	data, err := readFile(path, maxSmallFile)
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

// apply sets the special tokens and the chat templates of t.
func (about *folderInfo) apply(t *Tokenizer) {
	t.setTemplates(about.templates)
	t.names = about.values()
	set := func(to *int32, name string, id *int32) {
		if known, ok := t.ids[name]; ok && name != "" {
			*to = known
		} else if id != nil && t.valid(*id) {
			*to = *id
		}
	}
	set(&t.bos, t.names["bos_token"], about.bosID)
	set(&t.pad, t.names["pad_token"], about.padID)
	set(&t.unk, t.names["unk_token"], nil)
	if id, ok := t.ids[t.names["eos_token"]]; ok && t.names["eos_token"] != "" {
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
