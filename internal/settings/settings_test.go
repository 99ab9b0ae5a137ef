package settings

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func text(s string) Value  { return Value{Kind: Text, Text: s} }
func truth(s string) Value { return Value{Kind: Truth, Text: s} }

func TestRead_YAMLAndTOMLGiveTheSameSettings(t *testing.T) {
	want := []Setting{
		{"steps", 2, []Value{{Whole, "100", "100"}}, false},
		{"learning-rate", 3, []Value{{Real, "0.0001", "1e-4"}}, false},
		{"weights", 4, []Value{{Whole, "3", "3"}, {Real, "1.5", "1.50"}}, true},
		{"pack", 5, []Value{truth("true")}, false},
		{"dtype", 6, []Value{text("float32")}, false},
		{"data_path", 7, []Value{text("a,b.jsonl"), text("~/c")}, true},
		{"ask", 10, nil, true},
		{"note", 11, []Value{text("yes: it \"is\"\n")}, false},
	}
	for name, file := range map[string]string{
		"a.yaml": "# a run\nsteps: 100\nlearning-rate: 1e-4 # low\nweights: [3, 1.50]\n" +
			"pack: true\ndtype: float32\n" +
			"data_path:\n  - a,b.jsonl\n  - ~/c\nask: []\nnote: |\n  yes: it \"is\"\n",
		"a.toml": "# a run\nsteps = 100\nlearning-rate = 1e-4 # low\nweights = [3, 1.50]\n" +
			"pack = true\n" +
			"dtype = 'float32'\ndata_path = [\n  'a,b.jsonl', # one\n  '~/c']\nask = []\n" +
			"note = \"yes: it \\\"is\\\"\\n\"\n",
	} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(file), 0o666); err != nil {
			t.Fatal(err)
		}
		list, err := Read(path)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !reflect.DeepEqual(list, want) {
			t.Errorf("%s: %+v\nexpected %+v", name, list, want)
		}
	}
}

func TestRead_ErrorsNameFileAndLine(t *testing.T) {
	for _, c := range []struct{ name, file, want string }{
		{"a.yaml", "a: 1\nb: [1,\n", ":3: did not find expected node content"},
		{"a.yaml", "a: 1\na: 2\n", ":2: a is already set in line 1"},
		{"a.yaml", "a-b: 1\nc: 3\na_b: 2\n", ":3: a_b is already set in line 1"},
		{"a.yaml", "a: 1\n---\nb: 1\n", ":2: a second document begins here"},
		{"a.yaml", "- a\n", ":1: expected lines such as `steps: 100`"},
		{"a.yaml", "a:\n  b: 1\n", ":2: a: expected a text"},
		{"a.yaml", "a: &x 1\n", ":1: a: expected a text"},
		{"a.yaml", "a: 1\n<<: 2\n", `:2: "<<" is not a name`},
		{"a.yaml", "? [a]\n: 1\n", `:1: "" is not a name`},
		{"a.yaml", "a: [1, null]\n", ":1: a: a member of the list is empty"},
		{"a.yaml", "a: 010\n", ":1: a: 010 may be read as octal"},
		{"a.yaml", "a: !!int 99999999999999999999\n", ":1: a: 99999999999999999999 is not a whole"},
		{"a.yaml", "a: .inf\n", ":1: a: .inf is not a finite number"},
		{"a.toml", "a = nan\n", ":1: a: NaN is not a finite number"},
		{"a.yaml", "a: !!set {b}\n", "not supported"},
		{"a.yaml", "a: !!binary a%\n", "is not in base64"},
		{"a.yaml", "a: " + strings.Repeat("[", 20000), ":1: "},
		{"a.yaml", "\x00", "control characters"},
		{"a.toml", "a = 1\nb = \n", ":2: "},
		{"a.toml", "a = 1\na = 2\n", ":2: key a is already defined"},
		{"a.toml", "a = 1\n\n[b]\nc = 1\n", ":3: tables are not supported"},
		{"a.toml", "a.b = 1\n", ":1: tables are not supported"},
		{"a.toml", "a = {b = 1}\n", ":1: a: expected a text"},
		{"a.toml", "a = 1979-05-27\n", ":1: a: expected a text"},
		{"a.json", "{}", "expected a name that ends in .yaml, .yml or .toml"},
		{"a.yaml", strings.Repeat("#", maxFile+1), "262144"},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		if err := os.WriteFile(path, []byte(c.file), 0o666); err != nil {
			t.Fatal(err)
		}
		list, err := Read(path)
		if err == nil || !strings.HasPrefix(err.Error(), path) &&
			!strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v, %v, expected %q", c.file, list, err, c.want)
		}
	}
	if _, err := Read("/dev/zero.yaml"); err == nil {
		t.Error("no file")
	}
	if list, err := ParseYAML([]byte("# nothing\n")); err != nil || list != nil {
		t.Errorf("an empty file is %v, %v", list, err)
	}
}

