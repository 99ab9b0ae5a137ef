package eval

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v4"
)

// outputType says what a task asks a model for.
type outputType string

const (
	multipleChoice outputType = "multiple_choice"
	likelihood     outputType = "loglikelihood"
	rolling        outputType = "loglikelihood_rolling"
	generation     outputType = "generate_until"
)

// config is a task as its YAML file describes it, in lm-eval's words.
type config struct {
	name, alias string
	tags        []string
	output      outputType
	data        dataConfig

	training, validation, test string // names of splits, "" for none

	processDocs, processResults string // names of functions, "" for none
	text, target, choice        field
	description, prefix         string
	delimiter, fewshotDelimiter string // between text and target, and behind each example
	fewshot                     fewshotConfig
	shots                       *int // num_fewshot; nil: not said
	metrics                     []metricConfig
	generation                  generationConfig
	filters                     []filterConfig // none: the first response as it is
	version                     any
	raw                         map[string]any // the file, for results
}

// fewshotConfig is how examples are chosen and written.
type fewshotConfig struct {
	firstN              bool
	split               string // "" for none
	samples             []document
	text, target        field
	choice              field
	prefix              string
	delimiter, distance string // target_delimiter and fewshot_delimiter
}

// metricConfig is an entry of metric_list.
type metricConfig struct {
	name        string
	aggregation string // "" for the metric's own
	higher      *bool
	match       matchOptions
}

// generationConfig is generation_kwargs.
type generationConfig struct {
	until       []string
	maxTokens   int // 0: 256
	sample      bool
	temperature float64
	topP, minP  float64
	topK        int
	raw         map[string]any
}

// field is a doc_to_… entry: a number, a list, a function, or a text that is the name of one of
// the document's fields or else a template.
type field struct {
	number   *int
	list     []any
	text     string
	function string
	template *template // of text
}

func (f field) given() bool {
	return f.number != nil || f.list != nil || f.text != "" || f.function != "" ||
		f.template != nil
}

// group is a set of tasks whose metrics are reported together.
type group struct {
	name, alias string
	members     []string // tasks, tags and groups
	metrics     []groupMetric
	version     any
}

// groupMetric is an entry of aggregate_metric_list.
type groupMetric struct {
	name     string
	filters  []string // nil: those that the tasks have
	weighted bool     // by the number of documents
}

// maxTaskFile is the most bytes of a task's file.
const maxTaskFile = 1 << 20

// reader reads the members of a YAML mapping. The first problem is kept, with its file and line.
type reader struct {
	file    string
	line    int
	members map[string]yaml.Node
	seen    map[string]bool
	err     error
}

func (r *reader) fail(line int, format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%s:%d: %s", r.file, line, fmt.Sprintf(format, args...))
	}
}

// readYAML reads a file and those that it includes. The members of the file itself win.
func readYAML(file string, data []byte, including []string) (*reader, error) {
	if len(data) > maxTaskFile {
		return nil, fmt.Errorf("%s has %d bytes, expected a task of at most %d", file, len(data),
			maxTaskFile)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if len(root.Content) != 1 {
		return nil, fmt.Errorf("%s: expected a task in YAML, got an empty file", file)
	}
	r, err := newReader(file, root.Content[0])
	if err != nil {
		return nil, err
	}
	names := r.texts("include")
	delete(r.members, "include")
	for _, name := range names {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(file), name)
		}
		if slices.Contains(including, name) || name == file {
			r.fail(1, "include: %s includes itself", name)
			break
		}
		data, err := os.ReadFile(name)
		if err != nil {
			r.fail(1, "include: %v", err)
			break
		}
		included, err := readYAML(name, data, append(including, file))
		if err != nil {
			return nil, err
		}
		for member, node := range included.members {
			if _, own := r.members[member]; !own {
				r.members[member] = node
			}
		}
	}
	return r, r.err
}

// newReader returns a reader of a mapping.
func newReader(file string, node *yaml.Node) (*reader, error) {
	r := &reader{file: file, line: node.Line, seen: map[string]bool{}}
	if node.Kind == yaml.AliasNode && node.Alias != nil {
		node = node.Alias
	}
	if node.Kind != yaml.MappingNode {
		r.fail(node.Line, "expected a mapping such as `task: NAME`")
		return nil, r.err
	}
	if err := node.Decode(&r.members); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return r, nil
}

