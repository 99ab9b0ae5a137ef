package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/text/tokenizer"
	"conquer/torch"
)

var infoCommand = command{
	name:    "info",
	summary: "Describe a checkpoint or this machine.",
	example: `conquer info --model_path smollm2-135m
conquer info --model_path my-model --tensors
# the processor, GPUs and libraries
conquer info --device`,
	files: true,
	setup: setupInfo,
}

// modelInfo describes a checkpoint; --json prints it.
type modelInfo struct {
	Path           string         `json:"path"`
	Adapter        string         `json:"adapter,omitempty"` // LoRA adapter of the model at Path
	Format         string         `json:"format"`
	Architecture   string         `json:"architecture,omitempty"`
	ModelType      string         `json:"model_type"`
	Parameters     int            `json:"parameters"`
	Active         int            `json:"active_parameters,omitempty"` // of a mixture
	Types          map[string]int `json:"types"`                       // stored type → parameters
	Bytes          int64          `json:"bytes"`
	Files          []fileInfo     `json:"files"`
	ContextLength  int            `json:"context_length,omitempty"`
	VocabularySize int            `json:"vocabulary_size,omitempty"`
	Layers         any            `json:"layers,omitempty"`
	Width          any            `json:"hidden_size,omitempty"`
	Heads          any            `json:"attention_heads,omitempty"`
	KeyValueHeads  any            `json:"key_value_heads,omitempty"`
	Inner          any            `json:"intermediate_size,omitempty"`
	Tokenizer      *tokenizerInfo `json:"tokenizer"`
	Tensors        []tensorInfo   `json:"tensors,omitempty"`
	Unused         []string       `json:"unused_tensors,omitempty"` // beside those of the model
	Problem        string         `json:"problem,omitempty"`
}

type fileInfo struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

type tokenizerInfo struct {
	Kind         string  `json:"kind"`
	Tokens       int     `json:"tokens"`
	BOS          *int32  `json:"bos"`
	EOS          []int32 `json:"eos"`
	ChatTemplate bool    `json:"chat_template"`
}

type tensorInfo struct {
	Name   string `json:"name"`
	Shape  []int  `json:"shape"`
	Stored string `json:"stored"`
	Bytes  int    `json:"bytes"`
	File   string `json:"file"`
}

// infoFlags are the flags of conquer info.
type infoFlags struct {
	path                  string
	tensors, device, json bool
}

func setupInfo(flags *pflag.FlagSet) func(context.Context, []string) error {
	var f infoFlags
	flags.StringVar(&f.path, "model_path", "", modelPathUsage)
	declareVerify(flags)
	flags.BoolVar(&f.tensors, "tensors", false, "list every tensor")
	flags.BoolVar(&f.device, "device", false,
		"describe the processor, GPUs and libraries instead")
	flags.BoolVar(&f.json, "json", false, "print a JSON object")
	return f.run
}

// run takes the model's path from --model_path or from the only argument.
func (f *infoFlags) run(ctx context.Context, args []string) error {
	if len(args) == 1 && f.path == "" {
		f.path, args = args[0], nil
	}
	if len(args) > 0 {
		return usagef("unexpected %q", args[len(args)-1])
	}
	if f.device {
		return showMachine(stdout, f.json)
	}
	info, err := describe(ctx, f.path, f.tensors)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(stdout, info)
	}
	out := bufio.NewWriter(&visibleWriter{out: stdout})
	defer out.Flush()
	info.print(out)
	return nil
}

