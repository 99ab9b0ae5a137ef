package eval

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
)

// Comparison compares two runs of a metric on the same documents.
type Comparison struct {
	Task   string `json:"task"`
	Filter string `json:"filter"`
	Metric string `json:"metric"`
	// Documents is their number.
	Documents  int     `json:"documents"`
	Before     float64 `json:"before"`
	After      float64 `json:"after"`
	Difference float64 `json:"difference"` // After - Before
	// Low and High are the 95 % interval of the difference, from resamples of documents that are
	// the same for both runs.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Better and Worse count the documents that only the second or only the first run has right,
	// for metrics of right and wrong.
	Better int `json:"better"`
	Worse  int `json:"worse"`
	// P is the probability of so large a difference if the runs were equal: McNemar's exact test
	// for metrics of right and wrong, else from the resamples.
	P float64 `json:"p"`
}

// comparisonResamples is the number of resamples of a comparison.
const comparisonResamples = 10_000

// column names the scores of a metric.
type column struct{ task, filter, metric string }

// Compare compares two results, which need the scores of every document: those of [Run], or of
// [ReadResults] if they were written with samples. Tasks that only one has are left out.
func Compare(before, after *Results) (list []Comparison, err error) {
	for _, name := range after.order {
		for _, v := range after.metricsOf(name) {
			key := column{name, v.Filter, v.Metric}
			a, b := before.scores[key], after.scores[key]
			if a == nil {
				continue
			}
			if b == nil || len(a) != len(b) {
				return nil, fmt.Errorf("task %s: the runs have %d and %d documents: evaluate both "+
					"with the same --limit", name, len(a), len(b))
			}
			err := sameDocuments(name, before.documents[name], after.documents[name])
			if err != nil {
				return nil, err
			}
			list = append(list, compareScores(key, a, b))
		}
	}
	if len(list) == 0 {
		return nil, errors.New("the runs have no task in common")
	}
	return list, nil
}

func (r *Results) metricsOf(name string) []Value {
	if m := r.Results[name]; m != nil && !m.group {
		return m.Values
	}
	return nil
}

func sameDocuments(task string, a, b []document) error {
	for i := range min(len(a), len(b)) {
		if !a[i].equal(b[i]) {
			return fmt.Errorf("task %s: document %d is another one in the other run: evaluate "+
				"both on the same data", task, i)
		}
	}
	return nil
}

func compareScores(key column, a, b []score) Comparison {
	how := knownMetrics[key.metric].aggregation
	c := Comparison{Task: key.task, Filter: key.filter, Metric: key.metric, Documents: len(a),
		Before: aggregate(how, a), After: aggregate(how, b)}
	c.Difference = c.After - c.Before
	differences := make([]float64, comparisonResamples)
	const block = 1000
	parallel(comparisonResamples/block, func(k int) {
		r := newRandom(uint64(k))
		x, y := make([]score, len(a)), make([]score, len(a))
		for i := range block {
			for d := range x {
				at := r.below(len(a))
				x[d], y[d] = a[at], b[at]
			}
			differences[k*block+i] = aggregate(how, y) - aggregate(how, x)
		}
	})
	slices.Sort(differences)
	c.Low = differences[comparisonResamples*25/1000]
	c.High = differences[comparisonResamples*975/1000-1]
	if how == "mean" {
		for i := range a {
			if b[i].value > a[i].value {
				c.Better++
			} else if b[i].value < a[i].value {
				c.Worse++
			}
		}
		c.P = mcNemar(c.Better, c.Worse)
		return c
	}
	below, above := 0, 0
	for _, d := range differences {
		if d <= 0 {
			below++
		}
		if d >= 0 {
			above++
		}
	}
	c.P = min(1, 2*float64(min(below, above)+1)/float64(comparisonResamples+1))
	return c
}

