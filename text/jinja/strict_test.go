package jinja_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"conquer/text/jinja"
)

// testdata/strict.json holds what jinja2 3.1.6 makes of each template in lm-eval's environment:
// StrictUndefined, keep_trailing_newline, neither trim_blocks nor lstrip_blocks, and the filter
// regex_replace.
func TestCompileWith_RendersTheStrictCases(t *testing.T) {
	data, err := os.ReadFile("testdata/strict.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []templateCase
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	settings := jinja.Settings{KeepSpace: true, Strict: true,
		Filters: map[string]func(string, []string) (string, error){"regex_replace": replace}}
	failures := 0
	for _, c := range cases {
		template, err := jinja.CompileWith(c.Template, settings)
		got := ""
		if err == nil {
			got, err = template.RenderJSON(t.Context(), c.Context)
		}
		if (err != nil) != (c.Error != "") || got != c.Want {
			t.Errorf("%q\ncontext %s\ngot  %q, %v\nwant %q, %s", c.Template, c.Context, got, err,
				c.Want, c.Error)
		}
		if c.Error != "" {
			failures++
		}
	}
	if failures < 10 {
		t.Errorf("only %d of %d cases fail", failures, len(cases))
	}
}

// replace is re.sub for patterns that mean the same in Go.
func replace(text string, arguments []string) (string, error) {
	pattern, err := regexp.Compile(arguments[0])
	if err != nil {
		return "", err
	}
	left := -1
	if len(arguments) > 2 {
		if left, err = strconv.Atoi(arguments[2]); err != nil {
			return "", err
		}
	}
	with := regexp.MustCompile(`\\(\d)`).ReplaceAllString(arguments[1], "$${$1}")
	return pattern.ReplaceAllStringFunc(text, func(match string) string {
		if left == 0 {
			return match
		}
		left--
		return pattern.ReplaceAllString(match, with)
	}), nil
}

func TestCompileWith_NamesTheFilterThatFails(t *testing.T) {
	settings := jinja.Settings{
		Filters: map[string]func(string, []string) (string, error){"regex_replace": replace}}
	for source, want := range map[string]string{
		"{{ 'x'|regex_replace('(', '') }}":           "missing closing",
		"{{ 'x'|regex_replace(pattern='x') }}":       "without its name",
		"{{ 'x'|regex_replac('x', 'y') }}":           "No filter named",
		"{{ ['x']|map('regex_replac')|list }}":       "No filter named",
		"{{ ['x']|map('regex_replace', '(')|list }}": "missing closing",
	} {
		template, err := jinja.CompileWith(source, settings)
		if err == nil {
			_, err = template.Render(t.Context(), nil)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want an error with %q", source, err, want)
		}
	}
}
