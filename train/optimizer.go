package train

import (
	"fmt"
	"slices"
	"strings"

	"conquer/torch/optim"
)

// Undecayed lists the kinds of weights that can be kept from decaying: those of normalizations, biases (and whatever else is a
// vector, such as a state-space layer's rates), the embedding. "none" stands for no kind.
var Undecayed = []string{"norm", "bias", "embedding", "none"}

// checkOptimizer reports an optimizer that makes no sense.
func (o Options) checkOptimizer() error {
	switch {
	case !slices.Contains(optim.Methods, o.Optimizer):
		return fmt.Errorf("unknown optimizer %q: choose one of %s", o.Optimizer, strings.Join(optim.Methods, ", "))
	case !slices.Contains(optim.MomentTypes, o.Moments):
		return fmt.Errorf("unknown moments %q: choose one of %s", o.Moments, strings.Join(optim.MomentTypes, ", "))
	case o.Moments != optim.Float32 && o.Optimizer != optim.AdamW:
		return fmt.Errorf("moments in %s are for %s", o.Moments, optim.AdamW)
	case o.Stochastic && (o.Moments != optim.Float32 || o.Optimizer != optim.AdamW):
		return fmt.Errorf("stochastic rounding is for %s, and says itself what its moments are kept in", optim.AdamW)
	case o.Stochastic && o.LoRA != nil:
		return fmt.Errorf("stochastic rounding is for bfloat16 weights, and adapters are float32")
	case o.Stochastic && o.OffloadOptimizer:
		return fmt.Errorf("an optimizer in the host's memory keeps float32 originals there: give no --stochastic_rounding with it")
	}
	for _, kind := range o.NoDecay {
		if !slices.Contains(Undecayed, kind) {
			return fmt.Errorf("no decay of %q: choose among %s", kind, strings.Join(Undecayed, ", "))
		}
	}
	return nil
}

// spares reports whether a weight, by its name (several with + between) and shape, does not decay.
func (o Options) spares(name string, shape []int) bool {
	kind := ""
	layer := strings.TrimSuffix(name, ".weight")
	switch {
	case strings.Contains(name, "embed_tokens.") || strings.Contains(name, "embeddings."):
		kind = "embedding"
	case len(shape) == 1 && strings.Contains(layer[strings.LastIndexByte(layer, '.')+1:], "norm"):
		kind = "norm"
	case len(shape) == 1:
		kind = "bias"
	}
	return slices.Contains(o.NoDecay, kind)
}
