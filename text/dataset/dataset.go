package dataset

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"

	"conquer/text/tokenizer"
)

// IgnoreLabel is the label of a token that bears no loss, as in Hugging Face.
const IgnoreLabel int32 = -100

// Sample is one example to learn from. Labels has the length of IDs and is
// aligned with it, not shifted: Labels[i] is IDs[i], or IgnoreLabel where
// nothing is to be learned. Whoever computes the loss compares the prediction
// made at i with Labels[i+1].
//
// A pair of answers is one sample: the preferred text, and from Second on the
// other.
type Sample struct {
	IDs    []int32
	Labels []int32
	Second int // where the second text of a pair begins; 0 for a sample that is one text
}

// texts is where each text of the sample ends.
func (s Sample) texts() []int {
	if s.Second > 0 {
		return []int{s.Second, len(s.IDs)}
	}
	return []int{len(s.IDs)}
}

// Dataset is a list of samples in a fixed order: either Samples, or what
// Load found in files, which may be more than memory holds. Of those it
// keeps where each one lies and how long it is, 24 bytes; At reads it.
// At and NewBatcher leave it as it is and may be called by several goroutines.
type Dataset struct {
	Samples []Sample
	Report  Report

	refs    []ref
	shards  []*shard
	maps    []*mappings
	hash    [sha256.Size]byte // of all samples in refs
	largest int32             // of the token ids in refs
	at      string            // where that one is
}

// ref is a sample in a file.
type ref struct {
	at    int64  // the record, as in file
	shard uint32 // the file
	piece uint32 // which sample of the record

	length, targets int32
}

// shard is a file, what its records are encoded with, and where those that were
// encoded last are kept.
type shard struct {
	file
	tok       *tokenizer.Tokenizer
	maxLength int
	kept      *kept
	maps      *mappings
}

// Report says what became of the input.
type Report struct {
	Records   int // instructions, conversations or texts read
	Samples   int // samples made of them
	Pairs     int // of these, pairs of texts
	Tokens    int // tokens in the samples
	Targets   int // tokens that bear loss
	Truncated int // samples cut at MaxLength
	Dropped   int // samples with nothing to learn, most often because the prompt alone fills MaxLength
	Skipped   int // files that are not text
}

// Count says how many of something there are: "1 token", "2 tokens".
func Count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

