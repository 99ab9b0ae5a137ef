package main

import (
	"bytes"
	"conquer/quant"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
)

func TestExport_RoundTripKeepsModelAndTokenizer(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	at := dir
	for _, step := range [][]string{{"meta", "m"}, {"gguf", "m.gguf"}, {"native", "n"},
		{"hf", "back"}} {
		to := filepath.Join(work, step[1])
		succeed(t, "export", "--model_path", at, "--output_path", to, "--format", step[0])
		at = to
		if info := decode[modelInfo](t,
			succeed(t, "info", "--model_path", at, "--json")); info.Problem != "" ||
			info.Tokenizer == nil || info.Tokenizer.Tokens != 700 {
			t.Errorf("%s: %+v", step[0], info)
		}
	}
	if !sameTensors(t, dir, at) {
		t.Error("the weights differ after the round trip")
	}
	ask := func(path string) string {
		return succeed(t, "generate", "--model_path", path, "--prompt", "hello there",
			"--max_new_tokens", "8", "--ignore_eos", "--json")
	}
	if a, b := decode[generateOutput](t, ask(dir)), decode[generateOutput](t,
		ask(filepath.Join(work, "m.gguf"))); a.Text != b.Text ||
		!slices.Equal(a.TokenIDs, b.TokenIDs) {
		t.Errorf("%+v, expected %+v", b, a)
	}
	quantized := filepath.Join(work, "q.gguf")
	succeed(t, "export", "--model_path", dir, "--output_path", quantized, "--dtype", "q8_0")
	if info := decode[modelInfo](t,
		succeed(t, "info", "--model_path", quantized, "--json")); info.Types["Q8_0"] == 0 ||
		info.Types["BF16"] != 0 {
		t.Errorf("types %v", info.Types)
	}
}

func TestExport_EveryMixIsReadBack(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	score := func(path string) float64 {
		return decode[scoreOutput](t, succeed(t, "score", "--model_path", path, "--text",
			strings.Repeat("hello there ", 20), "--device", "cpu", "--json")).NLL
	}
	original := score(dir)
	for _, mix := range quant.Mixes {
		path := filepath.Join(work, mix.Name+".gguf")
		succeed(t, "export", "--model_path", dir, "--output_path", path, "--dtype",
			strings.ToLower(mix.Name))
		if off := math.Abs(score(path)/original - 1); off > 0.1 {
			t.Errorf("%s: off by %.1f %%", mix.Name, 100*off)
		}
	}
}

// An importance matrix changes what is written, is written itself, and gives the same when it is
// read.
func TestExport_ImportanceComesFromDataOrAFile(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	text, matrix := filepath.Join(work, "text.txt"), filepath.Join(work, "imatrix.gguf")
	os.WriteFile(text, []byte(strings.Repeat("hello there, how are you? ", 40)), 0o644)
	read := func(name string, more ...string) []byte {
		path := filepath.Join(work, name, "m.gguf")
		succeed(t, append([]string{"export", "--model_path", dir, "--output_path", path, "--dtype",
			"q4_0"}, more...)...)
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	plain := read("plain")
	first := read("first", "--importance_data", text, "--importance", matrix)
	again := read("again", "--importance", matrix)
	if bytes.Equal(plain, first) || !bytes.Equal(first, again) {
		t.Errorf("plain %d bytes, with data %d, with a file %d", len(plain), len(first), len(again))
	}
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--importance_data", text, "--importance", matrix}, 1, "--overwrite"},
		{[]string{"--importance", text}, 1, "llama-imatrix"},
		{[]string{"--importance", matrix, "--dtype", "bfloat16"}, 2, "q4_k_m"},
		{[]string{"--importance_data", work + "/none"}, 1, "there is no file"},
		{[]string{"--importance_data", text, "--importance_tokens", "0"}, 2, "at least 1"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"export", "--model_path", dir,
			"--output_path", work + "/x.gguf", "--dtype", "q4_0"}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: exit %d: %s", test.args, code, stderr)
		}
	}
}