// describe reads everything except the weights. If the checkpoint opens, its problems are part of
// the result.
func describe(ctx context.Context, name string, tensors bool) (*modelInfo, error) {
	path, adapter, c, err := openModel(ctx, name, "")
	if err != nil {
		return nil, err
	}
	defer c.Close()
	info := &modelInfo{Path: path, Adapter: adapter, Format: c.Format, Types: map[string]int{}}
	if adapter != "" {
		if folded, err := lora.Fold(c, adapter, false); err != nil {
			info.addProblem(err.Error())
		} else {
			folded.Close()
		}
	}
	for _, file := range c.Files() {
		if stat, err := os.Stat(file); err == nil {
			info.Files = append(info.Files, fileInfo{filepath.Base(file), stat.Size()})
			info.Bytes += stat.Size()
		}
	}
	info.addTensors(c, tensors)
	config := model.Config(c.Config())
	info.ModelType, _ = config["model_type"].(string)
	info.Layers, info.Width = config["num_hidden_layers"], config["hidden_size"]
	info.Inner = config["intermediate_size"]
	info.Heads, info.KeyValueHeads = config["num_attention_heads"], config["num_key_value_heads"]
	m, err := model.Check(c)
	if err != nil {
		info.addProblem(err.Error())
	}
	if m != nil {
		info.Architecture, info.ContextLength = m.Architecture(), m.MaxLength()
		info.VocabularySize = m.Head().Shape[0]
		if info.Layers == nil { // a config may list the layers in place of counting them
			info.Layers = len(m.Blocks())
		}
		if active := model.Active(m); active < model.Parameters(m) {
			info.Active = active
		}
		_, info.Unused = model.Unused(m, c)
	}
	tok, err := openTokenizer(ctx, "", path, adapter, c)
	if err != nil {
		info.addProblem(err.Error())
	}
	if tok != nil {
		info.Tokenizer = describeTokenizer(tok, c)
		if info.VocabularySize > 0 && !tok.Fits(info.VocabularySize) {
			info.addProblem(fmt.Sprintf("the tokenizer has %d tokens, the model %d",
				tok.VocabSize(), info.VocabularySize))
		}
	}
	return info, nil
}

// addTensors counts the parameters by stored type, and lists the tensors if list is set.
func (m *modelInfo) addTensors(c *checkpoint.Checkpoint, list bool) {
	for _, name := range c.Names() {
		t, _ := c.Info(name)
		n := 1
		for _, size := range t.Shape {
			n *= size
		}
		m.Parameters += n
		m.Types[t.Stored] += n
		if list {
			m.Tensors = append(m.Tensors,
				tensorInfo{name, t.Shape, t.Stored, t.Bytes, filepath.Base(t.File)})
		}
	}
}

func (m *modelInfo) addProblem(text string) {
	m.Problem = strings.TrimPrefix(m.Problem+"; "+text, "; ")
}

func describeTokenizer(tok *tokenizer.Tokenizer, c *checkpoint.Checkpoint) *tokenizerInfo {
	info := &tokenizerInfo{
		Kind:         "byte-level BPE",
		Tokens:       tok.VocabSize(),
		EOS:          tok.EOS(),
		ChatTemplate: tok.ChatTemplate() != "",
	}
	if _, ok := tok.ID("<0x0A>"); ok {
		info.Kind = "SentencePiece BPE with byte fallback"
	}
	if bos, ok := tok.BOS(); ok {
		info.BOS = &bos
	}
	if c.Format == checkpoint.GGUF {
		info.Kind += ", from the GGUF file"
	}
	return info
}

func (m *modelInfo) print(w io.Writer) {
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	if m.Adapter != "" {
		row("adapter", "%s (LoRA, of the model below)", m.Adapter)
	}
	row("path", "%s (%s)", m.Path, m.Format)
	row("architecture", "%s", cmp.Or(m.Architecture,
		"not supported")+" (model_type "+cmp.Or(m.ModelType, "unknown")+")")
	row("parameters", "%s", formatCount(m.Parameters))
	if m.Active > 0 {
		row("active", "%s for a token", formatCount(m.Active))
	}
	var types []string
	for name := range m.Types {
		types = append(types, name)
	}
	slices.SortFunc(types, func(a, b string) int { return m.Types[b] - m.Types[a] })
	for i, name := range types {
		types[i] = fmt.Sprintf("%s %.1f %%", name,
			100*float64(m.Types[name])/float64(max(m.Parameters, 1)))
	}
	row("stored as", "%s", strings.Join(types, ", "))
	for i, f := range m.Files {
		row([]string{"files", ""}[min(i, 1)], "%s, %s", f.Name, formatBytes(f.Bytes))
	}
	if m.Layers != nil {
		row("shape", "%v layers, width %v, feed-forward width %v, %v heads, %v key/value heads",
			m.Layers, m.Width, m.Inner, m.Heads, cmp.Or(m.KeyValueHeads, m.Heads))
	}
	if m.ContextLength > 0 {
		row("context", "%d tokens", m.ContextLength)
		row("vocabulary", "%d", m.VocabularySize)
	}
	if t := m.Tokenizer; t != nil {
		chat := "no chat template"
		if t.ChatTemplate {
			chat = "chat template"
		}
		row("tokenizer", "%s, %d tokens, %s", t.Kind, t.Tokens, chat)
	} else {
		row("tokenizer", "none")
	}
	if len(m.Unused) > 0 {
		row("unused", "%s: %s", dataset.Count(len(m.Unused), "tensor"), some(m.Unused))
	}
	if m.Problem != "" {
		row("PROBLEM", "%s", m.Problem)
	}
	m.printTensors(w)
}

