package families_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"conquer/checkpoint"
	_ "conquer/families"
	"conquer/generate"
	"conquer/lora"
	"conquer/model"
	"conquer/parallel"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// A fixture is a folder that a script in tools/fixtures wrote: config.json and model.safetensors of
// a small random model, and expected.safetensors with
//
//	ids     int64 [L] or [B,L]      prompts
//	logits  float32 [..., L, V]     of the prompts
//	greedy  int64 [...]             the tokens that greedy decoding adds
//
// gguf-error.txt, if it is there, is part of the error that the export to GGUF must give.
type fixture struct {
	name, folder string
	modelType    string
}

// fixtures lists those of all families, or those in the folder that FAMILIES_PARITY names, as
// FAMILY/testdata/KIND.
func fixtures(t testing.TB) []fixture {
	t.Helper()
	roots := []string{"..", "."}
	if dir := os.Getenv("FAMILIES_PARITY"); dir != "" {
		roots = []string{dir}
	}
	var list []fixture
	for _, root := range roots {
		files, err := filepath.Glob(filepath.Join(root, "*", "testdata", "*",
			"expected.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			folder := filepath.Dir(file)
			text, err := os.ReadFile(filepath.Join(folder, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			f := fixture{folder: folder}
			var config map[string]any
			if err := json.Unmarshal(text, &config); err != nil {
				t.Fatal(err)
			}
			f.modelType, _ = config["model_type"].(string)
			f.name = filepath.Base(filepath.Dir(filepath.Dir(folder))) + "/" + filepath.Base(folder)
			list = append(list, f)
		}
	}
	if len(list) == 0 {
		t.Fatal("there are no fixtures")
	}
	return list
}

// each runs a test on every fixture's model.
func each(t *testing.T, test func(t *testing.T, f fixture, m model.Model)) {
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			before := torch.LiveTensors()
			m := open(t, f.folder)
			if err := torch.Run(func() error { test(t, f, m); return nil }); err != nil {
				t.Error(err)
			}
			if model.Free(m); torch.LiveTensors() != before {
				t.Errorf("%d tensors are left over", torch.LiveTensors()-before)
			}
		})
	}
}

