package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"conquer/generate"
	"conquer/internal/progress"
	"conquer/lora"
	"conquer/model"
	"conquer/parallel"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/train"
	"conquer/train/report"
)

var trainCommand = command{
	name: "train",
	summary: "Tune a model on instructions, chats or text: all weights, a LoRA adapter, or the " +
		"head.",
	example: `# all weights, on instructions; the result is a folder that transformers loads
conquer train --model_path smollm2-135m --data_path examples/lighthouse/train.jsonl \
  --output_path tuned
# a LoRA adapter in PEFT's format, with validation and an answer before and after training
conquer train --model_path smollm2-135m --data_path train.jsonl \
  --validation_path heldout.jsonl --output_path adapter --lora_rank 16 --ask "Why is the sky blue?"
# the same adapter trained further, on other data
conquer train --model_path smollm2-135m --adapter_path adapter --data_path more.jsonl \
  --output_path adapter2
# two GPUs of this machine, or two processes on its cores, each with half of the weights
conquer train --nproc 2 --distributed fsdp --model_path smollm2-135m --data_path train.jsonl \
  --output_path tuned2
# continue after Ctrl-C or a power loss; --overwrite would start again
conquer train --model_path smollm2-135m --data_path train.jsonl --output_path tuned3 \
  --checkpoint_steps 100 --resume
# a small model from random weights, on plain text
conquer train --architecture llama --variant micro --tokenizer tokenizer.json \
  --data_path books --pack --output_path mine
# a data set of the Hugging Face Hub, or folders of Arrow token shards larger than memory
conquer train --model_path smollm2-135m --data_path hf://datasets/tatsu-lab/alpaca \
  --output_path alpaca
conquer train --model_path smollm2-135m --data_path shards --pack --steps 1000 \
  --output_path continued
# preference tuning: learn which of two answers is better
conquer train --objective dpo --model_path tuned \
  --data_path examples/preferences/train.jsonl --output_path preferring
# a character-level Bamba, from a folder of source files
conquer train --architecture bamba --variant bytes --tokenizer char_tokenizer --data_path src \
  --pack --sequence_length 1024 --batch_size 4 --steps 500 \
  --learning_rate 6e-3 --beta2 0.98 --output_path characters`,
	config: true,
	setup:  setupTrain,
}

// convertsTraining is why quantized weights are converted for training all weights.
const convertsTraining = "training changes them (--lora_rank trains an adapter beside them)"

func setupTrain(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f trainFlags
	f.declare(flags)
	return func(ctx context.Context, args []string) error {
		if len(args) > 0 {
			return usagef("unexpected %q: data is given with --data_path", args[0])
		}
		place, err := dist.FromEnvironment()
		if err != nil {
			return err
		}
		launching := f.processes > 1 && place.Size == 1
		if launching {
			place.Size, place.LocalSize = f.processes, f.processes
		}
		f.lengthGiven = flags.Changed("sequence_length")
		if err := f.readInputs(ctx); err != nil {
			return err
		}
		if err := f.check(flags, place); err != nil {
			return err
		}
		if f.printConfig {
			if place.Rank > 0 {
				return nil
			}
			return printConfig(stdout, flags, f.absent())
		}
		if launching {
			return f.launch(ctx, f.restarts)
		}
		return f.run(ctx)
	}
}

