package nn

import "fmt"

// Divisible is a layer that says how its weights divide over the processes of a group (tensor
// parallelism: Shoeybi et al., arXiv 1909.08053). Weights of one dimension that no layer divides
// are held by every process.
type Divisible interface {
	// Divide tells d how the layer's weights divide. It fails if they do not divide over d.Size()
	// processes.
	Divide(d Divider) error
}

// Divider records how weights divide over processes.
type Divider interface {
	// Size is the number of processes.
	Size() int
	// Rows divides the rows of p.
	Rows(p *Param, spans ...Span)
	// Outputs divides what l produces: rows of its weight and bias, and of the second factors of
	// its adapters.
	Outputs(l *Linear, spans ...Span)
	// Inputs divides what l consumes: columns of its weight, and of the first factors of its
	// adapters. Each process then computes one term of a sum.
	Inputs(l *Linear, spans ...Span)
}

// Span is Count units of Unit rows or columns each, beginning with row or column Start. The
// processes share the units as evenly as they can. If Unit is 0, the span is Count rows or columns
// that every process holds.
type Span struct{ Start, Count, Unit int }

// Divide shares the vocabulary.
func (e *Embedding) Divide(d Divider) error {
	d.Rows(e.Weight, Span{0, e.Weight.Shape[0], 1})
	return nil
}

// Divide shares the inner width F.
func (m *SwiGLU) Divide(d Divider) error {
	inner := m.Down.Weight.Shape[1]
	d.Outputs(m.GateUp, Span{0, inner, 1}, Span{inner, inner, 1})
	d.Inputs(m.Down, Span{0, inner, 1})
	return nil
}

// TooManyProcesses is the error of a layer that divides into at most `most` equal units.
func TooManyProcesses(what string, d Divider, most int) error {
	return fmt.Errorf("%s cannot be divided over %d processes: choose %d or fewer", what, d.Size(),
		most)
}
