package families_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch"
)

// tensors is a source of named tensors, in the order of their names.
type tensors map[string]torch.Tensor

func (s tensors) Names() []string { return slices.Sorted(maps.Keys(s)) }

func (s tensors) Info(name string) (checkpoint.Info, bool) {
	t, ok := s[name]
	if !ok {
		return checkpoint.Info{}, false
	}
	return checkpoint.Info{DType: t.DType(), Shape: t.Shape(), Bytes: t.Bytes()}, true
}

func (s tensors) Tensor(name string) (torch.Tensor, error) { return s[name], nil }

// rewritten writes the model at folder again, with other names of its tensors ("" drops one) and
// the config that change makes, and returns the new folder.
func rewritten(t *testing.T, folder string, rename func(name string) string,
	change func(config map[string]any, s tensors)) string {
	t.Helper()
	c, err := checkpoint.Open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	source := tensors{}
	for _, name := range c.Names() {
		tensor, err := c.Tensor(name)
		if err != nil {
			t.Fatal(err)
		}
		if name = rename(name); name != "" {
			source[name] = tensor
		}
	}
	config := c.Config()
	if change != nil {
		change(config, source)
	}
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "m")
	if err := checkpoint.Save(dir, source, checkpoint.Options{Config: text}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// base is a name in a base model, which AutoModel.save_pretrained writes: without its prefix, and
// without a head.
func base(name string) string {
	_, rest, _ := strings.Cut(name, ".")
	if strings.HasPrefix(name, "lm_head.") {
		return ""
	}
	return rest
}

func TestModel_OpensUnderTheNamesThatTransformersAccepts(t *testing.T) {
	for _, c := range []struct {
		name, folder string
		rename       func(string) string
	}{
		{"a base model", "../llama/testdata/tied", base},
		{"a base model with a bare head", "../llama/testdata/llama", func(name string) string {
			if name == "lm_head.weight" {
				return name
			}
			return base(name)
		}},
		{"a base model of Mamba-2", "../bamba/testdata/mamba2", func(name string) string {
			if name == "lm_head.weight" {
				return name
			}
			return base(name)
		}},
		{"a base model of Bamba", "../bamba/testdata/groups", base},
		{"the head alone", "../llama/testdata/tied", func(name string) string {
			if name == "model.embed_tokens.weight" {
				return "lm_head.weight"
			}
			return name
		}},
		{"the head alone, tied by default", "smollm3/testdata/chosen", func(name string) string {
			if name == "model.embed_tokens.weight" {
				return "lm_head.weight"
			}
			return name
		}},
		{"a module in a module", "../llama/testdata/llama", func(name string) string {
			return "model." + name
		}},
		{"DDP", "../llama/testdata/llama", func(name string) string { return "module." + name }},
		{"torch.compile", "../llama/testdata/llama", func(name string) string {
			return "_orig_mod." + name
		}},
		{"torch.compile and FSDP of blocks", "../llama/testdata/tied", func(name string) string {
			return strings.Replace(name, ".self_attn.",
				"._fsdp_wrapped_module._orig_mod.self_attn.", 1)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			inTorch(t, func() {
				m := open(t, c.folder)
				defer model.Free(m)
				dir := rewritten(t, c.folder, c.rename, func(config map[string]any, s tensors) {
					if strings.Contains(c.name, "by default") {
						delete(config, "tie_word_embeddings")
					}
				})
				sameModel(t, m, dir)
			})
		})
	}
}

// inTorch runs f in a scope of its own.
func inTorch(t *testing.T, f func()) {
	t.Helper()
	err := torch.Run(func() error {
		torch.Scoped(f)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A tied config whose file holds a head of its own is a model with that head, here as in
// transformers 5: in memory and in every format that is written.
func TestModel_TiedConfigWithAnotherHeadKeepsTheHead(t *testing.T) {
	for _, folder := range []string{"../llama/testdata/tied", "../bamba/testdata/groups",
		"qwen3/testdata/tied", "smollm3/testdata/chosen", "granite/testdata/tied",
		"granitehybrid/testdata/rope"} {
		t.Run(folder, func(t *testing.T) {
			inTorch(t, func() {
				keep := func(name string) string { return name }
				var embedding string
				head := func(c map[string]any, s tensors) {
					for _, embedding = range []string{"model.embed_tokens.weight",
						"backbone.embeddings.weight"} {
						if e, ok := s[embedding]; ok {
							s["lm_head.weight"] = e.MulScalar(-0.5)
							break
						}
					}
					c["tie_word_embeddings"] = false
				}
				want := open(t, rewritten(t, folder, keep, head)) // says that it is untied
				defer model.Free(want)
				dir := rewritten(t, folder, keep, func(c map[string]any, s tensors) {
					head(c, s)
					c["tie_word_embeddings"] = true
				})
				sameModel(t, want, dir)
				c, err := checkpoint.Open(dir)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				for _, f := range checkpoint.Formats {
					path := filepath.Join(t.TempDir(), "out")
					if f.File {
						path += ".gguf"
					}
					err := f.Save(path, c, checkpoint.Options{Config: c.ConfigJSON(),
						Metadata: map[string]any{"tokenizer.ggml.model": "no_vocab"}})
					if err != nil && strings.Contains(err.Error(), "config.json: no_rope_layers") ||
						err != nil && strings.Contains(err.Error(), "holds models of type") {
						continue
					}
					if err != nil {
						t.Errorf("%s: %v", f.Name, err)
						continue
					}
					sameModel(t, want, path)
				}
			})
		})
	}
}

// Files that hold the embedding twice, as pytorch_model.bin does, stay tied.
func TestModel_TiedConfigWithTheSameHeadStaysTied(t *testing.T) {
	inTorch(t, func() {
		folder := "../llama/testdata/tied"
		m := open(t, folder)
		defer model.Free(m)
		dir := rewritten(t, folder, func(name string) string { return name },
			func(_ map[string]any, s tensors) {
				s["lm_head.weight"] = s["model.embed_tokens.weight"].Clone()
			})
		sameModel(t, m, dir)
	})
}

func TestModel_MissingTensorsAreNamed(t *testing.T) {
	inTorch(t, func() {
		for _, c := range []struct{ drop, want string }{
			{"lm_head.weight", "no head"},
			{"model.norm.weight", "model.norm.weight"},
			{"model.layers.1.", "num_hidden_layers"},
		} {
			dir := rewritten(t, "../llama/testdata/llama", func(name string) string {
				if strings.HasPrefix(name, c.drop) {
					return ""
				}
				return name
			}, nil)
			_, err := model.Open(dir, torch.Float32, torch.CPU)
			if err == nil || !strings.Contains(err.Error(), c.want) ||
				!strings.Contains(err.Error(), dir) {
				t.Errorf("without %s: %v, expected %s and %s", c.drop, err, dir, c.want)
			}
		}
		// Shards whose index is missing.
		dir := t.TempDir()
		for _, name := range []string{"model-00001-of-00002.safetensors",
			"model-00002-of-00002.safetensors"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		_, err := checkpoint.Open(dir)
		if err == nil || !strings.Contains(err.Error(), "model.safetensors.index.json") {
			t.Error(err)
		}
	})
}
