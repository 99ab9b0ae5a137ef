package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// hostileModel is a model whose author wants the program to take time or memory, or to show
// something other than what it read.
type hostileModel struct {
	name string
	// build makes a hostile model of the small model in dir, whose files are config.json,
	// generation_config.json, model.safetensors, tokenizer.json and tokenizer_config.json. It
	// returns the path to open.
	build func(t testing.TB, dir string) (path string)
	// want is part of what `conquer generate` says when it refuses the model. A model with an empty
	// want is not refused.
	want string
	args []string // of `conquer generate`, beside --model_path; by default a --prompt
}

// hostileModels are the cases of TestHostile.
var hostileModels = slices.Concat(hostileConfigs, hostileJSON, hostileKinds,
	hostileSafetensors, hostileGGUF, hostilePickles, hostileMeta, hostileText)

// What a hostile model may take when it is opened twice: seconds of processor time and of the
// clock, which has more because tests run side by side, and bytes of memory beyond the model's size
// and what the program takes for the small model that the hostile one is made of.
const (
	hostileSeconds = 10
	hostileClock   = 60 * time.Second
	hostileBytes   = 512 << 20
)

// nextCommand separates the commands that a test runs in one process, which prints its largest
// resident size when they have ended.
const nextCommand = ";"

var peakLine = regexp.MustCompile(`(?m)^VmHWM:\s*([0-9]+) kB\n`)

// runCommands runs commands in this process and returns the last one's exit code.
func runCommands(args []string) int {
	next := slices.Index(args, nextCommand)
	if next < 0 {
		return run(args, os.Stdout, os.Stderr)
	}
	run(args[:next], os.Stdout, os.Stderr)
	code := runCommands(args[next+1:])
	// What wait4 returns to the parent includes the size that the parent has.
	status, _ := os.ReadFile("/proc/self/status")
	os.Stderr.Write(peakLine.Find(status))
	return code
}

// hostileRun is what the commands did with a model.
type hostileRun struct {
	stderr  string // without the largest size
	code    int    // of the last command; -1: the process was killed
	seconds float64
	peak    int
}

// openHostile opens a model with `conquer info` and `conquer generate`, to which args belong.
func openHostile(t testing.TB, path string, args []string) (r hostileRun) {
	t.Helper()
	if args == nil {
		args = []string{"--prompt", "hello there"}
	}
	return runHostile(t, append([]string{"info", "--model_path", path, "--tensors",
		nextCommand, "generate", "--model_path", path, "--device", "cpu", "--max_new_tokens", "1"},
		args...)...)
}

// runHostile runs commands, and kills them after hostileClock.
func runHostile(t testing.TB, args ...string) (r hostileRun) {
	t.Helper()
	made, stdout, stderr := program(args...)
	ctx, cancel := context.WithTimeout(context.Background(), hostileClock)
	defer cancel()
	c := exec.CommandContext(ctx, made.Path, made.Args[1:]...)
	c.Env, c.Stdout, c.Stderr, c.WaitDelay = made.Env, stdout, stderr, time.Second
	if err := c.Run(); c.ProcessState == nil {
		t.Fatal(err)
	}
	r.code, r.stderr = c.ProcessState.ExitCode(), stderr.String()
	r.seconds = (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	if match := peakLine.FindStringSubmatch(r.stderr); match != nil {
		fmt.Sscan(match[1], &r.peak)
		r.peak *= 1024
		r.stderr = strings.Replace(r.stderr, match[0], "", 1)
	}
	return r
}

// onDisk is the number of bytes that a file, or the files of a folder, take on the disk, which is
// less than the size of a file with holes.
func onDisk(t testing.TB, path string) (bytes int) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, _ os.DirEntry, err error) error {
		var stat syscall.Stat_t
		if err == nil {
			err = syscall.Stat(path, &stat)
		}
		bytes += int(stat.Blocks) * 512
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// TestHostile_ModelsAreRefusedOrBounded opens each of hostileModels. -v prints a table of what that
// took.
func TestHostile_ModelsAreRefusedOrBounded(t *testing.T) {
	skipProcesses(t)
	innocent := writeModel(t, 704, true)
	usual := openHostile(t, innocent, nil)
	if usual.code != 0 || usual.peak == 0 {
		t.Fatalf("the model that the hostile ones are made of: %+v", usual)
	}
	var mutex sync.Mutex
	var rows []string
	t.Cleanup(func() {
		slices.Sort(rows)
		t.Logf("The small model takes %.2f seconds and %.0f MB, the others take more:\n%-48s %9s "+
			"%9s %9s\n%s", usual.seconds, float64(usual.peak)/1e6, "model", "size, MB", "seconds",
			"MB", strings.Join(rows, "\n"))
	})
	turns := make(chan struct{}, runtime.NumCPU())
	for _, m := range hostileModels {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			turns <- struct{}{}
			defer func() { <-turns }()
			dir := filepath.Join(t.TempDir(), "model")
			if err := os.CopyFS(dir, os.DirFS(innocent)); err != nil {
				t.Fatal(err)
			}
			path := m.build(t, dir)
			size := onDisk(t, path)
			r := openHostile(t, path, m.args)
			mutex.Lock()
			rows = append(rows, fmt.Sprintf("%-48s %9.1f %9.2f %9.1f", m.name, float64(size)/1e6,
				r.seconds-usual.seconds, float64(r.peak-usual.peak)/1e6))
			mutex.Unlock()
			r.check(t, usual, size, m.want)
		})
	}
}

