package text

import (
	"fmt"
	"slices"
)

// Batch is Rows rows of Length tokens, each list row after row (row r, token i
// at r*Length+i), ready to become a tensor of shape [Rows, Length].
type Batch struct {
	Rows, Length int

	IDs []int32
	// Labels are aligned with IDs, not shifted. The first of every sample and
	// those of padding are IgnoreLabel, so nothing is predicted across samples.
	Labels []int32
	// Positions count from 0 in each sample.
	Positions []int32
	// Segments number the samples of a row from 1; 0 is padding. A token may
	// attend to tokens of its own segment only.
	Segments []int32

	Samples int // samples in the batch
	Tokens  int // tokens that are not padding
	Targets int // labels that bear loss

	Epoch int  // the pass over the data set this batch belongs to, from 0
	Last  bool // no batch of this epoch follows
}

// BatchOptions says how samples are laid out.
type BatchOptions struct {
	Rows   int // rows in a batch, on each shard
	Length int // tokens in a row
	// Pack puts several samples in a row where they fit; else a row holds one.
	Pack bool
	// Pad is the id that padding has. Its value has no effect on what is learned.
	Pad int32
	// Seed decides the order, anew for each epoch. InOrder keeps that of the
	// data set.
	Seed    uint64
	InOrder bool
	// Of every Rows*Shards rows, shard Shard gets its Rows; all shards get the
	// same number of batches. Shards 0 means 1.
	Shard, Shards int
}

// State is a position between two batches: Index rows of epoch Epoch have been
// handed out, to all shards together. It fits any number of rows and shards.
type State struct {
	Epoch int `json:"epoch"`
	Index int `json:"index"`
}

// Batcher hands out batches, epoch after epoch without end. It serves one
// goroutine.
type Batcher struct {
	data    []Sample
	opts    BatchOptions
	state   State
	plan    [][]int // for each row of an epoch, its samples
	planned int     // that epoch; -1 for none
}

// NewBatcher starts at the first batch of epoch 0. It fails if a sample is
// longer than a row: load the data set with that MaxLength.
func NewBatcher(d *Dataset, opts BatchOptions) (*Batcher, error) {
	opts.Shards = max(opts.Shards, 1)
	switch {
	case opts.Rows < 1 || opts.Length < 2:
		return nil, fmt.Errorf("batches of %d rows of %d tokens; expected at least 1 row and 2 tokens", opts.Rows, opts.Length)
	case opts.Shard < 0 || opts.Shard >= opts.Shards:
		return nil, fmt.Errorf("shard %d of %d; expected 0 to %d", opts.Shard, opts.Shards, opts.Shards-1)
	case len(d.Samples) == 0:
		return nil, fmt.Errorf("the data set is empty")
	}
	for i, s := range d.Samples {
		if len(s.IDs) > opts.Length {
			return nil, fmt.Errorf("sample %d has %d tokens and rows have %d: load the data set with MaxLength %d", i, len(s.IDs), opts.Length, opts.Length)
		}
		if len(s.Labels) != len(s.IDs) || len(s.IDs) == 0 {
			return nil, fmt.Errorf("sample %d has %d tokens and %d labels", i, len(s.IDs), len(s.Labels))
		}
	}
	return &Batcher{data: d.Samples, opts: opts, planned: -1}, nil
}

// State is the position of the batch that Next returns next.
func (b *Batcher) State() State { return b.state }

// Restore goes to a position that State returned, of this Batcher or of one
// with the same data set, Length, Pack, Seed and InOrder.
func (b *Batcher) Restore(s State) error {
	if s.Epoch < 0 || s.Index < 0 || s.Index > len(b.rows(s.Epoch)) {
		return fmt.Errorf("position %+v is not in the data set, whose epoch %d has %d rows", s, max(s.Epoch, 0), len(b.rows(max(s.Epoch, 0))))
	}
	b.state = s
	return nil
}

// Batches is how many batches an epoch has on each shard. With Pack it can
// differ a little from epoch to epoch.
func (b *Batcher) Batches(epoch int) int {
	per := b.opts.Rows * b.opts.Shards
	return (len(b.rows(epoch)) + per - 1) / per
}

// Next returns the next batch. Rows that the last batch of an epoch cannot fill
// are padding.
func (b *Batcher) Next() Batch {
	if b.state.Index >= len(b.rows(b.state.Epoch)) {
		b.state = State{Epoch: b.state.Epoch + 1}
	}
	rows := b.rows(b.state.Epoch)
	n, length := b.opts.Rows, b.opts.Length
	out := Batch{
		Rows: n, Length: length,
		IDs: slices.Repeat([]int32{b.opts.Pad}, n*length), Labels: ignored(n * length),
		Positions: make([]int32, n*length), Segments: make([]int32, n*length),
		Epoch: b.state.Epoch,
	}
	first := b.state.Index + b.opts.Shard*n
	for r := range n {
		if first+r >= len(rows) {
			break
		}
		at := r * length
		for k, i := range rows[first+r] {
			s := b.data[i]
			copy(out.IDs[at:], s.IDs)
			copy(out.Labels[at+1:], s.Labels[1:])
			for p := range s.IDs {
				out.Positions[at+p], out.Segments[at+p] = int32(p), int32(k+1)
			}
			out.Samples++
			out.Tokens += len(s.IDs)
			out.Targets += countTargets(s.Labels)
			at += len(s.IDs)
		}
	}
	b.state.Index = min(b.state.Index+n*b.opts.Shards, len(rows))
	out.Last = b.state.Index == len(rows)
	return out
}

// openRows is how many unfinished rows packing chooses from. More would fill
// rows a little better and stray further from the shuffled order.
const openRows = 64

// rows plans an epoch: which samples go into which row. It depends on the
// options and the epoch alone, which is why a State can be so small.
func (b *Batcher) rows(epoch int) [][]int {
	if b.planned == epoch {
		return b.plan
	}
	order := make([]int, len(b.data))
	for i := range order {
		order[i] = i
	}
	if !b.opts.InOrder {
		order = shuffled(len(b.data), b.opts.Seed, uint64(epoch))
	}
	b.planned, b.plan = epoch, b.plan[:0:0]
	if !b.opts.Pack {
		for _, i := range order {
			b.plan = append(b.plan, []int{i})
		}
		return b.plan
	}
	type open struct {
		samples []int
		free    int
	}
	var rows []open
	for _, i := range order {
		need := len(b.data[i].IDs)
		best := -1
		for r, row := range rows {
			if row.free >= need && (best < 0 || row.free < rows[best].free) {
				best = r
			}
		}
		if best < 0 {
			if len(rows) == openRows {
				fullest := 0
				for r, row := range rows {
					if row.free < rows[fullest].free {
						fullest = r
					}
				}
				b.plan = append(b.plan, rows[fullest].samples)
				rows = slices.Delete(rows, fullest, fullest+1)
			}
			rows = append(rows, open{free: b.opts.Length})
			best = len(rows) - 1
		}
		row := &rows[best]
		row.samples, row.free = append(row.samples, i), row.free-need
		if row.free == 0 {
			b.plan = append(b.plan, row.samples)
			rows = slices.Delete(rows, best, best+1)
		}
	}
	for _, row := range rows {
		b.plan = append(b.plan, row.samples)
	}
	return b.plan
}
