package nn

// Activations counts the elements per token that autograd keeps in this process for a layer's own
// operations. The inputs and outputs of its linear layers are counted elsewhere, and the inputs as
// recomputable. A negative Recomputable corrects this for a linear layer whose input is not
// recomputed.
type Activations struct {
	Kept         float64
	Recomputable float64 // by selective recomputation: results of norms, SwiGLU and convolutions
}

// Activated is a layer that keeps activations of its own. Memory plans ask for them.
type Activated interface{ Activations() Activations }

// Activations are the results of the convolution.
func (c *Conv1D) Activations() Activations {
	n := float64(c.Weight.Local()[0])
	return Activations{Kept: n, Recomputable: n}
}

// Activations are the inputs of the norm.
func (n *GatedRMSNorm) Activations() Activations {
	return Activations{Kept: float64(n.Weight.Local()[0])}
}
