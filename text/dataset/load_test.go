package dataset

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apache/arrow-go/v18/arrow"

	"conquer/text/tokenizer"
)

// chars is the character tokenizer, with a chat template unless it is "".
func chars(t testing.TB, template string) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Open(tokenizer.CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	if template == "" {
		return tok
	}
	dir := t.TempDir()
	if err := tok.Save(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "chat_template.jinja")
	if err := os.WriteFile(path, []byte(template), 0o666); err != nil {
		t.Fatal(err)
	}
	if tok, err = tokenizer.Open(dir); err != nil {
		t.Fatal(err)
	}
	return tok
}

// chatML writes turns as <role>content\x03\n; \x03 is the token that ends a turn.
const chatML = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\x03\n{% endfor %}{% " +
	"if add_generation_prompt %}<assistant>{% endif %}"

func writeTestFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func mustLoad(t testing.TB, path string, tok *tokenizer.Tokenizer, opts Options) *Dataset {
	t.Helper()
	d, err := Load(path, tok, opts)
	if err != nil {
		t.Fatal(err)
	}
	return readAll(t, d)
}

// readAll returns the samples of d in memory.
func readAll(t testing.TB, d *Dataset) *Dataset {
	t.Helper()
	all := &Dataset{Report: d.Report, Bad: d.Bad}
	for i := range d.Len() {
		s, err := d.At(i)
		if err != nil {
			t.Fatal(err)
		}
		all.Samples = append(all.Samples, s)
	}
	return all
}

func TestLoad_FolderAndArchiveGiveTheSameSamples(t *testing.T) {
	files := []struct{ name, content string }{
		{"a.jsonl", `{"text":"one"}` + "\n"},
		{"b.txt", "two"},
		{"c.bin", "\x00\x01"},
		{"sub/d.json", `[{"instruction":"i","output":"o"}]`},
		{".hidden", "no"},
	}
	dir := t.TempDir()
	archive := filepath.Join(t.TempDir(), "data.tar.gz")
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	for _, file := range files {
		path := filepath.Join(dir, file.name)
		os.MkdirAll(filepath.Dir(path), 0o777)
		if err := os.WriteFile(path, []byte(file.content), 0o666); err != nil {
			t.Fatal(err)
		}
		w.WriteHeader(&tar.Header{Name: file.name, Mode: 0o644, Typeflag: tar.TypeReg,
			Size: int64(len(file.content))})
		w.Write([]byte(file.content))
	}
	w.Close()
	z.Close()
	f.Close()
	tok := chars(t, "")
	a, b := mustLoad(t, dir, tok, Options{}), mustLoad(t, archive, tok, Options{})
	if a.Report != b.Report || a.Report.Samples != 3 || a.Report.Skipped != 1 {
		t.Errorf("folder: %s; archive: %s", a.Report, b.Report)
	}
	for i := range a.Samples {
		if !slices.Equal(a.Samples[i].IDs, b.Samples[i].IDs) {
			t.Errorf("sample %d differs", i)
		}
	}
}

func TestLoad_RecordErrorsNameFileLineAndExpectation(t *testing.T) {
	tok := chars(t, chatML)
	for _, c := range []struct{ name, content, want string }{
		{"a.jsonl", "{\"text\":\"x\"}\n\n{\"text\": 3}\n",
			`a.jsonl:3: field "text" is 3, expected a string`},
		{"a.jsonl", `{"text":"x"`, `a.jsonl:1: not JSON`},
		{"a.jsonl", `[1]`, `a.jsonl:1: expected an object`},
		{"a.jsonl", `{"question":"x","answer":"y"}`,
			`a.jsonl:1: no known layout has the fields ["answer" "question"]; known are`},
		{"a.jsonl", `{"instruction":"x"}`, `a.jsonl:1: field "output" is missing`},
		{"a.jsonl", `{"instruction":"x"}`, `--columns output=NAME`},
		{"a.jsonl", "{\"text\":\"x\"}\n{\"text\":3}\n", "leave it out with --on_bad_record skip"},
		{"a.jsonl", `{"messages":[{"role":"user","content":"x","weight":0.5}]}`,
			`weight is 0.5, expected 0 or 1; each message`},
		{"a.jsonl", `{"messages":[{"role":"user"}]}`, `a.jsonl:1: message 0: content is missing`},
		{"a.jsonl", `{"messages":[{"role":"user","content":"x"}]}`, `nothing to learn`},
		{"a.json", "[\n{\"text\":\"x\"},\n\n{\"txt\":\"x\"}]", `a.json:4: no known layout`},
		{"a.json", "[\n{\"text\":\"x\"},", `a.json:2: the`},
		{"a.json", "{\n}", `a.json:1: expected an array`},
		{"a.json", "{\"text\":\"x\"}\n{\"txt\":\"x\"}\n", `a.json:2: no known layout`},
		{"a.json", "[]\n[]", `a.json:2: something follows`},
		{"a.txt", "\xff\xfe", `not text in UTF-8`},
		{"a.txt", " \n", `no sample to learn from`},
	} {
		_, err := Load(writeTestFile(t, c.name, c.content), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: error %v, want %q", c.name, c.content, err, c.want)
		}
	}
	path := writeTestFile(t, "a.jsonl", `{"text":"x"}`)
	_, err := Load(path, tok, Options{Layout: Chat})
	if err == nil || !strings.Contains(err.Error(), "expected chat") {
		t.Errorf("wrong layout: %v", err)
	}
}

func writeArchive(t testing.TB, members ...[2]string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(tarBytes(members...))
	z.Close()
	return writeTestFile(t, "data.tar.gz", b.String())
}

// tarBytes is an archive of files: names and contents.
func tarBytes(members ...[2]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		w.WriteHeader(&tar.Header{Name: m[0], Mode: 0o644, Size: int64(len(m[1])),
			Typeflag: tar.TypeReg})
		w.Write([]byte(m[1]))
	}
	w.Close()
	return b.Bytes()
}

