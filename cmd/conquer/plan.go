package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/train"
	"conquer/train/plan"
)

var planCommand = command{
	name:    "plan",
	summary: "Predict the memory and time of training on GPUs, for each parallel strategy.",
	example: `conquer plan --architecture llama --variant 70b --gpus 64
# one GPU with 24 GB
conquer plan --model_path smollm2-135m --memory_gb 24 --batch_size 8 --recompute block
# pipeline parallelism (pp) needs many micro-batches per step
conquer plan --architecture llama --variant 7b --gpus 4 --batch_size 1 --accumulate 16
# optimizer state in host memory
conquer plan --architecture llama --variant 7b --gpus 8 --memory_gb 40 --offload_optimizer
# slower links, with a LoRA adapter
conquer plan --architecture llama --variant 7b --gpus 8 --link_gb_s 25 --lora_rank 16 --json`,
	config: true,
	setup:  setupPlan,
}

// planReport is what --json prints.
type planReport struct {
	Model      string       `json:"model"`
	Parameters int          `json:"parameters"`
	Active     int          `json:"active_parameters,omitempty"` // of a mixture, for one token
	Machine    plan.Machine `json:"machine"`
	Plans      []plan.Plan  `json:"plans"`
}

// planFlags are the flags of conquer plan.
type planFlags struct {
	plan.Options
	machine                     plan.Machine
	lora                        loraFlags
	path, architecture, variant string
	dtype, recompute            string
	converts                    bool // --dtype is given
	json                        bool
}

func setupPlan(flags *pflag.FlagSet) func(context.Context, []string) error {
	f := planFlags{}
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if err := f.check(flags, args); err != nil {
			return err
		}
		return f.run(ctx)
	}
}

func (f *planFlags) declare(flags *pflag.FlagSet) {
	flags.StringVar(&f.path, "model_path", "", modelPathUsage)
	declareVerify(flags)
	flags.StringVar(&f.architecture, "architecture", "",
		"with --variant, instead of --model_path: an architecture, such as llama")
	flags.StringVar(&f.variant, "variant", "", "model `size`, such as 70b")
	group(flags, "Model")
	f.declareMachine(flags)
	group(flags, "GPUs")
	f.declareRun(flags)
	group(flags, "Training run")
	flags.BoolVar(&f.json, "json", false, "print a JSON object")
	group(flags, "Output")
}

func (f *planFlags) declareMachine(flags *pflag.FlagSet) {
	m := &f.machine
	flags.IntVar(&m.GPUs, "gpus", 1, "total `number` of GPUs")
	flags.IntVar(&m.PerHost, "gpus_per_host", 8, "`number` of GPUs per host")
	flags.Float64Var(&m.Memory, "memory_gb", 80, "memory of a GPU in 1e9 bytes")
	flags.Float64Var(&m.Rate, "tflops", 600, "sustained GEMM rate of a GPU in TFLOP/s")
	flags.Float64Var(&m.Transfer, "memory_gb_s", 3000, "memory bandwidth of a GPU in GB/s")
	flags.Float64Var(&m.Link, "link_gb_s", 300,
		"bandwidth between two GPUs of a host in GB/s, each way")
	flags.Float64Var(&m.Network, "network_gb_s", 40,
		"bandwidth between hosts per GPU in GB/s, each way")
	flags.Float64Var(&m.Host, "host_gb_s", 20,
		"bandwidth to host memory per GPU in GB/s, for --offload_optimizer")
}

func (f *planFlags) declareRun(flags *pflag.FlagSet) {
	flags.IntVar(&f.BatchSize, "batch_size", 4,
		"samples per forward pass of a GPU, or of the GPUs that divide the layers")
	flags.IntVar(&f.SequenceLength, "sequence_length", 2048, "`tokens` per sample")
	flags.IntVar(&f.Accumulate, "accumulate", 1, "forward passes per optimizer step")
	flags.IntVar(&f.TensorSize, "tp_size", 0,
		"number of GPUs that divide the layers under tp (default: the GPUs of a host)")
	flags.IntVar(&f.ContextSize, "cp_size", 0,
		"number of GPUs that each row is cut over, with ddp and fsdp (default 1)")
	flags.StringVar(&f.dtype, "dtype", "bfloat16",
		"`dtype` of the weights: float32, bfloat16 or float16; with --lora_rank, quantized "+
			"weights stay as they are if it is not given")
	flags.StringVar(&f.recompute, "recompute", "none", recomputeUsage)
	f.lora.declareSizes(flags)
	flags.StringVar(&f.Optimizer, "optimizer", "adamw", "adamw, lion or muon")
	flags.StringVar(&f.Moments, "moments", "float32",
		"dtype of AdamW's moments: float32, bfloat16 or int8")
	flags.BoolVar(&f.Stochastic, "stochastic_rounding", false,
		"round bfloat16 weights stochastically, without float32 master weights; moments in "+
			"bfloat16, or with --moments int8 in 8 bits")
	flags.BoolVar(&f.OffloadOptimizer, "offload_optimizer", false,
		"fsdp and hsdp: keep the optimizer's state in host memory and take its steps there")
	flags.BoolVar(&f.HeadOnly, "head_only", false, "train only the output head")
}

// check reads the flags into the options.
func (f *planFlags) check(flags *pflag.FlagSet, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected %q", args[0])
	}
	dtype, err := parseDType(f.dtype)
	if err != nil {
		return err
	}
	if dtype == nil {
		return usagef("--dtype is empty: use float32, bfloat16 or float16")
	}
	f.DType, f.converts = *dtype, flags.Changed("dtype")
	f.Recompute = train.Recompute(f.recompute)
	f.LoRA, err = f.lora.read(flags)
	return err
}

