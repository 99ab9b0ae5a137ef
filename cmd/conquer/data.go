package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"conquer/internal/progress"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/train"
	"conquer/train/report"
)

var dataCommand = command{
	name:    "data",
	summary: "Describe data sets as training reads them: records, samples, lengths, loss.",
	example: `# how long the samples are, and three of them with the tokens that have loss marked
conquer data --data_path train.jsonl --model_path smollm2-135m --show 3
# what training with these flags learns, and how full packed rows are
conquer data --data_path train.jsonl --tokenizer tokenizer.json --sequence_length 1024 --pack
# preference pairs, as JSON, with a picture of the lengths
conquer data --data_path examples/preferences/train.jsonl --objective dpo \
  --model_path smollm2-135m --json --plot lengths.png`,
	files: true,
	setup: setupData,
}

// dataFlags are the flags of conquer data.
type dataFlags struct {
	path, tokenizer string
	data            []string
	validation      bool
	objective       string
	lastAnswer      bool
	records         recordFlags
	chatInputs
	length int
	pack   bool
	seed   int64
	show   int
	plot   string
	json   bool
}

func setupData(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f dataFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		f.data = append(f.data, args...)
		if err := f.check(ctx); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *dataFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.data, "data_path", nil,
		"`files`, folders, archives or hf://datasets/org/name, as for train; may be repeated")
	flags.BoolVar(&f.validation, "validation", false,
		"of folders with splits, read the validation files instead of the training files")
	f.records.declare(flags)
	f.chatInputs.declare(flags)
	flags.BoolVar(&f.lastAnswer, "last_answer_only", false,
		"mark only the assistant's last turn of each chat")
	flags.StringVar(&f.objective, "objective", train.SFT, "the objective of the training: "+
		strings.Join(train.Objectives, ", "))
	group(flags, "Data")
	flags.StringVar(&f.path, "model_path", "", modelPathUsage+"; only its tokenizer is read")
	declareVerify(flags)
	flags.StringVar(&f.tokenizer, "tokenizer", "",
		"tokenizer `folder`, file or name instead of a model, or char_tokenizer")
	group(flags, "Tokenizer")
	flags.IntVar(&f.length, "sequence_length", 0,
		"maximum `tokens` of a sample, as for train; 0: samples are not cut")
	flags.BoolVar(&f.pack, "pack", false, "pack samples into rows of --sequence_length tokens")
	flags.Int64Var(&f.seed, "seed", 1, "`seed` of the order in which samples are packed")
	group(flags, "Samples")
	flags.IntVar(&f.show, "show", 0, "print the first `n` samples of each data set")
	flags.StringVar(&f.plot, "plot", "", "write a histogram of the lengths to this PNG `file`")
	flags.BoolVar(&f.json, "json", false, "print a JSON object")
	group(flags, "Output")
}

func (f *dataFlags) check(ctx context.Context) error {
	switch {
	case len(f.data) == 0:
		return usagef("--data_path is missing: give a file such as examples/lighthouse/train.jsonl")
	case f.path == "" && f.tokenizer == "":
		return usagef("give a model with --model_path, or a tokenizer with --tokenizer")
	case !slices.Contains(train.Objectives, f.objective):
		return usagef("--objective: unknown objective %q: choose one of %s", f.objective,
			strings.Join(train.Objectives, ", "))
	case f.length < 0 || f.length == 1:
		return usagef("--sequence_length is %d, expected 2 or more, or 0 for no limit", f.length)
	case f.pack && f.length == 0:
		return usagef("--pack needs --sequence_length")
	case f.show < 0:
		return usagef("--show is %d, expected 0 or more", f.show)
	case f.plot != "" && !strings.EqualFold(filepath.Ext(f.plot), ".png"):
		return usagef("--plot: %s does not end with .png", f.plot)
	}
	if err := f.records.check(len(f.data)); err != nil {
		return err
	}
	if err := checkData("data_path", f.data); err != nil {
		return err
	}
	if f.plot != "" {
		if _, err := os.Stat(filepath.Dir(f.plot)); err != nil {
			return fmt.Errorf("--plot: %w", err)
		}
	}
	return f.readInputs(ctx)
}

// dataInfo is the result of conquer data; --json prints it.
type dataInfo struct {
	Data    []setInfo  `json:"data"`
	Total   countInfo  `json:"total"`
	Lengths lengthInfo `json:"lengths"`
	Packed  *packInfo  `json:"packed,omitempty"`
	Bytes   int64      `json:"bytes"`
	Seconds float64    `json:"seconds"` // that reading and encoding took
	length  int        // --sequence_length
	tok     *tokenizer.Tokenizer
}

