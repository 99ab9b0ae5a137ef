package eval

import (
	"context"
	"strconv"

	"conquer/text/jinja"
)

// template is a Jinja template in lm-eval's environment.
type template = jinja.Template

func compile(source string) (*template, error) {
	return jinja.CompileWith(source, jinja.Settings{KeepSpace: true, Strict: true,
		Filters: map[string]func(string, []string) (string, error){"regex_replace": regexReplace}})
}

// regexReplace is the filter regex_replace(pattern, replacement, count=0).
func regexReplace(text string, arguments []string) (string, error) {
	count := 0
	if len(arguments) < 2 || len(arguments) > 3 {
		return "", errArguments
	}
	if len(arguments) == 3 {
		var err error
		if count, err = strconv.Atoi(arguments[2]); err != nil {
			return "", errArguments
		}
	}
	pattern, err := compilePattern(arguments[0])
	if err != nil {
		return "", err
	}
	return pattern.replace(text, arguments[1], count)
}

// render renders a template with the fields of a JSON object.
func render(t *template, object []byte) (string, error) {
	return t.RenderJSON(context.Background(), object)
}
