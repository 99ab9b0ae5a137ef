package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/pflag"

	"conquer/eval"
	"conquer/internal/atomicfile"
	"conquer/internal/progress"
	"conquer/model"
	"conquer/model/statespace"
)

var evalCommand = command{
	name:    "eval",
	summary: "Measure a model on tasks, with the numbers of lm-evaluation-harness.",
	example: `conquer eval --model_path smollm2-135m --tasks hellaswag,arc_easy --limit 100
# five examples in each prompt, results and every answer as JSON
conquer eval --model_path my-model --tasks mmlu --num_fewshot 5 --log_samples \
  --output_path mmlu.json
# a chat model, and a task of one's own
conquer eval --model_path my-chat --tasks my-task.yaml --apply_chat_template
# which documents does the tuned model answer better than the base model?
conquer eval --model_path base --tasks arc_easy --log_samples --output_path base.json
conquer eval --model_path tuned --tasks arc_easy --compare base.json
# a column for each strategy of chunking
conquer eval --model_path my-bamba --tasks lambada_openai \
  --chunking default-optimized,windowed:4-optimized,independent-optimized
# data in a folder rather than on the hub: test.jsonl and train.jsonl, or .parquet
conquer eval --model_path my-model --tasks gsm8k --data gsm8k=./gsm8k`,
	config: true,
	setup:  setupEval,
}

// evalFlags are the flags of conquer eval.
type evalFlags struct {
	modelFlags
	tasks, data, generation []string
	shots, maxLength, batch int
	options                 eval.Options
	compare, output         string
	chunking                []string
	strategies              []statespace.Chunking
	json                    bool
}

func setupEval(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f evalFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		suite, err := f.check(flags, args)
		if err != nil {
			return err
		}
		return f.run(ctx, suite)
	}
}

func (f *evalFlags) declare(flags *pflag.FlagSet) {
	f.modelFlags.declare(flags)
	f.declareAdapter(flags)
	f.declareExpected(flags)
	flags.IntVar(&f.maxLength, "max_length", 0,
		"`tokens` that the model reads at once; longer texts lose their beginning (default: its "+
			"context)")
	group(flags, "Model")
	flags.StringSliceVar(&f.tasks, "tasks", nil,
		"`names` of tasks, groups or tags, or YAML files of lm-eval's form; known are "+
			strings.Join(eval.Known(), ", "))
	flags.StringArrayVar(&f.data, "data", nil,
		"`TASK=PATH`: a folder or file to read instead of the task's data set; TASK:SPLIT=PATH "+
			"for one split. May be repeated")
	flags.Float64Var(&f.options.Limit, "limit", 0,
		"`documents` of each task or, below 1, their share (default: all)")
	group(flags, "Tasks")
	flags.IntVar(&f.shots, "num_fewshot", 0,
		"`examples` in a prompt (default: the task's own number)")
	flags.Uint64Var(&f.options.Seed, "fewshot_seed", 1234, "`seed` that draws the examples")
	flags.BoolVar(&f.options.Chat, "apply_chat_template", false,
		"render prompts with the model's chat template")
	flags.BoolVar(&f.options.Multiturn, "fewshot_as_multiturn", false,
		"with a chat template, examples are turns of their own (default: true with "+
			"--apply_chat_template)")
	flags.StringVar(&f.options.System, "system_instruction", "", "`text` of a system message")
	flags.StringArrayVar(&f.generation, "gen_kwargs", nil,
		"`KEY=VALUE` to replace in a task's generation_kwargs, such as max_gen_toks=64. May be "+
			"repeated")
	group(flags, "Prompts")
	flags.IntVar(&f.options.Bootstrap, "bootstrap_iters", 100_000,
		"`resamples` for the standard errors of perplexities; 0 computes no standard errors")
	flags.IntVar(&f.batch, "batch_size", 0,
		"about how many `tokens` go through the model at once (default: 4,096, on a GPU 16,384)")
	declareChunking(flags, &f.chunking)
	group(flags, "Computation")
	flags.StringVar(&f.compare, "compare", "",
		"`file` of results that --log_samples and --output_path wrote, to compare with document "+
			"by document")
	flags.StringVar(&f.output, "output_path", "", "`file` to write the results to, as JSON")
	flags.BoolVar(&f.options.Samples, "log_samples", false,
		"keep every document's prompts and answers in the JSON")
	flags.BoolVar(&f.json, "json", false, "print the results as JSON, in lm-eval's layout")
	group(flags, "Output")
}

