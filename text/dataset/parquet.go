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

// openParquet unpacks a Parquet file into JSON lines: its pages are compressed,
// so no row of it can be read alone.
func openParquet(name string, data []byte, layout Layout, maps *mappings) (file, error) {
	unpackedData, err := maps.unpacked(len(data), func(w io.Writer) error { return parquetToLines(data, layout, w) })
	if err != nil {
		return nil, err
	}
	return &lines{name: name, data: unpackedData, layout: layout, rows: true}, nil
}

func parquetToLines(data []byte, layout Layout, w io.Writer) error {
	r, err := parquetfile.NewParquetReader(bytes.NewReader(data), parquetfile.WithReadProps(parquet.NewReaderProperties(bounded)))
	if err != nil {
		return err
	}
	defer r.Close()
	s := r.MetaData().Schema
	picked, err := pickColumns(layout, s.NumColumns(), func(i int) string { return s.Column(i).ColumnPath()[0] })
	if err != nil {
		return err
	}
	row := 0
	for g := range r.NumRowGroups() {
		var columns []*leaf
		for _, i := range picked {
			if c := s.Column(i); len(c.ColumnPath()) == 1 || !slices.Contains(chatColumns, c.ColumnPath()[0]) || c.Name() == "role" || c.Name() == "content" {
				columns = append(columns, &leaf{desc: c})
				if columns[len(columns)-1].chunk, err = r.RowGroup(g).Column(i); err != nil {
					return err
				}
			}
		}
		for {
			row++
			line, err := rowJSON(columns)
			if err == io.EOF {
				row--
				break
			}
			if err != nil {
				return fmt.Errorf("row %d: %w", row, err)
			}
			if _, err := w.Write(append(line, '\n')); err != nil {
				return err
			}
		}
	}
	if int64(row) != r.NumRows() {
		return fmt.Errorf("the file is damaged: it holds %d rows and says %d", row, r.NumRows())
	}
	return nil
}

// rowJSON is the next row of a row group, io.EOF after the last.
func rowJSON(columns []*leaf) ([]byte, error) {
	object := map[string]json.RawMessage{}
	messages := map[string]map[string][]string{} // column, role or content
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
		top, value := c.desc.ColumnPath()[0], strings.Join(values, ",")
		switch {
		case c.desc.MaxRepetitionLevel() == 1 && slices.Contains(chatColumns, top):
			if messages[top] == nil {
				messages[top] = map[string][]string{}
			}
			messages[top][c.desc.Name()] = values
			continue
		case c.desc.MaxRepetitionLevel() == 0 && len(c.desc.ColumnPath()) == 1:
		case c.desc.MaxRepetitionLevel() > 1 || top != "tokens":
			return nil, fmt.Errorf("column %q is not what a record has there; %s", c.desc.Path(), knownLayouts)
		case value == "null" && len(values) == 1: // an empty list
			value = "[]"
		default:
			value = "[" + value + "]"
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
			return nil, fmt.Errorf("%s have %d roles and %d contents", column, len(roles), len(contents))
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

	def, rep []int16  // of the entries read and not yet taken
	values   []string // of those that are not null, as JSON
}

// next returns the column's entries in the next row, as JSON.
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

const entriesAtOnce = 1024

// read reads further entries, io.EOF after the last.
func (c *leaf) read() error {
	if !c.chunk.HasNext() {
		if err := c.chunk.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	c.def, c.rep, c.values = make([]int16, entriesAtOnce), make([]int16, entriesAtOnce), nil
	var n int64
	var err error
	switch r := c.chunk.(type) {
	case *parquetfile.Int32ColumnChunkReader:
		var values [entriesAtOnce]int32
		var k int
		if n, k, err = r.ReadBatch(entriesAtOnce, values[:], c.def, c.rep); err == nil {
			for _, v := range values[:k] {
				c.values = append(c.values, strconv.Itoa(int(v)))
			}
		}
	case *parquetfile.Int64ColumnChunkReader:
		var values [entriesAtOnce]int64
		var k int
		if n, k, err = r.ReadBatch(entriesAtOnce, values[:], c.def, c.rep); err == nil {
			for _, v := range values[:k] {
				c.values = append(c.values, strconv.FormatInt(v, 10))
			}
		}
	case *parquetfile.ByteArrayColumnChunkReader:
		values := make([]parquet.ByteArray, entriesAtOnce)
		var k int
		if n, k, err = r.ReadBatch(entriesAtOnce, values, c.def, c.rep); err == nil {
			for _, v := range values[:k] {
				if !utf8.Valid(v) {
					return errors.New("not text in UTF-8")
				}
				text, _ := json.Marshal(string(v))
				c.values = append(c.values, string(text))
			}
		}
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
	// Levels are not stored where they can only be one thing.
	if c.desc.MaxDefinitionLevel() == 0 {
		c.def = slices.Repeat([]int16{0}, int(n))
	}
	if c.desc.MaxRepetitionLevel() == 0 {
		c.rep = slices.Repeat([]int16{0}, int(n))
	}
	return nil
}
