package dataset

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"conquer/text/tokenizer"
)

// Columns maps the names that fields have here, such as instruction, to the names of the columns
// or fields that a data set has instead. The names role and content are those of the fields of a
// message. A field that is mapped keeps its own name too, for records that lack the other one.
type Columns map[string]string

// messageColumns are the fields of messages that Columns may map.
var messageColumns = []string{"role", "content"}

// ParseColumns reads a list of NAME=COLUMN.
func ParseColumns(list []string) (Columns, error) {
	columns := Columns{}
	used := map[string]string{}
	for _, item := range list {
		name, column, ok := strings.Cut(item, "=")
		name = strings.TrimSpace(name)
		switch {
		case !ok || name == "" || column == "":
			return nil, fmt.Errorf("%q, expected NAME=COLUMN, such as instruction=question", item)
		case !slices.Contains(recordColumns, name) && !slices.Contains(messageColumns, name):
			return nil, fmt.Errorf("%q is not the name of a field here: known are %s", name,
				strings.Join(slices.Concat(recordColumns, messageColumns), ", "))
		case columns[name] != "":
			return nil, fmt.Errorf("%q is given twice", name)
		case used[column] != "":
			return nil, fmt.Errorf("%q stands for both %s and %s", column, used[column], name)
		}
		columns[name] = column
		if !slices.Contains(messageColumns, name) {
			used[column] = name
		}
	}
	return columns, nil
}

// ofRecords reports whether a name is mapped that belongs to records rather than to messages.
func (c Columns) ofRecords(name string) bool {
	return c[name] != "" && !slices.Contains(messageColumns, name)
}

// source returns the name that a data set has for a field.
func (c Columns) source(name string) string {
	if c.ofRecords(name) {
		return c[name]
	}
	return name
}

// target returns the field that a column holds.
func (c Columns) target(column string) string {
	for name, source := range c {
		if source == column && c.ofRecords(name) {
			return name
		}
	}
	return column
}

// missing returns an error that names the columns there are if neither a mapped one nor the field
// itself is among them.
func (c Columns) missing(names []string) error {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if c.ofRecords(name) && !slices.Contains(names, c[name]) && !slices.Contains(names, name) {
			return missingColumn(name, c[name], names)
		}
	}
	return nil
}

// explain adds to the error of a record which mapped column it lacks. names are the columns of the
// record.
func (c Columns) explain(err error, names []string) error {
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if err != nil && c.ofRecords(name) && !slices.Contains(names, c[name]) {
			return fmt.Errorf("%w; %w", err, missingColumn(name, c[name], names))
		}
	}
	return err
}

func missingColumn(name, column string, names []string) error {
	return fmt.Errorf("there is no column %.80q, which stands for %s; there are %s", column, name,
		someNames(names))
}

// rename gives the fields of a record the names that they have here.
func (c Columns) rename(fields jsonFields) {
	if len(c) == 0 {
		return
	}
	found := map[string]json.RawMessage{}
	for name, column := range c {
		if raw, ok := fields[column]; ok && c.ofRecords(name) {
			found[name] = raw
		}
	}
	for name := range found {
		delete(fields, c[name])
	}
	maps.Copy(fields, found)
	if c["role"] == "" && c["content"] == "" {
		return
	}
	for _, name := range slices.Concat(conversationFields,
		[]string{"prompt", "completion", "chosen", "rejected"}) {
		if raw, ok := fields[name]; ok {
			fields[name] = c.renameMessages(raw)
		}
	}
}

// renameMessages renames the fields of a list of messages, or of an object of lists. A mapped role
// takes the speakers of ShareGPT as well as roles. Anything else stays as it is.
func (c Columns) renameMessages(raw json.RawMessage) json.RawMessage {
	inner := tokenizer.DecodeText(raw)
	var list []json.RawMessage
	if json.Unmarshal(inner, &list) != nil {
		if object, ok := c.renameMessage(inner); ok {
			return object
		}
		return raw
	}
	for i, message := range list {
		object, ok := c.renameMessage(tokenizer.DecodeText(message))
		if !ok {
			return raw
		}
		list[i] = object
	}
	return tokenizer.JoinList(list)
}

func (c Columns) renameMessage(raw json.RawMessage) (json.RawMessage, bool) {
	fields, err := tokenizer.ParseFields(raw)
	if err != nil {
		return nil, false
	}
	names := map[string]string{}
	if c["role"] != "" {
		names[c["role"]] = "from"
		names["content"] = "value"
	}
	if c["content"] != "" {
		delete(names, "content")
		names[c["content"]] = "content"
		if c["role"] != "" {
			names[c["content"]] = "value"
		}
	}
	var kept []tokenizer.Field
	has := map[string]bool{}
	for _, f := range fields {
		has[f.Name] = true
	}
	for _, f := range fields {
		switch name := names[f.Name]; {
		case name != "":
			f.Name = name
		case f.Name == "role" && has[c["role"]], f.Name == "content" && has[c["content"]]:
			continue // the mapped field stands for it
		}
		kept = append(kept, f)
	}
	return tokenizer.JoinFields(kept), true
}

// columnCheck notes which mapped columns the records of a file have.
type columnCheck struct {
	mu      sync.Mutex
	columns Columns
	lacking map[string]bool // names of which no column was seen
	names   []string        // fields of the first record that lacks one
}

// check returns a columnCheck, or nil if nothing is mapped.
func (c Columns) check() *columnCheck {
	check := &columnCheck{columns: c, lacking: map[string]bool{}}
	for name := range c {
		if c.ofRecords(name) {
			check.lacking[name] = true
		}
	}
	if len(check.lacking) == 0 {
		return nil
	}
	return check
}

// note notes the fields of a record.
func (c *columnCheck) note(fields jsonFields) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.lacking {
		if fields.has(name) || fields.has(c.columns[name]) {
			delete(c.lacking, name)
		}
	}
	if len(c.lacking) > 0 && c.names == nil {
		c.names = slices.Sorted(maps.Keys(fields))
	}
}

// err returns an error if no record had a mapped column.
func (c *columnCheck) err() error {
	if c == nil || c.names == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.lacking)) {
		return missingColumn(name, c.columns[name], c.names)
	}
	return nil
}
