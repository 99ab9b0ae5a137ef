package parallel_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"conquer/checkpoint"
	_ "conquer/families"
	"conquer/generate"
	"conquer/model"
	"conquer/parallel"
	"conquer/torch"
	"conquer/torch/dist"
	"conquer/torch/nn"
)

// modelVariable names the model that a child process divides.
const modelVariable = "CONQUER_PARALLEL_TEST_MODEL"

func TestMain(m *testing.M) {
	torch.SetThreads(1)
	name := os.Getenv(modelVariable)
	if name == "" {
		os.Exit(m.Run())
	}
	place, err := dist.FromEnvironment()
	if err == nil {
		var w *dist.World
		if w, err = dist.Join(place, torch.CPU, time.Minute); err == nil {
			err = torch.Run(func() error { return divided(name, w) })
			w.Leave()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// configs are models whose sizes 2 divides and 3 does not, with biases where possible.
var configs = map[string]model.Config{
	"llama": {"model_type": "llama", "vocab_size": 61.0, "hidden_size": 40.0,
		"intermediate_size": 50.0, "num_hidden_layers": 2.0,
		"num_attention_heads": 10.0, "num_key_value_heads": 5.0, "max_position_embeddings": 64.0,
		"attention_bias": true,
		"mlp_bias":       true, "initializer_range": 0.2},
	"bamba": {"model_type": "bamba", "vocab_size": 61.0, "hidden_size": 40.0,
		"intermediate_size": 50.0, "num_hidden_layers": 3.0,
		"num_attention_heads": 10.0, "num_key_value_heads": 5.0, "attn_layer_indices": []any{1.0},
		"mamba_n_heads": 5.0,
		"mamba_d_head":  16.0, "mamba_n_groups": 1.0, "mamba_d_state": 16.0, "mamba_d_conv": 4.0,
		"mamba_expand":    2.0,
		"mamba_conv_bias": true, "mamba_proj_bias": true, "max_position_embeddings": 64.0,
		"tie_word_embeddings": true,
		"initializer_range":   0.2},
	"mamba2": {"model_type": "mamba2", "vocab_size": 61.0, "hidden_size": 48.0,
		"num_hidden_layers": 2.0, "num_heads": 6.0,
		"head_dim": 16.0, "n_groups": 3.0, "state_size": 16.0, "conv_kernel": 4.0, "expand": 2.0,
		"use_bias":            true,
		"tie_word_embeddings": false, "initializer_range": 0.2},
}

func fresh(name string, dtype torch.DType) (model.Model, error) {
	m, err := model.New(configs[name])
	if err != nil {
		return nil, err
	}
	torch.ManualSeed(3)
	model.Initialize(m, dtype, torch.CPU)
	torch.NoGrad(func() { // random biases and norms, and a negative zero
		for _, p := range nn.Params(m) {
			if len(p.Shape) == 1 {
				torch.Scoped(func() {
					p.Copy(p.Add(torch.Randn(p.Shape, dtype, torch.CPU).MulScalar(0.1)))
					p.Narrow(0, 0, 1).Copy(torch.Zeros([]int{1}, dtype, torch.CPU).Neg())
				})
			}
		}
	})
	return m, nil
}

// divided compares a model that is divided over the processes of w with the undivided model.
func divided(name string, w *dist.World) error {
	for _, dtype := range []torch.DType{torch.Float32, torch.BFloat16} {
		before, err := fresh(name, dtype)
		if err != nil {
			return err
		}
		m, err := fresh(name, dtype)
		if err != nil {
			return err
		}
		d, err := parallel.Divide(m, w.All, torch.CPU)
		if err != nil {
			return err
		}
		held := 0
		for _, p := range nn.Params(m) {
			held += p.Numel()
		}
		if all := model.Parameters(m); held > all*2/3+2000 {
			return fmt.Errorf("%s: %d of %d weights are here", name, held, all)
		}
		if dtype == torch.Float32 {
			if err := same(name, before, m, w.All); err != nil {
				return err
			}
		}
		d.Gather(w.Rank == 0)
		if w.Rank == 0 {
			if err := equal(before, m); err != nil {
				return fmt.Errorf("%s, whole again: %w", name, err)
			}
		}
		d.Release()
		// Loading into a divided model gives the same shards.
		loaded, err := model.New(configs[name])
		if err != nil {
			return err
		}
		if _, err := parallel.Divide(loaded, w.All, torch.CPU); err != nil {
			return err
		}
		if err := model.Load(loaded, stored{model.Weights(before)}, dtype, torch.CPU); err != nil {
			return err
		}
		if err := equal(m, loaded); err != nil {
			return fmt.Errorf("%s, loaded: %w", name, err)
		}
		for _, m := range []model.Model{before, m, loaded} {
			model.Free(m)
		}
	}
	return nil
}

// stored presents a model's weights as a checkpoint.
type stored struct{ checkpoint.Source }

func (s stored) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	t, err := s.Tensor(name)
	if err != nil {
		return t, err
	}
	return t.To(dtype), nil
}

// equal demands bit-equal weights.
func equal(a, b model.Model) error {
	params := nn.Params(b)
	for i, p := range nn.Params(a) {
		if got, want := params[i].Contiguous().Data(),
			p.Contiguous().Data(); !bytes.Equal(got, want) {
			return fmt.Errorf("weight %d of shape %v differs", i, p.Shape)
		}
	}
	return nil
}

// same demands equal logits over a sequence, and equal text generated from prompts of unequal
// lengths.
func same(name string, before, m model.Model, group *dist.Group) error {
	prompts := [][]int32{{1, 2, 3, 4, 5, 6, 7}, {60, 30, 11}}
	var failed error
	torch.NoGrad(func() {
		ids := torch.From([]int64{5, 7, 60, 0, 33, 2, 2, 9}, 2, 4)
		got := torch.Values[float32](model.Logits(m, model.Sequence{IDs: ids}))
		for i, want := range torch.Values[float32](model.Logits(before, model.Sequence{IDs: ids})) {
			if d := math.Abs(float64(got[i] - want)); !(d < 1e-4) {
				failed = fmt.Errorf("%s: logit %d is %v, undivided %v", name, i, got[i], want)
			}
		}
	})
	if failed != nil {
		return failed
	}
	for _, o := range []generate.Options{{MaxNewTokens: 12}, {MaxNewTokens: 9, NoCache: true},
		{MaxNewTokens: 12, Temperature: 1, TopK: 20, Seed: 4}} {
		want, _, err := generate.Generate(context.Background(), before, nil, prompts, o, nil)
		if err != nil {
			return err
		}
		o.Group = group
		got, _, err := generate.Generate(context.Background(), m, nil, prompts, o, nil)
		if err != nil {
			return err
		}
		for i := range want {
			if !slices.Equal(got[i].Tokens, want[i].Tokens) {
				return fmt.Errorf("%s: prompt %d continues with %v, undivided with %v", name, i,
					got[i].Tokens, want[i].Tokens)
			}
		}
	}
	return nil
}

// divideOver divides a model over n child processes and returns their errors.
func divideOver(t *testing.T, name string, n int) (errors []string) {
	t.Helper()
	store, err := dist.OpenStore("127.0.0.1", 0, true, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	errors = make([]string, n)
	var ending sync.WaitGroup
	for rank := range n {
		child := exec.Command(os.Args[0], "-test.run=none")
		child.Env = append(os.Environ(), modelVariable+"="+name, fmt.Sprint("RANK=", rank),
			fmt.Sprint("WORLD_SIZE=", n),
			fmt.Sprint("LOCAL_RANK=", rank), fmt.Sprint("LOCAL_WORLD_SIZE=", n),
			"MASTER_ADDR=127.0.0.1",
			fmt.Sprint("MASTER_PORT=", store.Port()), "TORCHELASTIC_USE_AGENT_STORE=True",
			"OMP_NUM_THREADS=1")
		ending.Go(func() {
			if output, err := child.CombinedOutput(); err != nil {
				errors[rank] = err.Error() + ": " + string(output)
			}
		})
	}
	ending.Wait()
	return errors
}

func TestDivide_KeepsLogitsAndText(t *testing.T) {
	for name := range configs {
		for _, n := range []int{2, 3} {
			for rank, message := range divideOver(t, name, n) {
				if message != "" {
					t.Errorf("%s, rank %d of %d: %s", name, rank, n, message)
				}
			}
		}
	}
}

func TestDivide_RefusesMoreProcessesThanHeads(t *testing.T) {
	for name, want := range map[string]string{
		"llama": "model.layers.0.self_attn: 5 heads of keys and values cannot be divided over 6 " +
			"processes: choose 5 or fewer",
		"mamba2": "backbone.layers.0.mixer: 6 heads in 3 groups cannot be divided over 6 " +
			"processes: choose 3 or fewer",
	} {
		m, err := model.New(configs[name])
		if err != nil {
			t.Fatal(err)
		}
		_, err = parallel.Divide(m, &dist.Group{Size: 6}, torch.CPU)
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", name, err, want)
		}
	}
}
