package checkpoint

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"conquer/torch"
)

// Family translates between the config.json and tensor names of a model family and formats with
// names of their own. Families register it when they are imported. The functions of a format
// without models of the family are nil.
type Family struct {
	// ModelTypes lists the model_type values of config.json that the family writes.
	ModelTypes []string
	// Architectures lists the general.architecture values of GGUF files that the family reads.
	Architectures []string
	// Accepts, if not nil, says whether the family reads a file of these architectures, which
	// another family may read, too. The family is asked before those without Accepts.
	Accepts func(f *GGUFFile) bool
	// FromGGUF returns the config.json of a GGUF file and the Hugging Face names of its tensors.
	// Problems may also be left in f.Err.
	FromGGUF func(f *GGUFFile) (config map[string]any, tensors TensorMap, err error)
	// ToGGUF describes a model for a GGUF file by its config.json.
	ToGGUF func(config []byte) (*GGUFModel, error)
	// Meta describes models in Meta's layout.
	Meta *MetaFamily
	// Embedding is the embedding's Hugging Face name, without .weight; model.embed_tokens if empty.
	// Its first part is the prefix of all tensors but the head's.
	Embedding string
	// Tied says that a config.json without tie_word_embeddings ties the head to the embedding.
	Tied bool
	// Adopt, if not nil, takes a folder's config.json without model_type, as another library writes
	// it. It returns the Hugging Face config and maps the names of tensors; no config for a folder
	// that is of no model of the family. It also returns what it cannot take as an error.
	Adopt func(config map[string]any) (adopted map[string]any, rename func(name string) string,
		err error)
}

// Mapped is a tensor's name and form in another format.
type Mapped struct {
	// Name is empty for a tensor that the other format does not hold.
	Name string
	// Heads, if not 0, is the number of heads among the tensor's rows. The other format then holds
	// the two halves of a head's rotary dimensions interleaved (rows 2i and 2i+1); in Hugging
	// Face's order they are rows i and i+P/2.
	Heads int
	// Transform, if not nil, relates the tensor in the other format to Hugging Face's.
	Transform *Transform
	// Float32 says that the other format demands float32.
	Float32 bool
	// Stack, if not nil, lists Hugging Face's names of the tensors that the tensor in the other
	// format holds along a new first dimension.
	Stack []string
	// Split, if not nil, lists the names of the tensors that hold equal parts of the rows of one
	// Hugging Face tensor in the other format, in order. Name is the Hugging Face name, or Split's
	// first name in a map to the other format.
	Split []string
	// Also lists further tensors of the other format that are made of the same one, each of its
	// shape.
	Also []Mapped
}

// Transform converts a tensor between Hugging Face's form and that of another format.
type Transform struct {
	// Shape gives the shape in the other format, and Back the inverse.
	Shape, Back func(shape []int) []int
	// To and From convert the values, whose shapes are already converted; nil leaves them as they
	// are.
	To, From func(t torch.Tensor) torch.Tensor
}

// TensorMap maps a tensor's name in one format to another; false for a name that the model does not
// have.
type TensorMap func(name string) (Mapped, bool)

// Names pairs the names of tensors in another format with those in Hugging Face's, without .weight
// and .bias.
type Names struct {
	// prefixes before a block's number, e.g. "blk." and "model.layers."
	Blocks, Layers string
	Whole          map[string]string // of tensors outside the blocks
	Block          map[string]string // of a block's tensors, behind its prefix and number
	// Exact pairs complete names of a block's tensors, for names that end in neither.
	Exact map[string]string
	// Stacks pairs names of a block's tensors that hold one tensor for each of Experts experts with
	// Hugging Face's names of these, where * stands for the expert's number.
	Stacks  map[string]string
	Experts int
}

// Stacked gives the tensors that the other format's tensor of a name stacks.
func (n Names) Stacked(name string) (Mapped, bool) {
	layer, stem, ok := n.split(name, n.Blocks)
	pattern := n.Stacks[stem]
	if !ok || pattern == "" {
		return Mapped{}, false
	}
	names := make([]string, n.Experts)
	for i := range names {
		names[i] = n.Layers + layer + "." + strings.Replace(pattern, "*", strconv.Itoa(i), 1) +
			".weight"
	}
	return Mapped{Name: names[0], Stack: names}, true
}

