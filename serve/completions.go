package serve

import "conquer/generate"

// completionRequest is the body of /v1/completions.
type completionRequest struct {
	sampling
	Prompt   prompts `json:"prompt"`
	Echo     bool    `json:"echo"`
	Logprobs *int    `json:"logprobs"`
	BestOf   *int    `json:"best_of"`
	Suffix   *string `json:"suffix"`

	server *Server
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

// job checks the request and makes its tasks.
func (q *completionRequest) job(s *Server) (*job, error) {
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
	ids, err := s.promptIDs(q.Prompt)
	if err != nil {
		return nil, err
	}
	q.server = s
	j := &job{sampling: &q.sampling, object: "text_completion", chunk: "text_completion",
		id: newID("cmpl-"), form: q}
	onlyRead := o.MaxNewTokens == 0 && q.Echo
	if onlyRead {
		o.MaxNewTokens = 1
	}
	err = s.addChoices(j, ids, o, func(t *task) {
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

// whole implements form.
func (q *completionRequest) whole(c *choice, text string) any {
	return q.choice(c, text, true, true)
}

// chunks implements form.
func (q *completionRequest) chunks(c *choice, piece string, first, done bool) []any {
	if first && !q.Echo {
		return nil
	}
	return []any{q.choice(c, piece, first, done)}
}

// choice describes a choice, or a chunk of one.
func (q *completionRequest) choice(c *choice, text string, first, done bool) completionChoice {
	s := q.server
	out := completionChoice{Index: c.index, Text: text}
	if q.Echo && first {
		out.Text = s.tokenizer.Decode(c.task.prompt, true) + text
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