func (r Report) String() string {
	what := "sample"
	if r.Pairs > 0 {
		what = "pair"
	}
	s := fmt.Sprintf("%s from %s, %s, %d of them targets", Count(r.Samples, what), Count(r.Records, "record"), Count(r.Tokens, "token"), r.Targets)
	for _, part := range []struct {
		n    int
		what string
	}{{r.Truncated, "truncated"}, {r.Dropped, "dropped (nothing to learn)"}} {
		if part.n > 0 {
			s += fmt.Sprintf(", %d %s", part.n, part.what)
		}
	}
	if r.Skipped > 0 {
		s += ", " + Count(r.Skipped, "file") + " skipped (not text)"
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
	// Tokens records have the field tokens, a text's ids: encoded already. Loss
	// is on every token.
	Tokens Layout = "tokens"
	// Preference records have the fields prompt, chosen and rejected: strings,
	// or lists of messages as Chat has them. Each becomes a sample of two texts,
	// with labels on the answers.
	Preference Layout = "preference"
)

// Options says how records become samples.
type Options struct {
	// MaxLength is the longest sample in tokens, 0 for no limit. Instructions
	// and chats are cut there; raw text goes on in a further sample.
	MaxLength int
	// Layout insists on one layout; RawText also reads JSON files as plain text.
	// Pairs are read where Preference is insisted on alone.
	Layout Layout
	// Progress, where it is not nil, hears how many bytes of all have been read, and can end the reading with an error.
	Progress func(done, total int64) error
}

// Load finds the samples in path, as tok encodes them. path is one of
//
//   - a .json file: an array of records;
//   - a .jsonl file: one record a line;
//   - a .arrow file of record batches, or a stream of them: one record a row.
//     Where the column tokens holds integers rather than lists, each batch is
//     one document, as in foundation-model-stack's shards;
//   - a .parquet file: one record a row;
//   - a .tar.gz or .tgz archive: each file in it as if it lay in a folder;
//   - a folder: every file in it, in the order of the names; anything that holds
//     no records and is UTF-8 text is one text. Names that begin with a dot are
//     passed over, and everything but .arrow and .parquet where there are any;
//   - any other file: one text.
//
// Instructions are rendered with the tokenizer's chat template as one user turn
// (instruction, a blank line, input) and one assistant turn, or, where there is
// no template, with the prompt of Stanford's Alpaca; the answer then ends with
// the end-of-text token. So do texts and documents of tokens. Both answers of a
// preference record are rendered so.
//
// Everything is read and encoded once, so that an error comes before anything
// else does: it names the file, the line or row and what was expected. The files
// stay mapped into memory until Close and must not change; archives, Parquet files and Arrow
// streams are unpacked into the folder for temporary files (TMPDIR).
func Load(path string, tok *tokenizer.Tokenizer, opts Options) (*Dataset, error) {
	maps := new(mappings)
	d, err := loadFiles(path, tok, opts, maps)
	if err != nil {
		maps.close()
		return nil, fmt.Errorf("data set: %w", err)
	}
	return d, nil
}

func loadFiles(path string, tok *tokenizer.Tokenizer, opts Options, maps *mappings) (*Dataset, error) {
	files, skipped, err := openFiles(path, opts.Layout, maps)
	if err != nil {
		return nil, err
	}
	d := &Dataset{Report: Report{Skipped: skipped}, maps: []*mappings{maps}}
	done, total := int64(0), int64(0)
	for _, f := range files {
		total += f.passed(-1)
	}
	kept := new(kept)
	for _, f := range files {
		d.shards = append(d.shards, &shard{f, tok, opts.MaxLength, kept, maps})
		progress := func(at int64) error {
			if opts.Progress == nil {
				return nil
			}
			return opts.Progress(done+f.passed(at), total)
		}
		if err := d.index(progress); err != nil {
			return nil, err
		}
		if err := progress(-1); err != nil {
			return nil, err
		}
		done += f.passed(-1)
	}
	if len(d.refs) == 0 {
		remedy := ""
		if d.Report.Truncated > 0 {
			remedy = fmt.Sprintf(": give samples more than %d tokens", opts.MaxLength)
		}
		return nil, fmt.Errorf("%s: no sample to learn from (%s)%s", path, d.Report, remedy)
	}
	return d, nil
}

// Close lets go of the files. The data set's samples cannot be read from then on,
// nor those of data sets that were split from it or that it was appended to.
func (d *Dataset) Close() (err error) {
	for _, m := range d.maps {
		err = errors.Join(err, m.close())
	}
	return err
}

// index finds the samples of the last file, and says how far it is in it.
func (d *Dataset) index(progress func(at int64) error) error {
	s := d.shards[len(d.shards)-1]
	// Encoding dominates, so it is spread over the cores; results keep the order
	// of the records.
	type result struct {
		unit
		hash [sha256.Size]byte
		err  error
	}
	total := sha256.New()
	total.Write(d.hash[:])
	positions := make([]int64, 0, 256)
	reached := int64(0)
	flush := func() error {
		results := make([]result, len(positions))
		var wg sync.WaitGroup
		workers := max(1, min(runtime.GOMAXPROCS(0), len(positions)))
		for w := range workers {
			wg.Go(func() {
				for i := w; i < len(positions); i += workers {
					r := &results[i]
					if r.unit, r.err = s.read(positions[i]); r.err == nil {
						r.hash = hashSamples(r.samples)
					}
				}
			})
		}
		wg.Wait()
		for i, r := range results {
			if r.err != nil {
				return r.err
			}
			total.Write(r.hash[:])
			if !r.continued {
				d.Report.Records++
			}
			d.Report.Truncated += r.truncated
			for piece, sample := range r.samples {
				if !d.Report.add(sample) {
					continue
				}
				d.refs = append(d.refs, ref{positions[i], uint32(len(d.shards) - 1), uint32(piece), int32(len(sample.IDs)), int32(sample.targets())})
				if id := slices.Max(sample.IDs); id > d.largest {
					d.largest, d.at = id, s.where(positions[i])
				}
			}
		}
		if len(positions) == 0 {
			return nil
		}
		last := positions[len(positions)-1]
		positions = positions[:0]
		return progress(last)
	}
	err := guarded(func() error {
		return s.scan(func(at int64) error {
			reached = at
			if positions = append(positions, at); len(positions) < cap(positions) {
				return nil
			}
			return flush()
		})
	})
	if broken, ok := err.(damage); ok { // met by scan itself: what reads a record names it
		return s.failed(reached, broken)
	}
	if err == nil {
		err = flush()
	}
	total.Sum(d.hash[:0])
	return err
}

// unit is what a record was encoded to.
type unit struct {
	samples   []Sample
	truncated int
	continued bool // from the record before
}

// read returns the samples of a record.
func (s *shard) read(at int64) (u unit, err error) {
	err = s.maps.during(func() error {
		known := false
		if u, known = s.kept.get(s, at); known {
			return nil
		}
		return guarded(func() (err error) { u, err = s.encode(at); return err })
	})
	if err != nil {
		return u, s.failed(at, err)
	}
	return u, nil
}

// encode reads a record and encodes it.
func (s *shard) encode(at int64) (u unit, err error) {
	r, err := s.record(at)
	if err != nil {
		return u, err
	}
	u.continued = r.lead != ""
	if r.layout == Preference {
		pair, truncated, err := pairSample(s.tok, &r.pair, s.maxLength)
		if err != nil {
			return u, err
		}
		if u.samples = []Sample{pair}; truncated {
			u.truncated++
		}
	} else if u.samples, err = r.samples(s.tok, s.maxLength); err != nil {
		return u, err
	}
	for i, sample := range u.samples {
		if s.maxLength > 0 && len(sample.IDs) > s.maxLength && sample.Second == 0 {
			u.samples[i] = Sample{IDs: sample.IDs[:s.maxLength], Labels: sample.Labels[:s.maxLength]}
			u.truncated++
		}
	}
	if r.layout != Tokens { // which are as quickly read again
		s.kept.put(s, at, u)
	}
	return u, nil
}

// failed says of an error where it was met.
func (s *shard) failed(at int64, err error) error {
	place := ""
	if s.maps.during(func() error { place = s.where(at); return nil }) != nil {
		return err
	}
	return fmt.Errorf("%s: %w", place, err)
}

// kept holds the records that were encoded last, so that a data set that fits
// is encoded once.
type kept struct {
	mu     sync.Mutex
	units  map[place]unit
	tokens int
}

type place struct {
	shard *shard
	at    int64
}

// mostKept is how many tokens are kept, at 8 bytes each.
const mostKept = 1 << 24

func (k *kept) get(s *shard, at int64) (unit, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	u, ok := k.units[place{s, at}]
	return u, ok
}

func (k *kept) put(s *shard, at int64, u unit) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.units == nil {
		k.units = map[place]unit{}
	}
	if _, ok := k.units[place{s, at}]; ok {
		return
	}
	k.units[place{s, at}] = u
	k.tokens += u.tokens()
	for p, other := range k.units { // in no order, which is as good as any when samples are
		if k.tokens <= mostKept {
			break
		}
		k.tokens -= other.tokens()
		delete(k.units, p)
	}
}

