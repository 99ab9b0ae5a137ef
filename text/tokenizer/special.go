package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"conquer/internal/pyjson"
	"conquer/internal/wrongfile"
)

// specialRoles are the fields that every tokenizer_config.json may have, in the
// order in which their tokens are added.
var specialRoles = []string{"bos_token", "eos_token", "unk_token", "sep_token", "pad_token",
	"cls_token", "mask_token"}

// specialTokens are the tokens that the files of a folder name beside its
// tokenizer. The rules are those of transformers' AutoTokenizer:
//
//   - tokenizer_config.json names tokens by role (eos_token, and others such as
//     image_token), extra_special_tokens or additional_special_tokens more of them,
//     and added_tokens_decoder lists added tokens with their properties;
//   - without added_tokens_decoder, special_tokens_map.json has precedence over
//     tokenizer_config.json, and added_tokens.json lists added tokens.
//
// A token that the tokenizer lacks gets the next free id, in the order of the ids in
// the lists, then of the roles, then of the extra tokens.
type specialTokens struct {
	roles  map[string]*addedToken // by field; nil for a token that is null
	order  []string               // of the fields that are not in specialRoles
	extra  []*addedToken          // extra_special_tokens
	more   []*addedToken          // additional_special_tokens, the older name
	listed []*addedToken          // added_tokens_decoder or added_tokens.json, by id
}

// field is a field of a JSON object.
type field struct {
	name  string
	value json.RawMessage
}

// parseFields reads a JSON object and keeps the order of its fields.
func parseFields(data []byte) (fields []field, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if start, err := d.Token(); err != nil {
		return nil, fmt.Errorf("expected a JSON object: %w", err)
	} else if start != json.Delim('{') {
		return nil, fmt.Errorf("expected a JSON object, not %v", start)
	}
	fields = []field{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		f := field{name: name.(string)}
		if err := d.Decode(&f.value); err != nil {
			return nil, err
		}
		fields = append(fields, f)
	}
	_, err = d.Token()
	return fields, err
}

