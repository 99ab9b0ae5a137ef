package checkpoint

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"conquer/internal/atomicfile"
)

// PEFT's files.
const (
	adapterConfig  = "adapter_config.json"
	adapterWeights = "adapter_model.safetensors"
	adapterPickle  = "adapter_model.bin"
)

// entryFiles are the files by which a reader recognizes what a folder holds. Without them, no
// program takes the weights beside them for a model or an adapter.
var entryFiles = []string{configFile, indexFile, pickleIndex, paramsFile, NativeFile, adapterConfig}

// weightPatterns match the files of weights of all layouts.
var weightPatterns = []string{weightsFile, "model-*-of-*.safetensors", "rank-*-of-*.safetensors",
	pickleFile, "pytorch_model-*-of-*.bin", "consolidated.[0-9][0-9].pth", adapterWeights,
	adapterPickle}

// templateFolder holds the named chat templates of a tokenizer.
const templateFolder = "additional_chat_templates"

// kindOf says what an entry of a folder is to the result that the folder holds.
func kindOf(name string) atomicfile.Kind {
	if slices.Contains(entryFiles, name) {
		return atomicfile.Entry
	}
	for _, pattern := range weightPatterns {
		if ok, _ := filepath.Match(pattern, name); ok {
			return atomicfile.Part
		}
	}
	if name == generationFile || name == templateFolder || slices.Contains(tokenizerFiles, name) {
		return atomicfile.Part
	}
	return atomicfile.Other
}

// ResultFiles lists the names of the entries of the folder dir that belong to a result: the
// weights, configs and tokenizer of a model in any layout, or an adapter. A new result replaces all
// of them. It returns none if dir does not exist.
func ResultFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if kindOf(e.Name()) != atomicfile.Other {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Recover completes the replacement of the result in the folder dir that a killed process had
// begun, and does nothing if there is none. Commands call it before they look at what an output
// folder holds.
func Recover(dir string) error {
	return atomicfile.Explain(dir, atomicfile.Recover(dir, kindOf))
}
