package serve

import (
	"fmt"

	"conquer/model"
	"conquer/torch"
)

// Limits say how much a server does at once. [Fit] computes them from the memory.
type Limits struct {
	Sequences int // requests that are decoded together
	Length    int // tokens of a request, prompt and answer together
	Piece     int // tokens of a prompt that are read between two decoding steps
	// Prefixes is the memory for what is kept of the prompts of earlier requests.
	Prefixes int64
	// Bytes is the memory of the other caches: Sequences and one prompt that is being read, each of
	// Length tokens.
	Bytes int64
	// PerToken and PerSequence are the bytes of a token's keys and values, and of a sequence's
	// states.
	PerToken, PerSequence int64
}

// shortest is the least length that Fit chooses by itself.
const shortest = 2048

// Fit completes limits, of which those that are 0 may be chosen, for a model and the memory that
// the caches may take; 0 means any. The default is 16 sequences on the CPU, 64 on a GPU, of the
// model's context. If they do not fit the memory, they become shorter, down to 2,048 tokens, and
// then fewer. The default for prefixes is a quarter of the memory, or none if memory is 0; a
// negative number means none.
func Fit(m model.Model, memory int64, want Limits) (Limits, error) {
	l := want
	context := m.MaxLength()
	switch {
	case l.Sequences < 0 || l.Piece < 0 || l.Length < 0 || memory < 0:
		return l, fmt.Errorf("a limit is negative")
	case l.Length > context:
		return l, fmt.Errorf("a length of %d tokens is more than the model's context of %d",
			l.Length, context)
	case l.Length == 1:
		return l, fmt.Errorf("a length of 1 token leaves no room for an answer")
	}
	cuda := model.Device(m).IsCUDA()
	if l.Piece == 0 {
		l.Piece = 256
		if cuda {
			l.Piece = 1024
		}
	}
	if l.Sequences == 0 {
		l.Sequences = 16
		if cuda {
			l.Sequences = 64
		}
	}
	if l.Length == 0 {
		l.Length = context
	}
	if r, ok := m.(interface{ DependsOnLength() bool }); ok && r.DependsOnLength() {
		l.Piece = l.Length // the whole prompt decides how its first tokens are rotated
	}
	if err := l.measure(m); err != nil {
		return l, err
	}
	switch {
	case l.Prefixes < 0:
		l.Prefixes = 0
	case l.Prefixes == 0:
		l.Prefixes = memory / 4
	}
	rest := memory - l.Prefixes
	if memory > 0 {
		l.shrink(rest, want)
	}
	l.Bytes = l.total()
	if memory > 0 && l.Bytes > rest {
		return l, fmt.Errorf("%d sequences of %d tokens need %s of memory for their keys, values "+
			"and states, and %s may be used: allow fewer sequences, shorter ones or more memory",
			l.Sequences, l.Length, gigabytes(l.Bytes), gigabytes(max(0, rest)))
	}
	return l, nil
}

// measure sets PerToken and PerSequence.
func (l *Limits) measure(m model.Model) error {
	var bytes [2]int64
	rows := int64(1)
	if model.Device(m).IsCUDA() { // where several sequences may have rings of inputs
		rows = int64(min(l.Sequences, 4))
	}
	err := torch.Run(func() error {
		for i := range bytes {
			cache := m.NewCache(int(rows), i+1, model.DType(m), model.Device(m))
			bytes[i] = (cache.Bytes() + rows - 1) / rows
			cache.Free()
		}
		return nil
	})
	l.PerToken = bytes[1] - bytes[0]
	l.PerSequence = bytes[0] - l.PerToken
	return err
}

// total is the memory of the caches.
func (l *Limits) total() int64 {
	return int64(l.Sequences+1) * (l.PerSequence + int64(l.Length)*l.PerToken)
}

// shrink reduces what the caller did not choose until the caches fit.
func (l *Limits) shrink(memory int64, want Limits) {
	if l.total() > memory && want.Length == 0 && l.PerToken > 0 {
		room := (memory/int64(l.Sequences+1) - l.PerSequence) / l.PerToken / 256 * 256
		l.Length = min(l.Length, max(int(room), shortest))
	}
	for l.total() > memory && want.Sequences == 0 && l.Sequences > 1 {
		l.Sequences--
	}
}

// String describes the limits in one line.
func (l Limits) String() string {
	return fmt.Sprintf("%d sequences of up to %d tokens, %s for keys, values and states, up to %s "+
		"for prefixes", l.Sequences, l.Length, gigabytes(l.Bytes), gigabytes(l.Prefixes))
}

func gigabytes(n int64) string { return fmt.Sprintf("%.2f GB", float64(n)/1e9) }
