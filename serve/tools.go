package serve

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"regexp"
	"sync"

	"conquer/generate"
	"conquer/text/grammar"
	"conquer/text/tokenizer"
	"conquer/text/toolcall"
)

// toolFields are the fields of a chat about tools.
type toolFields struct {
	Tools    json.RawMessage `json:"tools"`
	Choice   json.RawMessage `json:"tool_choice"` // none, auto, required, or a tool
	Parallel *bool           `json:"parallel_tool_calls"`
}

// tool is an element of tools.
type tool struct {
	Type     string `json:"type"`
	Function struct {
		Name       string          `json:"name"`
		Parameters json.RawMessage `json:"parameters"`
	} `json:"function"`
}

// toolCall is a call in an answer, or a piece of one in a stream: the first has the name.
type toolCall struct {
	Index    *int   `json:"index,omitempty"`
	ID       string `json:"id,omitempty"`
	Type     string `json:"type,omitempty"`
	Function struct {
		Name      string `json:"name,omitempty"`
		Arguments string `json:"arguments"`
	} `json:"function"`
}

func newToolCall(c *toolcall.Call) (t toolCall) {
	t.Index = &c.Index
	if c.Name != "" {
		t.ID, t.Type = rand.Text()[:9], "function" // some templates take ids of 9 letters only
	}
	t.Function.Name, t.Function.Arguments = c.Name, c.Arguments
	return t
}

// toolUse says what a chat may do with tools, and how its answers are written.
type toolUse struct {
	format *toolcall.Format
	shown  []int32         // special tokens that an answer's parts are found by
	tools  json.RawMessage // as the template gets them; nil: no tools
	names  []string
	forced []toolcall.Tool // of which one must be called; nil: an answer need not call any
	most   int             // calls in an answer; 0: any number
}

// inputs are what the template gets.
func (u *toolUse) inputs() tokenizer.ChatInputs {
	if u.tools == nil {
		return tokenizer.ChatInputs{}
	}
	return u.format.Inputs(u.tools)
}

func (u *toolUse) parser(prompt string) *toolcall.Parser {
	return u.format.Parser(prompt, u.names, u.most)
}

// chatFormat is what is known of a chat template once a chat needs it.
type chatFormat struct {
	calls    *toolcall.Format // nil if there is an error
	err      error
	shown    []int32 // with calls
	plain    toolcall.Format
	think    []int32   // shown without
	grammars *grammars // that may use the tokens in shown
}

// chatFormat finds the format of the chat template's calls.
func newChatFormat(t *tokenizer.Tokenizer, size int) func() *chatFormat {
	return sync.OnceValue(func() *chatFormat {
		f := &chatFormat{plain: toolcall.Format{Think: toolcall.Reasoning(t.ChatTemplate())}}
		f.think = f.plain.Markers(t)
		if f.calls, f.err = toolcall.Detect(t); f.err == nil {
			f.shown = f.calls.Markers(t)
		}
		f.grammars = newGrammars(t, size, f.shown)
		return f
	})
}

// toolName is what OpenAI allows as a name.
var toolName = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,128}$`)

// toolUse reads the fields.
func (s *Server) toolUse(q *toolFields) (*toolUse, error) {
	f := s.format()
	use := &toolUse{format: &f.plain, shown: f.think}
	var tools []tool
	list := given(q.Tools)
	if list != nil && json.Unmarshal(list, &tools) != nil {
		return nil, invalid("tools", "tools is not a list of tools, each "+
			`{"type": "function", "function": {"name": …, "parameters": SCHEMA}}`)
	}
	for i, t := range tools {
		switch {
		case t.Type != "function":
			return nil, invalid("tools", "tool %d has the type %.40q, expected function", i+1,
				t.Type)
		case !toolName.MatchString(t.Function.Name):
			return nil, invalid("tools", "tool %d has the name %.80q, expected 1 to 128 letters, "+
				"digits, dots, dashes and underscores", i+1, t.Function.Name)
		}
	}
	mode, name, err := toolChoice(given(q.Choice))
	switch {
	case err != nil:
		return nil, err
	case len(tools) == 0 && (mode == "required" || mode == "function"):
		return nil, invalid("tool_choice", "tool_choice needs tools")
	case len(tools) == 0 || mode == "none":
		return use, nil
	case f.err != nil:
		return nil, invalid("tools", "%v", f.err)
	}
	use.format, use.shown, use.tools = f.calls, f.shown, list
	if q.Parallel != nil && !*q.Parallel || mode == "function" {
		use.most = 1
	}
	for _, t := range tools {
		use.names = append(use.names, t.Function.Name)
		if mode == "required" || mode == "function" && t.Function.Name == name {
			use.forced = append(use.forced, toolcall.Tool{Name: t.Function.Name,
				Parameters: given(t.Function.Parameters)})
		}
	}
	if mode == "function" && use.forced == nil {
		return nil, invalid("tool_choice", "tool_choice names %.80q, which tools does not have",
			name)
	}
	return use, nil
}

// toolChoice reads tool_choice: none, auto, required, or function with its name.
func toolChoice(field json.RawMessage) (mode, name string, err error) {
	var choice struct {
		Type     string
		Function struct{ Name string }
	}
	switch {
	case field == nil:
		return "auto", "", nil
	case json.Unmarshal(field, &mode) == nil:
		if mode == "none" || mode == "auto" || mode == "required" {
			return mode, "", nil
		}
	case json.Unmarshal(field, &choice) == nil && choice.Type == "function":
		return "function", choice.Function.Name, nil
	}
	return "", "", invalid("tool_choice", `tool_choice is %.80s, expected "none", "auto", `+
		`"required" or {"type": "function", "function": {"name": …}}`, field)
}

// constrain sets what a chat's answer must be if a tool must be called, and what of it is shown.
func (s *Server) constrain(q *chatRequest, o *generate.Options) error {
	use := q.use
	o.Show = use.shown
	if use.forced == nil {
		return nil
	}
	if o.Grammar != nil {
		return invalid("tool_choice", "an answer can have one form only: choose among "+
			"response_format, structured_outputs and a tool_choice that must call a tool")
	}
	if o.IgnoreEOS {
		return invalid("ignore_eos", "a call of a tool ends the text, which ignore_eos forbids")
	}
	key := fmt.Sprintf("%s\x00%v\x00%v\x00%v", use.tools, q.Choice, use.most,
		use.format.InReasoning(q.prompt))
	var err error
	o.Grammar, err = s.format().grammars.get("tools", []byte(key),
		func() (*grammar.Grammar, error) {
			return use.format.Grammar(q.prompt, use.forced, use.most != 1)
		})
	if err != nil {
		return invalid("tools", "%v", err)
	}
	return nil
}