// setInfo describes what one path holds.
type setInfo struct {
	Path    string         `json:"path"`
	Files   []fileCounts   `json:"files"`
	HeldOut []string       `json:"held_out,omitempty"`
	Bad     []string       `json:"bad_records,omitempty"` // the first of them
	Mix     *dataset.Share `json:"mix,omitempty"`
	Shown   []sampleInfo   `json:"shown,omitempty"`
	Cached  bool           `json:"cached"` // --data_cache had the samples
}

type fileCounts struct {
	Name    string                 `json:"name"`
	Layouts map[dataset.Layout]int `json:"layouts"` // records of each layout
	countInfo
}

// countInfo are the counts of dataset.Report.
type countInfo struct {
	Records    int `json:"records"`
	Samples    int `json:"samples"`
	Pairs      int `json:"pairs,omitempty"`
	Rated      int `json:"rated_answers,omitempty"`
	Tokens     int `json:"tokens"`
	Loss       int `json:"tokens_with_loss"`
	Cut        int `json:"cut_samples"`
	Dropped    int `json:"samples_without_loss"`
	Unrendered int `json:"unrendered_answers"`
	Unreasoned int `json:"answers_without_their_reasoning"`
	Bad        int `json:"bad_records"`
}

func countsOf(r dataset.Report) countInfo {
	return countInfo{Records: r.Records, Samples: r.Samples, Pairs: r.Pairs, Rated: r.Rated,
		Tokens: r.Tokens, Loss: r.Targets, Cut: r.Truncated, Dropped: r.Dropped,
		Unrendered: r.Unrendered, Unreasoned: r.Unreasoned, Bad: r.Bad}
}

// lengthInfo describes the tokens of the samples.
type lengthInfo struct {
	Min    int          `json:"min"`
	Median int          `json:"median"`
	P90    int          `json:"p90"`
	P99    int          `json:"p99"`
	Max    int          `json:"max"`
	Bins   []report.Bin `json:"bins"`
}

// packInfo describes the rows of the first epoch with --pack.
type packInfo struct {
	Rows   int     `json:"rows"`
	Length int     `json:"length"`
	Filled float64 `json:"filled"` // share of the tokens that is not padding
}

// sampleInfo is a sample: one text, or the two of a preference pair.
type sampleInfo struct {
	Tokens int      `json:"tokens"`
	Rating string   `json:"rating,omitempty"` // of a rated answer: desirable or undesirable
	Texts  [][]span `json:"texts"`
}

// span is a run of tokens that all have loss, or of which none has.
type span struct {
	Text string `json:"text"`
	Loss bool   `json:"loss"`
}

