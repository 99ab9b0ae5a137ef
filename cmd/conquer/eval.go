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
	output                  string
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
		"about how many `tokens` go through the model at once (default: 2,048, on a GPU 16,384)")
	group(flags, "Computation")
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
	if f.options.Generation, err = assignments("gen_kwargs", "KEY=VALUE", f.generation); err != nil {
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
	began := time.Now()
	results, err := f.evaluate(ctx, lm, suite)
	if err != nil {
		return err
	}
	results.Config = f.config(o, lm, time.Since(began))
	return f.write(results)
}

// evaluate runs the tasks with a progress bar.
func (f *evalFlags) evaluate(ctx context.Context, lm *eval.LM, suite *eval.Suite) (*eval.Results,
	error) {
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
	return eval.Run(ctx, lm, suite, options)
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

// write prints the results and writes the file of --output_path.
func (f *evalFlags) write(results *eval.Results) error {
	if !f.options.Samples {
		results.Samples = nil
	}
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return err
	}
	data = append(data, '\n')
	if f.output != "" {
		if err := atomicfile.MkdirAll(filepath.Dir(f.output)); err != nil {
			return err
		}
		err = atomicfile.WriteBytes(f.output, data)
	}
	if f.json {
		_, failed := os.Stdout.Write(data)
		return errors.Join(err, failed)
	}
	return errors.Join(err, printEvaluation(os.Stdout, results))
}

// printEvaluation prints a row for each metric.
func printEvaluation(w io.Writer, results *eval.Results) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "task\tfilter\texamples\tmetric\tvalue\tstandard error\tdocuments")
	for _, name := range results.Names() {
		m := results.Results[name]
		for _, v := range m.Values {
			e := "–"
			if !math.IsNaN(v.Error) {
				e = fmt.Sprintf("%.4f", v.Error)
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%s\t%.4f\t%s\t%d\n", name, v.Filter,
				results.Shots[name], v.Metric, v.Value, e, m.Documents)
		}
	}
	return table.Flush()
}
