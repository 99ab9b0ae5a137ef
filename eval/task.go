package eval

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strings"
)

// task is a task with its documents.
type task struct {
	*config
	documents []document // to evaluate
	total     int        // number of documents before the limit
	pool      []document // to take examples from
	examples  int        // number of examples in a prompt
	// what the first document says of all
	inputs  bool // doc_to_text is the number of a choice: the choices are contexts
	targets bool // doc_to_target is a list of which any counts
}

func folderOf(file string) string { return filepath.Dir(file) }

// open reads the documents of a task.
func (c *config) open(ctx context.Context, o Options) (*task, error) {
	t := &task{config: c}
	if c.shots != nil {
		t.examples = *c.shots
	}
	if o.Shots != nil && !(c.shots != nil && *c.shots == 0) {
		t.examples = *o.Shots
	}
	evaluated := c.test
	if evaluated == "" {
		evaluated = c.validation
	}
	loaded := map[string][]document{}
	load := func(split string) ([]document, error) {
		if documents, ok := loaded[split]; ok {
			return documents, nil
		}
		override := o.Data[c.name+":"+split]
		if override == "" {
			override = o.Data[c.name]
		}
		documents, err := c.data.load(ctx, split, override, o.Download)
		if err == nil && c.processDocs != "" {
			for i, d := range documents {
				if documents[i], err = documentFunctions[c.processDocs](d); err != nil {
					break
				}
			}
		}
		loaded[split] = documents
		return documents, err
	}
	var err error
	if t.documents, err = load(evaluated); err != nil {
		return nil, fmt.Errorf("task %s: %w", c.name, err)
	}
	t.total = len(t.documents)
	if t.examples > 0 {
		if t.pool, err = t.examplePool(load); err != nil {
			return nil, fmt.Errorf("task %s: %w", c.name, err)
		}
	}
	if o.Limit > 0 {
		n := o.Limit
		if n < 1 {
			n = math.Ceil(float64(t.total) * n)
		}
		t.documents = t.documents[:min(t.total, int(n))]
	}
	if err := t.look(t.documents[0]); err != nil {
		return nil, fmt.Errorf("task %s: %w", c.name, err)
	}
	return t, nil
}

// examplePool returns the documents that examples are taken from: those of the split that the task
// names, or else for training, validation or testing.
func (c *config) examplePool(load func(split string) ([]document, error)) ([]document, error) {
	if c.fewshot.split != "" {
		return load(c.fewshot.split)
	}
	if c.fewshot.samples != nil {
		return c.fewshot.samples, nil
	}
	for _, split := range []string{c.training, c.validation, c.test} {
		if split != "" {
			return load(split)
		}
	}
	return nil, nil
}

// look finds out from one document what kind of fields the task has.
func (t *task) look(d document) error {
	text, err := t.textOf(d, t.text)
	if err != nil {
		return err
	}
	target, err := t.targetOf(d, t.target)
	if err != nil {
		return err
	}
	_, isNumber := text.(int)
	t.inputs = isNumber && t.choice.given()
	_, t.targets = target.([]any)
	if !t.choice.given() {
		return nil
	}
	choices, err := t.choicesOf(d, t.choice)
	if err == nil && len(choices) == 0 {
		err = fmt.Errorf("%s: doc_to_choice gives no choices", d.where)
	}
	return err
}

// value is the value of a field as it stands: a number, a list, what a function returns or one of
// the document's fields. If it is none of these, it is the rendered template.
func (d document) value(f field) (v any, rendered bool, err error) {
	switch {
	case f.number != nil:
		return *f.number, false, nil
	case f.list != nil:
		return f.list, false, nil
	case f.function != "":
		function := fieldFunctions[f.function]
		if function == nil {
			return nil, false, fmt.Errorf("the function %s is not one of a field", f.function)
		}
		v, err = function(d)
		return v, false, err
	}
	if v, ok := d.fields[f.text]; ok {
		return v, false, nil
	}
	if f.template == nil {
		return "", true, nil
	}
	s, err := render(f.template, d.raw)
	if err != nil {
		err = fmt.Errorf("%s: %.60q: %w", d.where, f.text, err)
	}
	return s, true, err
}

// textOf returns a document's text, or the number of a choice.
func (c *config) textOf(d document, f field) (any, error) {
	v, rendered, err := d.value(f)
	if s, ok := v.(string); ok && rendered && isDigits(s) && c.choice.given() {
		return d.parse("doc_to_text", s)
	}
	return v, err
}

// targetOf returns a document's target: a text, the number of a choice or a list.
func (c *config) targetOf(d document, f field) (any, error) {
	v, rendered, err := d.value(f)
	if b, ok := v.(bool); ok { // in Python a number
		v = 0
		if b {
			v = 1
		}
	}
	s, ok := v.(string)
	if err != nil || !ok || !rendered {
		return v, err
	}
	if isDigits(s) && c.choice.given() {
		return d.parse("doc_to_target", s)
	}
	if len(s) >= 2 && s[0] == '[' && s[len(s)-1] == ']' {
		if list, err := literal(s); err == nil {
			return list, nil
		}
	}
	return s, nil
}

// choicesOf returns a document's choices.
func (c *config) choicesOf(d document, f field) ([]string, error) {
	v, rendered, err := d.value(f)
	if s, ok := v.(string); ok && rendered && err == nil {
		v, err = d.parse("doc_to_choice", s)
	}
	if err != nil {
		return nil, err
	}
	list, _ := v.([]any)
	choices, ok := allTexts(list)
	if !ok || list == nil {
		return nil, fmt.Errorf("%s: doc_to_choice is %s, expected a list of texts", d.where,
			kindOf(v))
	}
	return choices, nil
}

func (d document) parse(name, s string) (any, error) {
	v, err := literal(s)
	if err != nil {
		err = fmt.Errorf("%s: %s: %w", d.where, name, err)
	}
	return v, err
}

// named returns the document's field of a name, or else the template rendered.
func (d document) named(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	v, ok := d.fields[text]
	if s, isText := v.(string); ok && isText {
		return s, nil
	} else if ok {
		return "", d.wrong(text, "a text")
	}
	if !strings.ContainsAny(text, "{") {
		return text, nil
	}
	t, err := compile(text)
	if err != nil {
		return "", fmt.Errorf("%.60q: %w", text, err)
	}
	s, err := render(t, d.raw)
	if err != nil {
		err = fmt.Errorf("%s: %.60q: %w", d.where, text, err)
	}
	return s, err
}
