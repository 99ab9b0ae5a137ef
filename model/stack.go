package model

import (
	"math"
	"slices"

	"conquer/torch"
	"conquer/torch/nn"
)

// StackConfig describes what a model has around its blocks. The zero value of each multiplier means
// 1.
type StackConfig struct {
	Architecture string // the name in the registry
	Config       Config // config.json

	Vocabulary, Width, MaxLength int
	Eps                          float64 // of the final norm
	Tied                         bool    // the head is the embedding

	EmbeddingScale float64 // multiplier of the embedding
	LogitsScale    float64 // multiplier of the logits
	WideResidual   bool    // keep the residual stream in float32
	ZLoss          float64 // coefficient of the z-loss that the model is trained with

	Rotary *nn.RotaryConfig // nil for a model without rotary embedding
	Names  StackNames
}

// StackNames are the names of a stack's weights in Hugging Face checkpoints. The head's is always
// lm_head.
type StackNames struct{ Embedding, Layers, FinalNorm string }

// DefaultNames are the names that most families use.
var DefaultNames = StackNames{Embedding: "model.embed_tokens", Layers: "model.layers",
	FinalNorm: "model.norm"}

// Stack is a causal language model: an embedding, blocks, a final norm and a head. It implements
// [Model].
type Stack struct {
	Embedding *nn.Embedding
	Layers    []Block
	FinalNorm *nn.RMSNorm
	Output    *nn.Linear // nil if tied to the embedding

	config StackConfig
	rotary *nn.Rotary
	pass   PassOptions
}

var _ Model = (*Stack)(nil)

// NewStack makes a model of the given blocks, without weights.
func NewStack(c StackConfig, blocks []Block) (*Stack, error) {
	if c.Names == (StackNames{}) {
		c.Names = DefaultNames
	}
	s := &Stack{Embedding: nn.NewEmbedding(c.Vocabulary, c.Width), Layers: blocks,
		FinalNorm: nn.NewRMSNorm(c.Width, c.Eps), config: c}
	if !c.Tied {
		s.Output = nn.NewLinear(c.Width, false, c.Vocabulary)
	}
	rotated := false
	nn.Layers(s, func(_ string, layer any) {
		a, ok := layer.(*Attention)
		if !ok {
			return
		}
		if !slices.Contains(s.pass.Windows, a.config.Window) {
			s.pass.Windows = append(s.pass.Windows, a.config.Window)
		}
		if a.config.NoRotary {
			s.pass.Unrotated = a.config.HeadDim
		} else {
			rotated = true
		}
	})
	if r := c.Rotary; r != nil && r.Scaling == "dynamic" { // which is made for more positions
		s.config.MaxLength = int(math.Min(float64(c.MaxLength)*math.Max(1, r.Factor), 1<<30))
	}
	if c.Rotary != nil && rotated {
		rotary, err := nn.NewRotary(*c.Rotary)
		if err != nil {
			return nil, err
		}
		s.rotary, s.pass.Rotary = rotary, rotary
	}
	return s, nil
}

// Children names the parts as checkpoints do.
func (s *Stack) Children() []nn.Child {
	names := s.config.Names
	return []nn.Child{{Name: names.Embedding, Layer: s.Embedding},
		{Name: names.Layers, Layer: s.Layers},
		{Name: names.FinalNorm, Layer: s.FinalNorm}, {Name: "lm_head", Layer: s.Output}}
}

// Architecture is the name in the registry.
func (s *Stack) Architecture() string { return s.config.Architecture }

// Config is the config.json that the model was made from.
func (s *Stack) Config() Config { return s.config.Config }

// DependsOnLength reports whether the rotary embedding of a pass depends on its largest position.
func (s *Stack) DependsOnLength() bool { return s.rotary != nil && s.rotary.Varies() }

// ZLoss is the coefficient of the squared log-sum-exp of the logits in the model's loss.
func (s *Stack) ZLoss() float64 { return s.config.ZLoss }

// MaxLength is the number of positions that the model was made for.
func (s *Stack) MaxLength() int { return s.config.MaxLength }

// Begin prepares the rotary table and the masks.
func (s *Stack) Begin(seq Sequence) *Pass { return NewPass(seq, s.pass) }

// Embed maps ids (int64 [B,L]) to [B,L,D].
func (s *Stack) Embed(ids torch.Tensor) torch.Tensor {
	x := s.Embedding.Forward(ids)
	if scale := s.config.EmbeddingScale; scale != 0 && scale != 1 {
		x = x.MulScalar(scale)
	}
	if s.config.WideResidual {
		x = x.To(torch.Float32)
	}
	return x
}

// Blocks lists the blocks.
func (s *Stack) Blocks() []Block { return s.Layers }

// Norm is the normalization before the head, in the weights' dtype.
func (s *Stack) Norm(x torch.Tensor) torch.Tensor {
	y := s.FinalNorm.Forward(x)
	if s.config.WideResidual {
		y = y.To(s.FinalNorm.Weight.DType())
	}
	return y
}

// Head is the projection to the vocabulary.
func (s *Stack) Head() nn.Head {
	if s.Output == nil {
		return nn.Head{Param: s.Embedding.Weight, Scale: s.config.LogitsScale}
	}
	return nn.Head{Param: s.Output.Weight, Scale: s.config.LogitsScale}
}

// FreeTables frees the rotary table, which is made again when it is used.
func (s *Stack) FreeTables() {
	if s.rotary != nil {
		s.rotary.Free()
	}
}

// NewCache makes the blocks' empty caches.
func (s *Stack) NewCache(batch, capacity int, dtype torch.DType, device torch.Device) *Cache {
	cache := &Cache{Capacity: capacity}
	for _, block := range s.Layers {
		cache.Layers = append(cache.Layers, block.NewCache(batch, capacity, dtype, device))
		if cache.Layers[len(cache.Layers)-1].Ring.X.Defined() && !cache.Held.Defined() {
			cache.Held = torch.Zeros([]int{batch}, torch.Int32, device).Own()
		}
	}
	return cache
}
