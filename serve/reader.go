package serve

import (
	"slices"

	"conquer/generate"
	"conquer/model"
	"conquer/torch"
)

// reader reads prompts, one at a time and piece by piece, into a cache of its own. Pieces begin at
// multiples of their length, and a pass reads a piece of one prompt only, so that the result does
// not depend on other requests.
type reader struct {
	model model.Model
	cache *model.Cache
	piece int     // tokens in a piece
	ids   []int32 // the tokens in the cache
	// The number of the adapter that read them, 0 for none.
	adapter int
	// The logits [1,V] after ids, float32 on the CPU; no tensor within a prompt.
	last     torch.Tensor
	task     *task // whose prompt is read; nil if none
	prefixes *prefixes
}

func newReader(m model.Model, l Limits, metrics *metrics) *reader {
	return &reader{model: m, piece: l.Piece,
		cache:    m.NewCache(1, l.Length, model.DType(m), model.Device(m)),
		prefixes: newPrefixes(m, l.Piece, l.Prefixes, metrics)}
}

func (r *reader) free() {
	r.prefixes.free()
	r.last.Free()
	r.cache.Free()
}

// begin starts to read the prompt of a task. What is known of its beginning is not read again; if
// it is the prompt that was read last, nothing is left to read.
func (r *reader) begin(t *task) {
	defer func() { r.task = t }()
	if r.last.Defined() && t.keepsReading() && r.adapter == t.number() &&
		slices.Equal(r.ids, t.prompt) {
		t.reused = len(r.ids)
		return
	}
	r.forget()
	r.adapter = t.number()
	if t.keepsReading() {
		t.reused = r.prefixes.load(r.adapter, t.prompt, r.cache)
		r.ids = append(r.ids, t.prompt[:t.reused]...)
	}
}

// forget empties the cache.
func (r *reader) forget() {
	r.ids = r.ids[:0]
	r.last.Free()
	r.cache.Length = 0
}

// done reports whether the whole prompt has been read.
func (r *reader) done() bool { return len(r.ids) == len(r.task.prompt) }

// ahead returns the number of tokens that the next call of read takes.
func (r *reader) ahead() int {
	return min(len(r.task.prompt), (len(r.ids)/r.piece+1)*r.piece) - len(r.ids)
}

// read reads the next piece of the prompt.
func (r *reader) read() {
	t, start := r.task, len(r.ids)
	end := start + r.ahead()
	ids := t.prompt[start:end]
	r.cache.Length = start
	input := torch.From(ids, 1, len(ids)).To(torch.Int64).ToDevice(model.Device(r.model))
	hidden := model.Hidden(r.model, model.Sequence{IDs: input, Cache: r.cache})
	if t.pool != nil {
		t.pool.add(hidden.Squeeze(0))
	}
	if t.scored {
		r.score(hidden.Squeeze(0), start)
	}
	if end == len(t.prompt) && t.row != nil {
		// One row, as in a step: a GEMM of all rows may round differently.
		logits := r.model.Head().Logits(hidden.Select(1, len(ids)-1))
		r.last = logits.To(torch.Float32).ToDevice(torch.CPU).Contiguous().Own()
	}
	r.ids = append(r.ids, ids...)
	r.prefixes.store(r.adapter, r.ids, r.cache)
}

// score adds the log-probabilities of the tokens after those whose states [L,D] are given. It takes
// some at a time: a row of logits is large.
func (r *reader) score(hidden torch.Tensor, start int) {
	const together = 256
	t := r.task
	for from := 0; from < hidden.Size(0); from += together {
		first := start + from + 1
		ids := t.prompt[min(first, len(t.prompt)):min(first+together, start+hidden.Size(0)+1,
			len(t.prompt))]
		if len(ids) == 0 {
			return
		}
		torch.Scoped(func() {
			logits := r.model.Head().Logits(hidden.Narrow(0, from, len(ids)))
			t.scores = append(t.scores, generate.Logprobs(logits, ids, t.top)...)
		})
	}
}
