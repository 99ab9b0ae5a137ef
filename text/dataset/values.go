package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/apache/arrow-go/v18/parquet/schema"
)

// The values of columns are written as JSON, so that a row is read as a line of JSON is.

var (
	errMapKey = errors.New("a map has keys that are not text")
	errBinary = errors.New("it holds bytes that are not text")
)

func quotedTime(t string) string { return `"` + t + `"` }

// integerJSON returns how an integer of a logical type is written, or nil if the type is a decimal
// or another thing than a number, a date or a timestamp.
func integerJSON(t schema.LogicalType) func(signed int64, unsigned uint64) string {
	switch t := t.(type) {
	case nil, schema.NoLogicalType, schema.UnknownLogicalType, schema.NullLogicalType:
	case schema.IntLogicalType:
		if !t.IsSigned() {
			return func(_ int64, v uint64) string { return strconv.FormatUint(v, 10) }
		}
	case schema.DateLogicalType:
		return func(v int64, _ uint64) string {
			return quotedTime(time.Unix(v*24*60*60, 0).UTC().Format(time.DateOnly))
		}
	case schema.TimestampLogicalType:
		at := map[schema.TimeUnitType]func(int64) time.Time{
			schema.TimeUnitMillis: time.UnixMilli, schema.TimeUnitMicros: time.UnixMicro,
			schema.TimeUnitNanos: func(v int64) time.Time { return time.Unix(0, v) },
		}[t.TimeUnit()]
		if at == nil {
			return nil
		}
		return func(v int64, _ uint64) string {
			return quotedTime(timeText(at(v), t.IsAdjustedToUTC()))
		}
	default:
		return nil
	}
	return func(v int64, _ uint64) string { return strconv.FormatInt(v, 10) }
}

// floatJSON writes a number as Python does, with a fraction.
func floatJSON(v float64) (string, error) {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "", fmt.Errorf("a number is %v", v)
	}
	text := strconv.FormatFloat(v, 'g', -1, 64)
	if v == math.Trunc(v) && math.Abs(v) < 1e16 {
		text = strconv.FormatFloat(v, 'f', 1, 64)
	}
	return text, nil
}

// writeEmbedded writes a value of a column of JSON, which is text.
func writeEmbedded(b *bytes.Buffer, text []byte) error {
	if !json.Valid(text) {
		return fmt.Errorf("%.40q is not JSON", text)
	}
	return json.Compact(b, text)
}

func writeString(b *bytes.Buffer, s string) {
	text, _ := json.Marshal(s) // a string can be encoded
	b.Write(text)
}

// timeText writes a time as Python's isoformat does; zoned says that it is a time of UTC.
func timeText(t time.Time, zoned bool) string {
	layout := "2006-01-02T15:04:05"
	if t.Nanosecond() != 0 {
		layout += ".000000"
	}
	if zoned {
		layout += "+00:00"
	}
	return t.UTC().Format(layout)
}
