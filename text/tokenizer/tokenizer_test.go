package tokenizer

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
)

const fixtures = "testdata"

// chars is the character tokenizer.
func chars(t testing.TB) *Tokenizer {
	t.Helper()
	tok, err := Open(CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func writeTestFile(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

type goldenFile struct {
	Cases []struct {
		Text           string
		Plain, Special []int32
		Decoded        string
		Skipped        string
	}
	Chats []struct {
		Messages []Message
		Generate bool
		Want     *string // nil where the template refuses the conversation
	}
}

func eachFixture(t *testing.T,
	f func(t *testing.T, dir string, tok *Tokenizer, golden *goldenFile),
) {
	dirs, _ := filepath.Glob(filepath.Join(fixtures, "*", "golden.json"))
	if len(dirs) < 8 {
		t.Fatalf("%d fixtures in %s", len(dirs), fixtures)
	}
	for _, path := range dirs {
		dir := filepath.Dir(path)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			tok, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			golden := new(goldenFile)
			readTestJSON(t, path, golden)
			f(t, dir, tok, golden)
		})
	}
}

func checkIDs(t *testing.T, tok *Tokenizer, golden *goldenFile) {
	t.Helper()
	for _, c := range golden.Cases {
		if got := tok.Encode(c.Text, false); !slices.Equal(got, c.Plain) {
			t.Errorf("%q gives %v, want %v", c.Text, got, c.Plain)
		}
		if got := tok.Encode(c.Text, true); !slices.Equal(got, c.Special) {
			t.Errorf("%q gives %v with special tokens, want %v", c.Text, got, c.Special)
		}
	}
}

func TestTokenizer_MatchesHuggingFace(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		checkIDs(t, tok, golden)
		for _, c := range golden.Cases {
			if got := tok.Decode(c.Special, false); got != c.Decoded {
				t.Errorf("%v is %q, want %q", c.Special, got, c.Decoded)
			}
			if got := tok.Decode(c.Special, true); got != c.Skipped {
				t.Errorf("%v without special tokens is %q, want %q", c.Special, got, c.Skipped)
			}
		}
	})
}

func TestContinuation_HasTheTokensOfTheWholeText(t *testing.T) {
	const given, target = "In other words,", " round the tower"
	eachFixture(t, func(t *testing.T, dir string, tok *Tokenizer, _ *goldenFile) {
		before, after := tok.Continuation(given, target)
		whole := tok.Encode(given+target, true)
		if ids := append(slices.Clone(before), after...); !slices.Equal(ids,
			whole[:len(whole)-len(tok.suffix)]) {
			t.Errorf("%v, of the whole text %v", ids, whole)
		}
		if got := tok.Decode(before, true); got != given {
			t.Errorf("before the border lies %q", got)
		}
		if twice := slices.Equal(after, tok.Encode(target, false)); twice &&
			(filepath.Base(dir) == "llama2" || filepath.Base(dir) == "sentencepiece") {
			t.Errorf("%v has a second space", after)
		}
	})
}

func TestTokenizer_ServesManyGoroutines(t *testing.T) {
	eachFixture(t, func(t *testing.T, _ string, tok *Tokenizer, golden *goldenFile) {
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for _, c := range golden.Cases {
					if !slices.Equal(tok.Encode(c.Text, true), c.Special) {
						t.Errorf("%q differs", c.Text)
					}
					if len(golden.Chats) > 0 {
						tok.Chat(golden.Chats[0].Messages, true)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestEncode_InvalidUTF8BecomesReplacementCharacters(t *testing.T) {
	tok, err := Open(filepath.Join(fixtures, "llama3"))
	if err != nil {
		t.Fatal(err)
	}
	if got := tok.Decode(tok.Encode("a\xffb", false), false); got != "a\uFFFDb" {
		t.Errorf("got %q", got)
	}
}
