package serve

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"conquer/generate"
	"conquer/text/tokenizer"
)

// chatRequest is the body of /v1/chat/completions.
type chatRequest struct {
	sampling
	toolFields
	Messages       []tokenizer.Message `json:"messages"`
	Logprobs       bool                `json:"logprobs"`
	TopLogprobs    int                 `json:"top_logprobs"`
	Documents      json.RawMessage     `json:"documents"`
	TemplateKwargs json.RawMessage     `json:"chat_template_kwargs"`

	server *Server
	use    *toolUse
	prompt string // as the template renders it
}

// chatChoice is a choice of an answer, with Message, or of a chunk of a stream, with Delta.
type chatChoice struct {
	Index        int           `json:"index"`
	Message      *chatMessage  `json:"message,omitempty"`
	Delta        *chatDelta    `json:"delta,omitempty"`
	Logprobs     *chatLogprobs `json:"logprobs"`
	FinishReason *string       `json:"finish_reason"`
}

type chatDelta struct {
	Role      string     `json:"role,omitempty"`
	Content   *string    `json:"content,omitempty"`
	Reasoning string     `json:"reasoning_content,omitempty"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
}

type chatMessage struct {
	Role      string     `json:"role"`
	Content   *string    `json:"content"`
	Reasoning string     `json:"reasoning_content,omitempty"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
	Refusal   *string    `json:"refusal"`
}

type chatLogprobs struct {
	Content []chatLogprob `json:"content"`
}

type chatLogprob struct {
	Token   string        `json:"token"`
	Logprob float64       `json:"logprob"`
	Bytes   []int         `json:"bytes"` // null if the token is a part of a character
	Top     []chatLogprob `json:"top_logprobs,omitempty"`
}

// job checks the request and makes its tasks.
func (q *chatRequest) job(s *Server) (*job, error) {
	switch {
	case len(q.Messages) == 0:
		return nil, invalid("messages", "messages is empty")
	case q.TopLogprobs < 0 || q.TopLogprobs > maxLogprobs:
		return nil, invalid("top_logprobs", "top_logprobs is %d, expected 0 to %d", q.TopLogprobs,
			maxLogprobs)
	case q.TopLogprobs > 0 && !q.Logprobs:
		return nil, invalid("top_logprobs", "top_logprobs needs logprobs true")
	case s.tokenizer.ToolTemplate() == "":
		return nil, invalid("messages", "the model has no chat template: use /v1/completions")
	}
	var err error
	if q.use, err = s.toolUse(&q.toolFields); err != nil {
		return nil, err
	}
	ids, err := s.conversation(q)
	if err != nil {
		return nil, err
	}
	o, err := s.configure(&q.sampling, s.options.Limits.Length)
	if err != nil {
		return nil, err
	}
	o.Logprobs, o.TopLogprobs = q.Logprobs, q.TopLogprobs
	if err := s.constrain(q, &o); err != nil {
		return nil, err
	}
	q.server = s
	j := &job{sampling: &q.sampling, object: "chat.completion", chunk: "chat.completion.chunk",
		id: newID("chatcmpl-"), form: q}
	return j, s.addChoices(j, [][]int32{ids}, o, nil)
}

// conversation returns the tokens of the messages, up to the start of the assistant's turn.
func (s *Server) conversation(q *chatRequest) ([]int32, error) {
	inputs := tokenizer.ChatInputs{Documents: given(q.Documents), Kwargs: given(q.TemplateKwargs)}
	if err := inputs.Check(); err != nil {
		return nil, invalid("chat_template_kwargs", "%v", err)
	}
	var err error
	q.prompt, err = s.tokenizer.Render(tokenizer.Conversation{Messages: q.Messages,
		ChatInputs: inputs.Over(q.use.inputs())}, true)
	if err != nil {
		return nil, invalid("messages", "%v", err)
	}
	return s.tokenizer.Encode(q.prompt, false), nil
}

// given returns nil for a field that is null.
func given(field json.RawMessage) json.RawMessage {
	if string(field) == "null" {
		return nil
	}
	return field
}

// whole implements form.
func (q *chatRequest) whole(c *choice, text string) any {
	message := &chatMessage{Role: "assistant"}
	var content strings.Builder
	parser := q.use.parser(q.prompt)
	for _, d := range append(parser.Next(text), parser.End()...) {
		content.WriteString(d.Content)
		message.Reasoning += d.Reasoning
		if d.Call == nil {
			continue
		}
		if d.Call.Index == len(message.ToolCalls) {
			message.ToolCalls = append(message.ToolCalls, newToolCall(d.Call))
		}
		message.ToolCalls[d.Call.Index].Function.Arguments += d.Call.Arguments
	}
	for i := range message.ToolCalls {
		message.ToolCalls[i].Index = nil // only pieces of a stream have it
	}
	if text := content.String(); text != "" || len(message.ToolCalls) == 0 {
		message.Content = &text
	}
	return chatChoice{Index: c.index, Message: message, Logprobs: q.logprobs(c),
		FinishReason: q.finishReason(c, len(message.ToolCalls) > 0)}
}

// finishReason is OpenAI's word for the reason why a choice ended.
func (q *chatRequest) finishReason(c *choice, called bool) *string {
	reason := c.finishReason()
	if called && *reason == "stop" {
		*reason = "tool_calls"
	}
	return reason
}

// chunks implements form. Clients take a chunk with content as unfinished, so the last one has
// none.
func (q *chatRequest) chunks(c *choice, piece string, first, done bool) (list []any) {
	if first {
		c.parser = q.use.parser(q.prompt)
		return []any{chatChoice{Index: c.index,
			Delta: &chatDelta{Role: "assistant", Content: new(string)}}}
	}
	deltas := c.parser.Next(piece)
	if done {
		deltas = append(deltas, c.parser.End()...)
	}
	for _, d := range deltas {
		out := &chatDelta{Reasoning: d.Reasoning}
		switch {
		case d.Call != nil:
			c.called = true
			out.ToolCalls = []toolCall{newToolCall(d.Call)}
		case d.Content != "":
			out.Content = &d.Content
		}
		list = append(list, chatChoice{Index: c.index, Delta: out, Logprobs: q.logprobs(c)})
	}
	if done {
		list = append(list, chatChoice{Index: c.index, Delta: &chatDelta{},
			Logprobs: q.logprobs(c), FinishReason: q.finishReason(c, c.called)})
	}
	return list
}

// logprobs returns the log-probabilities that were not written so far.
func (q *chatRequest) logprobs(c *choice) *chatLogprobs {
	if !q.Logprobs {
		return nil
	}
	out := &chatLogprobs{Content: []chatLogprob{}}
	for _, token := range c.newLogprobs() {
		entry := q.server.chatLogprob(token)
		entry.Top = []chatLogprob{}
		for _, t := range token.Top {
			entry.Top = append(entry.Top, q.server.chatLogprob(t))
		}
		out.Content = append(out.Content, entry)
	}
	return out
}

func (s *Server) chatLogprob(t generate.TokenLogprob) chatLogprob {
	text := s.token(t.ID)
	out := chatLogprob{Token: text, Logprob: finite(t.Logprob)}
	if !strings.ContainsRune(text, utf8.RuneError) {
		out.Bytes = []int{}
		for _, b := range []byte(text) {
			out.Bytes = append(out.Bytes, int(b))
		}
	}
	return out
}
