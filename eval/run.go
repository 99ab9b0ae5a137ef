package eval

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// Options say how tasks are run. The zero value, with Seed 1234 and Bootstrap 100000, is lm-eval's.
type Options struct {
	// Shots is the number of examples in a prompt; nil leaves it to each task. A task that says 0
	// keeps 0.
	Shots *int
	// Limit is the number of documents of each task or, below 1, their share, rounded up. 0 takes
	// all.
	Limit float64
	// Data has folders or files that are read instead of a task's own data set, by the name of the
	// task or by name and split, such as gsm8k:test.
	Data map[string]string
	// Chat renders prompts with the model's chat template. Examples are turns of their own with
	// Multiturn, else they are part of the one message of the user.
	Chat, Multiturn bool
	// System is a system message, or without a chat template the beginning of a prompt.
	System string
	// Generation replaces members of a task's generation_kwargs.
	Generation map[string]string
	// Seed is the seed of the examples.
	Seed uint64
	// Bootstrap is the number of resamples for the standard errors of perplexities; 0 computes no
	// standard errors.
	Bootstrap int
	// Samples keeps every document's prompts and answers in the results.
	Samples bool
	// Download is told how many of how many bytes of a data set have arrived. It may be nil.
	Download func(done, total int64)
	// Progress is told how many of how many requests have been answered. It may be nil.
	Progress func(done, total int)
}

// prepared is a task with its requests.
type prepared struct {
	*task
	requests   []request
	generation generationConfig
}

// Run evaluates a model on tasks. An error names the task and the document.
func Run(ctx context.Context, m Model, s *Suite, o Options) (*Results, error) {
	if _, err := parseGeneration(o.Generation, generationConfig{}); err != nil {
		return nil, err
	}
	var tasks []*prepared
	total := 0
	for _, c := range s.tasks {
		p, err := prepare(ctx, m, c, o)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, p)
		for _, r := range p.requests {
			total += max(1, len(r.pairs))
		}
	}
	count := 0
	done := func(n int) {
		if count += n; o.Progress != nil {
			o.Progress(count, total)
		}
	}
	done(0)
	results := newResults()
	for _, p := range tasks {
		answers, err := p.ask(ctx, m, done)
		if err == nil {
			err = results.add(p, answers, o)
		}
		if err != nil {
			return nil, fmt.Errorf("task %s: %w", p.name, err)
		}
	}
	results.addGroups(s.groups)
	return results, nil
}

// prepare reads a task's documents and writes its requests.
func prepare(ctx context.Context, m Model, c *config, o Options) (*prepared, error) {
	t, err := c.open(ctx, o)
	if err != nil {
		return nil, err
	}
	p := &prepared{task: t, generation: c.generation}
	if c.output == generation && o.Generation != nil {
		if p.generation, err = parseGeneration(o.Generation, c.generation); err != nil {
			return nil, err
		}
	}
	writer := &prompter{sampler: sampler{task: t, random: newRandom(o.Seed)}, system: o.System,
		multiturn: o.Multiturn}
	if o.Chat {
		writer.chat = func(messages []message, open bool) (string, error) {
			list := make([]Message, len(messages))
			for i, m := range messages {
				list[i] = Message{m.role, m.text}
			}
			return m.Chat(list, open)
		}
	}
	for _, d := range t.documents {
		r, err := writer.request(d, p.generation)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("task %s: %w", c.name, err)
		}
		p.requests = append(p.requests, r)
	}
	return p, nil
}

// ask puts the task's requests to the model.
func (p *prepared) ask(ctx context.Context, m Model, done func(n int)) ([]answer, error) {
	answers := make([]answer, len(p.requests))
	switch p.output {
	case generation:
		prompts := make([]Prompt, len(p.requests))
		for i, r := range p.requests {
			prompts[i] = *r.prompt
		}
		responses, err := m.Generate(ctx, prompts, done)
		for i := range responses {
			answers[i].response = responses[i]
		}
		return answers, err
	case rolling:
		texts := make([]string, len(p.requests))
		for i, r := range p.requests {
			texts[i] = r.text
		}
		sums, err := m.Rolling(ctx, texts, done)
		for i := range sums {
			answers[i].likelihoods = []Likelihood{{Sum: sums[i]}}
		}
		return answers, err
	}
	var pairs []Pair
	for _, r := range p.requests {
		pairs = append(pairs, r.pairs...)
	}
	likelihoods, err := m.Likelihoods(ctx, pairs, done)
	if err != nil {
		return nil, err
	}
	for i, r := range p.requests {
		answers[i].likelihoods = likelihoods[:len(r.pairs)]
		likelihoods = likelihoods[len(r.pairs):]
	}
	return answers, nil
}

// parallel calls f with 0 to n-1, several at once.
func parallel(n int, f func(i int)) {
	var next atomic.Int64
	var group sync.WaitGroup
	for range min(n, runtime.GOMAXPROCS(0)) {
		group.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				f(int(i))
			}
		})
	}
	group.Wait()
}
