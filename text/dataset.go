package text

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
)

// IgnoreLabel is the label of a token that bears no loss, as in Hugging Face.
const IgnoreLabel int32 = -100

// Sample is one example to learn from. Labels has the length of IDs and is
// aligned with it, not shifted: Labels[i] is IDs[i], or IgnoreLabel where
// nothing is to be learned. Whoever computes the loss compares the prediction
// made at i with Labels[i+1].
type Sample struct {
	IDs    []int32
	Labels []int32
}

// Dataset is a list of samples in a fixed order.
type Dataset struct {
	Samples []Sample
	Report  Report
}

// Report says what became of the input.
type Report struct {
	Records   int // instructions, conversations or texts read
	Samples   int // samples made of them
	Tokens    int // tokens in the samples
	Targets   int // tokens that bear loss
	Truncated int // samples cut at MaxLength
	Dropped   int // samples with nothing to learn, most often because the prompt alone fills MaxLength
	Skipped   int // files that are not text
}

func (r Report) String() string {
	s := fmt.Sprintf("%d samples from %d records, %d tokens, %d of them targets", r.Samples, r.Records, r.Tokens, r.Targets)
	for _, part := range []struct {
		n    int
		what string
	}{{r.Truncated, "truncated"}, {r.Dropped, "dropped (nothing to learn)"}, {r.Skipped, "files skipped (not text)"}} {
		if part.n > 0 {
			s += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	return s
}

// Layout names a kind of record.
type Layout string

const (
	// AnyLayout tells the layout of each record from its fields.
	AnyLayout Layout = ""
	// Instruction records have the fields instruction, output and, if wanted,
	// input and system. Loss is on the output alone.
	Instruction Layout = "instruction"
	// Chat records have the field messages, a list of {role, content}. Loss is
	// on the assistant's turns alone.
	Chat Layout = "chat"
	// RawText is text with loss on every token: whole files, or records with
	// the field text.
	RawText Layout = "text"
)

// DatasetOptions says how records become samples.
type DatasetOptions struct {
	// MaxLength is the longest sample in tokens, 0 for no limit. Instructions
	// and chats are cut there; raw text goes on in a further sample.
	MaxLength int
	// Layout insists on one layout; RawText also reads JSON files as plain text.
	Layout Layout
}

// LoadDataset reads path and encodes it with tok. path is one of
//
//   - a .json file: an array of records;
//   - a .jsonl file: one record a line;
//   - a .tar.gz or .tgz archive: each file in it as if it lay in a folder;
//   - a folder: every file in it, in the order of the names; .json and .jsonl
//     hold records, anything else that is UTF-8 text is one text. Names that
//     begin with a dot are passed over;
//   - any other file: one text.
//
// Instructions are rendered with the tokenizer's chat template as one user turn
// (instruction, a blank line, input) and one assistant turn, or, where there is
// no template, with the prompt of Stanford's Alpaca; the answer then ends with
// the end-of-text token. An error names the file, the line and what was
// expected.
func LoadDataset(path string, tok *Tokenizer, opts DatasetOptions) (*Dataset, error) {
	records, skipped, err := readRecords(path, opts.Layout)
	if err != nil {
		return nil, fmt.Errorf("data set: %w", err)
	}
	// Encoding dominates, so it is spread over the cores; results keep the
	// order of the records.
	made := make([][]Sample, len(records))
	failed := make([]error, len(records))
	var wg sync.WaitGroup
	workers := max(1, min(runtime.GOMAXPROCS(0), len(records)))
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(records); i += workers {
				made[i], failed[i] = records[i].samples(tok, opts.MaxLength)
			}
		})
	}
	wg.Wait()
	d := &Dataset{Report: Report{Records: len(records), Skipped: skipped}}
	for i, samples := range made {
		if failed[i] != nil {
			return nil, fmt.Errorf("data set: %s: %w", records[i].where, failed[i])
		}
		for _, s := range samples {
			d.add(s, opts.MaxLength)
		}
	}
	if len(d.Samples) == 0 {
		return nil, fmt.Errorf("data set: %s: no sample to learn from (%s)", path, d.Report)
	}
	return d, nil
}

// add cuts a sample to length and keeps it if anything can be learned from it.
func (d *Dataset) add(s Sample, maxLength int) {
	if maxLength > 0 && len(s.IDs) > maxLength {
		s.IDs, s.Labels = s.IDs[:maxLength], s.Labels[:maxLength]
		d.Report.Truncated++
	}
	targets := countTargets(s.Labels)
	if targets == 0 {
		d.Report.Dropped++
		return
	}
	d.Samples = append(d.Samples, s)
	d.Report.Samples++
	d.Report.Tokens += len(s.IDs)
	d.Report.Targets += targets
}

// countTargets counts the labels that bear loss. The first never does: there
// is nothing in front of it to predict it from.
func countTargets(labels []int32) (n int) {
	for i, l := range labels {
		if i > 0 && l != IgnoreLabel {
			n++
		}
	}
	return n
}

// Split takes a validation set out of d: a fraction of the samples if
// validation is below 1, else that many. Which ones depends on seed alone; both
// parts keep the order of d. Neither may come out empty.
func (d *Dataset) Split(validation float64, seed uint64) (train, valid *Dataset, err error) {
	n := int(validation)
	if validation < 1 {
		n = max(int(validation*float64(len(d.Samples))+0.5), 1)
	}
	if !(validation > 0) || n >= len(d.Samples) {
		return nil, nil, fmt.Errorf("data set: cannot take %g of %d samples for validation; expected a fraction below 1 or a smaller number", validation, len(d.Samples))
	}
	chosen := make([]bool, len(d.Samples))
	for _, i := range shuffled(len(d.Samples), seed, 1<<63)[:n] {
		chosen[i] = true
	}
	train, valid = new(Dataset), new(Dataset)
	for i, s := range d.Samples {
		to := train
		if chosen[i] {
			to = valid
		}
		to.add(s, 0)
	}
	for _, part := range []*Dataset{train, valid} {
		part.Report.Records = len(part.Samples)
	}
	return train, valid, nil
}

// shuffled is a permutation of 0 … n-1 that depends on seed and stream alone,
// in every version of Go: a run that is resumed years later sees the same order.
func shuffled(n int, seed, stream uint64) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	source := rand.NewPCG(seed, stream)
	for i := n - 1; i > 0; i-- {
		j := int(source.Uint64() % uint64(i+1))
		order[i], order[j] = order[j], order[i]
	}
	return order
}
