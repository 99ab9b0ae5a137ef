package checkpoint

import (
	"fmt"

	"conquer/torch"
)

// Tensors is a [Source] of named tensors in memory.
type Tensors struct {
	names   []string
	tensors map[string]torch.Tensor
}

// Add appends a tensor. The tensor stays the caller's and must live until the source is saved.
func (s *Tensors) Add(name string, t torch.Tensor) {
	if s.tensors == nil {
		s.tensors = map[string]torch.Tensor{}
	}
	s.names = append(s.names, name)
	s.tensors[name] = t
}

// Names lists the tensors in the order in which they were added.
func (s *Tensors) Names() []string { return s.names }

// Info describes a tensor.
func (s *Tensors) Info(name string) (Info, bool) {
	t, ok := s.tensors[name]
	if !ok {
		return Info{}, false
	}
	return Info{DType: t.DType(), Shape: t.Shape(), Bytes: t.Bytes()}, true
}

// Tensor returns a tensor on the CPU.
func (s *Tensors) Tensor(name string) (torch.Tensor, error) {
	t, ok := s.tensors[name]
	if !ok {
		return torch.Tensor{}, fmt.Errorf("no tensor is named %q", name)
	}
	return t.Detach().ToDevice(torch.CPU).Contiguous(), nil
}
