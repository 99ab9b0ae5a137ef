// Package docs tests the documents: their links, and the program of library.md.
package docs

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"conquer/checkpoint"
	_ "conquer/llama"
	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

func TestDocuments_LinksLeadToFiles(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	count := 0
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		hidden := strings.HasPrefix(name, ".") && name != ".."
		if entry.IsDir() && (name == "build" || hidden) {
			return fs.SkipDir
		}
		if filepath.Ext(path) != ".md" {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			count++
			if _, err := os.Stat(filepath.Join(filepath.Dir(path), m[1])); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if count < 20 {
		t.Errorf("only %d links were found", count)
	}
}

// program is the Go program in library.md.
func program(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("library.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), "```go\n")
	source, _, closed := strings.Cut(rest, "```\n")
	if !found || !closed {
		t.Fatal("library.md has no Go program")
	}
	return source
}

// A module of its own, outside this repository, follows library.md: replace, make env, go run.
func TestLibrary_ProgramRunsInAnotherModule(t *testing.T) {
	if testing.Short() {
		t.Skip("links a program of another module: takes longer than -short allows")
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("main.go", program(t))
	write("train.jsonl", `{"instruction": "Greet.", "input": "", "output": "Hello."}`+"\n"+
		`{"instruction": "Part.", "input": "", "output": "Goodbye."}`+"\n")
	writeModel(t, filepath.Join(dir, "model"))

	// As library.md says: the environment of `make env`, then go. The test may run below make.
	script := `unset MAKEFLAGS MAKELEVEL LD_LIBRARY_PATH
		eval "$(make -s -C "$CONQUER" env)"
		go mod init example.com/mine
		go mod edit -require conquer@v0.0.0 -replace "conquer=$CONQUER"
		go mod tidy
		go run . model train.jsonl tuned`
	c := exec.Command("bash", "-e", "-c", script)
	c.Dir = dir
	c.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "CONQUER="+root)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	printed := string(out)
	if !strings.Contains(printed, "nats per token") || !strings.Contains(printed, "step 3: loss") {
		t.Errorf("the program printed\n%s", printed)
	}
	m, err := model.Open(filepath.Join(dir, "tuned"), torch.Float32, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	model.Free(m)
}

// writeModel writes a small Llama with random weights that reads characters.
func writeModel(t *testing.T, folder string) {
	t.Helper()
	tok, err := tokenizer.Open(tokenizer.CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	config, err := model.Variant("llama", "micro")
	if err != nil {
		t.Fatal(err)
	}
	for key, size := range map[string]int{
		"vocab_size": tok.VocabSize(), "hidden_size": 32, "intermediate_size": 64,
		"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
	} {
		config[key] = float64(size)
	}
	m, err := model.New(config)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(m)
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	err = torch.Run(func() error {
		torch.ManualSeed(1)
		model.Initialize(m, torch.Float32, torch.CPU)
		options := checkpoint.Options{Config: text, Also: tok.Save}
		return checkpoint.Save(folder, model.Weights(m), options)
	})
	if err != nil {
		t.Fatal(err)
	}
}