func open(t testing.TB, path string) model.Model {
	t.Helper()
	m, err := model.Open(path, torch.Float32, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// prompt returns the fixture's first prompt, its logits, and the tokens that follow it.
func (f fixture) prompt(t testing.TB) (ids []int32, logits []float32, greedy []int32) {
	t.Helper()
	c, err := checkpoint.Open(filepath.Join(f.folder, "expected.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	rows := 1
	values := map[string]torch.Tensor{}
	for _, name := range []string{"ids", "logits", "greedy"} {
		if values[name], err = c.Tensor(name); err != nil {
			t.Fatal(err)
		}
	}
	if values["ids"].Rank() == 2 {
		rows = values["ids"].Size(0)
	}
	ids, logits = torch.Values[int32](values["ids"]), torch.Values[float32](values["logits"])
	greedy = torch.Values[int32](values["greedy"])
	return ids[:len(ids)/rows], logits[:len(logits)/rows], greedy[:len(greedy)/rows]
}

// varies reports whether the rotary embedding of f's model depends on the length of the longest
// sequence of a pass: then a sequence in parts, or beside a longer one, has other logits.
func (f fixture) varies(m model.Model) bool {
	for _, key := range []string{"rope_parameters", "rope_scaling"} {
		rope, _ := m.Config()[key].(map[string]any)
		if kind := rope["rope_type"]; kind == "dynamic" || kind == "longrope" {
			return true
		}
	}
	return false
}

// longer adds tokens to ids, so that every expert of a mixture gets some.
func longer(m model.Model, ids []int32) []int32 {
	for id := range min(m.Head().Shape[0], 80) {
		ids = append(ids, int32(id))
	}
	return ids
}

// logitsOf computes the logits of ids.
func logitsOf(m model.Model, ids []int32) (logits []float32) {
	torch.NoGrad(func() {
		torch.Scoped(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			logits = torch.Values[float32](model.Logits(m, model.Sequence{IDs: input}))
		})
	})
	return logits
}

// near holds got to want within 1e-4 of the largest logit.
func near(t testing.TB, how string, got, want []float32) {
	t.Helper()
	if worst, err := distance(got, want); err != nil || !(worst <= 1e-4) {
		t.Errorf("%s: logits are off by %.3g of the largest (%v)", how, worst, err)
	}
}

// distance is the largest difference, relative to the largest value of want.
func distance(got, want []float32) (float64, error) {
	if len(got) != len(want) {
		return 0, fmt.Errorf("%d values, expected %d", len(got), len(want))
	}
	largest, worst := 0.0, 0.0
	for i := range want {
		largest = math.Max(largest, math.Abs(float64(want[i])))
		if d := math.Abs(float64(got[i] - want[i])); !(d <= worst) {
			worst = d
		}
	}
	return worst / largest, nil
}

func TestFamilies_LogitsAgreeWithTransformers(t *testing.T) {
	each(t, func(t *testing.T, f fixture, m model.Model) {
		ids, want, greedy := f.prompt(t)
		near(t, "at once", logitsOf(m, ids), want)
		torch.NoGrad(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			cache := m.NewCache(1, len(ids), torch.Float32, torch.CPU)
			defer cache.Free()
			var got []float32
			for at, size := 0, 0; at < len(ids); at += size {
				size = min([]int{9, 1, 6, 1, 1, 2}[at%6], len(ids)-at)
				part := model.Sequence{IDs: input.Narrow(1, at, size), Cache: cache}
				got = append(got, torch.Values[float32](model.Logits(m, part))...)
			}
			if !f.varies(m) {
				near(t, "in parts through the cache", got, want)
			}
		})
		text := func(compile generate.Compile, prompts ...[]int32) [][]int32 {
			o := generate.Options{MaxNewTokens: len(greedy), IgnoreEOS: true, Compile: compile}
			results, _, err := generate.Generate(context.Background(), m, nil, prompts, o, nil)
			if err != nil {
				t.Fatal(err)
			}
			var tokens [][]int32
			for _, r := range results {
				tokens = append(tokens, r.Tokens)
			}
			return tokens
		}
		alone := text(generate.CompileNone, ids[3:])[0]
		for _, compile := range []generate.Compile{generate.CompileNone, generate.CompileGraph} {
			got := text(compile, ids, ids[3:]) // the second is padded
			if !slices.Equal(got[0], greedy) {
				t.Errorf("compile %s: greedy tokens %v, transformers' %v", compile, got[0], greedy)
			}
			if !slices.Equal(got[1], alone) && !f.varies(m) {
				t.Errorf("compile %s: padded prompt %v, alone %v", compile, got[1], alone)
			}
		}
	})
}

func TestFamilies_ExportedFolderHoldsTheSameWeights(t *testing.T) {
	each(t, func(t *testing.T, f fixture, m model.Model) {
		config, err := json.Marshal(m.Config())
		if err != nil {
			t.Fatal(err)
		}
		folder := filepath.Join(t.TempDir(), "m")
		if err := checkpoint.Save(folder, model.Weights(m),
			checkpoint.Options{Config: config}); err != nil {
			t.Fatal(err)
		}
		sameModel(t, m, folder)
	})
}

func TestFamilies_GGUFHoldsTheSameWeights(t *testing.T) {
	each(t, func(t *testing.T, f fixture, m model.Model) {
		config, err := json.Marshal(m.Config())
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "model.gguf")
		if os.Getenv("FAMILIES_PARITY") != "" {
			// for tools/parity/family_models.py, which opens it in llama.cpp
			path = filepath.Join(f.folder, "model.gguf")
		}
		options := checkpoint.Options{Config: config,
			Metadata: map[string]any{"tokenizer.ggml.model": "no_vocab"}}
		err = checkpoint.SaveGGUF(path, model.Weights(m), options)
		reason, missing := os.ReadFile(filepath.Join(f.folder, "gguf-error.txt"))
		switch {
		case missing == nil:
			if err == nil || !strings.Contains(err.Error(), strings.TrimSpace(string(reason))) {
				t.Errorf("got %v, expected an error with %q", err, reason)
			}
		case !hasGGUF(f.modelType):
			if err == nil || !strings.Contains(err.Error(),
				f.modelType) || !strings.Contains(err.Error(), "--format hf") {
				t.Errorf("got %v, expected an error that names %s and --format hf", err,
					f.modelType)
			}
		case err != nil:
			t.Error(err)
		case f.modelType == "falcon_h1": // the weights are multiplied by the multipliers
			back := open(t, path)
			ids, _, _ := f.prompt(t)
			near(t, path, logitsOf(back, ids), logitsOf(m, ids))
			model.Free(back)
		default:
			sameModel(t, m, path)
		}
	})
}

func hasGGUF(modelType string) bool {
	for _, a := range model.Architectures() {
		for _, f := range a.Formats {
			if f.ToGGUF != nil && slices.Contains(f.ModelTypes, modelType) {
				return true
			}
		}
	}
	return false
}

// sameModel demands that the checkpoint at path opens as a model with m's weights, bit for bit, and
// m's logits. A_log, of which GGUF holds -exp(A_log), may differ in the last digits, and a
// convolution without bias has one of zeros.
func sameModel(t *testing.T, m model.Model, path string) {
	t.Helper()
	back := open(t, path)
	defer model.Free(back)
	want := map[string]nn.Component{}
	nn.Walk(m, func(c nn.Component) { want[c.Name] = c })
	nn.Walk(back, func(c nn.Component) {
		w, ok := want[c.Name]
		delete(want, c.Name)
		rows := func(c nn.Component) torch.Tensor {
			return c.Param.Detach().Narrow(0, c.Start, c.Rows).Contiguous()
		}
		switch {
		case !ok && strings.HasSuffix(path, ".gguf") && strings.HasSuffix(c.Name, ".conv1d.bias"):
			if torch.Item[float64](rows(c).Abs().Max()) != 0 {
				t.Errorf("%s is not zero", c.Name)
			}
		case !ok:
			t.Errorf("the model has no weight %s", c.Name)
		case strings.HasSuffix(path, ".gguf") && strings.HasSuffix(c.Name, ".A_log"):
			if worst := torch.Item[float64](rows(c).Sub(rows(w)).Abs().Max()); worst > 1e-5 {
				t.Errorf("%s differs by %g", c.Name, worst)
			}
		case string(rows(c).Data()) != string(rows(w).Data()):
			t.Errorf("%s differs", c.Name)
		}
	})
	if len(want) > 0 {
		t.Errorf("missing: %v", slices.Sorted(maps.Keys(want)))
	}
	ids := []int32{1, 5, 9, 2, 7, 3, 3, 11, 4, 8}
	near(t, path, logitsOf(back, ids), logitsOf(m, ids))
}

// gradients says of each weight whether its gradient is zero, by the expert that the weight belongs
// to, or by its own name.
type gradients map[string]map[string]bool

// cutLast takes the last part of a name off.
func cutLast(name string) (before, last string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	return name[:max(i, 0)], name[i+1:], i >= 0
}

func (r gradients) add(name string, gradient torch.Tensor) {
	key := name
	for _, part := range []string{".experts.", ".block_sparse_moe."} {
		before, after, ok := strings.Cut(name, part)
		number, _, _ := strings.Cut(after, ".")
		if _, err := strconv.Atoi(number); ok && err == nil {
			key = before + ".experts." + number
		}
	}
	if r[key] == nil {
		r[key] = map[string]bool{}
	}
	r[key][name] = gradient.Defined() && torch.Item[float64](gradient.Abs().Max()) > 0
}

// check demands a gradient of every weight. An expert without tokens has none, but some expert of
// its layer has.
func (r gradients) check(t *testing.T) {
	t.Helper()
	layers := map[string]bool{}
	for key, weights := range r {
		idle := true
		for _, got := range weights {
			idle = idle && !got
		}
		layer, _, expert := strings.Cut(key, ".experts.")
		if expert {
			layers[layer] = layers[layer] || !idle
			if idle {
				continue
			}
		}
		for name, got := range weights {
			if !got {
				t.Errorf("%s gets no gradient", name)
			}
		}
	}
	for layer, got := range layers {
		if !got {
			t.Errorf("no expert of %s gets a gradient", layer)
		}
	}
}

func TestFamilies_LoRAReachesEveryLinearLayer(t *testing.T) {
	each(t, func(t *testing.T, f fixture, m model.Model) {
		ids, _, _ := f.prompt(t)
		ids = longer(m, ids)
		before := logitsOf(m, ids)
		targets := []string{lora.AllLinear}
		for _, l := range lora.Layers(m) {
			if l.Refused { // by PEFT; it is adapted because its name is given
				targets = append(targets, l.Name[strings.LastIndexByte(l.Name, '.')+1:])
			}
		}
		if err := lora.Attach(m, lora.Config{Rank: 2, Alpha: 4, Targets: targets}); err != nil {
			t.Fatal(err)
		}
		adapters := lora.Adapters(m)
		reached := map[string]bool{}
		for _, a := range adapters {
			reached[a.Name[strings.LastIndexByte(a.Name, '.')+1:]] = true
			a.A.Tensor.RequireGrad(true)
			a.B.Tensor.RequireGrad(true)
			torch.NoGrad(func() { a.B.Tensor.Normal(0, 0.05) })
		}
		// Every matrix of a block is a linear layer. Convolutions have three dimensions.
		nn.Walk(m, func(c nn.Component) {
			name := strings.TrimSuffix(c.Name, ".weight")
			inBlock := strings.Contains(name, "layers.")
			has := slices.ContainsFunc(adapters, func(a *nn.LoRA) bool {
				stack, last, _ := cutLast(name)
				inStack := strings.HasPrefix(a.Name, stack+".") &&
					strings.HasSuffix(a.Name, "."+last)
				return a.Name == name || c.Param.Stack > 0 && inStack
			})
			if inBlock && len(c.Param.Shape) == 2 && !has {
				t.Errorf("%s has no adapter", c.Name)
			}
		})
		for _, a := range model.Architectures() {
			if targets := slices.Sorted(maps.Keys(reached)); slices.Contains(a.ModelTypes,
				f.modelType) {
				for _, target := range targets {
					if !slices.Contains(a.LoRATargets, target) {
						t.Errorf("%s is none of the architecture's LoRA targets %v", target,
							a.LoRATargets)
					}
				}
			}
		}
		torch.Scoped(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			hidden := model.Hidden(m, model.Sequence{IDs: input}).Squeeze(0)
			loss, _ := m.Head().Loss(hidden, input.Squeeze(0), torch.Loss{})
			loss.Backward()
			got := gradients{}
			for _, a := range adapters {
				for _, p := range []*nn.Param{a.A, a.B} {
					got.add(a.Name, p.Tensor.Grad())
				}
			}
			got.check(t)
		})
		for _, a := range adapters {
			a.A.Tensor.ClearGrad()
			a.B.Tensor.ClearGrad()
		}
		adapted := logitsOf(m, ids)
		if d, err := distance(adapted, before); err != nil || d < 1e-3 {
			t.Errorf("adapters change the logits by %g only (%v)", d, err)
		}
		if err := lora.Merge(m); err != nil {
			t.Fatal(err)
		}
		near(t, "merged", logitsOf(m, ids), adapted)
	})
}

