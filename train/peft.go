package train

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
)

// The files and names of PEFT, the library whose adapters others load.
const (
	adapterConfig  = "adapter_config.json"
	adapterWeights = "adapter_model.safetensors"
	adapterPrefix  = "base_model.model."
	suffixA        = ".lora_A.weight"
	suffixB        = ".lora_B.weight"
)

// peftConfig is adapter_config.json as far as it matters here; what is written is what PEFT writes for the same adapter.
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

// SaveAdapter writes m's adapters into the folder dir as PEFT does. base is the name or path of the model that they belong
// to; also, when not nil, writes more files into the folder it is given.
func SaveAdapter(m model.Model, dir, base string, l LoRA, also func(dir string) error) error {
	config := peftConfig{
		Type: "LORA", Task: "CAUSAL_LM", Base: base, Rank: l.Rank, Alpha: l.Alpha, Dropout: l.Dropout, Bias: "none",
		Inference: true, RankPattern: map[string]any{}, AlphaPattern: map[string]any{},
	}
	weights := &tensorList{}
	for _, a := range adapters(m) {
		weights.add(adapterPrefix+a.Name+suffixA, a.A.Tensor)
		weights.add(adapterPrefix+a.Name+suffixB, a.B.Tensor)
		if name := lastPart(a.Name); !slices.Contains(config.Targets, name) {
			config.Targets = append(config.Targets, name)
		}
	}
	if len(weights.names) == 0 {
		return fmt.Errorf("the model has no adapters to write")
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return err
	}
	return checkpoint.Save(dir, weights, checkpoint.Options{ShardBytes: math.MaxInt, Also: func(stage string) error {
		if err := os.Rename(filepath.Join(stage, "model.safetensors"), filepath.Join(stage, adapterWeights)); err != nil {
			return err
		}
		if err := atomicfile.WriteBytes(filepath.Join(stage, adapterConfig), append(text, '\n')); err != nil {
			return err
		}
		if also == nil {
			return nil
		}
		return also(stage)
	}})
}

// LoadAdapter gives m the adapters in the folder dir, in PEFT's format. It fails, and leaves m as it was, where the folder
// asks for something that m does not have or that a plain low-rank addition is not.
func LoadAdapter(m model.Model, dir string) error {
	config, err := readAdapterConfig(dir)
	if err != nil {
		return err
	}
	if len(adapters(m)) > 0 {
		return fmt.Errorf("%s: the model has adapters already: merge them first", dir)
	}
	return torch.Run(func() error {
		c, err := checkpoint.Open(filepath.Join(dir, adapterWeights))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := attachAll(m, c, config); err != nil {
			RemoveAdapter(m)
			return fmt.Errorf("%s: %w", filepath.Join(dir, adapterWeights), err)
		}
		return nil
	})
}

func readAdapterConfig(dir string) (peftConfig, error) {
	var config peftConfig
	path := filepath.Join(dir, adapterConfig)
	text, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("not an adapter's folder: %w", err)
	}
	// target_modules may be a pattern; the names of the tensors say the same.
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
	unsupported := ""
	switch {
	case config.Type != "LORA":
		unsupported = fmt.Sprintf("peft_type %q", config.Type)
	case config.Rank < 1:
		unsupported = fmt.Sprintf("r %d", config.Rank)
	case config.DoRA:
		unsupported = "use_dora"
	case config.FanInFanOut:
		unsupported = "fan_in_fan_out"
	case config.Bias != "" && config.Bias != "none":
		unsupported = fmt.Sprintf("bias %q", config.Bias)
	case len(config.AlphaPattern) > 0 || len(config.RankPattern) > 0:
		unsupported = "rank_pattern or alpha_pattern"
	case len(config.Save) > 0:
		unsupported = "modules_to_save"
	}
	if unsupported != "" {
		return config, fmt.Errorf("%s: %s is not supported: expected a plain LoRA adapter", path, unsupported)
	}
	return config, nil
}

// scale is what the product of B and A is multiplied by.
func (c peftConfig) scale() float64 {
	if c.RSLoRA {
		return c.Alpha / math.Sqrt(float64(c.Rank))
	}
	return c.Alpha / float64(c.Rank)
}

