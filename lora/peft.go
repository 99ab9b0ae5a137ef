package lora

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/model"
	"conquer/torch"
	"conquer/torch/nn"
)

// File names and tensor names of PEFT, the library whose format adapters are exchanged in.
const (
	configFile    = "adapter_config.json"
	weightsFile   = "adapter_model.safetensors"
	pickleFile    = "adapter_model.bin" // of PEFT before 0.6, and with safe_serialization=False
	adapterPrefix = "base_model.model."
	suffixA       = ".lora_A.weight"
	suffixB       = ".lora_B.weight"
)

// peftConfig holds the fields of an adapter_config.json that is written.
type peftConfig struct {
	Type         string         `json:"peft_type"`
	Task         string         `json:"task_type"`
	Base         string         `json:"base_model_name_or_path"`
	Rank         int            `json:"r"`
	Alpha        float64        `json:"lora_alpha"`
	Dropout      float64        `json:"lora_dropout"`
	Targets      []string       `json:"target_modules"`
	Bias         string         `json:"bias"`
	FanInFanOut  bool           `json:"fan_in_fan_out"`
	Inference    bool           `json:"inference_mode"`
	RSLoRA       bool           `json:"use_rslora"`
	DoRA         bool           `json:"use_dora"`
	RankPattern  map[string]any `json:"rank_pattern"`
	AlphaPattern map[string]any `json:"alpha_pattern"`
	Save         []string       `json:"modules_to_save"`
	Revision     *string        `json:"revision"`
}

// hubRevision matches a name on the Hugging Face Hub with a revision.
var hubRevision = regexp.MustCompile(`^([\w.-]+/[\w.-]+)@([\w./-]+)$`)

// Names returns the names of a's matrices without PEFT's prefix:
// model.layers.0.self_attn.q_proj.lora_A.weight.
func Names(a *nn.LoRA) (nameA, nameB string) { return a.Name + suffixA, a.Name + suffixB }

// Save writes m's adapters into the folder dir as PEFT does. base says which model the adapters
// belong to: organization/name or organization/name@revision on the Hugging Face Hub, or a path,
// which should be absolute, because PEFT reads a relative one from the working folder. If also is
// not nil, it is called with the staging folder and may write more files there.
func Save(m model.Model, dir, base string, c Config, also func(dir string) error) error {
	c = c.Complete()
	config := peftConfig{
		Type:         "LORA",
		Task:         "CAUSAL_LM",
		Base:         base,
		Rank:         c.Rank,
		Alpha:        c.Alpha,
		Dropout:      c.Dropout,
		Bias:         "none",
		Inference:    true,
		RankPattern:  map[string]any{},
		AlphaPattern: map[string]any{},
	}
	if parts := hubRevision.FindStringSubmatch(base); parts != nil {
		config.Base, config.Revision = parts[1], &parts[2]
	}
	weights := &checkpoint.Tensors{}
	for _, a := range Adapters(m) {
		nameA, nameB := Names(a)
		weights.Add(adapterPrefix+nameA, a.A.Tensor)
		weights.Add(adapterPrefix+nameB, a.B.Tensor)
		if name := lastComponent(a.Name); !slices.Contains(config.Targets, name) {
			config.Targets = append(config.Targets, name)
		}
	}
	if len(weights.Names()) == 0 {
		return fmt.Errorf("the model has no adapters to write")
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return checkpoint.Save(
		dir,
		weights,
		checkpoint.Options{ShardBytes: math.MaxInt, Also: func(stage string) error {
			if err := atomicfile.Rename(filepath.Join(stage, "model.safetensors"),
				filepath.Join(stage, weightsFile)); err != nil {
				return err
			}
			err := atomicfile.WriteBytes(filepath.Join(stage, configFile), append(text, '\n'))
			if err != nil || also == nil {
				return err
			}
			return also(stage)
		}},
	)
}

// Load attaches the adapters in the folder dir, in PEFT's format, to m. The logits are then those
// of PEFT. It fails, and leaves m unchanged, if the folder adapts a layer that m does not have, or
// if a field of adapter_config.json or a tensor asks for more than W + scale·B·A.
func Load(m model.Model, dir string) error {
	config, err := readConfig(dir)
	if err != nil {
		return err
	}
	if len(Adapters(m)) > 0 {
		return fmt.Errorf("%s: the model already has adapters: merge them first", dir)
	}
	return torch.Run(func() error {
		c, err := openWeights(dir)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := attachAll(m, c, &config); err != nil {
			Remove(m)
			return fmt.Errorf("%s: %w", c.Path, err)
		}
		return nil
	})
}

// openWeights opens the adapter's tensors. As in PEFT, safetensors is taken before a pickle.
func openWeights(dir string) (*checkpoint.Checkpoint, error) {
	for _, name := range []string{weightsFile, pickleFile} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return checkpoint.Open(path)
	}
	return nil, fmt.Errorf("%s holds neither %s nor %s", dir, weightsFile, pickleFile)
}

// Restore copies the adapter weights in the folder dir into m's adapters, which must have the same
// names and shapes.
func Restore(m model.Model, dir string) error {
	path := filepath.Join(dir, weightsFile)
	c, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, a := range Adapters(m) {
		nameA, nameB := Names(a)
		for name, to := range map[string]torch.Tensor{nameA: a.A.Tensor, nameB: a.B.Tensor} {
			var failed error
			torch.Scoped(func() {
				saved, err := c.Tensor(adapterPrefix + name)
				switch {
				case err != nil:
					failed = err
				case !slices.Equal(saved.Shape(), to.Shape()):
					failed = fmt.Errorf("%s: tensor %q has shape %v, expected %v", path, name,
						saved.Shape(), to.Shape())
				default:
					to.Detach().Copy(saved)
				}
			})
			if failed != nil {
				return failed
			}
		}
	}
	return nil
}

func attachAll(m model.Model, c *checkpoint.Checkpoint, config *adapterConfig) error {
	byName := map[string]Layer{}
	for _, l := range Layers(m) {
		byName[l.Name] = l
	}
	found := 0
	for _, name := range c.Names() {
		layer, isB, err := config.split(name)
		if err != nil {
			return err
		}
		l, known := byName[layer]
		if !known {
			return fmt.Errorf("tensor %q belongs to no linear layer of this model's blocks", name)
		}
		rank, scale := config.of(layer)
		a := l.adapter()
		if a == nil {
			a = l.newAdapter(rank, scale, config.dropout)
			l.attach(a)
		}
		param := a.A
		if isB {
			param = a.B
		}
		if info, _ := c.Info(name); !slices.Equal(info.Shape, param.Shape) {
			return shapeError(name, info.Shape, param.Shape, rank)
		}
		t, err := c.TensorAs(name, torch.Float32)
		if err != nil {
			return err
		}
		param.Tensor = t.ToDevice(l.Linear.Weight.Device()).Own()
		found++
	}
	if found == 0 {
		return errEmpty
	}
	for _, a := range Adapters(m) {
		if !a.A.Defined() || !a.B.Defined() {
			return halfError(a.Name)
		}
	}
	return nil
}

var errEmpty = fmt.Errorf("the file holds no adapters")

func shapeError(name string, got, want []int, rank int) error {
	return fmt.Errorf("tensor %q has shape %v, but this model and rank %d need %v", name, got, rank,
		want)
}

func halfError(layer string) error {
	return fmt.Errorf("layer %q has only one of the adapter's two matrices", layer)
}