// check reads the tasks and completes the options.
func (f *evalFlags) check(flags *pflag.FlagSet, args []string) (*eval.Suite, error) {
	if len(args) > 0 {
		return nil, usagef("unexpected %q: tasks are given with --tasks", args[0])
	}
	if len(f.tasks) == 0 {
		return nil, usagef("--tasks is missing: give tasks such as %s, or YAML files",
			strings.Join(eval.Known()[:3], ","))
	}
	switch {
	case f.options.Limit < 0 || math.IsNaN(f.options.Limit) || f.options.Limit > 1 &&
		f.options.Limit != math.Trunc(f.options.Limit):
		return nil, usagef("--limit is %g, expected a number of documents or a share below 1",
			f.options.Limit)
	case f.shots < 0:
		return nil, usagef("--num_fewshot is %d, expected 0 or more", f.shots)
	case f.options.Bootstrap < 0:
		return nil, usagef("--bootstrap_iters is %d, expected 0 or more", f.options.Bootstrap)
	case f.batch < 0:
		return nil, usagef("--batch_size is %d, expected a number of tokens", f.batch)
	case flags.Changed("max_length") && f.maxLength < 1:
		return nil, usagef("--max_length is %d, expected at least 1", f.maxLength)
	case f.options.Multiturn && !f.options.Chat:
		return nil, usagef("--fewshot_as_multiturn needs --apply_chat_template")
	}
	if len(f.chunking) > 0 {
		var err error
		if f.strategies, err = parseStrategies(f.chunking); err != nil {
			return nil, err
		}
	}
	if len(f.chunking) > 0 && f.compare != "" {
		return nil, usagef("--compare and --chunking exclude each other")
	}
	if flags.Changed("num_fewshot") {
		f.options.Shots = &f.shots
	}
	if !flags.Changed("fewshot_as_multiturn") {
		f.options.Multiturn = f.options.Chat
	}
	var err error
	if f.options.Data, err = assignments("data", "TASK=PATH", f.data); err != nil {
		return nil, err
	}
	f.options.Generation, err = assignments("gen_kwargs", "KEY=VALUE", f.generation)
	if err != nil {
		return nil, err
	}
	for task, path := range f.options.Data {
		if f.options.Data[task], err = expandPath(path); err != nil {
			return nil, usagef("--data: %w", err)
		}
	}
	suite, err := eval.Load(f.tasks)
	if err != nil {
		return nil, fmt.Errorf("--tasks: %w", err)
	}
	for task := range f.options.Data {
		name, _, _ := strings.Cut(task, ":")
		if !slices.Contains(suite.Names(), name) {
			return nil, usagef("--data names the task %q, which --tasks does not hold", name)
		}
	}
	return suite, nil
}

// assignments reads the values of a flag that have the form NAME=VALUE; nil if there are none.
func assignments(flag, form string, list []string) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	values := map[string]string{}
	for _, item := range list {
		name, value, ok := strings.Cut(item, "=")
		if !ok || name == "" || value == "" {
			return nil, usagef("--%s is %q, expected %s", flag, item, form)
		}
		values[name] = value
	}
	return values, nil
}

func (f *evalFlags) run(ctx context.Context, suite *eval.Suite) error {
	o, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer o.Close()
	if o.tokenizer == nil {
		return o.noTokenizer("give one with --tokenizer")
	}
	lm, err := eval.NewLM(o.model, o.tokenizer)
	if err != nil {
		return err
	}
	if f.maxLength > lm.MaxLength {
		return usagef("--max_length is %d, the model's context %d", f.maxLength, lm.MaxLength)
	}
	if f.maxLength > 0 {
		lm.MaxLength = f.maxLength
	}
	if f.batch > 0 {
		lm.BatchTokens = f.batch
	}
	if f.strategies != nil {
		return f.runStrategies(ctx, o, lm, suite)
	}
	var other *eval.Results
	if f.compare != "" {
		if other, err = eval.ReadResults(f.compare); err != nil {
			return fmt.Errorf("--compare: %w", err)
		}
	}
	results, err := f.evaluate(ctx, o, lm, suite)
	if err != nil {
		return err
	}
	if other != nil {
		if results.Comparison, err = eval.Compare(other, results); err != nil {
			return fmt.Errorf("--compare %s: %w", f.compare, err)
		}
	}
	return f.write(results, func(w io.Writer) { printEvaluation(w, results) })
}

// runStrategies evaluates the model under each strategy of chunking.
func (f *evalFlags) runStrategies(ctx context.Context, o *opened, lm *eval.LM, suite *eval.Suite,
) error {
	m, ok := o.model.(statespace.Chunked)
	if !ok {
		return usagef("--chunking: the architecture %s has no state-space layers",
			o.model.Architecture())
	}
	all := eval.Strategies{Results: map[string]*eval.Results{}}
	for _, c := range f.strategies {
		if err := m.SetChunking(c); err != nil {
			return usagef("--chunking: %w", err)
		}
		name := m.Chunking().String()
		lm.Whole = c.Strategy != statespace.Default
		results, err := f.evaluate(ctx, o, lm, suite)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all.Names, all.Results[name] = append(all.Names, name), results
	}
	comparisons, err := all.Comparisons()
	if err != nil {
		return err
	}
	for name, list := range comparisons {
		all.Results[name].Comparison = list
	}
	table, err := all.Table()
	if err != nil {
		return err
	}
	return f.write(map[string]any{"chunking": all.Results}, func(w io.Writer) {
		io.WriteString(w, table)
	})
}