func TestFamilies_EveryWeightGetsAGradient(t *testing.T) {
	each(t, func(t *testing.T, f fixture, m model.Model) {
		ids, _, _ := f.prompt(t)
		ids = longer(m, ids)
		for _, p := range nn.Params(m) {
			p.Tensor.RequireGrad(true)
		}
		torch.Scoped(func() {
			input := torch.From(ids, 1, len(ids)).To(torch.Int64)
			hidden := model.Hidden(m, model.Sequence{IDs: input}).Squeeze(0)
			loss, _ := m.Head().Loss(hidden.Narrow(0, 0, len(ids)-1),
				input.Squeeze(0).Narrow(0, 1, len(ids)-1), torch.Loss{})
			loss.Backward()
			// The fused loss and the plain one agree, and so does the slope along the gradient.
			logits := m.Head().Logits(hidden).LogSoftmax(-1)
			plain := 0.0
			for i, id := range ids[1:] {
				plain -= torch.Item[float64](logits.Select(0, i).Select(0,
					int(id))) / float64(len(ids)-1)
			}
			if got := torch.Item[float64](loss); !(math.Abs(got-plain) < 1e-4*math.Max(1, plain)) {
				t.Errorf("loss %g, from the logits %g", got, plain)
			}
			got := gradients{}
			nn.Walk(m, func(c nn.Component) {
				if strings.HasSuffix(c.Name, chosenBy) {
					return
				}
				if g := c.Param.Tensor.Grad(); g.Defined() {
					g = g.Narrow(0, c.Start, c.Rows)
					got.add(c.Name, g)
				} else {
					t.Errorf("%s has no gradient", c.Name)
				}
			})
			got.check(t)
		})
		for _, p := range nn.Params(m) {
			p.Tensor.ClearGrad()
			p.Tensor.RequireGrad(false)
		}
	})
}

