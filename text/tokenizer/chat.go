package tokenizer

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"conquer/text/jinja"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string `json:"role"` // "system", "user", "assistant" or another role of the template
	Content string `json:"content"`
}

// ErrNoChatTemplate is the error of Chat for a tokenizer without a template.
var ErrNoChatTemplate = errors.New("the tokenizer has no chat template")

// chatTemplate is a template's source and, once it is needed, its compiled form.
type chatTemplate struct {
	source   string
	once     sync.Once
	compiled *jinja.Template
	err      error
}

func (c *chatTemplate) render(values map[string]any) (string, error) {
	c.once.Do(func() { c.compiled, c.err = jinja.Compile(c.source) })
	if c.err != nil {
		return "", c.err
	}
	return c.compiled.Render(context.Background(), values)
}

// ChatTemplate returns the Jinja source that Chat renders, or "".
func (t *Tokenizer) ChatTemplate() string { return t.template.source }

// Chat renders a conversation with the tokenizer's chat template, as
// transformers' apply_chat_template does. With addGenerationPrompt the text
// ends where the assistant's answer begins. Encode the result without
// addSpecial: a template writes its special tokens itself.
func (t *Tokenizer) Chat(messages []Message, addGenerationPrompt bool) (string, error) {
	if t.template.source == "" {
		return "", ErrNoChatTemplate
	}
	list := make([]any, len(messages))
	for i, m := range messages {
		message := jinja.NewDict() // a template may print a message: its keys keep this order
		err := errors.Join(message.Set("role", m.Role), message.Set("content", m.Content))
		if err != nil {
			return "", err
		}
		list[i] = message
	}
	values := map[string]any{
		"messages": list, "add_generation_prompt": addGenerationPrompt,
		"tools": nil, "documents": nil,
	}
	for name, id := range map[string]int32{
		"bos_token": t.bos, "unk_token": t.unk, "pad_token": t.pad,
	} {
		if id >= 0 {
			values[name] = t.tokens[id]
		}
	}
	if len(t.eos) > 0 {
		values["eos_token"] = t.tokens[t.eos[0]]
	}
	out, err := t.template.render(values)
	if err != nil {
		return "", fmt.Errorf("chat template: %w", err)
	}
	return out, nil
}
