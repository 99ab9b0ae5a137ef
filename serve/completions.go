package serve

import (
	"fmt"
	"net/http"

	"conquer/generate"
)

// completionRequest is the body of /v1/completions.
type completionRequest struct {
	sampling
	Prompt   prompts `json:"prompt"`
	Echo     bool    `json:"echo"`
	Logprobs *int    `json:"logprobs"`
	BestOf   *int    `json:"best_of"`
	Suffix   *string `json:"suffix"`
}

// maxLogprobs is the most alternatives of a token that a request may ask for.
const maxLogprobs = 20

// completionChoice is a choice of an answer or of a chunk of a stream.
type completionChoice struct {
	Index        int                 `json:"index"`
	Text         string              `json:"text"`
	Logprobs     *completionLogprobs `json:"logprobs"`
	FinishReason *string             `json:"finish_reason"`
}

// completionLogprobs has an element for each token. That of the first token of a prompt is null,
// except in TextOffset, which counts the characters before a token.
type completionLogprobs struct {
	Tokens        []string             `json:"tokens"`
	TokenLogprobs []*float64           `json:"token_logprobs"`
	TopLogprobs   []map[string]float64 `json:"top_logprobs"` // null if none are asked for
	TextOffset    []int                `json:"text_offset"`
}

// completions answers /v1/completions.
func (s *Server) completions(w http.ResponseWriter, r *http.Request) {
	var q completionRequest
	if err := s.decode(w, r, &q); err != nil {
		fail(w, err)
		return
	}
	j, err := s.completionJob(&q)
	if err == nil {
		err = s.start(r, j)
	}
	if err != nil {
		fail(w, err)
		return
	}
	s.reply(w, r, j)
}

// completionJob checks a request and makes its tasks.
func (s *Server) completionJob(q *completionRequest) (*job, error) {
	switch {
	case q.BestOf != nil && *q.BestOf != 1:
		return nil, invalid("best_of", "best_of is not supported: ask for n choices, with "+
			"logprobs, and choose among them")
	case q.Suffix != nil && *q.Suffix != "":
		return nil, invalid("suffix", "suffix is not supported")
	case q.Logprobs != nil && (*q.Logprobs < 0 || *q.Logprobs > maxLogprobs):
		return nil, invalid("logprobs", "logprobs is %d, expected 0 to %d", *q.Logprobs,
			maxLogprobs)
	case q.Stream && q.Echo && q.Logprobs != nil:
		return nil, invalid("stream", "echo with logprobs cannot be streamed")
	}
	o, err := s.configure(&q.sampling, 16)
	if err != nil {
		return nil, err
	}
	if q.Logprobs != nil {
		o.Logprobs, o.TopLogprobs = true, *q.Logprobs
	}
	n, err := q.count(maxChoices)
	if err != nil {
		return nil, err
	}
	ids, err := s.promptIDs(q.Prompt)
	if err != nil {
		return nil, err
	}
	j := &job{sampling: &q.sampling, object: "text_completion", id: newID("cmpl-")}
	j.chunk = "text_completion"
	j.choice = func(c *choice, piece string, done bool) any {
		return s.completionChoice(q, c, piece, done)
	}
	onlyRead := o.MaxNewTokens == 0 && q.Echo
	if onlyRead {
		o.MaxNewTokens = 1
	}
	err = s.addChoices(j, ids, n, o, func(t *task) {
		t.scored, t.top = q.Echo && q.Logprobs != nil, o.TopLogprobs
		if onlyRead {
			t.row = nil
		}
	})
	return j, err
}

// promptIDs returns the tokens of each prompt.
func (s *Server) promptIDs(p prompts) ([][]int32, error) {
	ids := p.ids
	for _, text := range p.texts {
		list := s.tokenizer.Encode(text, true)
		if bos, ok := s.tokenizer.BOS(); ok && len(list) == 0 {
			list = []int32{bos} // an empty prompt becomes the start token
		}
		ids = append(ids, list)
	}
	if len(ids) == 0 {
		return nil, invalid("prompt", "%v", errPrompt)
	}
	return ids, nil
}

// completionChoice describes a choice: whole, or a chunk of a stream.
func (s *Server) completionChoice(q *completionRequest, c *choice, piece string,
	done bool) completionChoice {
	out := completionChoice{Index: c.index, Text: piece}
	first := c.begin()
	if q.Echo && first {
		out.Text = s.tokenizer.Decode(c.task.prompt, true) + piece
	}
	if done {
		out.FinishReason = c.finishReason()
	}
	if q.Logprobs == nil {
		return out
	}
	l := &completionLogprobs{Tokens: []string{}, TokenLogprobs: []*float64{}, TextOffset: []int{}}
	if *q.Logprobs > 0 {
		l.TopLogprobs = []map[string]float64{}
	}
	if q.Echo && first {
		l.add(s.token(c.task.prompt[0]), nil, c, *q.Logprobs, s)
		for i := range c.task.scores {
			l.add(s.token(c.task.prompt[i+1]), &c.task.scores[i], c, *q.Logprobs, s)
		}
	}
	for _, token := range c.newLogprobs() {
		l.add(s.token(token.ID), &token, c, *q.Logprobs, s)
	}
	out.Logprobs = l
	return out
}

// token returns a token's text.
func (s *Server) token(id int32) string { return s.tokenizer.Decode([]int32{id}, false) }

// add adds a token; p is nil for the first token of a prompt.
func (l *completionLogprobs) add(text string, p *generate.TokenLogprob, c *choice, top int,
	s *Server) {
	l.Tokens = append(l.Tokens, text)
	l.TextOffset = append(l.TextOffset, c.offset)
	c.offset += len([]rune(text))
	if p == nil {
		l.TokenLogprobs = append(l.TokenLogprobs, nil)
		if top > 0 {
			l.TopLogprobs = append(l.TopLogprobs, nil)
		}
		return
	}
	own := finite(p.Logprob)
	l.TokenLogprobs = append(l.TokenLogprobs, &own)
	if top == 0 {
		return
	}
	// Tokens may have the same text. The most likely one counts.
	names := map[string]float64{text: own}
	for _, t := range p.Top {
		name := s.token(t.ID)
		if old, ok := names[name]; !ok || finite(t.Logprob) > old {
			names[name] = finite(t.Logprob)
		}
	}
	l.TopLogprobs = append(l.TopLogprobs, names)
}

// finite replaces the logarithm of 0, which JSON cannot hold.
func finite(logprob float64) float64 {
	const least = -9999
	if !(logprob > least) {
		return least
	}
	return logprob
}

// addChoices makes n tasks for each prompt.
func (s *Server) addChoices(j *job, prompts [][]int32, n int, o generate.Options,
	change func(*task)) error {
	if len(prompts)*n > maxChoices {
		return invalid("n", "%d prompts with %d choices each are more than %d choices",
			len(prompts), n, maxChoices)
	}
	repeats := generate.Repeats(prompts)
	for i, prompt := range prompts {
		for k := range n {
			t := &task{prompt: prompt, answer: newAnswer()}
			var err error
			t.row, err = generate.NewRow(s.model, s.tokenizer, prompt, o, repeats[i]*n+k,
				s.options.Limits.Length, t.answer.write)
			if err != nil {
				if len(prompts) > 1 {
					err = fmt.Errorf("prompt %d: %w", i+1, err)
				}
				return invalid("", "%v", err)
			}
			if change != nil {
				change(t)
			}
			j.choices = append(j.choices, &choice{index: len(j.choices), task: t})
		}
	}
	return nil
}
