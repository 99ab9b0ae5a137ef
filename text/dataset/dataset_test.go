package dataset

import (
	"archive/tar"
	"compress/gzip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
	if err := os.WriteFile(filepath.Join(dir, "chat_template.jinja"), []byte(template), 0o666); err != nil {
		t.Fatal(err)
	}
	if tok, err = tokenizer.Open(dir); err != nil {
		t.Fatal(err)
	}
	return tok
}

// chatML writes turns as <role>content\x03\n; \x03 is the token that ends a turn.
const chatML = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}\x03\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"

func writeTestFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func load(t testing.TB, path string, tok *tokenizer.Tokenizer, opts Options) *Dataset {
	t.Helper()
	d, err := Load(path, tok, opts)
	if err != nil {
		t.Fatal(err)
	}
	return inMemory(t, d)
}

// inMemory reads all of a data set.
func inMemory(t testing.TB, d *Dataset) *Dataset {
	t.Helper()
	all := &Dataset{Report: d.Report}
	for i := range d.Len() {
		s, err := d.At(i)
		if err != nil {
			t.Fatal(err)
		}
		all.Samples = append(all.Samples, s)
	}
	return all
}

// next is the next batch.
func next(t testing.TB, b *Batcher) Batch {
	t.Helper()
	batch, err := b.Next()
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

// learned is the text that bears loss, with | where it is interrupted.
func learned(tok *tokenizer.Tokenizer, s Sample) string {
	var b strings.Builder
	for i, l := range s.Labels {
		switch {
		case l != IgnoreLabel:
			b.WriteString(tok.Decode([]int32{l}, false))
		case i > 0 && s.Labels[i-1] != IgnoreLabel:
			b.WriteString("|")
		}
	}
	return b.String()
}

func TestInstructionsLearnTheAnswerAndItsEndOnly(t *testing.T) {
	const file = `[
	{"instruction": "Add", "input": "1 2", "output": "3"},
	{"instruction": "Hi", "output": "Hello", "extra": 1}]`
	path := writeTestFile(t, "data.json", file)
	tok := chars(t, "")
	d := load(t, path, tok, Options{})
	for i, want := range []string{"3\x03", "Hello\x03"} {
		if got := learned(tok, d.Samples[i]); got != want {
			t.Errorf("alpaca sample %d learns %q, want %q", i, got, want)
		}
	}
	text := tok.Decode(d.Samples[0].IDs, false)
	if !strings.HasPrefix(text, "\x02Below is") || !strings.HasSuffix(text, "### Input:\n1 2\n\n### Response:\n3\x03") {
		t.Errorf("alpaca prompt: %q", text)
	}
	tok = chars(t, chatML)
	d = load(t, path, tok, Options{})
	if got, want := tok.Decode(d.Samples[0].IDs, false), "<user>Add\n\n1 2\x03\n<assistant>3\x03\n"; got != want {
		t.Errorf("rendered %q, want %q", got, want)
	}
	if got, want := learned(tok, d.Samples[1]), "Hello\x03|"; got != want {
		t.Errorf("learns %q, want %q", got, want)
	}
}

func TestChatsLearnEveryAssistantTurn(t *testing.T) {
	path := writeTestFile(t, "chat.jsonl", `{"messages":[{"role":"system","content":"s"},{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}`+"\n\n")
	tok := chars(t, chatML)
	d := load(t, path, tok, Options{})
	if got, want := learned(tok, d.Samples[0]), "b\x03|d\x03|"; len(d.Samples) != 1 || got != want {
		t.Errorf("learns %q in %d samples, want %q in 1", got, len(d.Samples), want)
	}
}

func TestTurnsThatATemplateShortensLaterBecomeSamplesOfTheirOwn(t *testing.T) {
	const forgetful = "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' and not loop.last %}..{% else %}{{ m['content'] }}{% endif %}\x03{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
	path := writeTestFile(t, "chat.jsonl", `{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}`)
	tok := chars(t, forgetful)
	d := load(t, path, tok, Options{})
	if len(d.Samples) != 2 {
		t.Fatalf("%d samples, want 2", len(d.Samples))
	}
	for i, want := range []string{"b\x03", "d\x03"} {
		if got := learned(tok, d.Samples[i]); got != want {
			t.Errorf("sample %d learns %q, want %q", i, got, want)
		}
	}
}

func TestRawTextGoesOnInFurtherSamples(t *testing.T) {
	tok := chars(t, "")
	path := writeTestFile(t, "a.txt", "abcdefg")
	for length := 2; length < 12; length++ {
		d := load(t, path, tok, Options{MaxLength: length})
		targets := []int32{d.Samples[0].IDs[0]}
		for _, s := range d.Samples {
			if len(s.IDs) > length || !slices.Equal(s.IDs, s.Labels) {
				t.Errorf("sample %v %v", s.IDs, s.Labels)
			}
			targets = append(targets, s.Labels[1:]...)
		}
		if got := tok.Decode(targets, false); got != "\x02abcdefg\x03" || d.Report.Truncated != 0 {
			t.Errorf("length %d: learned %q (%s)", length, got, d.Report)
		}
	}
}

func TestLongSamplesAreCutAndCounted(t *testing.T) {
	tok := chars(t, chatML)
	// "<user>a\x03\n<assistant>" is 20 tokens.
	path := writeTestFile(t, "d.jsonl", `{"instruction":"a","output":"0123456789"}
{"instruction":"a prompt that alone is longer than a sample may be","output":"x"}
{"instruction":"a","output":"b"}`)
	d := load(t, path, tok, Options{MaxLength: 25})
	if r := d.Report; r.Records != 3 || r.Truncated != 2 || r.Dropped != 1 || r.Samples != 2 || r.Targets != 5+2 {
		t.Errorf("report: %s", r)
	}
}

func TestFoldersAndArchivesHoldTheSameSamples(t *testing.T) {
	files := []struct{ name, content string }{
		{"a.jsonl", `{"text":"one"}` + "\n"}, {"b.txt", "two"}, {"c.bin", "\x00\x01"}, {"sub/d.json", `[{"instruction":"i","output":"o"}]`}, {".hidden", "no"},
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
		w.WriteHeader(&tar.Header{Name: file.name, Mode: 0o644, Size: int64(len(file.content)), Typeflag: tar.TypeReg})
		w.Write([]byte(file.content))
	}
	w.Close()
	z.Close()
	f.Close()
	tok := chars(t, "")
	a, b := load(t, dir, tok, Options{}), load(t, archive, tok, Options{})
	if a.Report != b.Report || a.Report.Samples != 3 || a.Report.Skipped != 1 {
		t.Errorf("folder: %s; archive: %s", a.Report, b.Report)
	}
	for i := range a.Samples {
		if !slices.Equal(a.Samples[i].IDs, b.Samples[i].IDs) {
			t.Errorf("sample %d differs", i)
		}
	}
}

func TestBadRecordsNameTheFileTheLineAndWhatWasExpected(t *testing.T) {
	tok := chars(t, chatML)
	for _, c := range []struct{ name, content, want string }{
		{"a.jsonl", "{\"text\":\"x\"}\n\n{\"text\": 3}\n", `a.jsonl:3: field "text" is 3, expected a string`},
		{"a.jsonl", `{"text":"x"`, `a.jsonl:1: not JSON`},
		{"a.jsonl", `[1]`, `a.jsonl:1: expected an object`},
		{"a.jsonl", `{"question":"x","answer":"y"}`, `a.jsonl:1: no known layout has the fields ["answer" "question"]; known are instruction`},
		{"a.jsonl", `{"instruction":"x"}`, `a.jsonl:1: field "output" is missing`},
		{"a.jsonl", `{"messages":[{"role":"user"}]}`, `a.jsonl:1: message 0 lacks role or content`},
		{"a.jsonl", `{"messages":[{"role":"user","content":"x"}]}`, `nothing to learn`},
		{"a.json", "[\n{\"text\":\"x\"},\n\n{\"txt\":\"x\"}]", `a.json:4: no known layout`},
		{"a.json", "[\n{\"text\":\"x\"},", `a.json:2: the`},
		{"a.json", "{}", `a.json:1: expected an array`},
		{"a.json", "[]\n[]", `a.json:2: something follows`},
		{"a.txt", "\xff\xfe", `not a text file`},
		{"a.txt", " \n", `no sample to learn from`},
	} {
		_, err := Load(writeTestFile(t, c.name, c.content), tok, Options{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s with %q: error %v, want %q", c.name, c.content, err, c.want)
		}
	}
	if _, err := Load(writeTestFile(t, "a.jsonl", `{"text":"x"}`), tok, Options{Layout: Chat}); err == nil || !strings.Contains(err.Error(), "expected chat") {
		t.Errorf("wrong layout: %v", err)
	}
}

func TestSplitIsDisjointCompleteAndRepeatable(t *testing.T) {
	d := numbered(100, 3)
	train, valid, err := d.Split(0.2, 7)
	if err != nil || len(valid.Samples) != 20 || len(train.Samples) != 80 {
		t.Fatalf("%d + %d, %v", len(train.Samples), len(valid.Samples), err)
	}
	seen := map[int32]bool{}
	for _, part := range []*Dataset{train, valid} {
		for _, s := range part.Samples {
			if seen[s.IDs[0]] {
				t.Fatal("a sample is in both parts")
			}
			seen[s.IDs[0]] = true
		}
	}
	_, again, _ := d.Split(20, 7)
	for i := range valid.Samples {
		if valid.Samples[i].IDs[0] != again.Samples[i].IDs[0] {
			t.Fatal("20 % and 20 samples of the same seed differ")
		}
	}
	for _, n := range []float64{0, -1, 100, 1000} {
		if _, _, err := d.Split(n, 1); err == nil {
			t.Errorf("Split(%g) of 100 samples gives no error", n)
		}
	}
}

// numbered makes n samples of 2 to max tokens; the first token is the number of
// the sample.
func numbered(n, max int) *Dataset {
	d := new(Dataset)
	for i := range n {
		ids := []int32{int32(i), 1}
		for len(ids) < 2+i%(max-1) {
			ids = append(ids, int32(len(ids)))
		}
		d.Samples = append(d.Samples, Sample{IDs: ids, Labels: slices.Clone(ids)})
	}
	return d
}

func TestEpochsHandOutEverySampleOnceWithoutCrossTalk(t *testing.T) {
	d := numbered(203, 17)
	for _, pack := range []bool{false, true} {
		b, err := NewBatcher(d, BatchOptions{Rows: 4, Length: 32, Pack: pack, Pad: 9, Seed: 5})
		if err != nil {
			t.Fatal(err)
		}
		var orders [2][]int32
		for epoch := range orders {
			for n := 1; ; n++ {
				batch := next(t, b)
				if batch.Epoch != epoch {
					t.Fatalf("batch of epoch %d in epoch %d", batch.Epoch, epoch)
				}
				for i, segment := range batch.Segments {
					first := segment > 0 && batch.Positions[i] == 0
					switch {
					case first:
						orders[epoch] = append(orders[epoch], batch.IDs[i])
						want := int32(1)
						if i%32 > 0 {
							want = batch.Segments[i-1] + 1
						}
						if segment != want {
							t.Fatalf("segment %d follows %d", segment, want-1)
						}
					case segment > 0 && (batch.Positions[i] != batch.Positions[i-1]+1 || segment != batch.Segments[i-1]):
						t.Fatal("positions do not count up in a segment")
					}
					if ignored := batch.Labels[i] == IgnoreLabel; ignored != (first || segment == 0) || !ignored && batch.Labels[i] != batch.IDs[i] {
						t.Fatalf("label %d of id %d in segment %d at position %d", batch.Labels[i], batch.IDs[i], segment, batch.Positions[i])
					}
					if segment == 0 && batch.IDs[i] != 9 {
						t.Fatal("padding is not the pad id")
					}
				}
				if batch.Last {
					if n != b.Batches(epoch) {
						t.Errorf("%d batches, Batches says %d", n, b.Batches(epoch))
					}
					break
				}
			}
		}
		if slices.Equal(orders[0], orders[1]) {
			t.Error("both epochs have the same order")
		}
		for _, order := range orders {
			slices.Sort(order)
			if len(order) != 203 || len(slices.Compact(order)) != 203 {
				t.Errorf("pack %t: an epoch handed out %d samples, want each of 203 once", pack, len(order))
			}
		}
	}
}

func TestPackingFillsRows(t *testing.T) {
	b, err := NewBatcher(numbered(2000, 200), BatchOptions{Rows: 1, Length: 512, Pack: true})
	if err != nil {
		t.Fatal(err)
	}
	tokens := 0
	for range b.Batches(0) {
		tokens += next(t, b).Tokens
	}
	if fill := float64(tokens) / float64(512*b.Batches(0)); fill < 0.97 {
		t.Errorf("rows are %.1f %% full", 100*fill)
	}
}

func TestARestoredBatcherGoesOnWhereTheOtherStopped(t *testing.T) {
	d := numbered(50, 9)
	opts := BatchOptions{Rows: 3, Length: 16, Pack: true, Seed: 3}
	a, _ := NewBatcher(d, opts)
	for range a.Batches(0) + 2 {
		next(t, a)
	}
	state := a.State()
	b, _ := NewBatcher(d, opts)
	if err := b.Restore(state); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if x, y := next(t, a), next(t, b); !slices.Equal(x.IDs, y.IDs) || x.Epoch != y.Epoch {
			t.Fatal("batches differ after Restore")
		}
	}
	if err := b.Restore(State{Epoch: 0, Index: 1000}); err == nil {
		t.Error("a position past the end is accepted")
	}
}

func TestShardsTogetherMakeTheBatchesOfOne(t *testing.T) {
	d := numbered(37, 9)
	one, _ := NewBatcher(d, BatchOptions{Rows: 4, Length: 16, Seed: 1})
	a, _ := NewBatcher(d, BatchOptions{Rows: 2, Length: 16, Seed: 1, Rank: 0, World: 2})
	b, _ := NewBatcher(d, BatchOptions{Rows: 2, Length: 16, Seed: 1, Rank: 1, World: 2})
	for range 30 {
		x, y, z := next(t, one), next(t, a), next(t, b)
		if !slices.Equal(x.IDs, append(y.IDs, z.IDs...)) || x.Last != y.Last || y.Last != z.Last || one.State() != b.State() {
			t.Fatal("shards do not add up")
		}
	}
}

func TestSamplesLongerThanARowAreRefused(t *testing.T) {
	_, err := NewBatcher(numbered(20, 17), BatchOptions{Rows: 1, Length: 8})
	if err == nil || !strings.Contains(err.Error(), "MaxLength 8") {
		t.Errorf("error %v", err)
	}
}