func (f *planFlags) run(ctx context.Context) error {
	m, name, err := f.shape(ctx)
	if err != nil {
		return err
	}
	f.machine.PerHost = min(f.machine.PerHost, max(1, f.machine.GPUs))
	plans, err := plan.Predict(m, f.Options, f.machine)
	if err != nil {
		return usageError{err}
	}
	report := planReport{
		Model:      name,
		Parameters: model.Parameters(m),
		Machine:    f.machine,
		Plans:      plans,
	}
	if active := model.Active(m); active < report.Parameters {
		report.Active = active
	}
	if f.json {
		return printJSON(stdout, report)
	}
	report.print()
	return nil
}

// shape makes the model that the flags name, without weights.
func (f *planFlags) shape(ctx context.Context) (model.Model, string, error) {
	path, architecture, variant := f.path, f.architecture, f.variant
	var config model.Config
	name := path
	switch {
	case (path == "") != (architecture != "" && variant != ""), path != "" &&
		architecture+variant != "":
		return nil, "", usagef("give --model_path, or both --architecture and --variant")
	case path == "":
		var err error
		if config, err = model.Variant(architecture, variant); err != nil {
			return nil, "", usageError{err}
		}
		name = architecture + " " + variant
	default:
		_, _, c, err := openModel(ctx, path, "")
		if err != nil {
			return nil, "", err
		}
		defer c.Close()
		m, err := model.Declare(c)
		if err == nil && f.LoRA != nil && c.Quantized() != "" {
			f.planQuantized(m, c)
		}
		return m, name, err
	}
	m, err := model.New(config)
	return m, name, err
}

// planQuantized plans with quantized weights as train takes them: as they are unless --dtype is
// given.
func (f *planFlags) planQuantized(m model.Model, c *checkpoint.Checkpoint) {
	reason := c.GPUConverts()
	if model.HasExperts(m) {
		reason = "no kernel of a GPU computes on blocks of experts"
	}
	switch numbers, bytes := c.OnGPU(); {
	case f.converts:
	case reason != "":
		note("conquer: the %s weights of %s are counted in %v, because %s\n", c.Quantized(), c.Path,
			f.DType, reason)
	default:
		f.Quantized = plan.Quantized{Numbers: float64(numbers), Bytes: float64(bytes)}
	}
}

func (r planReport) print() {
	gpus := "one GPU"
	if r.Machine.GPUs > 1 {
		gpus = fmt.Sprintf("%d GPUs", r.Machine.GPUs)
	}
	parameters := thousands(r.Parameters) + " parameters"
	if r.Active > 0 {
		parameters += fmt.Sprintf(" (%s active for a token)", thousands(r.Active))
	}
	fmt.Fprintf(stdout, "%s, %s, on %s; memory in GB per GPU, time in seconds per step, "+
		"tokens per second of all GPUs\n\n", r.Model, parameters, gpus)
	r.printTable(stdout)
	r.printRefused()
	var full []string
	for _, p := range r.Plans {
		if p.Refused == "" && !p.Fits {
			full = append(full, p.Strategy)
		}
	}
	r.printHost()
	if len(full) > 0 {
		fmt.Fprintf(stdout, "\ndoes not fit %g GB: %s\n", r.Machine.Memory,
			strings.Join(full, ", "))
		fmt.Fprintln(stdout, "to save memory: --recompute selective or block, a smaller "+
			"--batch_size with --accumulate, --lora_rank, or more GPUs with fsdp")
	}
}

// printHost compares the host memory of each strategy with this machine's.
func (r planReport) printHost() {
	for _, p := range r.Plans {
		processes := min(r.Machine.GPUs, r.Machine.PerHost)
		if _, err := plan.ReadHostMemory().Check(processes, p.Host, p.Host); err != nil {
			fmt.Fprintf(stdout, "\non this machine, %s: %v\n", p.Strategy, err)
		}
	}
}

// printTable prints a row for each possible strategy.
func (r planReport) printTable(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	host := slices.ContainsFunc(r.Plans, func(p plan.Plan) bool { return p.Host > 0 })
	fmt.Fprint(w, "\tweights\tgradients\toptimizer\tactivations\tbuffers\tpeak\t")
	if host {
		fmt.Fprint(w, "host\t")
	}
	fmt.Fprintln(w, "compute\tcommunication\tstep\ttok/s\t")
	for _, p := range r.Plans {
		if p.Refused != "" {
			continue
		}
		fmt.Fprintf(w, "%s\t", p.Strategy)
		for _, bytes := range []float64{p.Weights, p.Gradients, p.Optimizer, p.Activations,
			p.Buffers, p.Peak} {
			fmt.Fprintf(w, "%.2f\t", bytes/1e9)
		}
		if host {
			fmt.Fprintf(w, "%.2f\t", p.Host/1e9)
		}
		fmt.Fprintf(w, "%.3f\t%.3f\t%.3f\t%.0f\t\n", p.Compute, p.Communication, p.Step, p.Tokens)
	}
	w.Flush()
}

// printRefused prints the strategies that are not possible, grouped by reason.
func (r planReport) printRefused() {
	var reasons []string
	refused := map[string][]string{}
	for _, p := range r.Plans {
		if p.Refused == "" {
			continue
		}
		if refused[p.Refused] == nil {
			reasons = append(reasons, p.Refused)
		}
		refused[p.Refused] = append(refused[p.Refused], p.Strategy)
	}
	for _, reason := range reasons {
		fmt.Fprintf(stdout, "\nnot %s: %s\n", strings.Join(refused[reason], ", "), reason)
	}
}
