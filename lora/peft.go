package lora

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

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
	adapterPrefix = "base_model.model."
	suffixA       = ".lora_A.weight"
	suffixB       = ".lora_B.weight"
)

// peftConfig holds the fields of adapter_config.json that matter here. Saved files equal PEFT's own
// for the same adapter.
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
}

// Names returns the names of a's matrices without PEFT's prefix:
// model.layers.0.self_attn.q_proj.lora_A.weight.
func Names(a *nn.LoRA) (nameA, nameB string) { return a.Name + suffixA, a.Name + suffixB }

// Save writes m's adapters into the folder dir as PEFT does. base is the name or path of the model
// that the adapters belong to. If also is not nil, it is called with the staging folder and may
// write more files there.
func Save(m model.Model, dir, base string, c Config, also func(dir string) error) error {
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
			if err := os.Rename(filepath.Join(stage, "model.safetensors"),
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

// Load attaches the adapters in the folder dir, in PEFT's format, to m. It fails, and leaves m
// unchanged, if the folder adapts a layer that m does not have or uses a variant other than plain
// LoRA.
func Load(m model.Model, dir string) error {
	config, err := readConfig(dir)
	if err != nil {
		return err
	}
	if len(Adapters(m)) > 0 {
		return fmt.Errorf("%s: the model already has adapters: merge them first", dir)
	}
	return torch.Run(func() error {
		c, err := checkpoint.Open(filepath.Join(dir, weightsFile))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := attachAll(m, c, config); err != nil {
			Remove(m)
			return fmt.Errorf("%s: %w", filepath.Join(dir, weightsFile), err)
		}
		return nil
	})
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

func readConfig(dir string) (peftConfig, error) {
	var config peftConfig
	path := filepath.Join(dir, configFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("this is not an adapter folder: %w", err)
	}
	// target_modules may be a string (a pattern) or a list. The tensor names carry the same
	// information.
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(text, &raw); err != nil {
		return config, fmt.Errorf("%s: expected a JSON object: %w", path, err)
	}
	delete(raw, "target_modules")
	if text, err = json.Marshal(raw); err != nil {
		return config, err
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return config, fmt.Errorf("%s: %w", path, err)
	}
	if feature := config.unsupported(); feature != "" {
		return config, fmt.Errorf("%s: %s is not supported: expected a plain LoRA adapter", path,
			feature)
	}
	return config, nil
}

// unsupported names a setting that makes the adapter something other than plain LoRA, "" if there
// is none.
func (c peftConfig) unsupported() string {
	switch {
	case c.Type != "LORA":
		return fmt.Sprintf("peft_type %q", c.Type)
	case c.Rank < 1:
		return fmt.Sprintf("r %d", c.Rank)
	case c.DoRA:
		return "use_dora"
	case c.FanInFanOut:
		return "fan_in_fan_out"
	case c.Bias != "" && c.Bias != "none":
		return fmt.Sprintf("bias %q", c.Bias)
	case len(c.AlphaPattern) > 0 || len(c.RankPattern) > 0:
		return "rank_pattern or alpha_pattern"
	case len(c.Save) > 0:
		return "modules_to_save"
	}
	return ""
}

// scale is the factor of B·A.
func (c peftConfig) scale() float64 {
	if c.RSLoRA {
		return c.Alpha / math.Sqrt(float64(c.Rank))
	}
	return c.Alpha / float64(c.Rank)
}

// splitName splits a tensor name into the layer's name and the matrix: ok is false if it is neither
// A nor B.
func splitName(tensor string) (layer string, isB, ok bool) {
	name := strings.TrimPrefix(tensor, adapterPrefix)
	if layer, ok = strings.CutSuffix(name, suffixA); ok {
		return layer, false, true
	}
	layer, ok = strings.CutSuffix(name, suffixB)
	return layer, true, ok
}

func attachAll(m model.Model, c *checkpoint.Checkpoint, config peftConfig) error {
	scale := config.scale()
	byName := map[string]Layer{}
	for _, l := range Layers(m) {
		byName[l.Name] = l
	}
	found := 0
	for _, name := range c.Names() {
		layer, isB, ok := splitName(name)
		l, known := byName[layer]
		if !ok || !known {
			return fmt.Errorf("tensor %q belongs to no linear layer of this model's blocks", name)
		}
		a := l.adapter()
		if a == nil {
			a = l.newAdapter(config.Rank, scale, config.Dropout)
			l.attach(a)
		}
		param := a.A
		if isB {
			param = a.B
		}
		if info, _ := c.Info(name); !slices.Equal(info.Shape, param.Shape) {
			return shapeError(name, info.Shape, param.Shape, config.Rank)
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

// Fold returns source's weights with the adapter in the folder dir, in PEFT's format, added, or
// subtracted if unmerge is set. Each weight is computed in float32 when it is read and rounded
// once. Subtracting from rounded weights does not restore every bit. No model is built, and one
// weight is in memory at a time. Close closes the adapter's file.
func Fold(source *checkpoint.Checkpoint, dir string, unmerge bool) (*Folded, error) {
	config, err := readConfig(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, weightsFile)
	c, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	f := &Folded{
		Checkpoint: source,
		adapter:    c,
		scale:      config.scale(),
		layers:     map[string][2]string{},
	}
	if unmerge {
		f.scale = -f.scale
	}
	if err := f.match(config.Rank); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Folded is a checkpoint with an adapter folded in, see [Fold].
type Folded struct {
	*checkpoint.Checkpoint
	adapter *checkpoint.Checkpoint
	scale   float64
	layers  map[string][2]string // weight name → names of its A and B
}

// match finds the weight that each tensor of the adapter belongs to.
func (f *Folded) match(rank int) error {
	for _, name := range f.adapter.Names() {
		layer, isB, isAdapter := splitName(name)
		weight, ok := f.Checkpoint.Info(layer + ".weight")
		if !ok || !isAdapter || len(weight.Shape) != 2 {
			return fmt.Errorf("tensor %q belongs to no linear layer of this model", name)
		}
		want, index := []int{rank, weight.Shape[1]}, 0
		if isB {
			want, index = []int{weight.Shape[0], rank}, 1
		}
		if info, _ := f.adapter.Info(name); !slices.Equal(info.Shape, want) {
			return shapeError(name, info.Shape, want, rank)
		}
		pair := f.layers[layer+".weight"]
		pair[index] = name
		f.layers[layer+".weight"] = pair
	}
	if len(f.layers) == 0 {
		return errEmpty
	}
	for name, pair := range f.layers {
		if pair[0] == "" || pair[1] == "" {
			return halfError(strings.TrimSuffix(name, ".weight"))
		}
	}
	return nil
}

// Tensor returns a weight in its stored dtype.
func (f *Folded) Tensor(name string) (torch.Tensor, error) {
	info, _ := f.Info(name)
	return f.TensorAs(name, info.DType)
}

// TensorAs returns a weight as dtype.
func (f *Folded) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	pair, ok := f.layers[name]
	if !ok {
		return f.Checkpoint.TensorAs(name, dtype)
	}
	w, err := f.Checkpoint.TensorAs(name, torch.Float32)
	if err != nil {
		return w, err
	}
	a, err := f.adapter.TensorAs(pair[0], torch.Float32)
	if err != nil {
		return a, err
	}
	b, err := f.adapter.TensorAs(pair[1], torch.Float32)
	if err != nil {
		return b, err
	}
	return w.Add(b.Matmul(a).MulScalar(f.scale)).To(dtype), nil
}

// Close closes the adapter's file. The base checkpoint stays open.
func (f *Folded) Close() { f.adapter.Close() }
