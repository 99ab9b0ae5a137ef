package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"conquer/text/tokenizer"
)

// Layout names a kind of record.
type Layout string

const (
	// AnyLayout detects the layout of each record from the values of its fields.
	AnyLayout Layout = ""
	// Instruction records have the fields instruction and output, and optionally
	// input and system. Only the output has loss.
	Instruction Layout = "instruction"
	// Chat records have the field messages, a list of {role, content}, or
	// conversations, a list of {from, value} as in ShareGPT. Only the assistant's
	// turns have loss.
	Chat Layout = "chat"
	// Completion records have the fields prompt and completion: strings that follow
	// each other as they are, or lists of messages as in Chat. Only the completion
	// has loss.
	Completion Layout = "completion"
	// RawText is plain text: whole files, or records with the field text. Every
	// token has loss.
	RawText Layout = "text"
	// Tokens records have the field tokens, the ids of a text. Every token has
	// loss.
	Tokens Layout = "tokens"
	// Preference records have the fields prompt, chosen and rejected: strings, or
	// lists of messages as in Chat. Each becomes one sample of two texts. Only the
	// answers have loss.
	Preference Layout = "preference"
	// Rated records have the fields prompt and completion, as in Completion, and
	// label: true if the answer is desirable. A record of Preference is two of
	// them. Only the answer has loss.
	Rated Layout = "rated"
)

// layouts are the layouts that can be required.
var layouts = []Layout{Instruction, Chat, Completion, RawText, Tokens, Preference, Rated}

const knownLayouts = "known are instruction (instruction, input, output), " +
	"chat (messages of role and content, or conversations of from and value), " +
	"completion (prompt, completion), text (text), tokens (tokens) and, for objectives that " +
	"compare or rate answers, preference (prompt, chosen, rejected) and rated (prompt, " +
	"completion, label); other names are given with " +
	"--columns, such as instruction=question"

// maxRecord is the most bytes of a record. Encoding one takes up to 50 times as much memory.
var maxRecord = 64 << 20 // tests lower it

func errTooLong(most int) error {
	return fmt.Errorf("the record has more than %d bytes: divide it", most)
}

// longestRecord is the most bytes of a record's text in files of the given size.
func longestRecord(packed int64) int { return min(maxRecord, longestFor(packed)) }

// longestFor is the most bytes of one thing in files of the given size: a few bytes may unpack to
// one long record.
func longestFor(packed int64) int {
	const few, ratio = 4 << 20, 16
	return max(few, int(packed)*ratio)
}

// most returns the most bytes of a record.
func (o Options) most() int {
	if o.longest > 0 {
		return o.longest
	}
	return maxRecord
}

// size returns the bytes of the text of a record.
func (r *record) size() int {
	n := len(r.text) + len(r.input) + len(r.prompt) + len(r.completion) + len(r.inputs.Tools) +
		len(r.inputs.Documents) + len(r.inputs.Kwargs)
	for _, list := range [][]tokenizer.Message{r.messages, r.pair.prompt, r.pair.chosen,
		r.pair.rejected} {
		for _, m := range list {
			n += len(m.Role) + len(m.Content) + len(m.Fields)
		}
	}
	return n
}

// record is one entry of a data file, not yet encoded.
type record struct {
	layout     Layout
	text       string              // of RawText: the text or one block of it
	lead       string              // end of the previous block, "" for the first
	open       bool                // another block follows
	input      string              // of Instruction
	messages   []tokenizer.Message // of Instruction, Chat, and Completion if it is of messages
	silent     []bool              // messages without loss; nil for none
	given      int                 // how many messages a completion's prompt has
	prompt     string              // of Completion
	completion string              // of Completion
	inputs     tokenizer.ChatInputs
	ids        []int32    // of Tokens
	pair       preference // of Preference
	rating     Rating     // of Rated, unless it is a pair
	unpaired   bool       // the pair is two rated answers
}

// preference is a conversation and two answers to it.
type preference struct {
	prompt           []tokenizer.Message
	chosen, rejected []tokenizer.Message
}