func TestFamilies_EveryArchitectureHasFixturesAndVariants(t *testing.T) {
	list := fixtures(t)
	for _, a := range model.Architectures() {
		for _, kind := range a.ModelTypes {
			if !slices.ContainsFunc(list, func(f fixture) bool { return f.modelType == kind }) {
				t.Errorf("model type %s of architecture %s has no fixture", kind, a.Name)
			}
		}
		if len(a.Variants) == 0 || len(a.LoRATargets) == 0 {
			t.Errorf("architecture %s has %d variants and %d LoRA targets", a.Name,
				len(a.Variants), len(a.LoRATargets))
		}
		for name, config := range a.Variants {
			m, err := model.New(config)
			if err != nil || m.Architecture() != a.Name {
				t.Errorf("%s %s: %v", a.Name, name, err)
			}
		}
	}
}

// A child process divides the models of all fixtures with the others of its group.
func TestMain(m *testing.M) {
	torch.SetThreads(1)
	if os.Getenv("CONQUER_FAMILIES_CHILD") == "" {
		os.Exit(m.Run())
	}
	place, err := dist.FromEnvironment()
	if err == nil {
		var w *dist.World
		if w, err = dist.Join(place, torch.CPU, time.Minute); err == nil {
			for _, f := range fixtures(&testing.B{}) {
				if e := divided(f, w); e != nil {
					fmt.Fprintf(os.Stderr, "%s: %v\n", f.name, e)
					err = e
				}
			}
			w.Leave()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// divided compares the logits of a fixture's model, divided over the processes of w, with those of
// transformers.
func divided(f fixture, w *dist.World) error {
	return torch.Run(func() error {
		m, err := model.Open(f.folder, torch.Float32, torch.CPU)
		if err != nil {
			return err
		}
		defer model.Free(m)
		_, err = parallel.Divide(m, w.All, torch.CPU)
		if err != nil && os.Getenv("FAMILIES_PARITY") != "" &&
			strings.HasSuffix(err.Error(), "choose 1 or fewer") {
			return nil // of a random size
		} else if err != nil {
			return err
		}
		ids, want, _ := f.prompt(&testing.B{})
		worst, err := distance(logitsOf(m, ids), want)
		if err == nil && !(worst <= 1e-4) {
			err = fmt.Errorf("logits are off by %.3g of the largest", worst)
		}
		return err
	})
}

func TestFamilies_TwoProcessesGiveTheSameLogits(t *testing.T) {
	store, err := dist.OpenStore("127.0.0.1", 0, true, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var ending sync.WaitGroup
	for rank := range 2 {
		child := exec.Command(os.Args[0], "-test.run=none")
		child.Env = append(os.Environ(), "CONQUER_FAMILIES_CHILD=1", fmt.Sprint("RANK=", rank),
			"WORLD_SIZE=2",
			fmt.Sprint("LOCAL_RANK=", rank), "LOCAL_WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1",
			fmt.Sprint("MASTER_PORT=", store.Port()), "TORCHELASTIC_USE_AGENT_STORE=True",
			"OMP_NUM_THREADS=1")
		ending.Go(func() {
			if output, err := child.CombinedOutput(); err != nil {
				t.Errorf("rank %d: %v: %s", rank, err, output)
			}
		})
	}
	ending.Wait()
}
