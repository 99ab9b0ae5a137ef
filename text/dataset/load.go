package dataset

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"conquer/text/tokenizer"
)

// Options says how records become samples.
type Options struct {
	// MaxLength is the longest sample in tokens, 0 for no limit. Instructions,
	// chats and pairs are cut there; plain text continues in the next sample.
	MaxLength int
	// Layout requires one layout. RawText also reads JSON files as plain text.
	// Preference must be set to read pairs.
	Layout Layout
	// Inputs are given to the chat template with each record that does not have
	// them itself.
	Inputs tokenizer.ChatInputs
	// Validation chooses the validation files of a folder rather than those to
	// learn from, see Choose.
	Validation bool
	// Columns maps fields to the names that the data has for them.
	Columns *Columns
	// SkipBad leaves out and counts records that cannot be read or rendered, rather than failing
	// at the first one.
	SkipBad bool
	// LastAnswer restricts the loss to the last turn of the assistant.
	LastAnswer bool
	// Cache is a folder in which the encoded samples are kept, so that the next Load of the same
	// files with the same tokenizer, options and program reads them instead of encoding again. ""
	// keeps none. The tokenizer needs a fixed time if its chat template shows the time.
	Cache string
	// Notice, if it is not nil, receives a message about a damaged file of Cache, or why samples
	// are not kept.
	Notice func(message string)
	// Progress, if it is not nil, receives the number of bytes read so far and in
	// total. An error from it ends the reading.
	Progress func(done, total int64) error

	prompts *promptCache // set by Load
	all     bool         // every column is read, whatever its name; set by Rows
	longest int          // bytes of a record, or 0 for maxRecord; set by openFile
}

// Load finds the samples in path and encodes them with tok. path is one of
//
//   - a .json file: an array of records, or one record a line;
//   - a .jsonl or .ndjson file: one record a line;
//   - a .csv or .tsv file: one record a row; the first row names the columns;
//   - a .arrow file of record batches, or a stream of them: one record a row.
//     If the column tokens holds integers rather than lists, each batch is one
//     document, as in foundation-model-stack's shards;
//   - a .parquet file: one record a row;
//   - a .tar.gz or .tgz archive: each file in it as if it were in a folder;
//   - a folder: the files in it that [Choose] chooses, in the order of the names.
//     A UTF-8 file that holds no records is one text. Names that begin with a dot
//     are skipped;
//   - one of these files compressed as .gz or .zst;
//   - any other file: one text.
//
// An instruction is rendered with the tokenizer's chat template as one user turn
// (instruction, a blank line, input) and one assistant turn. Without a template
// it is rendered with the prompt of Stanford's Alpaca, and the answer ends with
// the end-of-text token. Texts and documents of tokens end with that token too.
// Both answers of a preference record are rendered like an instruction's.
//
// Load reads and encodes everything once, so errors appear before training
// starts. An error names the file, the line or row, and what was expected. The
// files stay mapped into memory until Close and must not change. Archives,
// Parquet files and Arrow streams are unpacked into the folder for temporary
// files (TMPDIR).
func Load(path string, tok *tokenizer.Tokenizer, opts Options) (*Dataset, error) {
	maps := new(mappings)
	d, err := load(path, tok, opts, maps)
	if err != nil {
		maps.close()
		return nil, fmt.Errorf("data set: %w", err)
	}
	return d, nil
}

func load(path string, tok *tokenizer.Tokenizer, opts Options, maps *mappings) (*Dataset, error) {
	encode := func(keep *storedWriter) (*Dataset, error) {
		return encodePath(path, tok, opts, maps, keep)
	}
	if opts.Cache == "" {
		return encode(nil)
	}
	s, err := newStore(path, tok, opts)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return encode(nil)
	}
	d := s.load(opts)
	if d == nil {
		unlock, err := s.lock(opts)
		if err != nil {
			return nil, err
		}
		if unlock == nil {
			return encode(nil)
		}
		defer unlock()
		if d = s.load(opts); d == nil { // no other process was faster
			return s.fill(tok, opts, encode)
		}
	}
	if opts.Progress != nil {
		size := s.size()
		if err := opts.Progress(size, size); err != nil {
			d.Close()
			return nil, err
		}
	}
	return d, nil
}

// encodePath encodes the files in path. Samples are also given to keep, unless it is nil.
func encodePath(path string, tok *tokenizer.Tokenizer, opts Options, maps *mappings,
	keep *storedWriter) (*Dataset, error) {
	files, chosen, err := openFiles(path, opts, maps)
	if err != nil {
		return nil, err
	}
	return encodeFiles(path, files, chosen, tok, opts, maps, keep)
}

