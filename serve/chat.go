package serve

import (
	"encoding/json"
	"net/http"
	"strings"
	"unicode/utf8"

	"conquer/generate"
	"conquer/text/tokenizer"
)

// chatRequest is the body of /v1/chat/completions.
type chatRequest struct {
	sampling
	Messages       []tokenizer.Message `json:"messages"`
	Logprobs       bool                `json:"logprobs"`
	TopLogprobs    int                 `json:"top_logprobs"`
	Documents      json.RawMessage     `json:"documents"`
	TemplateKwargs json.RawMessage     `json:"chat_template_kwargs"`
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
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

type chatMessage struct {
	Role    string  `json:"role"`
	Content string  `json:"content"`
	Refusal *string `json:"refusal"`
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

// chat answers /v1/chat/completions.
func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	var q chatRequest
	if err := s.decode(w, r, &q); err != nil {
		fail(w, err)
		return
	}
	j, err := s.chatJob(&q)
	if err == nil {
		err = s.start(r, j)
	}
	if err != nil {
		fail(w, err)
		return
	}
	s.reply(w, r, j)
}

// chatJob checks a request and makes its tasks.
func (s *Server) chatJob(q *chatRequest) (*job, error) {
	switch {
	case len(q.Messages) == 0:
		return nil, invalid("messages", "messages is empty")
	case q.TopLogprobs < 0 || q.TopLogprobs > maxLogprobs:
		return nil, invalid("top_logprobs", "top_logprobs is %d, expected 0 to %d", q.TopLogprobs,
			maxLogprobs)
	case q.TopLogprobs > 0 && !q.Logprobs:
		return nil, invalid("top_logprobs", "top_logprobs needs logprobs true")
	case s.tokenizer.ChatTemplate() == "":
		return nil, invalid("messages", "the model has no chat template: use /v1/completions")
	}
	o, err := s.configure(&q.sampling, s.options.Limits.Length)
	if err != nil {
		return nil, err
	}
	o.Logprobs, o.TopLogprobs = q.Logprobs, q.TopLogprobs
	n, err := q.count(maxChoices)
	if err != nil {
		return nil, err
	}
	ids, err := s.conversation(q)
	if err != nil {
		return nil, err
	}
	j := &job{sampling: &q.sampling, object: "chat.completion", chunk: "chat.completion.chunk",
		id: newID("chatcmpl-")}
	j.choice = func(c *choice, piece string, done bool) any {
		return s.chatChoice(q, c, piece, done)
	}
	j.opened = func(c *choice) any {
		return chatChoice{Index: c.index,
			Delta: &chatDelta{Role: "assistant", Content: new(string)}}
	}
	j.closed = func(c *choice) any { // clients take a chunk with content as unfinished
		end := s.chatChoice(q, c, "", true)
		end.Delta.Content = nil
		return end
	}
	return j, s.addChoices(j, [][]int32{ids}, n, o, nil)
}

// conversation returns the tokens of the messages, up to the start of the assistant's turn.
func (s *Server) conversation(q *chatRequest) ([]int32, error) {
	inputs := tokenizer.ChatInputs{Documents: given(q.Documents), Kwargs: given(q.TemplateKwargs)}
	if err := inputs.Check(); err != nil {
		return nil, invalid("chat_template_kwargs", "%v", err)
	}
	text, err := s.tokenizer.Render(tokenizer.Conversation{Messages: q.Messages,
		ChatInputs: inputs}, true)
	if err != nil {
		return nil, invalid("messages", "%v", err)
	}
	return s.tokenizer.Encode(text, false), nil
}

// given returns nil for a field that is null.
func given(field json.RawMessage) json.RawMessage {
	if string(field) == "null" {
		return nil
	}
	return field
}

// chatChoice describes a choice: whole, or a chunk of a stream.
func (s *Server) chatChoice(q *chatRequest, c *choice, piece string, done bool) chatChoice {
	out := chatChoice{Index: c.index}
	if done {
		out.FinishReason = c.finishReason()
	}
	if q.Stream {
		out.Delta = &chatDelta{Content: &piece}
	} else {
		out.Message = &chatMessage{Role: "assistant", Content: piece}
	}
	if q.Logprobs {
		out.Logprobs = &chatLogprobs{Content: []chatLogprob{}}
		for _, token := range c.newLogprobs() {
			entry := s.chatLogprob(token)
			entry.Top = []chatLogprob{}
			for _, t := range token.Top {
				entry.Top = append(entry.Top, s.chatLogprob(t))
			}
			out.Logprobs.Content = append(out.Logprobs.Content, entry)
		}
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
