package text

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"
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
// environment that transformers' apply_chat_template gives it. With
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

var templateConfig = func() *config.Config {
	c := config.New()
	c.TrimBlocks, c.LeftStripBlocks = true, true
	return c
}()

// compiled keeps templates by their source: a data set renders one many times.
var compiled sync.Map // string → *exec.Template

func renderTemplate(source string, values map[string]any) (string, error) {
	var template *exec.Template
	if known, ok := compiled.Load(source); ok {
		template = known.(*exec.Template)
	} else {
		loader, err := loaders.NewShiftedLoader("template", strings.NewReader(source), loaders.MustNewFileSystemLoader(""))
		if err != nil {
			return "", err
		}
		template, err = exec.NewTemplate("template", templateConfig, loader, &exec.Environment{
			Context:           exec.EmptyContext().Update(builtins.GlobalFunctions).Update(builtins.GlobalVariables),
			Filters:           builtins.Filters,
			Tests:             builtins.Tests,
			ControlStructures: builtins.ControlStructures,
			Methods:           builtins.Methods,
		})
		if err != nil {
			return "", err
		}
		compiled.Store(source, template)
	}
	values["raise_exception"] = func(message string) (string, error) { return "", errors.New(message) }
	values["strftime_now"] = func(format string) string { return strftime(time.Now(), format) }
	return template.ExecuteToString(exec.NewContext(values))
}

// strftime formats the directives that templates use.
func strftime(at time.Time, format string) string {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'B': "January", 'b': "Jan", 'A': "Monday", 'a': "Mon",
		'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'y': "06", 'j': "002", 'Z': "MST", 'z': "-0700",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] == '%' && i+1 < len(format) {
			i++
			if layout, ok := layouts[format[i]]; ok {
				b.WriteString(at.Format(layout))
			} else {
				b.WriteByte(format[i])
			}
			continue
		}
		b.WriteByte(format[i])
	}
	return b.String()
}
