// Package settings reads and writes files of settings: keys with numbers, texts, truth values or
// lists of these, in YAML or TOML. Nothing is nested, and nothing refers to anything else.
package settings

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"go.yaml.in/yaml/v4"

	"conquer/internal/wrongfile"
)

// maxFile is the largest size of a file in bytes.
const maxFile = 256 << 10

// Setting is a key with its value.
type Setting struct {
	Key  string
	Line int // in the file, from 1
	// Values is empty for null, which says that the key has no value, and has one element for what
	// is not a list.
	Values []Value
	List   bool
}

// Value is a text, a truth value or a number.
type Value struct {
	Kind Kind
	Text string // true, false, a number that strconv reads, or the text
	// Plain is a number as the file writes it.
	Plain string
}

// Kind is the type of a Value.
type Kind string

const (
	Text  Kind = "a text"
	Truth Kind = "true or false"
	Whole Kind = "a whole number"
	Real  Kind = "a number"
)

// Read reads a file, whose name says in which language it is: .yaml, .yml or .toml. An error names
// the file and the line.
func Read(path string) ([]Setting, error) {
	parse := ParseYAML
	switch strings.ToLower(filepath.Ext(path)) {
	case ".yaml", ".yml":
	case ".toml":
		parse = ParseTOML
	default:
		return nil, fmt.Errorf("%s: expected a name that ends in .yaml, .yml or .toml", path)
	}
	data, err := wrongfile.Read(path, maxFile)
	if err != nil {
		return nil, err
	}
	list, err := parse(data)
	var at *lineError
	if errors.As(err, &at) {
		return nil, fmt.Errorf("%s:%d: %w", path, at.line, at.err)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// lineError is an error in a line of the file.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }

func atLine(line int, format string, args ...any) error {
	return &lineError{line, fmt.Errorf(format, args...)}
}

// ParseYAML reads one YAML document: a mapping of keys to scalars and lists of scalars.
func ParseYAML(data []byte) ([]Setting, error) {
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	var document, second yaml.Node
	if err := decoder.Decode(&document); err == io.EOF {
		return nil, nil
	} else if err != nil {
		return nil, yamlError(err)
	}
	if err := decoder.Decode(&second); err != io.EOF {
		if err != nil {
			return nil, yamlError(err)
		}
		return nil, atLine(second.Line, "a second document begins here: expected one")
	}
	if len(document.Content) == 0 || document.Content[0].ShortTag() == "!!null" {
		return nil, nil
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, atLine(root.Line, "expected lines such as `steps: 100`")
	}
	var list []Setting
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if key.Kind != yaml.ScalarNode || key.ShortTag() != "!!str" {
			return nil, atLine(key.Line, "%.40q is not a name of a setting", key.Value)
		}
		s := Setting{Key: key.Value, Line: key.Line, List: value.Kind == yaml.SequenceNode}
		nodes := value.Content
		if !s.List {
			nodes = []*yaml.Node{value}
		}
		for _, node := range nodes {
			v, err := yamlValue(node)
			if err != nil {
				return nil, &lineError{node.Line, fmt.Errorf("%.40s: %w", key.Value, err)}
			}
			switch {
			case v != nil:
				s.Values = append(s.Values, *v)
			case s.List:
				return nil, atLine(node.Line, "%.40s: a member of the list is empty", key.Value)
			}
		}
		list = append(list, s)
	}
	return list, unique(list)
}

func yamlError(err error) error {
	var failed *yaml.LoadError
	if errors.As(err, &failed) && failed.Mark.Line > 0 {
		return atLine(failed.Mark.Line, "%s", failed.Message)
	}
	return err
}

// yamlValue returns the value of a scalar, or nil for null.
func yamlValue(node *yaml.Node) (*Value, error) {
	if node.Kind != yaml.ScalarNode || node.Anchor != "" {
		return nil, errors.New("expected a text, a number, true, false or a list of these; " +
			"keys below keys and anchors are not supported")
	}
	switch node.ShortTag() {
	case "!!null":
		return nil, nil
	case "!!bool":
		var truth bool
		err := node.Decode(&truth)
		return &Value{Kind: Truth, Text: strconv.FormatBool(truth)}, err
	case "!!int":
		var n int64
		digits := strings.TrimLeft(node.Value, "+-")
		if len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9' {
			return nil, fmt.Errorf("%.40s may be read as octal: leave the leading zeros out",
				node.Value)
		}
		if node.Decode(&n) != nil {
			return nil, fmt.Errorf("%.40s is not a whole number below 2^63", node.Value)
		}
		return &Value{Whole, strconv.FormatInt(n, 10), node.Value}, nil
	case "!!float":
		var x float64
		if node.Decode(&x) != nil || !finite(x) {
			return nil, fmt.Errorf("%.40s is not a finite number", node.Value)
		}
		return &Value{Real, strconv.FormatFloat(x, 'g', -1, 64), node.Value}, nil
	case "!!str", "!!timestamp":
		return &Value{Kind: Text, Text: node.Value}, nil
	case "!!binary": // as WriteYAML writes the name of a file that is not UTF-8
		text, err := base64.StdEncoding.DecodeString(node.Value)
		if err != nil {
			return nil, errors.New("a value of the tag !!binary is not in base64")
		}
		return &Value{Kind: Text, Text: string(text)}, nil
	}
	return nil, fmt.Errorf("the tag %.40s is not supported: leave it out", node.Tag)
}

