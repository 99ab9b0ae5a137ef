package model

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/model/hub"
	"conquer/torch"
	"conquer/torch/nn"
)

// Open opens a model: a checkpoint in any format that package checkpoint reads, as a path or as a
// name that [hub.ModelPath] downloads, such as smollm2-135m or organization/name. The weights
// become dtype on device. The caller frees the model with [Free]. A program that shows the progress
// of a download or cancels it calls hub.ModelPath itself and gives Open the path.
func Open(name string, dtype torch.DType, device torch.Device) (m Model, err error) {
	path, err := hub.ModelPath(context.Background(), name, nil)
	if err != nil {
		return nil, err
	}
	err = torch.Run(func() error {
		source, err := checkpoint.Open(path)
		if err != nil {
			return err
		}
		defer source.Close()
		m, err = FromCheckpoint(source, dtype, device)
		return err
	})
	return m, err
}

// FromCheckpoint is [Open] for an open checkpoint.
func FromCheckpoint(source *checkpoint.Checkpoint, dtype torch.DType, device torch.Device) (Model,
	error) {
	m, err := Declare(source)
	if err != nil {
		return nil, err
	}
	if err := Load(m, source, dtype, device); err != nil {
		Free(m)
		return nil, err
	}
	return m, nil
}

// Declare makes the model of a checkpoint, without weights.
func Declare(source *checkpoint.Checkpoint) (Model, error) {
	config := Config(source.Config())
	if config == nil {
		return nil, fmt.Errorf("%s: %s", source.Path, configless(source.Names()))
	}
	err := checkQuantized(config, source.Unread())
	if err == nil {
		err = checkLayers(config, source.Names())
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source.Path, err)
	}
	m, err := New(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source.Path, err)
	}
	return m, nil
}

// configless says what a checkpoint without a config is, by the names of its tensors.
func configless(names []string) string {
	const none = "there is no config.json beside the weights"
	if slices.ContainsFunc(names, func(name string) bool {
		return strings.Contains(name, ".ff_sub_layer.")
	}) {
		return none + ", which have the names of foundation-model-stack's own checkpoints: " +
			"convert them with convert_to_hf of fms_to_hf_llama.py in " +
			"foundation-model-stack/fms-fsdp"
	}
	return none
}

// checkLayers looks for the last of the layers that config asks for, before memory is taken for
// all of them.
func checkLayers(config Config, names []string) error {
	n, ok := number(config["num_hidden_layers"])
	if !ok || n < 1 {
		return nil // New names the problem
	}
	last := fmt.Sprintf("layers.%.0f.", n-1)
	if slices.ContainsFunc(names, func(name string) bool { return strings.Contains(name, last) }) {
		return nil
	}
	return fmt.Errorf("config.json: num_hidden_layers is %.0f, but the weights have no layer "+
		"%.0f: the config is of another model, or files are missing", n, n-1)
}

// TensorSource is a checkpoint to load from.
type TensorSource interface {
	Info(name string) (checkpoint.Info, bool)
	TensorAs(name string, dtype torch.DType) (torch.Tensor, error)
}

// Load fills m's weights from source. A weight that is stored in the wanted dtype stays a view of
// the mapped file. Others are converted, and fused ones joined, one at a time; those of [InBlocks]
// stay in their blocks. This process keeps its shard of a divided weight.
func Load(m Model, source TensorSource, dtype torch.DType, device torch.Device) error {
	source, kept, failed := begin(m, source, dtype, device)
	nn.Walk(m, func(p nn.Component) {
		if failed == nil && !kept[p.Param] {
			torch.Scoped(func() { failed = loadComponent(p, source, dtype, device) })
		}
	})
	return failed
}

// begin checks that source has m's weights, and reads those that stay in their blocks. It returns
// what the others are read from.
func begin(m Model, source TensorSource, dtype torch.DType, device torch.Device) (TensorSource,
	map[*nn.Param]bool, error) {
	blocks, keeps := source.(inBlocks)
	if !keeps {
		return source, nil, check(m, source)
	}
	if err := check(m, blocks.BlockSource); err != nil {
		return nil, nil, err
	}
	kept, err := blocks.keep(m, dtype, device)
	return blocks.BlockSource, kept, err
}

