package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"conquer/checkpoint"
	"conquer/internal/atomicfile"
	"conquer/train"
	"conquer/train/report"
)

// overwriteUsage describes --overwrite of the commands that write a folder.
const overwriteUsage = "replace the model or adapter in an existing folder, when the new one is " +
	"complete; other files stay"

// sameFile reports whether two paths name the same file or folder.
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// checkOutput refuses an existing file, and a folder that is in use.
func checkOutput(path string, file, overwrite bool) error {
	info, err := os.Stat(path)
	switch {
	case file && err == nil && info.IsDir():
		return fmt.Errorf("--output_path: %s is a folder: name a file in it, such as model.gguf",
			path)
	case file && err == nil && !overwrite:
		return fmt.Errorf("--output_path: %s exists: choose another name, or give --overwrite",
			path)
	}
	to := path
	if file {
		to = filepath.Dir(path)
	}
	if err := checkFolder(to); err != nil {
		return fmt.Errorf("--output_path: %w", err)
	}
	if file {
		return nil
	}
	if err := checkpoint.Recover(path); err != nil {
		return fmt.Errorf("--output_path: %w", err)
	}
	names, err := inUse(path)
	switch {
	case err != nil:
		return fmt.Errorf("--output_path: %w", err)
	case len(names) > 0 && !overwrite:
		return fmt.Errorf("--output_path: %s is not empty, it holds %s: choose another folder, or "+
			"give --overwrite", path, some(names))
	}
	return nil
}

// inUse lists what a folder holds, without the remains of a writer that was killed. It returns none
// if the folder does not exist.
func inUse(dir string) (names []string, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), atomicfile.Suffix) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// some names the first of a folder's files.
func some(names []string) string {
	if len(names) > 3 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:3], ", "), len(names)-3)
	}
	return strings.Join(names, ", ")
}

// checkResult refuses an output folder in which a run would destroy what is there. A run that is
// resumed may continue in its own folder.
func (f *trainFlags) checkResult() error {
	if err := checkpoint.Recover(f.output); err != nil {
		return fmt.Errorf("--output_path: %w", err)
	}
	if f.Overwrite {
		return nil
	}
	saved, err := train.HasCheckpoint(f.CheckpointPath)
	if err != nil {
		return fmt.Errorf("--checkpoint_path: %w", err)
	}
	if !f.Resume {
		switch names, err := inUse(f.output); {
		case err != nil:
			return fmt.Errorf("--output_path: %w", err)
		case saved:
			return fmt.Errorf("%s holds checkpoints of a run: continue it with --resume, choose "+
				"another --output_path or --checkpoint_path, or start again with --overwrite",
				f.CheckpointPath)
		case slices.ContainsFunc(names, func(name string) bool { return !f.isLog(name) }):
			return fmt.Errorf("--output_path: %s is not empty, it holds %s: choose another "+
				"folder, or give --overwrite", f.output, some(names))
		}
		return nil
	}
	names, err := checkpoint.ResultFiles(f.output)
	switch {
	case err != nil || len(names) == 0:
	case !saved:
		err = fmt.Errorf("%s holds a result (%s), and there is no checkpoint to resume from: "+
			"choose another folder, or replace the result with --overwrite", f.output, some(names))
	case !below(f.CheckpointPath, f.output):
		err = fmt.Errorf("%s holds a result (%s), which may not be that of the run in %s: "+
			"choose another folder, or replace the result with --overwrite", f.output, some(names),
			f.CheckpointPath)
	}
	if err != nil {
		return fmt.Errorf("--output_path: %w", err)
	}
	return nil
}

// below reports whether a path is in a folder.
func below(path, dir string) bool {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false
	}
	if path, err = filepath.Abs(path); err != nil {
		return false
	}
	return strings.HasPrefix(path, dir+string(filepath.Separator))
}

// isLog reports whether a run that has no result and no checkpoint may have left a file of this
// name in its folder. The next run replaces it.
func (f *trainFlags) isLog(name string) bool {
	logs := []string{report.MetricsFile, report.EventsFolder, report.MLflowFile,
		filepath.Base(f.CheckpointPath)}
	return slices.Contains(logs, name)
}

// checkFolder reports why files cannot be written to a folder. The folder need not exist yet.
func checkFolder(path string) error {
	info, err := os.Stat(path)
	to, notLink := os.Readlink(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && notLink == nil:
		return fmt.Errorf("%s is a symbolic link to %s, which does not exist", path, to)
	case errors.Is(err, fs.ErrNotExist) && path != filepath.Dir(path):
		return checkFolder(filepath.Dir(path))
	case errors.Is(err, syscall.ENOTDIR):
		return checkFolder(filepath.Dir(path)) // a parent is a file
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is a file, expected a folder", path)
	}
	// Permissions do not tell whether a file system takes files, so a folder is made.
	made, err := os.MkdirTemp(path, ".conquer-")
	var failed *fs.PathError
	if errors.As(err, &failed) {
		return fmt.Errorf("cannot write to %s: %w", path, failed.Err)
	} else if err != nil {
		return err
	}
	return os.Remove(made)
}
