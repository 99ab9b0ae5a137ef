package eval

import (
	"fmt"
	"unicode/utf8"
)

// request is what a model is asked about one document.
type request struct {
	pairs  []Pair  // of multiple_choice and loglikelihood
	text   string  // of loglikelihood_rolling
	prompt *Prompt // of generate_until
}

// answer is what the model said about a document.
type answer struct {
	likelihoods []Likelihood // of pairs; of a text, its Sum
	response    string
}

// request returns what the model is asked about a document.
func (p *prompter) request(d document, o generationConfig) (request, error) {
	contexts, err := p.contexts(d)
	if err != nil {
		return request{}, err
	}
	if p.output == multipleChoice {
		return p.choiceRequest(d, contexts)
	}
	if p.output == generation {
		until := o.until
		maxTokens := o.maxTokens
		if maxTokens == 0 {
			maxTokens = 256
		}
		prompt := &Prompt{Text: contexts[0], Until: until, MaxTokens: maxTokens}
		if o.sample {
			prompt.Temperature, prompt.TopK = o.temperature, o.topK
			prompt.TopP, prompt.MinP = o.topP, o.minP
			if o.temperature == 0 {
				prompt.Temperature = 1
			}
		}
		return request{prompt: prompt}, nil
	}
	target, err := p.targetOf(d, p.target)
	if err != nil {
		return request{}, err
	}
	text, ok := target.(string)
	switch {
	case !ok:
		return request{}, fmt.Errorf("%s: doc_to_target is %s, expected a text", d.where,
			kindOf(target))
	case p.output == rolling:
		return request{text: text}, nil
	}
	return request{pairs: []Pair{{contexts[0], text}}}, nil
}

// choiceRequest returns a pair for each choice.
func (p *prompter) choiceRequest(d document, contexts []string) (r request, err error) {
	choices, err := p.choicesOf(d, p.choice)
	if err != nil {
		return r, err
	}
	if len(choices) == 0 {
		return r, fmt.Errorf("%s: %w", d.where, errNoChoices)
	}
	delimiter := p.delimiter
	if p.chat != nil && (p.prefix == "" || endsInSpace(p.prefix)) {
		delimiter = ""
	}
	if p.inputs {
		target, err := p.targetOf(d, p.target)
		if err != nil {
			return r, err
		}
		for _, context := range contexts {
			r.pairs = append(r.pairs, Pair{context, delimiter + fmt.Sprint(target)})
		}
	} else {
		for _, choice := range choices {
			r.pairs = append(r.pairs, Pair{contexts[0], delimiter + choice})
		}
	}
	if p.measures("acc_mutual_info") {
		for _, choice := range choices {
			r.pairs = append(r.pairs, Pair{"", delimiter + choice})
		}
	}
	return r, nil
}

func (c *config) measures(name string) bool {
	for _, m := range c.metrics {
		if m.name == name {
			return true
		}
	}
	return false
}

// scores judges a document's answer by each of the task's metrics.
func (t *task) scores(d document, a answer) (map[string]score, error) {
	switch t.output {
	case multipleChoice:
		return t.choiceScores(d, a.likelihoods)
	case likelihood:
		l := a.likelihoods[0]
		return map[string]score{"perplexity": {value: l.Sum}, "acc": {value: number(l.Greedy)}}, nil
	case rolling:
		return t.rollingScores(d, a.likelihoods[0].Sum)
	}
	return t.textScores(d, a.response)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// choiceScores judges the choice that the model finds most likely.
func (t *task) choiceScores(d document, likelihoods []Likelihood) (map[string]score, error) {
	choices, err := t.choicesOf(d, t.choice)
	if err != nil {
		return nil, err
	}
	n := len(choices)
	var sums, perCharacter, perByte, gain []float64
	for i, l := range likelihoods[:n] {
		sums = append(sums, l.Sum)
		perCharacter = append(perCharacter, l.Sum/float64(utf8.RuneCountInString(choices[i])))
		perByte = append(perByte, l.Sum/float64(len(choices[i])))
		if len(likelihoods) == 2*n {
			gain = append(gain, l.Sum-likelihoods[n+i].Sum)
		}
	}
	gold, err := t.gold(d, choices)
	if err != nil {
		return nil, err
	}
	right := func(values []float64) score {
		for _, g := range gold {
			if g == argmax(values) {
				return score{value: 1}
			}
		}
		return score{}
	}
	greedy := false
	for _, g := range gold {
		greedy = greedy || likelihoods[(g+n)%n].Greedy
	}
	scores := map[string]score{"acc": right(sums), "acc_norm": right(perCharacter),
		"acc_bytes": right(perByte), "exact_match": {value: number(greedy)}}
	if gain != nil {
		scores["acc_mutual_info"] = right(gain)
	}
	return scores, nil
}

// gold returns the numbers of the right choices, from -len(choices). It is empty if the document
// names none that exists; then every answer is wrong.
func (t *task) gold(d document, choices []string) (gold []int, err error) {
	var v any
	if t.inputs {
		v, err = t.textOf(d, t.text)
	} else {
		v, err = t.targetOf(d, t.target)
	}
	if err != nil {
		return nil, err
	}
	list, several := v.([]any)
	if !several {
		list = []any{v}
	}
	for _, v := range list {
		switch v := v.(type) {
		case int:
			if v < len(choices) && v >= -len(choices) {
				gold = append(gold, v)
			}
		case string:
			for i, choice := range choices {
				if choice == v {
					gold = append(gold, i)
					break
				}
			}
		default:
			return nil, fmt.Errorf("%s: doc_to_target is %s, expected the number or the text of a "+
				"choice", d.where, kindOf(v))
		}
	}
	return gold, nil
}

// rollingScores counts the words and bytes of what was scored, or of what process_results names.
func (t *task) rollingScores(d document, sum float64) (map[string]score, error) {
	var text string
	var err error
	if t.processResults != "" {
		text, err = resultFunctions[t.processResults](d)
	} else {
		var target any
		target, err = t.targetOf(d, t.target)
		text, _ = target.(string)
	}
	if err != nil {
		return nil, err
	}
	words, size := float64(countWords(text)), float64(len(text))
	return map[string]score{"word_perplexity": {sum, words}, "byte_perplexity": {sum, size},
		"bits_per_byte": {sum, size}}, nil
}

// textScores compares a response with the target, or with each of several.
func (t *task) textScores(d document, response string) (map[string]score, error) {
	target, err := t.targetOf(d, t.target)
	if err != nil {
		return nil, err
	}
	list, several := target.([]any)
	if !several || !t.targets {
		list = []any{target}
	}
	if t.choice.given() {
		choices, err := t.choicesOf(d, t.choice)
		if err != nil {
			return nil, err
		}
		n, ok := target.(int)
		if !ok {
			return nil, fmt.Errorf("%s: doc_to_target is %s, expected the number of a choice",
				d.where, kindOf(target))
		}
		choice, err := at(choices, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.where, err)
		}
		list = []any{choice}
	}
	var targets []string
	for _, v := range list {
		switch v := v.(type) {
		case string:
			targets = append(targets, v)
		case int, float64:
			targets = append(targets, fmt.Sprint(v))
		default:
			return nil, fmt.Errorf("%s: doc_to_target is %s, expected a text", d.where, kindOf(v))
		}
	}
	scores := map[string]score{}
	for _, m := range t.metrics {
		value, err := m.match.matches(response, targets)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.where, err)
		}
		scores[m.name] = score{value: value}
	}
	return scores, nil
}
