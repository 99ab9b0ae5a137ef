package train

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	_ "conquer/llama"
	"conquer/lora"
	"conquer/model"
	"conquer/text/dataset"
	"conquer/torch"
	"conquer/torch/nn"
	"conquer/train/internal/network"
	"conquer/train/report"
)

const vocabulary = 61

// tiny makes a Llama with a few thousand weights.
func tiny(t testing.TB, tied bool, dtype torch.DType) model.Model {
	t.Helper()
	m, err := model.New(model.Config{
		"model_type":              "llama",
		"architectures":           []any{"LlamaForCausalLM"},
		"vocab_size":              float64(vocabulary),
		"hidden_size":             32.0,
		"intermediate_size":       48.0,
		"num_hidden_layers":       3.0,
		"num_attention_heads":     4.0,
		"num_key_value_heads":     2.0,
		"max_position_embeddings": 64.0,
		"rms_norm_eps":            1e-5,
		"tie_word_embeddings":     tied,
		"initializer_range":       0.2,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := torch.Run(func() error {
		torch.ManualSeed(11)
		model.Initialize(m, dtype, torch.CPU)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return m
}

// samples makes texts of 4 to 20 tokens that count upwards from a random token. The first third has
// no labels.
func samples(n int, seed uint64) *dataset.Dataset {
	draw := rand.New(rand.NewPCG(seed, 0))
	d := &dataset.Dataset{}
	for range n {
		length, first := 4+draw.IntN(17), draw.IntN(vocabulary)
		var s dataset.Sample
		for i := range length {
			id := int32((first + i) % vocabulary)
			s.IDs = append(s.IDs, id)
			if i < length/3 {
				id = dataset.IgnoreLabel
			}
			s.Labels = append(s.Labels, id)
		}
		d.Samples = append(d.Samples, s)
	}
	return d
}

func options() Options {
	return Options{
		Steps:          6,
		BatchSize:      4,
		SequenceLength: 24,
		Rate:           3e-3,
		Decay:          0.01,
		Clip:           1,
		Seed:           5,
	}
}

// recorder is a Listener that records what it receives.
type recorder struct {
	steps       []Step
	validations []Validation
	after       func(Step)
	notice      []string
}

func (r *recorder) Step(s Step) error {
	r.steps = append(r.steps, s)
	if r.after != nil {
		r.after(s)
	}
	return nil
}
func (r *recorder) Validation(v Validation) error {
	r.validations = append(r.validations, v)
	return nil
}
func (r *recorder) Notice(message string) { r.notice = append(r.notice, message) }

func (r *recorder) losses() (list []float64) {
	for _, s := range r.steps {
		list = append(list, s.Loss)
	}
	return list
}

// train runs a complete run and returns what it reported. It frees the model.
func train(
	t testing.TB,
	m model.Model,
	data, validation *dataset.Dataset,
	o Options,
	use func(*Trainer),
) *recorder {
	t.Helper()
	tr, err := New(m, data, validation, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		tr.Close()
		lora.Remove(tr.Model())
		model.Free(tr.Model())
	}()
	r := &recorder{}
	tr.Listen(r)
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if use != nil {
		if err := torch.Run(func() error { use(tr); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// noLeaks fails the test if it leaves tensors behind.
func noLeaks(t *testing.T) {
	before := torch.LiveTensors()
	t.Cleanup(func() {
		if after := torch.LiveTensors(); after != before {
			t.Errorf("%d tensors are left", after-before)
		}
	})
}

// near fails the test if two lists differ by more than tolerance times the largest element.
func near(t testing.TB, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, want %d", what, len(got), len(want))
	}
	scale, worst := 1e-12, 0.0
	for i := range want {
		scale = max(scale, math.Abs(float64(want[i])))
		worst = max(worst, math.Abs(float64(got[i]-want[i])))
	}
	if !(worst <= tolerance*scale) {
		t.Errorf("%s differs by %g of %g", what, worst, scale)
	}
}

// evaluate returns the sums of a micro-batch's numbers.
func evaluate(net *network.Network, mb network.MicroBatch) (sums []float64) {
	net.Infer(mb, func(hidden torch.Tensor) { sums = net.Evaluate(hidden, mb) })
	return sums
}

func batchOf(t testing.TB, d *dataset.Dataset, rows int, pack bool) dataset.Batch {
	t.Helper()
	b, err := dataset.NewBatcher(d,
		dataset.BatchOptions{Rows: rows, Length: 40, Pack: pack, InOrder: true})
	if err != nil {
		t.Fatal(err)
	}
	batch, err := b.Next()
	if err != nil {
		t.Fatal(err)
	}
	return batch
}

// plainLoss returns the mean loss of n samples, computed sample by sample over the whole model.
func plainLoss(m model.Model, d *dataset.Dataset, n int) torch.Tensor {
	var total torch.Tensor
	labels := 0
	for _, s := range d.Samples[:n] {
		ids, targets, rows := []int64{}, []int64{}, []int64{}
		for i, id := range s.IDs {
			ids = append(ids, int64(id))
			if i > 0 && s.Labels[i] != dataset.IgnoreLabel {
				targets, rows = append(targets, int64(s.Labels[i])), append(rows, int64(i-1))
			}
		}
		logits := model.Logits(m, model.Sequence{IDs: torch.From(ids, 1, len(ids))}).
			Squeeze(0).
			To(torch.Float32)
		nll := logits.LogSoftmax(-1).IndexSelect(0, torch.From(rows, len(rows))).
			Gather(1, torch.From(targets, len(targets), 1)).Sum().Neg()
		if labels += len(rows); total.Defined() {
			nll = total.Add(nll)
		}
		total = nll
	}
	return total.MulScalar(1 / float64(labels))
}

func TestNetwork_GradientsEqualWholeModel(t *testing.T) {
	noLeaks(t)
	data := samples(6, 1)
	for _, tied := range []bool{false, true} {
		for _, recompute := range Recomputes {
			for _, pack := range []bool{false, true} {
				m := tiny(t, tied, torch.Float32)
				err := torch.Run(func() error {
					for _, p := range nn.Params(m) {
						p.RequireGrad(true)
					}
					loss := plainLoss(m, data, len(data.Samples))
					loss.Backward()
					want := map[*nn.Param][]float32{}
					for _, p := range nn.Params(m) {
						want[p] = torch.Values[float32](p.Grad())
						p.ClearGrad()
					}
					b := batchOf(t, data, 6, pack)
					net := network.New(m, network.Objective{}, recompute, &local{})
					got := torch.Values[float64](
						net.Gradients(network.NewMicroBatch(b, torch.CPU, 1, nil),
							float64(network.Targets(b)), true),
					)
					if want := torch.Item[float64](loss.Detach()); len(got) != 1 ||
						math.Abs(got[0]-want) > 1e-5 {
						t.Errorf("loss %v, want %v", got, want)
					}
					nn.Walk(m, func(p nn.Component) {
						near(t, "gradient of "+p.Name, torch.Values[float32](p.Param.Grad()),
							want[p.Param], 2e-5)
					})
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
				model.Free(m)
				if t.Failed() {
					t.Fatalf("with tied %v, recompute %v, pack %v", tied, recompute, pack)
				}
			}
		}
	}
}

// Recomputed results are bit-equal, and between the passes blocks hold a third less.
func TestNetwork_SelectiveRecomputeSavesMemoryOnly(t *testing.T) {
	noLeaks(t)
	const rows, length = 2, 128
	adapter := adapterConfig()
	adapter.Dropout = 0.3
	for name, c := range map[string]struct {
		architecture string
		dtype        torch.DType
		lora         *lora.Config
		most         float64 // fraction of the memory that is kept
	}{
		"llama":          {"llama", torch.Float32, nil, 0.72},
		"llama bfloat16": {"llama", torch.BFloat16, nil, 0.72},
		"llama LoRA":     {"llama", torch.Float32, adapter, 0.88}, // dropout's results are kept
		"bamba":          {"bamba", torch.Float32, nil, 0.66},
		"bamba bfloat16": {"bamba", torch.BFloat16, nil, 0.66},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && c.dtype != torch.Float32 {
				t.Skip("slow on a CPU: left out by -short")
			}
			o := Options{
				Steps: 2, BatchSize: rows, SequenceLength: length, Rate: 1e-3, Pack: true,
				LoRA: c.lora, Seed: 3, Clip: 1,
			}
			type outcome struct {
				losses  []float64
				weights map[string][]float32
				left    int64 // bytes, between the forward and the backward pass
			}
			run := func(recompute Recompute) (r outcome) {
				m := plannedModel(t, c.architecture, false)
				if err := initialize(m, c.dtype); err != nil {
					t.Fatal(err)
				}
				o.Recompute, r.weights = recompute, map[string][]float32{}
				r.losses = train(t, m, samples(400, 1), nil, o, func(tr *Trainer) {
					if err := torch.Run(func() error {
						for _, p := range tr.params {
							r.weights[p.Name] = torch.Values[float32](p.Detach().To(torch.Float32))
						}
						b, err := tr.batches.Next()
						if err != nil {
							return err
						}
						before, _ := torch.CPU.Memory()
						f := tr.net.Begin(network.NewMicroBatch(b, torch.CPU, 1, nil))
						defer f.Free()
						f.Embed()
						f.Forward(0, len(tr.net.Blocks))
						after, _ := torch.CPU.Memory()
						r.left = after - before
						return nil
					}); err != nil {
						t.Error(err)
					}
				}).losses()
				return r
			}
			kept, again := run(RecomputeNone), run(RecomputeSelective)
			if !slices.Equal(kept.losses, again.losses) {
				t.Errorf("losses %v, without recomputation %v", again.losses, kept.losses)
			}
			for name, want := range kept.weights {
				if !slices.Equal(again.weights[name], want) {
					t.Errorf("%s differs", name)
				}
			}
			t.Logf("%.1f MB are kept for the backward pass, without recomputation %.1f MB",
				float64(again.left)/1e6, float64(kept.left)/1e6)
			if share := float64(again.left) / float64(kept.left); share > c.most {
				t.Errorf("%d bytes are kept for the backward pass, without recomputation %d",
					again.left, kept.left)
			}
		})
	}
}

func TestTrainer_AccumulationEqualsLargeBatch(t *testing.T) {
	noLeaks(t)
	data := samples(24, 2)
	weights := func(batch, accumulate int) (list [][]float32, r *recorder) {
		o := options()
		o.BatchSize, o.Accumulate = batch, accumulate
		r = train(t, tiny(t, true, torch.Float32), data, nil, o, func(tr *Trainer) {
			for _, p := range nn.Params(tr.Model()) {
				list = append(list, torch.Values[float32](p.Detach()))
			}
		})
		return list, r
	}
	want, once := weights(4, 1)
	for _, batch := range []int{1, 2} {
		got, r := weights(batch, 4/batch)
		for i := range once.steps {
			if math.Abs(r.steps[i].Loss-once.steps[i].Loss) > 1e-5 ||
				math.Abs(r.steps[i].Norm-once.steps[i].Norm) > 1e-4*once.steps[i].Norm {
				t.Errorf("step %d in passes of %d: loss %v norm %v, want %v and %v", i+1, batch,
					r.steps[i].Loss, r.steps[i].Norm, once.steps[i].Loss, once.steps[i].Norm)
			}
		}
		for i := range want {
			near(t, "weight", got[i], want[i], 1e-3)
		}
	}
}

func TestTrainer_LowersValidationLoss(t *testing.T) {
	noLeaks(t)
	for _, change := range []func(*Options){
		func(*Options) {},
		func(o *Options) { o.LoRA = adapterConfig() },
		func(o *Options) { o.HeadOnly = true },
		func(o *Options) { o.Pack = true; o.Recompute = RecomputeBlock },
	} {
		for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
			o := options()
			o.Steps, o.Rate = 30, 1e-2
			change(&o)
			r := train(t, tiny(t, true, dtype), samples(64, 3), samples(8, 4), o, nil)
			if n := len(r.validations); n != 11 {
				t.Errorf("%d validations, want one before the run and one after each tenth", n)
			}
			first, last := r.validations[0].Loss, r.validations[len(r.validations)-1].Loss
			if !(last < 0.8*first) {
				t.Errorf("%+v %v: validation loss went from %v to %v", o, dtype, first, last)
			}
		}
	}
}

func TestTrainer_ValidationLossIsMeanOverLabels(t *testing.T) {
	noLeaks(t)
	valid := samples(7, 8)
	m := tiny(t, false, torch.Float32)
	want := 0.0
	torch.Run(func() error {
		torch.NoGrad(func() { want = torch.Item[float64](plainLoss(m, valid, 7)) })
		return nil
	})
	r := train(t, m, samples(8, 1), valid, options(), nil)
	if math.Abs(r.validations[0].Loss-want) > 1e-5 {
		t.Errorf("validation loss %v, want %v", r.validations[0].Loss, want)
	}
}

func TestTrainer_HeadOnlyKeepsTiedEmbedding(t *testing.T) {
	noLeaks(t)
	m := tiny(t, true, torch.Float32)
	var before []float32
	torch.Run(func() error { before = torch.Values[float32](m.Head().Tensor); return nil })
	o := options()
	o.HeadOnly = true
	dir := filepath.Join(t.TempDir(), "out")
	train(t, m, samples(16, 1), nil, o, func(tr *Trainer) {
		if n := tr.Trained(); n != vocabulary*32 {
			t.Errorf("%d weights are trained, want the head's", n)
		}
		if err := tr.Export(dir); err != nil {
			t.Fatal(err)
		}
	})
	back, err := model.Open(dir, torch.Float32, torch.CPU)
	if err != nil {
		t.Fatal(err)
	}
	defer model.Free(back)
	torch.Run(func() error {
		nn.Walk(back, func(p nn.Component) {
			switch p.Name {
			case "model.embed_tokens.weight":
				near(t, "the embedding", torch.Values[float32](p.Param.Tensor), before, 0)
			case "lm_head.weight":
				if slices.Equal(torch.Values[float32](p.Param.Tensor), before) {
					t.Error("the head did not change")
				}
			}
		})
		return nil
	})
}

func TestTrainer_MemoryStaysFlat(t *testing.T) {
	noLeaks(t)
	o := options()
	const first, last = 50, 150
	o.Steps, o.Recompute, o.LoRA = last, RecomputeBlock, adapterConfig()
	o.LoRA.Dropout = 0.1
	tr, err := New(tiny(t, true, torch.Float32), samples(32, 1), nil, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		tr.Close()
		lora.Remove(tr.Model())
		model.Free(tr.Model())
	}()
	var live int
	var resident int64
	tr.Listen(&recorder{after: func(s Step) {
		if s.Step != first && s.Step != last {
			return
		}
		runtime.GC()
		now, _ := report.Memory(torch.CPU)
		if s.Step == first {
			live, resident = torch.LiveTensors(), now
			return
		}
		if after := torch.LiveTensors(); after != live {
			t.Errorf("live tensors went from %d to %d", live, after)
		}
		if grown := now - resident; grown > 8<<20 {
			t.Errorf("resident memory grew by %d KiB", grown>>10)
		}
	}})
	if err := tr.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestNew_RefusesInvalidOptions(t *testing.T) {
	noLeaks(t)
	for want, change := range map[string]func(*Options){
		"give one of the two":    func(o *Options) { o.Epochs = 2 },
		"--batch_size is 0":      func(o *Options) { o.BatchSize = 0 },
		"beyond the model's 64":  func(o *Options) { o.SequenceLength = 65 },
		"sample 0 has":           func(o *Options) { o.SequenceLength = 3 },
		"unknown value \"some\"": func(o *Options) { o.Recompute = "some" },
		"unknown schedule":       func(o *Options) { o.Schedule = "step" },
		"--learning_rate is 0":   func(o *Options) { o.Rate = 0 },
		"choose one": func(o *Options) {
			o.HeadOnly, o.LoRA = true, adapterConfig()
		},
		"names no layer": func(o *Options) {
			o.LoRA = adapterConfig()
			o.LoRA.Targets = []string{"qproj"}
		},
		"LoRA rank is -1": func(o *Options) {
			o.LoRA = adapterConfig()
			o.LoRA.Rank = -1
		},
		"there is no checkpoint": func(o *Options) { o.Resume = true },
	} {
		m := tiny(t, true, torch.Float32)
		o := options()
		change(&o)
		if tr, err := New(m, samples(8, 1), nil, o); err == nil {
			tr.Close()
			t.Errorf("no error, want %q", want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want an error with %q", err, want)
		}
		model.Free(m)
	}
	m := tiny(t, true, torch.Float32)
	defer model.Free(m)
	bad := samples(4, 1)
	bad.Samples[2].IDs[1] = vocabulary
	if _, err := New(m, bad, nil, options()); err == nil ||
		!strings.Contains(err.Error(), "tokenizer") {
		t.Errorf("a token outside the vocabulary gave %v", err)
	}
}

func TestMain(m *testing.M) {
	torch.SetThreads(1)
	if dir := os.Getenv(childVariable); dir != "" {
		childRun(dir)
		return
	}
	if text := os.Getenv(worldVariable); text != "" {
		if err := childOfWorld(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}
