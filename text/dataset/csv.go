package dataset

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"conquer/text/tokenizer"
)

// table is a file of rows of text with the names of the columns in the first row.
// Fields are separated by a comma or a tab. A field in quotes may hold separators,
// line ends and, doubled, quotes. An empty field is missing. A position is a byte
// offset.
type table struct {
	name      string
	data      []byte
	opts      Options
	separator byte
	columns   []string
	first     int // offset of the first row after the names
}

func openTable(name string, data []byte, opts Options, separator byte) (file, error) {
	t := &table{name: name, data: data, opts: opts, separator: separator}
	t.first = t.skipBlank(0)
	columns, end, err := t.row(t.first)
	if err != nil {
		return nil, fmt.Errorf("the names of its columns: %w", err)
	}
	t.columns, t.first = columns, end
	known := map[string]bool{}
	for _, c := range columns {
		if known[c] {
			return nil, fmt.Errorf("two of its columns have the name %.80q", c)
		}
		known[c] = true
	}
	if _, err := pickColumns(opts, len(columns),
		func(i int) string { return columns[i] }); err != nil {
		return nil, fmt.Errorf("%w; the first row names the columns", err)
	}
	return t, nil
}

// skipBlank returns the offset of the next line that is not empty.
func (t *table) skipBlank(at int) int {
	for at < len(t.data) && (t.data[at] == '\n' || t.data[at] == '\r') {
		at++
	}
	return at
}

// row returns the fields of the row at an offset and the offset of its end.
func (t *table) row(at int) (fields []string, end int, err error) {
	for {
		var field []byte
		if at < len(t.data) && t.data[at] == '"' {
			closed := false
			for at++; at < len(t.data) && !closed; {
				i := bytes.IndexByte(t.data[at:min(len(t.data), at+maxRecord)], '"')
				if i < 0 {
					break
				}
				if len(field)+i > maxRecord {
					return nil, at, errTooLong(maxRecord)
				}
				field = append(field, t.data[at:at+i]...)
				at += i + 1
				if at < len(t.data) && t.data[at] == '"' {
					field = append(field, '"')
					at++
				} else {
					closed = true
				}
			}
			if !closed && len(t.data)-at > maxRecord {
				return nil, at, fmt.Errorf("a quoted field does not end within %d bytes", maxRecord)
			}
			if !closed {
				return nil, at, errors.New("a quoted field does not end")
			}
		} else {
			n := bytes.IndexAny(t.data[at:], string([]byte{t.separator, '\r', '\n'}))
			if n < 0 {
				n = len(t.data) - at
			}
			field, at = t.data[at:at+n], at+n
		}
		fields = append(fields, string(field))
		switch {
		case at >= len(t.data):
			return fields, at, nil
		case t.data[at] == t.separator:
			at++
		case t.data[at] == '\n' || t.data[at] == '\r':
			return fields, at + 1, nil
		default:
			return nil, at, fmt.Errorf("%.20q follows the closing quote of a field", t.data[at:])
		}
	}
}

func (t *table) scan(take func(at int64) error) error {
	for at := t.skipBlank(t.first); at < len(t.data); at = t.skipBlank(at) {
		_, end, err := t.row(at)
		if err != nil {
			return fmt.Errorf("%s: %w", t.where(int64(at)), err)
		}
		if err := take(int64(at)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func (t *table) record(at int64) (r record, err error) {
	values, _, err := t.row(int(at))
	if err != nil {
		return r, err
	}
	if len(values) != len(t.columns) {
		return r, fmt.Errorf("%s, but the first row names %s", Count(len(values), "field"),
			Count(len(t.columns), "column"))
	}
	fields := jsonFields{}
	for i, v := range values {
		if v == "" {
			continue
		}
		fields[t.columns[i]] = quoted(v)
		if t.opts.Columns.target(t.columns[i]) == "tokens" {
			fields[t.columns[i]] = tokenizer.DecodeText(quoted(v))
		}
	}
	t.opts.Columns.rename(fields)
	if slices.Contains(t.columns, t.opts.Columns.source("text")) &&
		!slices.ContainsFunc(recordColumns, fields.has) {
		fields["text"] = quoted("") // a text is empty rather than missing
	}
	r, err = fields.record(t.opts.Layout)
	return r, t.opts.Columns.explain(err, t.columns)
}

func (t *table) where(at int64) string { return lineAt(t.name+":", t.data, at) }

func (t *table) offset(at int64) int64 { return at }

func (t *table) title() string { return t.name }

func (t *table) size() int64 { return int64(len(t.data)) }