// A hidden file is unpacked on the way to the next one, so its size counts too.
func TestArchive_SkippedMembersAreLimited(t *testing.T) {
	archive := tarBytes([2]string{".hidden", strings.Repeat("x", 2000)}, [2]string{"a.txt", "abc"})
	for limit, want := range map[int64]string{2000: "", 1999: ".hidden: unpacks to more than"} {
		var out bytes.Buffer
		members, err := unpackMembers(tar.NewReader(bytes.NewReader(archive)), &out, limit)
		if want == "" && (err != nil || len(members) != 1) ||
			want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("limit %d: %v, %v", limit, members, err)
		}
	}
}

func TestLoad_DamagedFileErrorsAreOneLineWithFileAndRow(t *testing.T) {
	tok := chars(t, chatML)
	list, text := arrow.ListOf(arrow.PrimitiveTypes.Int32), arrow.BinaryTypes.String
	good := arrowBytes(t, false, schemaOf(column("tokens", list)),
		`[{"tokens":[65,66]},{"tokens":[67]}]`)
	pq := parquetBytes(t, schemaOf(column("text", text)), `[{"text":"abc"},{"text":"def"}]`)
	for _, c := range []struct{ name, content, want string }{
		{"a.arrow", "", "a.arrow: "},
		{"a.arrow", "ARROW1", "a.arrow: "},
		{"a.arrow", string(good[:len(good)/2]), "a.arrow: "},
		{"a.arrow", string(good[:len(good)-1]), "a.arrow: "},
		{"a.arrow", string(arrowBytes(t, true, schemaOf(column("text", text)),
			`[{"text":"abc"}]`)[:200]), "a.arrow: "},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", list)),
			`[{"tokens":[65]},{"tokens":[67,256]}]`)),
			"a.arrow: row 2: token 2 is 256, the tokenizer's vocabulary has 256"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", list)),
			`[{"tokens":[-1]}]`)), "a.arrow: row 1: token 1 is -1"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", list)),
			`[{"tokens":[1,null]}]`)), "a.arrow: row 1: column \"tokens\": token 2 is null"},
		{"a.arrow", string(arrowBytes(t, false,
			schemaOf(column("tokens", arrow.PrimitiveTypes.Uint32)), `[{"tokens":65}]`,
			`[{"tokens":4000000000}]`)),
			"a.arrow: row 2: column \"tokens\": token 1 is 4000000000"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", text)),
			`[{"tokens":"x"}]`)),
			"a.arrow: row 1: column \"tokens\": its type is utf8, expected token ids"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("tokens", arrow.ListOf(text))),
			`[{"tokens":["x"]}]`)), "its values are utf8"},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("text", list)), `[{"text":[1]}]`)),
			`a.arrow: row 1: field "text" is [1], expected a string`},
		{"a.arrow", string(arrowBytes(t, false, schemaOf(column("question", text)),
			`[{"question":"x"}]`)), `a.arrow: no known layout has the columns ["question"]`},
		{"a.parquet", "", "a.parquet: "},
		{"a.parquet", string(pq[:len(pq)-1]), "a.parquet: "},
		{"a.parquet", "PAR1" + string(pq[len(pq)/2:]), "a.parquet: "},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("text", arrow.PrimitiveTypes.Float64)),
			`[{"text":1}]`)), `a.parquet: row 1: field "text" is 1.0, expected a string`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("text", list)), `[{"text":[1]}]`)),
			`a.parquet: row 1: field "text" is [1], expected a string`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("text", text)),
			`[{"text":"x"},{"text":null}]`)), `a.parquet: row 2: no known layout`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("tokens", list)),
			`[{"tokens":[1]},{"tokens":[1,null]}]`)),
			`a.parquet: row 2: field "tokens" is [1,null]`},
		{"a.parquet", string(parquetBytes(t, schemaOf(column("tokens", list)),
			`[{"tokens":[256]}]`)), `a.parquet: row 1: token 1 is 256`},
		{"a.jsonl", "{\"tokens\":[1,2]}\n{\"tokens\":[1.5]}", `a.jsonl:2: field "tokens" is [1.5]`},
		{"a.jsonl", "{\"tokens\":[1,2]}\n{\"tokens\":[1000]}", `a.jsonl:2: token 1 is 1000`},
		{"a.jsonl", "{\"text\":\"x\"}\n{\"text\":\"y", `a.jsonl:2: not JSON`},
		{"a.tar.gz", "not gzip", "a.tar.gz: "},
	} {
		_, err := Load(writeTestFile(t, c.name, c.content), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s with %.60q: error %v, want %q", c.name, c.content, err, c.want)
		}
	}
}

