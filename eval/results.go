package eval

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
)

// Results are the results of a run in the layout of lm-eval's JSON.
type Results struct {
	// Results holds the metrics of tasks and groups by name.
	Results map[string]*Metrics `json:"results"`
	// Groups holds those of groups alone.
	Groups         map[string]*Metrics         `json:"groups,omitempty"`
	GroupSubtasks  map[string][]string         `json:"group_subtasks"`
	Configs        map[string]map[string]any   `json:"configs"`
	Versions       map[string]any              `json:"versions"`
	Shots          map[string]int              `json:"n-shot"`
	HigherIsBetter map[string]map[string]*bool `json:"higher_is_better"`
	Counts         map[string]Count            `json:"n-samples"`
	Samples        map[string][]*Sample        `json:"samples,omitempty"`
	// Config says what was run. The caller sets it.
	Config any `json:"config,omitempty"`

	// Comparison compares the results with others. The caller sets it.
	Comparison []Comparison `json:"comparison,omitempty"`

	order     []string
	scores    map[column][]score
	documents map[string][]document
}

// Count is a number of documents before and after the limit.
type Count struct {
	Original  int `json:"original"`
	Effective int `json:"effective"`
}

// Metrics are the metrics of a task or a group.
type Metrics struct {
	Name, Alias string
	Documents   int // sample_len
	// Values are in the order of the task's metrics and filters.
	Values []Value

	group  bool
	counts map[string]int // of a group, by metric and filter
}

// Value is a metric of a task.
type Value struct {
	Metric, Filter string
	Value          float64
	// Error is the standard error; NaN if there is none.
	Error float64
}

// MarshalJSON writes metrics under the names "metric,filter" and "metric_stderr,filter". A standard
// error that does not exist is "N/A", and a number that JSON does not have is null.
func (m *Metrics) MarshalJSON() ([]byte, error) {
	object := map[string]any{"name": m.Name, "alias": m.Alias}
	if !m.group || m.counts != nil {
		object["sample_len"] = m.Documents
	}
	if m.counts != nil {
		object["sample_count"] = m.counts
	}
	for _, v := range m.Values {
		object[v.Metric+","+v.Filter] = finite(v.Value)
		object[v.Metric+"_stderr,"+v.Filter] = any("N/A")
		if !math.IsNaN(v.Error) {
			object[v.Metric+"_stderr,"+v.Filter] = finite(v.Error)
		}
	}
	return json.Marshal(object)
}

func finite(v float64) any {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return v
}

// Sample is a document with what the model was asked and answered, judged after one filter.
type Sample struct {
	ID           int
	Doc          json.RawMessage
	Target       any
	Arguments    [][]any
	Responses    [][]any
	Filtered     []any
	Filter       string
	Metrics      []string
	Values       map[string]any // by metric; a pair of numbers for perplexities of words and bytes
	likelihoods  []Likelihood
	firstContext string
}

