package dataset

import (
	"fmt"
	"slices"
	"sync"
)

// Batch is Rows rows of Length tokens. Each list is row-major: token i of row r
// is at r*Length+i, so a list becomes a tensor of shape [Rows, Length].
type Batch struct {
	Rows, Length int

	IDs []int32
	// Labels are aligned with IDs, not shifted. The first label of every text and
	// those of padding are IgnoreLabel, so no loss crosses a border.
	Labels []int32
	// Positions count from 0 in each text.
	Positions []int32
	// Segments number the texts of a row from 1; 0 is padding. A pair has two
	// texts, any other sample one. A token may attend only to its own segment.
	Segments []int32
	// Sources lists, for each row, the indices of the samples in it.
	Sources [][]uint32
	// Ratings are those of the samples in Sources.
	Ratings [][]Rating
	// Continues says, for each row, that it goes on with the text of the same row of the batch
	// before it in BatchOptions.Streams.
	Continues []bool

	Samples int // samples in the batch
	Tokens  int // tokens that are not padding
	Targets int // labels with loss

	Epoch int  // pass over the data set that this batch belongs to, from 0
	Last  bool // this is the last batch of the epoch
}

// BatchOptions says how samples are laid out.
type BatchOptions struct {
	Rows   int // rows of a batch, on each rank
	Length int // tokens of a row
	// Pack puts several samples in a row if they fit. Otherwise a row holds one.
	Pack bool
	// Streams keeps texts together that are longer than a row: row r of each pass of a step goes on
	// where row r of that pass stopped in the step before. Texts are shuffled as wholes. A sample
	// that another one continues must fill its row. Mixtures cannot be read so.
	Streams bool
	// Pad is the id of padding. It has no effect on the loss.
	Pad int32
	// Seed decides the order, which differs in each epoch. InOrder keeps the order
	// of the data set instead.
	Seed    uint64
	InOrder bool
	// All ranks share one order. Of every Rows*World rows, rank Rank gets its
	// Rows, and all ranks get the same number of batches. World 0 means 1.
	Rank, World int
	// Passes is the number of batches that each rank takes in one step; 0 means 1.
	// An epoch ends with a whole step, filled up with padding. So the samples of a
	// step depend only on the product Rows*World*Passes.
	Passes int
}

// step returns the rows of one step on all ranks.
func (o BatchOptions) step() int { return o.Rows * o.World * o.Passes }

// State is a position between two steps: Index rows of epoch Epoch have been
// handed out, counted over all ranks. It is valid for any number of rows, ranks
// and passes.
type State struct {
	Epoch int `json:"epoch"`
	Index int `json:"index"`
}

// Batcher hands out batches, epoch after epoch without end. A goroutine reads
// the next few batches ahead. One goroutine at a time may use a Batcher.
type Batcher struct {
	data  *Dataset
	opts  BatchOptions
	state State
	ahead *lookahead

	planning sync.Mutex
	plans    [2]*plan // of the epochs used last
}

// MaxRows, MaxPasses and MaxTokens are the most that a step can have. A batch has four numbers for
// each of its tokens.
const (
	MaxRows   = 1 << 20 // of a batch
	MaxPasses = 1 << 20
	MaxTokens = 1 << 27 // of a batch
)

// NewBatcher returns a Batcher at the first batch of epoch 0. It fails if a
// sample is longer than a row: load the data set with MaxLength set to Length.
func NewBatcher(d *Dataset, opts BatchOptions) (*Batcher, error) {
	opts.World, opts.Passes = max(opts.World, 1), max(opts.Passes, 1)
	switch {
	case opts.Rows < 1 || opts.Length < 2:
		return nil, fmt.Errorf(
			"batches of %d rows of %d tokens; expected at least 1 row and 2 tokens", opts.Rows,
			opts.Length)
	case opts.Rows > MaxRows || opts.Length > MaxTokens/opts.Rows || opts.Passes > MaxPasses:
		return nil, fmt.Errorf("%d batches of %d rows of %d tokens in a step: expected at most "+
			"%d batches, %d rows and %d tokens in a batch", opts.Passes, opts.Rows, opts.Length,
			MaxPasses, MaxRows, MaxTokens)
	case opts.Rank < 0 || opts.Rank >= opts.World:
		return nil, fmt.Errorf("rank %d of %d; expected 0 to %d", opts.Rank, opts.World,
			opts.World-1)
	case d.Len() == 0:
		return nil, fmt.Errorf("the data set is empty")
	}
	for i := range d.Len() {
		if d.Length(i) > opts.Length {
			return nil, fmt.Errorf("sample %d has %d tokens and rows have %d: "+
				"load the data set with MaxLength %d", i, d.Length(i), opts.Length, opts.Length)
		}
	}
	for i, s := range d.Samples {
		if len(s.Labels) != len(s.IDs) || len(s.IDs) == 0 {
			return nil, fmt.Errorf("sample %d has %d tokens and %d labels", i, len(s.IDs),
				len(s.Labels))
		}
	}
	if opts.Streams {
		if err := d.checkStreams(opts.Length); err != nil {
			return nil, err
		}
	}
	b := &Batcher{data: d, opts: opts}
	b.ahead = b.from(State{})
	return b, nil
}