// encodeFiles encodes the records of open files once and remembers where their samples are.
func encodeFiles(path string, files []file, chosen Chosen, tok *tokenizer.Tokenizer, opts Options,
	maps *mappings, keep *storedWriter) (*Dataset, error) {
	opts.prompts = new(promptCache)
	d := &Dataset{Chosen: chosen, maps: []*mappings{maps}, keep: keep}
	defer func() { d.keep = nil }()
	d.Report.Skipped = len(chosen.Skipped)
	done, total := int64(0), int64(0)
	for _, f := range files {
		total += f.size()
	}
	cache := new(cache)
	for _, f := range files {
		s := &reader{f, tok, opts, cache, maps}
		d.sources = append(d.sources, s)
		d.Files = append(d.Files, FileReport{Name: f.title(), Layouts: map[Layout]int{}})
		progress := func(bytes int64) error {
			if opts.Progress == nil {
				return nil
			}
			return opts.Progress(done+bytes, total)
		}
		if err := d.index(s, progress); err != nil {
			return nil, err
		}
		if err := progress(f.size()); err != nil {
			return nil, err
		}
		done += f.size()
		d.Report.merge(d.Files[len(d.Files)-1].Report)
	}
	if len(d.refs) == 0 {
		remedy := ""
		if len(d.Bad) > 0 {
			remedy = ": " + d.Bad[0]
		}
		if d.Report.Truncated > 0 {
			remedy = fmt.Sprintf(": give a --sequence_length of more than %d", opts.MaxLength)
		}
		return nil, fmt.Errorf("%s: no sample to learn from (%s)%s", path, d.Report, remedy)
	}
	return d, nil
}

// Records are encoded in parallel: at most indexBatch, of about indexBytes and one more.
const (
	indexBatch = 256
	indexBytes = 32 << 20
)

// index adds the samples of s, the last source, to d.
func (d *Dataset) index(s *reader, progress func(bytes int64) error) error {
	total := sha256.New()
	total.Write(d.hash[:])
	positions := make([]int64, 0, indexBatch)
	flush := func() error {
		if len(positions) == 0 {
			return nil
		}
		for i, r := range s.readAll(positions) {
			if r.err != nil && s.opts.SkipBad && isBadRecord(r.err) {
				d.addBad(r.err.Error())
				continue
			}
			if r.err != nil && d.numbered > 0 && isBadRecord(r.err) { // others were good
				return fmt.Errorf("%w; correct the record, or leave it out with --on_bad_record "+
					"skip", r.err)
			}
			if r.err != nil {
				return r.err
			}
			total.Write(r.hash[:])
			d.addRecord(positions[i], r.encoded)
		}
		last := positions[len(positions)-1]
		positions = positions[:0]
		return progress(s.offset(last))
	}
	reached := int64(0)
	err := guarded(func() error {
		return s.scan(func(at int64) error {
			reached = at
			positions = append(positions, at)
			if len(positions) < cap(positions) && s.offset(at)-s.offset(positions[0]) < indexBytes {
				return nil
			}
			return flush()
		})
	})
	if broken, ok := err.(damage); ok { // from scan itself; errors of records are located already
		return s.locate(reached, broken)
	}
	if err == nil {
		err = flush()
	}
	if err == nil {
		err = s.checkColumns()
	}
	total.Sum(d.hash[:0])
	return err
}

// isBadRecord reports whether an error is one of a record, rather than of its file or of the
// tokenizer.
func isBadRecord(err error) bool {
	_, damaged := errors.AsType[damage](err)
	return !damaged && !errors.Is(err, errUnpacks) && !errors.Is(err, errNoTemplate)
}

// maxBad is how many of the records that were skipped are described.
const maxBad = 5

// addBad counts a record that is skipped.
func (d *Dataset) addBad(problem string) {
	d.Files[len(d.Files)-1].Bad++
	if len(d.Bad) < maxBad {
		d.Bad = append(d.Bad, problem)
	}
}

// addRecord adds the samples of one record that have targets.
func (d *Dataset) addRecord(at int64, e encoded) {
	report := &d.Files[len(d.Files)-1]
	if !e.continued {
		report.Records++
		report.Layouts[e.layout]++
		d.numbered++
	}
	report.Truncated += e.truncated
	report.Unrendered += e.answers
	report.Unreasoned += e.reasoning
	for i, sample := range e.samples {
		if !report.add(sample) {
			continue
		}
		d.refs = append(d.refs, newRef(at, uint32(len(d.sources)-1), uint32(i), len(sample.IDs),
			int32(sample.targets()), sample.Continues))
		if id := slices.Max(sample.IDs); id > d.largest {
			d.largest, d.largestIn = id, d.refs[len(d.refs)-1]
		}
		if d.keep != nil {
			d.keep.add(d.numbered, sample)
		}
	}
}

// checkColumns returns an error if a mapped column is in no record of the file. Files that have a
// list of their columns were checked when they were opened.
func (s *reader) checkColumns() error {
	var err error
	switch f := s.file.(type) {
	case *lines:
		err = f.names.err()
	case *array:
		err = f.names.err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.title(), err)
	}
	return nil
}