// layoutOf detects a record's layout from the fields it has. If wanted is
// Preference or Rated, a record may have other fields beside.
func layoutOf(wanted Layout, has func(field string) bool) Layout {
	pair := has("chosen") && has("rejected")
	switch {
	case pair && (wanted == Preference || wanted == Rated):
		return wanted
	case wanted == Rated && has("prompt") && has("completion") && has("label"):
		return Rated
	case slices.ContainsFunc(conversationFields, has):
		return Chat
	case has("instruction"):
		return Instruction
	case has("prompt") && has("completion"):
		return Completion
	case has("tokens"):
		return Tokens
	case has("text"):
		return RawText
	case pair:
		return Preference
	}
	return AnyLayout
}

// checkLayout returns an error unless a record of layout found is allowed where
// layout wanted is required.
func checkLayout(found, wanted Layout) error {
	switch {
	case found == Preference && wanted != Preference:
		return errors.New("the record is a pair of answers, chosen and rejected: " +
			"give an objective that learns from pairs, such as --objective dpo")
	case wanted == Rated && found != Rated:
		return fmt.Errorf("a record of layout %s, expected a rated answer: the objective needs "+
			"the fields prompt, completion and label; other objectives learn from this layout",
			found)
	case wanted == Preference && found != Preference:
		return fmt.Errorf("a record of layout %s, expected a pair: the objective needs the fields "+
			"prompt, chosen and rejected; other objectives learn from this layout", found)
	case wanted != AnyLayout && wanted != found:
		return fmt.Errorf("a record of layout %s, expected %s", found, wanted)
	}
	return nil
}

// jsonFields are the members of a record's JSON object that are not null.
type jsonFields map[string]json.RawMessage

func (f jsonFields) has(name string) bool { _, ok := f[name]; return ok }

// filled reports whether a member has a value that is not empty. A table has each
// column in each row, so an empty value says that the record has no such field.
func (f jsonFields) filled(name string) bool {
	raw, ok := f[name]
	switch string(raw) {
	case `""`, "[]", "{}":
		return false
	}
	return ok
}

// layout detects the layout of a record.
func (f jsonFields) layout(wanted Layout) Layout {
	if found := layoutOf(wanted, f.filled); found != AnyLayout {
		return found
	}
	return layoutOf(wanted, f.has)
}

// readFields reads the members of a record's object. Null is the same as missing,
// at every depth, so that JSON and columns mean the same.
func readFields(data []byte, check *columnCheck) (jsonFields, error) {
	var fields jsonFields
	if err := json.Unmarshal(data, &fields); err != nil {
		if _, wrongType := errors.AsType[*json.UnmarshalTypeError](err); wrongType {
			return nil, fmt.Errorf("expected an object, got %.40s", data)
		}
		return nil, jsonProblem(err)
	}
	if fields == nil {
		return nil, errors.New("expected an object, got null")
	}
	check.note(fields)
	if !bytes.Contains(data, []byte("null")) {
		return fields, nil
	}
	for name, raw := range fields {
		if string(raw) == "null" {
			delete(fields, name)
			continue
		}
		kept, err := tokenizer.DropNulls(raw)
		if err != nil {
			return nil, err
		}
		fields[name] = kept
	}
	return fields, nil
}

// text returns a member that is a string, or "" if it is missing.
func (f jsonFields) text(name string) (s string, err error) {
	raw := f[name]
	if raw == nil {
		return "", nil
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("field %q is %.40s, expected a string", name, raw)
	}
	return s, nil
}

// requiredText is text for a member that layout must have.
func (f jsonFields) requiredText(name string, layout Layout) (string, error) {
	if f[name] == nil {
		return "", fmt.Errorf("field %q is missing, which the layout %s needs; a column of "+
			"another name is given with --columns %[1]s=NAME", name, layout)
	}
	return f.text(name)
}

// parseRecord reads a record from JSON. If there are names of columns, check notes which of them
// the record has.
func parseRecord(data []byte, opts Options, check *columnCheck) (r record, err error) {
	fields, err := readFields(data, check)
	if err != nil {
		return r, err
	}
	if opts.Columns == nil {
		return fields.record(opts.Layout)
	}
	names := slices.Sorted(maps.Keys(fields))
	opts.Columns.rename(fields)
	r, err = fields.record(opts.Layout)
	return r, opts.Columns.explain(err, names)
}

