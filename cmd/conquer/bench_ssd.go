package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/pflag"

	"conquer/bench"
	"conquer/model/statespace"
	"conquer/torch"
)

var benchSSDCommand = command{
	name:    "bench ssd",
	summary: "Time the state-space scan, convolution and norm against the machine's ceilings.",
	example: `conquer bench ssd --length 1024,4096,16384
# forward pass under several strategies
conquer bench ssd --pass forward \
  --chunking default-optimized,windowed:1-optimized,windowed:4-optimized,independent-optimized
# plain libtorch beside the kernels, in bfloat16, at Bamba-9B's width
conquer bench ssd --heads 128 --dtype bfloat16 --chunking default,default-optimized \
  --chunk_size 64,256`,
	setup: setupBenchSSD,
}

// ssdFlags are the flags of conquer bench ssd.
type ssdFlags struct {
	benchFlags
	bench.SSDOptions
	strategies, sizes []string
	dtype, device     string
	threads           int
}

func setupBenchSSD(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f ssdFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if err := f.check(flags, args); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *ssdFlags) declare(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.Passes, "pass", bench.Passes,
		"`passes` to time: forward, backward, step, conv, norm")
	declareChunking(flags, &f.strategies, "default", "default-optimized", "independent",
		"independent-optimized")
	flags.StringSliceVar(&f.sizes, "chunk_size", []string{"64"},
		"chunk `sizes` in tokens: powers of two from 16 to 256, or auto")
	group(flags, "Passes and chunking")
	flags.IntSliceVar(&f.Lengths, "length", nil,
		"sequence `lengths` in tokens (default: 256,1024,2048 on the CPU, 1024,4096,16384 on a "+
			"GPU)")
	flags.IntSliceVar(&f.Batches, "batch_size", []int{1}, "`batch sizes`")
	flags.IntVar(&f.Shape.Heads, "heads", 0,
		"`number` of heads (default: 16 on the CPU, 128 as in Bamba-9B on a GPU)")
	flags.IntVar(&f.Shape.HeadDim, "head_dim", 64, "head `dimension`, 16 to 128")
	flags.IntVar(&f.Shape.State, "state", 128, "state `size`, 16 to 256")
	flags.IntVar(&f.Shape.Groups, "groups", 1, "`number` of groups of heads that share B and C")
	flags.StringVar(&f.dtype, "dtype", "",
		"input `dtype`: float32, bfloat16 or float16 (default: float32 on the CPU, bfloat16 on a "+
			"GPU)")
	group(flags, "Shapes")
	flags.StringVar(&f.device, "device", "", deviceUsage)
	flags.IntVar(&f.threads, "threads", 0, threadsUsage)
	flags.IntVar(&f.Repeats, "repeats", 10, "timed runs per row, after a warm-up")
	flags.Int64Var(&f.Seed, "seed", 1, "`seed` of the random inputs")
	group(flags, "Runs")
	f.benchFlags.declare(flags, bench.SSD)
}

// check reads the flags into the options. Some defaults depend on the device.
func (f *ssdFlags) check(flags *pflag.FlagSet, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected %q", args[0])
	}
	var err error
	if f.Strategies, err = parseStrategies(f.strategies); err != nil {
		return err
	}
	for _, text := range f.sizes {
		size, err := statespace.ParseChunkSize(text)
		if err != nil {
			return usagef("--chunk_size: %w", err)
		}
		f.ChunkSizes = append(f.ChunkSizes, size)
	}
	given, err := parseDType(f.dtype)
	if err != nil {
		return err
	}
	if f.Device, err = parseDevice(f.device); err != nil {
		return err
	}
	heads, lengths := 16, []int{256, 1024, 2048}
	f.DType = torch.Float32
	if f.Device.IsCUDA() {
		heads, lengths, f.DType = 128, []int{1024, 4096, 16384}, torch.BFloat16
	}
	if given != nil {
		f.DType = *given
	}
	if !flags.Changed("heads") {
		f.Shape.Heads = heads
	}
	if !flags.Changed("length") {
		f.Lengths = lengths
	}
	if err := f.Check(); err != nil {
		return usageError{err}
	}
	return setThreads(f.threads)
}

func (f *ssdFlags) run(ctx context.Context) error {
	results, err := f.begin(bench.SSD, f.Device, true)
	if err != nil {
		return err
	}
	f.Ceilings, results.Inputs = results.Machine.Ceilings, bench.RandomInputs("values", f.Seed)
	rows, err := collect("timing", func(add func(bench.SSDRow, int)) error {
		return bench.RunSSD(ctx, f.SSDOptions, add)
	})
	results.Rows = rows
	return f.finish(results, len(rows), err,
		func(w io.Writer) { printSSD(w, results.Machine, rows) })
}

// printSSD writes one line per row. The last column is the speed-up over strategy default, with the
// limits that the quartiles leave it.
func printSSD(w io.Writer, m bench.Machine, rows []bench.SSDRow) {
	type shape struct {
		pass                 string
		batch, length, chunk int
	}
	plain := map[shape]bench.Times{}
	for _, r := range rows {
		if r.Strategy == statespace.Default && r.Failed == "" {
			plain[shape{r.Pass, r.Batch, r.Length, r.ChunkSize}] = r.Times()
		}
	}
	where := m.CPU
	if m.GPU != "" {
		where = m.GPU
	}
	fmt.Fprintf(w, "%s: reads %.1f GB/s; GEMMs run at %.0f GFLOP/s in float32 and %.0f in "+
		"bfloat16\n\n", where, m.Ceilings.ReadGBPerS, m.Ceilings.F32GFlopPerS,
		m.Ceilings.BF16GFlopPerS)
	fmt.Fprintln(w, "pass\tstrategy\tB\tL\tchunk\tms\tquartiles\tGB/s\tof read\tGFLOP/s\tof "+
		"rate\tpeak\terror\t× default\t")
	var failed []string // reasons, which are too long for a column
	for _, r := range rows {
		chunk, ratio := "", ""
		if r.ChunkSize > 0 {
			chunk = fmt.Sprint(r.ChunkSize)
		}
		if r.Failed != "" {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\tfailed\t\n", r.Pass, r.Strategy, r.Batch, r.Length,
				chunk)
			failed = append(failed, fmt.Sprintf("%s, %s, B %d, L %d: %s", r.Pass, r.Strategy,
				r.Batch, r.Length, r.Failed))
			continue
		}
		base := plain[shape{r.Pass, r.Batch, r.Length, r.ChunkSize}]
		if base.Median > 0 && r.Strategy != statespace.Default {
			ratio = base.Over(r.Times()).String()
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%s\t%s\t%s\t%.2f\t%.0f %%\t%.1f\t%.0f "+
			"%%\t%s\t%.1e\t%s\t\n", r.Pass, r.Strategy, r.Batch, r.Length, chunk,
			formatMS(r.MedianMS), formatQuartiles(r.Times()), r.GBPerS,
			100*r.OfBandwidth, r.GFlopPerS, 100*r.OfRate, formatBytes(r.PeakBytes), r.Error, ratio)
	}
	for _, reason := range failed {
		fmt.Fprintf(w, "\n%s\n", reason)
	}
}
