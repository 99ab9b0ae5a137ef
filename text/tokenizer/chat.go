package tokenizer

import (
	"sync"
	"time"

	"conquer/text/jinja"
)

// chatTemplate is a template's source and, once it is needed, its compiled form.
type chatTemplate struct {
	others   []string // names of the templates besides the default
	source   string
	clock    time.Time // what strftime_now shows; zero: the time of the call
	once     sync.Once
	compiled *jinja.Template
	err      error
}

func (c *chatTemplate) now() time.Time {
	if c.clock.IsZero() {
		return time.Now()
	}
	return c.clock
}

// SetClock fixes the time that a chat template prints with strftime_now, so that a data set is
// rendered alike in every process and when a run is resumed. The zero time means the time of each
// call. It must not be called while another goroutine uses t.
func (t *Tokenizer) SetClock(now time.Time) { t.template.clock, t.tools.clock = now, now }

// ChatTemplate returns the Jinja source that Chat renders, or "".
func (t *Tokenizer) ChatTemplate() string { return t.template.source }

// Chat is Render for a conversation of messages alone.
func (t *Tokenizer) Chat(messages []Message, addGenerationPrompt bool) (string, error) {
	return t.Render(Conversation{Messages: messages}, addGenerationPrompt)
}
