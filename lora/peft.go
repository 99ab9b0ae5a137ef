package lora

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"regexp"
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
	pickleFile    = "adapter_model.bin" // of PEFT before 0.6, and with safe_serialization=False
	adapterPrefix = "base_model.model."
	suffixA       = ".lora_A.weight"
	suffixB       = ".lora_B.weight"
	suffixM       = ".lora_magnitude_vector" // of DoRA
	suffixTokens  = ".token_adapter.trainable_tokens_delta"
)

// peftConfig holds the fields of an adapter_config.json that is written.
type peftConfig struct {
	Type         string   `json:"peft_type"`
	Task         string   `json:"task_type"`
	Base         string   `json:"base_model_name_or_path"`
	Rank         int      `json:"r"`
	Alpha        float64  `json:"lora_alpha"`
	Dropout      float64  `json:"lora_dropout"`
	Targets      []string `json:"target_modules"`
	Exclude      []string `json:"exclude_modules"`
	Layers       []int    `json:"layers_to_transform"`
	Bias         string   `json:"bias"`
	FanInFanOut  bool     `json:"fan_in_fan_out"`
	Inference    bool     `json:"inference_mode"`
	RSLoRA       bool     `json:"use_rslora"`
	DoRA         bool     `json:"use_dora"`
	RankPattern  Patterns `json:"rank_pattern"`
	AlphaPattern Patterns `json:"alpha_pattern"`
	Save         []string `json:"modules_to_save"`
	Tokens       any      `json:"trainable_token_indices"`
	Revision     *string  `json:"revision"`
}

// hubRevision matches a name on the Hugging Face Hub with a revision.
var hubRevision = regexp.MustCompile(`^([\w.-]+/[\w.-]+)@([\w./-]+)$`)

// A Tensor is a part of an adapter and its name without PEFT's prefix:
// model.layers.0.self_attn.q_proj.lora_A.weight.
type Tensor struct {
	Name  string
	Param *nn.Param
}

// Tensors lists the parts of a.
func Tensors(a *nn.LoRA) []Tensor {
	list := []Tensor{{a.Name + suffixA, a.A}, {a.Name + suffixB, a.B}}
	if a.M != nil {
		list = append(list, Tensor{a.Name + suffixM, a.M})
	}
	return list
}

// Save writes m's adapters into the folder dir as PEFT does. base says which model the adapters
// belong to: organization/name or organization/name@revision on the Hugging Face Hub, or a path,
// which should be absolute, because PEFT reads a relative one from the working folder. If also is
// not nil, it is called with the staging folder and may write more files there.
func Save(m model.Model, dir, base string, c Config, also func(dir string) error) error {
	return torch.Run(func() (err error) {
		torch.NoGrad(func() { err = save(m, dir, base, c, also) })
		return err
	})
}

