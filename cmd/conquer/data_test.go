package main

import (
	"image/png"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/text/dataset"
)

func TestData_DescribesWhatTrainingLearns(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chats := write("chats.jsonl", `{"prompt":"1 + 1 = ","completion":"2\u001b]0;x"}
{"prompt":"a","completion":7}
{"text":"a text of 23 characters"}
`)
	table := write("table.csv", "ask,answer\nWhy?,So\n")
	common := []string{"data", "--tokenizer", "char_tokenizer", "--on_bad_record", "skip"}
	run := func(more ...string) string { return succeed(t, slices.Concat(common, more)...) }

	info := decode[dataInfo](t, run(chats, "--show", "5", "--json"))
	file := info.Data[0].Files[0]
	if file.Name != chats || file.Records != 2 || file.Bad != 1 ||
		file.Layouts[dataset.Completion] != 1 || file.Layouts[dataset.RawText] != 1 ||
		len(info.Data[0].Bad) != 1 || !strings.Contains(info.Data[0].Bad[0], chats+":2: ") {
		t.Errorf("%+v", info.Data[0])
	}
	answer, text := info.Data[0].Shown[0], info.Data[0].Shown[1]
	if want := []span{{"\x021 + 1 = ", false}, {"2\x1b]0;x\x03", true}}; answer.Tokens != 16 ||
		len(answer.Texts) != 1 || !slices.Equal(answer.Texts[0], want) {
		t.Errorf("%+v, want %+v", answer, want)
	}
	if want := []span{{"\x02", false}, {"a text of 23 characters\x03", true}}; text.Tokens != 25 ||
		!slices.Equal(text.Texts[0], want) {
		t.Errorf("%+v, want %+v", text, want)
	}
	if l := info.Lengths; info.Total.Tokens != 41 || info.Total.Loss != 7+24 || l.Min != 16 ||
		l.Max != 25 || l.Bins[0].From != 16 || l.Bins[0].Samples != 1 || info.Bytes == 0 {
		t.Errorf("%+v, %+v", info.Total, l)
	}

	plain := run(chats, "--data_path", table, "--columns", "instruction=ask,output=answer",
		"--show", "1")
	for _, want := range []string{chats + "\n", "1 completion, 1 text", "bad        1 record",
		"\\x021 + 1 = ⟦2\\x1b]0;x\\x03⟧", "records    1 instruction", "So\\x03⟧",
		"all\n  records    3"} {
		if !strings.Contains(plain, want) {
			t.Errorf("%q is missing in\n%s", want, plain)
		}
	}

	// Cut and packed as in training.
	picture := filepath.Join(dir, "lengths.png")
	info = decode[dataInfo](t, run(chats, "--sequence_length", "12", "--pack", "--json", "--plot",
		picture))
	if info.Total.Cut != 1 || info.Total.Samples != 4 || info.Lengths.Max != 12 ||
		info.Packed.Rows != 4 || info.Packed.Filled != float64(info.Total.Tokens)/48 {
		t.Errorf("%+v, %+v", info.Total, info.Packed)
	}
	f, err := os.Open(picture)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := png.DecodeConfig(f); err != nil {
		t.Error(err)
	}
}

