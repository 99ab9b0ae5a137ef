package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// folderWith makes a folder with a file of the fixtures and other files.
func folderWith(t testing.TB, base string, files map[string]json.RawMessage) string {
	t.Helper()
	dir := t.TempDir()
	data, err := os.ReadFile(filepath.Join(fixtures, base))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]byte{filepath.Base(base): data}
	for name, content := range files {
		all[name] = content
	}
	for name, content := range all {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Tokens that the small files name are added as transformers' AutoTokenizer adds them.
func TestOpen_AddsTheTokensOfTheFolder(t *testing.T) {
	var shapes map[string]struct {
		Base          string
		Files         map[string]json.RawMessage
		Size          int
		BOS, EOS, Pad *int32
		Cases         []struct {
			Text           string
			Plain, Special []int32
			Skipped        string
		}
	}
	readTestJSON(t, filepath.Join(fixtures, "folders.json"), &shapes)
	for name, shape := range shapes {
		t.Run(name, func(t *testing.T) {
			dir := folderWith(t, shape.Base, shape.Files)
			tok, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			check := func(tok *Tokenizer) {
				t.Helper()
				if tok.VocabSize() != shape.Size {
					t.Errorf("%d tokens, want %d", tok.VocabSize(), shape.Size)
				}
				eos := int32(-1)
				if len(tok.eos) > 0 {
					eos = tok.eos[0]
				}
				for what, c := range map[string]struct {
					got  int32
					want *int32
				}{"bos": {tok.bos, shape.BOS}, "eos": {eos, shape.EOS}, "pad": {tok.pad,
					shape.Pad}} {
					if c.want == nil && c.got >= 0 || c.want != nil && c.got != *c.want {
						t.Errorf("%s %d", what, c.got)
					}
				}
				for _, c := range shape.Cases {
					if got := tok.Encode(c.Text, false); !slices.Equal(got, c.Plain) {
						t.Errorf("%q gives %v, want %v", c.Text, got, c.Plain)
					}
					if got := tok.Encode(c.Text, true); !slices.Equal(got, c.Special) {
						t.Errorf("%q gives %v with special tokens, want %v", c.Text, got, c.Special)
					}
					if got := tok.Decode(c.Special, true); got != c.Skipped {
						t.Errorf("%v is %q, want %q", c.Special, got, c.Skipped)
					}
				}
			}
			check(tok)
			out := t.TempDir()
			if err := tok.Save(out); err != nil {
				t.Fatal(err)
			}
			saved, err := Open(out)
			if err != nil {
				t.Fatal(err)
			}
			check(saved)
		})
	}
}

func TestChat_TemplatesOfTheFolder(t *testing.T) {
	const config = "tokenizer_config.json"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string // what Chat gives
		all   []string
	}{
		{"a token that is null is empty", map[string]string{
			config: `{"bos_token":null,"eos_token":"<|im_end|>","image_token":"<|im_start|>",` +
				`"chat_template":"[{{ bos_token }}|{{ eos_token }}|{{ image_token }}]"}`,
			"config.json": `{"bos_token_id":1}`}, "[|<|im_end|>|<|im_start|>]",
			[]string{"default"}},
		{"a list of templates", map[string]string{
			config: `{"chat_template":[{"name":"tool_use","template":"T"},` +
				`{"name":"default","template":"D"}]}`}, "D", []string{"default", "tool_use"}},
		{"a list without a default", map[string]string{
			config: `{"chat_template":[{"name":"tool_use","template":"T"}]}`},
			"error: default; it has tool_use", []string{"tool_use"}},
		{"files replace the list", map[string]string{
			config:                config1Template,
			"chat_template.jinja": "J", "additional_chat_templates/rag.jinja": "R"},
			"J", []string{"default", "rag"}},
		{"additional templates alone", map[string]string{
			config: config1Template, "additional_chat_templates/rag.jinja": "R"},
			"error: default; it has rag", []string{"rag"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := map[string]json.RawMessage{}
			for name, content := range c.files {
				files[name] = json.RawMessage(content)
			}
			check := func(tok *Tokenizer) {
				t.Helper()
				got, err := tok.Chat(nil, false)
				if want, ok := strings.CutPrefix(c.want, "error: "); ok {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("error %v, want %q", err, want)
					}
				} else if err != nil || got != c.want {
					t.Errorf("got %q, %v, want %q", got, err, c.want)
				}
				var names []string
				for name := range tok.ChatTemplates() {
					names = append(names, name)
				}
				if slices.Sort(names); !slices.Equal(names, c.all) {
					t.Errorf("templates %v, want %v", names, c.all)
				}
			}
			tok, err := Open(folderWith(t, "smollm/tokenizer.json", files))
			if err != nil {
				t.Fatal(err)
			}
			check(tok)
			out := t.TempDir()
			if err := tok.Save(out); err != nil {
				t.Fatal(err)
			}
			saved, err := Open(out)
			if err != nil {
				t.Fatal(err)
			}
			if c.files["config.json"] == "" {
				check(saved)
			}
			meta, err := tok.GGUF(tok.VocabSize())
			if err != nil {
				t.Fatal(err)
			}
			back, err := FromGGUF(meta)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(back.ChatTemplates()); got != len(c.all) {
				t.Errorf("%d templates in GGUF, want %v", got, c.all)
			}
		})
	}
}

const config1Template = `{"chat_template":[{"name":"old","template":"O"},` +
	`{"name":"default","template":"D"}]}`