// State returns the position of the batch that Next returns next. Restore
// accepts it if it is the beginning of a step.
func (b *Batcher) State() State { return b.state }

// Restore moves to a position that State returned, of this Batcher or of one
// with the same data set, Length, Pack, Seed and InOrder.
func (b *Batcher) Restore(s State) error {
	if s.Epoch < 0 || s.Index < 0 || s.Index > b.plan(s.Epoch).rows() {
		epoch := max(s.Epoch, 0)
		return fmt.Errorf("position %+v is not in the data set, whose epoch %d has %d rows",
			s, epoch, b.plan(epoch).rows())
	}
	b.state, b.ahead = s, b.from(s)
	return nil
}

// Batches returns the number of batches of an epoch on each rank, a multiple of
// Passes. With Pack it can differ a little between epochs.
func (b *Batcher) Batches(epoch int) int {
	return (b.plan(epoch).rows() + b.opts.step() - 1) / b.opts.step() * b.opts.Passes
}

// Filled returns the share of the tokens of an epoch's rows that is not padding.
func (b *Batcher) Filled(epoch int) float64 {
	p := b.plan(epoch)
	tokens := 0
	for _, i := range p.samples {
		tokens += b.data.Length(int(i))
	}
	return float64(tokens) / (float64(p.rows()) * float64(b.opts.Length))
}

// Progress returns the number of epochs handed out, such as 1.5.
func (b *Batcher) Progress() float64 {
	return float64(b.state.Epoch) + float64(b.state.Index)/float64(b.plan(b.state.Epoch).rows())
}

// Next returns the next batch. Rows that the last step of an epoch cannot fill
// are padding. It fails if a file can no longer be read or has changed.
func (b *Batcher) Next() (Batch, error) {
	next := b.ahead.next()
	if next.err == nil {
		b.state = next.after
	}
	return next.Batch, next.err
}

// readAhead is the number of batches that are read before they are needed.
const readAhead = 4

// lookahead is the sequence of batches from some position on. A goroutine fills
// its queue, ends when the queue is full, and is started again by next.
type lookahead struct {
	make  func() prepared
	queue chan prepared

	mu      sync.Mutex
	filling bool
}

// prepared is a batch, or an error, and the position behind the batch.
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

// from returns the batches from a position on.
func (b *Batcher) from(s State) *lookahead {
	handed := 0 // rows of the current step that have been handed out
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

// batch reads the batch at a position. Rows are read in parallel, because
// reading may include encoding.
func (b *Batcher) batch(s State) (Batch, error) {
	rows, n, length := b.plan(s.Epoch), b.opts.Rows, b.opts.Length
	out := Batch{
		Rows: n, Length: length,
		IDs: slices.Repeat([]int32{b.opts.Pad}, n*length), Labels: ignored(n * length),
		Positions: make([]int32, n*length), Segments: make([]int32, n*length),
		Epoch: s.Epoch, Sources: make([][]uint32, n), Ratings: make([][]Rating, n),
		Continues: make([]bool, n),
	}
	first := s.Index + b.opts.Rank*n
	used := min(n, max(0, rows.rows()-first))
	failed := make([]error, used)
	var wg sync.WaitGroup
	for r := range used {
		out.Sources[r] = rows.row(first + r)
		out.Continues[r] = b.opts.Streams && len(out.Sources[r]) > 0 &&
			b.data.continues(int(out.Sources[r][0]))
		wg.Go(func() { failed[r] = b.fillRow(&out, r) })
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

// fillRow reads the samples of row r of a batch and lays them out.
func (b *Batcher) fillRow(out *Batch, r int) error {
	at, segment := r*out.Length, int32(0)
	for _, i := range out.Sources[r] {
		sample, err := b.data.At(int(i))
		if err != nil {
			return err
		}
		out.Ratings[r] = append(out.Ratings[r], sample.Rating)
		copy(out.IDs[at:], sample.IDs)
		copy(out.Labels[at+1:], sample.Labels[1:])
		start := 0
		for _, end := range sample.Ends() {
			out.Labels[at+start] = IgnoreLabel
			segment++
			for p := start; p < end; p++ {
				out.Positions[at+p], out.Segments[at+p] = int32(p-start), segment
			}
			start = end
		}
		at += len(sample.IDs)
	}
	return nil
}
