package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"conquer/text/jinja"
)

// Message is one turn of a conversation. Two messages are equal if they render alike.
type Message struct {
	Role    string // "system", "user", "assistant", "tool" or another role of the template
	Content string
	// Parts is the content as a JSON list of text parts if it was given as one, else "". Content is
	// their text.
	Parts string
	// Fields holds the other members as a JSON object, such as reasoning_content and tool_calls,
	// or "".
	Fields string
	// Null says that the message has no content, as one with tool calls may.
	Null bool
}

// Field is a member of a JSON object.
type Field struct {
	Name  string
	Value json.RawMessage
}

// ParseFields returns the members of a JSON object in their order. Members that are null are left
// out, at every depth: a table cannot tell them from missing ones.
func ParseFields(object json.RawMessage) (fields []Field, err error) {
	d := json.NewDecoder(bytes.NewReader(object))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("expected an object, got %.40s", object)
	}
	at := map[string]int{}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		if value, err = DropNulls(value); err != nil {
			return nil, err
		}
		if i, again := at[name.(string)]; again { // as in Python, the last one counts
			fields[i].Value = value
			continue
		}
		at[name.(string)] = len(fields)
		fields = append(fields, Field{name.(string), value})
	}
	kept := fields[:0]
	for _, f := range fields {
		if string(f.Value) != "null" {
			kept = append(kept, f)
		}
	}
	_, err = d.Token()
	return kept, err
}

// DropNulls returns a value without the members that are null. Elements of lists stay.
func DropNulls(value json.RawMessage) (json.RawMessage, error) {
	switch {
	case !bytes.Contains(value, []byte("null")):
		return value, nil
	case value[0] == '{':
		fields, err := ParseFields(value)
		return JoinFields(fields), err
	case value[0] == '[':
		var list []json.RawMessage
		if err := json.Unmarshal(value, &list); err != nil {
			return nil, err
		}
		for i := range list {
			var err error
			if list[i], err = DropNulls(list[i]); err != nil {
				return nil, err
			}
		}
		return encodeJSON(list), nil
	}
	return value, nil
}

// JoinFields is the inverse of ParseFields.
func JoinFields(fields []Field) json.RawMessage {
	var b strings.Builder
	b.WriteByte('{')
	for i, f := range fields {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(encodeJSON(f.Name))
		b.WriteByte(':')
		b.Write(f.Value)
	}
	b.WriteByte('}')
	return json.RawMessage(b.String())
}

// JoinList returns the JSON list of values.
func JoinList(values []json.RawMessage) json.RawMessage { return encodeJSON(values) }