// Stacker is the inverse of Stacked, for one of the stacked tensors.
func (n Names) Stacker(name string) (Mapped, bool) {
	layer, stem, ok := n.split(name, n.Layers)
	if !ok {
		return Mapped{}, false
	}
	for foreign, pattern := range n.Stacks {
		before, after, _ := strings.Cut(pattern, "*")
		if strings.HasPrefix(stem, before) && strings.HasSuffix(stem, after) {
			foreign = n.Blocks + layer + "." + foreign + ".weight"
			m, ok := n.Stacked(foreign)
			m.Name = foreign
			return m, ok
		}
	}
	return Mapped{}, false
}

// split takes the block's number and the rest of a weight's name apart.
func (n Names) split(name, prefix string) (layer, stem string, ok bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	layer, stem, found := strings.Cut(rest, ".")
	stem, weight := strings.CutSuffix(stem, ".weight")
	return layer, stem, ok && found && weight
}

// HuggingFace gives the Hugging Face name of the other format's tensor.
func (n Names) HuggingFace(name string) (string, bool) {
	return n.rename(name, n.Blocks, n.Layers, func(names map[string]string, stem string) string {
		return names[stem]
	})
}

// Foreign is the inverse of HuggingFace.
func (n Names) Foreign(name string) (string, bool) {
	return n.rename(name, n.Layers, n.Blocks, func(names map[string]string, stem string) string {
		for foreign, hf := range names {
			if hf == stem {
				return foreign
			}
		}
		return ""
	})
}

// rename finds a name's counterpart, which `of` looks up, and replaces the prefix `from` before a
// block's number.
func (n Names) rename(name, from, to string,
	of func(names map[string]string, stem string) string) (string, bool) {
	prefix, rest := "", name
	names := n.Whole
	if inBlock, ok := strings.CutPrefix(name, from); ok {
		layer, part, ok := strings.Cut(inBlock, ".")
		if i, err := strconv.Atoi(layer); !ok || err != nil || i < 0 || strconv.Itoa(i) != layer {
			return "", false
		}
		prefix, rest, names = to+layer+".", part, n.Block
		if exact := of(n.Exact, rest); exact != "" {
			return prefix + exact, true
		}
	}
	stem, kind, ok := cutLast(rest, ".")
	if !ok || kind != "weight" && kind != "bias" {
		return "", false
	}
	mapped := of(names, stem)
	if mapped == "" {
		return "", false
	}
	return prefix + mapped + "." + kind, true
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

var families struct {
	sync.RWMutex
	list []Family
}

// RegisterFamily adds a family.
func RegisterFamily(f Family) {
	families.Lock()
	defer families.Unlock()
	families.list = append(families.list, f)
}

// familyOf finds the family that `of` accepts.
func familyOf(of func(Family) bool) (Family, bool) {
	families.RLock()
	defer families.RUnlock()
	if i := slices.IndexFunc(families.list, of); i >= 0 {
		return families.list[i], true
	}
	return Family{}, false
}

// registered lists the values that `of` returns for all families, sorted.
func registered(of func(Family) []string) string {
	families.RLock()
	defer families.RUnlock()
	var all []string
	for _, f := range families.list {
		all = append(all, of(f)...)
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), ", ")
}

// familyFor finds the family of a config.json among those that have a format.
func familyFor(config []byte, format string, has func(Family) bool) (Family, error) {
	if config == nil {
		return Family{}, fmt.Errorf("%s: there is no config.json to say how the model is built",
			format)
	}
	var c struct {
		ModelType string `json:"model_type"`
	}
	if err := json.Unmarshal(config, &c); err != nil {
		return Family{}, fmt.Errorf("%s: %s: %w", format, configFile, err)
	}
	f, ok := familyOf(func(f Family) bool {
		return has(f) && slices.Contains(f.ModelTypes,
			c.ModelType)
	})
	if !ok {
		types := registered(func(f Family) []string {
			if has(f) {
				return f.ModelTypes
			}
			return nil
		})
		return Family{}, fmt.Errorf("%s holds models of type %s, not %.40q: use --format hf",
			format, types, c.ModelType)
	}
	return f, nil
}
