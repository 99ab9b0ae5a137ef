package generate

import (
	"slices"

	"conquer/model"
	"conquer/text/tokenizer"
	"conquer/torch"
)

// Row is one prompt and its continuation, which grows by a token at a time. The caller computes the
// logits. [Generate] runs a batch of rows that begin together; a server runs rows that come and go.
// One goroutine at a time may use a Row.
type Row struct {
	ids    []int32 // prompt, then new tokens
	prompt int     // tokens of the prompt
	most   int     // limit of new tokens
	full   bool    // the model's context sets that limit
	finish Finish
	err    error // of a row that failed
	sampler
	stream   *stream // nil without a tokenizer
	logprobs []TokenLogprob
}

// NewRow checks the options and the prompt and returns a row without new tokens. tok and onText may
// be nil, as in [Generate]. sample is the row's number in Options.Samples. NoCache, Compile, Group
// and Samples are not used. context, at most the model's, limits prompt and new tokens together.
func NewRow(m model.Model, tok *tokenizer.Tokenizer, prompt []int32, o Options, sample, context int,
	onText func(piece string)) (*Row, error) {
	if err := o.check(tok, len(o.Samples)); err != nil {
		return nil, err
	}
	if err := o.checkVocabulary(vocabulary(m)); err != nil {
		return nil, err
	}
	if err := checkPrompt(m, prompt, context); err != nil {
		return nil, err
	}
	if o.EOS == nil {
		o.EOS = EOS(m, tok)
	}
	r := newRow(m, tok, prompt, o, sample)
	if room := context - len(prompt); room < o.MaxNewTokens {
		r.most, r.full = room, true
	}
	if r.stream != nil {
		r.stream.emit = onText
	}
	return r, nil
}

// newRow makes a row of checked arguments, with o.EOS set.
func newRow(m model.Model, tok *tokenizer.Tokenizer, prompt []int32, o Options, sample int) *Row {
	room := m.MaxLength() - len(prompt)
	r := &Row{ids: slices.Clone(prompt), prompt: len(prompt), most: min(o.MaxNewTokens, room),
		full: room < o.MaxNewTokens, sampler: newSampler(o, sample, vocabulary(m), prompt)}
	if tok != nil {
		r.stream = &stream{decoder: tok.Continue(prompt, true), stops: o.Stop}
		r.stream.decoder.Show(o.Show...)
	}
	return r
}

// Prompt returns the prompt's tokens, which the caller does not change.
func (r *Row) Prompt() []int32 { return r.ids[:r.prompt] }

// Len is the number of tokens of the prompt and the continuation.
func (r *Row) Len() int { return len(r.ids) }

// Last is the newest token.
func (r *Row) Last() int32 { return r.ids[len(r.ids)-1] }

// Most is the number of new tokens that the row may have.
func (r *Row) Most() int { return r.most }

// Logprobs are those of Result so far.
func (r *Row) Logprobs() []TokenLogprob { return r.logprobs }

// Finished is the reason why the row ended, "" if it continues.
func (r *Row) Finished() Finish { return r.finish }

// Greedy reports whether each token is the argmax of the logits and nothing else is needed of them.
// [Row.Accept] then takes a token that was chosen elsewhere.
func (r *Row) Greedy() bool { return r.options.greedy() }

// Choose picks a token from logits [V], float32 on the CPU, which it overwrites, and accepts it. A
// token that cannot be chosen ends the row with FinishError.
func (r *Row) Choose(logits torch.Tensor) Finish {
	id, err := r.pick(logits)
	if err != nil {
		return r.fail(err)
	}
	return r.accept(id)
}

// pick chooses a token from logits [V], float32 on the CPU, which it overwrites, and records its
// log-probability.
func (r *Row) pick(logits torch.Tensor) (int32, error) {
	var before torch.Tensor // what the model says
	if r.options.Logprobs {
		before = logits.Unsqueeze(0).LogSoftmax(-1)
	}
	id, err := r.sampler.choose(logits, r.ids)
	if err == nil && before.Defined() {
		r.logprobs = append(r.logprobs, topLogprobs(floats(before), id, r.options.TopLogprobs))
	}
	return id, err
}

// Accept adds a token, or ends the row with FinishError if it is negative, as [torch.Choose]
// returns it for logits that are not numbers.
func (r *Row) Accept(id int32) Finish {
	if id < 0 {
		return r.fail(errNotANumber)
	}
	return r.accept(id)
}

// Interrupt ends a row that has not ended.
func (r *Row) Interrupt() {
	if r.finish == "" {
		r.end(FinishInterrupted)
	}
}

// Result is the continuation so far.
func (r *Row) Result() Result {
	result := Result{Tokens: r.ids[r.prompt:], Finish: r.finish, PromptTokens: r.prompt, Err: r.err,
		Logprobs: r.logprobs}
	if r.stream != nil {
		result.Text = r.stream.text.String()
	}
	return result
}

func (r *Row) fail(err error) Finish {
	if r.err == nil {
		r.err = err
	}
	r.finish = FinishError
	return r.finish
}

// accept adds a token to the row and ends the row if the token ends it.
func (r *Row) accept(id int32) Finish {
	eos := !r.options.IgnoreEOS && slices.Contains(r.options.EOS, id)
	r.ids = append(r.ids, id)
	r.sampler.made(id)
	if !eos {
		if err := r.sampler.follow(id); err != nil {
			return r.fail(err)
		}
	}
	stopped := r.stream != nil && r.stream.next(id)
	switch made := len(r.ids) - r.prompt; {
	case stopped:
		r.end(FinishStop)
	case eos:
		r.end(FinishEOS)
	case made == r.most && r.full:
		r.end(FinishContext)
	case made == r.most:
		r.end(FinishLength)
	}
	return r.finish
}

// end ends the row. A stop string at the end of the text takes precedence.
func (r *Row) end(why Finish) {
	r.finish = why
	if r.stream != nil && why != FinishStop && r.stream.flush() {
		r.finish = FinishStop
	}
}
