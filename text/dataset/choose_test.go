package dataset

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"
	"github.com/klauspost/compress/zstd"
)

func TestChoose_TakesTheFilesOfASplit(t *testing.T) {
	for _, c := range []struct{ names, train, validation, held string }{
		{"README.md test.jsonl train.jsonl", "train.jsonl", "test.jsonl", "test.jsonl"},
		{"a.jsonl b.txt LICENSE sub/c.csv", "a.jsonl b.txt sub/c.csv", "a.jsonl b.txt " +
			"sub/c.csv", ""},
		{"data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet " +
			"data/validation-00000-of-00001.parquet data/test-00000-of-00001.parquet README.md",
			"data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet",
			"data/validation-00000-of-00001.parquet",
			"data/validation-00000-of-00001.parquet data/test-00000-of-00001.parquet"},
		{"dataset_dict.json train/data-00000-of-00001.arrow train/state.json " +
			"train/dataset_info.json test/data-00000-of-00001.arrow train/cache-1.arrow",
			"train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow",
			"test/data-00000-of-00001.arrow"},
		{"all.jsonl dev.jsonl", "all.jsonl", "dev.jsonl", "dev.jsonl"},
		{"constraints.jsonl contest.jsonl", "constraints.jsonl contest.jsonl",
			"constraints.jsonl contest.jsonl", ""},
		{"my_train_2.jsonl other.jsonl", "my_train_2.jsonl", "other.jsonl", ""},
		{"train/testing_ground.jsonl train/a.jsonl", "train/a.jsonl", "train/testing_ground.jsonl",
			"train/testing_ground.jsonl"},
		{"train.jsonl", "train.jsonl", "train.jsonl", ""},
		{"docs/training.md docs/test.md docs/index.md", "docs/training.md docs/test.md " +
			"docs/index.md", "docs/training.md docs/test.md docs/index.md", ""},
		{"train/a.go test/b.go", "train/a.go", "test/b.go", "test/b.go"},
	} {
		for _, validation := range []bool{false, true} {
			chosen, err := Choose(strings.Fields(c.names), validation)
			want := c.train
			if validation {
				want = c.validation
			}
			if got := strings.Join(chosen.Files, " "); err != nil || got != want {
				t.Errorf("%s: %q, %v, want %q", c.names, got, err, want)
			}
			if got := strings.Join(chosen.HeldOut, " "); !validation && got != c.held {
				t.Errorf("%s: holds out %q, want %q", c.names, got, c.held)
			}
		}
	}
	for names, want := range map[string]string{"test.jsonl README.md": "validation and tests",
		"README.md LICENSE": "holds no data"} {
		if _, err := Choose(strings.Fields(names), false); err == nil ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", names, err)
		}
	}
}

func TestLoad_FoldersAndArchivesLearnFromTheTrainSplit(t *testing.T) {
	tok := chars(t, "")
	files := [][2]string{{"README.md", "about"}, {"train.jsonl", `{"text":"learn"}`},
		{"test.jsonl", `{"text":"hold"}`}}
	dir := t.TempDir()
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(dir, f[0]), []byte(f[1]), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dir, writeArchive(t, files...)} {
		for validation, want := range map[bool]string{false: "\x02learn\x03",
			true: "\x02hold\x03"} {
			d, err := Load(path, tok, Options{Validation: validation})
			if err != nil {
				t.Fatal(err)
			}
			s, err := d.At(0)
			if got := tok.Decode(s.IDs, false); err != nil || d.Len() != 1 || got != want {
				t.Errorf("%s: %q, %v, want %q", path, got, err, want)
			}
		}
	}
}

func TestLoad_CompressedFilesEqualPlainOnes(t *testing.T) {
	tok := chars(t, "")
	for name, content := range map[string]string{"a.jsonl": "{\"text\":\"one\"}" +
		"\n{\"text\":\"two\"}\n",
		"a.csv": "text\none\ntwo\n", "a.txt": "prose",
		"a.parquet": string(parquetBytes(t, schemaOf(column("text", arrow.BinaryTypes.String)),
			`[{"text":"one"}]`))} {
		want := mustLoad(t, writeTestFile(t, name, content), tok, Options{})
		var gz, zst bytes.Buffer
		g := gzip.NewWriter(&gz)
		g.Write([]byte(content))
		g.Close()
		z, err := zstd.NewWriter(&zst)
		if err != nil {
			t.Fatal(err)
		}
		z.Write([]byte(content))
		z.Close()
		for ext, data := range map[string]string{".gz": gz.String(), ".zst": zst.String()} {
			sameSamples(t, name+ext, mustLoad(t, writeTestFile(t, name+ext, data), tok,
				Options{}), want)
			for _, bad := range []string{data[:len(data)-3], "not compressed"} {
				if _, err := Load(writeTestFile(t, name+ext, bad), tok, Options{}); err == nil ||
					!strings.Contains(err.Error(), name+ext) {
					t.Errorf("%s: a damaged file gives %v", name+ext, err)
				}
			}
		}
	}
}

