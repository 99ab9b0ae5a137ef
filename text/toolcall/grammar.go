package toolcall

import (
	"encoding/json"
	"fmt"

	"conquer/text/grammar"
)

// Tool is a function that a model may call.
type Tool struct {
	Name       string
	Parameters json.RawMessage // the JSON schema of its arguments; nil: it takes none
}

// Grammar describes answers that call one of the tools, several times if many is true. prompt is
// the text before the answer. If the template knows reasoning, an answer may begin with it.
func (f *Format) Grammar(prompt string, tools []Tool, many bool) (*grammar.Grammar, error) {
	var list []grammar.Part
	for _, t := range tools {
		call, err := f.oneCall(t)
		if err != nil {
			return nil, fmt.Errorf("the tool %.80q: %w", t.Name, err)
		}
		list = append(list, call)
	}
	call := grammar.OneOf(list...)
	parts := []grammar.Part{grammar.Text(f.Before), call}
	if many && !f.Single {
		parts = append(parts, grammar.Repeated(grammar.Join(grammar.Text(f.Between), call)))
	}
	parts = append(parts, grammar.Text(f.After))
	if open, end := f.Think[0], f.Think[1]; open != "" {
		rest := grammar.Join(grammar.Except(end), grammar.Text(end+"\n\n"))
		if !f.InReasoning(prompt) {
			rest = grammar.OneOf(grammar.Text(""), grammar.Join(grammar.Text(open), rest))
		}
		parts = append([]grammar.Part{rest}, parts...)
	}
	return grammar.Compose(grammar.Join(parts...))
}

// oneCall is a call of a tool. Its schema is checked here, so that an error names the tool.
func (f *Format) oneCall(t Tool) (grammar.Part, error) {
	schema := t.Parameters
	if schema == nil {
		schema = json.RawMessage(`{"type": "object", "additionalProperties": false}`)
	}
	if _, err := grammar.JSONSchema(schema); err != nil {
		return nil, err
	}
	arguments := grammar.Schema(schema)
	if f.Arguments == "" {
		return grammar.Join(grammar.Text(t.Name+f.Separator), arguments), nil
	}
	name, _ := json.Marshal(t.Name)
	return grammar.Join(grammar.Text(fmt.Sprintf(`{"name": %s, %q: `, name, f.Arguments)),
		arguments, grammar.Text("}")), nil
}
