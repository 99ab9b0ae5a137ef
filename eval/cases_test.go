package eval

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// checksum is a model that needs no weights: every answer is a checksum of the request. It shows
// each request and lets lm-eval compute the same.
type checksum struct{}

func sum(texts ...string) uint32 {
	return crc32.ChecksumIEEE([]byte(strings.Join(texts, "\x00")))
}

func (checksum) Likelihoods(_ context.Context, pairs []Pair, done func(int)) ([]Likelihood, error) {
	var list []Likelihood
	for _, p := range pairs {
		c := sum(p.Context, p.Continuation)
		list = append(list, Likelihood{-float64(c%100000) / 10000, c%3 == 0})
		done(1)
	}
	return list, nil
}

func (checksum) Rolling(_ context.Context, texts []string, done func(int)) (sums []float64,
	_ error) {
	for _, text := range texts {
		sums = append(sums, -float64(sum(text)%100000)/100)
		done(1)
	}
	return sums, nil
}

var responses = []string{"She has 7 coins.\n#### 7", "Half of 1,500 is 750, so 750 pins.",
	"#### $12800.\n", "nothing", "12 800"}

func (checksum) Generate(_ context.Context, prompts []Prompt, done func(int)) (list []string,
	_ error) {
	for _, p := range prompts {
		list = append(list, responses[sum(p.Text)%uint32(len(responses))])
		done(1)
	}
	return list, nil
}

func (checksum) Chat(messages []Message, open bool) (string, error) {
	text := ""
	for i, m := range messages {
		text += "<" + m.Role + ">" + m.Content
		if !open || i+1 < len(messages) {
			text += "</" + m.Role + ">\n"
		}
	}
	if !open {
		text += "<assistant>"
	}
	return text, nil
}

// testCase is a run of lm-eval, see tools/fixtures/eval_cases.py.
type testCase struct {
	Name    string
	Tasks   []string
	Options struct {
		Shots     *int    `json:"num_fewshot"`
		Limit     float64 `json:"limit"`
		Bootstrap *int    `json:"bootstrap_iters"`
		Chat      bool    `json:"apply_chat_template"`
		Multiturn bool    `json:"fewshot_as_multiturn"`
		System    string  `json:"system_instruction"`
	}
	Results  map[string]map[string]any
	Higher   map[string]map[string]bool `json:"higher_is_better"`
	Shots    map[string]int             `json:"n-shot"`
	Counts   map[string]Count           `json:"n-samples"`
	Versions map[string]any
	Subtasks map[string][]string `json:"group_subtasks"`
	Samples  map[string][]map[string]any
}

func readCases(t *testing.T) (cases []testCase) {
	t.Helper()
	data, err := os.ReadFile("testdata/cases.json")
	if err == nil {
		err = json.Unmarshal(data, &cases)
	}
	if err != nil {
		t.Fatal(err)
	}
	return cases
}

// run evaluates the checksum model on the case's tasks.
func (c testCase) run(t *testing.T) *Results {
	t.Helper()
	names := append([]string{}, c.Tasks...)
	for i, name := range names {
		if strings.HasSuffix(name, ".yaml") {
			names[i] = filepath.Join("testdata/data", name)
		}
	}
	suite, err := Load(names)
	if err != nil {
		t.Fatal(err)
	}
	data := map[string]string{}
	for _, name := range suite.Names() {
		folder := name
		if subject, ok := strings.CutPrefix(name, "mmlu_"); ok {
			folder = "mmlu/" + subject
		}
		if _, err := os.Stat(filepath.Join("testdata/data", folder)); err == nil {
			data[name] = filepath.Join("testdata/data", folder)
		}
	}
	o := Options{Shots: c.Options.Shots, Limit: c.Options.Limit, Data: data, Chat: c.Options.Chat,
		Multiturn: c.Options.Multiturn, System: c.Options.System, Seed: 1234, Bootstrap: 1000,
		Samples: true}
	if c.Options.Bootstrap != nil {
		o.Bootstrap = *c.Options.Bootstrap
	}
	results, err := Run(t.Context(), checksum{}, suite, o)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

// TestRun_EqualsLMEval compares requests, judgements, metrics and standard errors of the known
// tasks, of tasks of our own, and of chats with what lm-eval 0.4.13 makes of the same data.
func TestRun_EqualsLMEval(t *testing.T) {
	cases := readCases(t)
	if len(cases) < 45 {
		t.Errorf("only %d cases", len(cases))
	}
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			results := c.run(t)
			for task, samples := range c.Samples {
				compareSamples(t, task, results.Samples[task], samples)
			}
			for task, want := range c.Results {
				compareResults(t, results, task, want)
			}
			for task, n := range c.Shots {
				if results.Shots[task] != n {
					t.Errorf("%s has %d shots, want %d", task, results.Shots[task], n)
				}
			}
			for task, n := range c.Counts {
				if results.Counts[task] != n {
					t.Errorf("%s has %v documents, want %v", task, results.Counts[task], n)
				}
			}
			for group, tasks := range c.Subtasks {
				if !reflect.DeepEqual(results.GroupSubtasks[group], tasks) {
					t.Errorf("group %s: %v, want %v", group, results.GroupSubtasks[group], tasks)
				}
			}
		})
	}
}

// decode returns what a value is in JSON.
func decodeJSON(t *testing.T, v any) (decoded any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(data, &decoded)
	}
	if err != nil {
		t.Fatal(err)
	}
	return decoded
}

func compareSamples(t *testing.T, task string, got []*Sample, want []map[string]any) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d samples, want %d", task, len(got), len(want))
	}
	for i := range want {
		sample := decodeJSON(t, got[i]).(map[string]any)
		for name, v := range want[i] {
			if name == "arguments" {
				compareArguments(t, fmt.Sprint(task, " sample ", i), sample[name].([]any),
					v.([]any))
				continue
			}
			if !close(sample[name], v) {
				t.Errorf("%s sample %d: %s is %v, want %v", task, i, name, sample[name], v)
			}
		}
	}
}

func compareArguments(t *testing.T, where string, got, want []any) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s has %d requests, want %d", where, len(got), len(want))
	}
	for i := range want {
		a, b := got[i].([]any), want[i].([]any)
		for k := range b {
			if text, ok := b[k].(string); ok && a[k] != text {
				t.Errorf("%s, request %d:\ngot  %q\nwant %q", where, i, a[k], text)
			}
		}
	}
}

func compareResults(t *testing.T, results *Results, task string, want map[string]any) {
	t.Helper()
	got := decodeJSON(t, results.Results[task]).(map[string]any)
	for name, v := range want {
		if !close(got[name], v) {
			t.Errorf("%s: %s is %v, want %v", task, name, got[name], v)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && name != "name" && name != "alias" && name != "sample_count" {
			t.Errorf("%s: %s is not a result of lm-eval", task, name)
		}
	}
}

// close compares numbers at 1e-12 of their size.
func close(a, b any) bool {
	x, isNumber := a.(float64)
	y, both := b.(float64)
	if isNumber && both {
		return math.Abs(x-y) <= 1e-12*math.Max(1, math.Abs(y))
	}
	list, isList := b.([]any)
	if other, ok := a.([]any); ok && isList && len(list) == len(other) {
		for i := range list {
			if !close(other[i], list[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(a, b)
}
