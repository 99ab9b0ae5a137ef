package dataset

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apache/arrow-go/v18/arrow"

	"conquer/internal/atomicfile"
	"conquer/text/tokenizer"
)

// loadTwice loads path without a cache, with an empty one and with a filled one, and compares. It
// returns the last.
func loadTwice(t *testing.T, path string, tok *tokenizer.Tokenizer, opts Options) *Dataset {
	t.Helper()
	plain := loadOpen(t, path, tok, opts)
	opts.Cache = filepath.Join(t.TempDir(), "a", "cache")
	opts.Notice = func(message string) { t.Errorf("%s: %s", path, message) }
	var d *Dataset
	for _, cached := range []bool{false, true} {
		d = loadOpen(t, path, tok, opts)
		if d.Cached != cached || d.Report != plain.Report || d.Hash() != plain.Hash() ||
			!reflect.DeepEqual(d.Files, plain.Files) || !slices.Equal(d.Bad, plain.Bad) ||
			fmt.Sprint(d.Chosen) != fmt.Sprint(plain.Chosen) {
			t.Errorf("%s: cached %v: %+v\nwant %+v", path, cached, d.Files, plain.Files)
		}
		sameSamples(t, path, readAll(t, d), readAll(t, plain))
		want, got := plain.CheckVocabulary(60), d.CheckVocabulary(60)
		if want == nil || got == nil || got.Error() != want.Error() {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
		train, valid, failed := plain.Split(0.4, 3)
		again, validAgain, err := d.Split(0.4, 3)
		if fmt.Sprint(err) != fmt.Sprint(failed) {
			t.Errorf("%s: split: %v, want %v", path, err, failed)
		}
		if err == nil {
			sameSamples(t, path, readAll(t, again), readAll(t, train))
			sameSamples(t, path, readAll(t, validAgain), readAll(t, valid))
			if again.Hash() != train.Hash() || again.Report != train.Report {
				t.Errorf("%s: %s, want %s", path, again.Report, train.Report)
			}
		}
	}
	return d
}

func loadOpen(t testing.TB, path string, tok *tokenizer.Tokenizer, opts Options) *Dataset {
	t.Helper()
	d, err := Load(path, tok, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func TestLoad_CacheGivesTheSamplesOfTheFiles(t *testing.T) {
	tok := chars(t, chatML)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"train/a.jsonl": `{"instruction":"What?","output":"zzz"}` + "\n" +
			`{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"},` +
			`{"role":"user","content":"r"},{"role":"assistant","content":"b"}]}` + "\n{\n" +
			strings.Repeat(`{"text":"a text that is cut into several samples"}`+"\n", 5),
		"train/b.csv":  "prompt,completion\na,b\nc,d\n",
		"train/c.txt":  strings.Repeat("a long text of several blocks\n", 5000),
		"train/d.json": `[{"tokens":[65,66]},{"tokens":[67,68,69]}]`,
		"test/e.jsonl": `{"text":"held out"}`,
		"README.md":    "# about",
	} {
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o777)
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	opts := Options{MaxLength: 30, SkipBad: true}
	d := loadTwice(t, dir, tok, opts)
	if d.Report.Bad != 1 || d.Report.Skipped != 1 || d.Report.Truncated == 0 {
		t.Errorf("%s", d.Report)
	}
	loadTwice(t, filepath.Join(dir, "train", "c.txt"), tok, opts)
	column := schemaOf(column("tokens", arrow.ListOf(arrow.PrimitiveTypes.Int32)))
	loadTwice(t, writeTestFile(t, "a.parquet", string(parquetBytes(t, column,
		`[{"tokens":[65,66,67]},{"tokens":[97,98,99]},{"tokens":[97]}]`))), tok, opts)
	loadTwice(t, writeTestFile(t, "p.jsonl", strings.Repeat(
		`{"prompt":"q","chosen":"yes","rejected":"no"}`+"\n", 3)), tok,
		Options{Layout: Preference})
	loadTwice(t, writeTestFile(t, "r.jsonl", `{"prompt":"q","completion":"yes","label":true}`+"\n"+
		strings.Repeat(`{"prompt":"q","completion":"no","label":false}`+"\n", 3)), tok,
		Options{Layout: Rated})
}

// Vocabularies of more than 65,536 tokens need four bytes a token.
func TestStoredWriter_KeepsTokensOfEveryWidth(t *testing.T) {
	for vocabulary, width := range map[int]int{1 << 16: 2, 1<<16 + 1: 4} {
		last := int32(vocabulary - 1)
		want := []Sample{
			{IDs: []int32{1, last, 3}, Labels: []int32{1, last, 3}},
			{IDs: []int32{last, 0, 1, 2}, Labels: []int32{IgnoreLabel, 0, IgnoreLabel, 2}},
			{IDs: []int32{0, 1, 0, last}, Labels: []int32{IgnoreLabel, 1, IgnoreLabel, last},
				Second: 2},
			{IDs: []int32{0, 1}, Labels: []int32{IgnoreLabel, 1}, Rating: Desirable},
			{IDs: []int32{0, 1}, Labels: []int32{IgnoreLabel, 1}, Rating: Undesirable},
		}
		var kept bytes.Buffer
		w := newStoredWriter(&kept, [32]byte{1}, vocabulary, 1<<20)
		for i, s := range want {
			w.add(uint32(i), s)
		}
		if err := w.finish(description{Largest: last}); err != nil {
			t.Fatal(err)
		}
		s, refs, err := openStored("a", kept.Bytes(), [32]byte{1})
		if err != nil || s.Width != width {
			t.Fatalf("width %d, %v", s.Width, err)
		}
		for i, r := range refs {
			if got, err := s.read(int(r.at)); err != nil || !reflect.DeepEqual(got, want[i]) {
				t.Errorf("%+v, want %+v, %v", got, want[i], err)
			}
		}
		if _, _, err := openStored("a", kept.Bytes(), [32]byte{2}); err != errStored {
			t.Errorf("another key: %v", err)
		}
	}
}

func TestLoad_CacheIsNotUsedIfAnythingDiffers(t *testing.T) {
	const text = `{"instruction":"1","output":"2"}` + "\n"
	path := writeTestFile(t, "a.jsonl", text+text)
	folder := filepath.Dir(path)
	cache := t.TempDir()
	tok := chars(t, chatML)
	base := Options{Cache: cache, MaxLength: 40}
	cached := func(path string, tok *tokenizer.Tokenizer, opts Options) bool {
		t.Helper()
		return loadOpen(t, path, tok, opts).Cached
	}
	if cached(path, tok, base) || !cached(path, tok, base) {
		t.Fatal("the cache does not work")
	}
	for what, change := range map[string]func(*Options){
		"length":   func(o *Options) { o.MaxLength = 41 },
		"layout":   func(o *Options) { o.Layout = Instruction },
		"tools":    func(o *Options) { o.Inputs.Tools = []byte(`[{}]`) },
		"kwargs":   func(o *Options) { o.Inputs.Kwargs = []byte(`{"a":1}`) },
		"last":     func(o *Options) { o.LastAnswer = true },
		"split":    func(o *Options) { o.Validation = true },
		"skipping": func(o *Options) { o.SkipBad = true },
		"columns":  func(o *Options) { o.Columns = columnsOf(t, "instruction=q") },
	} {
		opts := base
		change(&opts)
		if cached(path, tok, opts) || !cached(path, tok, opts) {
			t.Errorf("another %s has the samples of the first", what)
		}
	}
	if !cached(path, chars(t, chatML), base) || cached(path, chars(t, chatML+" "), base) ||
		cached(folder, tok, base) {
		t.Error("another template or place")
	}
	// The content counts, not the time of the file.
	info, _ := os.Stat(path)
	os.WriteFile(path, []byte(strings.Replace(text+text, "2", "3", 1)), 0o666)
	os.Chtimes(path, info.ModTime(), info.ModTime())
	if cached(path, tok, base) {
		t.Error("another content has the samples of the first")
	}
	os.WriteFile(path, []byte(text+text), 0o666)
	if !cached(path, tok, base) {
		t.Error("the first content is not found again")
	}
	os.WriteFile(filepath.Join(folder, "b.jsonl"), []byte(text), 0o666)
	if cached(folder, tok, base) {
		t.Error("another file in the folder does not count")
	}
	// A template that shows the day has other samples on the next one.
	dated := chars(t, `{% set day = strftime_now("%d %b %Y") %}{{ day }}`+chatML)
	if _, err := Load(path, dated, base); err == nil || !strings.Contains(err.Error(), "SetClock") {
		t.Errorf("without a time: %v", err)
	}
	now := time.Date(2024, 7, 6, 23, 0, 0, 0, time.UTC)
	for i, want := range []bool{false, true, false, true} {
		dated.SetClock(now.Add(time.Duration(i) * 30 * time.Minute))
		if cached(path, dated, base) != want {
			t.Errorf("at %v: cached is not %v", now.Add(time.Duration(i)*30*time.Minute), want)
		}
	}
}

// Every option decides what becomes of a record, or is known not to.
func TestStore_KeyCoversEveryOption(t *testing.T) {
	inKey := []string{"MaxLength", "Layout", "Inputs", "Columns", "SkipBad", "Validation",
		"LastAnswer"}
	others := []string{"Cache", "Notice", "Progress", "prompts", "all", "longest"}
	for f := range reflect.TypeFor[Options]().Fields() {
		if !slices.Contains(inKey, f.Name) && !slices.Contains(others, f.Name) {
			t.Errorf("Options.%s is not in the key of newStore: add it there and to "+
				"TestLoad_CacheIsNotUsedIfAnythingDiffers", f.Name)
		}
	}
	if n := reflect.TypeFor[tokenizer.ChatInputs]().NumField(); n != 3 {
		t.Errorf("ChatInputs has %d fields, newStore knows 3", n)
	}
}

// The cache keeps every field of a sample.
func TestStoredWriter_KnowsTheFieldsOfASample(t *testing.T) {
	for f := range reflect.TypeFor[Sample]().Fields() {
		if !slices.Contains([]string{"IDs", "Labels", "Second", "Rating", "Continues"}, f.Name) {
			t.Errorf("storedWriter.add and stored.read do not keep Sample.%s", f.Name)
		}
	}
}

// storedFile returns the only file of a cache.
func storedFile(t *testing.T, cache string) string {
	t.Helper()
	names, _ := filepath.Glob(filepath.Join(cache, "*"))
	if len(names) != 1 {
		t.Fatalf("the cache holds %q", names)
	}
	return names[0]
}

func TestLoad_DamagedCacheIsFilledAgain(t *testing.T) {
	path := writeTestFile(t, "a.jsonl", `{"prompt":"1","completion":"2"}`)
	cache := t.TempDir()
	notices := 0
	opts := Options{Cache: cache, Notice: func(message string) {
		notices++
		if !strings.Contains(message, cache) || !strings.Contains(message, "damaged") {
			t.Error(message)
		}
	}}
	tok := chars(t, "")
	want := readAll(t, loadOpen(t, path, tok, opts))
	name := storedFile(t, cache)
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var damaged [][]byte
	for i := 0; i < len(data); i += 7 {
		d := slices.Clone(data)
		d[i] ^= 1 << (i % 8)
		damaged = append(damaged, d, data[:i])
	}
	damaged = append(damaged, append(slices.Clone(data), 0))
	for i, d := range damaged {
		if err := os.WriteFile(name, d, 0o666); err != nil {
			t.Fatal(err)
		}
		got := loadOpen(t, path, tok, opts)
		if got.Cached || notices != i+1 {
			t.Fatalf("damage %d of %d is not noticed", i, len(damaged))
		}
		sameSamples(t, "after damage", readAll(t, got), want)
		if again, _ := os.ReadFile(name); !slices.Equal(again, data) {
			t.Fatalf("damage %d is not repaired", i)
		}
		got.Close()
	}
}

func TestLoad_CacheIsBounded(t *testing.T) {
	defer func(before int64) { maxStore = before }(maxStore)
	cache := t.TempDir()
	tok := chars(t, "")
	var notices []string
	opts := Options{Cache: cache, Notice: func(m string) { notices = append(notices, m) }}
	var paths, files []string
	load := func(path string) bool { return loadOpen(t, path, tok, opts).Cached }
	for range 3 {
		path := writeTestFile(t, "a.jsonl", strings.Repeat(`{"text":"some text"}`+"\n", 100))
		paths = append(paths, path)
		load(path)
		names, _ := filepath.Glob(filepath.Join(cache, "*"+storeExt))
		for _, n := range names {
			if !slices.Contains(files, n) {
				files = append(files, n)
			}
		}
		old := time.Now().Add(time.Duration(len(files)-10) * time.Hour)
		os.Chtimes(files[len(files)-1], old, old)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	abandoned := filepath.Join(cache, "0"+storeExt+atomicfile.Suffix)
	os.WriteFile(abandoned, []byte("x"), 0o666)
	if !load(paths[0]) { // the second is now the one that was used the longest ago
		t.Fatal("the first is not cached")
	}
	maxStore = 3*info.Size() + 1000
	load(writeTestFile(t, "a.jsonl", strings.Repeat(`{"text":"some text"}`+"\n", 100)))
	for i, want := range []bool{true, false, true} {
		if _, err := os.Stat(files[i]); (err == nil) != want {
			t.Errorf("file %d: %v, want it kept %v", i, err, want)
		}
	}
	if _, err := os.Stat(abandoned); err == nil {
		t.Error("what a killed process left is kept")
	}
	if len(notices) > 0 {
		t.Error(notices)
	}
	maxStore = 500
	d := loadOpen(t, writeTestFile(t, "b.jsonl", strings.Repeat(`{"text":"more"}`+"\n", 100)), tok,
		opts)
	if d.Len() != 100 || d.Cached || len(notices) != 1 ||
		!strings.Contains(notices[0], errCacheFull.Error()) {
		t.Errorf("%d samples, %q", d.Len(), notices)
	}
	readAll(t, d)
	if names, _ := filepath.Glob(filepath.Join(cache, "*"+atomicfile.Suffix)); names != nil {
		t.Errorf("%q is left", names)
	}
}

// Processes that start at once encode once and get the same samples.
func TestLoad_OneOfSeveralFillsTheCache(t *testing.T) {
	path := writeTestFile(t, "a.jsonl", strings.Repeat(`{"text":"some text"}`+"\n", 5000))
	cache := t.TempDir()
	tok := chars(t, "")
	var mu sync.Mutex
	sets := make([]*Dataset, 6)
	var wg sync.WaitGroup
	for i := range sets {
		wg.Go(func() {
			d, err := Load(path, tok, Options{Cache: cache, Notice: func(m string) {
				if !strings.HasPrefix(m, "waiting") {
					t.Error(m)
				}
			}})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			sets[i] = d
		})
	}
	wg.Wait()
	fresh := 0
	want := mustLoad(t, path, tok, Options{})
	for _, d := range sets {
		if d == nil {
			t.FailNow()
		}
		if !d.Cached {
			fresh++
		}
		sameSamples(t, path, readAll(t, d), want)
		d.Close()
	}
	if fresh != 1 {
		t.Errorf("%d of %d encode the data", fresh, len(sets))
	}
	storedFile(t, cache)
}

func TestLoad_WorksWithoutItsCache(t *testing.T) {
	tok := chars(t, "")
	load := func(opts Options, want string) {
		t.Helper()
		path := writeTestFile(t, "a.jsonl", strings.Repeat(`{"text":"some text"}`+"\n", 1000))
		var notices []string
		opts.Notice = func(m string) { notices = append(notices, m) }
		if opts.Progress == nil {
			opts.Progress = func(done, _ int64) error {
				if done > 0 && want == "has changed" {
					now := time.Now().Add(time.Hour)
					os.Chtimes(path, now, now)
				}
				return nil
			}
		}
		d, err := Load(path, tok, opts)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if readAll(t, d); d.Len() != 1000 || len(notices) != 1 ||
			!strings.Contains(notices[0], want) {
			t.Errorf("%d samples, %q, want %q", d.Len(), notices, want)
		}
	}
	load(Options{Cache: writeTestFile(t, "file", "")}, "cannot be used")
	cache := t.TempDir()
	load(Options{Cache: cache}, "has changed")
	if names, _ := filepath.Glob(filepath.Join(cache, "*")); names != nil {
		t.Errorf("%q is kept", names)
	}
	// An error of the data and a stopped run leave nothing behind.
	stop := errors.New("stop")
	bad := writeTestFile(t, "a.jsonl", strings.Repeat(`{"text":"some text"}`+"\n", 1000)+"{")
	_, err := Load(bad, tok, Options{Cache: cache})
	if err == nil || !strings.Contains(err.Error(), "a.jsonl:1001") {
		t.Error(err)
	}
	_, err = Load(bad, tok, Options{Cache: cache, Progress: func(done, _ int64) error {
		if done > 0 {
			return stop
		}
		return nil
	}})
	if !errors.Is(err, stop) {
		t.Error(err)
	}
	if names, _ := filepath.Glob(filepath.Join(cache, "*")); names != nil {
		t.Errorf("%q is left", names)
	}
}

// Whatever the file of a cache holds, reading it ends without a panic, also if its checksum fits.
func FuzzOpenStored(f *testing.F) {
	var key [32]byte
	numbers := func(values ...uint32) (data []byte) {
		for _, v := range values {
			data = binary.LittleEndian.AppendUint32(data, v)
		}
		return data
	}
	about := `{"Samples":1,"Width":4,"Largest":9}`
	f.Add(numbers(1, 2, 0, 1, 1, 1, 2, 5, 6), about)
	f.Add(numbers(1, 2, 1, 1, 1, 0, 2, 5, 6), about)
	f.Add(numbers(1, 2, 0, 1, 1, 1, 9, 5, 6), about)
	f.Add(numbers(1, 1<<31, 0, 1, 1<<30), about)
	f.Add(numbers(1, 3, 0, 1, 1, 1, 2, 5, 6), `{"Samples":1,"Width":2,"Largest":9}`)
	f.Fuzz(func(t *testing.T, samples []byte, about string) {
		data := slices.Concat([]byte(storedMark), key[:], samples, []byte(about))
		data = binary.LittleEndian.AppendUint64(data, uint64(len(about)))
		data = binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
		s, refs, err := openStored("a", data, key)
		if err != nil {
			return
		}
		d := s.dataset(refs, new(mappings))
		for i := range d.Len() {
			sample, err := d.At(i)
			if err == nil && (len(sample.IDs) != d.Length(i) ||
				len(sample.Labels) != len(sample.IDs) || sample.Second >= len(sample.IDs)) {
				t.Errorf("sample %d: %v", i, sample)
			}
		}
		d.Hash()
		d.CheckVocabulary(5)
		d.Split(0.5, 1)
	})
}