// mcNemar is the two-sided exact test that b and c, of b+c differing pairs, are equally likely.
func mcNemar(b, c int) float64 {
	n, least := b+c, min(b, c)
	if n == 0 {
		return 1
	}
	logChoose := func(k int) float64 {
		all, _ := math.Lgamma(float64(n + 1))
		x, _ := math.Lgamma(float64(k + 1))
		y, _ := math.Lgamma(float64(n - k + 1))
		return all - x - y
	}
	p := 0.0
	for k := range least + 1 {
		p += math.Exp(logChoose(k) - float64(n)*math.Ln2)
	}
	return min(1, 2*p)
}

// ReadResults reads results that were written with samples, such as those of --output_path. Only
// what [Compare] needs is kept.
func ReadResults(path string) (*Results, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Samples map[string][]map[string]json.RawMessage
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(file.Samples) == 0 {
		return nil, fmt.Errorf("%s holds no samples, which are compared: write it with "+
			"--log_samples", path)
	}
	r := newResults()
	for task, samples := range file.Samples {
		first := ""
		for i, s := range samples {
			if err := r.readSample(task, s, &first); err != nil {
				return nil, fmt.Errorf("%s: samples of %s: number %d: %w", path, task, i+1, err)
			}
		}
	}
	return r, nil
}

// readSample adds the scores of a sample, and the documents of the first filter.
func (r *Results) readSample(task string, s map[string]json.RawMessage, first *string) error {
	var filter string
	var metrics []string
	if err := errors.Join(json.Unmarshal(s["filter"], &filter),
		json.Unmarshal(s["metrics"], &metrics)); err != nil {
		return err
	}
	if *first == "" {
		*first = filter
	}
	if filter == *first {
		d, err := newDocument(s["doc"], "doc")
		if err != nil {
			return err
		}
		r.documents[task] = append(r.documents[task], d)
	}
	for _, metric := range metrics {
		var value score
		var pair []float64
		if json.Unmarshal(s[metric], &pair) == nil && len(pair) == 2 {
			value = score{pair[0], pair[1]}
		} else if err := json.Unmarshal(s[metric], &value.value); err != nil {
			return fmt.Errorf("%s: %w", metric, err)
		}
		key := column{task, filter, metric}
		r.scores[key] = append(r.scores[key], value)
	}
	return nil
}

// Strategies is one evaluation under several strategies of chunking.
type Strategies struct {
	Names   []string
	Results map[string]*Results
}

// Comparisons compares each strategy with the first.
func (s Strategies) Comparisons() (map[string][]Comparison, error) {
	list := map[string][]Comparison{}
	for _, name := range s.Names[1:] {
		c, err := Compare(s.Results[s.Names[0]], s.Results[name])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		list[name] = c
	}
	return list, nil
}

// Table returns a row for each metric and a column for each strategy, separated by tabs. A star
// marks a value that differs from the first strategy's with p below 0.05.
func (s Strategies) Table() (string, error) {
	comparisons, err := s.Comparisons()
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("task\tfilter\tmetric")
	for _, name := range s.Names {
		b.WriteString("\t" + name)
	}
	b.WriteByte('\n')
	first := s.Results[s.Names[0]]
	for _, task := range first.order {
		for i, v := range first.Results[task].Values {
			fmt.Fprintf(&b, "%s\t%s\t%s", task, v.Filter, v.Metric)
			for _, name := range s.Names {
				fmt.Fprintf(&b, "\t%.4f", s.Results[name].Results[task].Values[i].Value)
				for _, c := range comparisons[name] {
					same := c.Task == task && c.Filter == v.Filter && c.Metric == v.Metric
					if same && c.P < 0.05 {
						b.WriteByte('*')
					}
				}
			}
			b.WriteByte('\n')
		}
	}
	return b.String(), nil
}

// MarshalJSON writes numbers that JSON does not have as null.
func (c Comparison) MarshalJSON() ([]byte, error) {
	type plain Comparison
	data, err := json.Marshal(plain(c))
	if err == nil {
		return data, nil
	}
	return json.Marshal(map[string]any{"task": c.Task, "filter": c.Filter, "metric": c.Metric,
		"documents": c.Documents, "before": finite(c.Before), "after": finite(c.After),
		"difference": finite(c.Difference), "low": finite(c.Low), "high": finite(c.High),
		"better": c.Better, "worse": c.Worse, "p": finite(c.P)})
}
