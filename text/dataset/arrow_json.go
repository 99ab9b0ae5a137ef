package dataset

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/apache/arrow-go/v18/arrow"
	arrays "github.com/apache/arrow-go/v18/arrow/array"
	_ "github.com/apache/arrow-go/v18/arrow/extensions" // arrow.json
)

// limited is JSON of at most about most bytes.
type limited struct {
	bytes.Buffer
	most int
}

// writeArrow writes value i of an array as JSON.
func writeArrow(b *limited, array arrow.Array, i int) error {
	if b.Len() > b.most {
		return errTooLong(b.most)
	}
	if array.IsNull(i) {
		b.WriteString("null")
		return nil
	}
	text := func(s string) error {
		if !utf8.ValidString(s) {
			return errBinary
		}
		writeString(&b.Buffer, s)
		return nil
	}
	signed := func(v int64) error { b.WriteString(strconv.FormatInt(v, 10)); return nil }
	unsigned := func(v uint64) error { b.WriteString(strconv.FormatUint(v, 10)); return nil }
	float := func(v float64) error {
		s, err := floatJSON(v)
		b.WriteString(s)
		return err
	}
	switch a := array.(type) {
	case *arrays.Null:
		b.WriteString("null")
		return nil
	case *arrays.Boolean:
		b.WriteString(strconv.FormatBool(a.Value(i)))
		return nil
	case *arrays.Int8:
		return signed(int64(a.Value(i)))
	case *arrays.Int16:
		return signed(int64(a.Value(i)))
	case *arrays.Int32:
		return signed(int64(a.Value(i)))
	case *arrays.Int64:
		return signed(a.Value(i))
	case *arrays.Uint8:
		return unsigned(uint64(a.Value(i)))
	case *arrays.Uint16:
		return unsigned(uint64(a.Value(i)))
	case *arrays.Uint32:
		return unsigned(uint64(a.Value(i)))
	case *arrays.Uint64:
		return unsigned(a.Value(i))
	case *arrays.Float16:
		return float(float64(a.Value(i).Float32()))
	case *arrays.Float32:
		return float(float64(a.Value(i)))
	case *arrays.Float64:
		return float(a.Value(i))
	case *arrays.Timestamp:
		t := a.DataType().(*arrow.TimestampType)
		return text(timeText(a.Value(i).ToTime(t.Unit), t.TimeZone != ""))
	case *arrays.Date32:
		return text(a.Value(i).ToTime().Format(time.DateOnly))
	case *arrays.Date64:
		return text(a.Value(i).ToTime().Format(time.DateOnly))
	case *arrays.Binary:
		return text(string(a.Value(i)))
	case *arrays.LargeBinary:
		return text(string(a.Value(i)))
	case *arrays.BinaryView:
		return text(string(a.Value(i)))
	case arrays.StringLike: // string, large_string and string_view
		return text(a.Value(i))
	case *arrays.Dictionary:
		return writeArrow(b, a.Dictionary(), a.GetValueIndex(i))
	case *arrays.RunEndEncoded:
		return writeArrow(b, a.Values(), a.GetPhysicalIndex(i))
	case *arrays.Map:
		return writeArrowMap(b, a, i)
	case arrays.ListLike:
		return writeArrowList(b, a, i)
	case *arrays.Struct:
		return writeArrowStruct(b, a, i)
	case arrays.ExtensionArray:
		if a.ExtensionType().ExtensionName() != "arrow.json" {
			return writeArrow(b, a.Storage(), i)
		}
		stored := limited{most: b.most}
		if err := writeArrow(&stored, a.Storage(), i); err != nil {
			return err
		}
		return writeEmbedded(&b.Buffer, []byte(textOf(stored.Bytes())))
	}
	return fmt.Errorf("its type is %s, expected text, numbers, booleans, times, lists or structs",
		array.DataType())
}

// writeArrowList writes a list of any kind: list, large_list, fixed_size_list,
// list_view or large_list_view.
func writeArrowList(b *limited, list arrays.ListLike, i int) error {
	from, to := list.ValueOffsets(i)
	values := list.ListValues()
	if from < 0 || from > to || to > int64(values.Len()) {
		return fmt.Errorf("the file is damaged: a list from %d to %d of %d values", from, to,
			values.Len())
	}
	b.WriteByte('[')
	for k := from; k < to; k++ {
		if k > from {
			b.WriteByte(',')
		}
		if err := writeArrow(b, values, int(k)); err != nil {
			return err
		}
	}
	b.WriteByte(']')
	return nil
}

// writeArrowMap writes a map as an object. Its keys are text.
func writeArrowMap(b *limited, m *arrays.Map, i int) error {
	from, to := m.ValueOffsets(i)
	keys, items := m.Keys(), m.Items()
	if from < 0 || from > to || to > int64(min(keys.Len(), items.Len())) {
		return fmt.Errorf("the file is damaged: a map from %d to %d of %d entries", from, to,
			keys.Len())
	}
	b.WriteByte('{')
	for k := from; k < to; k++ {
		if k > from {
			b.WriteByte(',')
		}
		start := b.Len()
		if err := writeArrow(b, keys, int(k)); err != nil {
			return err
		}
		if b.Bytes()[start] != '"' {
			return errMapKey
		}
		b.WriteByte(':')
		if err := writeArrow(b, items, int(k)); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

func writeArrowStruct(b *limited, s *arrays.Struct, i int) error {
	fields := s.DataType().(*arrow.StructType).Fields()
	b.WriteByte('{')
	for k, f := range fields {
		if k > 0 {
			b.WriteByte(',')
		}
		writeString(&b.Buffer, f.Name)
		b.WriteByte(':')
		if err := writeArrow(b, s.Field(k), i); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}
