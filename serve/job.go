package serve

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"conquer/generate"
	"conquer/text/toolcall"
)

// request is the body of a request for text.
type request interface {
	job(s *Server) (*job, error) // checks the request and makes its tasks
}

// form writes choices as the clients of an endpoint expect them.
type form interface {
	// whole describes a choice that has ended, with its text.
	whole(c *choice, text string) any
	// chunks describes new text of a choice in chunks of a stream. The first call comes before any
	// text, the last one when the choice has ended.
	chunks(c *choice, piece string, first, done bool) []any
}

// job is a request for text: its choices, and how they are written.
type job struct {
	*sampling
	form
	id            string
	object, chunk string // the objects' names in an answer and in a stream
	choices       []*choice
}

// choice is one continuation of a prompt.
type choice struct {
	index  int
	task   *task
	told   int              // new tokens whose log-probabilities were written
	offset int              // characters before the next of them
	parser *toolcall.Parser // of a streamed chat
	called bool             // a call of a tool was written
}

// text answers requests for text.
func (s *Server) text(newRequest func() request) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := newRequest()
		err := s.decode(w, r, q)
		var j *job
		if err == nil {
			j, err = q.job(s)
		}
		if err == nil {
			err = s.start(r, j)
		}
		switch {
		case err != nil:
			fail(w, err)
		case j.Stream:
			s.stream(w, r, j)
		default:
			s.reply(w, r, j)
		}
	}
}

// addChoices makes the tasks of each prompt, one for each of its choices.
func (s *Server) addChoices(j *job, prompts [][]int32, o generate.Options,
	change func(*task)) error {
	n, err := j.count(maxChoices)
	if err != nil {
		return err
	}
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

// newLogprobs returns the log-probabilities that were not written so far.
func (c *choice) newLogprobs() []generate.TokenLogprob {
	list := c.task.answer.logprobsFrom(c.told)
	c.told += len(list)
	return list
}

// finishReason is OpenAI's word for the reason why a choice ended.
func (c *choice) finishReason() *string {
	reason := "length"
	if row := c.task.row; row != nil && row.Finished() != generate.FinishLength &&
		row.Finished() != generate.FinishContext {
		reason = "stop"
	}
	return &reason
}

// usage counts tokens.
type usage struct {
	PromptTokens     int           `json:"prompt_tokens"`
	CompletionTokens int           `json:"completion_tokens"`
	TotalTokens      int           `json:"total_tokens"`
	Details          *usageDetails `json:"prompt_tokens_details,omitempty"`
}

type usageDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

// newID returns an identifier that no other answer has.
func newID(prefix string) string { return prefix + strings.ToLower(rand.Text()) }

// start puts the tasks of a job into the queue.
func (s *Server) start(r *http.Request, j *job) error {
	tasks := make([]*task, len(j.choices))
	for i, c := range j.choices {
		tasks[i] = c.task
	}
	return s.submit(r, j.Model, tasks)
}

// reply writes the answer of a job that was started.
func (s *Server) reply(w http.ResponseWriter, r *http.Request, j *job) {
	list := make([]any, len(j.choices))
	for i, c := range j.choices {
		text, err := c.task.answer.whole(r.Context())
		if err != nil {
			fail(w, err)
			return
		}
		list[i] = j.whole(c, text)
	}
	writeJSON(w, http.StatusOK, map[string]any{"id": j.id, "object": j.object,
		"created": time.Now().Unix(), "model": s.named(j.Model), "choices": list,
		"usage": j.usage()})
}

// usage counts the tokens of a job whose choices have ended. A prompt counts once, however many
// choices it has.
func (j *job) usage() usage {
	var u usage
	u.Details = &usageDetails{}
	n := 1
	if j.N != nil {
		n = *j.N
	}
	for i, c := range j.choices {
		if i%n == 0 {
			u.PromptTokens += len(c.task.prompt)
			u.Details.CachedTokens += c.task.reused
		}
		if c.task.row != nil {
			u.CompletionTokens += c.task.row.Len() - len(c.task.prompt)
		}
	}
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
	return u
}

// stream writes the answer piece by piece, as server-sent events.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, j *job) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	events := &events{w: w, controller: http.NewResponseController(w)}
	events.begin()
	created := time.Now().Unix()
	send := func(choices []any, more map[string]any) {
		chunk := map[string]any{"id": j.id, "object": j.chunk, "created": created,
			"model": s.named(j.Model), "choices": choices}
		for name, value := range more {
			chunk[name] = value
		}
		events.send(chunk)
	}
	write := func(c *choice, piece string, first, done bool) {
		for _, chunk := range j.chunks(c, piece, first, done) {
			send([]any{chunk}, nil)
		}
	}
	for _, c := range j.choices {
		write(c, "", true, false)
	}
	type news struct {
		choice *choice
		piece  string
		done   bool
		err    error
	}
	all := make(chan news)
	for _, c := range j.choices {
		go func() {
			for done := false; !done; {
				n := news{choice: c}
				n.piece, n.done, n.err = c.task.answer.take(ctx)
				done = n.done
				select {
				case all <- n:
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	for open := len(j.choices); open > 0; {
		var n news
		select {
		case n = <-all:
		case <-ctx.Done():
			n.err = ctx.Err()
		}
		if n.err != nil {
			events.send(map[string]any{"error": problemOf(n.err)})
			return
		}
		write(n.choice, n.piece, false, n.done)
		if n.done {
			open--
		}
	}
	if j.StreamOptions != nil && j.StreamOptions.IncludeUsage {
		send([]any{}, map[string]any{"usage": j.usage()})
	}
	events.end()
}

// events writes server-sent events.
type events struct {
	w          http.ResponseWriter
	controller *http.ResponseController
}

func (e *events) begin() {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Accel-Buffering", "no") // nginx would wait for more
	e.w.WriteHeader(http.StatusOK)
	e.controller.Flush()
}

func (e *events) send(v any) {
	var text strings.Builder
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	encoder.Encode(v)
	e.w.Write([]byte("data: " + text.String() + "\n")) // Encode ends the line
	e.controller.Flush()
}

func (e *events) end() {
	e.w.Write([]byte("data: [DONE]\n\n"))
	e.controller.Flush()
}
