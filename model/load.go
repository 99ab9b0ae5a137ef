package model

import (
	"fmt"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/torch"
	"conquer/torch/nn"
)

// Open opens the checkpoint at path, a Hugging Face folder or a .gguf file, as the architecture that it is of, with its
// weights as dtype on device. The caller frees the model with Free.
func Open(path string, dtype torch.DType, device torch.Device) (m Model, err error) {
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

// FromCheckpoint is Open for a checkpoint that is open already.
func FromCheckpoint(source *checkpoint.Checkpoint, dtype torch.DType, device torch.Device) (Model, error) {
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

// Declare makes the model that a checkpoint is of, without its weights.
func Declare(source *checkpoint.Checkpoint) (Model, error) {
	config := Config(source.Config())
	if config == nil {
		return nil, fmt.Errorf("%s: there is no config.json beside the weights", source.Path)
	}
	m, err := New(config)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", source.Path, err)
	}
	return m, nil
}

// TensorSource is a checkpoint to load from.
type TensorSource interface {
	Info(name string) (checkpoint.Info, bool)
	TensorAs(name string, dtype torch.DType) (torch.Tensor, error)
}

// Load fills m's weights from source. A weight that is stored plainly in the wanted dtype stays a view of the mapped file;
// others are converted, and fused ones put together, one at a time. Of one that processes have divided, this one's part is kept.
func Load(m Model, source TensorSource, dtype torch.DType, device torch.Device) error {
	failed := check(m, source)
	nn.Walk(m, func(p nn.Component) {
		if failed == nil {
			torch.Scoped(func() { failed = loadPiece(p, source, dtype, device) })
		}
	})
	return failed
}

// Promise is Load for a model of which this process is to have a part alone: a weight is read when it is moved to where it
// belongs ([nn.Param.Move]). Until then source must stay open.
func Defer(m Model, source TensorSource, dtype torch.DType, device torch.Device) error {
	if err := check(m, source); err != nil {
		return err
	}
	pieces := map[*nn.Param][]nn.Component{}
	nn.Walk(m, func(p nn.Component) { pieces[p.Param] = append(pieces[p.Param], p) })
	for param, list := range pieces {
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

// check reports tensors that m needs and source lacks, or has in another shape.
func check(m Model, source TensorSource) error {
	var missing []string
	var failed error
	nn.Walk(m, func(p nn.Component) {
		info, ok := source.Info(p.Name)
		switch {
		case failed != nil:
		case !ok:
			missing = append(missing, p.Name)
		case !slices.Equal(info.Shape, p.Shape()):
			failed = fmt.Errorf("%s: tensor %q has shape %v, config.json asks for %v", info.File, p.Name, info.Shape, p.Shape())
		}
	})
	if failed != nil {
		return failed
	}
	if len(missing) > 0 {
		where := "the checkpoint"
		if c, ok := source.(*checkpoint.Checkpoint); ok {
			where = c.Path
		}
		return fmt.Errorf("%s lacks %d of the tensors that config.json asks for: %s", where, len(missing), abbreviate(missing))
	}
	return nil
}

func loadPiece(p nn.Component, source TensorSource, dtype torch.DType, device torch.Device) error {
	t, err := source.TensorAs(p.Name, dtype)
	if err != nil {
		return err
	}
	if p.Whole() && p.Param.Shard == nil {
		p.Param.Tensor.Free()
		p.Param.Tensor = t.ToDevice(device).Own()
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

// source gives a model's weights to checkpoint.Save, unfused and under their Hugging Face names.
type source struct {
	pieces map[string]nn.Component
	names  []string
}

// Weights presents m's weights as a checkpoint to save.
func Weights(m Model) checkpoint.Source {
	s := &source{pieces: map[string]nn.Component{}}
	nn.Walk(m, func(p nn.Component) {
		s.pieces[p.Name] = p
		s.names = append(s.names, p.Name)
	})
	return s
}

func (s *source) Names() []string { return s.names }

func (s *source) Info(name string) (checkpoint.Info, bool) {
	p, ok := s.pieces[name]
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
	p, ok := s.pieces[name]
	if !ok {
		return torch.Tensor{}, fmt.Errorf("the model has no weight %q", name)
	}
	return p.Param.Tensor.Detach().Narrow(0, p.Start, p.Rows).ToDevice(torch.CPU).Contiguous(), nil
}
