package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/bench"
	"conquer/generate"
	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train"
)

// The tests of `make test-gpu`. A GPU must compute the same results as the CPU.

// needGPU skips the test, with the reason, if no GPU can be used.
func needGPU(t testing.TB) torch.Device {
	t.Helper()
	if err := torch.LoadCUDA(); err != nil {
		t.Skip("SKIPPED, this needs a GPU: ", err)
	}
	return torch.CUDA(0)
}

// decoders are architectures that differ in what their blocks compute.
var decoders = []string{"llama", "bamba", "qwen3", "granite", "smollm3"}

// sized returns a config large enough that every kernel is used.
func sized(t testing.TB, architecture string) model.Config {
	t.Helper()
	variant := map[string]string{"llama": "micro", "bamba": "small", "qwen3": "0.6b",
		"granite": "3.3-2b", "smollm3": "tiny"}[architecture]
	config, err := model.Variant(architecture, variant)
	if err != nil {
		t.Fatal(err)
	}
	config["vocab_size"], config["num_hidden_layers"] = 1024.0, 4.0
	config["initializer_range"] = 0.08
	switch architecture {
	case "qwen3", "granite", "smollm3":
		config["hidden_size"], config["intermediate_size"] = 512.0, 1024.0
		config["num_attention_heads"], config["num_key_value_heads"] = 8.0, 4.0
	case "bamba":
		config["attn_layer_indices"] = []any{2.0}
		config["hidden_size"], config["mamba_d_head"] = 512.0, 64.0
		config["mamba_d_state"], config["mamba_n_heads"] = 128.0, 16.0
	}
	return config
}