func (f *trainFlags) run(ctx context.Context) error {
	signal.Ignore(syscall.SIGPIPE) // a reader of the output that ends does not end the run
	world, err := f.join()
	if err != nil {
		return err
	}
	defer world.Leave()
	first := world == nil || world.Rank == 0
	f.fits = f.checkMemory
	switch {
	case f.LoRA == nil:
		f.converts = convertsTraining
	case f.HeadOnly || len(f.LoRA.Save) > 0 || len(f.lora.tokens) > 0 || len(f.add.added) > 0:
		f.converts = "training changes some of them"
	case f.LoRA.Init == lora.InitPiSSA:
		f.converts = "PiSSA changes them"
	}
	defer f.add.remove()
	o, err := f.openModel(ctx)
	if err != nil {
		return err
	}
	defer func() {
		model.Free(o.model)
		o.closeFiles()
	}()
	f.limitLength(o.model.MaxLength(), first)
	if f.Began, err = f.Start(); err != nil {
		return err
	}
	o.tokenizer.SetClock(f.Began)
	if err := f.chooseRows(o); err != nil {
		return err
	}
	if err := f.CheckModel(o.model); err != nil { // reading the data may take long
		return err
	}
	if err := f.CheckResume(o.model); err != nil {
		return err
	}
	data, validation, err := f.load(ctx, o.tokenizer)
	if err != nil {
		return err
	}
	defer data.Close()
	if validation != nil {
		defer validation.Close()
	}
	f.Tokenizer = o.tokenizer
	bar := progress.Tasks(os.Stderr, progress.Steps)
	f.Progress = func(what string, done, total int) error {
		if first {
			bar(what, int64(done), int64(total))
		}
		return ctx.Err()
	}
	f.Ask = func(step int) ([]train.Answer, error) {
		var text strings.Builder
		list, err := f.answers(ctx, o, fmt.Sprintf("after step %d", step), &text)
		if ctx.Err() != nil { // the run stops by itself
			return nil, nil
		}
		f.console.Print(textOutput(), text.String())
		return list, err
	}
	t, err := train.New(o.model, data, validation, f.Options)
	if err != nil {
		return err
	}
	defer t.Close()
	o.model = t.Model()
	warning, err := t.CheckDisk(f.output, f.merge)
	if err != nil {
		return err
	}
	if warning != "" {
		note("conquer train: %s\n", warning)
	}
	f.announce(t)
	return f.tune(ctx, t, o, first)
}

// chooseRows sets the tokens whose rows are trained beside an adapter: those of --lora_tokens, and
// those that are added, because the base model has no rows of them.
func (f *trainFlags) chooseRows(o *opened) (err error) {
	f.AdapterTokenizer = len(f.add.ids) > 0 || f.adapter != "" && hasTokenizer(f.adapter)
	if f.LoRA == nil || f.further {
		return nil
	}
	if f.LoRA.Tokens, err = f.lora.tokenIDs(o.tokenizer); err != nil || len(f.add.ids) == 0 {
		return err
	}
	if len(f.LoRA.Save) > 0 {
		both := *f.LoRA
		both.Save = []string{"embed_tokens", "embeddings", "lm_head"}
		if len(f.LoRA.Weights(o.model)) < len(both.Weights(o.model)) {
			return usagef("--add_tokens makes rows in the embedding and in the head: name both " +
				"with --lora_save, or leave it out to train the new rows alone")
		}
		return nil
	}
	for _, id := range f.add.ids {
		if !slices.Contains(f.LoRA.Tokens, id) {
			f.LoRA.Tokens = append(f.LoRA.Tokens, id)
		}
	}
	return nil
}

// limitLength cuts samples to the model's context, with a message if --sequence_length was given.
func (f *trainFlags) limitLength(context int, first bool) {
	if f.SequenceLength <= context {
		return
	}
	if f.lengthGiven && first {
		note("conquer train: samples are cut to the model's context of %d, "+
			"not to --sequence_length %d\n", context, f.SequenceLength)
	}
	f.SequenceLength = context
}

// announce prints how much is trained and where the run starts.
func (f *trainFlags) announce(t *train.Trainer) {
	fmt.Fprintf(stdout, "tuning %s of %s weights for %s\n", thousands(t.Trained()),
		thousands(model.Parameters(t.Model())), dataset.Count(t.Steps(), "step"))
	switch {
	case !f.Resume:
	case t.Done() > 0:
		fmt.Fprintf(stdout, "resuming after step %d\n", t.Done())
	default:
		fmt.Fprintln(stdout, "no checkpoint yet: starting at step 1")
	}
}

