package dataset

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow/memory"
	"github.com/apache/arrow-go/v18/parquet"
	parquetfile "github.com/apache/arrow-go/v18/parquet/file"
	"github.com/apache/arrow-go/v18/parquet/schema"
)

// openParquet unpacks a Parquet file into JSON lines. Its pages are compressed,
// so a single row cannot be read in place.
func openParquet(name string, data []byte, opts Options, maps *mappings) (file, error) {
	unpacked, err := maps.unpack(len(data), func(w io.Writer) error {
		return parquetToLines(data, opts, w)
	})
	if err != nil {
		return nil, err
	}
	return &lines{name: name, data: unpacked, opts: opts, rows: true}, nil
}

// parquetToLines writes the rows of a Parquet file as JSON lines.
func parquetToLines(data []byte, opts Options, w io.Writer) error {
	if err := checkGroups(data); err != nil {
		return err
	}
	props := parquet.NewReaderProperties(memory.NewGoAllocator()) // pages are bounded
	// A page may hold a thousand long texts, far more than the library expects.
	props.MaxCompressedPageSize, props.MaxUncompressedPageSize = math.MaxInt32, math.MaxInt32
	r, err := parquetfile.NewParquetReader(bytes.NewReader(data), parquetfile.WithReadProps(props))
	if err != nil {
		return err
	}
	defer r.Close()
	root := r.MetaData().Schema.Root()
	picked, err := pickColumns(opts, root.NumFields(), func(i int) string {
		return root.Field(i).Name()
	})
	if err != nil {
		return err
	}
	rows := 0
	budget := newPageBudget(len(data))
	for g := range r.NumRowGroups() {
		budget.openGroup()
		group := &rowGroup{reader: r.RowGroup(g), schema: r.MetaData().Schema, budget: budget}
		var columns []*node
		for _, i := range picked {
			c, err := group.column(root.Field(i), 0, 0)
			if err != nil {
				return err
			}
			columns = append(columns, c)
		}
		for {
			line, err := rowJSON(columns, opts.most())
			if err == io.EOF {
				break
			}
			rows++
			if err != nil {
				return fmt.Errorf("row %d: %w", rows, err)
			}
			if _, err := w.Write(line); err != nil {
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

// rowJSON returns the next row of a row group as a line of about most bytes, io.EOF after the last.
func rowJSON(columns []*node, most int) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	ended := 0
	for i, c := range columns {
		if _, err := c.leaves[0].peek(); err == io.EOF {
			ended++
			continue
		}
		if i > 0 {
			b.WriteByte(',')
		}
		writeString(&b, c.name)
		b.WriteByte(':')
		if err := c.write(&b, most); err != nil {
			return nil, fmt.Errorf("column %q: %w", c.name, err)
		}
		for _, l := range c.leaves {
			if next, err := l.peek(); err == nil && next.rep > 0 || err != nil && err != io.EOF {
				return nil, fmt.Errorf("column %q: its parts differ in length", c.name)
			}
		}
	}
	if ended == len(columns) {
		return nil, io.EOF
	}
	if ended > 0 {
		return nil, errors.New("the file is damaged: its columns differ in length")
	}
	b.WriteString("}\n")
	return b.Bytes(), nil
}

// rowGroup gives the leaves of a row group in the order of the schema.
type rowGroup struct {
	reader *parquetfile.RowGroupReader
	schema *schema.Schema
	budget *pageBudget
}

// node is a node of a schema: a value, an object, a list or a map, which is a list too.
type node struct {
	name   string
	def    int16 // definition level from which the value is not null
	list   bool
	object bool  // a map: its elements are objects of a key and a value
	filled int16 // of a list: definition level from which it has elements
	rep    int16 // of a list: repetition level of its elements
	inner  []*node
	leaves []*leaf // below the node, at least one
}

// column returns the node n, whose parent has the given levels.
func (g *rowGroup) column(n schema.Node, def, rep int16) (*node, error) {
	if n.RepetitionType() == parquet.Repetitions.Repeated { // a list without a wrapper
		return g.listOf(n.Name(), n, def, def+1, rep+1)
	}
	if n.RepetitionType() == parquet.Repetitions.Optional {
		def++
	}
	return g.value(n, def, rep)
}

// value returns the node n, which is not null from level def on.
func (g *rowGroup) value(n schema.Node, def, rep int16) (*node, error) {
	c := &node{name: n.Name(), def: def}
	group, isGroup := n.(*schema.GroupNode)
	if !isGroup {
		return c, g.open(c, n)
	}
	switch n.ConvertedType() {
	case schema.ConvertedTypes.List:
		if group.NumFields() != 1 ||
			group.Field(0).RepetitionType() != parquet.Repetitions.Repeated {
			return nil, fmt.Errorf("the file is damaged: column %q is not a list", n.Path())
		}
		middle := group.Field(0)
		element := middle
		if m, ok := middle.(*schema.GroupNode); ok && m.NumFields() == 1 &&
			m.Name() != "array" && m.Name() != n.Name()+"_tuple" {
			element = m.Field(0)
		}
		return g.listOf(n.Name(), element, def, def+1, rep+1)
	case schema.ConvertedTypes.Map, schema.ConvertedTypes.MapKeyValue:
		entries, ok := group.Field(0).(*schema.GroupNode)
		if ok && group.NumFields() == 1 && entries.NumFields() == 2 &&
			entries.RepetitionType() == parquet.Repetitions.Repeated {
			m, err := g.listOf(n.Name(), entries, def, def+1, rep+1)
			if err == nil {
				m.object = true
			}
			return m, err
		}
	}
	for i := range group.NumFields() {
		inner, err := g.column(group.Field(i), def, rep)
		if err != nil {
			return nil, err
		}
		c.inner, c.leaves = append(c.inner, inner), append(c.leaves, inner.leaves...)
	}
	if len(c.leaves) == 0 {
		return nil, fmt.Errorf("column %q is an object without members", n.Path())
	}
	return c, nil
}

// listOf returns a list of the node element.
func (g *rowGroup) listOf(name string, element schema.Node, def, filled, rep int16) (
	*node, error,
) {
	inner := filled
	if element.RepetitionType() == parquet.Repetitions.Optional {
		inner++
	}
	e, err := g.value(element, inner, rep)
	if err != nil {
		return nil, err
	}
	return &node{name: name, def: def, list: true, filled: filled, rep: rep,
		inner: []*node{e}, leaves: e.leaves}, nil
}

// open opens the leaf n.
func (g *rowGroup) open(c *node, n schema.Node) error {
	index := g.schema.ColumnIndexByNode(n)
	if index < 0 {
		return fmt.Errorf("the file is damaged: column %q is not in its schema", n.Path())
	}
	l := &leaf{desc: g.schema.Column(index)}
	meta, err := g.reader.MetaData().ColumnChunk(index)
	if err != nil {
		return err
	}
	l.left = meta.NumValues()
	if err := g.budget.openChunk(meta.TotalCompressedSize()); err != nil {
		return err
	}
	pages, err := g.reader.GetColumnPageReader(index)
	if err != nil {
		return err
	}
	longest, err := g.budget.check(pages, l.desc)
	if err != nil {
		return fmt.Errorf("column %q: %w", n.Path(), err)
	}
	l.atOnce = min(entriesAtOnce, max(1, maxValues/max(1, longest)))
	if l.chunk, err = g.reader.Column(index); err != nil {
		return err
	}
	c.leaves = []*leaf{l}
	return nil
}

// write writes the value of the node in the next row as JSON. b has at most most bytes before it.
func (c *node) write(b *bytes.Buffer, most int) error {
	if b.Len() > most {
		return errTooLong(most)
	}
	first, err := c.leaves[0].peek()
	if err != nil {
		return cutShort(err)
	}
	empty := c.list && first.def < c.filled
	if first.def < c.def || empty {
		for _, l := range c.leaves {
			e, err := l.peek()
			if err != nil {
				return cutShort(err)
			}
			if e.def != first.def {
				return errors.New("the file is damaged: a value is both null and not")
			}
			l.take()
		}
		switch {
		case first.def < c.def:
			b.WriteString("null")
		case c.object:
			b.WriteString("{}")
		default:
			b.WriteString("[]")
		}
		return nil
	}
	switch {
	case c.list:
		open, write, end := byte('['), c.inner[0].write, byte(']')
		if c.object {
			open, write, end = '{', c.inner[0].writeEntry, '}'
		}
		b.WriteByte(open)
		for {
			if err := write(b, most); err != nil {
				return err
			}
			next, err := c.leaves[0].peek()
			if err != nil && err != io.EOF {
				return err
			}
			if err == io.EOF || next.rep != c.rep {
				break
			}
			b.WriteByte(',')
		}
		b.WriteByte(end)
	case c.inner != nil:
		b.WriteByte('{')
		for i, inner := range c.inner {
			if i > 0 {
				b.WriteByte(',')
			}
			writeString(b, inner.name)
			b.WriteByte(':')
			if err := inner.write(b, most); err != nil {
				return err
			}
		}
		b.WriteByte('}')
	default:
		b.WriteString(first.value)
		c.leaves[0].take()
	}
	return nil
}

// writeEntry writes a key and a value of a map as a member of an object. The key is text.
func (c *node) writeEntry(b *bytes.Buffer, most int) error {
	start := b.Len()
	if err := c.inner[0].write(b, most); err != nil {
		return err
	}
	if b.Bytes()[start] != '"' {
		return errMapKey
	}
	b.WriteByte(':')
	return c.inner[1].write(b, most)
}

// cutShort makes the end of a column inside a row an error.
func cutShort(err error) error {
	if err == io.EOF {
		return errors.New("the file is damaged: its columns differ in length")
	}
	return err
}

// leaf reads one column of a row group.
type leaf struct {
	desc   *schema.Column
	chunk  parquetfile.ColumnChunkReader
	left   int64 // entries that were not read yet
	atOnce int   // entries that read reads

	def, rep []int16 // levels of the entries that were read and not yet taken
	// Those entries that are not null become JSON one at a time: many may stand for one large value
	// of a dictionary.
	value       func(i int) (string, error)
	next, count int
	current     string // value next, once it is needed
}

// entry is a value of a leaf, as JSON, or the levels at which there is none.
type entry struct {
	def, rep int16
	value    string
}

// peek returns the next entry, io.EOF after the last.
func (l *leaf) peek() (e entry, err error) {
	if len(l.def) == 0 {
		if err := l.read(); err != nil {
			return e, err
		}
	}
	e = entry{def: l.def[0], rep: l.rep[0]}
	if e.def == l.desc.MaxDefinitionLevel() {
		if l.next >= l.count {
			return e, errors.New("the file is damaged: a value is missing")
		}
		if l.current == "" {
			if l.current, err = l.value(l.next); err != nil {
				return e, err
			}
		}
		e.value = l.current
	}
	return e, nil
}

// take removes the entry that peek returned.
func (l *leaf) take() {
	if l.def[0] == l.desc.MaxDefinitionLevel() {
		l.next, l.current = l.next+1, ""
	}
	l.def, l.rep = l.def[1:], l.rep[1:]
}

// maxEmptyPages is how many empty pages may follow each other.
const maxEmptyPages = 1 << 12

// entriesAtOnce is how many entries read reads at most.
const entriesAtOnce = 1024

// read reads more entries, io.EOF after the last.
func (l *leaf) read() (err error) {
	// The reader stops at an empty page, which pyarrow writes; pages may follow it.
	for retries := 0; !l.chunk.HasNext(); retries++ {
		if err := l.chunk.Err(); err != nil {
			return err
		}
		if l.left <= 0 {
			return io.EOF
		}
		if retries > maxEmptyPages {
			return fmt.Errorf("the file is damaged: %d values are missing", l.left)
		}
	}
	l.def, l.rep = make([]int16, l.atOnce), make([]int16, l.atOnce)
	defer func() {
		if err != nil {
			l.def, l.rep = nil, nil
		}
	}()
	var n int64
	l.next, l.current = 0, ""
	number := integerJSON(l.desc.LogicalType())
	switch r := l.chunk.(type) {
	case *parquetfile.BooleanColumnChunkReader:
		n, err = readEntries(r.ReadBatch, l, func(v bool) (string, error) {
			return strconv.FormatBool(v), nil
		})
	case *parquetfile.Int32ColumnChunkReader:
		if number == nil {
			return l.unsupported()
		}
		n, err = readEntries(r.ReadBatch, l, func(v int32) (string, error) {
			return number(int64(v), uint64(uint32(v))), nil
		})
	case *parquetfile.Int64ColumnChunkReader:
		if number == nil {
			return l.unsupported()
		}
		n, err = readEntries(r.ReadBatch, l, func(v int64) (string, error) {
			return number(v, uint64(v)), nil
		})
	case *parquetfile.Int96ColumnChunkReader: // a timestamp of old writers
		n, err = readEntries(r.ReadBatch, l, func(v parquet.Int96) (string, error) {
			return quotedTime(timeText(v.ToTime(), false)), nil
		})
	case *parquetfile.Float32ColumnChunkReader:
		n, err = readEntries(r.ReadBatch, l, func(v float32) (string, error) {
			return floatJSON(float64(v))
		})
	case *parquetfile.Float64ColumnChunkReader:
		n, err = readEntries(r.ReadBatch, l, floatJSON)
	case *parquetfile.ByteArrayColumnChunkReader:
		_, isJSON := l.desc.LogicalType().(schema.JSONLogicalType)
		n, err = readEntries(r.ReadBatch, l, func(v parquet.ByteArray) (string, error) {
			var b bytes.Buffer
			if isJSON {
				err := writeEmbedded(&b, v)
				return b.String(), err
			}
			if !utf8.Valid(v) {
				return "", errBinary
			}
			writeString(&b, string(v))
			return b.String(), nil
		})
	default:
		return l.unsupported()
	}
	if err != nil {
		return err
	}
	if n < 1 {
		return io.ErrUnexpectedEOF
	}
	l.left -= n
	l.def, l.rep = l.def[:n], l.rep[:n]
	// A file does not store levels that have one possible value.
	if l.desc.MaxDefinitionLevel() == 0 {
		l.def = slices.Repeat([]int16{0}, int(n))
	}
	if l.desc.MaxRepetitionLevel() == 0 {
		l.rep = slices.Repeat([]int16{0}, int(n))
	}
	return nil
}

func (l *leaf) unsupported() error {
	kind := l.desc.PhysicalType().String()
	if logical := l.desc.LogicalType(); logical != nil && !logical.IsNone() {
		kind += " (" + logical.String() + ")"
	}
	return fmt.Errorf("the type of %q is %s, expected text, numbers, booleans or times",
		l.desc.Path(), kind)
}

// readEntries reads a batch of a column into its levels and values, which format writes as JSON.
// It returns the number of entries.
func readEntries[T any](readBatch func(n int64, values []T, def, rep []int16) (int64, int, error),
	l *leaf, format func(T) (string, error),
) (n int64, err error) {
	values := make([]T, l.atOnce)
	n, l.count, err = readBatch(int64(l.atOnce), values, l.def, l.rep)
	l.value = func(i int) (string, error) { return format(values[i]) }
	return n, err
}