func TestLoad_ArchiveWritesNoFilesAndHasALimit(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	path := writeArchive(t, [2]string{"../../outside.txt", "abc"},
		[2]string{"/etc/absolute.txt", "def"})
	d := mustLoad(t, path, chars(t, ""), Options{})
	if len(d.Samples) != 2 {
		t.Errorf("%d samples, want 2", len(d.Samples))
	}
	for _, name := range []string{"outside.txt", "../outside.txt"} {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), name)); err == nil {
			t.Error("a file was written beside the archive")
		}
	}
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("%d files are left in TMPDIR", len(left))
	}
	u := &unpacked{left: 10}
	if _, err := u.Write(make([]byte, 11)); err == nil ||
		!strings.Contains(err.Error(), "unpack it by hand") {
		t.Error(err)
	}
}

// What is small is unpacked into memory, the rest into a file in TMPDIR.
func TestLoad_UnpacksSmallFilesInMemory(t *testing.T) {
	text := strings.Repeat("0123456789", minMapped/10)
	tok := chars(t, "")
	for _, size := range []int{0, 1, minMapped - 64, minMapped - 9} {
		d, err := Load(writeArchive(t, [2]string{"a.txt", text[:size]}, [2]string{"b.txt", "xyz"}),
			tok, Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := 5 // "xyz" between the tokens of a text's begin and end
		if size > 0 {
			want += size + 2
		}
		if got := int(d.Report.Tokens); got != want {
			t.Errorf("%d bytes became %d tokens, expected %d", size, got, want)
		}
		d.Close()
	}
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "missing"))
	mustLoad(t, writeArchive(t, [2]string{"a.txt", text[:1000]}), tok, Options{})
	_, err := Load(writeArchive(t, [2]string{"a.txt", text}, [2]string{"b.txt", text}), tok,
		Options{})
	if err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v, expected that the folder for temporary files is missing", err)
	}
}

