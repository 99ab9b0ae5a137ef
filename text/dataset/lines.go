package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

var errNotUTF8 = errors.New("not text in UTF-8")

// lineAt names the line that a byte is on. If the file was truncated since it
// was mapped, it names the byte instead.
func lineAt(prefix string, data []byte, at int64) string {
	n := 1
	err := guarded(func() error { n += bytes.Count(data[:at], []byte("\n")); return nil })
	if err != nil {
		return fmt.Sprintf("%s byte %d", strings.TrimSuffix(prefix, " row "), at)
	}
	return fmt.Sprintf("%s%d", prefix, n)
}

// lines is a file of one JSON record a line, or a Parquet file unpacked into one
// line a row. A position is a byte offset.
type lines struct {
	name  string
	data  []byte
	opts  Options
	names *columnCheck // nil for the rows of a Parquet file
	rows  bool         // the lines are rows of a Parquet file
}

// isLines reports whether the first line of a file is an object: datasets and pandas also name such
// files .json.
func isLines(data []byte) bool {
	line, _, _ := bytes.Cut(bytes.TrimSpace(data), []byte("\n"))
	return bytes.HasPrefix(line, []byte("{")) && json.Valid(line)
}

func (l *lines) scan(take func(at int64) error) error {
	for at := 0; at < len(l.data); {
		line := l.line(at)
		if len(bytes.TrimSpace(line)) > 0 {
			if err := take(int64(at)); err != nil {
				return err
			}
		}
		at += len(line) + 1
	}
	return nil
}

func (l *lines) line(at int) []byte {
	line, _, _ := bytes.Cut(l.data[at:], []byte("\n"))
	return line
}

func (l *lines) record(at int64) (record, error) {
	line := l.line(int(at))
	if most := l.opts.most(); len(line) > most {
		return record{}, errTooLong(most)
	}
	if l.opts.SkipBad && !utf8.Valid(line) {
		return record{}, errNotUTF8
	}
	return parseRecord(line, l.opts, l.names)
}

func (l *lines) where(at int64) string {
	if l.rows {
		return lineAt(l.name+": row ", l.data, at)
	}
	return lineAt(l.name+":", l.data, at)
}

func (l *lines) offset(at int64) int64 { return at }

func (l *lines) title() string { return l.name }

func (l *lines) size() int64 { return int64(len(l.data)) }

// array is a file with a JSON array of records. A position is a byte offset.
type array struct {
	name  string
	data  []byte
	opts  Options
	names *columnCheck
}

func (a *array) scan(take func(at int64) error) error {
	d := json.NewDecoder(bytes.NewReader(a.data))
	next := func() int64 { // offset of the next value
		at := int(d.InputOffset())
		for at < len(a.data) && strings.IndexByte(" \t\r\n,", a.data[at]) >= 0 {
			at++
		}
		return int64(at)
	}
	fail := func(at int64, err error) error { return fmt.Errorf("%s: %w", a.where(at), err) }
	at := next()
	if token, err := d.Token(); err != nil || token != json.Delim('[') {
		return fail(at, errors.New("expected an array of records "+
			"(for one record a line, name the file .jsonl)"))
	}
	for d.More() {
		at = next()
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return fail(at, jsonProblem(err))
		}
		if most := a.opts.most(); len(raw) > most {
			return fail(at, errTooLong(most))
		}
		if err := take(at); err != nil {
			return err
		}
	}
	at = next()
	if _, err := d.Token(); err != nil {
		return fail(at, fmt.Errorf("the array does not end: %w", jsonProblem(err)))
	}
	if _, err := d.Token(); err != io.EOF {
		return fail(next(), errors.New("something follows the array of records"))
	}
	return nil
}

func (a *array) record(at int64) (r record, err error) {
	var raw json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(a.data[at:])).Decode(&raw); err != nil {
		return r, jsonProblem(err)
	}
	return parseRecord(raw, a.opts, a.names)
}

func (a *array) where(at int64) string { return lineAt(a.name+":", a.data, at) }

func (a *array) offset(at int64) int64 { return at }

func (a *array) title() string { return a.name }

func (a *array) size() int64 { return int64(len(a.data)) }
