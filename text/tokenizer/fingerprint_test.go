package tokenizer

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestFingerprint_ChangesWithWhatDecidesTheTokens(t *testing.T) {
	print := func(files map[string]string, change func(*Tokenizer)) [32]byte {
		t.Helper()
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "qwen2"))); err != nil {
			t.Fatal(err)
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		tok, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(tok)
		}
		sum, err := tok.Fingerprint()
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	at := func(clock string) func(*Tokenizer) {
		now, err := time.Parse(time.RFC3339, clock)
		if err != nil {
			t.Fatal(err)
		}
		return func(tok *Tokenizer) { tok.SetClock(now) }
	}
	template := func(text string) map[string]string {
		return map[string]string{"chat_template.jinja": text}
	}
	plain := print(nil, nil)
	if again := print(nil, at("2024-07-06T13:05:09Z")); again != plain {
		t.Error("the time counts for a template that does not show it")
	}
	for what, other := range map[string][32]byte{
		"template":  print(template("{{ messages }}"), nil),
		"end token": print(nil, func(tok *Tokenizer) { tok.AddEOS(5) }),
		"file":      print(map[string]string{"tokenizer_config.json": "{}"}, nil),
	} {
		if other == plain {
			t.Errorf("another %s has the same fingerprint", what)
		}
	}
	const day = `{% if strftime_now is defined %}{{ strftime_now("%d %b") }}` +
		`{{ strftime_now( '%Y' ) }}{% endif %}`
	morning, evening := "2024-07-06T08:00:00Z", "2024-07-06T20:00:00Z"
	if print(template(day), at(morning)) != print(template(day), at(evening)) {
		t.Error("a template that shows the day has two fingerprints on one day")
	}
	if print(template(day), at(morning)) == print(template(day), at("2024-07-07T08:00:00Z")) {
		t.Error("a template that shows the day has one fingerprint on two days")
	}
	for _, text := range []string{`{{ strftime_now("%H") }}`,
		`{% set f = "%H" %}{{ strftime_now(f) }}`,
		`{{ strftime_now("%d" ~ x) }}`, `{% set now = strftime_now %}{{ now("%d") }}`} {
		if print(template(text), at(morning)) == print(template(text), at(evening)) {
			t.Errorf("%s has one fingerprint at two hours", text)
		}
	}
}

func TestFingerprint_NeedsAFixedTime(t *testing.T) {
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", "qwen2"))); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "chat_template.jinja"), []byte(`{{ strftime_now("%d") }}`),
		0o666)
	tok, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tok.Fingerprint(); err != errNoClock {
		t.Errorf("got %v", err)
	}
	chars, err := Open(CharTokenizer)
	if err != nil {
		t.Fatal(err)
	}
	one, err := chars.Fingerprint()
	chars.AddEOS(7)
	if two, _ := chars.Fingerprint(); err != nil || one == two {
		t.Error(err)
	}
}