// ParseTOML reads a TOML document of keys without tables.
func ParseTOML(data []byte) ([]Setting, error) {
	var values map[string]any
	if err := toml.Unmarshal(data, &values); err != nil {
		var failed *toml.DecodeError
		if errors.As(err, &failed) {
			line, _ := failed.Position()
			return nil, atLine(line, "%s", strings.TrimPrefix(failed.Error(), "toml: "))
		}
		return nil, err
	}
	var list []Setting
	var p unstable.Parser // for the lines
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		key := e.Key()
		key.Next()
		line := p.Shape(key.Node().Raw).Start.Line
		if e.Kind != unstable.KeyValue || !key.IsLast() {
			return nil, atLine(line, "tables are not supported: expected lines such as "+
				"`steps = 100`")
		}
		s := Setting{Key: string(key.Node().Data), Line: line}
		members, written := []any{values[s.Key]}, e.Value()
		if s.List = written.Kind == unstable.Array; s.List {
			members, _ = values[s.Key].([]any)
			written = written.Child()
		}
		for _, member := range members {
			v, err := tomlValue(member)
			if err != nil {
				return nil, &lineError{line, fmt.Errorf("%.40s: %w", s.Key, err)}
			}
			if v.Kind == Whole || v.Kind == Real {
				v.Plain = string(written.Data)
			}
			s.Values = append(s.Values, v)
			written = written.Next()
		}
		list = append(list, s)
	}
	if err := p.Error(); err != nil {
		return nil, err
	}
	return list, unique(list)
}

func tomlValue(value any) (Value, error) {
	switch v := value.(type) {
	case string:
		return Value{Kind: Text, Text: v}, nil
	case bool:
		return Value{Kind: Truth, Text: strconv.FormatBool(v)}, nil
	case int64:
		return Value{Kind: Whole, Text: strconv.FormatInt(v, 10)}, nil
	case float64:
		if !finite(v) {
			return Value{}, fmt.Errorf("%v is not a finite number", v)
		}
		return Value{Kind: Real, Text: strconv.FormatFloat(v, 'g', -1, 64)}, nil
	}
	return Value{}, errors.New("expected a text, a number, true, false or a list of these")
}

func finite(x float64) bool { return !math.IsInf(x, 0) && !math.IsNaN(x) }

// unique refuses a key that occurs twice, with underscores or dashes.
func unique(list []Setting) error {
	first := map[string]int{}
	for _, s := range list {
		name := strings.ReplaceAll(s.Key, "-", "_")
		if line, again := first[name]; again {
			return atLine(s.Line, "%.40s is already set in line %d", s.Key, line)
		}
		first[name] = s.Line
	}
	return nil
}

// WriteYAML writes settings, each with a blank line and the comment before it that comments has for
// its key.
func WriteYAML(w io.Writer, list []Setting, comments map[string]string) error {
	root := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i, s := range list {
		key := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s.Key}
		if comment := comments[s.Key]; comment != "" {
			key.HeadComment = comment
			if i > 0 {
				key.HeadComment = "\n" + comment
			}
		}
		value := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, v := range s.Values {
			value.Content = append(value.Content, v.node())
		}
		switch {
		case s.List && len(s.Values) == 0:
			value.Style = yaml.FlowStyle
		case s.List:
		case len(s.Values) == 0:
			value = &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}
		default:
			value = value.Content[0]
		}
		root.Content = append(root.Content, key, value)
	}
	text, err := yaml.Marshal(root)
	if err == nil {
		_, err = w.Write(text)
	}
	return err
}

func (v Value) node() *yaml.Node {
	tag := map[Kind]string{Text: "!!str", Truth: "!!bool", Whole: "!!int", Real: "!!float"}[v.Kind]
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: v.Text}
}
