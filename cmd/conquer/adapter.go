package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"conquer/checkpoint"
	"conquer/internal/wrongfile"
	"conquer/lora"
	"conquer/model"
	"conquer/model/hub"
)

// openModel opens the files of a model that is named as openCheckpoint expects. If the name is that
// of a LoRA adapter, it opens the adapter's base and returns the adapter's folder too. adapter is
// that of --adapter_path, which stays.
func openModel(ctx context.Context, name, adapter string) (path, dir string,
	c *checkpoint.Checkpoint, err error) {
	if path, err = locate(ctx, name); err != nil {
		return "", "", nil, err
	}
	if !lora.IsAdapter(path) {
		c, err = checkpoint.Open(path)
		return path, adapter, c, err
	}
	switch {
	case adapter != "":
		return "", "", nil, fmt.Errorf("--model_path: %s is a LoRA adapter, and so is "+
			"--adapter_path: give the base model with --model_path, or merge %[1]s with "+
			"`conquer export` and give the result", path)
	case holdsModel(path):
		return "", "", nil, fmt.Errorf("--model_path: %s holds a model and a LoRA adapter: move "+
			"one of them to another folder", path)
	}
	base, err := baseOf(path)
	if err == nil {
		path, dir = base, path
		if path, err = locate(ctx, base); err == nil {
			c, err = checkpoint.Open(path)
		}
		if err != nil {
			err = fmt.Errorf("%s is a LoRA adapter, and its base model %s cannot be opened: %w; "+
				"give the base with --model_path and the adapter with --adapter_path %s", dir, base,
				err, dir)
		}
	}
	return path, dir, c, err
}

// holdsModel reports whether a folder holds weights of a model. A config.json alone, which some
// programs save beside an adapter, makes no model.
func holdsModel(dir string) bool {
	names, _ := checkpoint.ResultFiles(dir)
	return slices.ContainsFunc(names, func(name string) bool {
		switch filepath.Ext(name) {
		case ".safetensors", ".bin", ".pth":
			return !strings.HasPrefix(name, "adapter_model.")
		}
		return false
	})
}

// baseOf returns the name or path of the model that the adapter in the folder dir belongs to, in
// the form of --model_path. A relative path begins in the working folder, or else in dir.
func baseOf(dir string) (string, error) {
	info, err := lora.ReadInfo(dir)
	if err != nil {
		return "", err
	}
	if info.Base == "" {
		return "", fmt.Errorf("%s is a LoRA adapter that does not name its base model: give the "+
			"base with --model_path and the adapter with --adapter_path %s", dir, dir)
	}
	for _, path := range []string{info.Base, filepath.Join(dir, info.Base)} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	if _, known := hub.Find(info.Base); known || strings.HasPrefix(info.Base, hub.Scheme) {
		return info.Base, nil
	}
	ref := hub.Scheme + info.Base
	if _, err := hub.Parse("models", ref); err != nil || strings.Count(info.Base, "/") != 1 {
		return "", fmt.Errorf("%s is a LoRA adapter of %s, which does not exist here: give the "+
			"base with --model_path and the adapter with --adapter_path %s", dir, info.Base, dir)
	}
	if path, ok := hub.Cached(info.Base, info.Revision); ok {
		return path, nil
	}
	if m, ok := hub.FindHub(info.Base); ok {
		note("conquer: %s stands for %s, the base of %s; for another copy, give "+
			"it with --model_path and the adapter with --adapter_path\n", m.Name, info.Base, dir)
		return m.Name, nil
	}
	if info.Revision != "" {
		ref += "@" + info.Revision
	}
	return ref, nil
}

// baseName returns the name or path under which the next reader of an adapter, PEFT or this
// program, finds the base model: a name of the Hugging Face Hub, with @revision unless that is
// main, or an absolute path.
func baseName(path string) string {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		if m, ok := hub.Find(path); ok {
			return m.Hub
		}
		if r, err := hub.Parse("models", path); err == nil && r.File == "" {
			return strings.TrimSuffix(strings.TrimPrefix(path, hub.Scheme), "@main")
		}
		return path
	}
	absolute, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if name := filepath.Base(absolute); name == "model.safetensors" || name == "pytorch_model.bin" {
		return filepath.Dir(absolute)
	}
	return absolute
}

// adapterGeneration returns the generation_config.json that training wrote beside an adapter, or
// nil.
func adapterGeneration(dir string) ([]byte, error) {
	text, err := wrongfile.Read(filepath.Join(dir, "generation_config.json"), 4<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

// foldAdapter merges an adapter into a model's weights.
func foldAdapter(m model.Model, dir string) error {
	if err := lora.Load(m, dir); err != nil {
		return fmt.Errorf("--adapter_path: %w", err)
	}
	return lora.Merge(m)
}
