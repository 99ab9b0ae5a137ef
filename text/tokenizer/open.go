package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
)

// source is what Save needs: the folder the tokenizer was opened from, if its
// files are already what others load, else the tokenizer.json made for it.
type source struct {
	folder string
	files  []string
	spec   *fileSpec
}

// companions are the files beside tokenizer.json that belong to a tokenizer.
var companions = []string{
	"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
	"chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt",
}

// CharTokenizer is the name under which Open knows the tokenizer of IBM's
// foundation-model-stack in which every character is its own token.
const CharTokenizer = "char_tokenizer"

// Open opens a tokenizer. path is one of
//
//   - a model folder with a tokenizer.json or, failing that, a tokenizer.model;
//   - one of these two files (files beside it are used as in a folder);
//   - the name char_tokenizer.
//
// A folder's tokenizer_config.json and special_tokens_map.json name the special
// tokens and hold the chat template, its generation_config.json and config.json
// the ids that end a turn. For GGUF files see [FromGGUF].
func Open(path string) (*Tokenizer, error) {
	if path == CharTokenizer {
		return openChars()
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	folder, file := filepath.Dir(path), path
	if info.IsDir() {
		folder, file = path, ""
		for _, name := range []string{"tokenizer.json", "tokenizer.model"} {
			if _, err := os.Stat(filepath.Join(path, name)); err == nil {
				file = filepath.Join(path, name)
				break
			}
		}
		if file == "" {
			return nil, fmt.Errorf("tokenizer: %s holds neither tokenizer.json nor tokenizer.model", path)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	about, err := readFolder(folder)
	if err != nil {
		return nil, err
	}
	t, err := parseFile(data, about)
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %s: %w", file, err)
	}
	if t.source.spec == nil {
		t.source.folder = folder
		for _, name := range companions {
			if _, err := os.Stat(filepath.Join(folder, name)); err == nil {
				t.source.files = append(t.source.files, name)
			}
		}
	}
	return t, nil
}

// parseFile reads a tokenizer.json or tokenizer.model.
func parseFile(data []byte, about *folderInfo) (*Tokenizer, error) {
	switch {
	case len(data) == 0:
		return nil, fmt.Errorf("the file is empty")
	case bytes.HasPrefix(data, []byte("GGUF")):
		return nil, fmt.Errorf("it is a GGUF file, whose tokenizer serves its own model alone: give a folder with a tokenizer.json or a tokenizer.model")
	case bytes.HasPrefix(data, byteOrderMark):
		return nil, fmt.Errorf("it begins with a byte order mark, which JSON does not have: save it without")
	case tiktokenLine.Match(data):
		return nil, fmt.Errorf("it is a list of ranks as Llama 3 has it, which is not read: give the folder of the model's tokenizer.json with --tokenizer")
	}
	read, isJSON := about.specFromSentencePiece, looksLikeJSON(data)
	if isJSON {
		read = parseSpec
	} else if looksLikeText(data) {
		return nil, fmt.Errorf("it is text that begins with %.40q, neither a tokenizer.json nor a SentencePiece model", data)
	}
	spec, err := read(data)
	if err != nil {
		return nil, err
	}
	t, err := spec.build()
	if err != nil {
		return nil, err
	}
	if !isJSON {
		t.source.spec = spec // there is no tokenizer.json to copy
	}
	about.apply(t)
	return t, nil
}

// tiktokenLine is how the file begins that Meta gives Llama 3: a token in base64 and its rank.
var tiktokenLine = regexp.MustCompile(`^[A-Za-z0-9+/]+={0,2} [0-9]+\n`)

var byteOrderMark = []byte("\xEF\xBB\xBF")

// looksLikeJSON tells a tokenizer.json, whatever its name, from a tokenizer.model, which begins with the tag of its first
// piece, a line feed.
func looksLikeJSON(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimLeft(data, " \t\r\n"), []byte("{")) && (data[0] != '\n' || looksLikeText(data))
}

// looksLikeText reports that the beginning of data has no control characters, of which a tokenizer.model is full.
func looksLikeText(data []byte) bool {
	return !bytes.ContainsFunc(data[:min(len(data), 1024)], func(r rune) bool { return r < ' ' && r != '\n' && r != '\r' && r != '\t' })
}

// folderInfo is what the small files beside a tokenizer say.
type folderInfo struct {
	bos, eos, unk, pad string
	bosID, padID       *int32
	eosIDs             []int32
	addBOS, addEOS     *bool
	legacyOff          bool // of a tokenizer.model: see setSentencePiece
	template           string
}

// nameOrToken is a token in a configuration: a string, or an object with its
// content.
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

// idOrIDs is one id or a list of them.
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

// readFolder reads the files that say what the special tokens are. Each is
// optional, but one that is there must be well formed.
func readFolder(folder string) (*folderInfo, error) {
	about := new(folderInfo)
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
		if err := readJSON(filepath.Join(folder, name), &c); err != nil {
			return nil, err
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
			template, err := parseTemplate(c.Template)
			if err != nil {
				return nil, fmt.Errorf("%s: chat_template: %w", filepath.Join(folder, name), err)
			}
			about.template = template
		}
	}
	var separate struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if err := readJSON(filepath.Join(folder, "chat_template.json"), &separate); err != nil {
		return nil, err
	}
	if template, err := parseTemplate(separate.Template); err == nil && template != "" {
		about.template = template
	}
	if data, err := os.ReadFile(filepath.Join(folder, "chat_template.jinja")); err == nil {
		about.template = string(data)
	}
	for _, name := range []string{"generation_config.json", "config.json"} {
		var c struct {
			BOS idOrIDs `json:"bos_token_id"`
			EOS idOrIDs `json:"eos_token_id"`
			Pad idOrIDs `json:"pad_token_id"`
		}
		if err := readJSON(filepath.Join(folder, name), &c); err != nil {
			return nil, err
		}
		about.eosIDs = append(about.eosIDs, c.EOS...)
		if about.bosID == nil && len(c.BOS) > 0 {
			about.bosID = &c.BOS[0]
		}
		if about.padID == nil && len(c.Pad) > 0 {
			about.padID = &c.Pad[0]
		}
	}
	return about, nil
}

func readJSON(path string, into any) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(data, into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// parseTemplate reads a chat template: a string, or a list of named ones of
// which "default" counts.
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

// apply names t's special tokens.
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

func (t *Tokenizer) valid(id int32) bool {
	return id >= 0 && int(id) < len(t.tokens) && t.tokens[id] != ""
}

func (t *Tokenizer) addEOS(id int32) {
	if t.valid(id) && !slices.Contains(t.eos, id) {
		t.eos = append(t.eos, id)
	}
}

// openChars is FMS's CharTokenizer: the token of a character is its code, 0 for
// codes of 256 and more; 2 begins and 3 ends a text (ASCII's STX and ETX).
func openChars() (*Tokenizer, error) {
	zero := "\x00"
	spec := newSpec(256)
	spec.Decoder = json.RawMessage(`{"type":"Fuse"}`)
	spec.PostProcessor = templateProcessing("\x02", 2, "", 0)
	spec.Model.UnkToken = &zero
	for c := range int32(256) {
		spec.Model.Vocab[string(rune(c))] = c
	}
	t, err := spec.build()
	if err != nil {
		return nil, err
	}
	t.bos, t.eos, t.source.spec = 2, []int32{3}, spec
	return t, nil
}
