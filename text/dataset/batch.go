package dataset

import (
	"fmt"
	"slices"
	"sync"
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
	// Segments number the samples of a row from 1, or the texts where samples
	// are pairs; 0 is padding. A token may attend to tokens of its own segment
	// only.
	Segments []int32
	// Sources is, for each row, which samples of the data set are in it.
	Sources [][]uint32

	Samples int // samples in the batch
	Tokens  int // tokens that are not padding
	Targets int // labels that bear loss

	Epoch int  // the pass over the data set this batch belongs to, from 0
	Last  bool // no batch of this epoch follows
}

// BatchOptions says how samples are laid out.
type BatchOptions struct {
	Rows   int // rows in a batch, on each rank
	Length int // tokens in a row
	// Pack puts several samples in a row where they fit; else a row holds one.
	Pack bool
	// Pad is the id that padding has. Its value has no effect on what is learned.
	Pad int32
	// Seed decides the order, anew for each epoch. InOrder keeps that of the
	// data set.
	Seed    uint64
	InOrder bool
	// All ranks draw from one order: of every Rows*World rows rank Rank gets its
	// Rows, and all get the same number of batches. World 0 means 1.
	Rank, World int
	// A step takes Passes batches from each rank; 0 means 1. An epoch ends with a
	// step, which padding fills up. So the samples of each step depend on
	// Rows*World*Passes alone, however that divides.
	Passes int
}

func (o BatchOptions) step() int { return o.Rows * o.World * o.Passes }

// State is a position between two steps: Index rows of epoch Epoch have been
// handed out, to all ranks together. It fits any number of rows, ranks and
// passes.
type State struct {
	Epoch int `json:"epoch"`
	Index int `json:"index"`
}

// Batcher hands out batches, epoch after epoch without end. A goroutine reads
// the next few while one is in use. It serves one goroutine.
type Batcher struct {
	data  *Dataset
	opts  BatchOptions
	state State
	ahead *lookahead

	planning sync.Mutex
	plans    [2]*plan // of the epochs that were needed last
}

// plan says which samples make up the rows of an epoch: row r holds
// samples[starts[r]:starts[r+1]].
type plan struct {
	epoch           int
	samples, starts []uint32
}

func (p *plan) rows() int { return len(p.starts) - 1 }

func (p *plan) row(r int) []uint32 { return p.samples[p.starts[r]:p.starts[r+1]] }

// NewBatcher starts at the first batch of epoch 0. It fails if a sample is
// longer than a row: load the data set with that MaxLength.
func NewBatcher(d *Dataset, opts BatchOptions) (*Batcher, error) {
	opts.World, opts.Passes = max(opts.World, 1), max(opts.Passes, 1)
	switch {
	case opts.Rows < 1 || opts.Length < 2:
		return nil, fmt.Errorf("batches of %d rows of %d tokens; expected at least 1 row and 2 tokens", opts.Rows, opts.Length)
	case opts.Rank < 0 || opts.Rank >= opts.World:
		return nil, fmt.Errorf("rank %d of %d; expected 0 to %d", opts.Rank, opts.World, opts.World-1)
	case d.Len() == 0:
		return nil, fmt.Errorf("the data set is empty")
	}
	for i := range d.Len() {
		if d.length(i) > opts.Length {
			return nil, fmt.Errorf("sample %d has %d tokens and rows have %d: load the data set with MaxLength %d", i, d.length(i), opts.Length, opts.Length)
		}
	}
	for i, s := range d.Samples {
		if len(s.Labels) != len(s.IDs) || len(s.IDs) == 0 {
			return nil, fmt.Errorf("sample %d has %d tokens and %d labels", i, len(s.IDs), len(s.Labels))
		}
	}
	b := &Batcher{data: d, opts: opts}
	b.ahead = b.from(State{})
	return b, nil
}

// State is the position of the batch that Next returns next. It can be restored
// where a step begins.
func (b *Batcher) State() State { return b.state }

// Restore goes to a position that State returned, of this Batcher or of one
// with the same data set, Length, Pack, Seed and InOrder.
func (b *Batcher) Restore(s State) error {
	if s.Epoch < 0 || s.Index < 0 || s.Index > b.plan(s.Epoch).rows() {
		epoch := max(s.Epoch, 0)
		return fmt.Errorf("position %+v is not in the data set, whose epoch %d has %d rows", s, epoch, b.plan(epoch).rows())
	}
	b.state, b.ahead = s, b.from(s)
	return nil
}

// Batches is how many batches an epoch has on each rank, a multiple of Passes.
// With Pack it can differ a little from epoch to epoch.
func (b *Batcher) Batches(epoch int) int {
	return (b.plan(epoch).rows() + b.opts.step() - 1) / b.opts.step() * b.opts.Passes
}

// Progress is how often the data has been passed over, such as 1.5.
func (b *Batcher) Progress() float64 {
	return float64(b.state.Epoch) + float64(b.state.Index)/float64(b.plan(b.state.Epoch).rows())
}