func attachAll(m model.Model, c *checkpoint.Checkpoint, config peftConfig) error {
	scale := config.scale()
	byName := map[string]part{}
	for _, p := range parts(m) {
		byName[p.name] = p
	}
	found := 0
	for _, name := range c.Names() {
		layer, isB := strings.CutSuffix(strings.TrimPrefix(name, adapterPrefix), suffixB)
		layer, isA := strings.CutSuffix(layer, suffixA)
		p, ok := byName[layer]
		if !ok || isA == isB {
			return fmt.Errorf("tensor %q belongs to no linear layer of this model's blocks", name)
		}
		a := p.adapter()
		if a == nil {
			a = p.newAdapter(config.Rank, scale, config.Dropout)
			p.attach(a)
		}
		param := a.A
		if isB {
			param = a.B
		}
		if info, _ := c.Info(name); !slices.Equal(info.Shape, param.Shape) {
			return fmt.Errorf("tensor %q has shape %v, this model and rank %d ask for %v", name, info.Shape, config.Rank, param.Shape)
		}
		t, err := c.TensorAs(name, torch.Float32)
		if err != nil {
			return err
		}
		param.Tensor = t.ToDevice(p.layer.Weight.Device()).Own()
		found++
	}
	if found == 0 {
		return fmt.Errorf("there are no adapters in it")
	}
	for _, a := range adapters(m) {
		if !a.A.Defined() || !a.B.Defined() {
			return fmt.Errorf("layer %q has one half of an adapter only", a.Name)
		}
	}
	return nil
}

// Adapted presents source's weights with the adapter in the folder dir, in PEFT's format, folded in, or with its addition
// taken out where unmerge is true. A weight is computed in float32 when it is asked for, and rounded once; taking out what
// was rounded does not bring back every bit. No model is built and one weight is in memory at a time. Close gives the
// adapter's file back.
func Adapted(source *checkpoint.Checkpoint, dir string, unmerge bool) (weights *AdaptedSource, err error) {
	config, err := readAdapterConfig(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, adapterWeights)
	c, err := checkpoint.Open(path)
	if err != nil {
		return nil, err
	}
	s := &AdaptedSource{Checkpoint: source, adapter: c, scale: config.scale(), layers: map[string][2]string{}}
	if unmerge {
		s.scale = -s.scale
	}
	if err := s.match(config.Rank); err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// AdaptedSource is what [Adapted] returns.
type AdaptedSource struct {
	*checkpoint.Checkpoint
	adapter *checkpoint.Checkpoint
	scale   float64
	layers  map[string][2]string // the tensors A and B of a weight
}

// match finds the weight that each tensor of the adapter belongs to.
func (s *AdaptedSource) match(rank int) error {
	for _, name := range s.adapter.Names() {
		layer, isB := strings.CutSuffix(strings.TrimPrefix(name, adapterPrefix), suffixB)
		layer, isA := strings.CutSuffix(layer, suffixA)
		weight, ok := s.Checkpoint.Info(layer + ".weight")
		if !ok || isA == isB || len(weight.Shape) != 2 {
			return fmt.Errorf("tensor %q belongs to no linear layer of this model", name)
		}
		want, at := []int{rank, weight.Shape[1]}, 0
		if isB {
			want, at = []int{weight.Shape[0], rank}, 1
		}
		if info, _ := s.adapter.Info(name); !slices.Equal(info.Shape, want) {
			return fmt.Errorf("tensor %q has shape %v, this model and rank %d ask for %v", name, info.Shape, rank, want)
		}
		pair := s.layers[layer+".weight"]
		pair[at] = name
		s.layers[layer+".weight"] = pair
	}
	if len(s.layers) == 0 {
		return fmt.Errorf("there are no adapters in it")
	}
	for name, pair := range s.layers {
		if pair[0] == "" || pair[1] == "" {
			return fmt.Errorf("layer %q has one half of an adapter only", strings.TrimSuffix(name, ".weight"))
		}
	}
	return nil
}

// Tensor gives a weight in the dtype that it is stored in.
func (s *AdaptedSource) Tensor(name string) (torch.Tensor, error) {
	info, _ := s.Info(name)
	return s.TensorAs(name, info.DType)
}

// TensorAs gives a weight as dtype.
func (s *AdaptedSource) TensorAs(name string, dtype torch.DType) (torch.Tensor, error) {
	pair, ok := s.layers[name]
	if !ok {
		return s.Checkpoint.TensorAs(name, dtype)
	}
	w, err := s.Checkpoint.TensorAs(name, torch.Float32)
	if err != nil {
		return w, err
	}
	a, err := s.adapter.TensorAs(pair[0], torch.Float32)
	if err != nil {
		return a, err
	}
	b, err := s.adapter.TensorAs(pair[1], torch.Float32)
	if err != nil {
		return b, err
	}
	return w.Add(b.Matmul(a).MulScalar(s.scale)).To(dtype), nil
}

// Close gives the adapter's file back, not the model's.
func (s *AdaptedSource) Close() { s.adapter.Close() }
