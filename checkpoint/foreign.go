package checkpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// foreign are layouts that this package does not read, by a pattern of names that marks them, with
// what the folder is and what to do.
var foreign = []struct{ pattern, what string }{
	{"*.distcp", "it is a checkpoint of torch.distributed.checkpoint (DCP): join it with python " +
		"-m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER pytorch_model.bin, and " +
		"put that file beside the model's config.json"},
	{"pytorch_model_fsdp_*", "it is a checkpoint of FSDP in training: join it with accelerate " +
		"merge-weights FOLDER/pytorch_model_fsdp_0 OUTPUT"},
	{"zero_to_fp32.py", "it is a checkpoint of DeepSpeed: join it with python zero_to_fp32.py " +
		"FOLDER OUTPUT"},
	{"global_step*", "it is a checkpoint of DeepSpeed: join it with its zero_to_fp32.py"},
	{"latest_checkpointed_iteration.txt", "it is a checkpoint of Megatron-LM: convert it to " +
		"Hugging Face's format with Megatron's tools"},
	{"adapter_config.json", "it is an adapter in PEFT's format: give its base model with " +
		"--model_path and this folder with --adapter_path"},
	{"model_index.json", "it is a pipeline of diffusers, which makes images: expected a causal " +
		"language model"},
	{"*.onnx", "it is a model for ONNX Runtime: use the model's safetensors files"},
	{"onnx", "it is a model for ONNX Runtime: use the model's safetensors files"},
	{"openvino_model.xml", "it is a model for OpenVINO: use the model's safetensors files"},
	{"tf_model*.h5", "it holds weights for TensorFlow: load it in transformers with from_tf=True " +
		"and save it, or use the model's safetensors files"},
	{"saved_model.pb", "it is a model of TensorFlow: use the model's safetensors files"},
	{"flax_model*.msgpack", "it holds weights for Flax: load it in transformers with " +
		"from_flax=True and save it, or use the model's safetensors files"},
	{"_CHECKPOINT_METADATA", "it is of Orbax (JAX): use the model's safetensors files"},
	{"manifest.ocdbt", "it is of Orbax (JAX): use the model's safetensors files"},
	{"*.nemo", "it is a model of NeMo: export it to Hugging Face's format with NeMo"},
	{"model_config.yaml", "it is a model of NeMo: export it to Hugging Face's format with NeMo"},
	{"*.engine", "it is compiled for TensorRT: use the weights that it was made from"},
	{"mlc-chat-config.json", "it is compiled by MLC: use the weights that it was made from"},
	{"*.mlpackage", "it is a model for Core ML: use the weights that it was made from"},
	{"*.mlmodelc", "it is a model for Core ML: use the weights that it was made from"},
	{"*.tflite", "it is a model for LiteRT: use the weights that it was made from"},
	{"consolidated.safetensors", "it is in Mistral's own layout: use the files of transformers " +
		"(model.safetensors or its shards, and config.json) of the same model"},
	{"dataset_info.json", "it is a data set: give it with --data_path"},
	{"state.json", "it is a data set: give it with --data_path"},
	{"snapshots", "it is a folder of the Hugging Face cache: give the path of a folder in its " +
		"snapshots"},
	{"modules.json", "it is a model of sentence-transformers, for embeddings: expected a causal " +
		"language model"},
}

// nameForeign says what a folder without a model of a known layout is, or names the file in it that
// holds one; "" if it is nothing known.
func nameForeign(dir string) string {
	entries, _ := os.ReadDir(dir)
	find := func(pattern string) string {
		i := slices.IndexFunc(entries, func(e os.DirEntry) bool {
			ok, _ := filepath.Match(pattern, e.Name())
			return ok
		})
		if i < 0 {
			return ""
		}
		return entries[i].Name()
	}
	for pattern, index := range map[string]string{"model-*-of-*.safetensors": indexFile,
		"pytorch_model-*-of-*.bin": pickleIndex} {
		if shard := find(pattern); shard != "" {
			return fmt.Sprintf("it holds files of a model, such as %s, but not %s, which says "+
				"which tensor is in which file: fetch that file too", shard, index)
		}
	}
	for _, f := range foreign {
		if found := find(f.pattern); found != "" {
			return fmt.Sprintf("%s (it holds %s)", f.what, found)
		}
	}
	for _, extension := range []string{".gguf", ".safetensors", ".bin", ".pth", ".pt"} {
		if found := find("*" + extension); found != "" {
			return fmt.Sprintf("it holds %s: give the path of that file", found)
		}
	}
	if found := find("checkpoint-*"); found != "" {
		return fmt.Sprintf("it is the output of a training run: give the path of a checkpoint in "+
			"it, such as %s", filepath.Join(dir, found))
	}
	if find(configFile) != "" || find("tokenizer.json") != "" {
		return "its weights are missing: fetch " + strings.Join([]string{weightsFile,
			"or the shards and " + indexFile}, " ")
	}
	return ""
}