// source is where the samples of a data set are read.
type source interface {
	sample(r ref) (Sample, error)
	// where names the file and the line or row of a position.
	where(at int64) string
	// recordOf returns a number that the samples of one record share.
	recordOf(r ref) int64
}

// reader is a file, the settings with which its records are encoded, and the
// cache of encoded records, which all readers of a data set share.
type reader struct {
	file
	tok   *tokenizer.Tokenizer
	opts  Options
	cache *cache
	maps  *mappings
}

// encoded is the result of encoding one record.
type encoded struct {
	layout    Layout
	samples   []Sample
	truncated int
	omitted
	continued bool // the record continues the text of the previous one
}

// omitted counts what the chat template does not render of the answers to learn.
type omitted struct {
	answers   int
	reasoning int // answers without their reasoning
}

// cost is what caching a record counts, in tokens. A record and a sample take as much as some
// beside their own.
func (e encoded) cost() int {
	n := 32
	for _, s := range e.samples {
		n += len(s.IDs) + 12
	}
	return n
}

// indexed is a record's encoding with its hash, or an error.
type indexed struct {
	encoded
	hash [sha256.Size]byte
	err  error
}

// readAll reads the records at positions on all cores and returns them in order.
func (s *reader) readAll(positions []int64) []indexed {
	results := make([]indexed, len(positions))
	var wg sync.WaitGroup
	workers := max(1, min(runtime.GOMAXPROCS(0), len(positions)))
	for w := range workers {
		wg.Go(func() {
			for i := w; i < len(positions); i += workers {
				r := &results[i]
				if r.encoded, r.err = s.read(positions[i]); r.err == nil {
					r.hash = hashSamples(r.samples)
				}
			}
		})
	}
	wg.Wait()
	return results
}

// read returns the samples of the record at a position, from the cache if they
// are there.
func (s *reader) read(at int64) (e encoded, err error) {
	err = s.maps.whileOpen(func() error {
		known := false
		if e, known = s.cache.get(s, at); known {
			return nil
		}
		return guarded(func() (err error) { e, err = s.encode(at); return err })
	})
	if err != nil {
		return e, s.locate(at, err)
	}
	return e, nil
}

// encode reads and encodes the record at a position and caches the result.
func (s *reader) encode(at int64) (e encoded, err error) {
	r, err := s.record(at)
	if err != nil {
		return e, err
	}
	if most := longestRecord(s.maps.packed); r.size() > most {
		return e, errTooLong(most)
	}
	if most := longestFor(s.maps.packed); 4*len(r.ids) > most {
		return e, errTooLong(most)
	}
	if e, err = r.encode(s.tok, s.opts); err != nil {
		return e, err
	}
	e.layout, e.continued = r.layout, r.lead != ""
	// Reading token ids again is as fast as caching them, unless many samples share them.
	if r.layout != Tokens || len(e.samples) > 1 {
		s.cache.put(s, at, e)
	}
	return e, nil
}

// sample implements source.
func (s *reader) sample(r ref) (Sample, error) {
	e, err := s.read(r.at)
	if err == nil {
		if int(r.index) < len(e.samples) && len(e.samples[r.index].IDs) == r.length() {
			return e.samples[r.index], nil
		}
		err = s.locate(r.at, errors.New("the file changed while it was in use"))
	}
	return Sample{}, err
}

// recordOf implements source.
func (s *reader) recordOf(r ref) int64 {
	if _, one := s.file.(*plain); one { // its blocks are one text
		return 0
	}
	return r.at
}

// locate adds the file and the line or row of a record to an error.
func (s *reader) locate(at int64, err error) error {
	where := ""
	if s.maps.whileOpen(func() error { where = s.where(at); return nil }) != nil {
		return err
	}
	return fmt.Errorf("%s: %w", where, err)
}

// maxCached is the number of tokens to cache, at 8 bytes each.
var maxCached = 1 << 24 // tests lower it

// cache keeps encoded records, so that a data set that fits is encoded once.
type cache struct {
	mu      sync.Mutex
	records map[cacheKey]encoded
	tokens  int
}

type cacheKey struct {
	source *reader
	at     int64
}

func (c *cache) get(s *reader, at int64) (encoded, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.records[cacheKey{s, at}]
	return e, ok
}

// put adds a record and evicts others while the cache is too large. Samples are
// read in random order, so any other record is as good to evict as another.
func (c *cache) put(s *reader, at int64, e encoded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.records == nil {
		c.records = map[cacheKey]encoded{}
	}
	if _, ok := c.records[cacheKey{s, at}]; ok {
		return
	}
	c.records[cacheKey{s, at}] = e
	c.tokens += e.cost()
	for key, other := range c.records {
		if c.tokens <= maxCached {
			break
		}
		if key == (cacheKey{s, at}) {
			continue // a record of any size is encoded once for the samples that follow each other
		}
		c.tokens -= other.cost()
		delete(c.records, key)
	}
}
