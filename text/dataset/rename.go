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
// or fields that data sets have instead. Some names, such as role and content, are those of the
// fields of a message. A field that is mapped keeps its own name too, for records that lack the
// other one. A file that has some of the mapped columns must have all, a file that has none is read
// as it is. A nil Columns maps nothing.
type Columns struct {
	names   map[string]string
	records []string // the mapped names of fields of records, sorted

	mu    sync.Mutex
	seen  map[string]bool // mapped names of which a file had the column
	there []string        // columns of a file that lacks some
}

// messageColumns are the fields of messages that Columns may map.
var messageColumns = []string{"role", "content", "reasoning_content", "thinking", "tool_calls",
	"train", "weight"}

// ParseColumns reads a list of NAME=COLUMN.
func ParseColumns(list []string) (*Columns, error) {
	columns := map[string]string{}
	used := map[string]string{}
	for _, item := range list {
		name, column, ok := strings.Cut(item, "=")
		name = strings.TrimSpace(name)
		switch {
		case !ok || name == "" || column == "":
			return nil, fmt.Errorf("found %q, expected NAME=COLUMN, such as "+
				"instruction=question", item)
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
	c := &Columns{names: columns, seen: map[string]bool{}}
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		if !slices.Contains(messageColumns, name) {
			c.records = append(c.records, name)
		}
	}
	return c, nil
}

// Unused returns an error that names the columns there are if a mapped column was in none of the
// files that were read with c.
func (c *Columns) Unused() error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range c.sorted() {
		switch {
		case c.seen[name]:
		case c.there == nil:
			return fmt.Errorf("there is no column %.80q, which stands for %s: the data has no "+
				"columns", c.names[name], name)
		default:
			return missingColumn(name, c.names[name], c.there)
		}
	}
	return nil
}

// list returns what is mapped.
func (c *Columns) list() (list []string) {
	if c == nil {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		list = append(list, name, c.names[name])
	}
	return list
}

// found returns the mapped names of which a file had the column, and the columns of a file that
// lacks some.
func (c *Columns) found() (seen, there []string) {
	if c == nil {
		return nil, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.seen)), c.there
}

// noteFound notes what found returned for a file that is not read again.
func (c *Columns) noteFound(seen, there []string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range seen {
		c.seen[name] = true
	}
	if there != nil {
		c.there = there
	}
}

// sorted returns the mapped names of fields of records.
func (c *Columns) sorted() []string {
	if c == nil {
		return nil
	}
	return c.records
}

// source returns the name that a data set has for a field.
func (c *Columns) source(name string) string {
	if c == nil || c.names[name] == "" || slices.Contains(messageColumns, name) {
		return name
	}
	return c.names[name]
}

// target returns the field that a column holds.
func (c *Columns) target(column string) string {
	for _, name := range c.sorted() {
		if c.names[name] == column {
			return name
		}
	}
	return column
}

// check checks the names of a file's columns.
func (c *Columns) check(names []string) error {
	has := map[string]bool{}
	for _, name := range names {
		has[name] = true
	}
	return c.checkSome(has, names)
}

// checkSome checks the columns of a file. there are the columns to name in an error.
func (c *Columns) checkSome(has map[string]bool, there []string) error {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	some := false
	for _, name := range c.sorted() {
		if has[c.names[name]] {
			some, c.seen[name] = true, true
		}
	}
	for _, name := range c.sorted() {
		if has[c.names[name]] {
			continue
		}
		c.there = there
		if some && !has[name] {
			return missingColumn(name, c.names[name], there)
		}
	}
	return nil
}

// explain adds to the error of a record which mapped column it lacks. names are the columns of the
// record.
func (c *Columns) explain(err error, names []string) error {
	if err == nil {
		return nil
	}
	for _, name := range c.sorted() {
		if !slices.Contains(names, c.names[name]) {
			return fmt.Errorf("%w; %w", err, missingColumn(name, c.names[name], names))
		}
	}
	return err
}

func missingColumn(name, column string, names []string) error {
	return fmt.Errorf("there is no column %.80q, which stands for %s; there are %s", column, name,
		someNames(names))
}

// rename gives the fields of a record the names that they have here.
func (c *Columns) rename(fields jsonFields) {
	if c == nil {
		return
	}
	found := map[string]json.RawMessage{}
	for _, name := range c.sorted() {
		if raw, ok := fields[c.names[name]]; ok {
			found[name] = raw
		}
	}
	for name := range found {
		delete(fields, c.names[name])
	}
	maps.Copy(fields, found)
	if len(c.sorted()) == len(c.names) {
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
func (c *Columns) renameMessages(raw json.RawMessage) json.RawMessage {
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

func (c *Columns) renameMessage(raw json.RawMessage) (json.RawMessage, bool) {
	fields, err := tokenizer.ParseFields(raw)
	if err != nil {
		return nil, false
	}
	names, replaced := map[string]string{}, map[string]bool{}
	for _, name := range messageColumns {
		column := c.names[name]
		for _, f := range fields {
			if column != "" && f.Name == column {
				names[column], replaced[name] = name, true
			}
		}
	}
	if replaced["role"] { // as ShareGPT writes it
		if !replaced["content"] {
			names["content"] = "content"
		}
		for column, name := range names {
			names[column] = map[string]string{"role": "from", "content": "value"}[name]
			if names[column] == "" {
				names[column] = name
			}
		}
	}
	var kept []tokenizer.Field
	for _, f := range fields {
		if name := names[f.Name]; name != "" {
			f.Name = name
		} else if replaced[f.Name] {
			continue // the mapped field stands for it
		}
		kept = append(kept, f)
	}
	return tokenizer.JoinFields(kept), true
}

// columnCheck notes which fields the records of a file have.
type columnCheck struct {
	mu      sync.Mutex
	columns *Columns
	has     map[string]bool // of the fields that are mapped and their columns
	names   []string        // fields of the first record
}

// checker returns a columnCheck, or nil if nothing is mapped.
func (c *Columns) checker() *columnCheck {
	if len(c.sorted()) == 0 {
		return nil
	}
	return &columnCheck{columns: c, has: map[string]bool{}}
}

// note notes the fields of a record.
func (c *columnCheck) note(fields jsonFields) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range c.columns.sorted() {
		for _, field := range []string{name, c.columns.names[name]} {
			if fields.has(field) {
				c.has[field] = true
			}
		}
	}
	if c.names == nil {
		c.names = slices.Sorted(maps.Keys(fields))
	}
}

// err checks the fields that were noted.
func (c *columnCheck) err() error {
	if c == nil || c.names == nil {
		return nil
	}
	return c.columns.checkSome(c.has, c.names)
}
