package onig

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Texts are divided as Hugging Face's Split divides them. ONIG_MATCHES names another file
// that tools/fixtures/onig.py wrote.
func TestFindAll_MatchesOniguruma(t *testing.T) {
	path := os.Getenv("ONIG_MATCHES")
	if path == "" {
		path = "testdata/matches.json"
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var patterns []struct {
		Pattern string
		Cases   []struct {
			Text         string
			Pieces, Rest []string
		}
	}
	if err := json.Unmarshal(data, &patterns); err != nil {
		t.Fatal(err)
	}
	compared, refused := 0, 0
	for _, p := range patterns {
		re, err := Compile(p.Pattern)
		if err != nil {
			refused++
			continue
		}
		for _, c := range p.Cases {
			compared++
			var pieces, rest []string
			at := 0
			for _, m := range append(re.FindAll(c.Text), [2]int{len(c.Text), len(c.Text)}) {
				if between := c.Text[at:m[0]]; between != "" {
					pieces, rest = append(pieces, between), append(rest, between)
				}
				if match := c.Text[m[0]:m[1]]; match != "" {
					pieces = append(pieces, match)
				}
				at = m[1]
			}
			if !slices.Equal(pieces, c.Pieces) || !slices.Equal(rest, c.Rest) {
				t.Errorf("%q divides %q into %q, %q, want %q, %q", p.Pattern, c.Text, pieces, rest,
					c.Pieces, c.Rest)
			}
		}
	}
	if compared < 2*len(patterns) {
		t.Errorf("only %d comparisons: %d of %d patterns were refused", compared, refused,
			len(patterns))
	}
}

func TestCompile_RefusesByName(t *testing.T) {
	for pattern, want := range map[string]string{
		`(a)\1`: `\1 is not supported`, `\Ga`: `\G is not supported`, `a\K`: `\K is not supported`,
		`\X`: `\X is not supported`, `(?~a)`: "a group of the form (?~a)", `(?i)ß`: "case folding",
		`(?i:ss)`: `"ss" matches one character`, `(?i)\p{L}`: "case folding",
		`(a*)*`:    "can be empty",
		`(?<=a+)b`: "without a longest match", `[b-a]`: "reversed", `[a`: "has no end",
		`a)`: "unmatched",
		`*a`: "nothing to repeat", `\p{Nothing}`: `"Nothing" is not known`,
		`[a-\d]`:    "ends with a set",
		`a{100001}`: "more than 100000", `(((a{100}){100}){100}){100}`: "expands to more than",
		strings.Repeat("(", 500): "nested groups", `a\`: "ends with a backslash",
	} {
		if _, err := Compile(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: error %v, want %q", pattern, err, want)
		}
	}
}

// Patterns for which backtracking takes exponential or quadratic time.
func TestFindAll_TakesLinearTime(t *testing.T) {
	text := strings.Repeat("a", 100000)
	began := time.Now()
	for _, pattern := range []string{`(a+)+b`, `(a|aa)+b`, `a+b`, `(?:a?){1}(a|a)*c`, `\s+$|a*?b`} {
		re, err := Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if found := re.FindAll(text); len(found) > 0 {
			t.Errorf("%s matches %v", pattern, found[0])
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(`[a-z&&[^aeiou]]+|(?i:'s)|\p{L}++(?!\S)`, "It's a test\n 12")
	f.Add(`(?<=a|bc)[[:alpha:]]{1,3}$`, "abc")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 200 || len(text) > 200 {
			return
		}
		re, err := Compile(pattern)
		if err != nil {
			return
		}
		text = strings.ToValidUTF8(text, "")
		at := 0
		for _, m := range re.FindAll(text) {
			if m[0] < at || m[1] < m[0] || m[1] > len(text) {
				t.Fatalf("match %v after %d of %d bytes", m, at, len(text))
			}
			at = m[1]
		}
	})
}