func save(m model.Model, dir, base string, c Config, also func(dir string) error) error {
	if c = c.Complete(); c.Init == InitPiSSA {
		c = c.doubled()
	}
	config := peftConfig{
		Type:         "LORA",
		Task:         "CAUSAL_LM",
		Base:         base,
		Rank:         c.Rank,
		Alpha:        c.Alpha,
		Dropout:      c.Dropout,
		Bias:         "none",
		Inference:    true,
		Targets:      c.named(m),
		Exclude:      c.Exclude,
		Layers:       c.Layers,
		RSLoRA:       c.RSLoRA,
		DoRA:         c.DoRA,
		RankPattern:  c.RankPattern,
		AlphaPattern: c.AlphaPattern,
	}
	if parts := hubRevision.FindStringSubmatch(base); parts != nil {
		config.Base, config.Revision = parts[1], &parts[2]
	}
	weights := &checkpoint.Tensors{}
	for _, a := range Adapters(m) {
		for _, t := range Tensors(a) {
			weights.Add(adapterPrefix+t.Name, stored(a, t.Param))
		}
	}
	config.saveWeights(m, c, weights)
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

// saveWeights adds the weights that c trains beside the adapters.
func (p *peftConfig) saveWeights(m model.Model, c Config, to *checkpoint.Tensors) {
	tokens := map[string][]int{}
	for _, w := range c.Weights(m) {
		layer := layerOf(w.Name)
		if len(c.Tokens) > 0 {
			rows := w.Param.IndexSelect(0, tokenRowIndex(c, w.Param))
			to.Add(adapterPrefix+layer+suffixTokens, rows)
			tokens[lastComponent(layer)] = c.Tokens
			continue
		}
		to.Add(adapterPrefix+w.Name, w.Param.Tensor)
		p.Save = append(p.Save, lastComponent(layer))
		if isTied(m) { // PEFT makes copies of both, so it needs both
			to.Add(adapterPrefix+headWeight, w.Param.Tensor)
			p.Save = append(p.Save, layerOf(headWeight))
		}
	}
	_, head := tokens[layerOf(headWeight)]
	if len(tokens) > 0 && !head { // PEFT finds the embedding itself
		p.Tokens = c.Tokens
	} else if len(tokens) > 0 {
		p.Tokens = tokens
	}
}

// tokenRowIndex is c.Tokens as an index of rows of p.
func tokenRowIndex(c Config, p *nn.Param) torch.Tensor {
	ids := make([]int64, len(c.Tokens))
	for i, id := range c.Tokens {
		ids[i] = int64(id)
	}
	return torch.From(ids, len(ids)).ToDevice(p.Device())
}

// stored returns a parameter of a as it is saved. After PiSSA, the first matrices are subtracted
// beside the present ones, because the adapter is saved for the weight as it was: B·A - B0·A0.
func stored(a *nn.LoRA, p *nn.Param) torch.Tensor {
	switch {
	case !a.A0.Defined() || p == a.M:
		return p.Tensor
	case p == a.A:
		return torch.Cat(0, p.Tensor, a.A0)
	}
	return torch.Cat(1, p.Tensor, a.B0.Neg())
}

// Open reads which layers the adapter in the folder dir adapts, and how, to train it further: the
// result's From is dir. It fails if the adapter cannot be applied exactly.
func Open(dir string) (Config, error) {
	config, err := readConfig(dir)
	if err != nil {
		return Config{}, err
	}
	c, err := openWeights(dir)
	if err != nil {
		return Config{}, err
	}
	defer c.Close()
	for _, name := range c.Names() {
		layer, part, err := config.split(name)
		if err != nil {
			return Config{}, fmt.Errorf("%s: %w", c.Path, err)
		}
		switch last := lastComponent(layer); {
		case part == partA:
			config.Targets = append(config.Targets, layer)
		case part == partTokens:
			config.TokenLayers = append(config.TokenLayers, last)
		case part == partWhole && !slices.Contains(config.Save, last):
			config.Save = append(config.Save, last)
		}
	}
	for _, ids := range config.tokens {
		if config.Tokens == nil {
			config.Tokens = ids
		}
		if !slices.Equal(ids, config.Tokens) {
			return Config{}, fmt.Errorf("%s: trainable_token_indices differ between layers, which "+
				"training further does not support: train a new adapter with --lora_tokens",
				config.path)
		}
	}
	if config.From = dir; len(config.Targets) == 0 {
		return Config{}, fmt.Errorf("%s: %w", c.Path, errEmpty)
	}
	if config.Alpha == 0 { // in a Config it stands for the default
		return Config{}, fmt.Errorf("%s: lora_alpha is 0, so the adapter has no effect and "+
			"cannot be trained: set it, or train a new one with --lora_rank", config.path)
	}
	return config.Config, config.Check()
}

// Hash returns a hash of the weights of the adapter in the folder dir.
func Hash(dir string) (string, error) {
	c, err := openWeights(dir)
	if err != nil {
		return "", err
	}
	defer c.Close()
	file, err := os.Open(c.Path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	sum := sha256.New()
	_, err = io.Copy(sum, file)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// Load attaches the adapters in the folder dir, in PEFT's format, to m. The logits are then those
// of PEFT. It fails, and leaves m unchanged, if the folder adapts a layer that m does not have, if
// it replaces weights (see [Fold]), or if a field of adapter_config.json or a tensor asks for more.
func Load(m model.Model, dir string) error { return load(m, dir, false) }

// load is Load. With replaced, m has the weights that the adapter replaces already.
func load(m model.Model, dir string, replaced bool) error {
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
		adapters, err := readAll(m, c, &config, replaced)
		if err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
		for l, a := range adapters {
			l.attach(a)
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

// Restore copies the weights in the folder dir into those of m that c trains, which must have the
// same names and shapes.
func Restore(m model.Model, dir string, c Config) error {
	return torch.Run(func() (err error) {
		torch.NoGrad(func() { err = restoreAll(m, dir, c) })
		return err
	})
}

func restoreAll(m model.Model, dir string, config Config) error {
	path := filepath.Join(dir, weightsFile)
	c, err := checkpoint.Open(path)
	if err != nil {
		return err
	}
	defer c.Close()
	for _, a := range Adapters(m) {
		for _, t := range Tensors(a) {
			torch.Scoped(func() { err = restore(c, t, stored(a, t.Param).Shape()) })
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	for _, w := range config.Weights(m) {
		torch.Scoped(func() { err = restoreWeight(c, w, config) })
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// restoreWeight copies a saved weight, or rows of one, into its parameter.
func restoreWeight(c *checkpoint.Checkpoint, w nn.Component, config Config) error {
	p := w.Param
	if len(config.Tokens) == 0 {
		return restore(c, Tensor{w.Name, p}, p.Shape)
	}
	name := layerOf(w.Name) + suffixTokens
	rows := &nn.Param{Shape: []int{len(config.Tokens), p.Shape[1]}}
	rows.Tensor = torch.Empty(rows.Shape, p.DType(), p.Device())
	if err := restore(c, Tensor{name, rows}, rows.Shape); err != nil {
		return err
	}
	for i, id := range config.Tokens {
		p.Detach().Narrow(0, id, 1).Copy(rows.Narrow(0, i, 1))
	}
	return nil
}

// restore copies a part of an adapter, saved in the given shape, into its parameter: all of it, or
// after PiSSA the beginning.
func restore(c *checkpoint.Checkpoint, t Tensor, shape []int) error {
	saved, err := c.Tensor(adapterPrefix + t.Name)
	if err != nil {
		return err
	}
	if !slices.Equal(saved.Shape(), shape) {
		return fmt.Errorf("tensor %q has shape %v, expected %v", t.Name, saved.Shape(), shape)
	}
	for dim, size := range t.Param.Shape {
		saved = saved.Narrow(dim, 0, size)
	}
	t.Param.Detach().Copy(saved)
	return nil
}

// readAll reads the adapters in a file, by the layers of m that they belong to.
func readAll(m model.Model, c *checkpoint.Checkpoint, config *adapterConfig, replaced bool) (
	_ map[Layer]*nn.LoRA, err error) {
	adapters := map[Layer]*nn.LoRA{}
	defer func() {
		if err != nil {
			for _, a := range adapters {
				a.Free()
			}
		}
	}()
	byName := map[string]Layer{}
	for _, l := range Layers(m) {
		byName[l.Name] = l
	}
	found := 0
	for _, name := range c.Names() {
		layer, part, err := config.split(name)
		if err != nil {
			return nil, err
		}
		if part > partM {
			if !replaced {
				return nil, fmt.Errorf("tensor %q replaces weights of the base model "+
					"(modules_to_save, trainable_token_indices or save_embedding_layers): make "+
					"the model from the result of Fold or Replace", name)
			}
			continue
		}
		l, known := byName[layer]
		if !known {
			return nil, fmt.Errorf("tensor %q belongs to no linear layer of this model's blocks: "+
				"%s", name, otherBase)
		}
		a := adapters[l]
		if a == nil {
			a = l.newAdapter(config.Config)
			adapters[l] = a
		}
		param := [...]*nn.Param{a.A, a.B, a.M}[part]
		rank, _ := config.of(layer)
		if info, _ := c.Info(name); !slices.Equal(info.Shape, param.Shape) {
			return nil, shapeError(name, info.Shape, param.Shape, rank)
		}
		t, err := c.TensorAs(name, torch.Float32)
		if err != nil {
			return nil, err
		}
		param.Tensor = t.ToDevice(l.Linear.Weight.Device()).Own()
		found++
	}
	if found == 0 {
		return nil, errEmpty
	}
	for _, a := range adapters {
		for _, t := range Tensors(a) {
			if !t.Param.Defined() {
				return nil, missingError(t.Name)
			}
		}
	}
	return adapters, nil
}

// otherBase is the likely reason for an adapter that does not fit a model.
const otherBase = "give the base model that the adapter was trained on, and the " +
	"adapter_config.json that belongs to the file"

var errEmpty = fmt.Errorf("the file holds no adapters")

func shapeError(name string, got, want []int, rank int) error {
	return fmt.Errorf("tensor %q has shape %v, but this model and rank %d need %v: %s", name, got,
		rank, want, otherBase)
}

func missingError(tensor string) error {
	if strings.HasSuffix(tensor, suffixM) {
		return fmt.Errorf("tensor %q is missing, which use_dora needs: the file is incomplete, or "+
			"use_dora must be false", tensor)
	}
	return fmt.Errorf("tensor %q is missing, and the file has other parts of this adapter: save "+
		"or download it again", tensor)
}
