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

	"github.com/spf13/pflag"

	"conquer/checkpoint"
	"conquer/internal/wrongfile"
	"conquer/lora"
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
	base, _, err := baseOf(path)
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
// the form of --model_path, and the name under which an adapter trained from this one names it. A
// relative path begins in the working folder, or else in dir.
func baseOf(dir string) (path, name string, err error) {
	info, err := lora.ReadInfo(dir)
	if err != nil {
		return "", "", err
	}
	if info.Base == "" {
		return "", "", fmt.Errorf("%s is a LoRA adapter that does not name its base model: give "+
			"the base with --model_path and the adapter with --adapter_path %s", dir, dir)
	}
	for _, path := range []string{info.Base, filepath.Join(dir, info.Base)} {
		if _, err := os.Stat(path); err == nil {
			return path, baseName(path), nil
		}
	}
	if _, known := hub.Find(info.Base); known || strings.HasPrefix(info.Base, hub.Scheme) {
		return info.Base, baseName(info.Base), nil
	}
	ref := hub.Scheme + info.Base
	if _, err := hub.Parse("models", ref); err != nil || strings.Count(info.Base, "/") != 1 {
		return "", "", fmt.Errorf("%s is a LoRA adapter of %s, which does not exist here: give "+
			"the base with --model_path and the adapter with --adapter_path %s", dir,
			info.Base, dir)
	}
	name = info.Base
	if info.Revision != "" {
		name += "@" + info.Revision
	}
	if path, ok := hub.Cached(info.Base, info.Revision); ok {
		return path, name, nil
	}
	if m, ok := hub.FindHub(info.Base); ok {
		note("conquer: %s stands for %s, the base of %s; for another copy, give "+
			"it with --model_path and the adapter with --adapter_path\n", m.Name, info.Base, dir)
		return m.Name, name, nil
	}
	return hub.Scheme + name, name, nil
}

// readLoRA reads the flags of a new adapter, or opens the adapter that is to be trained further:
// that of --adapter_path, or the one that --model_path names, whose base it takes then.
func (f *trainFlags) readLoRA(flags *pflag.FlagSet) (err error) {
	if lora.IsAdapter(f.path) {
		switch {
		case f.adapter != "":
			return usagef("--model_path: %s is a LoRA adapter, and so is --adapter_path: give the "+
				"base model with --model_path", f.path)
		case holdsModel(f.path):
			return fmt.Errorf("--model_path: %s holds a model and a LoRA adapter: move one of "+
				"them to another folder", f.path)
		}
		f.adapter = f.path
		if f.path, f.BaseModel, err = baseOf(f.adapter); err != nil {
			return err
		}
	}
	if f.adapter == "" {
		f.LoRA, err = f.lora.read(flags)
		return err
	}
	flags.Visit(func(flag *pflag.Flag) {
		if strings.HasPrefix(flag.Name, "lora_") && flag.Name != "lora_dropout" && err == nil {
			err = usagef("--%s describes a new adapter, and %s has its own: leave the flag out",
				flag.Name, f.adapter)
		}
	})
	if err != nil {
		return err
	}
	config, err := lora.Open(f.adapter)
	if err != nil {
		return fmt.Errorf("--adapter_path: %w", err)
	}
	if flags.Changed("lora_dropout") {
		config.Dropout = f.lora.Dropout
	}
	f.LoRA, f.further = &config, true
	return nil
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