// readFields reads the object in a file, nil if there is no file.
func readFields(path string) ([]field, error) {
	data, err := readFile(path, maxSmallFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var fields []field
	if err == nil {
		fields, err = parseFields(pyjson.Standard(data))
		err = wrongfile.Explain(data, wrongfile.JSON, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return fields, nil
}

// parseToken reads a token: a string, or an object with its properties. It is nil
// for null and "".
func parseToken(raw json.RawMessage) (*addedToken, error) {
	var name *string
	if json.Unmarshal(raw, &name) == nil {
		if name == nil || *name == "" {
			return nil, nil
		}
		return &addedToken{Content: *name, Special: true}, nil
	}
	var c struct {
		Normalized *bool `json:"normalized"`
		Special    *bool `json:"special"`
	}
	token := new(addedToken)
	if err := errors.Join(json.Unmarshal(raw, &c), json.Unmarshal(raw, token)); err != nil {
		return nil, fmt.Errorf("%.60s is not a token: %w", raw, err)
	}
	if token.Special = c.Special == nil || *c.Special; c.Normalized == nil {
		token.Normalized = !token.Special
	}
	if token.Content == "" {
		return nil, nil
	}
	return token, nil
}

// setConfig takes the tokens of a tokenizer_config.json.
func (s *specialTokens) setConfig(fields []field) error {
	if err := s.setFields(fields); err != nil {
		return err
	}
	i := slices.IndexFunc(fields, func(f field) bool { return f.name == "added_tokens_decoder" })
	if i < 0 || string(fields[i].value) == "null" {
		return nil
	}
	byID, err := parseFields(fields[i].value)
	if err != nil {
		return fmt.Errorf("added_tokens_decoder: %w", err)
	}
	s.listed = []*addedToken{}
	for _, f := range byID {
		token, err := parseToken(f.value)
		if err == nil && token == nil {
			continue
		}
		if err == nil {
			err = json.Unmarshal([]byte(f.name), &token.ID)
		}
		if err != nil {
			return fmt.Errorf("added_tokens_decoder, %q: %w", f.name, err)
		}
		s.listed = append(s.listed, token)
	}
	s.sortListed()
	return nil
}

// setFields takes the tokens that fields name, which replace those known before.
func (s *specialTokens) setFields(fields []field) (err error) {
	if s.roles == nil {
		s.roles = map[string]*addedToken{}
	}
	for _, f := range fields {
		switch {
		case f.name == "extra_special_tokens" && bytes.HasPrefix(f.value, []byte("{")):
			inner, err := parseFields(f.value)
			if err == nil {
				err = s.setRoles(inner)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		case f.name == "extra_special_tokens":
			var list []*addedToken
			list, err = parseTokens(f.value)
			s.extra = append(s.extra, list...)
		case f.name == "additional_special_tokens":
			s.more, err = parseTokens(f.value)
		case strings.HasSuffix(f.name, "_token") && len(f.value) > 0 &&
			(f.value[0] == '"' || f.value[0] == '{' || string(f.value) == "null"):
			err = s.setRoles([]field{f})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return nil
}

// setRoles takes tokens by the names of their roles.
func (s *specialTokens) setRoles(fields []field) error {
	for _, f := range fields {
		token, err := parseToken(f.value)
		if err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if _, known := s.roles[f.name]; !known && !slices.Contains(specialRoles, f.name) {
			s.order = append(s.order, f.name)
		}
		s.roles[f.name] = token
	}
	return nil
}

// parseTokens reads a list of tokens.
func parseTokens(raw json.RawMessage) (list []*addedToken, err error) {
	var items []json.RawMessage
	if err := json.Unmarshal(raw, &items); err != nil {
		return nil, err
	}
	for _, item := range items {
		token, err := parseToken(item)
		if err != nil {
			return nil, err
		}
		if token != nil {
			list = append(list, token)
		}
	}
	return list, nil
}

// listIDs takes the tokens of an added_tokens.json. Those that no field names are
// not special.
func (s *specialTokens) listIDs(ids map[string]int32) {
	special := map[string]bool{}
	for _, token := range slices.Concat(s.named(), s.extras()) {
		special[token.Content] = true
	}
	for content, id := range ids {
		if content != "" {
			s.listed = append(s.listed, &addedToken{ID: id, Content: content,
				Special: special[content], Normalized: !special[content]})
		}
	}
	s.sortListed()
}

func (s *specialTokens) sortListed() {
	slices.SortFunc(s.listed, func(a, b *addedToken) int { return int(a.ID) - int(b.ID) })
}

// named returns the tokens of the roles, in order.
func (s *specialTokens) named() (list []*addedToken) {
	for _, role := range slices.Concat(specialRoles, s.order) {
		if token := s.roles[role]; token != nil {
			list = append(list, token)
		}
	}
	return list
}

// extras returns the special tokens without a role.
func (s *specialTokens) extras() []*addedToken {
	if len(s.extra) > 0 {
		return s.extra
	}
	return s.more
}

// values returns the tokens by role, as a chat template sees them.
func (s *specialTokens) values() map[string]string {
	m := map[string]string{}
	for role, token := range s.roles {
		if token != nil {
			m[role] = token.Content
		}
	}
	return m
}

// setDefault names the token of a role that no file mentions.
func (s *specialTokens) setDefault(role, content string) {
	if s.roles == nil {
		s.roles = map[string]*addedToken{}
	}
	if _, known := s.roles[role]; !known {
		s.roles[role] = &addedToken{Content: content, Special: true}
	}
}

// addTo appends the tokens to the added tokens of a tokenizer.json.
func (s *specialTokens) addTo(spec *fileSpec) {
	known := map[string]bool{}
	for _, token := range spec.AddedTokens {
		known[token.Content] = true
	}
	isNamed := map[string]bool{}
	for _, token := range s.named() {
		isNamed[token.Content] = true
	}
	for _, token := range s.listed {
		known[token.Content] = true
		added := *token
		added.Special = added.Special || isNamed[added.Content]
		spec.AddedTokens = append(spec.AddedTokens, added)
	}
	for _, token := range slices.Concat(s.named(), s.extras()) {
		if known[token.Content] {
			continue
		}
		known[token.Content] = true
		added := *token
		added.Special = true
		spec.AddedTokens = append(spec.AddedTokens, added)
	}
}