// Next returns the next batch. Rows that the last step of an epoch cannot fill
// are padding. An error is that of a file that can no longer be read as it was.
func (b *Batcher) Next() (Batch, error) {
	next := b.ahead.next()
	if next.err == nil {
		b.state = next.after
	}
	return next.Batch, next.err
}

// readAhead is how many batches are read before they are asked for.
const readAhead = 4

// lookahead is the batches from some position on. It fills its queue while a
// goroutine is at it, which ends once the queue is full.
type lookahead struct {
	make  func() prepared
	queue chan prepared

	mu      sync.Mutex
	filling bool
}

type prepared struct {
	Batch
	after State
	err   error
}

func (l *lookahead) next() prepared {
	l.mu.Lock()
	if !l.filling {
		l.filling = true
		go l.fill()
	}
	l.mu.Unlock()
	return <-l.queue
}

func (l *lookahead) fill() {
	for {
		l.queue <- l.make()
		l.mu.Lock()
		full := len(l.queue) == cap(l.queue)
		l.filling = !full
		l.mu.Unlock()
		if full {
			return
		}
	}
}

// from begins at a position.
func (b *Batcher) from(s State) *lookahead {
	handed := 0 // rows of the step that have been handed out
	return &lookahead{queue: make(chan prepared, readAhead), make: func() prepared {
		if handed == 0 && s.Index >= b.plan(s.Epoch).rows() {
			s = State{Epoch: s.Epoch + 1}
		}
		rows := b.plan(s.Epoch).rows()
		batch, err := b.batch(s)
		if err != nil {
			return prepared{err: err}
		}
		n := b.opts.Rows * b.opts.World
		s.Index += n
		if handed += n; handed == b.opts.step() {
			handed = 0
			s.Index = min(s.Index, rows)
		}
		batch.Last = handed == 0 && s.Index == rows
		return prepared{Batch: batch, after: s}
	}}
}

// batch reads the batch at a position.
func (b *Batcher) batch(s State) (Batch, error) {
	rows, n, length := b.plan(s.Epoch), b.opts.Rows, b.opts.Length
	out := Batch{
		Rows: n, Length: length,
		IDs: slices.Repeat([]int32{b.opts.Pad}, n*length), Labels: ignored(n * length),
		Positions: make([]int32, n*length), Segments: make([]int32, n*length),
		Epoch: s.Epoch, Sources: make([][]uint32, n),
	}
	first := s.Index + b.opts.Rank*n
	used := min(n, max(0, rows.rows()-first))
	// Reading may mean encoding, so rows are read side by side.
	failed := make([]error, used)
	for r := range used {
		out.Sources[r] = rows.row(first + r)
	}
	var wg sync.WaitGroup
	for r := range used {
		wg.Go(func() {
			at, segment := r*length, int32(0)
			for _, i := range out.Sources[r] {
				sample, err := b.data.At(int(i))
				if err != nil {
					failed[r] = err
					return
				}
				copy(out.IDs[at:], sample.IDs)
				copy(out.Labels[at+1:], sample.Labels[1:])
				start := 0
				for _, end := range sample.texts() {
					out.Labels[at+start] = IgnoreLabel
					segment++
					for p := start; p < end; p++ {
						out.Positions[at+p], out.Segments[at+p] = int32(p-start), segment
					}
					start = end
				}
				at += len(sample.IDs)
			}
		})
	}
	wg.Wait()
	for r, err := range failed {
		if err != nil {
			return out, err
		}
		out.Samples += len(out.Sources[r])
	}
	for i, segment := range out.Segments {
		if segment > 0 {
			out.Tokens++
		}
		if out.Labels[i] != IgnoreLabel {
			out.Targets++
		}
	}
	return out, nil
}

// openRows is how many unfinished rows packing chooses from. More would fill
// rows a little better and stray further from the shuffled order.
const openRows = 64

// plan plans an epoch. It depends on the options and the epoch alone, which is
// why a State can be so small.
func (b *Batcher) plan(epoch int) *plan {
	b.planning.Lock()
	defer b.planning.Unlock()
	for _, p := range b.plans {
		if p != nil && p.epoch == epoch {
			return p
		}
	}
	b.plans[1], b.plans[0] = b.plans[0], &plan{epoch: epoch, starts: []uint32{0}}
	p := b.plans[0]
	order := inOrder(b.data.Len())
	if !b.opts.InOrder {
		order = shuffled(b.data.Len(), b.opts.Seed, uint64(epoch))
	}
	if !b.opts.Pack {
		p.samples, p.starts = order, inOrder(len(order)+1)
		return p
	}
	type open struct {
		samples []uint32
		free    int
	}
	var rows []open
	finish := func(r int) {
		p.samples = append(p.samples, rows[r].samples...)
		p.starts = append(p.starts, uint32(len(p.samples)))
		rows = slices.Delete(rows, r, r+1)
	}
	for _, i := range order {
		need := b.data.length(int(i))
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
				finish(fullest)
			}
			rows = append(rows, open{free: b.opts.Length})
			best = len(rows) - 1
		}
		row := &rows[best]
		row.samples, row.free = append(row.samples, i), row.free-need
		if row.free == 0 {
			finish(best)
		}
	}
	for len(rows) > 0 {
		finish(0)
	}
	return p
}
