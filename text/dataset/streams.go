package dataset

import (
	"errors"
	"fmt"
)

// texts returns the first sample of each text, and behind them the number of samples.
func (d *Dataset) texts() (starts []uint32) {
	for i := range d.Len() {
		if i == 0 || !d.continues(i) {
			starts = append(starts, uint32(i))
		}
	}
	return append(starts, uint32(d.Len()))
}

// checkStreams returns an error if texts cannot go on from row to row of length tokens.
func (d *Dataset) checkStreams(length int) error {
	if d.parts != nil {
		return errors.New("texts that go on in the next row cannot be of data sets with weights: " +
			"leave the weights out")
	}
	for i := 1; i < d.Len(); i++ {
		if d.continues(i) && d.Length(i-1) != length {
			return fmt.Errorf("sample %d continues sample %d, which has %d tokens and rows have "+
				"%d: load the data set with MaxLength %d", i, i-1, d.Length(i-1), length, length)
		}
	}
	return nil
}

// streams lays the texts of an epoch out in as many streams as a step has rows. Each text goes, in
// the epoch's order, to the stream with the fewest rows so far. Row t of stream s is row
// t·streams+s of the epoch, and streams that end early are filled up with empty rows. With Pack,
// whole texts and the ends of texts share a row of their stream.
func (b *Batcher) streams(epoch int) (samples, starts []uint32) {
	texts := b.data.texts()
	order := inOrder(len(texts) - 1)
	if !b.opts.InOrder {
		order = shuffled(len(order), b.opts.Seed, uint64(epoch))
	}
	type stream struct {
		rows [][]uint32
		free int // tokens of the last row
	}
	streams := make([]stream, b.opts.step())
	most := 0
	for _, text := range order {
		least := &streams[0]
		for i := range streams {
			if len(streams[i].rows) < len(least.rows) {
				least = &streams[i]
			}
		}
		for i := texts[text]; i < texts[text+1]; i++ {
			length := b.data.Length(int(i))
			if last := len(least.rows) - 1; b.opts.Pack && i == texts[text] && last >= 0 &&
				length <= least.free {
				least.rows[last] = append(least.rows[last], i)
				least.free -= length
				continue
			}
			least.rows, least.free = append(least.rows, []uint32{i}), b.opts.Length-length
		}
		most = max(most, len(least.rows))
	}
	starts = []uint32{0}
	for t := range most {
		for _, s := range streams {
			if t < len(s.rows) {
				samples = append(samples, s.rows[t]...)
			}
			starts = append(starts, uint32(len(samples)))
		}
	}
	return samples, starts
}
