package train

import (
	"fmt"

	"conquer/checkpoint"
	"conquer/torch"
)

// tensorList is a list of named tensors as a source to save.
type tensorList struct {
	names   []string
	tensors map[string]torch.Tensor
}

func (l *tensorList) add(name string, t torch.Tensor) {
	if l.tensors == nil {
		l.tensors = map[string]torch.Tensor{}
	}
	l.names = append(l.names, name)
	l.tensors[name] = t
}

// Names lists the tensors in the order they were added.
func (l *tensorList) Names() []string { return l.names }

// Info describes a tensor.
func (l *tensorList) Info(name string) (checkpoint.Info, bool) {
	t, ok := l.tensors[name]
	if !ok {
		return checkpoint.Info{}, false
	}
	return checkpoint.Info{DType: t.DType(), Shape: t.Shape(), Bytes: t.Bytes()}, true
}

// Tensor gives a tensor.
func (l *tensorList) Tensor(name string) (torch.Tensor, error) {
	t, ok := l.tensors[name]
	if !ok {
		return torch.Tensor{}, fmt.Errorf("there is no tensor %q", name)
	}
	return t.Detach().ToDevice(torch.CPU).Contiguous(), nil
}
