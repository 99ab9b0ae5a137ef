package tokenizer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"conquer/text/jinja"
)

// Conversation is what a chat template renders.
type Conversation struct {
	Messages []Message
	ChatInputs
}

// ChatInputs are variables of a chat template beside its messages.
type ChatInputs struct {
	Tools     json.RawMessage // a list of JSON schemas of functions, or nil
	Documents json.RawMessage // a list of objects, or nil
	// Kwargs is an object of further variables, such as {"enable_thinking": false}, or nil.
	Kwargs json.RawMessage
}

// reserved are the variables that Kwargs cannot set.
var reserved = []string{"messages", "tools", "documents", "add_generation_prompt"}

// Check returns an error that names what has the wrong type.
func (c ChatInputs) Check() error {
	for _, list := range []Field{{"tools", c.Tools}, {"documents", c.Documents}} {
		var objects []map[string]json.RawMessage
		if list.Value != nil && (json.Unmarshal(list.Value, &objects) != nil ||
			slices.ContainsFunc(objects, func(o map[string]json.RawMessage) bool {
				return o == nil
			})) {
			return fmt.Errorf("%s is %.60s, expected a list of objects", list.Name, list.Value)
		}
	}
	if c.Kwargs == nil {
		return nil
	}
	fields, err := ParseFields(c.Kwargs)
	if err != nil {
		return fmt.Errorf("chat_template_kwargs: %w", err)
	}
	for _, f := range fields {
		if slices.Contains(reserved, f.Name) {
			return fmt.Errorf("chat_template_kwargs cannot set %s", f.Name)
		}
	}
	return nil
}

// Over returns c with the inputs that it lacks taken from defaults. Kwargs are merged.
func (c ChatInputs) Over(defaults ChatInputs) ChatInputs {
	if c.Tools == nil {
		c.Tools = defaults.Tools
	}
	if c.Documents == nil {
		c.Documents = defaults.Documents
	}
	if c.Kwargs == nil || defaults.Kwargs == nil {
		if c.Kwargs == nil {
			c.Kwargs = defaults.Kwargs
		}
		return c
	}
	merged := map[string]json.RawMessage{}
	for _, object := range []json.RawMessage{defaults.Kwargs, c.Kwargs} {
		fields, _ := ParseFields(object)
		for _, f := range fields {
			merged[f.Name] = f.Value
		}
	}
	c.Kwargs = encodeJSON(merged)
	return c
}

// Render renders a conversation with the tokenizer's chat template, as transformers'
// apply_chat_template does: with tools, that is the template "tool_use" if there is one. With
// addGenerationPrompt the text ends where the assistant's answer begins. Encode the result without
// addSpecial: a template writes its special tokens itself.
//
// A message's list of parts is given to the template as one text, and arguments of tool calls as
// they were given. If the template cannot use that, it gets the list, or the arguments as objects.
func (t *Tokenizer) Render(c Conversation, addGenerationPrompt bool) (string, error) {
	plain := true
	for _, m := range c.Messages {
		plain = plain && m.Parts == "" && m.Fields == "" && !m.Null
	}
	if !plain {
		trace, err := t.Trace(c, addGenerationPrompt)
		return trace.Text, err
	}
	values, err := t.variables(c, addGenerationPrompt, form{})
	if err != nil {
		return "", err
	}
	template, err := t.templateFor(c).compile()
	if err != nil {
		return "", err
	}
	text, err := template.Render(context.Background(), values)
	if err != nil {
		return "", fmt.Errorf("chat template: %w", err)
	}
	return text, nil
}

// Trace renders like Render and finds which ranges of the text stem from which message.
func (t *Tokenizer) Trace(c Conversation, addGenerationPrompt bool) (jinja.Trace, error) {
	template, err := t.templateFor(c).compile()
	if err != nil {
		return jinja.Trace{}, err
	}
	var first error
	for _, f := range forms(c.Messages) {
		values, err := t.variables(c, addGenerationPrompt, f)
		if err != nil {
			return jinja.Trace{}, err
		}
		trace, err := template.Trace(context.Background(), values)
		if err == nil && suits(c.Messages, trace, f) {
			return trace, nil
		}
		if err != nil && first == nil {
			first = fmt.Errorf("chat template: %w", err)
		}
	}
	if first != nil {
		return jinja.Trace{}, first
	}
	// No form suits the template better than the messages as they are.
	values, err := t.variables(c, addGenerationPrompt, form{})
	if err != nil {
		return jinja.Trace{}, err
	}
	return template.Trace(context.Background(), values)
}

// forms lists the forms in which messages can be given to a template, the preferred one first.
func forms(messages []Message) []form {
	list := []form{{}}
	double := func(change func(*form)) {
		for _, f := range list[:len(list):len(list)] {
			change(&f)
			list = append(list, f)
		}
	}
	has := func(is func(Message) bool) bool { return slices.ContainsFunc(messages, is) }
	if has(func(m Message) bool { return strings.Contains(m.Fields, `"arguments":`) }) {
		double(func(f *form) { f.objects = true })
	}
	if has(func(m Message) bool { return m.Parts != "" }) {
		double(func(f *form) { f.parts = true })
	}
	if has(func(m Message) bool { return m.Null }) {
		double(func(f *form) { f.empty = true })
	}
	return list
}

// suits reports whether the template used the messages in the form f: it wrote the content that
// was given as parts, and did not encode as JSON what is JSON already.
func suits(messages []Message, trace jinja.Trace, f form) bool {
	if trace.Encoded && !f.objects {
		return false
	}
	written := map[int]bool{}
	for _, m := range trace.Marks {
		written[m.Message] = written[m.Message] || m.Kind >= jinja.Body
	}
	for i, m := range messages {
		if m.Parts != "" && strings.TrimSpace(m.Content) != "" && !written[i] {
			return false
		}
	}
	return true
}

// variables are the template's variables.
func (t *Tokenizer) variables(c Conversation, addGenerationPrompt bool, f form) (
	map[string]any, error,
) {
	list := make([]any, len(c.Messages))
	for i, m := range c.Messages {
		value, err := m.value(f)
		if err != nil {
			return nil, fmt.Errorf("message %d: %w", i, err)
		}
		list[i] = value
	}
	values := map[string]any{}
	for role, token := range t.names {
		values[role] = token
	}
	if c.Kwargs != nil {
		fields, err := ParseFields(c.Kwargs)
		if err != nil {
			return nil, err
		}
		for _, f := range fields {
			values[f.Name] = f.Value
		}
	}
	maps.Copy(values, map[string]any{"messages": list, "tools": nil, "documents": nil,
		"add_generation_prompt": addGenerationPrompt})
	if c.Tools != nil {
		values["tools"] = c.Tools
	}
	if c.Documents != nil {
		values["documents"] = c.Documents
	}
	return values, nil
}

// compile compiles the template once.
func (c *chatTemplate) compile() (*jinja.Template, error) {
	if c.source == "" && len(c.others) > 0 {
		return nil, fmt.Errorf("%w of the name default; it has %s", ErrNoChatTemplate,
			strings.Join(c.others, ", "))
	}
	if c.source == "" {
		return nil, ErrNoChatTemplate
	}
	c.once.Do(func() {
		if c.compiled, c.err = jinja.Compile(c.source); c.err == nil {
			c.compiled.Now = c.now
		}
	})
	if c.err != nil {
		return nil, fmt.Errorf("chat template: %w", c.err)
	}
	return c.compiled, nil
}

// ErrNoChatTemplate is the error of Chat and Render for a tokenizer without a template.
var ErrNoChatTemplate = errors.New("the tokenizer has no chat template")