// tune trains the model, answers --ask before and after, and writes the result.
func (f *trainFlags) tune(ctx context.Context, t *train.Trainer, o *opened,
	first bool) (err error) {
	if err := f.answer(ctx, t, o, "before tuning"); err != nil {
		return err
	}
	if first {
		f.console = report.NewConsole(os.Stderr, f.report, t.Done(), t.Steps())
		defer f.console.Close()
		t.Listen(f.console)
		logged, failed := f.openMLflow(t)
		if failed != nil {
			return failed
		}
		defer func() { closeMLflow(logged, err) }()
	} else {
		f.profile = ""
	}
	reportToLauncher(begunMark)
	if err := f.profiled(func() error { return t.Run(ctx) }); err != nil {
		return err
	}
	if err := f.answer(ctx, t, o, "after tuning"); err != nil {
		return err
	}
	return f.finish(t, o)
}

// openModel opens the model to tune, or makes one with random weights.
func (f *trainFlags) openModel(ctx context.Context) (*opened, error) {
	if f.path != "" {
		path, err := locate(ctx, f.path)
		if err != nil {
			return nil, err
		}
		if lora.IsAdapter(path) {
			return nil, fmt.Errorf("--model_path: %s is a LoRA adapter: give its base with "+
				"--model_path and the adapter with --adapter_path %s", f.path, path)
		}
		if len(f.add.added) > 0 {
			f.extend = func(o *opened) (err error) {
				if o.tokenizer == nil {
					return o.noTokenizer("give one with --tokenizer")
				}
				if o.tokenizer, err = f.add.extend(o.tokenizer); err == nil {
					o.rows = o.tokenizer.VocabSize()
				}
				return err
			}
		}
		o, err := f.open(ctx)
		if err != nil {
			return nil, err
		}
		switch {
		case o.tokenizer == nil:
			err = o.noTokenizer("give one with --tokenizer")
		case model.DType(o.model) == torch.Float16:
			err = fmt.Errorf("%s is stored as float16, which has too small a range for gradients: "+
				"give --dtype bfloat16 or float32", o.path)
		}
		if err != nil {
			o.Close()
			return nil, err
		}
		f.GenerationConfig = o.checkpoint.GenerationConfigJSON()
		if f.adapter != "" {
			own, err := adapterGeneration(f.adapter)
			if err != nil {
				o.Close()
				return nil, err
			}
			if own != nil {
				f.GenerationConfig = own
			}
		}
		return o, nil
	}
	return f.randomModel(ctx)
}

// randomModel makes a model of --architecture and --variant with random weights. Its vocabulary is
// the tokenizer's.
func (f *trainFlags) randomModel(ctx context.Context) (*opened, error) {
	tok, err := openNamedTokenizer(ctx, f.tokenizer)
	if err == nil && len(f.add.added) > 0 {
		tok, err = f.add.extend(tok)
	}
	if err != nil {
		return nil, err
	}
	m, err := f.newModel(f.architecture, f.variant, torch.Float32, f.Seed, tok, 0)
	if err != nil {
		return nil, err
	}
	generation := specialTokens(tok)
	maps.DeleteFunc(generation, func(_ string, id any) bool { return id == nil })
	if f.GenerationConfig, err = json.MarshalIndent(generation, "", "  "); err != nil {
		return nil, err
	}
	return &opened{path: f.variant, model: m, tokenizer: tok}, nil
}

// vocabularyMultiple divides the number of rows of a new model's embedding and head. GEMMs and
// tensor parallelism need aligned rows.
const vocabularyMultiple = 64

// specialTokens are the token ids of a fresh model's config.json. Those that the tokenizer does not
// have are null, because transformers has defaults for missing keys, such as 2 to end a text.
func specialTokens(tok *tokenizer.Tokenizer) map[string]any {
	ids := map[string]any{"bos_token_id": nil, "eos_token_id": nil, "pad_token_id": nil}
	if bos, ok := tok.BOS(); ok {
		ids["bos_token_id"] = float64(bos)
	}
	if pad, ok := tok.Pad(); ok {
		ids["pad_token_id"] = float64(pad)
	}
	switch eos := tok.EOS(); len(eos) {
	case 0:
	case 1:
		ids["eos_token_id"] = float64(eos[0])
	default:
		var list []any
		for _, id := range eos {
			list = append(list, float64(id))
		}
		ids["eos_token_id"] = list
	}
	return ids
}