// MarshalJSON writes the sample with its metrics beside the other members.
func (s *Sample) MarshalJSON() ([]byte, error) {
	object := map[string]any{"doc_id": s.ID, "doc": s.Doc, "target": s.Target,
		"arguments": s.Arguments, "resps": s.Responses, "filtered_resps": s.Filtered,
		"filter": s.Filter, "metrics": s.Metrics, "prompt_hash": hash(s.firstContext)}
	if text, ok := s.Target.(string); ok {
		object["target_hash"] = hash(text)
	} else if n, ok := s.Target.(int); ok {
		object["target_hash"] = hash(fmt.Sprint(n))
	}
	maps.Copy(object, s.Values)
	return json.Marshal(object)
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

func newResults() *Results {
	return &Results{Results: map[string]*Metrics{}, GroupSubtasks: map[string][]string{},
		Configs: map[string]map[string]any{}, Versions: map[string]any{},
		Shots: map[string]int{}, HigherIsBetter: map[string]map[string]*bool{},
		Counts: map[string]Count{}, Samples: map[string][]*Sample{},
		scores: map[column][]score{}, documents: map[string][]document{}}
}

// Names lists tasks and groups in the order in which they were run.
func (r *Results) Names() []string { return r.order }

// add judges the answers to a task.
func (r *Results) add(p *prepared, answers []answer, o Options) error {
	filters := p.filters
	if filters == nil {
		filters = []filterConfig{{name: "none"}}
	}
	m := &Metrics{Name: p.name, Alias: p.alias, Documents: len(answers)}
	if m.Alias == "" {
		m.Alias = p.name
	}
	higher := map[string]*bool{}
	for _, f := range filters {
		columns := map[string][]score{}
		for i, d := range p.documents {
			a := answers[i]
			var err error
			if p.output == generation {
				if a.response, err = f.apply(a.response); err != nil {
					return fmt.Errorf("%s: %w", d.where, err)
				}
			}
			scores, err := p.scores(d, a)
			if err != nil {
				return err
			}
			for _, metric := range p.metrics {
				columns[metric.name] = append(columns[metric.name], scores[metric.name])
			}
			if o.Samples {
				r.Samples[p.name] = append(r.Samples[p.name],
					p.sample(i, f.name, answers[i], a, scores))
			}
		}
		for _, metric := range p.metrics {
			kind := knownMetrics[metric.name]
			r.scores[column{p.name, f.name, metric.name}] = columns[metric.name]
			v := Value{Metric: metric.name, Filter: f.name, Error: math.NaN(),
				Value: aggregate(kind.aggregation, columns[metric.name])}
			e, ok := standardError(kind.aggregation, columns[metric.name], o.Bootstrap)
			if ok {
				v.Error = e
			}
			m.Values = append(m.Values, v)
			better := kind.higher
			if metric.higher != nil {
				better = *metric.higher
			}
			higher[metric.name] = &better
		}
	}
	r.order = append(r.order, p.name)
	r.documents[p.name] = p.documents
	r.Results[p.name], r.HigherIsBetter[p.name] = m, higher
	r.Configs[p.name] = p.dump()
	r.Versions[p.name] = p.version
	r.Shots[p.name] = p.examples
	r.Counts[p.name] = Count{p.total, len(answers)}
	return nil
}

// dump is the task as it was run.
func (p *prepared) dump() map[string]any {
	c := maps.Clone(p.raw)
	c["num_fewshot"] = p.examples
	c["output_type"] = string(p.output)
	c["target_delimiter"], c["fewshot_delimiter"] = p.delimiter, p.fewshotDelimiter
	c["description"] = p.description
	return c
}

// sample is the record of document i. a is the answer after the filter.
func (p *prepared) sample(i int, filter string, unfiltered, a answer, scores map[string]score,
) *Sample {
	d, q := p.documents[i], p.requests[i]
	s := &Sample{ID: i, Doc: d.raw, Filter: filter, Values: map[string]any{}}
	s.Target, _ = p.targetOf(d, p.target)
	s.likelihoods = a.likelihoods
	switch p.output {
	case generation:
		s.firstContext = q.prompt.Text
		kwargs := p.generation.raw
		if kwargs == nil {
			kwargs = map[string]any{"until": q.prompt.Until}
		}
		s.Arguments = [][]any{{q.prompt.Text, kwargs}}
		s.Responses = [][]any{{unfiltered.response}}
		s.Filtered = []any{a.response}
	case rolling:
		s.firstContext = q.text
		s.Arguments = [][]any{{q.text}}
		s.Responses = [][]any{{finite(a.likelihoods[0].Sum)}}
		s.Filtered = []any{finite(a.likelihoods[0].Sum)}
	default:
		s.firstContext = q.pairs[0].Context
		for k, pair := range q.pairs {
			s.Arguments = append(s.Arguments, []any{pair.Context, pair.Continuation})
			response := []any{finite(a.likelihoods[k].Sum), a.likelihoods[k].Greedy}
			s.Responses = append(s.Responses, []any{response})
			s.Filtered = append(s.Filtered, response)
		}
	}
	for _, m := range p.metrics {
		s.Metrics = append(s.Metrics, m.name)
		s.Values[m.name] = finite(scores[m.name].value)
		if p.output == rolling {
			s.Values[m.name] = []any{finite(scores[m.name].value), scores[m.name].weight}
		}
	}
	return s
}

// addGroups computes the metrics of groups, whose members are there.
func (r *Results) addGroups(groups []*group) {
	leaves := map[string][]string{}
	for _, g := range groups {
		var tasks []string
		for _, member := range g.members {
			if nested, ok := leaves[member]; ok {
				tasks = append(tasks, nested...)
			} else {
				tasks = append(tasks, member)
			}
		}
		leaves[g.name] = tasks
		m := &Metrics{Name: g.name, Alias: g.alias, group: true}
		if m.Alias == "" {
			m.Alias = g.name
		}
		r.order = append(r.order, g.name)
		r.Results[g.name] = m
		r.GroupSubtasks[g.name] = g.members
		r.Versions[g.name] = "N/A"
		if g.version != nil {
			r.Versions[g.name] = fmt.Sprint(g.version)
		}
		r.inherit(g)
		if len(g.metrics) == 0 {
			continue
		}
		for _, task := range tasks {
			m.Documents += r.Results[task].Documents
		}
		for _, metric := range g.metrics {
			r.aggregate(m, metric, tasks)
		}
		if r.Groups == nil {
			r.Groups = map[string]*Metrics{}
		}
		r.Groups[g.name] = m
	}
}

// inherit takes for a group what its members agree on.
func (r *Results) inherit(g *group) {
	shots := map[int]bool{}
	higher := map[string]*bool{}
	for _, member := range g.members {
		if n, ok := r.Shots[member]; ok {
			shots[n] = true
		}
		for metric, h := range r.HigherIsBetter[member] {
			if before, ok := higher[metric]; ok && (before == nil || h == nil || *before != *h) {
				h = nil
			}
			higher[metric] = h
		}
	}
	if len(shots) == 1 {
		for n := range shots {
			r.Shots[g.name] = n
		}
	}
	if len(higher) > 0 {
		r.HigherIsBetter[g.name] = higher
	}
}

// aggregate adds a metric of tasks to that of their group, for each filter.
func (r *Results) aggregate(m *Metrics, metric groupMetric, tasks []string) {
	filters := metric.filters
	if filters == nil {
		for _, task := range tasks {
			for _, v := range r.Results[task].Values {
				if v.Metric == metric.name && !slices.Contains(filters, v.Filter) {
					filters = append(filters, v.Filter)
				}
			}
		}
		slices.Sort(filters)
	}
	for _, filter := range filters {
		var errors []float64
		var sizes []int
		sum, weights, complete := 0.0, 0.0, true
		count := 0
		for _, task := range tasks {
			for _, v := range r.Results[task].Values {
				if v.Metric != metric.name || v.Filter != filter {
					continue
				}
				weight := 1.0
				if metric.weighted {
					weight = float64(r.Results[task].Documents)
				}
				sum += v.Value * weight
				weights += weight
				errors = append(errors, v.Error)
				sizes = append(sizes, r.Results[task].Documents)
				count += r.Results[task].Documents
				complete = complete && !math.IsNaN(v.Error)
			}
		}
		if len(sizes) == 0 {
			continue
		}
		v := Value{Metric: metric.name, Filter: filter, Value: sum / weights, Error: math.NaN()}
		switch {
		case complete && metric.weighted:
			v.Error = pooledError(errors, sizes)
		case complete:
			v.Error = meanError(errors)
		}
		m.Values = append(m.Values, v)
		if m.counts == nil {
			m.counts = map[string]int{}
		}
		m.counts[metric.name+","+filter] = count
	}
}
