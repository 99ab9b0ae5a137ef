// Package toolcall finds reasoning and calls of tools in what a model writes. The form of both is
// that of the model's chat template.
package toolcall

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"conquer/text/tokenizer"
)

// Format is how a model writes its reasoning and its calls.
type Format struct {
	// Before is what precedes the first call, Between what separates two, and After what follows
	// the last one. Single says that an answer has one call at most.
	Before, Between, After string
	Single                 bool
	// Arguments is the member of a call's JSON object that holds the arguments, beside "name". If
	// it is "", a call is a name, Separator, and the arguments.
	Arguments, Separator string
	// Think is what begins and ends the reasoning; "" if the template knows none.
	Think [2]string
	// Variable is the variable of the template that holds the tools.
	Variable string
	// Optional is a token that may precede Before.
	Optional string
}

// Errors of [Detect].
var (
	ErrNotShown = errors.New("the model's chat template does not show tools to the model")
	ErrUnknown  = errors.New("the model's chat template writes calls of tools in a form that is " +
		"not known here")
)

// thinking are the known beginnings and ends of reasoning.
var thinking = [][2]string{{"<think>", "</think>"}, {"[THINK]", "[/THINK]"}}

// Reasoning returns what begins and ends the reasoning in a chat template, "" if there is none.
func Reasoning(template string) [2]string {
	for _, pair := range thinking {
		if strings.Contains(template, pair[1]) {
			return pair
		}
	}
	return [2]string{}
}

// Names, texts and arguments that Detect has a template write.
const (
	probeName     = "probe_alpha"
	probeOther    = "probe_beta"
	probeKey      = "probe_key"
	probeID       = "probe000" // and a digit
	probeQuestion = "probe question"
	probeAnswer   = "probe answer"
)

