package onig

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"regexp"
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
		`a{100001}`: "more than 100000", `a{1,9999}+`: "more than 2000 steps",
		`(?<=[a-z]{90}(a|b)?)c`:       "more than 2000 steps",
		`\p{L}{3000}`:                 "more than 2000 steps",
		strings.Repeat("a", 20000):    "has 20000 bytes, expected at most 16384",
		`(((a{100}){100}){100}){100}`: "expands to more than",
		strings.Repeat("(", 500):      "nested groups", `a\`: "ends with a backslash",
	} {
		if _, err := Compile(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: error %v, want %q", pattern, err, want)
		}
	}
}

// Patterns for which backtracking takes exponential or quadratic time.
func TestFindAll_TakesLinearTime(t *testing.T) {
	const n = 20000
	text := strings.Repeat("a", n)
	began := time.Now()
	for pattern, want := range map[string]int{
		`(a+)+b`: 0, `(a|aa)+b`: 0, `a+b`: 0, `(?:a?){1}(a|a)*c`: 0, `\s+$|a*?b`: 0, `a++b`: 0,
		`a{1,3}+b`: 0, `(?>a*)b`: 0, `(?>(?:aa?)*)b`: 0, `(?=(?=(?=a*b)a*b)a*b)a`: 0,
		`(?:a*b)|a`: n, `(?:a*b|aa*c)|a`: n, `(?=a*)a`: n, `(?>a*b|a)`: n,
		`(?!a*b)a`: n, `(?<=(?=a*)a)a`: n - 1, `(?=(?:a|aa)*)a`: n,
		`(?:` + strings.Repeat("a|", 50) + `a)` + strings.Repeat("a", 50) + `b|a`: n,
		`(a(a(a(a(a)?)?)?)?)?aaaaaaaaaaab|a`:                                      n,
		strings.Repeat("a?", 100) + strings.Repeat("a", 100) + `b|a`:              n,
	} {
		re, err := Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if found := re.FindAll(text); len(found) != want {
			t.Errorf("%s has %d matches, want %d", pattern, len(found), want)
		}
	}
	// They take half a second on a free core, and minutes to years with backtracking.
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("took %v", took)
	}
}

// Leftmost-first matches of Go's package, which has no look-around and no atomic groups. What is
// known of states from one match holds for the next ones.
func TestFindAll_MatchesGo(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var pattern func(depth int) string
	pattern = func(depth int) string {
		switch k := random.IntN(9); {
		case depth == 0 || k < 3:
			return []string{"a", "b", "[ab]", "c", "ab"}[random.IntN(5)]
		case k < 5:
			return pattern(depth-1) + pattern(depth-1)
		case k < 7:
			return "(?:" + pattern(depth-1) + "|" + pattern(depth-1) + ")"
		}
		return "(?:" + pattern(depth-1) + ")" +
			[]string{"*", "+", "?", "*?", "+?", "??", "{1,3}", "{2,}", "{0,2}?"}[random.IntN(9)]
	}
	compared := 0
	for range 3000 {
		p := pattern(4)
		re, err := Compile(p)
		if err != nil {
			continue // what can be empty is repeated
		}
		compared++
		text := strings.Map(func(rune) rune { return rune("aab bc"[random.IntN(6)]) },
			strings.Repeat("x", 40))
		var want [][2]int
		for _, m := range regexp.MustCompile(p).FindAllStringIndex(text, -1) {
			want = append(want, [2]int(m))
		}
		if got := re.FindAll(text); !slices.Equal(got, want) {
			t.Fatalf("%q in %q: %v, want %v", p, text, got, want)
		}
	}
	if compared < 1000 {
		t.Errorf("only %d patterns were compared", compared)
	}
}

// Look-around that may look at any place says the same as a match that begins or ends there.
func TestFindAll_LooksAroundAsOftenAsNeeded(t *testing.T) {
	text := strings.Repeat("aab bcaabb aaa b", 2000)
	for pattern, same := range map[string]string{
		`(?=a*b)a`:          `(?:a)(?=a*b)|a(?=b)`,
		`(?>aa*)(?=b)`:      `a++(?=b)`,
		`(?<=(?>a|b)c)a+`:   `(?<=[ab]c)a++`,
		`(?<=(?=aab)a)ab`:   `(?<=a)ab(?!b)|(?<=a)abb(?<=abb)(?!x)(?<!abb)|(?<=a)ab`,
		`(?!aaa)a+|b(?<=b)`: `(?:(?!aaa)a+)|b`,
	} {
		a, err := Compile(pattern)
		b, err2 := Compile(same)
		if err != nil || err2 != nil {
			t.Fatal(err, err2)
		}
		if got, want := a.FindAll(text), b.FindAll(text); !slices.Equal(got, want) ||
			len(got) < 1000 {
			t.Errorf("%s has %d matches, %s has %d", pattern, len(got), same, len(want))
		}
	}
}

func TestRegexp_CostAndMinLength(t *testing.T) {
	for pattern, want := range map[string][2]int{
		`a`: {2, 1}, `a++`: {3, 1}, `a{3,9}`: {11, 3}, `(?<=a{4})b`: {28, 1}, `ab|c*`: {7, 0},
	} {
		re, err := Compile(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]int{re.Cost(), re.MinLength()}; got != want {
			t.Errorf("%s: %v, want %v", pattern, got, want)
		}
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
