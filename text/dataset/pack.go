package dataset

import "slices"

// plan lists the samples of each row of an epoch: row r holds
// samples[starts[r]:starts[r+1]].
type plan struct {
	epoch           int
	samples, starts []uint32
}

func (p *plan) rows() int { return len(p.starts) - 1 }

func (p *plan) row(r int) []uint32 { return p.samples[p.starts[r]:p.starts[r+1]] }

// plan returns the plan of an epoch. It depends only on the options and the
// epoch, so a State need not hold it.
func (b *Batcher) plan(epoch int) *plan {
	b.planning.Lock()
	defer b.planning.Unlock()
	for _, p := range b.plans {
		if p != nil && p.epoch == epoch {
			return p
		}
	}
	p := &plan{epoch: epoch}
	if b.opts.Streams {
		p.samples, p.starts = b.streams(epoch)
	} else {
		p.samples = inOrder(b.data.Len())
		if !b.opts.InOrder {
			p.samples = b.data.order(b.opts.Seed, epoch)
		}
		if b.opts.Pack {
			p.samples, p.starts = pack(p.samples, b.data.Length, b.opts.Length)
		} else {
			p.starts = inOrder(len(p.samples) + 1)
		}
	}
	b.plans[1], b.plans[0] = b.plans[0], p
	return p
}

// openRows is the number of unfinished rows that packing chooses from. More rows
// fill a little better and depart further from the shuffled order.
const openRows = 64

// openRow is a row that still has free tokens.
type openRow struct {
	samples []uint32
	free    int
}

// pack assigns samples to rows of size tokens: each sample, in the given order,
// goes to the open row that it fits best. Row r holds
// samples[starts[r]:starts[r+1]].
func pack(order []uint32, length func(sample int) int, size int) (samples, starts []uint32) {
	starts = []uint32{0}
	var rows []openRow
	finish := func(r int) {
		samples = append(samples, rows[r].samples...)
		starts = append(starts, uint32(len(samples)))
		rows = slices.Delete(rows, r, r+1)
	}
	for _, i := range order {
		need := length(int(i))
		r := bestFit(rows, need)
		if r < 0 {
			if len(rows) == openRows {
				finish(bestFit(rows, 0))
			}
			rows = append(rows, openRow{free: size})
			r = len(rows) - 1
		}
		rows[r].samples = append(rows[r].samples, i)
		if rows[r].free -= need; rows[r].free == 0 {
			finish(r)
		}
	}
	for len(rows) > 0 {
		finish(0)
	}
	return samples, starts
}

// bestFit returns the first of the fullest rows that have need free tokens, or
// -1 if none has.
func bestFit(rows []openRow, need int) int {
	best := -1
	for r, row := range rows {
		if row.free >= need && (best < 0 || row.free < rows[best].free) {
			best = r
		}
	}
	return best
}