func (f *dataFlags) run(ctx context.Context) error {
	tok, err := f.openTokenizer(ctx)
	if err != nil {
		return err
	}
	tok.SetClock(time.Now())
	info := &dataInfo{Data: []setInfo{}, length: f.length, tok: tok}
	var sets []*dataset.Dataset
	defer func() {
		for _, d := range sets {
			d.Close()
		}
	}()
	began := time.Now()
	for _, path := range f.data {
		s, all := setInfo{Path: path}, new(dataset.Dataset)
		sets = append(sets, all)
		shown := f.show
		var failed error
		heldOut, err := loadPath(ctx, path, f.validation, tok, func(file string) dataset.Options {
			before := info.Bytes
			return f.options(ctx, file, func(total int64) { info.Bytes = before + total })
		}, func(_ string, d *dataset.Dataset) {
			all.Append(d)
			s.Cached = d.Cached
			for i := 0; i < d.Len() && shown > 0 && failed == nil; i++ {
				var sample dataset.Sample
				if sample, failed = d.At(i); failed == nil {
					s.Shown, shown = append(s.Shown, spansOf(tok, sample)), shown-1
				}
			}
			for _, file := range d.Files {
				s.Files = append(s.Files, fileCounts{file.Name, file.Layouts,
					countsOf(file.Report)})
			}
			s.Bad = append(s.Bad, d.Bad...)
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		s.HeldOut = heldOut
		info.Data = append(info.Data, s)
	}
	if err := f.records.checkUsed(); err != nil {
		return err
	}
	all, err := f.records.join(sets)
	if err != nil {
		return err
	}
	for i, share := range all.Shares() {
		info.Data[i].Mix = &share
	}
	info.Seconds = roundThousandth(time.Since(began).Seconds())
	info.Total, info.Lengths = countsOf(all.Report), lengthsOf(all)
	if f.pack {
		if info.Packed, err = packed(all, f.length, f.seed); err != nil {
			return err
		}
	}
	if f.plot != "" {
		if err := report.PlotLengths(info.Lengths.Bins, f.plot); err != nil {
			return err
		}
	}
	if f.json {
		return printJSON(stdout, info)
	}
	out := bufio.NewWriter(stdout)
	info.print(out)
	return out.Flush()
}

// openTokenizer opens the tokenizer of the flags.
func (f *dataFlags) openTokenizer(ctx context.Context) (*tokenizer.Tokenizer, error) {
	if f.path == "" {
		return openNamedTokenizer(ctx, f.tokenizer)
	}
	path, adapter, c, err := openModel(ctx, f.path, "")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	tok, err := openTokenizer(ctx, f.tokenizer, path, adapter, c)
	if err == nil && tok == nil {
		err = fmt.Errorf("%s has no tokenizer: give one with --tokenizer", path)
	}
	return tok, err
}

func (f *dataFlags) options(ctx context.Context, path string,
	size func(total int64)) dataset.Options {
	bar := progress.Tasks(os.Stderr, progress.Bytes)
	o := dataset.Options{MaxLength: f.length, Inputs: f.inputs,
		Layout:     train.Options{Objective: f.objective}.Layout(),
		LastAnswer: f.lastAnswer, Validation: f.validation,
		Progress: func(done, total int64) error {
			bar("reading "+path, done, total)
			size(total)
			return ctx.Err()
		}}
	f.records.set(&o)
	return o
}

var ratings = map[dataset.Rating]string{dataset.Desirable: "desirable",
	dataset.Undesirable: "undesirable"}

// spansOf divides a sample into runs of tokens with and without loss.
func spansOf(tok *tokenizer.Tokenizer, s dataset.Sample) sampleInfo {
	info := sampleInfo{Tokens: len(s.IDs), Rating: ratings[s.Rating]}
	start := 0
	for _, end := range s.Ends() {
		var spans []span
		decoder := tok.Decoder(false)
		add := func(loss bool, text string) {
			if n := len(spans); n == 0 || spans[n-1].Loss != loss {
				spans = append(spans, span{Loss: loss})
			}
			spans[len(spans)-1].Text += text
		}
		for i := start; i < end; i++ {
			add(i > start && s.Labels[i] != dataset.IgnoreLabel, decoder.Next(s.IDs[i]))
		}
		if rest := decoder.Flush(); rest != "" {
			spans[len(spans)-1].Text += rest
		}
		info.Texts = append(info.Texts, spans)
		start = end
	}
	return info
}

// lengthsOf describes the lengths of the samples.
func lengthsOf(d *dataset.Dataset) lengthInfo {
	lengths := make([]int, d.Len())
	for i := range lengths {
		lengths[i] = d.Length(i)
	}
	slices.Sort(lengths)
	at := func(share float64) int { return lengths[int(share*float64(len(lengths)-1)+0.5)] }
	info := lengthInfo{Min: at(0), Median: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1)}
	width := binWidth(info.Max - info.Min + 1)
	first := info.Min / width
	for from := first * width; from <= info.Max; from += width {
		info.Bins = append(info.Bins, report.Bin{From: from, To: from + width - 1})
	}
	for _, n := range lengths {
		info.Bins[n/width-first].Samples++
	}
	return info
}

// binWidth returns the width of about 16 bins for a range of lengths: 1, 2 or 5 times a power of
// ten.
func binWidth(lengths int) int {
	for width := 1; ; width *= 10 {
		for _, w := range []int{width, 2 * width, 5 * width} {
			if lengths <= 16*w {
				return w
			}
		}
	}
}

// packed lays the samples out in rows as the first epoch of training does.
func packed(d *dataset.Dataset, length int, seed int64) (*packInfo, error) {
	b, err := dataset.NewBatcher(d, dataset.BatchOptions{Rows: 1, Length: length, Pack: true,
		Seed: uint64(seed)})
	if err != nil {
		return nil, err
	}
	return &packInfo{Rows: b.Batches(0), Length: length, Filled: b.Filled(0)}, nil
}

// maxListed is how many files of a data set are described.
const maxListed = 20

func (info *dataInfo) print(w io.Writer) {
	text := &visibleWriter{out: w}
	for _, s := range info.Data {
		fmt.Fprintln(text, s.Path)
		for i, file := range s.Files {
			if i == maxListed {
				fmt.Fprintf(text, "  and %d more files\n", len(s.Files)-maxListed)
				break
			}
			if file.Name != s.Path {
				fmt.Fprintf(text, "  %s\n", strings.TrimPrefix(file.Name, s.Path+"/"))
			}
			var layouts []string
			for _, l := range slices.Sorted(maps.Keys(file.Layouts)) {
				layouts = append(layouts, fmt.Sprintf("%d %s", file.Layouts[l], l))
			}
			fmt.Fprintf(text, "  records    %s\n", strings.Join(layouts, ", "))
			file.print(text)
		}
		for _, problem := range s.Bad {
			fmt.Fprintf(text, "  skipped    %s\n", problem)
		}
		if len(s.HeldOut) > 0 {
			fmt.Fprintf(text, "  held out   %s\n", some(s.HeldOut))
		}
		for i, sample := range s.Shown {
			fmt.Fprintf(text, "\nsample %d, %s\n", i+1, strings.TrimSuffix(
				dataset.Count(sample.Tokens, "token")+", "+sample.Rating, ", "))
			sample.print(w, isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "")
		}
		fmt.Fprintln(text)
	}
	if len(info.Data) > 1 {
		fmt.Fprintln(text, "all")
		fmt.Fprintf(text, "  records    %d\n", info.Total.Records)
		info.Total.print(text)
		fmt.Fprintln(text)
	}
	for _, s := range info.Data {
		if s.Mix != nil {
			printShares(text, []string{s.Path}, []dataset.Share{*s.Mix})
		}
	}
	info.Lengths.print(text)
	if p := info.Packed; p != nil {
		fmt.Fprintf(text, "packed: %s of %d tokens, %.1f %% filled\n",
			dataset.Count(p.Rows, "row"), p.Length, 100*p.Filled)
	}
	from := ""
	if !slices.ContainsFunc(info.Data, func(s setInfo) bool { return !s.Cached }) {
		from = " from --data_cache"
	}
	megabytes, seconds := float64(info.Bytes)/1e6, max(info.Seconds, 0.001)
	fmt.Fprintf(text, "read %.1f MB%s in %.2f s: %.1f MB/s, %s tokens/s\n", megabytes, from,
		info.Seconds, megabytes/seconds, thousands(int(float64(info.Total.Tokens)/seconds)))
}

func (c countInfo) print(w io.Writer) {
	what := ""
	switch {
	case c.Pairs > 0:
		what = " pairs"
	case c.Rated > 0:
		what = " rated answers"
	}
	fmt.Fprintf(w, "  samples    %d%s\n", c.Samples, what)
	fmt.Fprintf(w, "  tokens     %d, %d with loss (%.1f %%)\n", c.Tokens, c.Loss,
		100*float64(c.Loss)/float64(max(c.Tokens, 1)))
	for _, line := range []struct {
		n    int
		name string
		text string
	}{
		{c.Cut, "cut", "samples longer than --sequence_length"},
		{c.Dropped, "dropped", "samples without a token to learn"},
		{c.Unrendered, "left out", "answers that the chat template does not render"},
		{c.Unreasoned, "reasoning", "answers whose reasoning the chat template does not render"},
		{c.Bad, "bad", "records that were skipped"},
	} {
		if line.n > 0 {
			fmt.Fprintf(w, "  %-10s %d %s\n", line.name, line.n, line.text)
		}
	}
}

// barWidth is the length of the longest bar of a histogram.
const barWidth = 40

func (l lengthInfo) print(w io.Writer) {
	fmt.Fprintf(w, "tokens of a sample: %d to %d, median %d, 90 %% up to %d, 99 %% up to %d\n",
		l.Min, l.Max, l.Median, l.P90, l.P99)
	most := 1
	for _, b := range l.Bins {
		most = max(most, b.Samples)
	}
	for _, b := range l.Bins {
		bar := (b.Samples*barWidth + most - 1) / most
		fmt.Fprintf(w, "  %8d … %-8d %-*s %d\n", b.From, b.To, barWidth,
			strings.Repeat("#", bar), b.Samples)
	}
}

// What marks the tokens that have loss.
const (
	lossBegin, lossEnd   = "⟦", "⟧"
	colorBegin, colorEnd = "\x1b[32m", "\x1b[0m"
)

// maxShown is how many bytes of a text are printed.
const maxShown = 8000

func (s sampleInfo) print(w io.Writer, color bool) {
	begin, end := lossBegin, lossEnd
	if color {
		begin, end = colorBegin, colorEnd
	}
	for i, spans := range s.Texts {
		if len(s.Texts) > 1 {
			fmt.Fprintf(w, "  %s:\n", []string{"chosen", "rejected"}[i])
		}
		var b strings.Builder
		left := maxShown
		for _, span := range spans {
			text := span.Text
			if len(text) > left {
				text = strings.ToValidUTF8(text[:left], "")
			}
			left -= len(span.Text)
			text = visible(text)
			if span.Loss && color { // a pager shows a color up to the end of a line
				text = strings.ReplaceAll(text, "\n", end+"\n"+begin)
			}
			if span.Loss {
				text = begin + text + end
			}
			b.WriteString(text)
			if left < 0 {
				b.WriteString(" …")
				break
			}
		}
		fmt.Fprintf(w, "    %s\n", strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\n",
			"\n    "))
	}
}