func (m *modelInfo) printTensors(w io.Writer) {
	if m.Tensors != nil {
		fmt.Fprintln(w)
	}
	for _, t := range m.Tensors {
		fmt.Fprintf(w, "%-56s %-8s %-18s %s\n", t.Name, t.Stored,
			strings.ReplaceAll(fmt.Sprint(t.Shape), " ", "×"), formatBytes(int64(t.Bytes)))
	}
}

func formatCount(n int) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f billion (%d)", float64(n)/1e9, n)
	case n >= 1e6:
		return fmt.Sprintf("%.1f million (%d)", float64(n)/1e6, n)
	}
	return fmt.Sprint(n)
}

func formatBytes(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.2f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

// machineInfo describes the machine; --device prints it.
type machineInfo struct {
	Version   string    `json:"version"`
	Go        string    `json:"go"`
	Libtorch  string    `json:"libtorch"`
	Processor string    `json:"processor"`
	Cores     int       `json:"cores"`
	Threads   int       `json:"threads"`
	Driver    string    `json:"driver,omitempty"`
	GPUs      []gpuInfo `json:"gpus"`
	NoGPU     string    `json:"no_gpu,omitempty"` // why no GPU can be used
}

type gpuInfo struct {
	Name            string `json:"name"`
	Capability      string `json:"compute_capability"`
	Multiprocessors int    `json:"multiprocessors"`
	TotalBytes      int64  `json:"total_bytes"`
	FreeBytes       int64  `json:"free_bytes"`
}

func showMachine(w io.Writer, asJSON bool) error {
	m := machineInfo{
		Version:   version,
		Go:        runtime.Version(),
		Libtorch:  "2.11.0",
		Processor: processor(),
		Cores:     runtime.NumCPU(),
		GPUs:      []gpuInfo{},
	}
	err := torch.Run(func() error {
		m.Threads = torch.Threads()
		if err := torch.LoadCUDA(); err != nil {
			m.NoGPU = err.Error()
			return nil
		}
		for _, d := range torch.Devices() {
			m.GPUs = append(m.GPUs, gpuInfo{d.Name, fmt.Sprintf("%d.%d", d.Major, d.Minor),
				d.Multiprocessors, d.Total, d.Free})
		}
		return nil
	})
	if err != nil {
		return err
	}
	if data, err := os.ReadFile("/proc/driver/nvidia/version"); err == nil {
		line, _, _ := strings.Cut(string(data), "\n")
		m.Driver = strings.TrimSpace(strings.TrimPrefix(line, "NVRM version:"))
	}
	if asJSON {
		return printJSON(w, m)
	}
	m.print(w)
	return nil
}

func (m *machineInfo) print(w io.Writer) {
	fmt.Fprintf(w, "conquer    %s (%s, libtorch %s)\n", m.Version, m.Go, m.Libtorch)
	fmt.Fprintf(w, "processor  %s, %s, %s used\n", m.Processor, dataset.Count(m.Cores, "core"),
		dataset.Count(m.Threads, "thread"))
	for _, g := range m.GPUs {
		fmt.Fprintf(w, "GPU        %s, compute capability %s, %d SMs, %s, %s free\n",
			g.Name, g.Capability, g.Multiprocessors, formatBytes(g.TotalBytes),
			formatBytes(g.FreeBytes))
	}
	if m.Driver != "" {
		fmt.Fprintf(w, "driver     %s\n", m.Driver)
	}
	if m.NoGPU != "" {
		fmt.Fprintf(w, "GPU        none: %s\n", m.NoGPU)
	}
}

// processor is the name of the CPU.
func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if name, value, ok := strings.Cut(line, ":"); ok &&
			strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
