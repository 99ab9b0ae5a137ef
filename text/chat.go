package text

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ardanlabs/jinja"
)

// Message is one turn of a conversation.
type Message struct {
	Role    string `json:"role"` // "system", "user", "assistant" or what the template knows
	Content string `json:"content"`
}

// ErrNoChatTemplate is what Chat returns for a tokenizer without a template.
var ErrNoChatTemplate = errors.New("the tokenizer has no chat template")

// ChatTemplate is the Jinja source that Chat renders, or "".
func (t *Tokenizer) ChatTemplate() string { return t.template }

// Chat renders a conversation with the tokenizer's chat template, in the
// environment that transformers' apply_chat_template gives it (trimmed blocks,
// raise_exception, strftime_now, bos_token and the other special tokens). With
// addGenerationPrompt the text ends where the assistant is to begin. Encode the
// result without addSpecial: a template writes its special tokens out.
func (t *Tokenizer) Chat(messages []Message, addGenerationPrompt bool) (string, error) {
	if t.template == "" {
		return "", ErrNoChatTemplate
	}
	list := make([]any, len(messages))
	for i, m := range messages {
		list[i] = map[string]any{"role": m.Role, "content": m.Content}
	}
	values := map[string]any{"messages": list, "add_generation_prompt": addGenerationPrompt}
	for name, id := range map[string]int32{"bos_token": t.bos, "unk_token": t.unk, "pad_token": t.pad} {
		if id >= 0 {
			values[name] = t.tokens[id]
		}
	}
	if len(t.eos) > 0 {
		values["eos_token"] = t.tokens[t.eos[0]]
	}
	out, err := renderTemplate(t.template, values)
	if err != nil {
		return "", fmt.Errorf("chat template: %w", err)
	}
	return out, nil
}

// compiled keeps templates by their source: a data set renders one many times.
var compiled sync.Map // string → *jinja.Template

func renderTemplate(source string, values map[string]any) (string, error) {
	known, ok := compiled.Load(source)
	if !ok {
		template, err := jinja.Compile(source)
		if err != nil {
			return "", err
		}
		known, _ = compiled.LoadOrStore(source, template)
	}
	return known.(*jinja.Template).Render(values)
}
