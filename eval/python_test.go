package eval

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

// The draws are those of CPython's random.Random(1234).
func TestRandom_DrawsAsPythonDoes(t *testing.T) {
	for _, c := range []struct {
		pool, n int
		draws   [][]int
	}{
		{7, 2, [][]int{{6, 3}, {0, 6}, {0, 4}}},
		{9, 3, [][]int{{7, 1, 0}, {1, 0, 5}, {1, 8, 6}}},
		{21, 5, [][]int{{14, 3, 0, 2, 1}, {2, 3, 11, 7, 0}, {0, 20, 11, 15, 14}}},
		{22, 5, [][]int{{14, 3, 0, 2, 18}, {1, 21, 2, 3, 11}, {7, 0, 11, 20, 19}}},
		{85, 6, [][]int{{56, 14, 0, 11, 74, 4}, {10, 12, 45, 30, 2, 3},
			{2, 44, 82, 79, 61, 78}}},
		{86, 6, [][]int{{56, 14, 0, 11, 74, 4}, {85, 10, 12, 45, 30, 2}, {3, 2, 44, 82, 79, 61}}},
		{900, 5, [][]int{{796, 451, 119, 7, 92}, {826, 596, 35, 687, 709},
			{85, 100, 784, 363, 242}}},
		{7473, 8, [][]int{{6374, 3610, 957, 61, 742, 7462, 6610, 4769},
			{286, 5501, 5677, 687, 806, 6279, 2905, 1939},
			{142, 252, 6461, 129, 2835, 5311, 5105, 3966}}},
	} {
		r := newRandom(1234)
		for _, want := range c.draws {
			if got := r.sample(c.pool, c.n); !reflect.DeepEqual(got, want) {
				t.Errorf("%d of %d: %v, want %v", c.n, c.pool, got, want)
			}
		}
	}
	r := newRandom(1234)
	for _, want := range []float64{0.9664535356921388, 0.4407325991753527, 0.007491470058587191} {
		if got := r.float(); got != want {
			t.Errorf("random() is %v, want %v", got, want)
		}
	}
	if got := newRandom(1<<40 + 7).float(); got != 0.6137037779936511 {
		t.Errorf("random() of a large seed is %v", got)
	}
	r = newRandom(0)
	for i, want := range []int{6, 6, 0, 4, 8, 7, 6, 4} {
		if got := r.below(10); got != want {
			t.Errorf("draw %d is %d, want %d", i, got, want)
		}
	}
}

// The values are those of ast.literal_eval.
func TestLiteral_ReadsAsPythonDoes(t *testing.T) {
	for source, want := range map[string]any{
		"[]":                    []any{},
		"['a', \"b's\"]":        []any{"a", "b's"},
		"[1, -2.5, None, True]": []any{1, -2.5, nil, true},
		"('x',)":                []any{"x"},
		"('x')":                 "x",
		"'a' \"b\"":             "ab",
		"'\\x41\\u00e9\\n\\q'":  "Aé\n\\q",
		"[[1], (2, 3)]":         []any{[]any{1}, []any{2, 3}},
		"  [ 'x' , ]":           []any{"x"},
		"1e3":                   1000.0,
		"'it''s'":               "its",
	} {
		if got, err := literal(source); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v, want %v", source, got, err, want)
		}
	}
	for _, source := range []string{"[1 2]", "[x]", "'a", "[1]]", "007", "{'a': 1}", "", "1+",
		"__import__('os')", "[[",
		"'\\x4'", strings.Repeat("[", 5000)} {
		if got, err := literal(source); err == nil {
			t.Errorf("%.40s: %v, want an error", source, got)
		}
	}
}

// The matches are those of re.findall, with each match's groups.
func TestPattern_FindsAsPythonDoes(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          [][]string
	}{
		{"#### (\\-?[0-9\\.\\,]+)", "a #### 5.\n#### 7", [][]string{{"5."}, {"7"}}},
		{"(-?[$0-9.,]{2,})|(-?[0-9]+)", "x,y then 5, $12", [][]string{{"5,", ""}, {"$12", ""}}},
		{"\\.$", "a.\n", [][]string{{"."}}},
		{"(?s).*#### ", "a\nb #### c", [][]string{{"a\nb #### "}}},
		{"[^\\]]+\\s", "a\u001cb ] c ", [][]string{{"a\u001cb "}, {" c "}}},
		{"(?P<q>['\\\"]).*?(?P=q)", "'a' \"b'\"", [][]string{{"'"}, {"\""}}},
		{"\\w+", "caf\u00e9 \u0661\u0662 _x", [][]string{{"caf\u00e9"}, {"\u0661\u0662"}, {"_x"}}},
		{"x*", "axb", [][]string{{""}, {"x"}, {""}, {""}}},
		{"[]a]+", "]a[b", [][]string{{"]a"}}},
		{"\\d+\\Z", "1\n2", [][]string{{"2"}}},
		{"(a)(b)?", "ab a", [][]string{{"a", "b"}, {"a", ""}}},
	} {
		p, err := compilePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.find(c.text); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s in %q: %q, %v, want %q", c.pattern, c.text, got, err, c.want)
		}
	}
}

// The texts are those of re.sub.
func TestPattern_ReplacesAsPythonDoes(t *testing.T) {
	for _, c := range []struct {
		pattern, with, text string
		count               int
		want                string
	}{
		{"(\\w+) (\\w+)", "\\2 \\1", "hello big world", 0, "big hello world"},
		{"[aeiou]", "*", "education", 2, "*d*cation"},
		{"(?P<n>\\d)", "<\\g<n>>", "a1b2", 0, "a<1>b<2>"},
		{"\\(\\s*([^\\)]*?)\\s*\\)", "(\\1)", "f ( x ) ( )", 0, "f (x) ()"},
		{"\\s+", "_", " a\u2003b\n", 0, "_a_b_"},
	} {
		p, err := compilePattern(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.replace(c.text, c.with, c.count); err != nil || got != c.want {
			t.Errorf("%s in %q: %q, %v, want %q", c.pattern, c.text, got, err, c.want)
		}
	}
	p := mustPattern(`(\w+\s?)+:`)
	p.compiled.MatchTimeout = 50 * time.Millisecond
	if _, err := p.find(strings.Repeat("a", 60)); err == nil ||
		!strings.Contains(err.Error(), "pattern") {
		t.Errorf("the error of a search without end is %v", err)
	}
}

// The results are those of Python's str and of len(re.split(r"\\s+", s)).
func TestText_IsAsInPython(t *testing.T) {
	for text, want := range map[string]string{
		"hello WORLD": "Hello world",
		"éCOLE":       "École",
		"ǆabc":        "ǅabc",
		"1ABC":        "1abc",
		"ΑΣ":          "Ας",
		"":            "",
		"ßx":          "Ssx",
	} {
		if got := capitalize(text); got != want {
			t.Errorf("capitalize(%q) is %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]int{
		"one two":         2,
		"  one two":       3,
		"one two\n":       3,
		"a\u001cb\u2003c": 3,
		"":                1,
		" ":               2,
	} {
		if got := countWords(text); got != want {
			t.Errorf("%q has %d words, want %d", text, got, want)
		}
	}
}
