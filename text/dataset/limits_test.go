package dataset

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"
	arrays "github.com/apache/arrow-go/v18/arrow/array"
	"github.com/apache/arrow-go/v18/arrow/ipc"
	"github.com/apache/arrow-go/v18/arrow/memory"

	"conquer/text/tokenizer"
)

// lower sets a limit for the time of a test.
func lower[T any](t *testing.T, limit *T, to T) {
	usual := *limit
	*limit = to
	t.Cleanup(func() { *limit = usual })
}

func TestChoose_TakesLinearTime(t *testing.T) {
	var names []string
	for i := range 70000 {
		names = append(names, fmt.Sprintf("train/%d.txt", i), fmt.Sprintf("test/%d.txt", i))
	}
	began := time.Now()
	c, err := Choose(names, false)
	if err != nil || len(c.Files) != 70000 || len(c.HeldOut) != 70000 {
		t.Errorf("%d files, %d held out, %v", len(c.Files), len(c.HeldOut), err)
	}
	// A free core needs 0.1 s. Comparing each name with each takes minutes.
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestLoad_RefusesLongRecords(t *testing.T) {
	lower(t, &maxRecord, 1000)
	long := strings.Repeat("x", 2000)
	for name, data := range map[string]string{
		"a.jsonl": `{"text":"a"}` + "\n" + `{"text":"` + long + `"}`,
		"a.json":  `[{"text":"` + long + `"}]`,
		"a.csv":   "text\n\"" + long + "\n",
		"b.csv":   "text\n\"" + strings.Repeat(long[:500]+`""`, 9) + "\"\n",
		"a.arrow": string(arrowBytes(t, false, schemaOf(column("messages", messagesType)),
			`[{"messages":[{"role":"user","content":"`+long+`"},{"role":"a","content":"a"}]}]`)),
		"a.parquet": string(parquetBytes(t, schemaOf(column("messages", messagesType)),
			`[{"messages":[{"role":"user","content":"`+long+`"},{"role":"a","content":"a"}]}]`)),
	} {
		_, err := Load(writeTestFile(t, name, data), chars(t, ""), Options{})
		if err == nil || !strings.Contains(err.Error(), "1000 bytes") ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func zipped(t *testing.T, data []byte) string {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return packed.String()
}

// A small file that unpacks to one long record costs no more than a small file.
func TestLoad_RefusesRecordsThatAreLongForTheirFile(t *testing.T) {
	long := strings.Repeat("long ", 1_000_000)
	for name, data := range map[string]string{
		"a.jsonl.gz": zipped(t, fmt.Appendf(nil, `{"text":%q}`, long)),
		"a.parquet": string(parquetBytes(t, schemaOf(column("text", arrow.BinaryTypes.String)),
			`[{"text":"`+long+`"}]`)),
		"a.arrow.gz": zipped(t, arrowBytes(t, false, schemaOf(column("tokens",
			arrow.PrimitiveTypes.Int32)), "["+strings.Repeat(`{"tokens":65},`, 1<<20)+
			`{"tokens":65}]`))} {
		_, err := Load(writeTestFile(t, name, data), chars(t, ""), Options{MaxLength: 1024})
		if err == nil || !strings.Contains(err.Error(), "has more than 4194304 bytes") ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	d, err := Load(writeTestFile(t, "a.jsonl", fmt.Sprintf(`{"text":%q}`, long)), chars(t, ""),
		Options{MaxLength: 1024})
	if err != nil {
		t.Fatal(err) // the file itself is long
	}
	d.Close()
}

// Errors of a record or table with many names list some of them, and are found soon.
func TestLoad_NamesSomeOfManyFields(t *testing.T) {
	names := make([]string, 50000)
	for i := range names {
		names[i] = fmt.Sprintf("f%05d", i)
	}
	object, err := json.Marshal(map[string]int{"z": 1})
	if err != nil {
		t.Fatal(err)
	}
	fields := `{"` + strings.Join(names, `":1,"`) + `":1,` + string(object[1:])
	for name, data := range map[string]string{"a.csv": strings.Join(names, ",") + "\n1",
		"a.jsonl": fields} {
		_, err := Load(writeTestFile(t, name, data), chars(t, ""), Options{})
		if err == nil || !strings.Contains(err.Error(), `"f00019"] and `) ||
			len(err.Error()) > 1000 {
			t.Errorf("%s: %.2000v", name, err)
		}
	}
}

// stopWriter fails after some bytes.
type stopWriter struct{ left int }

var errStop = errors.New("stop")

func (w *stopWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errStop
	}
	return len(p), nil
}

// A column of one large value that each row repeats becomes JSON row by row: reading some rows
// takes the memory of some values, not of many rows.
func TestParquetToLines_ReadsRepeatedValuesOneAtATime(t *testing.T) {
	const size, rows = 1 << 14, 1000
	row := `{"text":"` + strings.Repeat("x", size) + `"}`
	data := parquetBytes(t, schemaOf(column("text", arrow.BinaryTypes.String)),
		"["+strings.Repeat(row+",", rows-1)+row+"]")
	if len(data) > 10*size {
		t.Fatalf("the file has %d bytes: its values are not shared", len(data))
	}
	lower(t, &maxValues, 10*size)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	err := parquetToLines(data, Options{}, &stopWriter{5 * size})
	runtime.ReadMemStats(&after)
	if !errors.Is(err, errStop) {
		t.Error(err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > rows*size/5 {
		t.Errorf("reading 5 rows of %d bytes took %d", size, took)
	}
}

// A run of one value stands for any number of rows.
func TestLoad_BoundsTheRowsOfAnArrowFile(t *testing.T) {
	lower(t, &minUnpackLimit, 1<<20)
	mem := memory.NewGoAllocator()
	ends := arrays.NewInt64Builder(mem)
	ends.Append(1 << 40)
	texts := arrays.NewStringBuilder(mem)
	texts.Append("a")
	run := arrays.NewRunEndEncodedArray(ends.NewArray(), texts.NewArray(), 1<<40, 0)
	schema := schemaOf(column("text", run.DataType()))
	var b bytes.Buffer
	w, err := ipc.NewFileWriter(&b, ipc.WithSchema(schema))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(arrays.NewRecordBatch(schema, []arrow.Array{run}, 1<<40)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	_, err = Load(writeTestFile(t, "a.arrow", b.String()), chars(t, ""), Options{})
	if err == nil || !strings.Contains(err.Error(), "unpacks to more than 100 times its size") {
		t.Error(err)
	}
}

func TestLoad_BoundsTheNamesOfAnArchive(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 70 {
		w.WriteHeader(&tar.Header{Name: fmt.Sprint(i, strings.Repeat("x", 1_000_000)), Mode: 0o644,
			Typeflag: tar.TypeReg, Format: tar.FormatPAX})
	}
	w.Close()
	_, _, err := openMembers("a.tar.gz", 1000, tar.NewReader(&b), Options{}, new(mappings))
	if err == nil || !strings.Contains(err.Error(), "their names have more than") {
		t.Errorf("%.300v", err)
	}
}

// Bytes that are not UTF-8 are an error in a file of records, which names the line. A file without
// records is skipped in a folder.
func TestLoad_NamesTheLineThatIsNotUTF8(t *testing.T) {
	for name, c := range map[string]struct{ data, want string }{
		"a.jsonl": {"{\"text\":\"a\"}\n{\"text\":\"\xe9t\xe9\"}", "line 2 holds the byte 0xe9"},
		"a.csv":   {"text\nab\n\n\xff\n", "line 4 holds the byte 0xff"},
		"a.txt":   {"a\nb\x00", "line 2 holds a zero byte"},
		"b.txt":   {"\x1f\x8b\x08\x00\xff", "it is compressed by gzip: decompress it with gzip -d"},
		"a":       {"ab\n\xc3(", "not a text file in UTF-8: line 2 holds the byte 0xc3"},
	} {
		_, err := Load(writeTestFile(t, name, c.data), chars(t, ""), Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestHasCalls_LooksAtTheMessagesOwnMember(t *testing.T) {
	for fields, want := range map[string]bool{
		"": false, `{"tool_calls":[{"id":"a"}]}`: true, `{"tool_calls":[]}`: false,
		`{"a":1,"tool_calls":[{}]}`:               true,
		`{"meta":{"a":1,"tool_calls":[{}]}}`:      false,
		`{"meta":[{"tool_calls":[1]}],"b":"c"}`:   false,
		`{"note":"{\"a\":1,\"tool_calls\":[1]}"}`: false,
		`{ "tool_calls" : [ {"function":{}} ] }`:  true,
	} {
		if got := hasCalls(tokenizer.Message{Role: "assistant", Fields: fields}); got != want {
			t.Errorf("%s: %t", fields, got)
		}
	}
}

// Files that are too many to be mapped are copied into one. Their samples are the same.
func TestLoad_BundlesTheFilesThatAreTooMany(t *testing.T) {
	dir := t.TempDir()
	for i := range 12 {
		text := strings.Repeat(fmt.Sprintf("line %d\n", i), 10+i%2*10000)
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%02d.txt", i)), []byte(text),
			0o666); err != nil {
			t.Fatal(err)
		}
	}
	tok := chars(t, "")
	usual := mustLoad(t, dir, tok, Options{MaxLength: 100})
	lower(t, &maxMapped, 2)
	lower(t, &maxSmall, 100)
	maps := new(mappings)
	d, err := load(dir, tok, Options{MaxLength: 100}, maps)
	if err != nil {
		t.Fatal(err)
	}
	if len(maps.list) != 3 || maps.bundle == nil {
		t.Errorf("%d mappings, expected 2 of files and a bundle", len(maps.list))
	}
	if d.Len() != usual.Len() {
		t.Fatalf("%d samples, expected %d", d.Len(), usual.Len())
	}
	for i := range d.Len() {
		got, err := d.At(i)
		want, err2 := usual.At(i)
		if err != nil || err2 != nil || !slices.Equal(got.IDs, want.IDs) {
			t.Fatalf("sample %d: %v %v", i, err, err2)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	t.Setenv("TMPDIR", filepath.Join(dir, "missing"))
	if _, err := Load(dir, tok, Options{}); err == nil || !strings.Contains(err.Error(), "TMPDIR") {
		t.Errorf("got %v, expected that the folder for temporary files is missing", err)
	}
}
