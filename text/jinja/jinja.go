// Package jinja compiles and renders chat templates, which are written in
// Jinja. A template sees the names and functions that transformers'
// apply_chat_template gives it: trimmed blocks, raise_exception, strftime_now.
package jinja

import (
	"context"

	engine "github.com/ardanlabs/jinja"
)

// Template is a compiled template. Several goroutines may render it at once.
type Template struct{ compiled *engine.Template }

// Compile parses the source of a template. The error describes the first
// syntax error.
func Compile(source string) (*Template, error) {
	compiled, err := engine.Compile(source)
	if err != nil {
		return nil, err
	}
	return &Template{compiled}, nil
}

// Render returns the text of the template for values: strings, numbers,
// booleans, nil, and []any and map[string]any of these. It fails if ctx is
// done, if the template calls raise_exception, or if an expression cannot be
// evaluated.
func (t *Template) Render(ctx context.Context, values map[string]any) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return t.compiled.Render(values)
}
