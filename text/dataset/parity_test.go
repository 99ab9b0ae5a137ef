package dataset

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"conquer/text/tokenizer"
)

// dataOfPeers is the folder that tools/parity/data_sets.py has written.
func dataOfPeers(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("CONQUER_DATA")
	if folder == "" {
		t.Skip("CONQUER_DATA is not set: `make parity` sets it")
	}
	return folder
}

func TestLoad_FilesOfPeersEqualLines(t *testing.T) {
	folders, err := filepath.Glob(filepath.Join(dataOfPeers(t), "tables", "*"))
	if err != nil {
		t.Fatal(err)
	}
	tok := withSpecial(t, thinkTemplate)
	count, cached := 0, 0
	for _, folder := range folders {
		want, err := Load(filepath.Join(folder, "want.jsonl"), tok, Options{})
		if err != nil {
			t.Error(err)
			continue
		}
		lines := readAll(t, want)
		names, err := filepath.Glob(filepath.Join(folder, "*"))
		if err != nil {
			t.Fatal(err)
		}
		renamed, err := filepath.Glob(filepath.Join(folder, "renamed", "?*.*"))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, renamed...)
		names = append(names, filepath.Join(folder, "renamed", "saved"))
		list, err := os.ReadFile(filepath.Join(folder, "renamed", "columns"))
		if err != nil {
			t.Fatal(err)
		}
		cache := t.TempDir()
		for _, name := range slices.Concat(names, names) {
			opts := Options{Cache: cache}
			if filepath.Base(name) == "renamed" {
				continue
			}
			if filepath.Base(filepath.Dir(name)) == "renamed" {
				opts.Columns = columnsOf(t, string(list))
			}
			got, err := Load(name, tok, opts)
			if err != nil {
				t.Error(err)
				continue
			}
			samples := readAll(t, got)
			got.Close()
			if len(samples.Samples) != len(lines.Samples) {
				t.Errorf("%s: %s, want %s", name, got.Report, want.Report)
				continue
			}
			for i, s := range samples.Samples {
				w := lines.Samples[i]
				if !slices.Equal(s.IDs, w.IDs) || !slices.Equal(s.Labels, w.Labels) {
					t.Errorf("%s: sample %d is\n%q and learns %q, want\n%q and %q", name, i,
						tok.Decode(s.IDs, false), labeledText(tok, s), tok.Decode(w.IDs, false),
						labeledText(tok, w))
					break
				}
			}
			if count++; got.Cached {
				cached++
			}
		}
	}
	if cached != count/2 {
		t.Errorf("%d of %d files are read from the cache", cached, count)
	}
	t.Logf("%d files of %d tables", count/2, len(folders))
}

func TestLoad_MasksOfPeersAreEqual(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(dataOfPeers(t), "masks.json"))
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Tokenizer, Template string
		Messages            json.RawMessage
		IDs                 []int32
		Mask                []int
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	opened := map[string]*tokenizer.Tokenizer{}
	for _, c := range cases {
		key := c.Tokenizer + c.Template
		if opened[key] == nil {
			opened[key] = withChatTemplate(t, c.Tokenizer, c.Template)
		}
		d, err := Load(writeTestFile(t, "a.jsonl", `{"messages":`+string(c.Messages)+`}`),
			opened[key], Options{})
		if err != nil {
			t.Errorf("%s: %v", c.Messages, err)
			continue
		}
		s := readAll(t, d).Samples[0]
		mask := make([]int, len(s.IDs))
		for i, l := range s.Labels {
			if l != IgnoreLabel {
				mask[i] = 1
			}
		}
		if !slices.Equal(s.IDs, c.IDs) || !slices.Equal(mask, c.Mask) {
			t.Errorf("%s with %s:\n%s\nis %v %v, want %v %v", c.Tokenizer, c.Template, c.Messages,
				s.IDs, mask, c.IDs, c.Mask)
		}
	}
	t.Logf("%d masks", len(cases))
}

// withChatTemplate opens a copy of a tokenizer's folder with another chat template.
func withChatTemplate(t *testing.T, folder, template string) *tokenizer.Tokenizer {
	t.Helper()
	copied := t.TempDir()
	if err := os.CopyFS(copied, os.DirFS(folder)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(copied, "chat_template.jinja"), []byte(template),
		0o666); err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.Open(copied)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}