// node returns a member; ok is false if it is missing or null.
func (r *reader) node(name string) (node *yaml.Node, ok bool) {
	r.seen[name] = true
	n, ok := r.members[name]
	if n.Kind == yaml.AliasNode && n.Alias != nil {
		n = *n.Alias
	}
	return &n, ok && n.Tag != "!!null"
}

// decode reads a member into to and fails with what was expected.
func (r *reader) decode(name, expected string, to any) {
	if n, ok := r.node(name); ok && n.Decode(to) != nil {
		r.fail(n.Line, "%s is %.60q, expected %s", name, n.Value, expected)
	}
}

func (r *reader) text(name string) (s string) {
	n, ok := r.node(name)
	if !ok {
		return ""
	}
	if n.Kind != yaml.ScalarNode || n.Tag == "!function" {
		r.fail(n.Line, "%s: expected a text", name)
		return ""
	}
	return n.Value
}

// texts reads a text or a list of texts.
func (r *reader) texts(name string) (list []string) {
	n, ok := r.node(name)
	if ok && n.Kind == yaml.ScalarNode {
		return []string{n.Value}
	}
	r.decode(name, "a text or a list of texts", &list)
	return list
}

func (r *reader) flag(name string, otherwise bool) bool {
	r.decode(name, "true or false", &otherwise)
	return otherwise
}

func (r *reader) integer(name string, otherwise int) int {
	r.decode(name, "a whole number", &otherwise)
	return otherwise
}

func (r *reader) float(name string, otherwise float64) float64 {
	r.decode(name, "a number", &otherwise)
	return otherwise
}

// function reads a member that is a function.
func (r *reader) function(name string) string {
	n, ok := r.node(name)
	if !ok {
		return ""
	}
	if n.Tag != "!function" || !known(n.Value) {
		r.fail(n.Line, "%s: the Python function %.60q cannot be run: write a template instead; "+
			"known functions are %s", name, n.Value, knownFunctions())
	}
	return n.Value
}

// field reads a doc_to_… member.
func (r *reader) field(name string) (f field) {
	n, ok := r.node(name)
	switch {
	case !ok:
		return f
	case n.Tag == "!function":
		f.function = r.function(name)
		return f
	case n.Kind == yaml.MappingNode && name == "doc_to_choice":
		for i := 1; i < len(n.Content); i += 2 {
			f.list = append(f.list, n.Content[i].Value)
		}
		return f
	case n.Kind == yaml.SequenceNode:
		r.decode(name, "a list", &f.list)
		return f
	case n.Tag == "!!int":
		f.number = new(int)
		r.decode(name, "a number", f.number)
		return f
	}
	f.text = r.text(name)
	f.template = r.compile(name, f.text)
	return f
}

// compile compiles the template of a member.
func (r *reader) compile(name, text string) *template {
	t, err := compile(text)
	if err != nil {
		r.fail(r.lineOf(name), "%s: %v", name, err)
	}
	return t
}

func (r *reader) lineOf(name string) int {
	if n, ok := r.members[name]; ok {
		return n.Line
	}
	return r.line
}

// list returns a reader for each mapping of a member that is a list of them.
func (r *reader) list(name string) (list []*reader) {
	n, ok := r.node(name)
	if !ok {
		return nil
	}
	if n.Kind != yaml.SequenceNode {
		r.fail(n.Line, "%s: expected a list", name)
		return nil
	}
	for _, item := range n.Content {
		if member := r.mapping(item); member != nil {
			list = append(list, member)
		}
	}
	return list
}

// mapping returns a reader of a node that is a mapping.
func (r *reader) mapping(n *yaml.Node) *reader {
	member, err := newReader(r.file, n)
	if err != nil && r.err == nil {
		r.err = err
	}
	return member
}

// member returns a reader of a member that is a mapping, nil if it is missing.
func (r *reader) member(name string) *reader {
	if n, ok := r.node(name); ok {
		return r.mapping(n)
	}
	return nil
}

// adopt takes the problem of a part.
func (r *reader) adopt(part *reader) {
	if r.err == nil && part != nil {
		r.err = part.err
	}
}

// finish fails for members that were not read.
func (r *reader) finish(where string) {
	for name, n := range r.members {
		if !r.seen[name] {
			r.fail(n.Line, "%s%s is not known", where, name)
		}
	}
}
