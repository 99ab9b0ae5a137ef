package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/parquet"
	parquetfile "github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/schema"
)

// openParquet unpacks a Parquet file into JSON lines. Its pages are compressed,
// so a single row cannot be read in place.
func openParquet(name string, data []byte, layout Layout, maps *mappings) (file, error) {
	unpacked, err := maps.unpack(len(data), func(w io.Writer) error {
		return parquetToLines(data, layout, w)
	})
	if err != nil {
		return nil, err
	}
	return &lines{name: name, data: unpacked, layout: layout, rows: true}, nil
}

// parquetToLines writes the rows of a Parquet file as JSON lines.
func parquetToLines(data []byte, layout Layout, w io.Writer) error {
	props := parquetfile.WithReadProps(parquet.NewReaderProperties(bounded))
	r, err := parquetfile.NewParquetReader(bytes.NewReader(data), props)
	if err != nil {
		return err
	}
	defer r.Close()
	s := r.MetaData().Schema
	top := func(i int) string { return s.Column(i).ColumnPath()[0] }
	picked, err := pickColumns(layout, s.NumColumns(), top)
	if err != nil {
		return err
	}
	rows := 0
	for g := range r.NumRowGroups() {
		var columns []*leaf
		for _, i := range picked {
			c := s.Column(i)
			isMessage := len(c.ColumnPath()) > 1 && slices.Contains(chatColumns, top(i))
			if isMessage && c.Name() != "role" && c.Name() != "content" {
				continue
			}
			chunk, err := r.RowGroup(g).Column(i)
			if err != nil {
				return err
			}
			columns = append(columns, &leaf{desc: c, chunk: chunk})
		}
		for {
			line, err := rowJSON(columns)
			if err == io.EOF {
				break
			}
			rows++
			if err != nil {
				return fmt.Errorf("row %d: %w", rows, err)
			}
			if _, err := w.Write(append(line, '\n')); err != nil {
				return err
			}
		}
	}
	if int64(rows) != r.NumRows() {
		return fmt.Errorf("the file is damaged: it holds %d rows, its header says %d", rows,
			r.NumRows())
	}
	return nil
}

// rowJSON returns the next row of a row group, io.EOF after the last.
func rowJSON(columns []*leaf) ([]byte, error) {
	object := map[string]json.RawMessage{}
	messages := map[string]map[string][]string{} // by column, then "role" or "content"
	ended := 0
	for _, c := range columns {
		values, err := c.next()
		if err == io.EOF {
			ended++
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("column %q: %w", c.desc.Path(), err)
		}
		top := c.desc.ColumnPath()[0]
		if c.desc.MaxRepetitionLevel() == 1 && slices.Contains(chatColumns, top) {
			if messages[top] == nil {
				messages[top] = map[string][]string{}
			}
			messages[top][c.desc.Name()] = values
			continue
		}
		value, err := c.jsonValue(values)
		if err != nil {
			return nil, err
		}
		if value != "null" {
			object[top] = json.RawMessage(value)
		}
	}
	if ended == len(columns) {
		return nil, io.EOF
	}
	if ended > 0 {
		return nil, errors.New("the file is damaged: its columns differ in length")
	}
	for column, parts := range messages {
		roles, contents := parts["role"], parts["content"]
		if len(roles) != len(contents) {
			return nil, fmt.Errorf("column %q has %d roles and %d contents",
				column, len(roles), len(contents))
		}
		var list []string
		for i := range roles {
			list = append(list, fmt.Sprintf(`{"role":%s,"content":%s}`, roles[i], contents[i]))
		}
		object[column] = json.RawMessage("[" + strings.Join(list, ",") + "]")
	}
	return json.Marshal(object)
}

// leaf reads one column of a row group.
type leaf struct {
	desc  *schema.Column
	chunk parquetfile.ColumnChunkReader

	def, rep []int16  // levels of the entries that were read and not yet returned
	values   []string // those entries that are not null, as JSON
}

// jsonValue returns the entries of one row as a JSON value: a scalar, or a list
// for the column tokens.
func (c *leaf) jsonValue(entries []string) (string, error) {
	value := strings.Join(entries, ",")
	switch {
	case c.desc.MaxRepetitionLevel() == 0 && len(c.desc.ColumnPath()) == 1:
		return value, nil
	case c.desc.MaxRepetitionLevel() > 1 || c.desc.ColumnPath()[0] != "tokens":
		return "", fmt.Errorf("column %q has a type that no record has there; %s",
			c.desc.Path(), knownLayouts)
	case value == "null" && len(entries) == 1: // an empty list
		return "[]", nil
	default:
		return "[" + value + "]", nil
	}
}

// next returns the entries of the column in the next row, as JSON.
func (c *leaf) next() (row []string, err error) {
	for {
		if len(c.def) == 0 {
			if err := c.read(); err == io.EOF && len(row) > 0 {
				return row, nil
			} else if err != nil {
				return nil, err
			}
		}
		if len(row) > 0 && c.rep[0] == 0 {
			return row, nil
		}
		value := "null"
		if c.def[0] == c.desc.MaxDefinitionLevel() {
			value, c.values = c.values[0], c.values[1:]
		}
		row, c.def, c.rep = append(row, value), c.def[1:], c.rep[1:]
	}
}

// entriesAtOnce is how many entries read reads.
const entriesAtOnce = 1024

// read reads more entries, io.EOF after the last.
func (c *leaf) read() error {
	if !c.chunk.HasNext() {
		if err := c.chunk.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	c.def, c.rep = make([]int16, entriesAtOnce), make([]int16, entriesAtOnce)
	var n int64
	var err error
	switch r := c.chunk.(type) {
	case *parquetfile.Int32ColumnChunkReader:
		n, c.values, err = readEntries(r.ReadBatch, c, func(v int32) (string, error) {
			return strconv.Itoa(int(v)), nil
		})
	case *parquetfile.Int64ColumnChunkReader:
		n, c.values, err = readEntries(r.ReadBatch, c, func(v int64) (string, error) {
			return strconv.FormatInt(v, 10), nil
		})
	case *parquetfile.ByteArrayColumnChunkReader:
		n, c.values, err = readEntries(r.ReadBatch, c, func(v parquet.ByteArray) (string, error) {
			if !utf8.Valid(v) {
				return "", errors.New("not text in UTF-8")
			}
			text, err := json.Marshal(string(v))
			return string(text), err
		})
	default:
		return fmt.Errorf("its type is %s, expected text or token ids", c.desc.PhysicalType())
	}
	if err != nil {
		return err
	}
	if n < 1 {
		return io.ErrUnexpectedEOF
	}
	c.def, c.rep = c.def[:n], c.rep[:n]
	// A file does not store levels that have one possible value.
	if c.desc.MaxDefinitionLevel() == 0 {
		c.def = slices.Repeat([]int16{0}, int(n))
	}
	if c.desc.MaxRepetitionLevel() == 0 {
		c.rep = slices.Repeat([]int16{0}, int(n))
	}
	return nil
}

// readEntries reads a batch of a column into its levels and returns the number
// of entries and those that are not null, as JSON.
func readEntries[T any](readBatch func(n int64, values []T, def, rep []int16) (int64, int, error),
	c *leaf, format func(T) (string, error),
) (n int64, entries []string, err error) {
	values := make([]T, entriesAtOnce)
	n, count, err := readBatch(entriesAtOnce, values, c.def, c.rep)
	if err != nil {
		return 0, nil, err
	}
	for _, v := range values[:count] {
		entry, err := format(v)
		if err != nil {
			return 0, nil, err
		}
		entries = append(entries, entry)
	}
	return n, entries, nil
}
