package checkpoint

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"conquer/torch"
)

// headName is the name of a causal language model's head.
const headName = "lm_head.weight"

// wrappers are the parts that torch.nn.parallel, torch.compile, FSDP and activation checkpointing
// leave in the names of the modules that they wrap.
var wrappers = []string{"_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."}

// baseParts are the first parts of names in a base model, which has no prefix.
var baseParts = []string{"embed_tokens", "embeddings", "layers", "norm", "norm_f",
	"final_layernorm"}

// conform gives the tensors of a model in Hugging Face's layout the names that transformers gives
// them when it loads the folder, and joins a tied head.
func (c *contents) conform(path string) error {
	if err := c.adopt(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	config := decoded(c.config)
	kind, ok := config["model_type"].(string)
	if !ok {
		return nil
	}
	family, _ := familyOf(func(f Family) bool { return slices.Contains(f.ModelTypes, kind) })
	names := map[string]string{}
	for _, s := range c.tensors {
		name := family.conformName(s.name)
		if other, twice := names[name]; twice {
			return fmt.Errorf("%s: %.80q and %.80q are two names of tensor %.80q", path, other,
				s.name, name)
		}
		names[name], s.name = s.name, name
	}
	tied := family.Tied
	if explicit, ok := config["tie_word_embeddings"].(bool); ok {
		tied = explicit
	}
	if !tied {
		return nil
	}
	return c.tie(family.embedding() + ".weight")
}

// adopt replaces a config without model_type, and the names of the tensors, by Hugging Face's if a
// family knows the config.
func (c *contents) adopt() error {
	config := decoded(c.config)
	if config == nil || config["model_type"] != nil {
		return nil
	}
	families.RLock()
	list := slices.Clone(families.list)
	families.RUnlock()
	for _, f := range list {
		if f.Adopt == nil {
			continue
		}
		adopted, rename, err := f.Adopt(config)
		if err != nil {
			return fmt.Errorf("%s: %w", configFile, err)
		}
		if adopted == nil {
			continue
		}
		for _, s := range c.tensors {
			s.name = rename(s.name)
		}
		c.config, err = jsonText(adopted)
		return err
	}
	return nil
}

// embedding is the name of a family's embedding, without .weight.
func (f Family) embedding() string {
	if f.Embedding == "" {
		return "model.embed_tokens"
	}
	return f.Embedding
}

// conformName is a tensor's name in transformers.
func (f Family) conformName(name string) string {
	for _, wrapper := range wrappers {
		name = strings.ReplaceAll(name, wrapper, "")
	}
	name = strings.TrimPrefix(name, "module.")
	base, _, _ := strings.Cut(f.embedding(), ".")
	first, rest, _ := strings.Cut(name, ".")
	switch {
	case first == base && (strings.HasPrefix(rest, base+".") || rest == headName):
		return rest
	case slices.Contains(baseParts, first):
		return base + "." + name
	}
	return name
}

// tie makes one tensor of a tied model's embedding and head. If the file has the head alone, as
// safetensors.torch.save_model leaves it, that is the embedding. If it has both and they differ,
// the head is its own, as in transformers 5, and the config says so.
func (c *contents) tie(embedding string) error {
	index := func(name string) int {
		return slices.IndexFunc(c.tensors, func(s *stored) bool { return s.name == name })
	}
	e, h := index(embedding), index(headName)
	switch {
	case h < 0:
		return nil
	case e < 0:
		c.tensors[h].name = embedding
		return nil
	}
	same, err := c.tensors[e].equals(c.tensors[h])
	if err != nil {
		return err
	}
	if same {
		c.tensors = slices.Delete(c.tensors, h, h+1)
		return nil
	}
	var config map[string]any
	d := json.NewDecoder(bytes.NewReader(c.config))
	d.UseNumber()
	if err := d.Decode(&config); err != nil {
		return fmt.Errorf("%s: %w", configFile, err)
	}
	config["tie_word_embeddings"] = false
	c.config, err = jsonText(config)
	return err
}

// equals reports whether two tensors have the same values.
func (s *stored) equals(other *stored) (same bool, err error) {
	if !slices.Equal(s.shape, other.shape) {
		return false, nil
	}
	if s.dtype == other.dtype && s.headRows == 0 && other.headRows == 0 && s.packed == nil &&
		other.packed == nil {
		if s.file == other.file && s.whole() && other.whole() && s.offset == other.offset {
			return true, nil
		}
		return bytes.Equal(s.data(), other.data()), nil
	}
	err = torch.Run(func() (err error) {
		torch.Scoped(func() {
			var a, b torch.Tensor
			if a, err = s.read(s.torchDType()); err != nil {
				return
			}
			if b, err = other.read(other.torchDType()); err == nil {
				same = bytes.Equal(a.To(torch.Float32).Contiguous().Data(),
					b.To(torch.Float32).Contiguous().Data())
			}
		})
		return err
	})
	return same, err
}
