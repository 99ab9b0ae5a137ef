package eval

import (
	"fmt"
	"slices"
	"strings"
)

// The functions that tasks of lm-eval have in Python. A task's file names them with the tag
// !function.

// knownFunctions lists the names of the functions.
func knownFunctions() string {
	var names []string
	for name := range documentFunctions {
		names = append(names, name)
	}
	for name := range fieldFunctions {
		names = append(names, name)
	}
	for name := range resultFunctions {
		names = append(names, name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func known(name string) bool {
	return documentFunctions[name] != nil || fieldFunctions[name] != nil ||
		resultFunctions[name] != nil
}

// documentFunctions are functions for process_docs.
var documentFunctions = map[string]func(document) (document, error){
	"hellaswag.process_docs": hellaswagDocument,
}

// fieldFunctions are functions for doc_to_text, doc_to_target and doc_to_choice.
var fieldFunctions = map[string]func(document) (any, error){
	"winogrande.doc_to_text":        winograndeText,
	"winogrande.doc_to_target":      winograndeTarget,
	"winogrande.doc_to_choice":      winograndeChoice,
	"wikitext.wikitext_detokenizer": wikitextTarget,
}

// resultFunctions are functions for process_results. They name the text whose words and bytes are
// counted.
var resultFunctions = map[string]func(document) (string, error){
	"wikitext.process_results": func(d document) (string, error) { return d.text("page") },
}

// text returns a field that is a text.
func (d document) text(name string) (string, error) {
	s, ok := d.fields[name].(string)
	if !ok {
		return "", d.wrong(name, "a text")
	}
	return s, nil
}

// texts returns a field that is a list of texts.
func (d document) texts(name string) ([]string, error) {
	list, ok := d.fields[name].([]any)
	if !ok {
		return nil, d.wrong(name, "a list of texts")
	}
	texts, ok := allTexts(list)
	if !ok {
		return nil, d.wrong(name, "a list of texts")
	}
	return texts, nil
}

func allTexts(list []any) ([]string, bool) {
	texts := make([]string, len(list))
	for i, item := range list {
		s, ok := item.(string)
		if !ok {
			return nil, false
		}
		texts[i] = s
	}
	return texts, true
}

func (d document) wrong(name, expected string) error {
	v, ok := d.fields[name]
	if !ok {
		return fmt.Errorf("%s: the field %q is missing", d.where, name)
	}
	return fmt.Errorf("%s: the field %q is %s, expected %s", d.where, name, kindOf(v), expected)
}

// mustPattern compiles a pattern of this file.
func mustPattern(source string) *pattern {
	p, err := compilePattern(source)
	if err != nil {
		panic(err)
	}
	return p
}

var brackets = mustPattern(`\[.*?\]`)

// hellaswagDocument adds the query, the choices and the number of the right one.
func hellaswagDocument(d document) (document, error) {
	clean := func(s string) (string, error) {
		s = strings.ReplaceAll(trimSpace(s), " [title]", ". ")
		s, err := brackets.replace(s, "", 0)
		return strings.ReplaceAll(s, "  ", " "), err
	}
	var parts [3]string
	for i, name := range []string{"activity_label", "ctx_a", "ctx_b"} {
		var err error
		if parts[i], err = d.text(name); err != nil {
			return d, err
		}
	}
	query, err := clean(parts[0] + ": " + parts[1] + " " + capitalize(parts[2]))
	if err != nil {
		return d, err
	}
	endings, err := d.texts("endings")
	if err != nil {
		return d, err
	}
	choices := make([]any, len(endings))
	for i, ending := range endings {
		if choices[i], err = clean(ending); err != nil {
			return d, err
		}
	}
	gold, ok := d.fields["label"].(int)
	if s, isText := d.fields["label"].(string); isText {
		var v any
		v, err = literal(s)
		gold, ok = v.(int)
	}
	if err != nil || !ok {
		return d, d.wrong("label", "a number")
	}
	return d.with([]string{"query", "choices", "gold"}, []any{query, choices, gold})
}

// winograndeText is the number of the right option.
func winograndeText(d document) (any, error) {
	switch answer, _ := d.fields["answer"].(string); answer {
	case "1":
		return 0, nil
	case "2":
		return 1, nil
	}
	return nil, d.wrong("answer", `"1" or "2"`)
}

func winograndeSplit(d document) (before, after string, err error) {
	sentence, err := d.text("sentence")
	if err != nil {
		return "", "", err
	}
	before, after, ok := strings.Cut(sentence, "_")
	if !ok {
		return "", "", d.wrong("sentence", "a sentence with an underscore for the gap")
	}
	return before, after, nil
}

// winograndeTarget is the sentence behind the gap.
func winograndeTarget(d document) (any, error) {
	_, after, err := winograndeSplit(d)
	return trimSpace(after), err
}

// winograndeChoice is the sentence up to the gap with each option in it.
func winograndeChoice(d document) (any, error) {
	before, _, err := winograndeSplit(d)
	if err != nil {
		return nil, err
	}
	choices := []any{}
	for _, name := range []string{"option1", "option2"} {
		option, err := d.text(name)
		if err != nil {
			return nil, err
		}
		choices = append(choices, before+option)
	}
	return choices, nil
}

// detokenizer undoes wikitext's spaces. The order matters.
var detokenizer = []struct {
	from, to string
	pattern  *pattern // replaces from
}{
	{from: "s '", to: "s'"},
	{pattern: mustPattern(`/' [0-9]/`), to: `/'[0-9]/`},
	{from: " @-@ ", to: "-"}, {from: " @,@ ", to: ","}, {from: " @.@ ", to: "."},
	{from: " : ", to: ": "}, {from: " ; ", to: "; "}, {from: " . ", to: ". "},
	{from: " ! ", to: "! "}, {from: " ? ", to: "? "}, {from: " , ", to: ", "},
	{pattern: mustPattern(`\(\s*([^\)]*?)\s*\)`), to: `(\1)`},
	{pattern: mustPattern(`\[\s*([^\]]*?)\s*\]`), to: `[\1]`},
	{pattern: mustPattern(`{\s*([^}]*?)\s*}`), to: `{\1}`},
	{pattern: mustPattern(`"\s*([^"]*?)\s*"`), to: `"\1"`},
	{pattern: mustPattern(`'\s*([^']*?)\s*'`), to: `'\1'`},
	{from: "= = = =", to: "===="}, {from: "= = =", to: "==="}, {from: "= =", to: "=="},
	{from: " ° ", to: "°"}, {from: " \n", to: "\n"}, {from: "\n ", to: "\n"},
	{from: " N ", to: " 1 "}, {from: " 's", to: "'s"},
}

// wikitextTarget is the page as people write it.
func wikitextTarget(d document) (any, error) {
	page, err := d.text("page")
	for _, step := range detokenizer {
		if err != nil {
			break
		}
		if step.pattern != nil {
			page, err = step.pattern.replace(page, step.to, 0)
		} else {
			page = strings.ReplaceAll(page, step.from, step.to)
		}
	}
	return page, err
}