func (u unit) tokens() (n int) {
	for _, s := range u.samples {
		n += len(s.IDs)
	}
	return n
}

// add counts a sample, and reports whether anything can be learned from it.
func (r *Report) add(s Sample) bool {
	targets := s.targets()
	if targets == 0 {
		r.Dropped++
		return false
	}
	r.Samples++
	if s.Second > 0 {
		r.Pairs++
	}
	r.Tokens += len(s.IDs)
	r.Targets += targets
	return true
}

// Len is how many samples there are.
func (d *Dataset) Len() int { return max(len(d.Samples), len(d.refs)) }

// Pairs is how many of the samples are pairs of texts.
func (d *Dataset) Pairs() (n int) {
	if d.refs != nil {
		return d.Report.Pairs
	}
	for _, s := range d.Samples {
		n += min(1, s.Second)
	}
	return n
}

// length is how many tokens sample i has.
func (d *Dataset) length(i int) int {
	if d.refs == nil {
		return len(d.Samples[i].IDs)
	}
	return int(d.refs[i].length)
}

// At returns sample i, which is not to be changed.
func (d *Dataset) At(i int) (Sample, error) {
	if d.refs == nil {
		return d.Samples[i], nil
	}
	r := d.refs[i]
	s := d.shards[r.shard]
	u, err := s.read(r.at)
	if err == nil && (int(r.piece) >= len(u.samples) || len(u.samples[r.piece].IDs) != int(r.length)) {
		err = s.failed(r.at, errors.New("changed while it was in use"))
	}
	if err != nil {
		return Sample{}, fmt.Errorf("data set: %w", err)
	}
	return u.samples[r.piece], nil
}

// Append puts the samples of other behind those of d. Either both come from
// files or neither does.
func (d *Dataset) Append(other *Dataset) {
	d.Samples = append(d.Samples, other.Samples...)
	for _, r := range other.refs {
		r.shard += uint32(len(d.shards))
		d.refs = append(d.refs, r)
	}
	d.shards = append(d.shards, other.shards...)
	d.maps = append(d.maps, other.maps...)
	if other.largest > d.largest {
		d.largest, d.at = other.largest, other.at
	}
	d.hash = sha256.Sum256(append(d.hash[:], other.hash[:]...))
	a, b := &d.Report, other.Report
	a.Records, a.Samples, a.Tokens, a.Targets = a.Records+b.Records, a.Samples+b.Samples, a.Tokens+b.Tokens, a.Targets+b.Targets
	a.Pairs += b.Pairs
	a.Truncated, a.Dropped, a.Skipped = a.Truncated+b.Truncated, a.Dropped+b.Dropped, a.Skipped+b.Skipped
}

