package eval

import (
	"fmt"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

// filterConfig is a named sequence of steps that a response goes through before it is judged.
type filterConfig struct {
	name  string
	steps []func(response string) (string, error)
}

// apply runs the steps over a response.
func (f filterConfig) apply(response string) (string, error) {
	for _, step := range f.steps {
		var err error
		if response, err = step(response); err != nil {
			return "", fmt.Errorf("filter %s: %w", f.name, err)
		}
	}
	return response, nil
}

// filterStep reads an entry of filter. As every document has one response, the functions that
// choose among several take it.
func (r *reader) filterStep() func(string) (string, error) {
	defer r.finish("filter: ")
	switch name := r.text("function"); name {
	case "regex":
		return r.regexFilter()
	case "lowercase":
		return func(s string) (string, error) { return lower(s), nil }
	case "uppercase":
		return func(s string) (string, error) { return cases.Upper(language.Und).String(s), nil }
	case "map":
		return r.mapFilter()
	case "take_first", "majority_vote":
	case "take_first_k":
		if k := r.integer("k", 1); k != 1 {
			r.fail(r.lineOf("k"), "take_first_k: k is %d, expected 1, as there is one response", k)
		}
	default:
		r.fail(r.line, "filter: the function %.60q is not known; there are regex, lowercase, "+
			"uppercase, map, take_first, take_first_k and majority_vote", name)
	}
	return func(s string) (string, error) { return s, nil }
}

// regexFilter finds a pattern in a response: the match of the number group_select, from the end if
// it is negative, and of several groups the first that is not empty.
func (r *reader) regexFilter() func(string) (string, error) {
	source, fallback := `#### (\-?[0-9\.\,]+)`, "[invalid]"
	r.decode("regex_pattern", "a text", &source)
	r.decode("fallback", "a text", &fallback)
	which := r.integer("group_select", 0)
	p, err := compilePattern(source)
	if err != nil {
		r.fail(r.lineOf("regex_pattern"), "%v", err)
	}
	return func(s string) (string, error) {
		found, err := p.find(s)
		if err != nil || len(found) == 0 {
			return fallback, err
		}
		i := which
		if i < 0 {
			i += len(found)
		}
		if i < 0 || i >= len(found) {
			return "", fmt.Errorf("group_select is %d, but the pattern matches %d times", which,
				len(found))
		}
		groups := found[i]
		if len(groups) == 1 {
			return trimSpace(groups[0]), nil
		}
		for _, g := range groups {
			if g != "" {
				return trimSpace(g), nil
			}
		}
		return fallback, nil
	}
}

// mapFilter replaces a response by the entry that it names.
func (r *reader) mapFilter() func(string) (string, error) {
	entries, fallback := map[string]string{}, ""
	r.decode("mapping_dict", "a mapping of texts", &entries)
	r.decode("default_value", "a text", &fallback)
	return func(s string) (string, error) {
		if to, ok := entries[s]; ok {
			return to, nil
		}
		return fallback, nil
	}
}
