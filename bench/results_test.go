package bench

import (
	"encoding/csv"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// fill gives every field of a struct a different value, to notice a field that a file loses.
func fill(t *testing.T, v reflect.Value, next *int) {
	*next++
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(t, v.Field(i), next)
		}
	case reflect.String:
		v.SetString("text, \"quoted\"\nand <broken> " + string(rune('a'+*next%26)))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*next))
	case reflect.Float64:
		v.SetFloat(float64(*next) + 0.125)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(t, v.Elem(), next)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(t, v.Index(0), next)
		fill(t, v.Index(1), next)
	default:
		t.Fatalf("a row has a field of type %v", v.Type())
	}
}

func TestResults_RoundTrip(t *testing.T) {
	for kind, rows := range map[string]any{
		SSD: []SSDRow{}, Chunks: []ChunksRow{}, Accuracy: []AccuracyRow{},
		GPTScore: []GPTScoreRow{},
	} {
		n := 0
		r := &Results{}
		fill(t, reflect.ValueOf(&r.Machine).Elem(), &n)
		fill(t, reflect.ValueOf(&r.Versions).Elem(), &n)
		r.Kind, r.Command, r.Time = kind, "conquer bench", time.Now().UTC()
		list := reflect.New(reflect.TypeOf(rows))
		fill(t, list.Elem(), &n)
		r.Rows = list.Elem().Interface()
		dir := filepath.Join(t.TempDir(), "new")
		if err := r.Save(dir); err != nil {
			t.Fatal(err)
		}
		got, err := Read(filepath.Join(dir, kind+".json"))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, r) {
			t.Errorf("%s: read %+v, saved %+v", kind, got, r)
		}
		f, err := os.Open(filepath.Join(dir, kind+".csv"))
		if err != nil {
			t.Fatal(err)
		}
		table, err := csv.NewReader(f).ReadAll()
		f.Close()
		if err != nil || len(table) != 3 || len(table[0]) != list.Elem().Type().Elem().NumField() {
			t.Errorf("%s.csv: %v, %v", kind, table, err)
		}
	}
}

func TestRead_ErrorsNameTheFile(t *testing.T) {
	for text, words := range map[string]string{
		"":                             "results",
		"[]":                           "results",
		`{"kind": "poem", "rows": []}`: "poem",
		`{"kind": "ssd", "rows": {}}`:  "rows",
		`{"kind": "ssd", "rows": [{"median_ms": "fast"}]}`:                       "rows",
		`{"kind": "accuracy", "rows": [` + strings.Repeat("{},", 1<<20) + "{}]}": "1048578 objects",
	} {
		path := filepath.Join(t.TempDir(), "r.json")
		os.WriteFile(path, []byte(text), 0o644)
		if _, err := Read(path); err == nil || !strings.Contains(err.Error(), words) ||
			!strings.Contains(err.Error(), path) {
			t.Errorf("%.80q: %v, want an error with the path and %q", text, err, words)
		}
	}
}
