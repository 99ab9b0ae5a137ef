package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"conquer/internal/budget"
	"conquer/internal/pyjson"
	"conquer/internal/wrongfile"
)

// The names of a Hugging Face folder's files.
const (
	weightsFile    = "model.safetensors"
	indexFile      = "model.safetensors.index.json"
	pickleFile     = "pytorch_model.bin"
	pickleIndex    = "pytorch_model.bin.index.json"
	configFile     = "config.json"
	generationFile = "generation_config.json"
)

// The sizes in bytes beyond which a config and an index are refused.
const (
	maxConfig = 4 << 20
	maxIndex  = 64 << 20
)

// readFolder reads a folder of Hugging Face's or Meta's layout, or a native checkpoint. As in
// transformers, model.safetensors is taken before an index, and safetensors before pickles. Meta's
// files, which some models have besides, come last.
func readFolder(o *opener, dir string) (format string, c contents, err error) {
	if text, err := wrongfile.Read(filepath.Join(dir, NativeFile), maxIndex); err == nil {
		c, err = readNative(o, dir, text)
		return Native, c, err
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", c, err
	}
	for _, names := range [][2]string{{weightsFile, indexFile}, {pickleFile, pickleIndex}} {
		path, index := filepath.Join(dir, names[0]), filepath.Join(dir, names[1])
		if _, err := os.Stat(path); err == nil {
			return readFile(o, path)
		}
		text, err := wrongfile.Read(index, maxIndex)
		if err == nil {
			if format, c.tensors, err = readShards(o, dir, index, text); err == nil {
				c.config, c.generation, err = readConfigs(o, dir)
			}
			return format, c, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", c, err
		}
	}
	if _, err := os.Stat(filepath.Join(dir, paramsFile)); err == nil {
		return readMeta(o, dir)
	}
	what := nameForeign(dir)
	if what != "" {
		what = "; " + what
	}
	return "", c, fmt.Errorf("%s: expected %s, %s or %s (or their index), or %s beside "+
		"consolidated.00.pth%s", dir,
		weightsFile, indexFile, pickleFile, paramsFile, what)
}

// isTorchFile distinguishes PyTorch's files, zip archives with any name, from safetensors.
func isTorchFile(path string, data []byte) bool {
	switch filepath.Ext(path) {
	case ".bin", ".pth", ".pt":
		return true
	}
	return strings.HasPrefix(string(data[:min(len(data), 4)]), "PK\x03\x04")
}

// readShards reads the files that an index names: {"metadata": …, "weight_map": {tensor: file}}. A
// tensor that lies in a shard but not in the index is left out, because the index says which of a
// folder's files make the model.
func readShards(o *opener, dir, index string, text []byte) (format string, tensors []*stored,
	err error) {
	c := budget.Count(text)
	if err := o.budget.Take(len(text) + 4*c.StringBytes + 128*c.Values); err != nil {
		return "", nil, fmt.Errorf("%s: %w", index, err)
	}
	var shards []string
	wanted := map[string]map[string]bool{}
	hasMap := false
	err = strictObject(text, func(d *json.Decoder, key string) error {
		if key != "weight_map" {
			return skipValue(d)
		}
		hasMap = true
		return eachKey(d, key, func(tensor string) error {
			shard, err := stringValue(d, fmt.Sprintf("weight_map: tensor %.80q", tensor))
			if err != nil {
				return err
			}
			if shard == "" || shard != filepath.Base(shard) || !filepath.IsLocal(shard) ||
				strings.ContainsAny(shard, "\\\x00") {
				return fmt.Errorf("weight_map: tensor %.80q: %.80q is not the name of a file in "+
					"this folder", tensor, shard)
			}
			if wanted[shard] == nil {
				wanted[shard] = map[string]bool{}
				shards = append(shards, shard)
			}
			wanted[shard][tensor] = true
			return nil
		})
	})
	if err == nil && !hasMap {
		err = fmt.Errorf("expected a key \"weight_map\"")
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", index, wrongfile.Explain(text, wrongfile.JSON, err))
	}
	for _, shard := range shards {
		path := filepath.Join(dir, shard)
		file, err := o.open(path)
		if err != nil {
			return "", nil, fmt.Errorf("%w (%s names it for tensor %q: fetch all files that it "+
				"names)", err, index, first(wanted[shard]))
		}
		kind, list, err := readWeights(o, file, wanted[shard])
		if err != nil {
			return "", nil, err
		}
		found := map[string]bool{}
		for _, s := range list {
			found[s.name] = true
		}
		for tensor := range wanted[shard] {
			if !found[tensor] {
				return "", nil, fmt.Errorf("%s: tensor %.80q is not in this file, where %s says "+
					"it is", path, tensor, index)
			}
		}
		format, tensors = kind, append(tensors, list...)
	}
	return format, tensors, nil
}

// first returns the least of a set's names.
func first(set map[string]bool) string {
	least := ""
	for name := range set {
		if least == "" || name < least {
			least = name
		}
	}
	return least
}

// skipValue consumes any value.
func skipValue(d *json.Decoder) error {
	var ignored json.RawMessage
	if err := d.Decode(&ignored); err != nil {
		return fmt.Errorf("JSON at byte %d: %w", d.InputOffset(), err)
	}
	return nil
}

// readConfigs reads config.json and generation_config.json; nil for one that is missing.
func readConfigs(o *opener, dir string) (config, generation []byte, err error) {
	for name, to := range map[string]*[]byte{configFile: &config, generationFile: &generation} {
		path := filepath.Join(dir, name)
		text, err := o.readConfig(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		var object map[string]any
		if err := json.Unmarshal(text, &object); err != nil {
			err = wrongfile.Explain(text, wrongfile.JSON, err)
			return nil, nil, fmt.Errorf("%s: expected a JSON object: %w", path, err)
		}
		if what := wrongfile.Describe(text, wrongfile.JSON); what != "" {
			return nil, nil, fmt.Errorf("%s: %s", path, what)
		}
		*to = text
	}
	return config, generation, nil
}

// readConfig reads a JSON file that is decoded as a whole, in standard JSON.
func (o *opener) readConfig(path string) ([]byte, error) {
	text, err := wrongfile.Read(path, maxConfig)
	if err != nil {
		return nil, err
	}
	text = pyjson.Standard(text)
	if err := o.budget.JSON(text); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return text, nil
}