// Close waits for a batch that is being read ahead. Afterwards reading fails, from data sets that
// were split off too.
func TestLoad_ReportsProgressAndCloseUnmapsFiles(t *testing.T) {
	tok := chars(t, chatML)
	dir := t.TempDir()
	var lines, list []string
	for i := range 3000 {
		line := fmt.Sprintf(`{"text":"%d %s"}`, i, strings.Repeat("x", 40))
		lines, list = append(lines, line), append(list, line)
	}
	schema := schemaOf(column("text", arrow.BinaryTypes.String))
	batch := "[" + strings.Join(list, ",") + "]"
	for name, content := range map[string]string{
		"a.jsonl": strings.Join(lines, "\n"), "b.json": batch,
		"c.txt":     strings.Repeat("a line of text\n", 20000),
		"d.arrow":   string(arrowBytes(t, false, schema, batch)),
		"e.parquet": string(parquetBytes(t, schema, batch)),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
			t.Fatal(err)
		}
		mapped := func() int {
			maps, err := os.ReadFile("/proc/self/maps")
			if err != nil {
				t.Skip(err)
			}
			return strings.Count(string(maps), path) + strings.Count(string(maps), "conquer-data-")
		}
		last, total, calls := int64(0), int64(0), 0
		d, err := Load(path, tok, Options{MaxLength: 100, Progress: func(done, of int64) error {
			if done < last || done > of || total != 0 && of != total {
				t.Errorf("%s: %d of %d after %d of %d", name, done, of, last, total)
			}
			last, total, calls = done, of, calls+1
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if last != total || total == 0 || calls < 2 {
			t.Errorf("%s: ends at %d of %d, told %d times", name, last, total, calls)
		}
		if mapped() == 0 {
			t.Errorf("%s is not mapped", name)
		}
		enough, heard := errors.New("enough"), 0
		stop := func(int64, int64) error { heard++; return enough }
		_, err = Load(path, tok, Options{MaxLength: 100, Progress: stop})
		if !errors.Is(err, enough) || heard != 1 {
			t.Errorf("%s: told to stop %d times, Load returned %v", name, heard, err)
		}
		part := d.subset(func(i int) bool { return i%2 == 0 })
		b, err := NewBatcher(part, BatchOptions{Rows: 8, Length: 100})
		if err != nil {
			t.Fatal(err)
		}
		mustNext(t, b)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n := mapped(); n != 0 {
			t.Errorf("%s: %d mappings are left", name, n)
		}
		for _, set := range []*Dataset{d, part} {
			if _, err := set.At(0); err == nil || !strings.Contains(err.Error(), "closed") {
				t.Errorf("%s: a closed data set gave %v", name, err)
			}
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestLoad_RefusesDevicesAndBrokenLinks(t *testing.T) {
	if _, err := ReadFile("/dev/zero"); err == nil ||
		err.Error() != "open /dev/zero: a device, expected a file or a pipe" {
		t.Error(err)
	}
	if _, err := Load("/dev/zero", chars(t, ""), Options{}); err == nil ||
		!strings.Contains(err.Error(), "/dev/zero: a device") {
		t.Error(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	write.WriteString("through a pipe")
	write.Close()
	if text, err := ReadFile(fmt.Sprint("/dev/fd/", read.Fd())); err != nil ||
		string(text) != "through a pipe" {
		t.Errorf("%q, %v", text, err)
	}
	dir := t.TempDir()
	link := filepath.Join(dir, "link.txt")
	if err := os.Symlink("gone.txt", link); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir, chars(t, ""), Options{}); err == nil ||
		!strings.Contains(err.Error(), link+" is a link to gone.txt, which does not exist") {
		t.Error(err)
	}
}

func TestLoad_NamesWhatLiesInTheFilesPlace(t *testing.T) {
	pointer := "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2336927\n"
	for _, c := range []struct{ file, text, want string }{
		{"a.jsonl", pointer, "git lfs pull"}, {"a.json", pointer, "git lfs pull"},
		{"a.txt", pointer, "git lfs pull"}, {"a.parquet", pointer, "git lfs pull"},
		{"a.arrow", pointer, "git lfs pull"}, {"a.jsonl", "<html><body>404", "HTML page"},
		{"a.parquet", "<html><body>404", "HTML page"},
		{"a.json", `{"error":"Repository not found"}`, "Repository not found"},
	} {
		path := writeTestFile(t, c.file, c.text)
		_, err := Load(path, nil, Options{})
		if err == nil || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.20q: %v, want %q", c.file, c.text, err, c.want)
		}
	}
}