// Hash tells data sets apart: it depends on every token and label.
func (d *Dataset) Hash() string {
	h := hashSamples(d.Samples)
	if d.refs != nil {
		h = d.hash
	}
	return hex.EncodeToString(h[:])
}

func hashSamples(samples []Sample) (sum [sha256.Size]byte) {
	h := sha256.New()
	for _, s := range samples {
		var length [8]byte
		binary.LittleEndian.PutUint64(length[:], uint64(len(s.IDs)))
		h.Write(length[:])
		binary.Write(h, binary.LittleEndian, s.IDs)
		binary.Write(h, binary.LittleEndian, s.Labels)
		if s.Second > 0 {
			binary.Write(h, binary.LittleEndian, int64(s.Second))
		}
	}
	h.Sum(sum[:0])
	return sum
}

// CheckVocabulary reports a token that a vocabulary of size ids lacks.
func (d *Dataset) CheckVocabulary(size int) error {
	if int(d.largest) >= size {
		return fmt.Errorf("data set: %s holds token %d, the model's vocabulary has %d: the tokenizer is not this model's", d.at, d.largest, size)
	}
	for i, s := range d.Samples {
		for _, id := range s.IDs {
			if id < 0 || int(id) >= size {
				return fmt.Errorf("sample %d holds token %d, the model's vocabulary has %d: the tokenizer is not this model's", i+1, id, size)
			}
		}
	}
	return nil
}

// targets counts the labels that bear loss. The first never does: there is
// nothing in front of it to predict it from. A pair whose texts are the same, or
// of which one has no label, teaches nothing.
func (s Sample) targets() (n int) {
	if s.Second > 0 {
		first := Sample{IDs: s.IDs[:s.Second], Labels: s.Labels[:s.Second]}
		second := Sample{IDs: s.IDs[s.Second:], Labels: s.Labels[s.Second:]}
		if a, b := first.targets(), second.targets(); a > 0 && b > 0 && !slices.Equal(first.IDs, second.IDs) {
			return a + b
		}
		return 0
	}
	for i, l := range s.Labels {
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
	total := d.Len()
	n := int(validation)
	if validation < 1 {
		n = max(int(validation*float64(total)+0.5), 1)
	}
	if !(validation > 0) || n >= total {
		return nil, nil, fmt.Errorf("data set: cannot take %g of %d samples for validation; expected a fraction below 1 or a smaller number", validation, total)
	}
	chosen := make([]bool, total)
	for _, i := range shuffled(total, seed, 1<<63)[:n] {
		chosen[i] = true
	}
	part := func(what string, valid bool) *Dataset {
		// The rest is told from the whole by what was asked for.
		p := &Dataset{shards: d.shards, maps: d.maps, largest: d.largest, at: d.at}
		p.hash = sha256.Sum256(fmt.Appendf(nil, "%x: %s, %d of %d, seed %d", d.hash, what, n, total, seed))
		for i, c := range chosen {
			if c != valid {
				continue
			}
			if d.refs == nil {
				p.Samples = append(p.Samples, d.Samples[i])
				p.Report.add(d.Samples[i])
				continue
			}
			p.refs = append(p.refs, d.refs[i])
			p.Report.Samples++
			p.Report.Pairs += min(1, d.Report.Pairs) // all are, or none
			p.Report.Tokens += int(d.refs[i].length)
			p.Report.Targets += int(d.refs[i].targets)
		}
		p.Report.Records = p.Len()
		return p
	}
	return part("train", false), part("validation", true), nil
}

// shuffled is a permutation of 0 … n-1 that depends on seed and stream alone,
// in every version of Go: a run that is resumed years later sees the same order.
func shuffled(n int, seed, stream uint64) []uint32 {
	order := inOrder(n)
	source := rand.NewPCG(seed, stream)
	for i := n - 1; i > 0; i-- {
		j := int(source.Uint64() % uint64(i+1))
		order[i], order[j] = order[j], order[i]
	}
	return order
}

func inOrder(n int) []uint32 {
	order := make([]uint32, n)
	for i := range order {
		order[i] = uint32(i)
	}
	return order
}
