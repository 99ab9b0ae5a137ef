package dataset

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"conquer/text/tokenizer"
)

// conversationFields are the fields that hold a whole conversation, the preferred
// one first.
var conversationFields = []string{"messages", "conversations", "conversation"}

// sharegptRoles maps the speakers of ShareGPT's files to roles.
var sharegptRoles = map[string]string{
	"human": "user", "user": "user",
	"gpt": assistantRole, "assistant": assistantRole, "chatgpt": assistantRole,
	"model": assistantRole, "bot": assistantRole, "function_call": assistantRole,
	"system": "system",
	"tool":   "tool", "function": "tool", "observation": "tool", "function_response": "tool",
}

// parseChat reads a conversation. The field system is its first message unless it
// has one.
func (r *record) parseChat(fields jsonFields) (err error) {
	name := conversationFields[0]
	for _, candidate := range slices.Backward(conversationFields) {
		if fields.filled(candidate) {
			name = candidate
		}
	}
	if r.messages, r.silent, err = parseMessages(name, fields[name]); err != nil {
		return err
	}
	if !slices.ContainsFunc(r.messages, isAnswer) {
		return fmt.Errorf("none of %s has the role %q, so there is nothing to learn",
			Count(len(r.messages), "message"), assistantRole)
	}
	system, err := fields.text("system")
	if err == nil && system != "" && r.messages[0].Role != "system" {
		r.messages = slices.Insert(r.messages, 0,
			tokenizer.Message{Role: "system", Content: system})
		if r.silent != nil {
			r.silent = slices.Insert(r.silent, 0, true)
		}
	}
	return err
}

// parseMessages reads a list of messages. The list, or each message, may be JSON
// in a string, and the list may be an object of lists: so columns of datasets hold
// them. silent tells which messages have no loss by their train or weight, nil if
// none has such a field.
func parseMessages(field string, raw json.RawMessage) (
	messages []tokenizer.Message, silent []bool, err error,
) {
	var list []json.RawMessage
	raw = tokenizer.DecodeText(raw)
	var columns map[string][]json.RawMessage
	if json.Unmarshal(raw, &columns) == nil && columns != nil {
		list, err = rowsOf(raw)
	} else if json.Unmarshal(raw, &list) != nil {
		err = fmt.Errorf(`%.60s, expected a list of {"role": string, "content": string}`, raw)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("field %q is %w", field, err)
	}
	if len(list) == 0 {
		return nil, nil, fmt.Errorf("field %q is empty, expected messages", field)
	}
	silent = make([]bool, len(list))
	marked := false
	for i, raw := range list {
		m, learn, err := parseMessage(tokenizer.DecodeText(raw))
		if err != nil {
			return nil, nil, fmt.Errorf(`message %d: %w; each message of %q is `+
				`{"role": string, "content": string}`, i, err, field)
		}
		messages = append(messages, m)
		silent[i] = !learn
		marked = marked || !learn
	}
	if !marked {
		silent = nil
	}
	return messages, silent, nil
}

// rowsOf turns an object of lists into a list of objects.
func rowsOf(raw json.RawMessage) (rows []json.RawMessage, err error) {
	columns, err := tokenizer.ParseFields(raw)
	if err != nil {
		return nil, err
	}
	for _, c := range columns {
		var values []json.RawMessage
		if err := json.Unmarshal(c.Value, &values); err != nil {
			return nil, err
		}
		if rows == nil {
			rows = make([]json.RawMessage, len(values))
		}
		if len(values) != len(rows) {
			return nil, fmt.Errorf("an object of lists that have %d and %d values",
				len(rows), len(values))
		}
	}
	for i := range rows {
		var fields []tokenizer.Field
		for _, c := range columns {
			var values []json.RawMessage
			json.Unmarshal(c.Value, &values)
			fields = append(fields, tokenizer.Field{Name: c.Name, Value: values[i]})
		}
		rows[i] = tokenizer.JoinFields(fields)
	}
	return rows, nil
}

// parseMessage reads a message of {role, content} or of ShareGPT's {from, value}.
// learn is false if train is false or weight is 0.
func parseMessage(raw json.RawMessage) (m tokenizer.Message, learn bool, err error) {
	fields, err := tokenizer.ParseFields(raw)
	if err != nil {
		return m, false, err
	}
	learn = true
	has := func(name string) bool {
		return slices.ContainsFunc(fields, func(f tokenizer.Field) bool { return f.Name == name })
	}
	sharegpt := has("from") && !has("role")
	var kept []tokenizer.Field
	for _, f := range fields {
		switch {
		case f.Name == "train":
			var train bool
			if json.Unmarshal(f.Value, &train) != nil {
				return m, false, fmt.Errorf("train is %.40s, expected true or false", f.Value)
			}
			learn = learn && train
		case f.Name == "weight":
			var weight float64
			if json.Unmarshal(f.Value, &weight) != nil || weight != 0 && weight != 1 {
				return m, false, fmt.Errorf("weight is %.40s, expected 0 or 1", f.Value)
			}
			learn = learn && weight == 1
		case sharegpt && f.Name == "from":
			var from string
			json.Unmarshal(f.Value, &from)
			role := sharegptRoles[from]
			if role == "" {
				return m, false, fmt.Errorf("from is %.40s, expected human, gpt, system, "+
					"function_call or observation", f.Value)
			}
			kept = append(kept, tokenizer.Field{Name: "role", Value: quoted(role)})
			if from == "function_call" {
				if fields, err = callOf(fields); err != nil {
					return m, false, err
				}
				return m, learn, m.SetFields(append(kept, fields...))
			}
		case sharegpt && f.Name == "value":
			kept = append(kept, tokenizer.Field{Name: "content", Value: f.Value})
		default:
			kept = append(kept, f)
		}
	}
	return m, learn, m.SetFields(kept)
}

// callOf returns the tool calls that a function_call of ShareGPT holds as JSON.
func callOf(fields []tokenizer.Field) ([]tokenizer.Field, error) {
	for _, f := range fields {
		if f.Name != "value" {
			continue
		}
		call := string(tokenizer.DecodeText(f.Value))
		if strings.HasPrefix(call, "{") {
			call = "[" + call + "]"
		}
		if !strings.HasPrefix(call, "[") {
			return nil, fmt.Errorf("the value of a function_call is %.60s, "+
				`expected JSON: {"name": string, "arguments": object}`, f.Value)
		}
		var calls []json.RawMessage
		if err := json.Unmarshal([]byte(call), &calls); err != nil {
			return nil, err
		}
		for i, c := range calls {
			calls[i] = tokenizer.JoinFields([]tokenizer.Field{
				{Name: "type", Value: quoted("function")}, {Name: "function", Value: c}})
		}
		return []tokenizer.Field{{Name: "tool_calls", Value: tokenizer.JoinList(calls)}}, nil
	}
	return nil, nil
}

func quoted(s string) json.RawMessage {
	text, _ := json.Marshal(s) // a string can be encoded
	return text
}

// textOf returns the text of a JSON string.
func textOf(raw json.RawMessage) (s string) {
	json.Unmarshal(raw, &s)
	return s
}