// check compares what a hostile file of the given size took with what a usual one takes. want is
// part of the refusal, or "" if the file is not refused.
func (r hostileRun) check(t testing.TB, usual hostileRun, size int, want string) {
	t.Helper()
	if r.peak > usual.peak+size+hostileBytes {
		t.Errorf("it took %d MB, %d MB for a usual file; the files have %d MB", r.peak>>20,
			usual.peak>>20, size>>20)
	}
	if r.code < 0 || r.seconds > hostileSeconds {
		t.Errorf("it took %.1f seconds of processor time (exit %d)", r.seconds, r.code)
	}
	if r.code > 1 || r.peak == 0 || strings.Contains(r.stderr, "goroutine ") {
		t.Errorf("exit %d\n%.4000s", r.code, r.stderr)
	}
	if (want == "") != (r.code == 0) || !strings.Contains(r.stderr, want) {
		t.Errorf("exit %d, expected %q in\n%.4000s", r.code, want, r.stderr)
	}
	if len(r.stderr) > 4000 {
		t.Errorf("the message has %d bytes: %.200s", len(r.stderr), r.stderr)
	}
}

// changeJSON replaces keys of a JSON file of a model. A json.RawMessage is written as it is.
func changeJSON(t testing.TB, path string, values map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	object := map[string]any{}
	if err := json.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	for key, value := range values {
		object[key] = value
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(object); err != nil {
		t.Fatal(err)
	}
	put(t, path, b.String())
}

// put replaces a file.
func put(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

// inConfig makes the build function of a model whose config.json has these values.
func inConfig(values map[string]any) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		changeJSON(t, filepath.Join(dir, "config.json"), values)
		return dir
	}
}

// fresh makes the build function of a model of random weights whose config has these values, beside
// the tokenizer of the small model. Then its config gets the values of more.
func fresh(config, more map[string]any) func(testing.TB, string) string {
	return func(t testing.TB, dir string) string {
		variant, err := model.Variant(config["model_type"].(string), "tiny")
		if err != nil {
			t.Fatal(err)
		}
		c := model.Config(config).Or(variant)
		m, err := model.New(c)
		if err != nil {
			t.Fatal(err)
		}
		defer model.Free(m)
		if err := torch.Run(func() error {
			model.Initialize(m, torch.Float32, torch.CPU)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		out := filepath.Join(t.TempDir(), "fresh")
		if err := checkpoint.Save(out, model.Weights(m), checkpoint.Options{Config: text,
			TokenizerFrom: dir}); err != nil {
			t.Fatal(err)
		}
		changeJSON(t, filepath.Join(out, "config.json"), more)
		return out
	}
}

// hostileConfigs have numbers in config.json that ask for more than the weights hold.
var hostileConfigs = []hostileModel{
	{name: "config: a million layers", build: inConfig(map[string]any{"num_hidden_layers": 1e6}),
		want: `num_hidden_layers`},
	{name: "config: one layer more", build: inConfig(map[string]any{"num_hidden_layers": 3}),
		want: `num_hidden_layers is 3, but the weights have no layer 2`},
	{name: "config: one layer less", build: inConfig(map[string]any{"num_hidden_layers": 1}),
		want: "model.layers.1."},
	{name: "config: layers of nothing", build: inConfig(map[string]any{"intermediate_size": 1}),
		want: "config.json asks for"},
	{name: "config: a context of 2^30", build: inConfig(map[string]any{
		"max_position_embeddings": 1 << 30})},
	{name: "config: a window of 2^30", build: inConfig(map[string]any{"model_type": "mistral",
		"sliding_window": 1 << 30})},
	{name: "config: an epsilon below 0", build: inConfig(map[string]any{"rms_norm_eps": -1e-5}),
		want: `"rms_norm_eps" is`},
	{name: "config: bamba's chunk of 2^16", build: fresh(map[string]any{"model_type": "bamba",
		"vocab_size": 704.0}, map[string]any{"mamba_chunk_size": 1 << 16})},
	{name: "config: bamba's chunk of 1", build: fresh(map[string]any{"model_type": "bamba",
		"vocab_size": 704.0}, map[string]any{"mamba_chunk_size": 1})},
	{name: "config: bamba's attention everywhere", build: fresh(map[string]any{
		"model_type": "bamba", "vocab_size": 704.0}, map[string]any{
		"attn_layer_indices": json.RawMessage("[" + strings.Repeat("2,", 900_000) + "2]")}),
		want: "attn_layer_indices"},
	{name: "config: mamba2's chunk of 2^16", build: fresh(map[string]any{"model_type": "mamba2",
		"vocab_size": 704.0}, map[string]any{"chunk_size": 1 << 16})},
	{name: "config: mamba2's chunk of 2^30", build: fresh(map[string]any{"model_type": "mamba2",
		"vocab_size": 704.0}, map[string]any{"chunk_size": 1 << 30}), want: `"chunk_size" is`},
	{name: "config: width 2^40", build: inConfig(map[string]any{"hidden_size": 1 << 40}),
		want: `"hidden_size" is`},
}
