package eval

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzTaskFile reads files of tasks. What is read can be asked about a document without a crash.
func FuzzTaskFile(f *testing.F) {
	files, err := filepath.Glob("tasks/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal(err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("group: g\ntask: [a, b]\naggregate_metric_list: [{metric: acc}]\n"))
	f.Add([]byte("task: &a t\ndataset_path: *a\ntest_split: s\noutput_type: multiple_choice\n" +
		"doc_to_text: '{{q}}'\ndoc_to_target: 0\ndoc_to_choice: [x, y]\n"))
	d, err := newDocument(json.RawMessage(`{"question": "q", "choices": {"text": ["a", "b"],
		"label": ["A", "B"]}, "answerKey": "B", "label": 1, "text": "some words",
		"page": "p"}`), "d")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "include") {
			return // no files
		}
		c, g, err := parseTask("tasks/fuzz.yaml", data)
		if err != nil {
			if !strings.Contains(err.Error(), "tasks/fuzz.yaml") {
				t.Errorf("the error %v does not name the file", err)
			}
			return
		}
		if g != nil {
			return
		}
		task := &task{config: c, documents: []document{d}, pool: []document{d}}
		if task.look(d) != nil {
			return
		}
		writer := &prompter{sampler: sampler{task: task, random: newRandom(1)}}
		r, err := writer.request(d, c.generation)
		if err != nil {
			return
		}
		a := answer{likelihoods: make([]Likelihood, max(1, len(r.pairs))), response: "a 5"}
		for _, filter := range c.filters {
			if _, err := filter.apply(a.response); err != nil {
				return
			}
		}
		_, _ = task.scores(d, a)
	})
}

// FuzzLiteral reads Python literals. Those that are read can be written as JSON.
func FuzzLiteral(f *testing.F) {
	for _, seed := range []string{"['a', \"b\", 1, -2.5, None, True, (1,)]", `'\x41\n'`, "[[[",
		"007"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		if v, err := literal(source); err == nil {
			_, err := json.Marshal(v)
			if err != nil && !strings.Contains(err.Error(), "unsupported") {
				t.Error(err)
			}
		}
	})
}