// random makes a model of a config with the same weights on each device.
func random(t testing.TB, config model.Config, dtype torch.DType, device torch.Device) model.Model {
	t.Helper()
	m, err := model.New(config.Clone())
	if err != nil {
		t.Fatal(err)
	}
	if err := torch.Run(func() error {
		torch.ManualSeed(5)
		model.Initialize(m, torch.Float32, torch.CPU)
		for _, p := range nn.Params(m) {
			moved := p.To(dtype).ToDevice(device).Clone().Own()
			p.Tensor.Free()
			p.Tensor = moved
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Free(m) })
	return m
}

var gpuPrompts = [][]int32{
	{5, 6, 7, 8, 9, 10, 11, 500, 3},
	{300},
	{20, 400, 3, 77},
	slices.Repeat([]int32{9, 800, 31, 7}, 40),
}

func TestGPU_GeneratesSameTextAsCPU(t *testing.T) {
	device := needGPU(t)
	for _, architecture := range []string{"llama", "bamba"} {
		t.Run(architecture, func(t *testing.T) {
			config := sized(t, architecture)
			cpu, gpu := random(t, config, torch.Float32, torch.CPU), random(t, config,
				torch.Float32, device)
			for _, o := range []generate.Options{{},
				{Temperature: 0.8, TopK: 40, TopP: 0.9, Seed: 3, RepetitionPenalty: 1.2}} {
				o.MaxNewTokens, o.IgnoreEOS, o.Compile = 40, true, generate.CompileNone
				for _, batch := range [][][]int32{gpuPrompts, gpuPrompts[:1], gpuPrompts[3:]} {
					want := mustGenerate(t, cpu, batch, o)
					for _, compile := range []generate.Compile{generate.CompileNone,
						generate.CompileGraph} {
						o := o
						o.Compile = compile
						for i, r := range mustGenerate(t, gpu, batch, o) {
							if !slices.Equal(r.Tokens, want[i].Tokens) {
								t.Errorf("%s, temperature %v, prompt %d of %d: the GPU gave %v, "+
									"the CPU %v", compile, o.Temperature, i, len(batch), r.Tokens,
									want[i].Tokens)
							}
						}
					}
				}
			}
		})
	}
}

func TestGPU_ReplayEqualsLaunchesInBFloat16(t *testing.T) {
	device := needGPU(t)
	for _, architecture := range decoders {
		m := random(t, sized(t, architecture), torch.BFloat16, device)
		o := generate.Options{MaxNewTokens: 60, IgnoreEOS: true, Compile: generate.CompileNone}
		want := mustGenerate(t, m, gpuPrompts[3:], o)[0].Tokens
		o.Compile = generate.CompileGraph
		if got := mustGenerate(t, m, gpuPrompts[3:], o)[0].Tokens; !slices.Equal(got, want) {
			t.Errorf("%s: recorded %v, one by one %v", architecture, got, want)
		}
	}
}

// A session's cache is larger than that of one generation and holds earlier turns, so sums are
// split differently. In float32 the difference is too small to change the most likely token.
func TestGPU_SessionEqualsSingleTurns(t *testing.T) {
	device := needGPU(t)
	m := random(t, sized(t, "llama"), torch.Float32, device)
	s := generate.NewSession(m, nil)
	defer s.Close()
	ids := slices.Clone(gpuPrompts[0])
	for range 3 { // later turns replay the recording
		r, _, err := s.Generate(context.Background(), ids,
			generate.Options{MaxNewTokens: 20, IgnoreEOS: true}, nil)
		if err != nil {
			t.Fatal(err)
		}
		alone := mustGenerate(t, m, [][]int32{ids},
			generate.Options{MaxNewTokens: 20, IgnoreEOS: true, Compile: generate.CompileNone})[0]
		if !slices.Equal(alone.Tokens, r.Tokens) {
			t.Errorf("a session gave %v, alone %v", r.Tokens, alone.Tokens)
		}
		ids = append(append(ids, r.Tokens...), 17)
	}
}

func TestGPU_LogitsAreNearCPU(t *testing.T) {
	device := needGPU(t)
	for _, architecture := range decoders {
		for dtype, limit := range map[torch.DType]float64{torch.Float32: 1e-3,
			torch.BFloat16: 5e-2} {
			config := sized(t, architecture)
			cpu, gpu := random(t, config, torch.Float32, torch.CPU), random(t, config, dtype,
				device)
			if err := torch.Run(func() error {
				torch.NoGrad(func() {
					ids := torch.RandInt(1024, []int{2, 200}, torch.CPU)
					want := torch.Values[float32](model.Logits(cpu, model.Sequence{IDs: ids}))
					got := torch.Values[float32](model.Logits(gpu,
						model.Sequence{IDs: ids.ToDevice(device)}).ToDevice(torch.CPU))
					if d := distanceOf(got, want); !(d < limit) {
						t.Errorf("%s in %v: logits differ by %.2g of their norm", architecture,
							dtype, d)
					}
				})
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
	}
}

func distanceOf(got, want []float32) float64 {
	var d, n float64
	for i := range want {
		d += math.Pow(float64(got[i]-want[i]), 2)
		n += math.Pow(float64(want[i]), 2)
	}
	return math.Sqrt(d / n)
}

// losses trains for fifty steps from the same weights on the same samples and returns the losses.
func losses(t *testing.T, architecture string, dtype torch.DType, d torch.Device,
	o train.Options) []float64 {
	t.Helper()
	list, _ := recordedLosses(t, architecture, dtype, d, o)
	return list
}

// recordedLosses also reports whether passes were replayed.
func recordedLosses(t *testing.T, architecture string, dtype torch.DType, d torch.Device,
	o train.Options) ([]float64, bool) {
	t.Helper()
	data := &dataset.Dataset{}
	for i := range 16 {
		var s dataset.Sample
		for j := range 40 + 3*i {
			s.IDs = append(s.IDs, int32((i*37+j*j)%1024))
		}
		s.Labels = slices.Clone(s.IDs)
		s.Labels[0], s.Labels[1] = dataset.IgnoreLabel, dataset.IgnoreLabel
		data.Samples = append(data.Samples, s)
	}
	m := random(t, sized(t, architecture), dtype, d)
	o.Steps, o.BatchSize, o.SequenceLength, o.Rate, o.Clip, o.Seed = 50, 4, 96, 1e-3, 1, 1
	tr, err := train.New(m, data, nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	var list []float64
	tr.Listen(listener(func(s train.Step) { list = append(list, s.Loss) }))
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	return list, tr.Recorded()
}

// largestDifference is the largest difference of two runs' losses, as a share of the loss.
func largestDifference(got, want []float64) (worst float64) {
	for i := range want {
		worst = max(worst, math.Abs(got[i]-want[i])/max(want[i], 0.5))
	}
	return worst
}

// Recomputation repeats the same computation. Only sums in an undefined order on the GPU may
// differ.
func TestGPU_RecomputationKeepsLosses(t *testing.T) {
	device := needGPU(t)
	for _, architecture := range []string{"llama", "bamba"} {
		want := losses(t, architecture, torch.BFloat16, device, train.Options{})
		for _, recompute := range []train.Recompute{train.RecomputeSelective,
			train.RecomputeBlock} {
			got := losses(t, architecture, torch.BFloat16, device,
				train.Options{Recompute: recompute})
			t.Logf("%s, %s: largest difference %.2g", architecture, recompute,
				largestDifference(got, want))
			if !(largestDifference(got, want) < 3e-3) {
				t.Errorf("%s, %s: recomputed %.4f, kept %.4f", architecture, recompute, got, want)
			}
		}
	}
}

func TestGPU_LossesFollowCPUForFiftySteps(t *testing.T) {
	device := needGPU(t)
	for _, c := range []struct {
		name, architecture string
		dtype              torch.DType
		limit              float64
		options            train.Options
	}{
		{"llama", "llama", torch.Float32, 2e-4, train.Options{}},
		{"llama packed", "llama", torch.Float32, 2e-4, train.Options{Pack: true}},
		{"llama recomputed", "llama", torch.BFloat16, 2e-2,
			train.Options{Recompute: train.RecomputeBlock}},
		{"llama stochastic rounding", "llama", torch.BFloat16, 2.5e-2,
			train.Options{Stochastic: true}},
		{"llama lora", "llama", torch.BFloat16, 2e-2,
			train.Options{LoRA: &lora.Config{Rank: 8, Alpha: 16,
				Targets: []string{lora.AllLinear}}}},
		{"bamba", "bamba", torch.Float32, 1e-3, train.Options{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			exact := c.options
			exact.Stochastic = false // the CPU trains float32 weights, which need no rounding
			want := losses(t, c.architecture, torch.Float32, torch.CPU, exact)
			got := losses(t, c.architecture, c.dtype, device, c.options)
			worst := largestDifference(got, want)
			t.Logf("first %.4f and %.4f, last %.4f and %.4f, largest difference %.2g", want[0],
				got[0], want[49], got[49], worst)
			if !(worst < c.limit) {
				t.Errorf("the losses differ by %.2g: CPU %.4f, GPU %.4f", worst, want, got)
			}
		})
	}
}

// Batches alternate between rows of 64 and of 96 tokens, with varying numbers of labels. With
// dropout, a recording must draw the same random numbers as operations launched one by one.
func TestGPU_RecordedStepsFollowLaunchedSteps(t *testing.T) {
	device := needGPU(t)
	adapter := func(dropout float64) *lora.Config {
		return &lora.Config{Rank: 8, Alpha: 16, Dropout: dropout, Targets: []string{lora.AllLinear}}
	}
	for _, c := range []struct {
		name, architecture string
		dtype              torch.DType
		limit              float64
		options            train.Options
	}{
		{"llama", "llama", torch.Float32, 2e-4, train.Options{}},
		{"llama accumulated", "llama", torch.Float32, 2e-4, train.Options{Accumulate: 3}},
		{"llama packed, selective", "llama", torch.Float32, 2e-4,
			train.Options{Pack: true, Recompute: train.RecomputeSelective}},
		{"llama block by block", "llama", torch.Float32, 2e-4,
			train.Options{Recompute: train.RecomputeBlock}},
		{"llama lora, dropout", "llama", torch.Float32, 2e-4, train.Options{LoRA: adapter(0.2)}},
		{"llama smoothed", "llama", torch.Float32, 2e-4,
			train.Options{LabelSmoothing: 0.1, ZLoss: 1e-3}},
		{"llama bfloat16", "llama", torch.BFloat16, 2e-2, train.Options{}},
		{"llama lora bfloat16", "llama", torch.BFloat16, 2e-2, train.Options{LoRA: adapter(0)}},
		{"bamba", "bamba", torch.Float32, 1e-3, train.Options{}},
		// rounds sums of gradients instead of means
		{"bamba packed bfloat16", "bamba", torch.BFloat16, 0.1, train.Options{Pack: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.options.Compile = train.CompileNone
			want, recorded := recordedLosses(t, c.architecture, c.dtype, device, c.options)
			if recorded {
				t.Error("passes were recorded although none should be")
			}
			c.options.Compile = train.CompileGraph
			got, recorded := recordedLosses(t, c.architecture, c.dtype, device, c.options)
			if !recorded {
				t.Error("no pass was recorded")
			}
			t.Logf("last %.4f and %.4f, largest difference %.2g", want[49], got[49],
				largestDifference(got, want))
			if !(largestDifference(got, want) < c.limit) {
				t.Errorf("the losses differ by %.2g: launched one by one %.4f, recorded %.4f",
					largestDifference(got, want), want, got)
			}
		})
	}
}

type listener func(train.Step)

func (f listener) Step(s train.Step) error         { f(s); return nil }
func (listener) Validation(train.Validation) error { return nil }
func (listener) Notice(string)                     {}

func TestGPU_OutOfMemoryIsReportedAndRecovered(t *testing.T) {
	device := needGPU(t)
	m := random(t, sized(t, "llama"), torch.BFloat16, device)
	before := torch.LiveTensors()
	err := torch.Run(func() error {
		for {
			torch.Zeros([]int{1 << 34}, torch.Float32, device)
		}
	})
	if !errors.Is(err, torch.ErrOutOfMemory) {
		t.Fatalf("allocations of 64 GiB did not fail: %v", err)
	}
	line := withRemedy(err).Error()
	if strings.Contains(line, "\n") || !strings.Contains(line, "out of memory") ||
		!strings.Contains(line, "GiB are free") {
		t.Errorf("expected one line: %s", line)
	}
	if after := torch.LiveTensors(); after != before {
		t.Errorf("%d tensors before, %d after", before, after)
	}
	mustGenerate(t, m, gpuPrompts[:1], generate.Options{MaxNewTokens: 5, IgnoreEOS: true})
}

func TestGPU_ProfileNamesKernels(t *testing.T) {
	device := needGPU(t)
	m := random(t, sized(t, "llama"), torch.BFloat16, device)
	path := filepath.Join(t.TempDir(), "trace.json")
	var stats generate.Stats
	rows, err := torch.Trace(path, func() (err error) {
		_, stats, err = generate.Generate(context.Background(), m, nil, gpuPrompts[:1],
			generate.Options{MaxNewTokens: 5, IgnoreEOS: true, Compile: generate.CompileNone}, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	kernels := []string{"gemv", "decode_attention"}
	if device.Info().Major == 9 { // elsewhere separate operations compute the same
		kernels = append(kernels, "block_tail")
		if !stats.Fused || stats.UnfusedReason != "" {
			t.Errorf("no reason for unfused layers: %+v", stats)
		}
	} else if want := fmt.Sprintf("there is no kernel for a GPU of compute capability "+
		"%d.", device.Info().Major); !strings.HasPrefix(stats.UnfusedReason, want) || stats.Fused {
		t.Errorf("no reason for the missing fused kernel: %+v", stats)
	}
	for _, kernel := range kernels {
		if !slices.ContainsFunc(rows,
			func(r torch.Traced) bool {
				return r.GPU &&
					strings.TrimSuffix(r.Name, "_mha") == kernel
			}) {
			t.Errorf("no %s among the kernels, which begin with %v", kernel,
				rows[:min(8, len(rows))])
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || !json.Valid(data) {
		t.Errorf("the trace is not valid JSON: %v", err)
	}
}

func TestGPU_BenchmarksRun(t *testing.T) {
	needGPU(t)
	printed := succeed(t, "bench", "inference", "--architecture", "llama", "--variant", "micro",
		"--device", "cuda", "--dtype", "bfloat16", "--seq_len", "64", "--max_new_tokens", "16",
		"--batch_size", "2", "--repeat", "1", "--json")
	if rows := strings.Count(printed, "\n"); rows != 3 {
		t.Errorf("%d rows, expected 3:\n%s", rows, printed)
	}
	if fused := strings.Count(printed, `"fused":true`); fused != 2 { // one per row with a cache
		t.Errorf("%d rows ran the fused kernels, expected 2:\n%s", fused, printed)
	}
	row := decode[bench.TrainRow](t,
		succeed(t, "bench", "train", "--architecture", "llama", "--variant", "micro", "--device",
			"cuda", "--sequence_length", "128", "--batch_size", "2", "--steps", "2", "--json"))
	if !(row.TokensPerS > 0) || row.PeakBytes == 0 {
		t.Error(fmt.Sprint(row))
	}
}

// Commands compute on quantized weights: results are near those of the converted ones.
func TestGPU_ComputesOnQuantizedWeights(t *testing.T) {
	needGPU(t)
	dir, work := writeModel(t, 704, true), t.TempDir()
	for _, kind := range []string{"q8_0", "q4_0"} {
		path := filepath.Join(work, kind+".gguf")
		succeed(t, "export", "--model_path", dir, "--output_path", path, "--dtype", kind)
		score := func(model string, more ...string) float64 {
			return decode[scoreOutput](t, succeed(t, append([]string{"score", "--model_path", model,
				"--text", strings.Repeat("hello there ", 20), "--device", "cuda", "--json"},
				more...)...)).NLL
		}
		blocks, converted := score(path), score(path, "--dtype", "float32")
		if off := math.Abs(blocks/converted - 1); !(off < 0.02) {
			t.Errorf("%s: %g in blocks, %g converted", kind, blocks, converted)
		}
		for _, batch := range []string{"1", "3"} {
			succeed(t, "bench", "inference", "--model_path", path, "--seq_len", "9",
				"--batch_size", batch, "--max_new_tokens", "5", "--repeat", "1", "--device", "cuda",
				"--json")
		}
		adapter := filepath.Join(work, kind+"-adapter")
		stderr, code := tune(t, path, adapter, "--lora_rank", "4", "--device", "cuda")
		if code != 0 || strings.Contains(stderr, "converted") {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		if beside, merged := score(adapter), score(adapter, "--dtype", "float32"); !(math.Abs(
			beside/merged-1) < 0.02) {
			t.Errorf("%s with an adapter: %g in blocks, %g converted", kind, beside, merged)
		}
	}
}

func mustGenerate(t testing.TB, m model.Model, prompts [][]int32,
	o generate.Options) []generate.Result {
	t.Helper()
	results, _, err := generate.Generate(context.Background(), m, nil, prompts, o, nil)
	if err != nil {
		t.Fatal(err)
	}
	return results
}