func TestData_MixesDataSets(t *testing.T) {
	dir := t.TempDir()
	var args []string
	for i, text := range []string{"123456789", "1"} {
		path := filepath.Join(dir, string(rune('a'+i))+".jsonl")
		if err := os.WriteFile(path, []byte(strings.Repeat(`{"text":"`+text+`"}`+"\n",
			10*(i+1))), 0o666); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--data_path", path)
	}
	args = append([]string{"data", "--tokenizer", "char_tokenizer", "--sequence_length", "20"},
		args...)
	out := succeed(t, append(args, "--data_weights", "3,1", "--pack")...)
	// An epoch has 30 samples: 23 of 11 tokens, of which a row holds one, and 7 of 3.
	for _, want := range []string{
		"a.jsonl: 76.7 % of the samples, 92.3 % of the tokens, 2.30 passes",
		"b.jsonl: 23.3 % of the samples, 7.7 % of the tokens, 0.35 passes", "packed: 23 rows"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	for _, weights := range []string{"1", "1,2,3", "1,x", "1,0", "1,inf", "1,nan"} {
		_, stderr, code := invoke(t, "", append(args, "--data_weights", weights)...)
		if code != 2 || !strings.Contains(stderr, "--data_weights") {
			t.Errorf("%s: exit %d, %s", weights, code, stderr)
		}
	}
}

func TestData_ReadsFromItsCache(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "a.jsonl")
	if err := os.WriteFile(data, []byte(`{"question":"a","text":"b"}`+"\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	cache := filepath.Join(dir, "cache")
	run := func(more ...string) dataInfo {
		return decode[dataInfo](t, succeed(t, append([]string{"data", data, "--tokenizer",
			"char_tokenizer", "--data_cache", cache, "--json", "--show", "1"}, more...)...))
	}
	first, second := run(), run()
	if first.Data[0].Cached || !second.Data[0].Cached || first.Total != second.Total ||
		first.Bytes != second.Bytes || len(second.Data[0].Shown) != 1 {
		t.Errorf("%+v, then %+v", first, second)
	}
	// A column that no file has is an error with and without the cache.
	for range 2 {
		_, stderr, code := invoke(t, "", "data", data, "--tokenizer", "char_tokenizer",
			"--data_cache", cache, "--columns", "instruction=ask")
		if code != 2 || !strings.Contains(stderr, `no column "ask"`) {
			t.Errorf("exit %d, %s", code, stderr)
		}
	}
}

func TestData_ShowsBothTextsOfAPair(t *testing.T) {
	info := decode[dataInfo](t, succeed(t, "data", "--objective", "dpo", "--tokenizer",
		"char_tokenizer", "--show", "1", "--json", "--data_path",
		filepath.Join("..", "..", "examples", "preferences", "train.jsonl")))
	shown := info.Data[0].Shown[0]
	if len(shown.Texts) != 2 || info.Total.Pairs != info.Total.Samples ||
		shown.Texts[0][0].Loss || !shown.Texts[1][1].Loss {
		t.Errorf("%+v", shown)
	}
}

func TestData_ShowsRatings(t *testing.T) {
	data := filepath.Join(t.TempDir(), "a.jsonl")
	if err := os.WriteFile(data, []byte(`{"prompt":"a","completion":"b","label":true}
{"prompt":"a","completion":"c","label":false}
`), 0o666); err != nil {
		t.Fatal(err)
	}
	out := succeed(t, "data", data, "--objective", "kto", "--tokenizer", "char_tokenizer",
		"--show", "2")
	for _, want := range []string{"2 rated", "sample 1, 4 tokens, desirable\n",
		"sample 2, 4 tokens, undesirable\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
}

func TestData_RefusesFlagsThatDoNotFit(t *testing.T) {
	data := filepath.Join("..", "..", "examples", "lighthouse", "train.jsonl")
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"--tokenizer char_tokenizer", 2, "--data_path is missing"},
		{data, 2, "--model_path"},
		{data + " --tokenizer char_tokenizer --pack", 2, "--sequence_length"},
		{data + " --tokenizer char_tokenizer --sequence_length -1", 2, "-1"},
		{data + " --tokenizer char_tokenizer --show -1", 2, "-1"},
		{data + " --tokenizer char_tokenizer --plot a.jpg", 2, ".png"},
		{data + " --tokenizer char_tokenizer --plot /nowhere/a/b.png", 1, "/nowhere"},
		{data + " --tokenizer char_tokenizer --objective x", 2, "unknown objective"},
		{data + " --tokenizer /nowhere", 1, "/nowhere"},
		{"/nowhere --tokenizer char_tokenizer", 1, "--data_path: there is no file or"},
		{"https://host/a.jsonl --tokenizer char_tokenizer", 2, "is not fetched"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"data"}, strings.Fields(c.args)...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, %s", c.args, code, stderr)
		}
	}
}
