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

// ResultFiles lists the names of the files in the folder dir that belong to a result: the weights,
// configs and tokenizer of a model in any layout, or an adapter. A new result replaces all of them.
// It returns none if dir does not exist.
func ResultFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if !e.IsDir() && (fileRank(e.Name()) != otherFile || e.Name() == generationFile ||
			slices.Contains(tokenizerFiles, e.Name())) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// The kinds of a result's files, in the order in which they appear.
const (
	weightFile = iota
	otherFile
	entryFile
)

func fileRank(name string) int {
	if slices.Contains(entryFiles, name) {
		return entryFile
	}
	for _, pattern := range weightPatterns {
		if ok, _ := filepath.Match(pattern, name); ok {
			return weightFile
		}
	}
	return otherFile
}

// moveFiles replaces the result in dir by the files of a finished stage. It first removes the old
// entry files and adds the new ones last: a folder that a power failure left between two results
// does not open, instead of opening as a mixture of both.
func moveFiles(stage, dir string) error {
	entries, err := os.ReadDir(stage)
	if err != nil {
		return err
	}
	slices.SortStableFunc(entries,
		func(a, b os.DirEntry) int { return fileRank(a.Name()) - fileRank(b.Name()) })
	last := 0 // the number of files before the entry files
	fresh := map[string]bool{}
	for _, e := range entries {
		if fresh[e.Name()] = true; fileRank(e.Name()) != entryFile {
			last++
		}
	}
	old, err := ResultFiles(dir)
	if err != nil {
		return err
	}
	isEntry := func(name string) bool { return fileRank(name) == entryFile }
	if err := removeFiles(dir, old, isEntry); err != nil {
		return err
	}
	if err := renameFiles(stage, dir, entries[:last]); err != nil {
		return err
	}
	if err := removeFiles(dir, old, func(name string) bool { return !fresh[name] }); err != nil {
		return err
	}
	return renameFiles(stage, dir, entries[last:])
}

// removeFiles removes those of the named files in dir for which which is true.
func removeFiles(dir string, names []string, which func(name string) bool) error {
	for _, name := range names {
		if !which(name) {
			continue
		}
		err := os.Remove(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return atomicfile.SyncFolder(dir)
}

// renameFiles moves files from one folder to another.
func renameFiles(from, to string, entries []os.DirEntry) error {
	for _, e := range entries {
		err := os.Rename(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		if err != nil {
			return err
		}
	}
	return atomicfile.SyncFolder(to)
}
