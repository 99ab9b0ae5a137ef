package model_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"conquer/checkpoint"
	"conquer/model"
)

// A file of weights alone is named by the program that wrote it, if its tensors' names tell.
func TestDeclare_WithoutAConfigNamesFoundationModelStack(t *testing.T) {
	for name, want := range map[string]string{
		"base_model.layers.0.ff_sub_layer.wg1_fused.weight": "fms_to_hf_llama.py",
		"model.layers.0.mlp.up_proj.weight":                 "no config.json beside the weights",
	} {
		header := `{"` + name + `":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`
		data := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
		data = append(append(data, header...), 0, 0, 0, 0)
		path := filepath.Join(t.TempDir(), "llama_000_00010.safetensors")
		if err := os.WriteFile(path, data, 0o666); err != nil {
			t.Fatal(err)
		}
		c, err := checkpoint.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = model.Declare(c)
		if err == nil || !strings.Contains(err.Error(), path) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", name, err, want)
		}
	}
}
