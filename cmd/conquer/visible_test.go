package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/text/tokenizer"
)

func TestVisible_CharactersThatTerminalsObeyAreEscapes(t *testing.T) {
	for text, want := range map[string]string{
		"a\tb\nä 漢 😀 \u200d":          "a\tb\nä 漢 😀 \u200d",
		"\x1b]0;title\a\x1b[2J":       `\x1b]0;title\x07\x1b[2J`,
		"safe\rfake\b\x7f\x00":        `safe\x0dfake\x08\x7f\x00`,
		"\u009b31m\u0085":             `\x9b31m\x85`,
		"\x9b31m\xff":                 `\x9b31m\xff`,
		"a\u202eb\u202c\u2066c\u2069": `a\u202eb\u202c\u2066c\u2069`,
	} {
		if got := visible(text); got != want {
			t.Errorf("%q is %q, expected %q", text, got, want)
		}
		for size := range len(text) { // in pieces of any size
			var b strings.Builder
			w := &visibleWriter{out: &b}
			for at := 0; at < len(text); at += size + 1 {
				piece := text[at:min(at+size+1, len(text))]
				if n, err := w.Write([]byte(piece)); n != len(piece) || err != nil {
					t.Fatal(n, err)
				}
			}
			if w.Write([]byte(".")); b.String() != want+"." {
				t.Errorf("%q in pieces of %d is %q, expected %q", text, size+1, b.String(), want)
			}
		}
	}
}

func TestMessage_IsShort(t *testing.T) {
	long := "model: the tensor " + strings.Repeat("ä", 100_000) + "\x1b has no place"
	got := message(long)
	if len(got) > messageSize+50 || !strings.HasPrefix(got, "model: the tensor ä") ||
		!strings.HasSuffix(got, `ä\x1b has no place`) || strings.Contains(got, `\xc3`) {
		t.Errorf("%d bytes: %s", len(got), got)
	}
	if short := "a" + strings.Repeat("b", messageSize-1); message(short) != short {
		t.Error("a short message changes")
	}
}

func TestPrintJSON_EscapesWhatTerminalsObey(t *testing.T) {
	text := "\x1b\u009b\u202e\x7f\"<\\\n漢"
	var b strings.Builder
	if err := printJSON(&b, text); err != nil {
		t.Fatal(err)
	}
	want := `"\u001b\u009b\u202e\u007f\"<\\\n漢"` + "\n"
	if b.String() != want {
		t.Errorf("%q, expected %q", b.String(), want)
	}
	var back string
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back != text {
		t.Errorf("%q, %v", back, err)
	}
}

// A model that generates the byte 0x1b cannot command a terminal. A pipe gets the byte.
func TestGenerate_EscapesTextOnATerminalOnly(t *testing.T) {
	dir := writeModel(t, 704, true)
	tok, err := tokenizer.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	ids := tok.Encode("\x1b", false)
	if len(ids) != 1 {
		t.Fatalf("tokens %v", ids)
	}
	var others []string
	for id := range 704 {
		if id != int(ids[0]) {
			others = append(others, fmt.Sprint(id))
		}
	}
	put(t, filepath.Join(dir, "generation_config.json"),
		`{"suppress_tokens": [`+strings.Join(others, ",")+"]}")
	args := []string{"generate", "--model_path", dir, "--prompt", "hello", "--max_new_tokens", "2",
		"--device", "cpu"}
	if text := succeed(t, args...); text != "\x1b\x1b\n" {
		t.Errorf("piped %q", text)
	}
	p := newPseudoTerminal(t)
	stdout := os.Stdout
	os.Stdout = p.program
	code := run(args, os.Stdout, os.Stderr)
	os.Stdout = stdout
	if code != 0 {
		t.Fatalf("exit %d", code)
	}
	p.press(t, `\x1b\x1b`, "")
}

func TestInfo_NamesOfAModelCannotCommandATerminal(t *testing.T) {
	dir := writeModel(t, 704, true)
	addEmpty(t, dir, "evil\x1b[2J\u202e.weight")
	changeJSON(t, filepath.Join(dir, "config.json"),
		map[string]any{"sliding_window": "\x1b[2J", "intermediate_size": "\x1b[2J"})
	info := succeed(t, "info", "--model_path", dir, "--tensors")
	if strings.ContainsAny(info, "\x1b\u202e") || !strings.Contains(info, `evil\x1b[2J\u202e`) {
		t.Errorf("%q", info)
	}
	folder := filepath.Join(t.TempDir(), "a\x1b[2Jb")
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	_, stderr, _ := invoke(t, "", "info", "--model_path", folder)
	if strings.Contains(stderr, "\x1b") || !strings.Contains(stderr, `a\x1b[2Jb`) {
		t.Errorf("%q", stderr)
	}
}