// Detect finds the format of calls by rendering a conversation with calls. A template that shows
// tools but not the calls of earlier turns names the form in its instructions. The error is
// ErrNotShown, ErrUnknown or one of the template.
func Detect(t *tokenizer.Tokenizer) (*Format, error) {
	f := &Format{Variable: "tools", Think: Reasoning(t.ToolTemplate())}
	if _, ok := t.ID("<|python_tag|>"); ok {
		f.Optional = "<|python_tag|>"
	}
	prompt, err := f.prompt(t)
	if err != nil {
		return nil, err
	}
	if !strings.Contains(prompt, probeName) {
		f.Variable = "xml_tools" // the name in some templates
		if prompt, err = f.prompt(t); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(prompt, probeName) {
		return nil, ErrNotShown
	}
	written := *f
	if written.fromCalls(t, prompt) {
		return &written, nil
	}
	if f.fromInstructions(prompt) {
		return f, nil
	}
	return nil, ErrUnknown
}

// Inputs are the variables of a template that show it a list of tools.
func (f *Format) Inputs(tools json.RawMessage) tokenizer.ChatInputs {
	if f.Variable == "tools" {
		return tokenizer.ChatInputs{Tools: tools}
	}
	kwargs, _ := json.Marshal(map[string]json.RawMessage{f.Variable: tools})
	return tokenizer.ChatInputs{Kwargs: kwargs}
}

// prompt renders a question with two tools.
func (f *Format) prompt(t *tokenizer.Tokenizer) (string, error) {
	return f.render(t, true, nil)
}

// render renders a question with two tools, and the answer after it if it is not nil.
func (f *Format) render(t *tokenizer.Tokenizer, prompt bool, answer *tokenizer.Message) (string,
	error) {
	var tools []string
	for _, name := range []string{probeName, probeOther} {
		tools = append(tools, fmt.Sprintf(`{"type": "function", "function": {"name": %q, `+
			`"description": "", "parameters": {"type": "object", "properties": {%q: `+
			`{"type": "string", "description": ""}}, "required": [%q]}}}`, name, probeKey,
			probeKey))
	}
	c := tokenizer.Conversation{Messages: []tokenizer.Message{{Role: "user",
		Content: probeQuestion}},
		ChatInputs: f.Inputs(json.RawMessage("[" + strings.Join(tools, ", ") + "]"))}
	if answer != nil {
		c.Messages = append(c.Messages, *answer)
	}
	return t.Render(c, prompt)
}

// calls is an answer that calls tools.
func calls(names ...string) *tokenizer.Message {
	var list []string
	for i, name := range names {
		list = append(list, fmt.Sprintf(`{"id": "%s%d", "type": "function", "function": `+
			`{"name": %q, "arguments": {%q: "v"}}}`, probeID, i, name, probeKey))
	}
	return &tokenizer.Message{Role: "assistant", Null: true,
		Fields: `{"tool_calls":[` + strings.Join(list, ", ") + `]}`}
}

// fromCalls reads the format off two conversations, with one call and with two. prompt is the
// question alone. It reports whether the template writes calls as they are known here.
func (f *Format) fromCalls(t *tokenizer.Tokenizer, prompt string) bool {
	one, err := f.render(t, false, calls(probeName))
	if err != nil {
		return false
	}
	_, start, _ := cutLast(prompt, probeQuestion)
	if f.Think[0] != "" {
		start = strings.TrimSuffix(strings.TrimRightFunc(start, unicode.IsSpace), f.Think[0])
	}
	_, turn, ok := cutLast(one, probeQuestion)
	if !ok {
		return false
	}
	turn = afterPrompt(turn, start)
	if _, rest, ok := strings.Cut(turn, f.Think[1]); f.Think[1] != "" && ok {
		turn = strings.TrimLeftFunc(rest, unicode.IsSpace)
	}
	before, size, ok := f.callIn(turn, probeName)
	if !ok {
		return false
	}
	f.Before, f.After = turn[:before], f.withoutEnd(t, turn[before+size:])
	separator := f.Separator
	two, err := f.render(t, false, calls(probeName, probeOther))
	if err != nil {
		f.Single = true
		return true
	}
	_, turn, _ = cutLast(two, probeQuestion)
	first, size, ok1 := f.callIn(turn, probeName)
	second, _, ok2 := f.callIn(turn, probeOther)
	if !ok1 || !ok2 || second < first+size {
		f.Single = true
		return true
	}
	f.Between = turn[first+size : second]
	return separator == f.Separator && // else the calls are numbered
		!strings.Contains(f.Before+f.Between+f.After+f.Separator, probeID)
}

// afterPrompt removes the start of the assistant's turn.
func afterPrompt(turn, start string) string {
	n := tokenizer.CommonPrefix([]byte(turn), []byte(start))
	if n < len(start) { // do not cut a marker
		n = strings.LastIndexAny(turn[:n], ">]\n") + 1
	}
	return turn[n:]
}

// callIn finds the call of a tool in a text, and sets how it is written.
func (f *Format) callIn(text, name string) (at, size int, ok bool) {
	n := strings.Index(text, name)
	if n < 0 {
		return 0, 0, false
	}
	if strings.HasSuffix(text[:n], `"`) {
		at = strings.LastIndexByte(text[:n], '{')
		if at < 0 || strings.ContainsRune(text[:at], '{') && !strings.Contains(text[:at],
			probeKey) {
			return 0, 0, false
		}
		object, size := jsonAt(text[at:])
		var members map[string]json.RawMessage
		if json.Unmarshal(object, &members) != nil ||
			string(members["name"]) != strconv.Quote(name) {
			return 0, 0, false
		}
		for key, value := range members {
			if value[0] == '{' && bytes.Contains(value, []byte(probeKey)) {
				f.Arguments = key
				return at, size, true
			}
		}
		return 0, 0, false
	}
	brace := strings.IndexByte(text[n:], '{')
	if brace < 0 {
		return 0, 0, false
	}
	object, size := jsonAt(text[n+brace:])
	if !bytes.Contains(object, []byte(probeKey)) || brace == len(name) {
		return 0, 0, false
	}
	f.Separator = text[n+len(name) : n+brace]
	return n, brace + size, true
}

// jsonAt returns the JSON value at the beginning of a text, and its length.
func jsonAt(text string) (value json.RawMessage, size int) {
	d := json.NewDecoder(strings.NewReader(text))
	if d.Decode(&value) != nil {
		return nil, 0
	}
	return value, int(d.InputOffset())
}

// withoutEnd removes what ends every turn of the assistant.
func (f *Format) withoutEnd(t *tokenizer.Tokenizer, after string) string {
	plain, err := f.render(t, false, &tokenizer.Message{Role: "assistant", Content: probeAnswer})
	if _, end, ok := cutLast(plain, probeAnswer); err == nil && ok {
		if rest, found := strings.CutSuffix(after, end); found {
			return rest
		}
	}
	for _, id := range t.EOS() {
		after, _, _ = strings.Cut(after, t.Token(id))
	}
	return after
}

// fromInstructions knows the format by what the template tells the model.
func (f *Format) fromInstructions(prompt string) bool {
	f.Arguments = "arguments"
	switch {
	case strings.Contains(prompt, "<tool_call>") && !strings.Contains(prompt, "<function=") &&
		!strings.Contains(prompt, "<arg_key>") && !strings.Contains(prompt, "<invoke"):
		f.Before, f.Between = "<tool_call>\n", "\n</tool_call>\n<tool_call>\n"
		f.After = "\n</tool_call>"
	case strings.Contains(prompt, "<|tool_call|>"):
		f.Before, f.Between, f.After = "<|tool_call|>[", ", ", "]"
	default:
		return false
	}
	return true
}

// cutLast is strings.Cut at the last place.
func cutLast(s, at string) (before, after string, found bool) {
	if i := strings.LastIndex(s, at); i >= 0 {
		return s[:i], s[i+len(at):], true
	}
	return s, "", false
}

// Markers lists the special tokens that a text with calls or reasoning holds. An answer that hides
// special tokens hides these, too, unless they are shown.
func (f *Format) Markers(t *tokenizer.Tokenizer) (ids []int32) {
	all := strings.Join([]string{f.Before, f.Between, f.After, f.Separator, f.Think[0],
		f.Think[1], f.Optional}, "\x00")
	for id := range int32(t.VocabSize()) {
		if text := t.Token(id); text != "" && t.IsSpecial(id) && !t.IsEOS(id) &&
			strings.Contains(all, text) {
			ids = append(ids, id)
		}
	}
	return ids
}