// written returns what WriteYAML writes and ParseYAML reads again.
func written(t *testing.T, list []Setting) []Setting {
	t.Helper()
	var b bytes.Buffer
	comments := map[string]string{}
	if len(list) > 1 {
		comments[list[1].Key] = "# a comment"
	}
	if err := WriteYAML(&b, list, comments); err != nil {
		t.Fatal(err)
	}
	again, err := ParseYAML(b.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, b.Bytes())
	}
	return again
}

// same reports whether two lists have the same keys and values.
func same(a, b []Setting) bool {
	plain := func(list []Setting) (all []string) {
		for _, s := range list {
			all = append(all, s.Key)
			for _, v := range s.Values {
				if v.Kind == Real {
					v.Kind = Whole // 1e1 is written as 10
				}
				all = append(all, string(v.Kind), v.Text)
			}
			if s.List {
				all = append(all, "list")
			}
		}
		return all
	}
	return reflect.DeepEqual(plain(a), plain(b))
}

func TestWriteYAML_IsReadAgain(t *testing.T) {
	list := []Setting{{Key: "none"}, {Key: "empty", List: true}}
	for _, s := range []string{"", "a", "7b", "3", "1e-4", "true", "yes", "null", "~", "~/x", "-",
		"a: b", "# c", "two\nlines\n", "\ttab", " space ", "'", `"`, "\x1b[0m", "é\u2028", "<<",
		"010", "2024-01-01", "*a", "&a", "!x", "[", "{}", "%", "@", "`",
		"0x10", ".inf", "\r", "\ufeff"} {
		list = append(list, Setting{Key: "t" + string(rune('a'+len(list))),
			Values: []Value{text(s)}})
	}
	list = append(list, Setting{Key: "z", List: true, Values: []Value{text("a, b"), text("true")}},
		Setting{Key: "n", Values: []Value{{Kind: Whole, Text: "-3"}}},
		Setting{Key: "x", Values: []Value{{Kind: Real, Text: "1e-05"}}},
		Setting{Key: "y", Values: []Value{truth("false")}})
	if again := written(t, list); !same(list, again) {
		t.Errorf("wrote %v\nread %v", list, again)
	}
}

// What is read and written is read as the same again.
func FuzzParse(f *testing.F) {
	f.Add([]byte("steps: 100\nrate: 1e-4\npack: true\nask: [a, 'b']\n# c\nn: null\n"), false)
	f.Add([]byte("a: |\n  x\n\nb: >-\n  y\nc: \"\\x1b\\u2028\"\nd: 0o17\ne: -.5\n"), false)
	f.Add([]byte("a: &b 1\nc: *b\n"), false)
	f.Add([]byte("steps = 0x10\nrate = 1_0.5\npack = true\nask = [\n 'a', \"b\"]\nf = -0.0"), true)
	f.Add([]byte("a = '''\nx'''\n[t]\nb.c = 1979-05-27\n"), true)
	f.Fuzz(func(t *testing.T, data []byte, isTOML bool) {
		if len(data) > 1<<12 {
			return
		}
		parse := ParseYAML
		if isTOML {
			parse = ParseTOML
		}
		list, err := parse(data)
		if err != nil {
			return
		}
		lines := bytes.Count(data, []byte("\n")) + bytes.Count(data, []byte("\r")) +
			bytes.Count(data, []byte("\u2028")) + bytes.Count(data, []byte("\u2029")) +
			bytes.Count(data, []byte("\u0085")) + 1
		for _, s := range list {
			if s.Line < 1 || s.Line > lines || !s.List && len(s.Values) > 1 {
				t.Fatalf("%+v of %d lines", s, lines)
			}
		}
		if again := written(t, list); !same(list, again) {
			t.Fatalf("read %v, wrote and read %v", list, again)
		}
	})
}
