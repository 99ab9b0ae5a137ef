package eval

import (
	"fmt"
	"strings"
)

// message is a part of a prompt: a turn of a chat, or a piece of plain text with what follows it.
type message struct {
	role, text, delimiter string
}

// sampler draws the examples of a task's documents, one after the other.
type sampler struct {
	*task
	random *random
}

// draw returns the examples for a document.
func (s *sampler) draw(d document) ([]document, error) {
	n := s.examples
	// lm-eval compares names, so a document may get itself as an example.
	exclude := s.fewshot.split == s.test
	if s.fewshot.firstN {
		pool := s.pool
		if exclude {
			pool = without(pool, d)
		}
		if n > len(pool) {
			return nil, s.tooFew(n, len(pool))
		}
		return pool[:n], nil
	}
	wanted := n
	if exclude {
		wanted++
	}
	if wanted > len(s.pool) {
		return nil, s.tooFew(wanted, len(s.pool))
	}
	pick := func(pool []document, n int) (list []document) {
		for _, i := range s.random.sample(len(pool), n) {
			list = append(list, pool[i])
		}
		return list
	}
	chosen := pick(s.pool, wanted)
	if !exclude {
		return chosen, nil
	}
	chosen = without(chosen, d)
	if len(chosen) < n { // the pool holds the document several times
		pool := without(s.pool, d)
		if n > len(pool) {
			return nil, s.tooFew(n, len(pool))
		}
		chosen = pick(pool, n)
	}
	return chosen[:n], nil
}

func (s *sampler) tooFew(wanted, have int) error {
	return fmt.Errorf("task %s: %d examples are needed and %d documents are there to take them "+
		"from: use fewer, see --num_fewshot", s.name, wanted, have)
}

func without(pool []document, d document) (rest []document) {
	for _, other := range pool {
		if !other.equal(d) {
			rest = append(rest, other)
		}
	}
	return rest
}

// join puts a delimiter between two texts if neither has white space where they meet.
func join(before, after, delimiter string) string {
	if before == "" || after == "" || endsInSpace(before) || beginsWithSpace(after) {
		return before + after
	}
	return before + delimiter + after
}

// turn writes a question and, if answer is not nil, its answer.
func turn(question string, choices []string, answer any, prefix, delimiter, distance string) (
	[]message, error) {
	answered := answer != nil && answer != ""
	q := message{role: "user", text: question}
	if answered && prefix == "" || prefix != "" && question != "" && !endsInSpace(question) &&
		!beginsWithSpace(prefix) {
		q.delimiter = delimiter
	}
	if !answered && prefix == "" {
		return []message{q}, nil
	}
	if !answered {
		return []message{q, {role: "assistant", text: prefix}}, nil
	}
	if list, ok := answer.([]any); ok && len(list) > 0 {
		answer = list[0]
	} else if n, ok := answer.(int); ok && choices != nil {
		var err error
		if answer, err = at(choices, n); err != nil {
			return nil, err
		}
	}
	text, ok := answer.(string)
	if !ok {
		return nil, fmt.Errorf("doc_to_target is %s, expected a text", kindOf(answer))
	}
	return []message{q, {"assistant", join(prefix, text, " "), distance}}, nil
}

// at is Python's list[i].
func at(choices []string, i int) (string, error) {
	if i < 0 {
		i += len(choices)
	}
	if i < 0 || i >= len(choices) {
		return "", fmt.Errorf("doc_to_target is the choice %d, and there are %d", i, len(choices))
	}
	return choices[i], nil
}

// example writes a document with its answer.
func (t *task) example(d document) ([]message, error) {
	f := t.fewshot
	text, err := t.textOf(d, f.text)
	if err != nil {
		return nil, err
	}
	var choices []string
	if f.choice.given() {
		if choices, err = t.choicesOf(d, f.choice); err != nil {
			return nil, err
		}
	}
	answer, err := t.targetOf(d, f.target)
	if err != nil {
		return nil, err
	}
	prefix, err := d.named(f.prefix)
	if err != nil {
		return nil, err
	}
	if n, ok := text.(int); ok && t.inputs {
		if text, err = at(choices, n); err != nil {
			return nil, err
		}
		choices = nil
	}
	question, ok := text.(string)
	if !ok {
		return nil, fmt.Errorf("%s: doc_to_text is %s, expected a text", d.where, kindOf(text))
	}
	messages, err := turn(question, choices, answer, prefix, f.delimiter, f.distance)
	if err != nil {
		err = fmt.Errorf("%s: %w", d.where, err)
	}
	return messages, err
}

// prompter writes the prompts of a task.
type prompter struct {
	sampler
	system    string
	multiturn bool
	// chat renders messages with the model's template, nil without one. open says that the last
	// message is the beginning of the answer.
	chat func(messages []message, open bool) (string, error)
}

// contexts writes what comes before a document's answer: one text, or one for each choice if the
// choices are inputs.
func (p *prompter) contexts(d document) ([]string, error) {
	prefix, err := d.named(p.prefix)
	if err != nil {
		return nil, err
	}
	description, err := d.named(p.description)
	if err != nil {
		return nil, err
	}
	var before []message
	if system := join(p.system, description, p.fewshotDelimiter); system != "" {
		before = append(before, message{role: "system", text: system})
	}
	if p.examples > 0 {
		examples, err := p.draw(d)
		if err != nil {
			return nil, err
		}
		for _, e := range examples {
			messages, err := p.example(e)
			if err != nil {
				return nil, err
			}
			before = append(before, messages...)
		}
	}
	text, err := p.textOf(d, p.text)
	if err != nil {
		return nil, err
	}
	questions, delimiter := []string{}, p.delimiter
	if p.inputs {
		if questions, err = p.choicesOf(d, p.choice); err != nil {
			return nil, err
		}
		delimiter = ""
	} else if question, ok := text.(string); ok {
		questions = append(questions, question)
	} else {
		return nil, fmt.Errorf("%s: doc_to_text is %s, expected a text", d.where, kindOf(text))
	}
	for i, question := range questions {
		last, err := turn(question, nil, nil, prefix, delimiter, "")
		if err != nil {
			return nil, err
		}
		messages := append(append([]message{}, before...), last...)
		if questions[i], err = p.write(messages, prefix != ""); err != nil {
			return nil, fmt.Errorf("%s: %w", d.where, err)
		}
	}
	return questions, nil
}

// write writes messages as plain text, or with the model's template.
func (p *prompter) write(messages []message, open bool) (string, error) {
	if p.chat == nil {
		return plainText(messages), nil
	}
	if !p.multiturn {
		messages = singleTurn(messages)
	}
	return p.chat(messages, open)
}

func plainText(messages []message) string {
	var b strings.Builder
	for _, m := range messages {
		b.WriteString(m.text)
		b.WriteString(m.delimiter)
	}
	return b.String()
}

// singleTurn joins everything but a system message and the beginning of the answer to one message
// of the user.
func singleTurn(messages []message) (list []message) {
	if messages[0].role == "system" {
		list, messages = append(list, messages[0]), messages[1:]
	}
	n := len(messages)
	var last []message
	if messages[n-1].role == "assistant" {
		n--
		last = messages[n:]
	}
	question := append([]message{}, messages[:n]...)
	question[n-1].delimiter = ""
	list = append(list, message{role: "user", text: plainText(question)})
	return append(list, last...)
}
