package model

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"conquer/checkpoint"
	"conquer/torch"
	"conquer/torch/nn"
)

// Architecture is an entry of the registry.
type Architecture struct {
	Name string
	// ModelTypes lists the model_type values of its config.json files.
	ModelTypes []string
	// New makes a model without weights from a config.
	New func(Config) (Model, error)
	// Variants are configs by name, for training from fresh weights.
	Variants map[string]Config
	// Formats translate between the architecture's config.json and weights and formats with names
	// of their own.
	Formats []checkpoint.Family
	// LoRATargets are the names of the linear layers in a block: those that LoRA can adapt.
	LoRATargets []string
	// Unread says, by the name of a format, which program one would expect to load the
	// architecture's files does not, and what to do.
	Unread map[string]string
}

var registry struct {
	sync.RWMutex
	architectures []Architecture
}

// Register adds an architecture. The package of a family calls it when it is imported.
func Register(a Architecture) {
	registry.Lock()
	defer registry.Unlock()
	registry.architectures = append(registry.architectures, a)
	for _, f := range a.Formats {
		checkpoint.RegisterFamily(f)
	}
}

// Architectures lists the registered architectures by name.
func Architectures() []Architecture {
	registry.RLock()
	defer registry.RUnlock()
	list := slices.Clone(registry.architectures)
	slices.SortFunc(list, func(a, b Architecture) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// ArchitectureOf returns the architecture of configs with that model_type; false if none has it.
func ArchitectureOf(modelType string) (Architecture, bool) {
	list := Architectures()
	i := slices.IndexFunc(list, func(a Architecture) bool {
		return slices.Contains(a.ModelTypes, modelType)
	})
	if i < 0 {
		return Architecture{}, false
	}
	return list[i], true
}

// maxEnds is the largest number of tokens that end a text: each new token is compared with them.
const maxEnds = 1024

// New makes a model without weights from a config, by its model_type.
func New(config Config) (Model, error) {
	if list, ok := config["eos_token_id"].([]any); ok && len(list) > maxEnds {
		return nil, fmt.Errorf("config.json: eos_token_id has %d token ids, expected at most %d",
			len(list), maxEnds)
	}
	kind, _ := config["model_type"].(string)
	if a, ok := ArchitectureOf(kind); ok {
		return a.New(config)
	}
	var known []string
	for _, a := range Architectures() {
		known = append(known, a.ModelTypes...)
	}
	if kind == "" {
		return nil, fmt.Errorf("config.json: it has no model_type%s", typeless(config))
	}
	return nil, fmt.Errorf("config.json: model_type %.60q is not supported: expected one of %s",
		kind, strings.Join(known, ", "))
}

// typeless says what a config without model_type is, if it is known.
func typeless(config Config) string {
	switch {
	case config["d_model"] != nil && config["n_layer"] != nil:
		return ", but d_model and n_layer: it is of state-spaces' own library (mamba_ssm), whose " +
			"Mamba-2 models are opened by the path of their folder"
	case config["_class_name"] != nil:
		return fmt.Sprintf(": it is of %.60v in diffusers, which is no language model",
			config["_class_name"])
	case config["architectures"] != nil:
		return fmt.Sprintf(" (architectures %.100v): add the one of its architecture",
			config["architectures"])
	}
	return ", which says of what kind the model is"
}

// Variant returns the config of a named variant of an architecture, for a model with fresh weights.
func Variant(architecture, variant string) (Config, error) {
	var architectures []string
	for _, a := range Architectures() {
		if a.Name != architecture {
			architectures = append(architectures, a.Name)
			continue
		}
		if config, ok := a.Variants[variant]; ok {
			return config.Clone(), nil
		}
		return nil, fmt.Errorf("architecture %q has no variant %q: choose one of %s",
			architecture, variant, strings.Join(slices.Sorted(maps.Keys(a.Variants)), ", "))
	}
	return nil, fmt.Errorf("unknown architecture %q: choose one of %s", architecture,
		strings.Join(architectures, ", "))
}

// Initialize gives m fresh weights: normal draws with the config's initializer_range, ones for
// norms, or the layer's own distribution. Each process draws a divided weight whole and keeps its
// shard.
func Initialize(m Model, dtype torch.DType, device torch.Device) {
	r := Reader{Config: m.Config()}
	std := r.FloatOr("initializer_range", 0.02)
	for _, p := range nn.Params(m) {
		torch.Scoped(func() {
			switch {
			case p.Draw != nil:
				fresh := torch.Empty(p.Shape, torch.Float32, device)
				p.Draw(fresh)
				p.Tensor = fresh.To(dtype).Own()
			case p.Fill == nn.Normal:
				p.Tensor = torch.Empty(p.Shape, torch.Float32, device).Normal(0,
					std).To(dtype).Own()
			case p.Fill == nn.Ones:
				p.Tensor = torch.Ones(p.Shape, dtype, device).Own()
			default:
				p.Tensor = torch.Zeros(p.Shape, dtype, device).Own()
			}
			if p.Shard != nil {
				p.Divide(p.Shard, device)
			}
		})
	}
}
