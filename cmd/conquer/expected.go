package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/model"
	"conquer/torch/nn"
)

// expected is what the flags say about a checkpoint beside its path. It is compared with the files.
type expected struct{ architecture, variant, format string }

// The values of --checkpoint_format. hf stands for safetensors and for pickles.
var sourceFormats = []string{"hf", checkpoint.Meta, checkpoint.Native, checkpoint.GGUF}

// declareExpected adds the flags of what is expected of the model.
func (f *modelFlags) declareExpected(flags *pflag.FlagSet) {
	flags.StringVar(&f.architecture, "architecture", "",
		"with --model_path: the architecture that the checkpoint must have, such as llama")
	flags.StringVar(&f.variant, "variant", "",
		"with --model_path: the `size` that the checkpoint must have, such as 7b")
	f.declareSourceFormat(flags)
}

func (f *modelFlags) declareSourceFormat(flags *pflag.FlagSet) {
	flags.StringVar(&f.format, "checkpoint_format", "",
		"format that the model's files must have: hf, meta, native or gguf (default: any); meta "+
			"takes consolidated.NN.pth from a folder that holds files of both layouts")
}

// checkExpected reports values that no checkpoint has.
func (e *expected) checkExpected(path string) error {
	switch {
	case strings.HasPrefix(e.format, "fms"):
		return usagef("--checkpoint_format %s: checkpoints in foundation-model-stack's own layout "+
			"are not read: convert them with convert_to_hf of fms_to_hf_llama.py in "+
			"foundation-model-stack/fms-fsdp", e.format)
	case e.format != "" && !slices.Contains(sourceFormats, e.format):
		return usagef("--checkpoint_format: unknown format %q: choose one of %s", e.format,
			strings.Join(sourceFormats, ", "))
	case e.format != "" && path == "":
		return usagef("--checkpoint_format is the format of the model's files and needs " +
			"--model_path; --save_format is that of the checkpoints that train writes")
	case e.architecture == "hf_pretrained" || e.architecture == "hf_configured":
		return usagef("--architecture %s: config.json is always read: leave --architecture and "+
			"--variant out and give the folder, or org/name, with --model_path", e.architecture)
	case path == "" || e.variant == "":
		return nil
	case e.architecture == "":
		return usagef("--variant %s needs --architecture", e.variant)
	}
	if _, err := model.Variant(e.architecture, e.variant); err != nil {
		return usageError{err}
	}
	return nil
}

// metaPath returns the path of the files in Meta's layout in a folder that may also hold the model
// in another one, as folders on the Hugging Face Hub do.
func metaPath(path string) string {
	part := filepath.Join(path, "consolidated.00.pth")
	if _, err := os.Stat(part); err != nil {
		return path
	}
	return part
}

// checkFiles compares the flags with the files of a model.
func (e *expected) checkFiles(c *checkpoint.Checkpoint) error {
	format := c.Format
	if format == checkpoint.SafeTensors || format == checkpoint.PyTorch {
		format = "hf"
	}
	if e.format != "" && e.format != format {
		return usagef("--checkpoint_format %s: %s has the format %s: leave the flag out, because "+
			"formats are recognized; --save_format is the format of the checkpoints that train "+
			"writes", e.format, c.Path, format)
	}
	if e.architecture == "" {
		return nil
	}
	config := model.Config(c.Config())
	kind, _ := config["model_type"].(string)
	a, ok := model.ArchitectureOf(kind)
	switch {
	case !ok: // opening the model says what is wrong
		return nil
	case e.architecture != a.Name && e.architecture != kind:
		return usagef("--architecture %s: %s is a model of the architecture %s (model_type %s): "+
			"give that one, or leave the flag out", e.architecture, c.Path, a.Name, kind)
	case e.variant == "":
		return nil
	}
	named, err := model.Variant(e.architecture, e.variant)
	if err != nil {
		return usageError{err}
	}
	differing, err := differences(named, config)
	if err != nil || len(differing) == 0 {
		return err
	}
	return usagef("--variant %s is not the size of %s: %s; leave --variant out to take the "+
		"checkpoint as it is", e.variant, c.Path, strings.Join(differing, "; "))
}

// sizes are the fields of configs that say how large a model is.
var sizes = []string{"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
	"num_attention_heads", "num_key_value_heads", "head_dim", "attn_layer_indices",
	"mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv",
	"num_heads", "state_size", "n_groups", "conv_kernel", "layer_types",
	"shared_intermediate_size", "tie_word_embeddings"}

// differences describes how the sizes of the model of a checkpoint's config differ from those of a
// variant: by the fields of the configs or, if those agree, by the shapes of the weights.
func differences(variant, checkpoint model.Config) ([]string, error) {
	var list []string
	differ := func(what string, wanted, found any) {
		if w, f := fmt.Sprint(wanted), fmt.Sprint(found); w != f {
			list = append(list, fmt.Sprintf("%s is %s, not %s", what, f, w))
		}
	}
	for _, key := range sizes {
		if variant[key] != nil && checkpoint[key] != nil {
			differ(key, variant[key], checkpoint[key])
		}
	}
	if list != nil {
		return list, nil
	}
	wanted, err := shapes(variant)
	if err != nil {
		return nil, err
	}
	found, err := shapes(checkpoint)
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		if _, ok := found[name]; !ok {
			found[name] = "missing"
		}
		differ(name, wanted[name], found[name])
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if _, ok := wanted[name]; !ok {
			differ(name, "missing", found[name])
		}
	}
	return list[:min(len(list), 3)], nil
}

// shapes returns the shapes of the weights that a model of a config has, by their names.
func shapes(config model.Config) (map[string]string, error) {
	m, err := model.New(config)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	nn.Walk(m, func(c nn.Component) {
		found[c.Name] = fmt.Sprint(c.Shape())
	})
	return found, nil
}