// newModel makes a variant of an architecture with random weights on the device of the flags. If
// tok is not nil, the vocabulary is extended or cut to its tokens, rounded up to
// vocabularyMultiple, and the config gets its special tokens. The context is extended to positions;
// 0 keeps the variant's.
func (f *modelFlags) newModel(architecture, variant string, dtype torch.DType, seed int64,
	tok *tokenizer.Tokenizer, positions int) (model.Model, error) {
	config, err := model.Variant(architecture, variant)
	if err != nil {
		return nil, usageError{err}
	}
	if tok != nil {
		maps.Copy(config, specialTokens(tok))
		rows := (tok.VocabSize() + vocabularyMultiple - 1) / vocabularyMultiple * vocabularyMultiple
		config["vocab_size"] = float64(rows)
	}
	if most, ok := config["max_position_embeddings"].(float64); ok && most < float64(positions) {
		config["max_position_embeddings"] = float64(positions)
	}
	if given, err := parseDType(f.dtype); err != nil {
		return nil, err
	} else if given != nil {
		dtype = *given
	}
	device, err := parseDevice(f.device)
	if err != nil {
		return nil, err
	}
	if err := setThreads(f.threads); err != nil {
		return nil, err
	}
	m, err := model.New(config)
	if err == nil && f.fits != nil {
		err = f.fits(m, dtype, device)
	}
	if err != nil {
		return nil, err
	}
	if f.onHost {
		device = torch.CPU
	}
	if f.world != nil {
		if _, err := parallel.Divide(m, f.world.All, device); err != nil {
			return nil, err
		}
	}
	err = torch.Run(func() error {
		torch.ManualSeed(seed)
		model.Initialize(m, dtype, device)
		return nil
	})
	if err == nil {
		err = f.setStates(m)
	}
	if err != nil {
		model.Free(m)
		return nil, err
	}
	return m, nil
}

// load reads and encodes the data sets.
func (f *trainFlags) load(ctx context.Context, tok *tokenizer.Tokenizer) (data,
	validation *dataset.Dataset, err error) {
	sets, err := f.loadAll(ctx, f.data, "data", tok)
	if err == nil {
		err = f.records.checkUsed()
	}
	if err == nil {
		data, err = f.records.join(sets)
	}
	if err != nil {
		return nil, nil, err
	}
	printShares(&visibleWriter{out: stdout}, f.data, data.Shares())
	if len(f.validation) > 0 {
		if sets, err = f.loadAll(ctx, f.validation, "validation", tok); err == nil {
			validation = new(dataset.Dataset)
			for _, d := range sets {
				validation.Append(d)
			}
		}
	} else if f.fraction != 0 {
		if data, validation, err = data.Split(f.fraction, uint64(f.Seed)); err != nil {
			err = fmt.Errorf("--validation_fraction: %w", err)
		}
	}
	return data, validation, err
}

// loadAll returns a data set for each path.
func (f *trainFlags) loadAll(ctx context.Context, paths []string, what string,
	tok *tokenizer.Tokenizer) (sets []*dataset.Dataset, err error) {
	validation := what == "validation"
	for _, path := range paths {
		all := new(dataset.Dataset)
		heldOut, err := loadPath(ctx, path, validation, tok,
			func(file string) dataset.Options {
				return f.dataOptions(ctx, file, validation)
			},
			func(file string, d *dataset.Dataset) {
				all.Append(d)
				printLoaded(what, file, d)
			})
		if err != nil {
			return nil, err
		}
		if !validation {
			printFiles("held out, for --validation_path "+path, heldOut)
		}
		sets = append(sets, all)
	}
	return sets, nil
}

func (f *trainFlags) dataOptions(ctx context.Context, path string,
	validation bool) dataset.Options {
	bar := progress.Tasks(os.Stderr, progress.Bytes)
	o := dataset.Options{MaxLength: f.RowLength(), Inputs: f.inputs, LastAnswer: f.lastAnswer,
		Layout: f.Layout(), Validation: validation, Progress: func(done, total int64) error {
			if f.World == nil || f.World.Rank == 0 {
				bar("reading "+path, done, total)
			}
			return ctx.Err()
		}}
	f.records.set(&o)
	return o
}

