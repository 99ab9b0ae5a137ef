package dataset

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
)

func readRows(t *testing.T, path string) (rows []any) {
	t.Helper()
	err := Rows(path, func(row json.RawMessage, where string) error {
		if !strings.HasPrefix(where, path) {
			t.Errorf("a record of %s is in %s", path, where)
		}
		rows = append(rows, nil)
		return json.Unmarshal(row, &rows[len(rows)-1])
	})
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

// Every kind of file gives the same rows, with all fields and with those that are null.
func TestRows_ReadAllFieldsOfEveryFormat(t *testing.T) {
	lines := `{"question": "Why?", "choices": {"text": ["a", "é"], "label": ["A", "B"]}, "n": 3}
{"question": null, "choices": {"text": [], "label": []}, "n": 4}
`
	var want []any
	for line := range strings.Lines(lines) {
		var v any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatal(err)
		}
		want = append(want, v)
	}
	texts := arrow.ListOf(arrow.BinaryTypes.String)
	schema := schemaOf(column("question", arrow.BinaryTypes.String),
		column("choices", arrow.StructOf(column("text", texts), column("label", texts))),
		column("n", arrow.PrimitiveTypes.Int64))
	array := "[" + strings.Join(strings.Split(strings.TrimSpace(lines), "\n"), ",") + "]"
	for name, data := range map[string]string{
		"a.jsonl": lines, "a.json": array, "lines.json": lines,
		"a.parquet": string(parquetBytes(t, schema, array)),
		"a.arrow":   string(arrowBytes(t, false, schema, array)),
		"s.arrow":   string(arrowBytes(t, true, schema, array)),
	} {
		path := writeTestFile(t, name, data)
		if got := readRows(t, path); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

func TestRows_ErrorsNameTheLine(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"broken.jsonl": {"{\"a\": 1}\n{\"a\": \n", "broken.jsonl:2"},
		"list.jsonl":   {"{\"a\": 1}\n[1]\n", "list.jsonl:2: expected an object"},
		"a.csv":        {"a,b\n1,2\n", "expected a file of records"},
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		err := Rows(path, func(json.RawMessage, string) error { return nil })
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want an error with %q", name, err, c.want)
		}
	}
}