// evaluate runs the tasks with a progress bar.
func (f *evalFlags) evaluate(ctx context.Context, o *opened, lm *eval.LM, suite *eval.Suite) (
	*eval.Results, error) {
	began := time.Now()
	bar := progress.New(os.Stderr, "evaluating", progress.Steps, 0, 0)
	defer bar.Close()
	options := f.options
	before := 0
	options.Progress = func(done, total int) {
		bar.SetTotal(int64(total))
		bar.Add(int64(done - before))
		before = done
	}
	options.Download = downloadBar("data")
	results, err := eval.Run(ctx, lm, suite, options)
	if err != nil {
		return nil, err
	}
	if !options.Samples {
		results.Samples = nil
	}
	results.Config = f.config(o, lm, time.Since(began))
	return results, nil
}

// evalConfig is the member config of the results.
type evalConfig struct {
	Model      string            `json:"model"`
	Path       string            `json:"model_path"`
	Adapter    string            `json:"adapter_path,omitempty"`
	Parameters int               `json:"model_num_parameters"`
	DType      string            `json:"model_dtype"`
	Device     string            `json:"device"`
	MaxLength  int               `json:"max_length"`
	Limit      float64           `json:"limit,omitempty"`
	Bootstrap  int               `json:"bootstrap_iters"`
	Seed       uint64            `json:"fewshot_seed"`
	Chat       bool              `json:"apply_chat_template"`
	Multiturn  bool              `json:"fewshot_as_multiturn"`
	System     string            `json:"system_instruction,omitempty"`
	Generation map[string]string `json:"gen_kwargs,omitempty"`
	Seconds    float64           `json:"total_evaluation_time_seconds"`
}

func (f *evalFlags) config(o *opened, lm *eval.LM, took time.Duration) evalConfig {
	return evalConfig{
		Model: "conquer", Path: f.path, Adapter: f.adapter,
		Parameters: model.Parameters(o.model), DType: model.DType(o.model).String(),
		Device: model.Device(o.model).String(), MaxLength: lm.MaxLength, Limit: f.options.Limit,
		Bootstrap: f.options.Bootstrap, Seed: f.options.Seed, Chat: f.options.Chat,
		Multiturn: f.options.Multiturn, System: f.options.System,
		Generation: f.options.Generation, Seconds: took.Seconds(),
	}
}

// write prints results as JSON or as a table, whose columns are separated by tabs, and writes the
// file of --output_path.
func (f *evalFlags) write(results any, table func(w io.Writer)) error {
	var err error
	if f.output != "" {
		err = writeIndented(f.output, results)
	}
	if f.json {
		return errors.Join(err, printJSON(stdout, results))
	}
	columns := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	table(columns)
	return errors.Join(err, columns.Flush())
}

// writeIndented writes a file of indented JSON, and its folder if it is missing.
func writeIndented(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err == nil {
		err = atomicfile.MkdirAll(filepath.Dir(path))
	}
	if err == nil {
		err = atomicfile.WriteBytes(path, append(data, '\n'))
	}
	return err
}

// printEvaluation prints a row for each metric, and one for each metric that is compared.
func printEvaluation(w io.Writer, results *eval.Results) {
	fmt.Fprintln(w, "task\tfilter\texamples\tmetric\tvalue\tstandard error\tdocuments")
	for _, name := range results.Names() {
		m := results.Results[name]
		for _, v := range m.Values {
			e := "–"
			if !math.IsNaN(v.Error) {
				e = fmt.Sprintf("%.4f", v.Error)
			}
			fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.4f\t%s\t%d\n", name, v.Filter,
				results.Shots[name], v.Metric, v.Value, e, m.Documents)
		}
	}
	if results.Comparison == nil {
		return
	}
	fmt.Fprintln(w, "\ntask\tfilter\tmetric\tother\tthis\tdifference\t95 % interval\tp\t"+
		"better, worse")
	for _, c := range results.Comparison {
		fmt.Fprintf(w, "%s\t%s\t%s\t%.4f\t%.4f\t%+.4f\t%+.4f to %+.4f\t%.4f\t%d, %d\n", c.Task,
			c.Filter, c.Metric, c.Before, c.After, c.Difference, c.Low, c.High, c.P, c.Better,
			c.Worse)
	}
}