// printFiles prints which files of a folder, an archive or a repository were chosen.
func printFiles(how string, names []string) {
	if len(names) == 0 {
		return
	}
	list := strings.Join(names[:min(len(names), 4)], ", ")
	if more := len(names) - 4; more > 0 {
		list += fmt.Sprintf(" and %d more", more)
	}
	fmt.Fprintf(stdout, "  %s: %s\n", how, list)
}

// answer prints the model's answers to --ask as they are generated.
func (f *trainFlags) answer(ctx context.Context, t *train.Trainer, o *opened, when string) error {
	if len(f.ask) == 0 {
		return nil
	}
	return t.Ask(func() ([]train.Answer, error) { return f.answers(ctx, o, when, textOutput()) })
}

// answers writes the model's answers to --ask to out, and returns them.
func (f *trainFlags) answers(ctx context.Context, o *opened, when string,
	out io.Writer) (list []train.Answer, err error) {
	for i, question := range f.ask {
		prompt, special, err := dataset.InstructionPrompt(o.tokenizer, question, "")
		if err != nil {
			return nil, err
		}
		ids, begin := o.tokenizer.Encode(prompt, special), time.Now()
		fmt.Fprintf(out, "\n%s: %s\n  ", when, question)
		text := indented{out: out}
		results, _, err := generate.Generate(ctx, o.model, o.tokenizer, [][]int32{ids},
			generate.Options{MaxNewTokens: 80}, func(_ int, piece string) { text.write(piece) })
		fmt.Fprintln(out)
		if err != nil {
			return nil, err
		}
		list = append(list, train.Answer{Number: i + 1, Question: question, Text: results[0].Text,
			Seconds: time.Since(begin).Seconds()})
	}
	fmt.Fprintln(out)
	return list, nil
}

// finish writes the result and prints its path and a command that uses it.
func (f *trainFlags) finish(t *train.Trainer, o *opened) error {
	export := t.Export
	if f.merge {
		export = t.ExportMerged
	}
	if err := export(f.output); err != nil || f.World != nil && f.World.Rank > 0 {
		return err
	}
	picture := filepath.Join(f.output, "loss.png")
	if err := report.PlotLoss(filepath.Join(f.output, report.MetricsFile), picture); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "peak memory %.2f GB\nwrote %s (losses in %s)\ntry:\n",
		float64(t.PeakMemory())/1e9, f.output, picture)
	fmt.Fprintf(stdout, "  %s\n", f.trial(o.tokenizer))
	if f.LoRA == nil || f.merge {
		return nil
	}
	if names := f.LoRA.Unread(o.model); len(names) > 0 {
		note("conquer train: PEFT loads no adapter on %s of this architecture: for transformers, "+
			"write the merged model with conquer export --model_path %s --output_path FOLDER\n",
			strings.Join(names, ", "), quoted(f.output))
	}
	return nil
}

// trial is a command that tries the result. Its prompt has the form that training gave to the
// questions of --ask: the chat template's or, without one, Alpaca's. Without a question and a
// template, it is the start of a text.
func (f *trainFlags) trial(tok *tokenizer.Tokenizer) string {
	command := "conquer generate --model_path " + quoted(f.output)
	if f.LoRA != nil && !f.merge {
		command = fmt.Sprintf("conquer generate --model_path %s --adapter_path %s", quoted(f.path),
			quoted(f.output))
	}
	chat := tok.ChatTemplate() != ""
	switch {
	case chat && len(f.ask) == 0:
		return command + " --chat --prompt 'Why is the sky blue?'"
	case chat:
		return command + " --chat --prompt " + quoted(f.ask[0])
	case len(f.ask) > 0:
		prompt, _, _ := dataset.InstructionPrompt(tok, f.ask[0], "")
		return command + " --prompt " + quoted(prompt)
	}
	return command + " --temperature 0.7 --prompt 'The '"
}

// quoted returns text as a shell takes it as one word.
func quoted(text string) string {
	if text != "" && strings.Trim(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"+
		"0123456789._/:@=,+-") == "" {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

// thousands formats a count, such as 134.5M.
func thousands(n int) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2fB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1fM", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1fk", float64(n)/1e3)
	}
	return fmt.Sprint(n)
}