func TestExport_GGUFWithoutTokenizerTakesIDs(t *testing.T) {
	dir, out := writeModel(t, 50, false), filepath.Join(t.TempDir(), "m.gguf")
	_, stderr, code := invoke(t, "", "export", "--model_path", dir, "--output_path", out,
		"--format", "gguf")
	if code != 0 || !strings.Contains(stderr, "no tokenizer") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	a := succeed(t, "generate", "--model_path", dir, "--token_ids", "1,2,3", "--max_new_tokens",
		"5")
	if b := succeed(t, "generate", "--model_path", out, "--token_ids", "1,2,3", "--max_new_tokens",
		"5"); a != b {
		t.Errorf("%q, expected %q", b, a)
	}
}

func TestExport_BadInputGetsReasonAndExitCode(t *testing.T) {
	dir, work := writeModel(t, 704, true), t.TempDir()
	there := filepath.Join(work, "there.gguf")
	os.WriteFile(there, []byte("mine"), 0o644)
	bin := filepath.Join(work, "pytorch_model.bin")
	os.WriteFile(bin, []byte("not a model"), 0o644)
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--model_path", dir, "--output_path", work + "/x", "--format", "onnx"}, 2,
			"hf, meta, native, gguf"},
		{[]string{"--model_path", dir, "--output_path", work + "/x", "--dtype", "q8_0"}, 2, "q8_0"},
		{[]string{"--model_path", dir, "--output_path", work + "/x", "--shards", "2"}, 2,
			"--format meta"},
		{[]string{"--model_path", dir, "--output_path", work + "/x", "--format", "meta", "--shards",
			"3"}, 1, "3 equal parts"},
		{[]string{"--model_path", dir, "--output_path", work + "/x", "--dtype", "q4_0"}, 2,
			"is for --format gguf"},
		{[]string{"--model_path", dir, "--output_path", work + "/x", "--format", "gguf", "--dtype",
			"q9"}, 2, "float16, q2_k, q3_k_s"},
		{[]string{"--model_path", dir, "--output_path", there, "--format", "gguf"}, 1,
			"--overwrite"},
		{[]string{"--model_path", dir, "--output_path", work, "--format", "gguf"}, 1, "model.gguf"},
		{[]string{"--model_path", bin, "--output_path", work + "/x"}, 1, "not a model"},
		{[]string{"--model_path", "../../bamba/testdata/pure", "--output_path", work + "/x",
			"--format", "gguf"}, 1, "without attention layers"},
	} {
		_, stderr, code := invoke(t, "", append([]string{"export"}, test.args...)...)
		if code != test.code || !strings.Contains(stderr, test.want) {
			t.Errorf("%v: exit %d, %s; expected %d with %q", test.args, code, stderr, test.code,
				test.want)
		}
	}
	if left, _ := os.ReadDir(work); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
	if text, _ := os.ReadFile(there); string(text) != "mine" {
		t.Error("an existing file was overwritten")
	}
	for _, f := range checkpoint.Formats {
		if help := succeed(t, "export", "--help"); !strings.Contains(help, f.Name+" (") {
			t.Errorf("the help lacks %s", f.Name)
		}
	}
}

func TestExport_RefusesToOverwriteItsInput(t *testing.T) {
	dir := writeModel(t, 704, true)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	contents := func() string {
		all := ""
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, name := range files {
			data, _ := os.ReadFile(name)
			all += name + "\n" + string(data)
		}
		return all
	}
	before := contents()
	for _, args := range [][]string{
		{"export", "--model_path", dir, "--output_path", dir, "--overwrite"},
		{"export", "--model_path", dir, "--output_path", link, "--overwrite", "--dtype",
			"bfloat16"},
		{"train", "--model_path", link, "--output_path", dir, "--data_path",
			filepath.Join(dir, "config.json")},
	} {
		_, stderr, code := invoke(t, "", args...)
		if code != 1 || !strings.Contains(stderr, "--output_path: ") ||
			!strings.Contains(stderr, "is also --model_path: choose another") {
			t.Errorf("%v: exit %d, %s", args, code, stderr)
		}
	}
	if contents() != before {
		t.Error("the model's folder has changed")
	}
}