// encodeJSON encodes a value that can be encoded.
func encodeJSON(v any) json.RawMessage {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// UnmarshalJSON reads a message with role, content and further members. content is a string or a
// list of text parts; it may be missing where the assistant reasons or calls tools.
func (m *Message) UnmarshalJSON(data []byte) error {
	fields, err := ParseFields(data)
	if err != nil {
		return err
	}
	return m.SetFields(fields)
}

// SetFields sets m to the message with the given members.
func (m *Message) SetFields(fields []Field) (err error) {
	*m = Message{Null: true}
	var others []Field
	for _, f := range fields {
		switch f.Name {
		case "role":
			if json.Unmarshal(f.Value, &m.Role) != nil {
				return fmt.Errorf("role is %.40s, expected a string", f.Value)
			}
		case "content":
			m.Null = false
			if json.Unmarshal(f.Value, &m.Content) != nil {
				if m.Content, err = joinParts(f.Value); err != nil {
					return err
				}
				m.Parts = string(f.Value)
			}
		case "tool_calls":
			calls, err := toolCalls(f.Value)
			if err != nil {
				return err
			}
			if calls != nil {
				others = append(others, Field{f.Name, calls})
			}
		default:
			others = append(others, f)
		}
	}
	switch {
	case m.Role == "":
		return errors.New("role is missing")
	case m.Null && (m.Role != "assistant" || len(others) == 0):
		return errors.New("content is missing")
	}
	if len(others) > 0 {
		m.Fields = string(JoinFields(others))
	}
	return nil
}

// MarshalJSON writes what UnmarshalJSON reads.
func (m Message) MarshalJSON() ([]byte, error) {
	fields := []Field{{"role", encodeJSON(m.Role)}, {"content", encodeJSON(m.Content)}}
	switch {
	case m.Null:
		fields[1].Value = json.RawMessage("null")
	case m.Parts != "":
		fields[1].Value = json.RawMessage(m.Parts)
	}
	if m.Fields != "" {
		others, err := ParseFields(json.RawMessage(m.Fields))
		if err != nil {
			return nil, err
		}
		fields = append(fields, others...)
	}
	return JoinFields(fields), nil
}

// joinParts returns the text of a list of parts: strings, or objects with the field text.
func joinParts(list json.RawMessage) (string, error) {
	var parts []json.RawMessage
	if json.Unmarshal(list, &parts) != nil {
		return "", fmt.Errorf("content is %.40s, expected a string or a list of text parts", list)
	}
	var b strings.Builder
	for i, raw := range parts {
		var text string
		if json.Unmarshal(raw, &text) == nil && string(raw) != "null" {
			b.WriteString(text)
			continue
		}
		var part struct {
			Type string
			Text *string
		}
		if json.Unmarshal(raw, &part) != nil || part.Text == nil ||
			part.Type != "" && part.Type != "text" {
			return "", fmt.Errorf(`part %d of content is %.60s, expected `+
				`{"type": "text", "text": string}`, i, raw)
		}
		b.WriteString(*part.Text)
	}
	return b.String(), nil
}

// toolCalls checks a list of tool calls, each {"function": {"name", "arguments"}} or that function
// alone. Calls that are strings of JSON are decoded. It returns nil for an empty list.
func toolCalls(list json.RawMessage) (json.RawMessage, error) {
	var calls []json.RawMessage
	if json.Unmarshal(DecodeText(list), &calls) != nil {
		return nil, fmt.Errorf("tool_calls is %.60s, expected a list of calls", list)
	}
	for i := range calls {
		calls[i] = DecodeText(calls[i])
		var call struct {
			Name     *string
			Function *struct{ Name *string }
		}
		if json.Unmarshal(calls[i], &call) != nil ||
			call.Name == nil && (call.Function == nil || call.Function.Name == nil) {
			return nil, fmt.Errorf(`tool call %d is %.60s, expected `+
				`{"function": {"name": string, "arguments": object or string}}`, i, calls[i])
		}
	}
	if len(calls) == 0 {
		return nil, nil
	}
	return encodeJSON(calls), nil
}

// DecodeText returns the JSON list or object that a JSON string holds, and any other value as it
// is.
func DecodeText(value json.RawMessage) json.RawMessage {
	var text string
	if json.Unmarshal(value, &text) != nil {
		return value
	}
	inner := bytes.TrimSpace([]byte(text))
	if len(inner) == 0 || inner[0] != '{' && inner[0] != '[' || !json.Valid(inner) {
		return value
	}
	return inner
}

// form says how a message is given to a template.
type form struct {
	parts   bool // content as a list of parts
	objects bool // arguments of tool calls as objects, though they were given as text
	empty   bool // "" for missing content
}

// value returns the message as a template's value.
func (m Message) value(f form) (*jinja.Dict, error) {
	d := jinja.NewDict() // a template may print a message: its keys keep this order
	var content any = m.Content
	switch {
	case m.Null && !f.empty:
		content = nil
	case f.parts && m.Parts != "":
		content = json.RawMessage(m.Parts)
	}
	if err := errors.Join(d.Set("role", m.Role), d.Set("content", content)); err != nil {
		return nil, err
	}
	if m.Fields == "" {
		return d, nil
	}
	fields, err := ParseFields(json.RawMessage(m.Fields))
	for _, field := range fields {
		if f.objects && field.Name == "tool_calls" {
			field.Value = withObjects(field.Value)
		}
		err = errors.Join(err, d.Set(field.Name, field.Value))
	}
	return d, err
}

// withObjects decodes the arguments of tool calls that are text.
func withObjects(calls json.RawMessage) json.RawMessage {
	var list []json.RawMessage
	json.Unmarshal(calls, &list)
	for i, call := range list {
		list[i] = mapField(call, "arguments", DecodeText)
		list[i] = mapField(list[i], "function", func(f json.RawMessage) json.RawMessage {
			return mapField(f, "arguments", DecodeText)
		})
	}
	return encodeJSON(list)
}

// mapField applies change to a member of an object.
func mapField(object json.RawMessage, name string,
	change func(json.RawMessage) json.RawMessage) json.RawMessage {
	fields, err := ParseFields(object)
	if err != nil {
		return object
	}
	for i := range fields {
		if fields[i].Name == name {
			fields[i].Value = change(fields[i].Value)
		}
	}
	return JoinFields(fields)
}