// Defer is [Load] for a model of which this process will hold only a part: each weight is read when
// it is moved to its place ([nn.Param.Move]). Until then source must stay open. Weights of
// [InBlocks] are not deferred: each process holds all of them.
func Defer(m Model, source TensorSource, dtype torch.DType, device torch.Device) error {
	source, kept, err := begin(m, source, dtype, device)
	if err != nil {
		return err
	}
	components := map[*nn.Param][]nn.Component{}
	nn.Walk(m, func(c nn.Component) { components[c.Param] = append(components[c.Param], c) })
	for param, list := range components {
		if kept[param] {
			continue
		}
		param.Defer(dtype, device, func(into *nn.Param) (err error) {
			for _, p := range list {
				torch.Scoped(func() {
					var t torch.Tensor
					if t, err = source.TensorAs(p.Name, dtype); err == nil {
						into.Store(p.Start, t)
					}
				})
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return nil
}

// Check is [Declare] and fails if the checkpoint lacks a tensor of the model, or holds it in
// another shape or as integers. It returns the model with such an error, too.
func Check(source *checkpoint.Checkpoint) (Model, error) {
	m, err := Declare(source)
	if err == nil {
		err = check(m, source)
	}
	return m, err
}

// check reports tensors that m needs and source lacks, or holds in another shape or as integers.
func check(m Model, source TensorSource) error {
	var missing []string
	var failed error
	nn.Walk(m, func(p nn.Component) {
		info, ok := source.Info(p.Name)
		switch {
		case failed != nil:
		case !ok:
			missing = append(missing, p.Name)
		case info.DType != checkpoint.Unsupported && !info.DType.Floating():
			failed = fmt.Errorf("%s: tensor %q is stored as %s, expected floating-point numbers: "+
				"the integers of a quantized model are no weights", info.File, p.Name, info.Stored)
		case !slices.Equal(info.Shape, p.Shape()):
			failed = fmt.Errorf("%s: tensor %q has shape %v, config.json asks for %v", info.File,
				p.Name, info.Shape, p.Shape())
		}
	})
	if failed != nil {
		return failed
	}
	if extra, _ := Unused(m, source); len(extra) > 0 && len(missing) == 0 {
		return fmt.Errorf("config.json has no place for %d of the tensors: %s; it asks for %d "+
			"layers: the config is of another model, or without some of its fields", len(extra),
			abbreviate(extra), len(m.Blocks()))
	}
	if len(missing) > 0 {
		where := "the checkpoint"
		if c, ok := source.(*checkpoint.Checkpoint); ok {
			where = c.Path
		}
		if what := quantizedBy(source); what != "" {
			return fmt.Errorf("%s: %s", where, what)
		}
		if len(missing) == 1 && missing[0] == "lm_head.weight" {
			return fmt.Errorf("%s has no head (tensor \"lm_head.weight\"), and config.json does "+
				"not tie it to the embedding: it is a base model, as for embeddings or "+
				"classification, which predicts no tokens", where)
		}
		return fmt.Errorf("%s lacks %d of the tensors that config.json asks for: %s", where,
			len(missing), abbreviate(missing))
	}
	return nil
}

// unread are the ends of names of tensors that follow from the config or are not used: inverse
// frequencies that older programs stored, and scales of caches in 8 bits.
var unread = []string{".rotary_emb.inv_freq", ".k_scale", ".v_scale"}

// Unused lists the tensors of a checkpoint that m does not use. Those inside would change what m
// computes: their names begin like those of its own parts, as do layers beyond its last one. Those
// outside belong to other parts, such as a value head. A source that is no checkpoint has none.
func Unused(m Model, source TensorSource) (inside, outside []string) {
	c, ok := source.(*checkpoint.Checkpoint)
	if !ok {
		return nil, nil
	}
	used, parts := map[string]bool{}, map[string]bool{}
	part := func(name string) string { first, _, _ := strings.Cut(name, "."); return first }
	nn.Walk(m, func(p nn.Component) { used[p.Name], parts[part(p.Name)] = true, true })
	for _, name := range c.Names() {
		switch {
		case used[name]:
		case slices.ContainsFunc(unread,
			func(end string) bool { return strings.HasSuffix(name, end) }):
		case parts[part(name)]:
			inside = append(inside, name)
		default:
			outside = append(outside, name)
		}
	}
	return inside, outside
}

func loadComponent(p nn.Component, source TensorSource, dtype torch.DType,
	device torch.Device) error {
	t, err := source.TensorAs(p.Name, dtype)
	if err != nil {
		return err
	}
	if p.Whole() && p.Param.Shard == nil {
		p.Param.Tensor.Free()
		p.Param.Tensor = t.ToDevice(device).View(p.Param.Shape...).Own()
		return nil
	}
	if !p.Param.Tensor.Defined() {
		p.Param.Tensor = torch.Empty(p.Param.Local(), dtype, device).Own()
	}
	p.Param.Store(p.Start, t)
	return nil
}

func abbreviate(names []string) string {
	if len(names) > 4 {
		names = append(slices.Clone(names[:4]), "…")
	}
	return strings.Join(names, ", ")
}

// source presents a model's weights, unfused and under their Hugging Face names.
type source struct {
	components map[string]nn.Component
	names      []string
}

// Weights presents m's weights as a checkpoint to save.
func Weights(m Model) checkpoint.Source {
	s := &source{components: map[string]nn.Component{}}
	nn.Walk(m, func(p nn.Component) {
		s.components[p.Name] = p
		s.names = append(s.names, p.Name)
	})
	return s
}

func (s *source) Names() []string { return s.names }

func (s *source) Info(name string) (checkpoint.Info, bool) {
	p, ok := s.components[name]
	if !ok {
		return checkpoint.Info{}, false
	}
	bytes := p.Param.DType().Size()
	for _, size := range p.Shape() {
		bytes *= size
	}
	return checkpoint.Info{DType: p.Param.DType(), Shape: p.Shape(), Bytes: bytes}, true
}

func (s *source) Tensor(name string) (torch.Tensor, error) {
	p, ok := s.components[name]
	if !ok {
		return torch.Tensor{}, fmt.Errorf("the model has no weight %q", name)
	}
	rows := p.Param.RowsOf(p.Start, p.Rows)
	return rows.ToDevice(torch.CPU).Contiguous().View(p.Shape()...), nil
}
