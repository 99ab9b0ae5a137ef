package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"conquer/text/jinja"
)

// defaultTemplate is the name of the template that Chat renders, toolTemplate that of the one that
// Render prefers for conversations with tools.
const (
	defaultTemplate = "default"
	toolTemplate    = "tool_use"
)

// templateFolder holds the named templates of a folder, one NAME.jinja each.
const templateFolder = "additional_chat_templates"

// setTemplates takes the chat templates by name.
func (t *Tokenizer) setTemplates(templates map[string]string) {
	t.template.source = templates[defaultTemplate]
	t.named = maps.Clone(templates)
	delete(t.named, defaultTemplate)
	t.template.others = t.templateNames()
	t.tools.source = t.named[toolTemplate]
}

// templateFor returns the template of a conversation.
func (t *Tokenizer) templateFor(c Conversation) *chatTemplate {
	if c.Tools != nil && t.tools.source != "" {
		return &t.tools
	}
	return &t.template
}

// ToolTemplate returns the Jinja source that Render uses for a conversation with tools, or "".
func (t *Tokenizer) ToolTemplate() string {
	if t.tools.source != "" {
		return t.tools.source
	}
	return t.template.source
}

// ChatTemplates returns the Jinja sources of the chat templates by name. The one
// that Chat renders is "default". Files may have others, such as "tool_use".
func (t *Tokenizer) ChatTemplates() map[string]string {
	all := map[string]string{}
	maps.Copy(all, t.named)
	if t.template.source != "" {
		all[defaultTemplate] = t.template.source
	}
	return all
}

// templateNames lists the names of the templates besides the default.
func (t *Tokenizer) templateNames() []string { return slices.Sorted(maps.Keys(t.named)) }

// readTemplate reads the files that hold only chat templates. They replace those of
// tokenizer_config.json.
func (about *folderInfo) readTemplate(folder string) error {
	var c struct {
		Template json.RawMessage `json:"chat_template"`
	}
	if err := readJSON(filepath.Join(folder, "chat_template.json"), &c); err != nil {
		return err
	}
	if templates, err := parseTemplates(c.Template); err == nil && len(templates) > 0 {
		about.templates = templates
	}
	files, err := filepath.Glob(filepath.Join(globQuote(folder), templateFolder, "*.jinja"))
	if err != nil {
		return err
	}
	if len(files) > maxTemplates {
		return fmt.Errorf("%s holds %d chat templates, expected at most %d",
			filepath.Join(folder, templateFolder), len(files), maxTemplates)
	}
	templates := map[string]string{}
	for _, path := range files {
		data, err := readFile(path, jinja.MaxSource)
		if err != nil {
			return err
		}
		templates[strings.TrimSuffix(filepath.Base(path), ".jinja")] = string(data)
	}
	switch data, err := readFile(filepath.Join(folder, "chat_template.jinja"), jinja.MaxSource); {
	case err == nil:
		templates[defaultTemplate] = string(data)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if len(templates) > 0 {
		about.templates = templates
	}
	return nil
}

// globQuote makes a folder's name stand for itself in a pattern.
func globQuote(folder string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(folder)
}

// parseTemplates reads the chat templates of a JSON file: a string, a list of named
// templates, or an object of them.
func parseTemplates(raw json.RawMessage) (map[string]string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return map[string]string{defaultTemplate: one}, nil
	}
	templates := map[string]string{}
	if json.Unmarshal(raw, &templates) == nil {
		return templates, nil
	}
	var named []struct{ Name, Template string }
	if err := json.Unmarshal(raw, &named); err != nil {
		return nil, fmt.Errorf("expected a string or a list of {name, template}: %w", err)
	}
	for _, n := range named {
		templates[n.Name] = n.Template
	}
	return templates, nil
}