func TestLoad_TablesAreRecords(t *testing.T) {
	tok := chars(t, "")
	for name, content := range map[string]string{
		"a.csv": "instruction,input,output\n\"Name a colour.\",,\"Red, of course.\"\r\n\n" +
			"\"Say \"\"hello\"\".\",\"2, 3\n4\",5\n",
		"lines.json": `{"instruction":"Name a colour.","output":"Red, of course."}` + "\r\n" +
			`{"instruction":"Say \"hello\".","input":"2, 3\n4","output":"5"}`,
		"a.tsv": "\ufeffoutput\tid\tinstruction\tinput\nRed, of course.\t7\tName a colour.\t\n" +
			"5\t8\tSay \"hello\".\t\"2, 3\n4\"",
	} {
		want := mustLoad(t, writeTestFile(t, "a.json", `[{"instruction":"Name a colour.","output":`+
			`"Red, of course."},{"instruction":"Say \"hello\".","input":"2, 3\n4",`+
			`"output":"5"}]`), tok,
			Options{})
		sameSamples(t, name, mustLoad(t, writeTestFile(t, name, content), tok, Options{}), want)
	}
	texts := mustLoad(t, writeTestFile(t, "a.jsonl", "{\"text\":\"a\"}\n{\"text\":\"\"}\n"+
		"{\"text\":\"b\"}\n"), tok, Options{})
	sameSamples(t, "an empty text", mustLoad(t, writeTestFile(t, "a.csv",
		"id,text\n1,a\n2,\n3,b\n"), tok, Options{}), texts)
	for content, want := range map[string]string{
		"question,answer\nx,y\n":        `no known layout has the columns ["question" "answer"]`,
		"text\na\nb,c\n":                "a.csv:3: 2 fields, but the first row names 1 column",
		"text,text\na,b\n":              `two of its columns have the name "text"`,
		"text\n\"a\n":                   "a.csv:2: a quoted field does not end",
		"text\n\"a\"b\n":                `a.csv:2: "b\n" follows the closing quote`,
		"instruction,output\nx,y\nz,\n": `a.csv:3: field "output" is missing`,
		"":                              "no known layout has the columns",
		"text\n":                        "no sample to learn from",
	} {
		_, err := Load(writeTestFile(t, "a.csv", content), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", content, err, want)
		}
	}
}

func TestSplit_RecordsStayWhole(t *testing.T) {
	tok := chars(t, "")
	var b strings.Builder
	for _, c := range "abcdefghij" {
		b.WriteString(`{"text":"` + strings.Repeat(string(c), 50) + "\"}\n")
	}
	d, err := Load(writeTestFile(t, "a.jsonl", b.String()), tok, Options{MaxLength: 8})
	if err != nil {
		t.Fatal(err)
	}
	train, valid, err := d.Split(0.3, 1)
	if err != nil || train.Report.Records != 7 || valid.Report.Records != 3 {
		t.Fatal(err, train.Report, valid.Report)
	}
	seen := map[int32]int{}
	for part, set := range []*Dataset{train, valid} {
		for _, s := range readAll(t, set).Samples {
			for _, id := range s.IDs {
				if before, ok := seen[id]; id > 3 && ok && before != part {
					t.Errorf("%q is on both sides", rune(id))
				}
				seen[id] = part
			}
		}
	}
	long := writeTestFile(t, "a.txt", strings.Repeat("a line of text\n", 20000))
	if d, err = Load(long, tok, Options{MaxLength: 64}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Split(0.5, 1); err == nil || !strings.Contains(err.Error(), "one record") {
		t.Error(err)
	}
}

func FuzzLoad_Table(f *testing.F) {
	f.Add("text\na\n\"b\"\"c\"\n")
	f.Add("instruction,output\r\nx,\"y\nz\"")
	tok := chars(f, chatML)
	f.Fuzz(func(t *testing.T, data string) { fuzzFile(t, tok, "a.csv", []byte(data)) })
}
