package dataset

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
)

// Split divides d into a training and a validation set. validation is the
// fraction of records for validation if it is below 1, else their number. All
// samples of a record are on the same side. The choice depends only on seed, and
// both parts keep the order of d. It fails if either part would be empty.
func (d *Dataset) Split(validation float64, seed uint64) (train, valid *Dataset, err error) {
	records, total := d.records()
	n := total
	switch {
	case validation < 1:
		n = max(int(validation*float64(total)+0.5), 1)
	case validation < float64(total):
		n = int(validation)
	}
	if validation > 0 && total == 1 {
		return nil, nil, errors.New("the data is one record, which cannot be split: " +
			"give validation data of its own, or more records (a text file is one)")
	}
	if !(validation > 0) || n >= total {
		return nil, nil, fmt.Errorf("cannot hold out %g of %d records: expected a share above 0 "+
			"and below 1, or a smaller number of records", validation, total)
	}
	held := make([]bool, total)
	for _, i := range shuffled(total, seed, 1<<63)[:n] {
		held[i] = true
	}
	chosen := make([]bool, d.Len())
	for i := range chosen {
		chosen[i] = held[records(i)]
	}
	side := func(name string, valid bool) *Dataset {
		p := d.subset(func(i int) bool { return chosen[i] == valid })
		p.hash = sha256.Sum256(fmt.Appendf(nil, "%x: %s, %d of %d, seed %d", d.hash, name, n, total,
			seed))
		return p
	}
	train, valid = side("train", false), side("validation", true)
	if d.parts != nil {
		err = train.setParts(d.partsOf(func(i int) bool { return !chosen[i] }))
	}
	return train, valid, err
}

// partsOf returns the parts of a mixture of the samples for which keep is true.
func (d *Dataset) partsOf(keep func(i int) bool) []part {
	parts := make([]part, len(d.parts))
	start := 0
	for i, p := range d.parts {
		parts[i] = part{start: start, weight: p.weight}
		for s := range p.samples {
			if keep(p.start + s) {
				parts[i].samples++
			}
		}
		start += parts[i].samples
	}
	return parts
}

// subset returns the samples for which keep is true, without a hash.
func (d *Dataset) subset(keep func(i int) bool) *Dataset {
	p := &Dataset{sources: d.sources, maps: d.maps, largest: d.largest, largestIn: d.largestIn}
	for i := range d.Len() {
		if !keep(i) {
			continue
		}
		if d.refs == nil {
			p.Samples = append(p.Samples, d.Samples[i])
			p.Report.add(d.Samples[i])
			continue
		}
		p.refs = append(p.refs, d.refs[i])
		p.Report.Samples++
		p.Report.Pairs += min(1, d.Report.Pairs) // a file's samples are all pairs, or none is
		p.Report.Rated += min(1, d.Report.Rated)
		p.Report.Tokens += d.refs[i].length()
		p.Report.Targets += int(d.refs[i].targets)
	}
	_, p.Report.Records = p.records()
	return p
}

// records returns a function that tells the index of the record that a sample was
// made of, and the number of records.
func (d *Dataset) records() (of func(sample int) int, total int) {
	if d.refs == nil {
		return func(i int) int { return i }, len(d.Samples)
	}
	index := make([]int32, len(d.refs))
	for i, r := range d.refs {
		if i > 0 {
			before, s := d.refs[i-1], d.sources[r.source]
			if r.source != before.source || s.recordOf(r) != s.recordOf(before) {
				total++
			}
		}
		index[i] = int32(total)
	}
	return func(i int) int { return int(index[i]) }, total + min(1, len(d.refs))
}

// shuffled returns a permutation of 0 … n-1 that depends only on seed and
// stream. It does not use rand.Shuffle, so every version of Go gives the same
// order and a run can be resumed with a newer one.
func shuffled(n int, seed, stream uint64) []uint32 {
	order := inOrder(n)
	random := rand.NewPCG(seed, stream)
	for i := n - 1; i > 0; i-- {
		j := int(random.Uint64() % uint64(i+1))
		order[i], order[j] = order[j], order[i]
	}
	return order
}

// inOrder returns 0 … n-1.
func inOrder(n int) []uint32 {
	order := make([]uint32, n)
	for i := range order {
		order[i] = uint32(i)
	}
	return order
}