// record reads a record of the given layout.
func (f jsonFields) record(layout Layout) (r record, err error) {
	r.layout = f.layout(layout)
	if r.layout == AnyLayout {
		names := slices.Sorted(maps.Keys(f))
		return r, fmt.Errorf("no known layout has the fields %s; %s", someNames(names),
			knownLayouts)
	}
	if err := checkLayout(r.layout, layout); err != nil {
		return r, err
	}
	switch r.layout {
	case Chat:
		err = r.parseChat(f)
	case Preference:
		r.pair, err = parsePair(f)
	case Rated:
		err = r.parseRated(f)
	case Instruction:
		err = r.parseInstruction(f)
	case Completion:
		err = r.parseCompletion(f)
	case Tokens:
		r.ids, err = parseTokens(f["tokens"])
	case RawText:
		r.text, err = f.requiredText("text", r.layout)
	}
	if err == nil && r.layout != RawText && r.layout != Tokens {
		err = r.parseInputs(f)
	}
	return r, err
}

// parseInputs reads what a chat template gets beside the messages.
func (r *record) parseInputs(fields jsonFields) error {
	for _, input := range []struct {
		name string
		to   *json.RawMessage
	}{
		{"tools", &r.inputs.Tools},
		{"documents", &r.inputs.Documents},
		{"chat_template_kwargs", &r.inputs.Kwargs},
	} {
		// A column of text holds a value that is missing as the JSON null.
		if fields.filled(input.name) && string(fields[input.name]) != `"null"` {
			*input.to = tokenizer.DecodeText(fields[input.name])
		}
	}
	var tools []json.RawMessage
	if json.Unmarshal(r.inputs.Tools, &tools) == nil {
		for i := range tools {
			tools[i] = tokenizer.DecodeText(tools[i])
		}
		r.inputs.Tools = tokenizer.JoinList(tools)
	}
	return r.inputs.Check()
}

// parseCompletion reads a prompt and a completion: two strings, or messages.
func (r *record) parseCompletion(fields jsonFields) (err error) {
	if json.Unmarshal(decodeMessages(fields["prompt"]), &r.prompt) == nil &&
		json.Unmarshal(decodeMessages(fields["completion"]), &r.completion) == nil {
		return nil
	}
	prompt, _, err := parseTurns(fields, "prompt", "user")
	if err != nil {
		return err
	}
	completion, silent, err := parseAnswers(fields, "completion")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(completion, isAnswer) {
		return fmt.Errorf("none of the messages in %q has the role %q, so there is nothing to "+
			"learn",
			"completion", assistantRole)
	}
	r.prompt, r.completion = "", ""
	r.messages, r.given = slices.Concat(prompt, completion), len(prompt)
	if silent != nil {
		r.silent = slices.Concat(make([]bool, len(prompt)), silent)
	}
	return nil
}

// parseRated reads an answer with its label, or a pair as two answers.
func (r *record) parseRated(fields jsonFields) (err error) {
	if fields.filled("chosen") && fields.filled("rejected") {
		r.unpaired = true
		r.pair, err = parsePair(fields)
		return err
	}
	switch label := strings.ToLower(strings.Trim(string(fields["label"]), `"`)); label {
	case "true", "1":
		r.rating = Desirable
	case "false", "0":
		r.rating = Undesirable
	default:
		return fmt.Errorf("field \"label\" is %.40s, expected true or false", fields["label"])
	}
	return r.parseCompletion(fields)
}

func (r *record) parseInstruction(fields jsonFields) error {
	question, err := fields.requiredText("instruction", r.layout)
	if err != nil {
		return err
	}
	input, err := fields.text("input")
	if err != nil {
		return err
	}
	if strings.TrimSpace(input) != "" {
		r.input = input
	}
	answer, err := fields.requiredText("output", r.layout)
	if err != nil {
		return err
	}
	system, err := fields.text("system")
	if err != nil {
		return err
	}
	if system != "" {
		r.messages = append(r.messages, tokenizer.Message{Role: "system", Content: system})
	}
	r.messages = append(r.messages,
		tokenizer.Message{Role: "user", Content: question},
		tokenizer.Message{Role: assistantRole, Content: answer})
	return nil
}

