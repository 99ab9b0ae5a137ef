// Package dataset reads files of text into samples of token ids and labels, and
// lays samples out in batches.
//
// [Load] reads instructions, chats, preference pairs, plain text and token ids
// from JSON, JSONL, Parquet, Arrow, text files and archives. labels.go decides
// which tokens of a record have loss. [NewBatcher] lays samples out in rows of
// equal length, padded or packed (pack.go). The order depends only on a seed,
// and a Batcher can be stopped and resumed exactly. [Mix] joins data sets by
// weights. Encoded samples can be kept in files for the next start (store.go).
package dataset

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Dataset is a list of samples in a fixed order: either Samples, or the samples that Load found in
// files. For the latter it keeps an index of 24 bytes a sample and reads a sample when At asks for
// it, so the files may be larger than memory. Several goroutines may call At and NewBatcher at
// once.
type Dataset struct {
	Samples []Sample
	Report  Report
	Files   []FileReport // of the files that were read, in their order
	Chosen  Chosen       // the files of a folder or an archive
	Bad     []string     // what was wrong with the first of the records that were skipped

	Cached bool // the samples were read from Options.Cache

	parts     []part // of a mixture, see Mix
	refs      []ref
	sources   []source
	keep      *storedWriter // while the files are read
	numbered  uint32        // records that were read
	maps      []*mappings
	hash      [sha256.Size]byte // of all samples in refs
	largest   int32             // largest token id in refs
	largestIn ref               // sample that holds it
}

// ref locates a sample in a file.
type ref struct {
	at     int64  // position of the record, see file
	source uint32 // index in Dataset.sources
	index  uint32 // index of the sample among those of the record

	size, targets int32 // size is the number of tokens, negative if the sample continues a text
}

func newRef(at int64, source, index uint32, length int, targets int32, continues bool) ref {
	r := ref{at: at, source: source, index: index, size: int32(length), targets: targets}
	if continues {
		r.size = -r.size
	}
	return r
}

// length is the number of tokens.
func (r ref) length() int { return int(max(r.size, -r.size)) }

// Len returns the number of samples.
func (d *Dataset) Len() int { return max(len(d.Samples), len(d.refs)) }

// Pairs returns how many of the samples are preference pairs.
func (d *Dataset) Pairs() (n int) {
	if d.refs != nil {
		return d.Report.Pairs
	}
	for _, s := range d.Samples {
		n += min(1, s.Second)
	}
	return n
}

// Rated returns how many of the samples are rated answers.
func (d *Dataset) Rated() (n int) {
	if d.refs != nil {
		return d.Report.Rated
	}
	for _, s := range d.Samples {
		if s.Rating != Unrated {
			n++
		}
	}
	return n
}

// Length returns the number of tokens of sample i.
func (d *Dataset) Length(i int) int {
	if d.refs == nil {
		return len(d.Samples[i].IDs)
	}
	return d.refs[i].length()
}

// continues reports whether sample i goes on with the text of sample i-1.
func (d *Dataset) continues(i int) bool {
	if d.refs == nil {
		return d.Samples[i].Continues
	}
	return d.refs[i].size < 0
}

// At returns sample i. The caller must not change it.
func (d *Dataset) At(i int) (Sample, error) {
	if d.refs == nil {
		return d.Samples[i], nil
	}
	r := d.refs[i]
	s, err := d.sources[r.source].sample(r)
	if err != nil {
		err = fmt.Errorf("data set: %w", err)
	}
	return s, err
}

// Append adds the samples of other after those of d. Either both data sets come
// from files or neither does.
func (d *Dataset) Append(other *Dataset) {
	d.Samples = append(d.Samples, other.Samples...)
	for _, r := range other.refs {
		r.source += uint32(len(d.sources))
		d.refs = append(d.refs, r)
	}
	d.sources = append(d.sources, other.sources...)
	d.maps = append(d.maps, other.maps...)
	if other.largest > d.largest {
		d.largest, d.largestIn = other.largest, other.largestIn
		d.largestIn.source += uint32(len(d.sources) - len(other.sources))
	}
	d.hash = sha256.Sum256(append(d.hash[:], other.hash[:]...))
	d.Report.merge(other.Report)
	d.Files = append(d.Files, other.Files...)
	d.Bad = append(d.Bad, other.Bad...)
	d.Bad = d.Bad[:min(len(d.Bad), maxBad)]
}

// Close unmaps the files. Afterwards the samples of d cannot be read, nor those
// of data sets that were split from it or that it was appended to.
func (d *Dataset) Close() (err error) {
	for _, m := range d.maps {
		err = errors.Join(err, m.close())
	}
	return err
}

// Hash returns a hexadecimal hash of every token and label.
func (d *Dataset) Hash() string {
	h := hashSamples(d.Samples)
	if d.refs != nil {
		h = d.hash
	}
	if d.parts != nil {
		h = d.mixedHash(h)
	}
	return hex.EncodeToString(h[:])
}

// CheckVocabulary returns an error if a token id is not below size.
func (d *Dataset) CheckVocabulary(size int) error {
	const problem = "%s holds token %d, the model's vocabulary has %d: " +
		"the tokenizer does not belong to this model"
	if int(d.largest) >= size {
		s := d.sources[d.largestIn.source]
		return fmt.Errorf("data set: "+problem, s.where(d.largestIn.at), d.largest, size)
	}
	for i, s := range d.Samples {
		for _, id := range s.IDs {
			if id < 0 || int(id) >= size {
				return fmt.Errorf(problem, fmt.Sprint("sample ", i+1), id, size)
			}
		}
	}
	return nil
}
