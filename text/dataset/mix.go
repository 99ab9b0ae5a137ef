package dataset

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math"
	"slices"
)

// part is one data set of a mixture: samples [start, start+samples) of it.
type part struct {
	start, samples int
	weight         float64
	epoch          int // how many samples an epoch takes
}

// Mix joins data sets into one, of whose samples each gives the share that its weight has among all
// weights. An epoch of the mixture has as many samples as the data sets together. A data set is
// passed through in a shuffled order, and when it ends, again in another one. Each epoch goes on
// where the last one stopped, so that the samples of a data set are used equally often, give or
// take one. A Batcher that reads in order ignores the weights and reads each sample once.
func Mix(sets []*Dataset, weights []float64) (*Dataset, error) {
	if len(weights) != len(sets) {
		return nil, fmt.Errorf("data set: %s for %s: give one for each",
			Count(len(weights), "weight"), Count(len(sets), "data set"))
	}
	mixed := new(Dataset)
	var parts []part
	for i, set := range sets {
		if !(weights[i] > 0) || math.IsInf(weights[i], 1) {
			return nil, fmt.Errorf("data set: weight %d is %g, expected a number above 0", i+1,
				weights[i])
		}
		if set.parts != nil {
			return nil, errors.New("data set: a mixture cannot be mixed again")
		}
		parts = append(parts, part{start: mixed.Len(), samples: set.Len(), weight: weights[i]})
		mixed.Append(set)
	}
	return mixed, mixed.setParts(parts)
}

// setParts makes d a mixture. It decides how many samples of each part an epoch takes.
func (d *Dataset) setParts(parts []part) error {
	sum, left := 0.0, d.Len()
	for _, p := range parts {
		sum += p.weight
	}
	rest := make([]float64, len(parts))
	for i := range parts {
		share := parts[i].weight / sum * float64(d.Len())
		parts[i].epoch = int(share)
		rest[i] = share - math.Floor(share)
		left -= parts[i].epoch
	}
	for ; left > 0; left-- { // the largest remainders are rounded up
		i := slices.Index(rest, slices.Max(rest))
		parts[i].epoch++
		rest[i] = -1
	}
	for i, p := range parts {
		if p.samples == 0 || p.epoch == 0 {
			return fmt.Errorf("data set: part %d of the mixture has %s, and weight %g gives %d of "+
				"the %d samples of an epoch: give it more weight or leave it out", i+1,
				Count(p.samples, "sample"), p.weight, p.epoch, d.Len())
		}
	}
	d.parts = parts
	return nil
}

// order returns the samples of an epoch in the order of training.
func (d *Dataset) order(seed uint64, epoch int) []uint32 {
	order := shuffled(d.Len(), seed, uint64(epoch))
	if d.parts == nil {
		return order
	}
	mixed := make([]uint32, 0, len(order))
	for i, p := range d.parts {
		first := epoch * p.epoch // of the samples that the part has given
		for pass := first / p.samples; pass*p.samples < first+p.epoch; pass++ {
			// The streams of epochs are small numbers, that of Split is 1<<63.
			samples := shuffled(p.samples, seed, 1<<62|uint64(i)<<40|uint64(pass))
			from := max(first-pass*p.samples, 0)
			to := min(first+p.epoch-pass*p.samples, p.samples)
			for _, s := range samples[from:to] {
				mixed = append(mixed, uint32(p.start)+s)
			}
		}
	}
	for i, at := range order {
		order[i] = mixed[at]
	}
	return order
}

// Share is what one data set gives to a mixture.
type Share struct {
	Samples float64 `json:"samples"` // share of the samples
	Tokens  float64 `json:"tokens"`  // share of the tokens
	Passes  float64 `json:"passes"`  // passes over the data set in an epoch
}

// Shares returns the shares of the data sets of a mixture. Those of tokens are the mean over many
// epochs.
func (d *Dataset) Shares() []Share {
	shares := make([]Share, len(d.parts))
	sum := 0.0
	for i, p := range d.parts {
		tokens := 0
		for s := range p.samples {
			tokens += d.Length(p.start + s)
		}
		passes := float64(p.epoch) / float64(p.samples)
		shares[i] = Share{Samples: float64(p.epoch) / float64(d.Len()),
			Tokens: float64(tokens) * passes, Passes: passes}
		sum += shares[i].Tokens
	}
	for i := range shares {
		shares[i].Tokens /= sum
	}
	return shares
}

// mixedHash is the hash of a mixture of samples with hash h.
func (d *Dataset) mixedHash(h [sha256.Size]byte) [sha256.Size]byte {
	return sha256.Sum256(fmt.Appendf(nil, "%x: %v", h, d.parts))
}