func parseTokens(raw json.RawMessage) (ids []int32, err error) {
	var list []*int32 // pointers, so that null is not read as 0
	if json.Unmarshal(raw, &list) != nil || slices.Contains(list, nil) {
		return nil, fmt.Errorf("field \"tokens\" is %.40s, expected a list of token ids", raw)
	}
	for _, id := range list {
		ids = append(ids, *id)
	}
	return ids, nil
}

func isAnswer(m tokenizer.Message) bool { return m.Role == assistantRole }

// parsePair reads a preference record. prompt, chosen and rejected are strings
// (one turn of the user and one of the assistant each) or lists of messages. If
// prompt is missing, chosen and rejected are whole conversations that share
// their first messages.
func parsePair(fields jsonFields) (p preference, err error) {
	var wholeChosen, wholeRejected bool
	if p.prompt, _, err = parseTurns(fields, "prompt", "user"); err != nil {
		return p, err
	}
	if p.chosen, wholeChosen, err = parseTurns(fields, "chosen", assistantRole); err != nil {
		return p, err
	}
	if p.rejected, wholeRejected, err = parseTurns(fields, "rejected", assistantRole); err != nil {
		return p, err
	}
	switch {
	case wholeChosen != wholeRejected:
		return p, errors.New("one of chosen and rejected begins with the prompt, " +
			"the other does not")
	case wholeChosen:
		n := tokenizer.CommonPrefix(p.chosen, p.rejected)
		if n = min(n, len(p.chosen)-1, len(p.rejected)-1); n < 1 {
			return p, errors.New("chosen and rejected do not begin with the same message")
		}
		p.prompt, p.chosen, p.rejected = p.chosen[:n], p.chosen[n:], p.rejected[n:]
	case len(p.prompt) == 0:
		return p, errors.New("field \"prompt\" is missing, " +
			"and chosen and rejected are not conversations that begin with a prompt; a column of " +
			"another name is given with --columns prompt=NAME")
	}
	for name, answer := range map[string][]tokenizer.Message{"chosen": p.chosen,
		"rejected": p.rejected} {
		if n := len(answer); n == 0 || !isAnswer(answer[n-1]) {
			return p, fmt.Errorf("field %q does not end with a message of the role %q",
				name, assistantRole)
		}
	}
	if system, err := fields.text("system"); err == nil && system != "" {
		first := tokenizer.Message{Role: "system", Content: system}
		p.prompt = slices.Insert(slices.Clone(p.prompt), 0, first)
	}
	return p, nil
}

// parseTurns reads a field that is a string, the content of one message of the
// given role, or a list of messages. whole reports that the list begins with a
// prompt. A missing field gives no messages.
func parseTurns(fields jsonFields, name, role string) (
	messages []tokenizer.Message, whole bool, err error,
) {
	raw, ok := fields[name]
	if !ok {
		return nil, false, nil
	}
	raw = decodeMessages(raw)
	var content string
	if json.Unmarshal(raw, &content) == nil {
		return []tokenizer.Message{{Role: role, Content: content}}, false, nil
	}
	messages, _, err = parseMessages(name, raw)
	return messages, len(messages) > 0 && !isAnswer(messages[0]), err
}

// parseAnswers reads a field that is a string, the content of one message of the assistant, or a
// list of messages. silent tells which of them have no loss, as in parseMessages.
func parseAnswers(fields jsonFields, name string) (messages []tokenizer.Message, silent []bool,
	err error) {
	raw := decodeMessages(fields[name])
	var content string
	if json.Unmarshal(raw, &content) == nil {
		return []tokenizer.Message{{Role: assistantRole, Content: content}}, nil, nil
	}
	return parseMessages(name, raw)
}

// decodeMessages returns the messages that a string holds as JSON, as in a CSV file, and any other
// value as it is.
func decodeMessages(raw json.RawMessage) json.RawMessage {
	var messages []struct {
		Role    *string
		Content json.RawMessage
	}
	inner := tokenizer.DecodeText(raw)
	if json.Unmarshal(inner, &messages) != nil || len(messages) == 0 {
		return raw
	}
	for _, m := range messages {
		if m.Role == nil || m.Content == nil {
			return raw
		}
	}
	return inner
}

// jsonProblem describes an error of the JSON decoder.
func jsonProblem(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("the file ends inside a record")
	}
	return fmt.Errorf("not JSON: %w", err)
}
