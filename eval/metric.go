package eval

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// metric is a known metric.
type metric struct {
	higher      bool
	aggregation string
	outputs     []outputType // the kinds of tasks that it measures
}

var knownMetrics = map[string]metric{
	"acc":             {true, "mean", []outputType{multipleChoice, likelihood}},
	"acc_norm":        {true, "mean", []outputType{multipleChoice}},
	"acc_bytes":       {true, "mean", []outputType{multipleChoice}},
	"acc_mutual_info": {true, "mean", []outputType{multipleChoice}},
	"exact_match":     {true, "mean", []outputType{multipleChoice, generation}},
	"perplexity":      {false, "perplexity", []outputType{likelihood}},
	"word_perplexity": {false, "weighted_perplexity", []outputType{rolling}},
	"byte_perplexity": {false, "weighted_perplexity", []outputType{rolling}},
	"bits_per_byte":   {false, "bits_per_byte", []outputType{rolling}},
}

// defaultMetrics are those of a task without metric_list.
var defaultMetrics = map[outputType][]string{
	multipleChoice: {"acc", "acc_norm"},
	likelihood:     {"perplexity", "acc"},
	rolling:        {"word_perplexity", "byte_perplexity", "bits_per_byte"},
	generation:     {"exact_match"},
}

// metrics reads metric_list.
func (r *reader) metrics(c *config) {
	output := c.output
	if output == "" {
		output = generation
	}
	list := r.list("metric_list")
	if list == nil {
		for _, name := range defaultMetrics[output] {
			c.metrics = append(c.metrics, metricConfig{name: name})
		}
	}
	for _, m := range list {
		entry := metricConfig{name: m.text("metric"), aggregation: m.text("aggregation")}
		kind, ok := knownMetrics[entry.name]
		if !ok || !slices.Contains(kind.outputs, output) {
			m.fail(m.line, "metric_list: %.60q is not a metric of %s; there are %s", entry.name,
				output, strings.Join(metricsOf(output), ", "))
		}
		if how := entry.aggregation; how != "" && how != kind.aggregation && ok {
			m.fail(m.line, "metric_list: the aggregation of %s is %.60q, expected %s", entry.name,
				how, kind.aggregation)
		}
		m.decode("higher_is_better", "true or false", &entry.higher)
		m.seen["hf_evaluate"] = true
		if entry.name == "exact_match" {
			entry.match = m.matchOptions()
		}
		m.finish("metric_list: ")
		r.adopt(m)
		c.metrics = append(c.metrics, entry)
	}
}

func metricsOf(output outputType) (names []string) {
	for name, m := range knownMetrics {
		if slices.Contains(m.outputs, output) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// score is what a metric says of one document: a value, and for perplexities over words or bytes
// their number.
type score struct {
	value, weight float64
}

// aggregate is the value of a metric over all documents.
func aggregate(how string, scores []score) float64 {
	sum, weight := 0.0, 0.0
	for _, s := range scores {
		sum += s.value
		weight += s.weight
	}
	switch how {
	case "perplexity":
		return math.Exp(-sum / float64(len(scores)))
	case "weighted_perplexity":
		return math.Exp(-(sum / weight))
	case "bits_per_byte":
		return -(sum / weight) / math.Ln2
	}
	return sum / float64(len(scores))
}

// standardError is the standard error of an aggregate. ok is false if there is none.
func standardError(how string, scores []score, iterations int) (e float64, ok bool) {
	if len(scores) < 2 || iterations <= 0 {
		return 0, false
	}
	switch how {
	case "mean":
		values := make([]float64, len(scores))
		for i, s := range scores {
			values[i] = s.value
		}
		return deviation(values) / math.Sqrt(float64(len(values))), true
	case "perplexity":
		return bootstrap(scores, iterations), true
	}
	return 0, false
}

// deviation is the standard deviation of a sample.
func deviation(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	mean, squares := sum/float64(len(values)), 0.0
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	return math.Sqrt(squares / float64(len(values)-1))
}

// bootstrap is the standard deviation of the perplexities of resamples. They are made in blocks of
// at most 1,000, each with a generator of its own, so that blocks may run at once; a block that
// would be partly filled is left out.
func bootstrap(scores []score, iterations int) float64 {
	block := min(1000, iterations)
	blocks := iterations / block
	values := make([]float64, blocks*block)
	parallel(blocks, func(b int) {
		r := newRandom(uint64(b))
		for i := range block {
			sum := 0.0
			for range scores {
				sum += scores[int(r.float()*float64(len(scores)))].value
			}
			values[b*block+i] = math.Exp(-sum / float64(len(scores)))
		}
	})
	return deviation(values)
}

// pooledError is the standard error of a mean weighted by sizes.
func pooledError(errors []float64, sizes []int) float64 {
	sum, total := 0.0, 0
	for i, e := range errors {
		sum += float64(sizes[i]-1) * e * e * float64(sizes[i])
		total += sizes[i]
	}
	return math.Sqrt(sum / float64(total-len(sizes)) / float64(total))
}

// meanError is the standard error of a mean that weights all alike.
func meanError(errors []float64) float64 {
	sum := 0.0
	for _, e := range errors {
		sum += e * e
	}
	return math.Sqrt(sum) / float64(len(errors))
}

// matchOptions are the options of exact_match for texts.
type matchOptions struct {
	ignore                         []*pattern
	caseless, punctuation, numbers bool // ignore_case, ignore_punctuation, ignore_numbers
}

func (r *reader) matchOptions() (o matchOptions) {
	for _, source := range r.texts("regexes_to_ignore") {
		p, err := compilePattern(source)
		if err != nil {
			r.fail(r.lineOf("regexes_to_ignore"), "regexes_to_ignore: %v", err)
			return o
		}
		o.ignore = append(o.ignore, p)
	}
	o.caseless = r.flag("ignore_case", false)
	o.punctuation = r.flag("ignore_punctuation", false)
	o.numbers = r.flag("ignore_numbers", false)
	return o
}

// asciiPunctuation is Python's string.punctuation.
const asciiPunctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

// reduce drops from a text what does not count.
func (o matchOptions) reduce(text string) (string, error) {
	for _, p := range o.ignore {
		var err error
		if text, err = p.replace(text, "", 0); err != nil {
			return "", err
		}
	}
	if o.caseless {
		text = lower(text)
	}
	drop := ""
	if o.punctuation {
		drop += asciiPunctuation
	}
	if o.numbers {
		drop += "0123456789"
	}
	return strings.Map(func(c rune) rune {
		if strings.ContainsRune(drop, c) {
			return -1
		}
		return c
	}, text), nil
}

// matches is 1 if the response equals one of the targets, else 0. numpy, which lm-eval compares
// with, does not see zero bytes at the end of a text.
func (o matchOptions) matches(response string, targets []string) (float64, error) {
	response, err := o.reduce(response)
	if err != nil {
		return 0, err
	}
	for _, target := range targets {
		if target, err = o.reduce(target); err != nil {
			return 0, err
		}
		if strings.TrimRight(response, "\x00") == strings.TrimRight(target, "\x00") {
			return 1, nil
		}
	}
	return 0, nil
}

// argmax returns the index of the first largest value.
func argmax(values []float64) int {
	best := 0
	for i, v := range values {
		if v > values[best] {
			best = i
		}
	}
	return best
}

var errNoChoices = fmt.Errorf("there are no choices")
