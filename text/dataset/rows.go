package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// Rows calls each with every record of a file in order: a JSON object with all of its fields, also
// those that are null, and the record's file and line or row for errors. The file is .jsonl, .json,
// .parquet or .arrow, compressed or not. An error of each ends the reading and is returned as it
// is. Unlike [Load], Rows does not ask what the fields mean.
func Rows(path string, each func(row json.RawMessage, where string) error) (err error) {
	switch extension(path) {
	case ".jsonl", ".ndjson", ".json", ".parquet", ".arrow":
	default:
		return fmt.Errorf("%s: expected a file of records: .jsonl, .json, .parquet or .arrow", path)
	}
	maps := &mappings{}
	defer func() { err = errors.Join(err, maps.close()) }()
	data, err := maps.mapFile(path)
	if err != nil {
		return err
	}
	f, err := openFile(path, data, Options{all: true}, maps)
	if err != nil {
		return err
	}
	row := func(at int64) (json.RawMessage, error) {
		switch f := f.(type) {
		case *lines:
			return bytes.Clone(f.line(int(at))), nil
		case *array:
			var raw json.RawMessage
			err := json.NewDecoder(bytes.NewReader(f.data[at:])).Decode(&raw)
			return raw, err
		case *arrowFile:
			return f.row(at)
		}
		return nil, errors.New("expected records")
	}
	return f.scan(func(at int64) error {
		var raw json.RawMessage
		err := guarded(func() (err error) {
			raw, err = row(at)
			return err
		})
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", f.where(at), err)
		case len(raw) > maxRecord:
			return fmt.Errorf("%s: %w", f.where(at), errTooLong(maxRecord))
		case !json.Valid(raw) || bytes.TrimSpace(raw)[0] != '{':
			_, err := readFields(raw, nil)
			return fmt.Errorf("%s: %w", f.where(at), err)
		}
		return each(raw, f.where(at))
	})
}

// row returns a row with all of its columns.
func (f *arrowFile) row(at int64) (json.RawMessage, error) {
	number := 0
	for f.starts[number+1] <= at {
		number++
	}
	batch, err := f.readBatch(number)
	if err != nil {
		return nil, err
	}
	b := limited{most: f.opts.most()}
	b.WriteByte('{')
	for k, i := range f.columns {
		if k > 0 {
			b.WriteByte(',')
		}
		writeString(&b.Buffer, batch.ColumnName(i))
		b.WriteByte(':')
		if err := writeArrow(&b, batch.Column(i), int(at-f.starts[number])); err != nil {
			return nil, fmt.Errorf("column %q: %w", batch.ColumnName(i), err)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), f.spend(max(b.Len(), minRow))
}
