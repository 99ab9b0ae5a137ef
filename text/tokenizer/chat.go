package tokenizer

import (
	"sync"

	"conquer/text/jinja"
)

// chatTemplate is a template's source and, once it is needed, its compiled form.
type chatTemplate struct {
	others   []string // names of the templates besides the default
	source   string
	once     sync.Once
	compiled *jinja.Template
	err      error
}

// ChatTemplate returns the Jinja source that Chat renders, or "".
func (t *Tokenizer) ChatTemplate() string { return t.template.source }

// Chat is Render for a conversation of messages alone.
func (t *Tokenizer) Chat(messages []Message, addGenerationPrompt bool) (string, error) {
	return t.Render(Conversation{Messages: messages}, addGenerationPrompt)
}
