package model

import (
	"fmt"
	"strings"

	"conquer/checkpoint"
)

// notRead ends the errors about quantized weights.
const notRead = "which is not read: use the model's original weights, or a GGUF file of it"

// checkQuantized refuses the config of a model whose weights are quantized in a way that package
// checkpoint does not read. why says more about it, or is empty.
func checkQuantized(config Config, why string) error {
	for _, key := range []string{"quantization_config", "compression_config", "quantization"} {
		q, ok := config[key].(map[string]any)
		if !ok || len(q) == 0 {
			continue
		}
		method, _ := q["quant_method"].(string)
		_, fourBit := q["load_in_4bit"]
		_, eightBit := q["load_in_8bit"]
		_, groups := q["group_size"]
		switch {
		case method != "":
		case fourBit || eightBit:
			method = "bitsandbytes"
		case key == "compression_config":
			method = "compressed-tensors"
		case groups:
			method = "MLX"
		default:
			method = "a method that it does not name"
		}
		if why != "" {
			return fmt.Errorf("config.json: the weights are quantized by %.60s (%q), and %s: use "+
				"the model's original weights, or a GGUF file of it", method, key, why)
		}
		return fmt.Errorf("config.json: the weights are quantized by %.60s (%q), %s", method, key,
			notRead)
	}
	return nil
}

// quantizedParts are the last parts of names of tensors that libraries store for one quantized
// matrix.
var quantizedParts = []struct{ part, method string }{
	{".qweight", "GPTQ or AWQ"}, {".qzeros", "GPTQ or AWQ"}, {".weight_scale_inv", "fp8"},
	{".weight_packed", "compressed-tensors"}, {".weight.absmax", "bitsandbytes"},
	{".weight.quant_map", "bitsandbytes"}, {".SCB", "bitsandbytes"},
	{".weight_scale", "fp8 or compressed-tensors"}, {"_proj_blocks", "mxfp4"}, {".W_q", "HQQ"},
	{".codebooks", "AQLM"}, {".weight._data", "quanto"}, {".q_weight", "EXL2"},
	{".trellis", "EXL3"},
	{".Qidxs", "QuIP#"}, {".biases", "MLX"}, {".weight_scales", "EETQ"},
	{".weight:_data", "torchao"}, {".weight_qdata", "torchao"},
}

// quantizedBy recognizes a quantized model whose config does not say so by its tensors; "" if it is
// none.
func quantizedBy(source TensorSource) string {
	c, ok := source.(*checkpoint.Checkpoint)
	if !ok {
		return ""
	}
	for _, q := range quantizedParts {
		for _, name := range c.Names() {
			if strings.HasSuffix(name, q.part) {
				return fmt.Sprintf("the weights are quantized by %s (tensor %.120q), %s", q.method,
					name, notRead)
			}
		}
	}
	return ""
}
